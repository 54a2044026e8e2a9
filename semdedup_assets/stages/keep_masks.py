"""Decide what is kept at an epsilon, and which kept item each removed one duplicates."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.algorithm.sampling import CHECKSUM_MODULUS, id_checksum
from semdedup_assets.checks.keep_masks import CHECKS
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import PartOfResult, StageContext
from semdedup_assets.execution.item_lookup import item_keys
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Column, Rows, Shown, Stage, Worker
from semdedup_assets.kept_sets import Clustering, Target
from semdedup_assets.settings import Pipeline
from semdedup_assets.stages.cluster_batches import AssignedClusterings, AssignedClusters
from semdedup_assets.stages.duplicate_scores import PROTECTED_SIMILARITY, repaired_input, scores_files, scores_of_range
from semdedup_assets.stages.embeddings import ID
from semdedup_assets.stages.mask_adjustments import (
    MaskAdjustment,
    adjusting_inputs,
    adjusting_settings,
    range_leaks,
    removing_references,
)
from semdedup_assets.stages.repaired_masks import KeptItems
from semdedup_assets.storage.overlap import calls_at_once, overlapped
from semdedup_assets.storage.results import ResultRecord, StoredFile
from semdedup_assets.storage.scratch import ScratchBytes
from semdedup_assets.storage.tables import read_table, write_table

if TYPE_CHECKING:
    from torch import Tensor

    from semdedup_assets.algorithm.selection import Selection

_BLOCK = 1 << 20
_LARGEST_GROUPS, _SHOWN_GROUPS = 20, 8
# Of an item that is removed at every epsilon: no cosine similarity is as great.
_BEYOND = 2.0
# A repaired group may lie in many ranges: more of each are added up than are named.
_GROUPS_OF_A_RANGE = 200
_PROTECTION = ("protected", "protected_would_be_removed")
# What references removed, and could not, and what captions spared, and could not tell.
_ADJUSTED = ("removed_by_reference", "protected_leaks", "spared", "removed_without_caption")
_COUNTED = ("items", "kept", "orphans", "clusters", "clusters_without_kept", *_PROTECTION, *_ADJUSTED)


def mask_name(cluster_range: int) -> str:
    """The masks of a range of clusters, in the record: the rows of its scores, in the same order."""
    return f"r{cluster_range:04d}.parquet"


@dataclass(frozen=True, slots=True)
class _MaskTask:
    """The masks of one range: `epsilon` is the number that the partition's target stands for."""

    partition: Partition
    cluster_range: int
    epsilon: float
    inputs: dict[str, str]


def _tasks(context: StageContext, partition: Partition) -> Sequence[_MaskTask]:
    clustering = partition.required_clustering
    inputs = context.index.input_versions("keep_masks", partition)
    files = scores_files(context, clustering)
    gone = partial(_gone, context, clustering) if removing_references(context.pipeline) else None
    epsilon = solved_epsilon(partition.target or Target(epsilon=0.0), files, budget=context.compute.budget, gone=gone)
    return [_MaskTask(partition, index, epsilon, inputs) for index in range(len(files))]


def _gone(context: StageContext, clustering: Clustering, index: int, scores: StoredFile) -> np.ndarray:
    """(n,) bool: the rows of a range's scores that are removed at every epsilon."""
    table = read_table(scores, ["id", *_protection_columns(context)])
    stored = Partition(clustering=clustering).of_range(index)
    return range_leaks(context, stored, table["id"], _protected(table)).gone


def _protection_columns(context: StageContext) -> list[str]:
    return [] if context.selection.protect is None else [PROTECTED_SIMILARITY]


def _protected(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n,) bool: the items that are never removed."""
    if PROTECTED_SIMILARITY not in scores:
        return np.zeros(len(scores["id"]), dtype=bool)
    protected: np.ndarray = ~np.isnan(scores[PROTECTED_SIMILARITY])
    return protected


def solved_epsilon(
    target: Target,
    scores: Sequence[StoredFile],
    *,
    budget: int,
    gone: Callable[[int, StoredFile], np.ndarray] | None = None,
) -> float:
    """The number that a target stands for: an epsilon itself, or the one that keeps a wanted share.

    The scores are read once: 4 bytes of each are held, beyond the budget in a temporary file.

    Args:
        target: either.
        scores: of all ranges of clusters.
        budget: bytes that may be held in memory.
        gone: says of a range and its scores which items, (n,) bool, are removed at every epsilon; None: none are.
    """
    if target.epsilon is not None:
        return target.epsilon
    from semdedup_assets.algorithm.tuning import epsilon_for

    held = ScratchBytes(budget=budget)
    for similarity in _similarities(scores, gone):
        held.append(similarity)
    similarities = held.array(np.dtype(np.float32))
    if len(similarities) == 0:
        return 0.0  # Of no items every share is kept.
    starts = range(0, len(similarities), _BLOCK)
    return epsilon_for(
        lambda: (similarities[start : start + _BLOCK] for start in starts), keep=(target.share or 0.0) / 100
    )


def _similarities(
    scores: Sequence[StoredFile], gone: Callable[[int, StoredFile], np.ndarray] | None
) -> Iterator[np.ndarray]:
    """The similarities that decide, range by range; beyond every threshold where an item is gone anyway."""

    def of_range(index: int) -> np.ndarray:
        similarity = read_table(scores[index], ["similarity"])["similarity"].astype(np.float32, copy=False)
        return similarity if gone is None else np.where(gone(index, scores[index]), np.float32(_BEYOND), similarity)

    # What is gone, the index knows, which belongs to one thread.
    most = calls_at_once(scores[0].path) if scores and gone is None else 1
    return overlapped(of_range, range(len(scores)), most=most)


def _worker(context: StageContext) -> Worker:
    clusterings = AssignedClusterings(context)
    last: dict[Partition, KeptItems] = {}

    def kept_of(task: _MaskTask) -> KeptItems | None:
        """What a repaired kept set keeps of all ranges, read once for all tasks of a partition."""
        if context.selection.repair is not None and task.partition not in last:
            last.clear()
            last[task.partition] = KeptItems.of(scores_files(context, task.partition.required_clustering), task.epsilon)
        return last.get(task.partition)

    def worker(task: _MaskTask) -> PartOfResult:
        context.index.require_inputs("keep_masks", task.partition, task.inputs)
        assigned = clusterings[task.partition.required_clustering]
        return mask_range(context, task, assigned=assigned, kept=kept_of(task))

    return worker


def mask_range(
    context: StageContext, task: _MaskTask, *, assigned: AssignedClusters, kept: KeptItems | None = None
) -> PartOfResult:
    """Decide what is kept of a range of clusters (SemDeDup, Alg. A7).

    Args:
        context: of the pipeline and the selection.
        task: which range, and the epsilon.
        assigned: the clusters, whose vectors find the nearest kept items where the scores do not show them.
        kept: what is kept of all ranges, of a selection that repairs.
    """
    from semdedup_assets.algorithm.gallery_choice import largest_groups
    from semdedup_assets.algorithm.selection import orphans

    protects = _protection_columns(context)
    file = scores_of_range(context, task.partition.required_clustering, task.cluster_range)
    scores = read_table(file, ["id", "cluster", "similarity", "duplicate_of", *protects])
    of_range = _Range(context, task, scores, assigned)
    with usage.phase("select"):
        chosen = _within_clusters(of_range) if kept is None else _repaired(of_range, kept)
    selection, neighbour = chosen.selection, chosen.neighbour
    # A removed row has none where a reference removed it, or its whole cluster.
    unknown = np.ma.getmaskarray(neighbour) | np.isnan(selection.kept_similarity)
    with context.writing_part("keep_masks", task.partition) as part:
        with part.open(mask_name(task.cluster_range)) as stream:
            write_table(
                stream,
                {
                    "id": scores["id"],
                    "kept": selection.keep,
                    "kept_neighbour": neighbour,
                    "kept_similarity": np.ma.masked_array(selection.kept_similarity, mask=unknown),
                    **chosen.columns,
                },
            )
        clusters = np.unique(scores["cluster"])
        # A reference may take the first item of a cluster, and so all of it.
        with_kept = np.unique(scores["cluster"][selection.keep | chosen.gone])
        part.details = {
            "epsilon": task.epsilon,
            "items": len(selection.keep),
            "kept": int(selection.keep.sum()),
            "orphans": int(orphans(selection, task.epsilon, gone=chosen.gone).sum()),
            "clusters": len(clusters),
            "clusters_without_kept": len(clusters) - len(with_kept),
            **chosen.counts,
            "id_checksum": id_checksum(scores["id"]),
            **(_protection(scores[PROTECTED_SIMILARITY], task.epsilon) if protects else {}),
            # `astuple` copies deeply, which takes longer than all else here.
            "groups": [
                (group.kept, group.removed) for group in largest_groups(neighbour.compressed(), most=_GROUPS_OF_A_RANGE)
            ],
        }
    return PartOfResult(task.inputs, part.files, part.details)


@dataclass(frozen=True, slots=True)
class _Range:
    """What the masks of a range are made from."""

    context: StageContext
    task: _MaskTask
    scores: dict[str, np.ndarray]
    assigned: AssignedClusters

    def vectors(self, wanted: set[int]) -> Iterator[tuple[slice, "Tensor"]]:
        """The vectors of some clusters, each with its slice of rows."""
        return vectors_of(self.assigned, self.task.cluster_range, self.scores["cluster"], wanted)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What is kept of a range.

    Attributes:
        selection: of its rows; the neighbours are below.
        neighbour: (n,) uint64, masked, the kept item that stands for each removed one.
        gone: (n,) bool, what a reference removed.
        columns: further columns of the masks.
        counts: further counts.
    """

    selection: "Selection"
    neighbour: np.ma.MaskedArray[Any, Any]
    gone: np.ndarray
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)


def _within_clusters(of_range: _Range) -> _Chosen:
    """What is kept where only items of one cluster duplicate each other."""
    from semdedup_assets.algorithm.selection import earlier_positions, select_clusters
    from semdedup_assets.algorithm.similarity import EarlierSimilarity

    context, task, scores = of_range.context, of_range.task, of_range.scores
    position = earlier_positions(scores["id"], scores["duplicate_of"], scores["similarity"])
    by_scores = select_clusters(
        EarlierSimilarity(scores["similarity"], position),
        scores["cluster"],
        task.epsilon,
        rule=context.selection.rule,
        vectors_of=of_range.vectors,
        budget=context.compute.budget,
    )
    stored = Partition(clustering=task.partition.clustering).of_range(task.cluster_range)
    leaks = range_leaks(context, stored, scores["id"], _protected(scores))
    adjustment = MaskAdjustment(context, task.epsilon, leaks, of_range.vectors)
    adjusted = adjustment.apply(by_scores, scores["id"], scores["cluster"])
    rows = adjusted.selection.kept_neighbour
    neighbour = np.ma.masked_array(scores["id"][np.maximum(rows, 0)], mask=rows < 0)
    return _Chosen(adjusted.selection, neighbour, leaks.gone, adjusted.columns, adjusted.counts)


def _repaired(of_range: _Range, kept: KeptItems) -> _Chosen:
    """What is kept where items of other clusters count as duplicates too."""
    from semdedup_assets.stages.repaired_masks import repaired_selection

    selection, neighbour = repaired_selection(
        of_range.scores,
        kept,
        of_range.task.epsilon,
        vectors_of=of_range.vectors,
        budget=of_range.context.compute.budget,
    )
    return _Chosen(selection, np.ma.masked_array(neighbour, mask=selection.keep), np.zeros(len(neighbour), bool))


def _protection(similarity: np.ndarray, epsilon: float) -> dict[str, int]:
    """How many items are protected, and how many of them the chain rule would remove if they were not.

    Args:
        similarity: (n,) float32, of protected items to those that would be earlier, NaN of others.
        epsilon: of the masks.
    """
    protected = similarity[~np.isnan(similarity)]
    removed = int((protected.astype(np.float64) > 1.0 - epsilon).sum())
    return {"protected": len(protected), "protected_would_be_removed": removed}


def vectors_of(
    assigned: AssignedClusters, cluster_range: int, cluster: np.ndarray, wanted: set[int]
) -> Iterator[tuple[slice, "Tensor"]]:
    """The vectors of some clusters of a range, each with the slice of its score rows; both are in keep-order.

    Args:
        assigned: the clusters.
        cluster_range: index of the range.
        cluster: (n,) the cluster of each score row, ascending.
        wanted: which clusters.
    """
    from semdedup_assets.algorithm.unit_rows import as_tensor

    device = assigned.context.compute.torch_device
    for batch in assigned.batches(cluster_range, only=wanted):
        start, stop = np.searchsorted(cluster, [batch.first, batch.first + 1])
        yield slice(int(start), int(stop)), as_tensor(batch.vectors).to(device)


def _finish(context: StageContext, partition: Partition, parts: list[PartOfResult]) -> ResultRecord:
    from semdedup_assets.algorithm.gallery_choice import GroupSize, merge_groups

    total = Counter[str]()
    for part in parts:
        total.update({name: part.details[name] for name in _COUNTED if name in part.details})
    groups = merge_groups(
        (GroupSize(*group) for part in parts for group in part.details["groups"]), most=_LARGEST_GROUPS
    )
    details: dict[str, Any] = {
        "epsilon": parts[0].details["epsilon"],
        "rule": context.selection.rule,
        "items": total["items"],
        "id_checksum": sum(part.details["id_checksum"] for part in parts) % CHECKSUM_MODULUS,
        "kept": total["kept"],
        "removed": total["items"] - total["kept"],
        "kept_fraction": total["kept"] / total["items"] if total["items"] else None,
        "orphans": total["orphans"],
        **{name: total[name] for name in (*_PROTECTION, *_ADJUSTED) if name in total},
        "clusters": total["clusters"],
        "clusters_without_kept": total["clusters_without_kept"],
        "largest_groups": [asdict(group) for group in groups],
    }
    return context.finish_parts("keep_masks", partition, parts, details)


def mask_files(record: ResultRecord) -> list[StoredFile]:
    """The masks of each range of clusters, in order.

    Args:
        record: of the masks of a kept set.
    """
    return [record.file(name) for name in sorted(record.files)]


def _shown(context: StageContext, _: Partition, record: ResultRecord) -> dict[str, Shown]:
    """The largest groups by the keys of their kept items, in place of numbers."""
    groups = record.details["largest_groups"][:_SHOWN_GROUPS]
    if not groups:
        return {}
    keys = item_keys(context, [group["kept"] for group in groups])
    rows = [{"kept item": keys[group["kept"]], "removed for it": group["removed"]} for group in groups]
    return {"largest_groups": Rows(rows)}


REMOVED_BY = Column("removed_by", "string", "The reference that removes the item; null where none does.")


def _columns(pipeline: Pipeline) -> tuple[Column, ...]:
    return (
        ID,
        Column("kept", "bool", "Whether the item stays."),
        Column(
            "kept_neighbour",
            "uint64",
            "The most similar kept item of the cluster, or of those searched; null where the item is kept, or removed by a "
            "reference.",
        ),
        Column(
            "kept_similarity", "float32", "Cosine similarity to it; null where there is none, or where it is not known."
        ),
        *((REMOVED_BY,) if removing_references(pipeline) else ()),
    )


STAGE = Stage(
    name="keep_masks",
    step="4-select",
    description="Kept or removed, by item: removed where the similarity to an earlier item exceeds 1 - epsilon (SemDeDup, "
    "Alg. A7; a higher epsilon removes more), with the nearest kept item of each removed one. A target such as "
    "`keep=50%` is solved exactly from the scores. `orphans` counts the removed items that no kept item is within "
    "epsilon of: those that were similar to them were removed themselves; `selection.rule: greedy` keeps them. "
    "`protected_would_be_removed` counts the items that `selection.protect` alone keeps (chain rule). References that "
    "remove come before all items; captions that disagree spare an item, where the selection asks for it.",
    dimensions=("epsilon", "k"),
    inputs=("duplicate_scores",),
    optional_inputs=lambda pipeline, selection: (
        *repaired_input(pipeline, selection),
        *adjusting_inputs(pipeline, selection),
    ),
    settings=lambda context: adjusting_settings(context.pipeline),
    location=lambda layout, partition, selection: layout.of_kept_set(partition.kept_set(selection), "masks"),
    worker=_worker,
    tasks=_tasks,
    finish=_finish,
    kinds=frozenset({"numpy", "parquet"}),
    columns=_columns,
    checks=CHECKS,
    shown=_shown,
    selected=True,
    unit="ranges",
)
