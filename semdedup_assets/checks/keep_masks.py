"""What must hold of keep masks."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from semdedup_assets.checks.counting import ItemCount, by_clustering, common_version
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Check, CheckResult, Problem
from semdedup_assets.storage.results import ResultRecord, fingerprint
from semdedup_assets.storage.tables import read_tables

# Rows of masks that are compared item by item in one evaluation: about a second.
_MASK_ROWS = 5_000_000

_Columns = dict[str, np.ndarray]


def masks_are_monotone(context: StageContext) -> CheckResult:
    """A higher epsilon keeps no item that a lower one removes."""
    pairs = list(_neighbouring_masks(context))
    problems = [
        pair.problem(context, f"{pair.kept[1]:,} items kept, not at most {pair.kept[0]:,}")
        for pair in pairs
        if pair.kept[1] > pair.kept[0]
    ]
    rows, returned = 0, dict[_MaskPair, int]()
    for pair, low, high in _mask_parts(pairs):
        rows += len(low["id"])
        same = np.array_equal(low["id"], high["id"])
        count = int((high["kept"] & ~low["kept"]).sum()) if same else len(high["id"])
        returned[pair] = returned.get(pair, 0) + count
        if rows >= _MASK_ROWS:
            break
    problems += [
        pair.problem(context, f"{count:,} items kept that are removed") for pair, count in returned.items() if count
    ]
    certain = not _may_keep_more(context)
    measured = {"pairs_of_masks": len(pairs), "rows_compared": rows}
    return CheckResult("keep masks keep items that a lower epsilon removes", problems, measured, certain=certain)


def _may_keep_more(context: StageContext) -> bool:
    """Whether a higher epsilon may rightly keep what a lower one removes.

    Under the greedy rule it may have been removed by an item that is itself removed now; and its nearest kept item, with
    whose caption its own is compared, may be another.
    """
    return context.selection.rule == "greedy" or context.selection.spare_captions_below is not None


@dataclass(frozen=True, eq=False)
class _MaskPair:
    """Masks of one clustering from the same inputs, at an epsilon and at the next higher one."""

    lower: tuple[Partition, ResultRecord]
    higher: tuple[Partition, ResultRecord]

    @property
    def kept(self) -> tuple[int, int]:
        return int(self.lower[1].details["kept"]), int(self.higher[1].details["kept"])

    def problem(self, context: StageContext, measured: str) -> Problem:
        lower, partition = self.lower[0], self.higher[0]
        remedy = f"{context.remedy('keep_masks', partition)} again, and {lower}"
        return Problem(str(partition), f"{measured}, against {lower.target}", remedy)


def _neighbouring_masks(context: StageContext) -> Iterator[_MaskPair]:
    for masks in by_clustering(context.index.records("keep_masks")).values():
        order = sorted(masks.items(), key=lambda pair: float(pair[1].details["epsilon"]))
        alike: dict[tuple[str, str], list[tuple[Partition, ResultRecord]]] = {}
        for partition, record in order:
            made = fingerprint(record.inputs), record.code_version
            alike.setdefault(made, []).append((partition, record))
        for group in alike.values():
            yield from (_MaskPair(lower, higher) for lower, higher in pairwise(group))


def _mask_parts(pairs: list[_MaskPair]) -> Iterator[tuple[_MaskPair, _Columns, _Columns]]:
    """Rows of the masks of each pair, range after range."""
    # Other ranges come first whenever masks are made again, so that in time all are looked at.
    start = int(pairs[0].higher[1].version[:8], 16) if pairs else 0
    names = sorted({name for pair in pairs for name in pair.lower[1].files})
    for step in range(len(names)):
        name = names[(start + step) % len(names)]
        for pair in pairs:
            records = (pair.lower[1], pair.higher[1])
            if all(name in record.files for record in records):
                parts = (read_tables(record.file(name), ["id", "kept"]) for record in records)
                for low, high in zip(*parts, strict=False):
                    yield pair, low, high


def every_cluster_keeps_one(context: StageContext) -> CheckResult:
    """The first item of each cluster is kept."""
    problems, clusters = [], 0
    for partition, record in context.index.records("keep_masks").items():
        without = record.details["clusters_without_kept"]
        clusters += record.details["clusters"]
        # Where other clusters are searched too, what stands for a cluster's items may lie in another.
        if without and context.selection.repair is None:
            remedy = f"{context.remedy('duplicate_scores')} again, then keep_masks {partition}"
            problems.append(Problem(str(partition), f"{without:,} clusters of {record.details['clusters']:,}", remedy))
    return CheckResult("keep masks keep nothing of a cluster", problems, {"clusters": clusters})


def every_item_masked_once(context: StageContext) -> CheckResult:
    """The masks hold the items that were scored, each once."""
    problems, items, stale = [], 0, 0
    scores = by_clustering(context.index.records("duplicate_scores"))
    for partition, record in context.index.records("keep_masks").items():
        scored = scores.get(str(partition.clustering), {})
        if record.inputs["duplicate_scores"] != common_version(scored):
            stale += 1
            continue
        items += record.details["items"]
        difference = ItemCount.of([record]).difference(ItemCount.of(scored.values()))
        if difference:
            problems.append(Problem(str(partition), difference, f"{context.remedy('keep_masks', partition)} again"))
    measured = {"items": items, "stale_partitions": stale}
    return CheckResult("keep masks hold other items than were scored", problems, measured)


def references_are_removed(context: StageContext) -> CheckResult:
    """No item that a reference is to remove stays because it is protected."""
    problems, removed = [], 0
    for partition, record in context.index.records("keep_masks").items():
        removed += int(record.details.get("removed_by_reference", 0))
        if count := int(record.details.get("protected_leaks", 0)):
            measured = f"{count:,} items are kept, for `protect` wins over `references`"
            problems.append(Problem(str(partition), measured, "protect fewer items, or take them out of the source"))
    fault = "keep masks keep items that lie near to a reference's"
    return CheckResult(fault, problems, {"removed_by_reference": removed}, certain=False)


CHECKS = (
    Check(
        masks_are_monotone,
        "A higher epsilon keeps nothing that a lower one removes (SemDeDup, Algorithm A7); the masks themselves "
        "are compared as far as a bound on rows allows. Neither the greedy rule nor spared captions promise it: these are only "
        "warned of.",
        # A blocking check that warns would hold back what Dagster launches after it, which asks whether it passed.
        only_warns=lambda context: _may_keep_more(context),
    ),
    Check(every_cluster_keeps_one, "Every cluster keeps an item (SemDeDup, Algorithm A7: the first)."),
    Check(every_item_masked_once, "The masks hold every scored item exactly once."),
    Check(
        references_are_removed,
        "Whatever lies within epsilon of an item of a reference with `remove: true` is removed, protected items too.",
        blocking=False,
    ),
)
