"""Scores that know duplicates in other clusters too: they take the place of those within clusters."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from semdedup_assets.algorithm.sampling import CHECKSUM_MODULUS, id_checksum
from semdedup_assets.checks.counting import inputs_up_to_date
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


@dataclass(frozen=True, slots=True)
class _RepairTask:
    """The scores of one range, and what was found for its items in all ranges."""

    partition: Partition
    cluster_range: int
    within: StoredFile
    across: tuple[StoredFile, ...]
    inputs: dict[str, str]


def _tasks(context: StageContext, partition: Partition) -> Sequence[_RepairTask]:
    inputs = context.index.input_versions(REPAIRED_SCORES, partition)
    within = context.index.require_consistent("duplicate_scores", partition)
    (across,) = context.index.require_consistent("cross_cluster_scores", partition).values()
    files = tuple(across.file(name) for name in sorted(across.files))
    return [
        _RepairTask(partition, index, record.file(SCORES), files, inputs)
        for index, record in enumerate(within.values())
    ]


def _worker(context: StageContext) -> Worker:
    def worker(task: _RepairTask) -> PartOfResult:
        context.index.require_inputs(REPAIRED_SCORES, task.partition, task.inputs)
        return repair_range(context, task)

    return worker


def repair_range(context: StageContext, task: _RepairTask) -> PartOfResult:
    """The scores of a range, each the greater one of within and across clusters.

    Args:
        context: of the pipeline and a selection that repairs.
        task: which range.
    """
    from semdedup_assets.algorithm.cross_clusters import best_of

    with usage.phase("read"):
        protects = [] if context.selection.protect is None else [PROTECTED_SIMILARITY]
        scores = read_table(task.within, [*_COLUMNS, *protects])
        found = [read_found(file, task.cluster_range) for file in task.across]
    best = best_of(*(np.concatenate([each[name] for each in found]) for name in ("id", "similarity", "duplicate_of")))
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
    none = np.isneginf(similarity)
    with context.writing_part(REPAIRED_SCORES, task.partition) as part:
        with part.open(range_name(task.cluster_range)) as stream:
            columns = {"similarity": similarity, "duplicate_of": np.ma.masked_array(duplicate_of, mask=none)}
            write_table(stream, {**scores, **columns})
        part.details = {
            "items": len(similarity),
            "id_checksum": id_checksum(scores["id"]),
            "found_across": int(nearer.sum()),
            "within": _duplicates(scores["similarity"]),
            "repaired": _duplicates(similarity),
        }
    return PartOfResult(task.inputs, part.files, part.details)


def _duplicates(similarity: np.ndarray) -> dict[str, int]:
    return {epsilon: int((similarity.astype(np.float64) > 1.0 - float(epsilon)).sum()) for epsilon in _EPSILONS}


def _finish(context: StageContext, partition: Partition, parts: list[PartOfResult]) -> ResultRecord:
    within, repaired = Counter[str](), Counter[str]()
    for part in parts:
        within.update(part.details["within"])
        repaired.update(part.details["repaired"])
    details = {
        "items": sum(part.details["items"] for part in parts),
        "id_checksum": sum(part.details["id_checksum"] for part in parts) % CHECKSUM_MODULUS,
        "found_across": sum(part.details["found_across"] for part in parts),
        "duplicates_by_epsilon": dict(repaired),
        "within_clusters_by_epsilon": dict(within),
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
    checks=(REACHES, inputs_up_to_date(REPAIRED_SCORES)),
    selected=True,
    selection_settings=lambda selection: {"keep_order": selection.keep_order, "repair": str(selection.repair)},
    applies=lambda _, selection: selection.repair is not None,
    unit="ranges",
    pool=None,
)
