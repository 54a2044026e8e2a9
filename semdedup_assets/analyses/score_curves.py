"""What the scores of a clustering keep, by epsilon: read row group by row group."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from semdedup_assets.storage.results import StoredFile
from semdedup_assets.storage.tables import read_tables


def similarities(scores: Sequence[StoredFile]) -> Iterator[np.ndarray]:
    """The similarity of each item to its most similar earlier one, a row group at a time.

    Args:
        scores: of all ranges of a clustering.
    """
    return (part["similarity"] for file in scores for part in read_tables(file, ["similarity"]))


def epsilons_keeping(scores: Sequence[StoredFile], shares: Sequence[float]) -> np.ndarray:
    """The epsilon that keeps each share of all items, exactly.

    Args:
        scores: of all ranges of a clustering.
        shares: t of them, in (0, 1].

    Returns:
        (t,) float64; NaN without items.
    """
    from semdedup_assets.algorithm.tuning import epsilon_for

    if not any(len(part) for part in similarities(scores)):
        return np.full(len(shares), np.nan)
    return np.array([epsilon_for(lambda: similarities(scores), keep=share) for share in shares])


@dataclass(frozen=True, slots=True)
class ScoreCurve:
    """What is kept of all items under the chain rule (Alg. A7).

    Attributes:
        epsilon: (m,) float64, ascending.
        kept: (m,) float64 shares; NaN without items.
        items: all of them.
    """

    epsilon: np.ndarray
    kept: np.ndarray
    items: int

    @classmethod
    def of(cls, scores: Sequence[StoredFile], more: np.ndarray | None = None) -> "ScoreCurve":
        """Count in one pass, on the grid of the figures.

        Args:
            scores: of all ranges of a clustering.
            more: (e,) epsilons that are counted too; NaN is passed over.
        """
        from semdedup_assets.algorithm.epsilon_curves import EPSILON_GRID, EpsilonCounts

        grid = EPSILON_GRID if more is None else np.unique(np.concatenate([EPSILON_GRID, more[np.isfinite(more)]]))
        counts, items = EpsilonCounts(grid), 0
        for part in similarities(scores):
            counts.add(part)
            items += len(part)
        return cls(grid, counts.within / items if items else np.full(len(grid), np.nan), items)

    def at(self, epsilon: float) -> float:
        """Share kept at one of the epsilons that were counted; NaN for NaN."""
        return float("nan") if np.isnan(epsilon) else float(self.kept[np.searchsorted(self.epsilon, epsilon)])

    def straightness(self, between: np.ndarray) -> dict[str, float | None]:
        """R² of a straight line through what is kept, in epsilon (as the paper has it) and in its logarithm.

        Args:
            between: epsilons, of which the least and the greatest bound the line.

        Returns:
            By what the line is straight in; None where there is no line.
        """
        from semdedup_assets.algorithm.epsilon_estimate import straightness

        known = between[np.isfinite(between)]
        x = np.linspace(known.min(), known.max(), 200) if len(known) else known
        y = np.interp(x, self.epsilon, self.kept)
        positive = x > 0
        found = {"epsilon": straightness(x, y), "log epsilon": straightness(np.log(x[positive]), y[positive])}
        return {name: None if np.isnan(value) else value for name, value in found.items()}
