"""How many items some results hold, and which."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from semdedup_assets.algorithm.sampling import CHECKSUM_MODULUS
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.storage.results import ResultRecord, fingerprint

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
