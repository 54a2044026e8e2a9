"""How the work of each stage grows with the number of items and of clusters (SemDeDup, section 7)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Driver = Literal["items", "items × k", "pairs", "sample × k"]
"""What a stage's time grows with: items read and written, items compared with centroids, pairs compared, and sampled
items compared with centroids."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What a stage had, or would have, to do.

    Attributes:
        items: n.
        k: number of clusters.
        sample: vectors that centroids are fitted to.
    """

    items: float
    k: float
    sample: float

    def amount(self, driver: Driver) -> float:
        """What the time grows with; of pairs, as if all clusters were equally large."""
        if driver == "items × k":
            return self.items * self.k
        if driver == "sample × k":
            return self.sample * self.k
        return self.items**2 / self.k if driver == "pairs" else self.items


def projected_seconds(
    seconds: float,
    phases: Mapping[str, float],
    *,
    drivers: Mapping[str, Driver],
    measured: Workload,
    projected: Workload,
) -> float:
    """What took some seconds would take of another workload, on the same devices.

    Args:
        seconds: in all.
        phases: seconds of parts of it, by name.
        drivers: what the named phases grow with; all else grows with the items. A phase "" stands for all of it.
        measured: the workload that took them; nothing of it is 0.
        projected: the other one.

    Returns:
        Seconds. Pairs grow as n² / k: clusters are as uneven as they were.
    """
    parts = {"": seconds} if "" in drivers else {**phases, "": max(0.0, seconds - sum(phases.values()))}
    return sum(
        part * projected.amount(driver) / measured.amount(driver)
        for name, part in parts.items()
        for driver in [drivers.get(name, "items")]
    )
