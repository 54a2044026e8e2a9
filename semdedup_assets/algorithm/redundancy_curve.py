"""The share removed from random subsamples, from the scores of one pass, and what more items would lose."""

from dataclasses import dataclass

import numpy as np

from semdedup_assets.algorithm.epsilon_curves import EpsilonCounts
from semdedup_assets.algorithm.sampling import id_hash

# Shares of fewer items are noise.
_FEWEST = 5


def halvings_of(ids: np.ndarray, *, seed: int, most: int) -> np.ndarray:
    """How often the dataset can be halved with an item still in it, by its random priority.

    The items that are left after m halvings are those whose priority (`keep_order.keep_keys` of `random`) is below
    2^(64 - m): a uniform random subsample. Every item that comes before one of them is one of them too.

    Args:
        ids: (n,) uint64.
        seed: of the random priority.
        most: halvings that count.

    Returns:
        (n,) int64, from 0 to `most`.
    """
    bounds = np.array([1 << (64 - m) for m in range(most, 0, -1)], dtype=np.uint64)
    return most - np.searchsorted(bounds, id_hash(ids, seed=seed), side="right").astype(np.int64)


class SubsampleCounts:
    """Counts what random subsamples of a dataset keep, under the chain rule with `random` keep-order (Alg. A7).

    An item's score depends on the earlier items of its cluster alone. In a subsample of the items with the smallest
    priorities those are the same, so the scores are the subsample's own, with the clusters of the whole dataset.
    """

    def __init__(self, epsilons: np.ndarray, *, halvings: int, seed: int) -> None:
        """Start counting at zero.

        Args:
            epsilons: (e,) ascending.
            halvings: m, of the smallest subsample.
            seed: of the random priority.
        """
        self._seed = seed
        self._counts = [EpsilonCounts(epsilons) for _ in range(halvings + 1)]
        self._items = np.zeros(halvings + 1, dtype=np.int64)

    def add(self, ids: np.ndarray, similarity: np.ndarray) -> None:
        """Count (n,) uint64 ids with (n,) float32 greatest similarities to an earlier item, -inf without one."""
        halvings = halvings_of(ids, seed=self._seed, most=len(self._items) - 1)
        self._items += np.bincount(halvings, minlength=len(self._items))
        for left, counts in enumerate(self._counts):
            counts.add(similarity[halvings == left])

    @property
    def items(self) -> np.ndarray:
        """(m + 1,) int64: items of each subsample, the smallest first and the whole dataset last."""
        return np.cumsum(self._items[::-1])

    @property
    def removed(self) -> np.ndarray:
        """(m + 1, e) int64: items removed from each subsample at each epsilon."""
        kept = np.cumsum([counts.within for counts in self._counts[::-1]], axis=0)
        removed: np.ndarray = self.items[:, None] - kept
        return removed


@dataclass(frozen=True, slots=True)
class SizeLaw:
    """The share removed from n items: n^slope / (n^slope + half^slope).

    For few items it grows as a power of n, and it never exceeds 1: for many, the items kept grow as n^(1 - slope). On
    two real datasets it was nearer to what twice and four times the items lose than a power law of the share (too high)
    or of the items kept (too low).

    Attributes:
        slope: by which the logarithm of removed to kept items rises with the logarithm of n.
        log_half: logarithm of the number of items of which half would be removed.
    """

    slope: float
    log_half: float

    def removed(self, items: np.ndarray) -> np.ndarray:
        """(n,) shares removed from (n,) numbers of items."""
        odds = self.slope * (np.log(items) - self.log_half)
        share: np.ndarray = 1 / (1 + np.exp(-odds))
        return share


def fit_size_law(items: np.ndarray, removed: np.ndarray) -> SizeLaw | None:
    """Fit the law to what was removed from some subsamples: a straight line through the log odds.

    The line goes through the largest of them exactly: from there it is extrapolated, and the others are parts of it.

    Args:
        items: (m,) of each subsample, ascending.
        removed: (m,) items removed from each.

    Returns:
        The law; None where fewer than three subsamples have both some removed and some kept items.
    """
    usable = (removed >= _FEWEST) & (items - removed >= _FEWEST)
    n, r = items[usable].astype(np.float64), removed[usable].astype(np.float64)
    if len(np.unique(n)) < 3:
        return None
    x, odds = np.log(n), np.log(r / (n - r))
    dx, dy = x - x[-1], odds - odds[-1]
    # The variance of a log odds of r in n is n / (r (n - r)).
    weight = r * (n - r) / n
    slope = float((weight * dx * dy).sum() / (weight * dx**2).sum())
    return None if slope <= 0 else SizeLaw(slope, float(x[-1] - odds[-1] / slope))


def extrapolation_error(items: np.ndarray, removed: np.ndarray, *, halvings: int) -> float:
    """How far the law is off at the whole dataset, if it is fitted to the subsamples of so many halvings and more.

    Args:
        items: (m,) of each subsample, the whole dataset last and each of the others about half of the next.
        removed: (m,) items removed from each.
        halvings: at least 1.

    Returns:
        Predicted less measured share removed from the last; NaN where nothing could be fitted.
    """
    law = fit_size_law(items[:-halvings], removed[:-halvings])
    if law is None:
        return float("nan")
    return float(law.removed(items[-1:])[0] - removed[-1] / items[-1])
