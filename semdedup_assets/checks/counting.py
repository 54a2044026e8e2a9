"""How many items some results hold, and which."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from semdedup_assets.algorithm.sampling import CHECKSUM_MODULUS
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Check, CheckResult, Problem
from semdedup_assets.storage.results import MissingResultError, ResultRecord, fingerprint

MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class ItemCount:
    """The items that some results hold together.

    Attributes:
        items: their number.
        checksum: sum of their ids' hashes.
    """

    items: int
    checksum: int

    @classmethod
    def of(cls, records: Iterable[ResultRecord]) -> "ItemCount":
        """What results hold together."""
        details = [record.details for record in records]
        checksum = sum(int(found["id_checksum"]) for found in details) % CHECKSUM_MODULUS
        return cls(sum(int(found["items"]) for found in details), checksum)

    def difference(self, other: "ItemCount") -> str | None:
        """How these items differ from those they should be, in words; None where they are the same."""
        if self.items != other.items:
            return f"{self.items:,} items where {other.items:,} should be"
        return None if self.checksum == other.checksum else f"{self.items:,} items, as there should be, but others"


def current_records(context: StageContext, stage: str) -> dict[Partition, ResultRecord]:
    """The results of a stage, without those of other settings: they are not wrong, but on their way out."""
    version = context.code_version(stage)
    found = context.index.records(stage)
    return {partition: record for partition, record in found.items() if record.code_version == version}


def by_clustering(records: Mapping[Partition, ResultRecord]) -> dict[str, dict[Partition, ResultRecord]]:
    """Results by their clustering."""
    found: dict[str, dict[Partition, ResultRecord]] = {}
    for partition, record in records.items():
        found.setdefault(str(partition.clustering), {})[partition] = record
    return found


def common_version(records: Mapping[Partition, ResultRecord]) -> str:
    """One version for several results, as what was made from all of them notes it."""
    return fingerprint({str(partition): record.version for partition, record in records.items()})


def inputs_up_to_date(stage: str) -> Check:
    """The check whether what is there of a stage was made from what is there now of the stages before it.

    Dagster's own mark does not look at dependencies on 100 or more partitions. Partitions that were never made are no
    fault: Dagster shows them as missing. Nor can it be seen while a result before them is missing: that is one.

    Args:
        stage: name of the stage.
    """

    def evaluate(context: StageContext) -> CheckResult:
        fault = f"{stage} are stale: their inputs or settings have changed"
        index = context.index
        if not index.records(stage):
            return CheckResult(fault, [], {"made": 0})
        made = [each for each in index.partitions(stage) if _is_there(context, stage, each)]
        try:
            stale = index.stale(stage, made)
        except MissingResultError as error:
            problem = Problem("all", f"it cannot be seen: {error}", "materialise what is missing")
            return CheckResult(fault, [problem], {"made": len(made)}, certain=False)
        problems = [Problem(str(each), "stale", context.remedy(stage, each)) for each in stale]
        return CheckResult(fault, problems, {"made": len(made), "stale": len(stale)}, certain=False)

    evaluate.__name__ = "inputs_up_to_date"
    text = "What has been made is up to date with the assets before it, also beyond 100 partitions."
    return Check(evaluate, text, blocking=False, alone=True)


def _is_there(context: StageContext, stage: str, partition: Partition) -> bool:
    """Whether a partition is stored as a whole; of a clustering that is not fitted there is none."""
    try:
        return context.index.result(stage, partition) is not None
    except MissingResultError:
        return False
