"""Find the training items that lie within epsilon of an item of a reference."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.execution import usage
from semdedup_assets.execution.context import PartOfResult, StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Column, Rows, Shown, Stage, Worker
from semdedup_assets.kept_sets import Clustering, Selection
from semdedup_assets.stages.assignments import FittedClustering
from semdedup_assets.stages.cluster_batches import AssignedClusters, ClusterBatch
from semdedup_assets.stages.reference_embeddings import ReferencePart, has_references, stored_parts
from semdedup_assets.storage.results import ResultRecord, StoredFile
from semdedup_assets.storage.tables import read_table, write_table
from semdedup_assets.storage.vectors import part_count, read_part

if TYPE_CHECKING:
    from semdedup_assets.algorithm.reference_search import NearestClusters, ReferenceRows

EPSILONS = (0.001, 0.01, 0.05, 0.1, 0.2)
"""At which matches are counted, beside the references' own epsilons."""


def match_name(cluster_range: int) -> str:
    """The matches of a range of clusters, in the record."""
    return f"r{cluster_range:04d}.parquet"


@dataclass(frozen=True, slots=True)
class _RangeTask:
    partition: Partition
    cluster_range: int
    inputs: dict[str, str]


def _tasks(context: StageContext, partition: Partition) -> Sequence[_RangeTask]:
    inputs = context.index.input_versions("reference_matches", partition)
    context.index.require_consistent("assignments", partition)
    ranges = context.index.range_count(partition.required_clustering)
    return [_RangeTask(partition, index, inputs) for index in range(ranges)]


def _worker(context: StageContext) -> Worker:
    found: dict[Clustering, ReferenceSearch] = {}

    def worker(task: _RangeTask) -> PartOfResult:
        context.index.require_inputs("reference_matches", task.partition, task.inputs)
        clustering = task.partition.required_clustering
        return match_range(task, found.setdefault(clustering, ReferenceSearch(context, clustering)))

    return worker


class _Chunk:
    """Some consecutive items of a reference: so many that results do not depend on how many fit the memory."""

    def __init__(self, part: ReferencePart, index: int, bytes_: int) -> None:
        self.part = part
        self.index = index
        self.bytes = bytes_
        self.nearest: NearestClusters | None = None

    def ready(self, search: "ReferenceSearch") -> "tuple[np.ndarray, ReferenceRows]":
        """Ids and vectors; where these lie among the centroids is computed once."""
        from semdedup_assets.algorithm.reference_search import NearestClusters, ReferenceRows
        from semdedup_assets.algorithm.unit_rows import as_tensor

        table, compute = read_part(self.part.vectors, self.index), search.context.compute
        width, expected = table.vectors.shape[1], search.fitted.centroids.shape[1]
        if width != expected:
            message = (
                f"references.{self.part.reference}: its vectors have {width} numbers, the centroids {expected}; embed both "
                "with one model, or fit the centroids again"
            )
            raise ValueError(message)
        reference = search.context.pipeline.references[self.part.reference]
        rows = as_tensor(table.vectors).to(compute.torch_device)
        nearest = search.fitted.nearest
        if self.nearest is None:
            self.nearest = NearestClusters.of(rows, nearest, most=reference.clusters, budget=compute.budget)
        return table.ids, ReferenceRows(rows, self.nearest, nearest.centroids, reference.epsilon)


class ReferenceSearch:
    """The references beside the clusters of one clustering; what is looked up is looked up once for all ranges."""

    def __init__(self, context: StageContext, clustering: Clustering) -> None:
        # No order of items matters here, and this one needs no column.
        self.context = context.with_selection(Selection())
        self.clustering = clustering

    @cached_property
    def fitted(self) -> FittedClustering:
        """The centroids."""
        return FittedClustering(self.context, self.clustering)

    @cached_property
    def assigned(self) -> AssignedClusters:
        """The training items."""
        return AssignedClusters(self.context, self.clustering)

    @cached_property
    def _chunks(self) -> list[_Chunk]:
        (record,) = self.context.index.require_consistent("reference_embeddings").values()
        width = 4 * self.fitted.centroids.shape[1]
        return [
            _Chunk(part, index, part.items * width // part_count(part.vectors))
            for part in stored_parts(record)
            if part.items
            for index in range(part_count(part.vectors))
        ]

    @cached_property
    def groups_held_apart(self) -> list[list[_Chunk]]:
        """Chunks that are held together: a range of clusters is read once for each group."""
        groups: list[list[_Chunk]] = []
        free = 0
        for chunk in self._chunks:
            if not groups or chunk.bytes > free:
                groups.append([])
                free = self.context.compute.budget // 4
            groups[-1].append(chunk)
            free -= chunk.bytes
        return groups

    def groups(self) -> "Iterator[list[tuple[str, np.ndarray, ReferenceRows]]]":
        """Name, ids and vectors of some chunks of references after the other; held where all fit."""
        if len(self.groups_held_apart) == 1:
            yield self._only_group
        else:
            yield from map(self._loaded, self.groups_held_apart)

    @cached_property
    def _only_group(self) -> "list[tuple[str, np.ndarray, ReferenceRows]]":
        return self._loaded(self.groups_held_apart[0])

    def _loaded(self, group: list[_Chunk]) -> "list[tuple[str, np.ndarray, ReferenceRows]]":
        return [(chunk.part.reference, *chunk.ready(self)) for chunk in group]

    @cached_property
    def names(self) -> list[str]:
        """Of the references, in the order of their ids."""
        return list(dict.fromkeys(chunk.part.reference for chunk in self._chunks))


def match_range(task: _RangeTask, search: ReferenceSearch) -> PartOfResult:
    """Hold the training items of a range of clusters against the references.

    Args:
        task: which range.
        search: the references and the clusters.

    Raises:
        MissingResultError: a shard is not assigned to today's centroids, or the references are not embedded.
        ValueError: references and centroids differ in dimension.
    """
    context = search.context
    found = _Found(search.names)
    for group in search.groups():
        for batch in usage.each("read", search.assigned.batches(task.cluster_range)):
            with usage.phase("compare"):
                for name, ids, rows in group:
                    found.add(name, ids, batch, rows, budget=context.compute.budget)
    columns = found.columns()
    with context.writing_part("reference_matches", task.partition) as part:
        with part.open(match_name(task.cluster_range)) as stream:
            write_table(stream, columns)
        part.details = {"pairs_compared": found.pairs, "within": _counts(context, columns)}
    return PartOfResult(task.inputs, part.files, part.details)


class _Found:
    """Gathers the matches of a range, of each training item the best with each reference."""

    def __init__(self, names: list[str]) -> None:
        self.pairs = 0
        self._parts: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {name: [] for name in names}

    def add(self, name: str, ids: np.ndarray, batch: ClusterBatch, rows: "ReferenceRows", *, budget: int) -> None:
        from semdedup_assets.algorithm.unit_rows import as_tensor

        vectors = as_tensor(batch.vectors).to(rows.rows.device)
        found = rows.search(vectors, batch.offsets, batch.first, budget=budget)
        here = np.flatnonzero(found.position >= 0)
        self._parts[name].append((batch.ids[here], ids[found.position[here]], found.similarity[here]))
        self.pairs += found.pairs

    def columns(self) -> dict[str, np.ndarray]:
        from semdedup_assets.algorithm.reference_search import best_by_group

        names, chosen = list[np.ndarray](), list[tuple[np.ndarray, np.ndarray, np.ndarray]]()
        for name, parts in self._parts.items():
            if parts:
                item, reference, similarity = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
                best = best_by_group(item, reference, similarity)
                chosen.append((item[best], reference[best], similarity[best]))
                names.append(np.full(len(best), name, dtype=object))
        nothing = (np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.float32))
        ids, references, similarities = (np.concatenate(arrays) for arrays in zip(nothing, *chosen, strict=True))
        return {
            "id": ids,
            # Of no row this is a text too.
            "reference": np.concatenate([np.empty(0, dtype=object), *names]).astype(str),
            "reference_id": references,
            "similarity": similarities,
        }


def _counts(context: StageContext, columns: dict[str, np.ndarray]) -> dict[str, dict[str, int]]:
    """How many training items lie within each epsilon, as far as that is searched, by reference."""
    found = {}
    for name, reference in context.pipeline.references.items():
        similarity = columns["similarity"][columns["reference"] == name].astype(np.float64)
        epsilons = [*(each for each in EPSILONS if each < reference.epsilon), reference.epsilon]
        found[name] = {f"{epsilon:g}": int((similarity > 1.0 - epsilon).sum()) for epsilon in epsilons}
    return found


def _finish(context: StageContext, partition: Partition, parts: list[PartOfResult]) -> ResultRecord:
    references = context.pipeline.references
    counts = {name: Counter[str]() for name in references}
    for part in parts:
        for name, within in part.details["within"].items():
            counts[name].update(within)
    (record,) = context.index.require_all("reference_embeddings").values()
    items = context.index.require_all("assignments", partition).values()
    total = sum(int(each.details["items"]) for each in items)
    compared = sum(int(part.details["pairs_compared"]) for part in parts)
    details: dict[str, Any] = {
        "items": total,
        "reference_items": int(record.details["items"]),
        "within_epsilon": {name: counts[name][f"{each.epsilon:g}"] for name, each in references.items()},
        "by_epsilon": [
            {"reference": name, "epsilon": float(epsilon), "items": items}
            for name, each in counts.items()
            for epsilon, items in each.items()
        ],
        "pairs_compared": compared,
        "share_compared": compared / max(1, total * int(record.details["items"])),
        "exact": all(each.clusters is None for each in references.values()),
    }
    return context.finish_parts("reference_matches", partition, parts, details)


def match_files(record: ResultRecord) -> list[StoredFile]:
    """The matches of each range of clusters, in order."""
    return [record.file(name) for name in sorted(record.files)]


def matched_by(record: ResultRecord, cluster_range: int, references: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The training items of a range that lie within epsilon of some references.

    Args:
        record: of the matches of a clustering.
        cluster_range: index of the range.
        references: their names.

    Returns:
        ids: (n,) uint64, ascending and distinct;
        names: (n,) of the most similar reference of each, the first by name among equals.
    """
    table = read_table(record.file(match_name(cluster_range)), ["id", "reference", "similarity"])
    wanted = np.flatnonzero(np.isin(table["reference"].astype(str), list(references)))
    order = wanted[
        np.lexsort((table["reference"][wanted].astype(str), -table["similarity"][wanted], table["id"][wanted]))
    ]
    ids, first = np.unique(table["id"][order], return_index=True)
    return ids, table["reference"][order[first]]


def _shown(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    return {"by_epsilon": Rows(record.details["by_epsilon"])}


STAGE = Stage(
    name="reference_matches",
    step="3-compare",
    description="The training items within epsilon of an item of a reference, each with the most similar one. A reference "
    "item visits every cluster that can hold such an item (for unit vectors x·(c_A − c_B) ≤ √(2ε)·‖c_A − c_B‖ is necessary), "
    "so that none is missed. Beyond the paper.",
    dimensions=("k",),
    inputs=("centroids", "assignments", "reference_embeddings"),
    settings=lambda context: {
        name: {"epsilon": each.epsilon, "clusters": each.clusters} for name, each in context.pipeline.references.items()
    },
    location=lambda layout, partition, _: layout.of_clustering(partition.required_clustering, "reference_matches"),
    worker=_worker,
    tasks=_tasks,
    finish=_finish,
    applies=lambda pipeline, _: has_references(pipeline),
    kinds=frozenset({"torch", "parquet"}),
    columns=lambda _: (
        Column("id", "uint64", "The training item: shard (32 bits) and row in the shard (32 bits)."),
        Column("reference", "string", "Name of the reference."),
        Column("reference_id", "uint64", "Its most similar item; the lowest id among equals."),
        Column("similarity", "float32", "Cosine similarity of the two."),
    ),
    shown=_shown,
    unit="ranges",
)
