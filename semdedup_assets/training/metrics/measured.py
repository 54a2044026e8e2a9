"""What a metric found."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measured:
    """Numbers of one model on one data set.

    Attributes:
        values: by name of the metric.
        items: of the data set that were measured.
        skipped: key and reason of each item that could not be.
    """

    values: dict[str, float]
    items: int
    skipped: list[tuple[str, str]]
