"""How much two kept sets have in common (SemDeDup, sections 6.2, 6.3, A.1)."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class KeptOverlap:
    """The items of two kept sets, counted by which of them keep each.

    Attributes:
        both: kept by both.
        only_first: kept by the first alone.
        only_second: kept by the second alone.
        neither: kept by none of them, of those that at least one of them decided on.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def first(self) -> int:
        """Items that the first keeps."""
        return self.both + self.only_first

    @property
    def second(self) -> int:
        """Items that the second keeps."""
        return self.both + self.only_second

    @property
    def intersection(self) -> float:
        """I(first, second) = |first and second| / |first|, as the paper has it; 1 where the first keeps nothing."""
        return self.both / self.first if self.first else 1.0

    @property
    def reverse_intersection(self) -> float:
        """I(second, first) = |first and second| / |second|: the same where both keep equally many."""
        return self.both / self.second if self.second else 1.0

    @property
    def jaccard(self) -> float:
        """|first and second| / |first or second|; 1 where neither keeps anything."""
        union = self.both + self.only_first + self.only_second
        return self.both / union if union else 1.0


@dataclass(frozen=True, slots=True)
class ComparedMasks:
    """Two keep masks of the same rows.

    Attributes:
        overlap: how many rows are kept by both, by one or by neither.
        only_first: (a,) int64, ascending, rows that the first alone keeps.
        only_second: (b,) int64, ascending, rows that the second alone keeps.
    """

    overlap: KeptOverlap
    only_first: np.ndarray
    only_second: np.ndarray


def compare_masks(first: np.ndarray, second: np.ndarray) -> ComparedMasks:
    """Compare two keep masks.

    Args:
        first: (n,) bool.
        second: (n,) bool, of the same rows.

    Raises:
        ValueError: they have not as many rows.
    """
    if first.shape != second.shape:
        message = f"{len(first):,} and {len(second):,} rows: only masks of the same rows can be compared"
        raise ValueError(message)
    only_first, only_second = np.flatnonzero(first & ~second), np.flatnonzero(second & ~first)
    both = int((first & second).sum())
    neither = len(first) - both - len(only_first) - len(only_second)
    return ComparedMasks(KeptOverlap(both, len(only_first), len(only_second), neither), only_first, only_second)
