"""Scores that know duplicates in other clusters too: they take the place of those within clusters."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from semdedup_assets.algorithm.cluster_ranges import group_ranges
from semdedup_assets.algorithm.sampling import CHECKSUM_MODULUS, id_checksum
from semdedup_assets.checks.repaired_scores import REACHES
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import PartOfResult, StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Stage, Worker
from semdedup_assets.stages.boundary_items import REPAIR
from semdedup_assets.stages.cross_cluster_scores import read_found
from semdedup_assets.stages.duplicate_scores import (
    PROTECTED_SIMILARITY,
    REPAIRED_SCORES,
    SCORES,
    range_name,
    score_columns,
)
from semdedup_assets.storage.results import ResultRecord, StoredFile
from semdedup_assets.storage.tables import read_table, write_table

_COLUMNS = ("id", "cluster", "centroid_similarity", "similarity", "duplicate_of")
_EPSILONS = ("0.001", "0.01", "0.05", "0.1", "0.2")


# Found rows that a task holds: each reads every file of what was found across, so that fewer tasks read less.
_TASK_ROWS = 1 << 23


@dataclass(frozen=True, slots=True)
class _RepairTask:
    """The scores of some consecutive ranges, and what was found for their items in all ranges."""

    partition: Partition
    ranges: range
    within: tuple[StoredFile, ...]
    across: tuple[StoredFile, ...]
    inputs: dict[str, str]


def _tasks(context: StageContext, partition: Partition) -> Sequence[_RepairTask]:
    inputs = context.index.input_versions(REPAIRED_SCORES, partition)
    within = [
        record.file(SCORES) for record in context.index.require_consistent("duplicate_scores", partition).values()
    ]
    (across,) = context.index.require_consistent("cross_cluster_scores", partition).values()
    files = tuple(across.file(name) for name in sorted(across.files))
    groups = min(len(within), 1 + int(across.details["found"]) // _TASK_ROWS)
    return [
        _RepairTask(partition, ranges, tuple(within[ranges.start : ranges.stop]), files, inputs)
        for ranges in group_ranges(len(within), groups=groups)
    ]


def _worker(context: StageContext) -> Worker:
    def worker(task: _RepairTask) -> PartOfResult:
        context.index.require_inputs(REPAIRED_SCORES, task.partition, task.inputs)
        return repair_ranges(context, task)

    return worker


def repair_ranges(context: StageContext, task: _RepairTask) -> PartOfResult:
    """The scores of some ranges, each the greater one of within and across clusters.

    Args:
        context: of the pipeline and a selection that repairs.
        task: which ranges.
    """
    with usage.phase("read"):
        parts = [read_found(file, task.ranges) for file in task.across]
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    total = Counter[str]()
    with context.writing_part(REPAIRED_SCORES, task.partition) as part:
        for index, within in zip(task.ranges, task.within, strict=True):
            here = found["range"] == index
            scores, counted = _repaired(context, within, {name: values[here] for name, values in found.items()})
            total.update(counted)
            with part.open(range_name(index)) as stream:
                write_table(stream, scores)
        part.details = {**total, "id_checksum": total["id_checksum"] % CHECKSUM_MODULUS}
    return PartOfResult(task.inputs, part.files, part.details)


def _repaired(
    context: StageContext, within: StoredFile, found: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The repaired scores of a range, and what is counted of them."""
    from semdedup_assets.algorithm.cross_clusters import best_of

    protects = [] if context.selection.protect is None else [PROTECTED_SIMILARITY]
    scores = read_table(within, [*_COLUMNS, *protects])
    best = best_of(found["id"], found["similarity"], found["duplicate_of"])
    order = np.argsort(scores["id"])
    rows = order[np.searchsorted(scores["id"], best.item, sorter=order)]
    # Among equals the own cluster's stays.
    nearer = best.similarity > scores["similarity"][rows]
    if protects:
        unprotected = np.isnan(scores[PROTECTED_SIMILARITY])
        nearer &= unprotected[rows]
        scores[PROTECTED_SIMILARITY] = np.ma.masked_array(scores[PROTECTED_SIMILARITY], mask=unprotected)
    similarity, duplicate_of = scores["similarity"].copy(), scores["duplicate_of"].copy()
    similarity[rows[nearer]], duplicate_of[rows[nearer]] = best.similarity[nearer], best.earlier[nearer]
    counted = {
        "items": len(similarity),
        "id_checksum": id_checksum(scores["id"]),
        "found_across": int(nearer.sum()),
        **_duplicates("within", scores["similarity"]),
        **_duplicates("repaired", similarity),
    }
    masked = np.ma.masked_array(duplicate_of, mask=np.isneginf(similarity))
    return {**scores, "similarity": similarity, "duplicate_of": masked}, counted


def _duplicates(name: str, similarity: np.ndarray) -> dict[str, int]:
    return {
        f"{name} {epsilon}": int((similarity.astype(np.float64) > 1.0 - float(epsilon)).sum()) for epsilon in _EPSILONS
    }


def _finish(context: StageContext, partition: Partition, parts: list[PartOfResult]) -> ResultRecord:
    total = Counter[str]()
    for part in parts:
        total.update({name: value for name, value in part.details.items() if isinstance(value, int)})
    details = {
        "items": total["items"],
        "id_checksum": total["id_checksum"] % CHECKSUM_MODULUS,
        "found_across": total["found_across"],
        "duplicates_by_epsilon": {epsilon: total[f"repaired {epsilon}"] for epsilon in _EPSILONS},
        "within_clusters_by_epsilon": {epsilon: total[f"within {epsilon}"] for epsilon in _EPSILONS},
    }
    return context.finish_parts(REPAIRED_SCORES, partition, parts, details)


STAGE = Stage(
    name=REPAIRED_SCORES,
    step=REPAIR,
    description="The scores once other clusters are searched too: for each item the greatest cosine similarity to an "
    "earlier item of any cluster that it searches, and which (SemDeDup, Alg. A7, appendix A.2). Masks and everything after "
    "them read these. `duplicates_by_epsilon` against `within_clusters_by_epsilon` shows what the repair found.",
    dimensions=("k",),
    inputs=("duplicate_scores", "cross_cluster_scores"),
    settings=lambda _: {},
    location=lambda layout, partition, selection: layout.of_clustering(
        partition.required_clustering, f"scores-{selection.repair}", selection.keep_order
    ),
    worker=_worker,
    tasks=_tasks,
    finish=_finish,
    kinds=frozenset({"numpy", "parquet"}),
    columns=score_columns,
    checks=(REACHES,),
    selected=True,
    selection_settings=lambda selection: {"keep_order": selection.keep_order, "repair": str(selection.repair)},
    applies=lambda _, selection: selection.repair is not None,
    unit="ranges",
    pool="cpu",
)
