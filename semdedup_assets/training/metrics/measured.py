"""What measuring one model on one data set gives."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measured:
    """The values of a model on a data set.

    Attributes:
        values: by metric.
        items: that were measured.
        skipped: name and reason of each item that was not.
    """

    values: dict[str, float]
    items: int
    skipped: list[tuple[str, str]]
