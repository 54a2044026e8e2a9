"""Decide what is kept at an epsilon, and which kept item each removed one duplicates."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
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
from semdedup_assets.stages.duplicate_scores import PROTECTED_SIMILARITY, SCORES, scores_files
from semdedup_assets.stages.embeddings import ID
from semdedup_assets.stages.mask_adjustments import (
    MaskAdjustment,
    adjusting_inputs,
    adjusting_settings,
    range_leaks,
    removing_references,
)
from semdedup_assets.storage.results import ResultRecord, StoredFile
from semdedup_assets.storage.tables import read_table, read_tables, write_table

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_GROUPS, _SHOWN_GROUPS = 20, 8
# Of an item that is removed at every epsilon: no cosine similarity is as great.
_BEYOND = 2.0
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
    epsilon = solved_epsilon(partition.target or Target(epsilon=0.0), files, gone=gone)
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
    target: Target, scores: Sequence[StoredFile], *, gone: Callable[[int, StoredFile], np.ndarray] | None = None
) -> float:
    """The number that a target stands for: an epsilon itself, or the one that keeps a wanted share.

    Args:
        target: either.
        scores: of all ranges of clusters.
        gone: says of a range and its scores which items, (n,) bool, are removed at every epsilon; None: none are.
    """
    if target.epsilon is not None:
        return target.epsilon
    from semdedup_assets.algorithm.tuning import epsilon_for

    if not any(len(part["similarity"]) for file in scores for part in read_tables(file, ["similarity"])):
        return 0.0  # Of no items every share is kept.
    return epsilon_for(lambda: _similarities(scores, gone), keep=(target.share or 0.0) / 100)


def _similarities(
    scores: Sequence[StoredFile], gone: Callable[[int, StoredFile], np.ndarray] | None
) -> Iterator[np.ndarray]:
    """The similarities that decide, row group by row group; beyond every threshold where an item is gone anyway."""
    for index, file in enumerate(scores):
        removed, start = None if gone is None else gone(index, file), 0
        for part in read_tables(file, ["similarity"]):
            similarity = part["similarity"]
            if removed is not None:
                here = removed[start : start + len(similarity)]
                similarity = np.where(here, np.float32(_BEYOND), similarity)
                start += len(similarity)
            yield similarity


def _worker(context: StageContext) -> Worker:
    clusterings = AssignedClusterings(context)

    def worker(task: _MaskTask) -> PartOfResult:
        context.index.require_inputs("keep_masks", task.partition, task.inputs)
        return mask_range(context, task, assigned=clusterings[task.partition.required_clustering])

    return worker


def mask_range(context: StageContext, task: _MaskTask, *, assigned: AssignedClusters) -> PartOfResult:
    """Decide what is kept of a range of clusters (SemDeDup, Alg. A7).

    Args:
        context: of the pipeline and the selection.
        task: which range, and the epsilon.
        assigned: the clusters, whose vectors find the nearest kept items where the scores do not show them.
    """
    from semdedup_assets.algorithm.gallery_choice import largest_groups
    from semdedup_assets.algorithm.selection import earlier_positions, orphans, select_clusters
    from semdedup_assets.algorithm.similarity import EarlierSimilarity

    stored = Partition(clustering=task.partition.clustering).of_range(task.cluster_range)
    record = context.index.require("duplicate_scores", stored)
    protects = _protection_columns(context)
    scores = read_table(record.file(SCORES), ["id", "cluster", "similarity", "duplicate_of", *protects])
    position = earlier_positions(scores["id"], scores["duplicate_of"], scores["similarity"])
    vectors = partial(vectors_of, assigned, task.cluster_range, scores["cluster"])
    leaks = range_leaks(context, stored, scores["id"], _protected(scores))
    with usage.phase("select"):
        by_scores = select_clusters(
            EarlierSimilarity(scores["similarity"], position),
            scores["cluster"],
            task.epsilon,
            rule=context.selection.rule,
            vectors_of=vectors,
            budget=context.compute.budget,
        )
        adjusted = MaskAdjustment(context, task.epsilon, leaks, vectors).apply(
            by_scores, scores["id"], scores["cluster"]
        )
    selection = adjusted.selection
    # A removed row has none where a reference removed it, or its whole cluster.
    has_neighbour = selection.kept_neighbour >= 0
    lost = ~selection.keep & ~has_neighbour & ~leaks.gone
    neighbour = scores["id"][np.maximum(selection.kept_neighbour, 0)]
    with context.writing_part("keep_masks", task.partition) as part:
        with part.open(mask_name(task.cluster_range)) as stream:
            write_table(
                stream,
                {
                    "id": scores["id"],
                    "kept": selection.keep,
                    "kept_neighbour": np.ma.masked_array(neighbour, mask=~has_neighbour),
                    "kept_similarity": np.ma.masked_array(selection.kept_similarity, mask=~has_neighbour),
                    **adjusted.columns,
                },
            )
        clusters = np.unique(scores["cluster"])
        # A reference may take the first item of a cluster, and so all of it.
        with_kept = np.unique(scores["cluster"][selection.keep | leaks.gone])
        part.details = {
            "epsilon": task.epsilon,
            "items": len(selection.keep),
            "kept": int(selection.keep.sum()),
            "orphans": int(orphans(selection, task.epsilon).sum() + lost.sum()),
            "clusters": len(clusters),
            "clusters_without_kept": len(clusters) - len(with_kept),
            **adjusted.counts,
            "id_checksum": id_checksum(scores["id"]),
            **(_protection(scores[PROTECTED_SIMILARITY], task.epsilon) if protects else {}),
            "groups": [astuple(group) for group in largest_groups(neighbour[has_neighbour], most=_LARGEST_GROUPS)],
        }
    return PartOfResult(task.inputs, part.files, part.details)


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
            "The most similar kept item of the cluster; null where the item is kept, or removed by a reference.",
        ),
        Column("kept_similarity", "float32", "Cosine similarity to it; null where there is none."),
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
    optional_inputs=adjusting_inputs,
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
