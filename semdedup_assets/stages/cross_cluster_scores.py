"""Search the clusters for earlier duplicates of items of other clusters."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from semdedup_assets.execution import usage
from semdedup_assets.execution.context import PartOfResult, StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Column, Stage, Worker
from semdedup_assets.kept_sets import Clustering
from semdedup_assets.stages.boundary_items import BOUNDARY, REPAIR
from semdedup_assets.stages.cluster_batches import AssignedClusters, ClusterBatch
from semdedup_assets.stages.duplicate_scores import STAGE as DUPLICATE_SCORES
from semdedup_assets.stages.duplicate_scores import range_name, scores_within_clusters
from semdedup_assets.stages.embeddings import ID
from semdedup_assets.storage.results import ResultRecord, StoredFile
from semdedup_assets.storage.tables import TableWriter, read_rows, read_table
from semdedup_assets.storage.vectors import VectorTable, read_parts, visits_of


@dataclass(frozen=True, slots=True)
class _SearchTask:
    """One range of the clusters that are searched."""

    partition: Partition
    cluster_range: int
    inputs: dict[str, str]


def _tasks(context: StageContext, partition: Partition) -> Sequence[_SearchTask]:
    inputs = context.index.input_versions("cross_cluster_scores", partition)
    scores_within_clusters(context, partition.required_clustering)
    ranges = context.index.range_count(partition.required_clustering)
    return [_SearchTask(partition, index, inputs) for index in range(ranges)]


def _worker(context: StageContext) -> Worker:
    known: dict[Clustering, SearchedClusters] = {}

    def worker(task: _SearchTask) -> PartOfResult:
        context.index.require_inputs("cross_cluster_scores", task.partition, task.inputs)
        clustering = task.partition.required_clustering
        return search_range(known.setdefault(clustering, SearchedClusters(context, clustering)), task)

    return worker


@dataclass(frozen=True)
class SearchedClusters:
    """The clusters of one clustering with the items of other clusters that search them; looked up once for all ranges."""

    context: StageContext
    clustering: Clustering

    @cached_property
    def assigned(self) -> AssignedClusters:
        """The clusters' own items."""
        return AssignedClusters(self.context, self.clustering)

    @cached_property
    def boundary(self) -> list[StoredFile]:
        """The boundary items of each shard."""
        records = self.context.index.require_consistent("boundary_items", Partition(clustering=self.clustering))
        return [record.file(BOUNDARY) for record in records.values()]

    @cached_property
    def medians(self) -> np.ndarray | None:
        """(k,) float64, the median similarity to the centroid in each cluster, where the keep-order needs it."""
        if "middle" not in self.context.selection.criteria:
            return None
        from semdedup_assets.algorithm.keep_order import cluster_medians

        medians = np.zeros(len(self.range_of_cluster))
        for file in scores_within_clusters(self.context, self.clustering):
            scores = read_table(file, ["cluster", "centroid_similarity"])
            medians[scores["cluster"]] = cluster_medians(scores["cluster"], scores["centroid_similarity"])
        return medians

    @cached_property
    def range_of_cluster(self) -> np.ndarray:
        """(k,) int64, the range that each cluster lies in."""
        sizes = [len(clusters) for clusters in self.assigned.ranges]
        return np.repeat(np.arange(len(sizes)), sizes)


@dataclass(frozen=True, slots=True)
class _Visitors:
    """Items of other clusters that search the clusters of a batch.

    Attributes:
        ids: (v,) uint64.
        cluster: (v,) int32, their own.
        centroid_similarity: (v,) float64.
        vectors: (v, d) as stored.
        row: (m,) int64, of each visit, which of them.
        visited: (m,) int32, which cluster; ascending.
    """

    ids: np.ndarray
    cluster: np.ndarray
    centroid_similarity: np.ndarray
    vectors: np.ndarray
    row: np.ndarray
    visited: np.ndarray

    @classmethod
    def of(cls, tables: Sequence[tuple[VectorTable, np.ndarray, np.ndarray]], clusters: range) -> "_Visitors | None":
        """Those of some tables, each with the rows and clusters of its visits; None where there are none."""
        parts, visits, count = [], [], 0
        for table, row, visited in tables:
            here = (visited >= clusters.start) & (visited < clusters.stop)
            rows, index = np.unique(row[here], return_inverse=True)
            if len(rows):
                parts.append((table, rows))
                visits.append((index.reshape(-1) + count, visited[here]))
                count += len(rows)
        if not parts:
            return None
        row, visited = (np.concatenate(each) for each in zip(*visits, strict=True))
        order = np.argsort(visited, kind="stable")
        return cls(
            np.concatenate([table.ids[rows] for table, rows in parts]),
            np.concatenate([table.column("cluster")[rows] for table, rows in parts]),
            np.concatenate([table.column("centroid_similarity")[rows] for table, rows in parts]),
            np.concatenate([table.vectors[rows] for table, rows in parts]),
            row[order],
            visited[order],
        )


def search_range(searched: SearchedClusters, task: _SearchTask) -> PartOfResult:
    """Search a range of clusters for earlier duplicates of the items of other clusters.

    Args:
        searched: the clusters.
        task: which range.

    Raises:
        MissingResultError: boundary items or assignments are missing, or do not fit together.
    """
    from semdedup_assets.algorithm.cross_clusters import best_of

    context, counts = searched.context, Counter[str]()
    found = [(np.empty(0, np.uint64), np.empty(0, np.float32), np.empty(0, np.uint64), np.empty(0, np.int32))]
    with usage.phase("read"):
        read = read_parts(searched.boundary, task.cluster_range)
        tables = [(table, *visits_of(table)) for table in read if len(table.ids)]
    for batch in usage.each("read", searched.assigned.batches(task.cluster_range)):
        clusters = range(batch.first, batch.first + len(batch.offsets) - 1)
        visitors = _Visitors.of(tables, clusters)
        if visitors is not None:
            with usage.phase("compare"):
                found += _searched(searched, batch, visitors, counts)
    ids, similarity, earlier, home = (np.concatenate(parts) for parts in zip(*found, strict=True))
    best = best_of(ids, similarity, earlier)
    homes = dict(zip(ids.tolist(), home.tolist(), strict=True))
    own = np.array([homes[item] for item in best.item.tolist()], dtype=np.int64)
    with context.writing_part("cross_cluster_scores", task.partition) as part:
        with part.open(range_name(task.cluster_range)) as stream, TableWriter(stream) as table:
            _write(table, searched.range_of_cluster[own], (best.item, best.similarity, best.earlier))
        part.details = {"found": len(best.item), **counts}
    return PartOfResult(task.inputs, part.files, part.details)


def _searched(
    searched: SearchedClusters, batch: ClusterBatch, visitors: _Visitors, counts: Counter[str]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Of each cluster of a batch: the visitors that have an earlier item there, the similarity, the item, their own cluster."""
    from semdedup_assets.algorithm.cross_clusters import earlier_members, greatest_earlier
    from semdedup_assets.algorithm.unit_rows import as_tensor

    compute = searched.context.compute
    members, guests = (as_tensor(each).to(compute.torch_device) for each in (batch.vectors, visitors.vectors))
    keys = _keys(searched, batch, visitors)
    bounds = np.searchsorted(visitors.visited, np.arange(batch.first, batch.first + len(batch.offsets)))
    for index, (start, stop) in enumerate(zip(batch.offsets[:-1], batch.offsets[1:], strict=True)):
        guest = visitors.row[bounds[index] : bounds[index + 1]]
        if start == stop or len(guest) == 0:
            continue
        both = np.concatenate([np.arange(start, stop), len(batch.ids) + guest])
        earlier = earlier_members(tuple(key[both] for key in keys), members=int(stop - start))
        result = greatest_earlier(
            guests[as_tensor(guest).to(guests.device)], members[start:stop], earlier=earlier, budget=compute.budget
        )
        counts.update(clusters_searched=len(guest), pairs_compared=int(earlier.sum()))
        known = result.position >= 0
        rows = guest[known]
        yield (
            visitors.ids[rows],
            result.similarity[known],
            batch.ids[start + result.position[known]],
            visitors.cluster[rows],
        )


def _keys(searched: SearchedClusters, batch: ClusterBatch, visitors: _Visitors) -> tuple[np.ndarray, ...]:
    """What orders the items of a batch and then the visitors, of one call: keys of several cannot be compared."""
    from semdedup_assets.algorithm.keep_order import ClusteredItems, keep_keys

    ids = np.concatenate([batch.ids, visitors.ids])
    cluster = np.concatenate([batch.cluster, visitors.cluster])
    similarity = np.concatenate([batch.centroid_similarity, visitors.centroid_similarity])
    medians = None if searched.medians is None else searched.medians[cluster]
    items = ClusteredItems(ids, cluster, similarity, medians)
    order = searched.assigned.keep.order_of(ids)
    return (*keep_keys(order, items, seed=searched.context.selection.seed), ids)


def _write(table: TableWriter, home: np.ndarray, columns: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """Write rows by the range of their own cluster, a row group for each, so that a reader reads only its part."""
    order = np.argsort(home, kind="stable")
    bounds = np.flatnonzero(np.diff(home[order], prepend=-1, append=-1)) if len(order) else np.array([0, 0])
    for start, stop in pairwise(bounds.tolist()):
        rows = order[start:stop]
        names = ("range", "id", "similarity", "duplicate_of")
        table.write(dict(zip(names, (each[rows] for each in (home.astype(np.int32), *columns)), strict=True)))


def read_found(file: StoredFile, ranges: range) -> dict[str, np.ndarray]:
    """What was found for the items of some ranges in the clusters of another: range, id, similarity, duplicate_of.

    Args:
        file: of the range that was searched.
        ranges: of the items' own clusters, consecutive ones.
    """
    names = ["range", "id", "similarity", "duplicate_of"]
    start, stop = np.searchsorted(read_table(file, ["range"])["range"], [ranges.start, ranges.stop])
    parts = list(read_rows(file, np.arange(start, stop), names))
    if not parts:
        types = (np.int32, np.uint64, np.float32, np.uint64)
        return {name: np.empty(0, dtype) for name, dtype in zip(names, types, strict=True)}
    return {name: np.concatenate([part.column(name).to_numpy() for part in parts]) for name in names}


def _finish(context: StageContext, partition: Partition, parts: list[PartOfResult]) -> ResultRecord:
    total = Counter[str](found=0, clusters_searched=0, pairs_compared=0)
    for part in parts:
        total.update({name: int(part.details.get(name, 0)) for name in total})
    return context.finish_parts("cross_cluster_scores", partition, parts, dict(total))


STAGE = Stage(
    name="cross_cluster_scores",
    step=REPAIR,
    description="For items that search other clusters, the greatest cosine similarity to an earlier item there, and which: "
    "the same order and rule as within a cluster (SemDeDup, Alg. A7). One file for each range of clusters searched.",
    dimensions=("k",),
    inputs=("assignments", "boundary_items", "duplicate_scores"),
    optional_inputs=DUPLICATE_SCORES.optional_inputs,
    input_version=DUPLICATE_SCORES.input_version,
    settings=lambda _: {},
    location=lambda layout, partition, selection: layout.of_clustering(
        partition.required_clustering, f"cross-{selection.repair}", selection.keep_order
    ),
    worker=_worker,
    tasks=_tasks,
    finish=_finish,
    kinds=frozenset({"torch", "parquet"}),
    columns=lambda _: (
        Column("range", "int32", "Range of the item's own cluster."),
        ID,
        Column("similarity", "float32", "Greatest cosine similarity to an earlier item of this range's clusters."),
        Column("duplicate_of", "uint64", "That earlier item."),
    ),
    selected=True,
    selection_settings=lambda selection: {"keep_order": selection.keep_order, "repair": str(selection.repair)},
    applies=lambda _, selection: selection.repair is not None,
    unit="ranges",
)
