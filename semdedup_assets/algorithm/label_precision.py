"""How many removed items are duplicates, from the labels of a sample: by band, up to an epsilon, and which epsilon fits."""

from dataclasses import dataclass

import numpy as np

_Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations.


@dataclass(frozen=True, slots=True)
class BandLabels:
    """What is known of the pairs of some bands.

    Attributes:
        pairs: (b,) int64, all pairs.
        certain: (b,) int64, those that are duplicates without a look, for their bytes are equal.
        labelled: (b,) int64, labelled ones among the others: duplicate or not.
        duplicates: (b,) int64, duplicates among these.
    """

    pairs: np.ndarray
    certain: np.ndarray
    labelled: np.ndarray
    duplicates: np.ndarray


@dataclass(frozen=True, slots=True)
class Precision:
    """Shares of duplicates with their 95 % intervals: (b,) float64 each, NaN where nothing is known.

    Attributes:
        value: the share.
        low: of the interval.
        high: of the interval.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def band_precision(labels: BandLabels) -> Precision:
    """The share of duplicates in each band: pairs of equal bytes count as they are, the others by their labels.

    The interval is Wilson's (1927), for a sample drawn without replacement: where every pair is labelled it is a point.
    """
    rest = (labels.pairs - labels.certain).astype(np.float64)
    n = np.minimum(labels.labelled, rest)
    known = (n > 0) | (rest == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(rest == 0, 0.0, labels.duplicates / labels.labelled)
        effective = np.where(n >= rest, np.inf, n * (rest - 1) / (rest - n))
        z2 = _Z**2 / effective
        centre, half = (p + z2 / 2) / (1 + z2), np.sqrt(p * (1 - p) * z2 + z2**2 / 4) / (1 + z2)
        found = [
            np.where(known & (labels.pairs > 0), (labels.certain + rest * share) / labels.pairs, np.nan)
            for share in (p, np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1))
        ]
    return Precision(*found)


def cumulative_precision(labels: BandLabels, bands: Precision) -> Precision:
    """The share of duplicates in each band and those before it, every band weighted by its pairs.

    The intervals of the bands are joined by the method of variance estimates recovery (Zou and Donner 2008). From the
    first band on of which nothing is known, nothing is.
    """
    filled = labels.pairs > 0
    weight = np.where(filled, labels.pairs, 0).astype(np.float64)
    total = np.cumsum(weight)
    value, low, high = (np.where(filled, each, 0.0) for each in (bands.value, bands.low, bands.high))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.cumsum(weight * value) / total
        below = np.sqrt(np.cumsum((weight * (value - low)) ** 2)) / total
        above = np.sqrt(np.cumsum((weight * (high - value)) ** 2)) / total
    return Precision(mean, np.clip(mean - below, 0, 1), np.clip(mean + above, 0, 1))


@dataclass(frozen=True, slots=True)
class EpsilonForPrecision:
    """Up to which epsilon the items removed are duplicates often enough.

    Attributes:
        epsilon: the greatest one before the share of duplicates first falls below the wanted one.
        ends: why it is not greater: the share falls (`precision`), the next band has no labels (`labels`), or all bands
            are precise enough (`bands`).
    """

    epsilon: float
    ends: str


def epsilon_for_precision(
    edges: np.ndarray, labels: BandLabels, share: np.ndarray, *, wanted: float
) -> EpsilonForPrecision:
    """The epsilon at which the share of duplicates of all that is removed falls to a wanted one.

    Within a band, pairs and duplicates count as spread evenly.

    Args:
        edges: (b,) float64, where each band ends, ascending; the first begins at 0.
        labels: of these bands; their pairs are the weights.
        share: (b,) of duplicates in each band, NaN where nothing is known: the value, or the low end of its interval.
        wanted: in (0, 1].
    """
    low, pairs, duplicates = 0.0, 0.0, 0.0
    for high, weight, p in zip(edges.tolist(), labels.pairs.tolist(), share.tolist(), strict=True):
        if weight and np.isnan(p):
            return EpsilonForPrecision(low, "labels")
        if weight and duplicates + weight * p < wanted * (pairs + weight):
            part = (duplicates - wanted * pairs) / (weight * (wanted - p))
            return EpsilonForPrecision(low + max(0.0, part) * (high - low), "precision")
        low, pairs, duplicates = high, pairs + weight, duplicates + (weight * p if weight else 0.0)
    return EpsilonForPrecision(low, "bands")
