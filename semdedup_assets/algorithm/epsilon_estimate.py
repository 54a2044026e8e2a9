"""Estimate the epsilon that keeps a wanted share from the scores of some clusters (SemDeDup, section 6.5)."""

from dataclasses import dataclass

import numpy as np

from semdedup_assets.algorithm.budget import rows_within
from semdedup_assets.algorithm.sampling import id_hash
from semdedup_assets.algorithm.tuning import epsilon_for

# An object store is read a range at a time: of many ranges only as many are opened as the share needs, but of few all.
_FEWEST_RANGES = 32
# Finer than an interval of a share needs to be, small enough to be counted for each replicate.
_EDGES, _REPLICATES = 4096, 400
_BLOCK_BYTES = 64 << 20
_INTERVAL = (0.025, 0.975)


def sample_clusters(ranges: list[range], *, share: float, fewest: int, seed: int) -> dict[int, set[int]]:
    """Choose a share of the clusters, each with the same probability, whatever its size.

    Ranges are chosen first, without replacement, and then clusters within them, so many that each cluster of the dataset
    has the same chance. So the ratio of two sums over the chosen clusters, such as kept items to all items, estimates
    the same ratio over all of them. Empty clusters take part like others.

    Args:
        ranges: the clusters of each range that can be read on its own.
        share: of all clusters, in (0, 1].
        fewest: clusters to choose at least, as far as there are so many.
        seed: of the choice.

    Returns:
        The chosen clusters by the index of their range, ascending.
    """
    filled = np.array([index for index, clusters in enumerate(ranges) if len(clusters)], dtype=np.int64)
    opened = _shuffled(filled, seed=2 * seed)[: max(_FEWEST_RANGES, int(np.ceil(share * len(filled))))]
    within = np.array([cluster for index in np.sort(opened).tolist() for cluster in ranges[index]], dtype=np.int64)
    of_opened = min(1.0, share * len(filled) / max(1, len(opened)))
    count = min(len(within), max(fewest, round(of_opened * len(within))))
    chosen = set(_shuffled(within, seed=2 * seed + 1)[:count].tolist())
    return {index: found for index in np.sort(opened).tolist() if (found := chosen.intersection(ranges[index]))}


def _shuffled(indices: np.ndarray, *, seed: int) -> np.ndarray:
    order: np.ndarray = indices[np.argsort(id_hash(indices.astype(np.uint64), seed=seed))]
    return order


def interpolated_epsilon(start: tuple[float, float], kept: tuple[float, float], *, share: float) -> float:
    """The epsilon that keeps a share if what is kept falls in a straight line (SemDeDup, section 6.5).

    Args:
        start: two epsilons.
        kept: shares of the items that are kept at each.
        share: to be kept.

    Returns:
        Epsilon in [0, 2], beyond the start values too; NaN where both keep the same, so that there is no line.
    """
    if kept[0] == kept[1]:
        return float("nan")
    epsilon = start[0] + (share - kept[0]) * (start[1] - start[0]) / (kept[1] - kept[0])
    return min(2.0, max(0.0, epsilon))


def straightness(x: np.ndarray, y: np.ndarray) -> float:
    """How much of the variance of y a straight line in x explains (R²): 1 where all points lie on it.

    Args:
        x: (m,) numbers.
        y: (m,) numbers.

    Returns:
        R² in [0, 1]; NaN for fewer than three points, or where x or y does not vary.
    """
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1] ** 2)


@dataclass(frozen=True)
class ClusterScores:
    """The scores of the items of some clusters.

    Attributes:
        similarity: (n,) float32, by cluster: greatest similarity to an earlier item, -inf for the first of a cluster.
        offsets: (clusters + 1,) int64, where each cluster starts; empty ones are among them.
        clusters: k, of the dataset from which these were chosen.
    """

    similarity: np.ndarray
    offsets: np.ndarray
    clusters: int

    def kept_fraction(self, epsilon: float) -> float:
        """Share of the items that the chain rule keeps (Alg. A7); NaN without items, or where epsilon is NaN."""
        if len(self.similarity) == 0 or np.isnan(epsilon):
            return float("nan")
        return float((self.similarity.astype(np.float64) <= 1.0 - epsilon).mean())

    def epsilon_for(self, keep: float) -> float:
        """The epsilon that keeps a share of these items, as `tuning.epsilon_for`; NaN without items."""
        return epsilon_for(lambda: [self.similarity], keep=keep) if len(self.similarity) else float("nan")


@dataclass(frozen=True, slots=True)
class SampleCurve:
    """What some clusters keep, by epsilon: (g,) float64 each.

    Attributes:
        epsilon: ascending.
        kept: share of the items.
        low: lower end of its 95 % interval; NaN where no variance is known.
        high: upper end.
    """

    epsilon: np.ndarray
    kept: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def empty(cls) -> "SampleCurve":
        """Of no items."""
        return cls(*(np.empty(0) for _ in range(4)))


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """What might have been kept had other clusters been chosen.

    Attributes:
        similarity: (g,) float32, ascending: thresholds, some order statistics of the scores.
        sampled: (g,) float64: share of the sampled items with at most each similarity.
        kept: (b, g) float64: of replicate b, share of the items with at most each similarity; NaN where a single cluster
            was chosen of several, from which no variance follows.
    """

    similarity: np.ndarray
    sampled: np.ndarray
    kept: np.ndarray

    @classmethod
    def of(cls, scores: ClusterScores, *, seed: int) -> "Bootstrap":
        """Resample whole clusters, for items of a cluster are alike (Rao and Wu 1988: without replacement).

        Args:
            scores: of the chosen clusters, at least one item.
            seed: of the resampling.
        """
        ordered = np.sort(scores.similarity)
        ranks = np.linspace(0, len(ordered) - 1, min(len(ordered), _EDGES)).round().astype(np.int64)
        edges = np.unique(ordered[ranks])
        sizes = np.diff(scores.offsets)
        filled = np.flatnonzero(sizes)
        weights = _weights(len(sizes), clusters=scores.clusters, seed=seed)[:, filled]
        counts = np.zeros((_REPLICATES, len(edges)))
        step = rows_within(_BLOCK_BYTES, row_bytes=8 * len(edges))
        for start in range(0, len(filled), step):
            some = filled[start : start + step]
            inside = scores.similarity[scores.offsets[some[0]] : scores.offsets[some[-1] + 1]]
            cell = np.repeat(np.arange(len(some)), sizes[some]) * len(edges) + np.searchsorted(edges, inside)
            histogram = np.bincount(cell, minlength=len(some) * len(edges)).reshape(len(some), len(edges))
            counts += weights[:, start : start + step] @ histogram
        kept = np.cumsum(counts, axis=1)
        sampled = np.searchsorted(ordered, edges, side="right") / len(ordered)
        return cls(edges, sampled, kept / kept[:, -1:])

    def epsilon_interval(self, share: float) -> tuple[float, float]:
        """95 % interval of the epsilon that keeps a share; NaN where no variance is known."""
        if np.isnan(self.kept).any():
            return float("nan"), float("nan")
        # Sums of weights round: a share that is reached but for that is reached.
        threshold = self.similarity[(self.kept < share - 1e-12).sum(axis=1).clip(max=len(self.similarity) - 1)]
        low, high = np.quantile(
            (1.0 - threshold.astype(np.float64)).clip(0, 2), _INTERVAL, method="closest_observation"
        )
        return float(low), float(high)

    @property
    def curve(self) -> SampleCurve:
        """What the sampled clusters keep, with 95 % intervals."""
        low, high = np.quantile(self.kept, _INTERVAL, axis=0)
        epsilon = (1.0 - self.similarity.astype(np.float64)).clip(0, 2)
        return SampleCurve(epsilon[::-1], self.sampled[::-1], low[::-1], high[::-1])


def _weights(chosen: int, *, clusters: int, seed: int) -> np.ndarray:
    """(b, chosen) float64: how often each cluster counts in each replicate; 1 throughout where all were chosen."""
    if chosen >= clusters:
        return np.ones((_REPLICATES, chosen))
    if chosen == 1:
        return np.full((_REPLICATES, 1), np.nan)
    drawn = np.random.default_rng(seed).multinomial(chosen - 1, np.full(chosen, 1 / chosen), size=_REPLICATES)
    spread = np.sqrt(1 - chosen / clusters)
    weights: np.ndarray = 1 - spread + spread * drawn * (chosen / (chosen - 1))
    return weights
