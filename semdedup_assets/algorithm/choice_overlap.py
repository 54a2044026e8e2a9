"""What two choices of items to remove have in common."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Choice:
    """What is kept of n items, and in which group each is.

    Attributes:
        kept: (n,) bool.
        group: (n,) int64, the position of the kept item that each stands for or was removed for; its own where there
            is none.
    """

    kept: np.ndarray
    group: np.ndarray

    def joins(self, items: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(m,) bool, whether (m,) items and (m,) others are in one group."""
        joined: np.ndarray = self.group[items] == self.group[others]
        return joined


@dataclass(frozen=True, slots=True)
class ChoiceOverlap:
    """What two choices have in common.

    Attributes:
        items: of which both choose.
        kept: by the first.
        kept_by_other: by the second.
        kept_by_both: items that both keep.
        removed_by_both: items that both remove.
        removed_only: items that the first removes alone.
        removed_only_by_other: items that the second removes alone.
        pairs_of_other: of the removed items of the first, how many the second has in one group with the kept item for
            which they were removed, whichever of the two it keeps; a random choice has no such pairs.
        other_pairs: the same the other way round.
    """

    items: int
    kept: int
    kept_by_other: int
    kept_by_both: int
    removed_by_both: int
    removed_only: int
    removed_only_by_other: int
    pairs_of_other: int
    other_pairs: int

    @property
    def kept_jaccard(self) -> float:
        """Kept by both, of those that one of them keeps; NaN where both keep nothing."""
        return self.kept_by_both / either if (either := self.items - self.removed_by_both) else float("nan")

    @property
    def removed_jaccard(self) -> float:
        """Removed by both, of those that one of them removes; NaN where both remove nothing."""
        return self.removed_by_both / either if (either := self.items - self.kept_by_both) else float("nan")


def choice_overlap(choice: Choice, other: Choice) -> ChoiceOverlap:
    """Compare two choices of the same n items."""
    kept, others = choice.kept, other.kept
    return ChoiceOverlap(
        items=len(kept),
        kept=int(kept.sum()),
        kept_by_other=int(others.sum()),
        kept_by_both=int((kept & others).sum()),
        removed_by_both=int((~kept & ~others).sum()),
        removed_only=int((~kept & others).sum()),
        removed_only_by_other=int((kept & ~others).sum()),
        pairs_of_other=int(_pairs_in(choice, other).sum()),
        other_pairs=int(_pairs_in(other, choice).sum()),
    )


def _pairs_in(choice: Choice, other: Choice) -> np.ndarray:
    removed = _removed_for_another(choice)
    return other.joins(removed, choice.group[removed])


def _removed_for_another(choice: Choice) -> np.ndarray:
    removed: np.ndarray = np.flatnonzero(~choice.kept & (choice.group != np.arange(len(choice.group))))
    return removed


def found_alone(choice: Choice, others: list[Choice]) -> np.ndarray:
    """(m,) int64: positions of the removed items that no other choice has in one group with their kept item."""
    removed = _removed_for_another(choice)
    for other in others:
        removed = removed[~other.joins(removed, choice.group[removed])]
    return removed
