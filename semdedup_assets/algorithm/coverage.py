"""How many values a choice of items covers, against as many items chosen at random: in closed form, without sampling."""

from dataclasses import dataclass

import numpy as np

# Of a value that random misses less often than e**-46, 1e-20, no sum notices that it counts as covered.
_NEVER = 46.0
# Terms of the sum over pairs of counts: half a second.
_MOST_TERMS = 1 << 25
# Standard deviations of a count within which its distribution is summed up; beyond lie 1e-30 of it.
_WITHIN = 12.0


@dataclass(frozen=True, slots=True)
class RandomCoverage:
    """What as many items cover that are chosen at random, without replacement.

    Attributes:
        values: expected number of values with at least one chosen item.
        values_sd: its standard deviation.
        items: expected number of items, chosen or not, whose value is covered.
        items_sd: its standard deviation.
        effective: exp of the expected entropy, in nats, of the chosen items' values; 0 where nothing is chosen.
    """

    values: float
    values_sd: float
    items: float
    items_sd: float
    effective: float


@dataclass(frozen=True, slots=True)
class Coverage:
    """What kept items cover of the values that all items have.

    Attributes:
        items: in all.
        kept: of them.
        values: of all items.
        covered: values with at least one kept item.
        covered_items: items, kept or not, whose value is covered.
        effective: exp of the entropy of the kept items' values: so many equally frequent values would be as mixed.
        effective_all: the same of all items.
        random: what a random choice of as many items covers.
    """

    items: int
    kept: int
    values: int
    covered: int
    covered_items: int
    effective: float
    effective_all: float
    random: RandomCoverage


def coverage(values: np.ndarray, kept: np.ndarray) -> Coverage:
    """Count what kept items cover, and what as many random ones would.

    Args:
        values: (n,) integers, the value of each item that has one.
        kept: (n,) bool.
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    kept_counts = np.bincount(inverse[kept], minlength=len(counts))
    covered = kept_counts > 0
    return Coverage(
        items=len(values),
        kept=int(kept.sum()),
        values=len(counts),
        covered=int(covered.sum()),
        covered_items=int(counts[covered].sum()),
        effective=effective_number(kept_counts),
        effective_all=effective_number(counts),
        random=random_coverage(counts, chosen=int(kept.sum())),
    )


def effective_number(counts: np.ndarray) -> float:
    """How many equally frequent values would be as mixed as a distribution: exp of its entropy (Hill 1973, order 1).

    Args:
        counts: (v,) non-negative integers.

    Returns:
        From 1 to v; 0 where nothing is counted.
    """
    total = int(counts.sum())
    if total == 0:
        return 0.0
    share = counts[counts > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def random_coverage(counts: np.ndarray, *, chosen: int) -> RandomCoverage:
    """What items cover that are chosen at random: exact moments of the hypergeometric distribution.

    Values of one count are alike, so sums go over distinct counts. Where these are so many that the sum over their pairs
    would take long (small choices of very many items), the covariances, which are all negative, are left out: the standard
    deviations are then upper bounds.

    Args:
        counts: (v,) positive integers, items of each value.
        chosen: items, at most all.
    """
    items = int(counts.sum())
    count, number = np.unique(counts, return_counts=True)
    missed = missed_probability(count, items=items, chosen=chosen)
    spread = [
        _deviation(_Kinds(count, number, missed, weight), items, chosen) for weight in (np.ones_like(count), count)
    ]
    return RandomCoverage(
        values=float((number * (1 - missed)).sum()),
        values_sd=spread[0],
        items=float((number * count * (1 - missed)).sum()),
        items_sd=spread[1],
        effective=_effective(count, number, items, chosen),
    )


def missed_probability(count: np.ndarray, *, items: int, chosen: int) -> np.ndarray:
    """(d,) the probability that no item of a value is chosen: C(N - n, m) / C(N, m).

    It is the product of (N - m - i) / (N - i) over the n items of the value, whose logarithms lose no digits, as the
    difference of two binomials' would.

    Args:
        count: (d,) positive integers, n of each value.
        items: N, in all.
        chosen: m, at random.
    """
    if chosen == 0:
        return np.ones(len(count))
    # No value of more items than are not chosen can be missed.
    length = min(int(count.max(initial=0)), items - chosen, int(_NEVER * items / chosen) + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log1p(-chosen / (items - np.arange(length))))])
    return np.where(count <= length, np.exp(logs[np.minimum(count, length)]), 0.0)


@dataclass(frozen=True, slots=True)
class _Kinds:
    """Values by their number of items: (d,) each.

    Attributes:
        count: items of a value.
        number: values that have so many.
        missed: probability that one of them is missed.
        weight: what a covered one counts.
    """

    count: np.ndarray
    number: np.ndarray
    missed: np.ndarray
    weight: np.ndarray


def _deviation(kinds: _Kinds, items: int, chosen: int) -> float:
    """Standard deviation of the sum of weights of the covered values."""
    weighed = kinds.number * kinds.weight.astype(np.float64) ** 2
    variance = float((weighed * kinds.missed * (1 - kinds.missed)).sum())
    open_ones = np.flatnonzero((kinds.missed > 0) & (kinds.missed < 1))
    longest = int(kinds.count[open_ones].max(initial=0))
    if len(open_ones) * longest <= _MOST_TERMS:
        variance += sum(_covariances(kinds, one, open_ones, items, chosen) for one in open_ones)
    return float(np.sqrt(max(0.0, variance)))


def _covariances(kinds: _Kinds, one: int, others: np.ndarray, items: int, chosen: int) -> float:
    """The sum of covariances of the values of one count with the other values.

    C(N - a - b, m) C(N, m) / (C(N - a, m) C(N - b, m)) is the product of 1 - a m / ((N - a - i) (N - m - i)) over i < b.
    """
    a, b = int(kinds.count[one]), kinds.count[others]
    step = np.arange(min(int(b.max()), items - chosen - a))
    factors = -(a * chosen) / ((items - a - step) * (items - chosen - step).astype(np.float64))
    logs = np.concatenate([[0.0], np.cumsum(np.log1p(factors))])
    # Of two values that are more than what is not chosen, one at least is covered.
    ratio = np.where(b < len(logs), np.expm1(logs[np.minimum(b, len(logs) - 1)]), -1.0)
    pairs = kinds.number[one] * kinds.number[others].astype(np.float64) - np.where(others == one, kinds.number[one], 0)
    weights = kinds.weight[one] * kinds.weight[others].astype(np.float64)
    return float((pairs * weights * kinds.missed[one] * kinds.missed[others] * ratio).sum())


def _effective(count: np.ndarray, number: np.ndarray, items: int, chosen: int) -> float:
    if chosen == 0:
        return 0.0
    expected = sum(
        float(many) * _expected_x_log_x(int(each), items, chosen) for each, many in zip(count, number, strict=True)
    )
    return float(np.exp(np.log(chosen) - expected / chosen))


def _expected_x_log_x(count: int, items: int, chosen: int) -> float:
    """E[x log x] of the chosen items x of a value: by the ratios of neighbouring probabilities, from x to x + 1."""
    share = chosen / items
    width = _WITHIN * (1 + np.sqrt(count * share * (1 - share)))
    low = max(0, count - (items - chosen), int(count * share - width))
    high = min(count, chosen, int(count * share + width) + 1)
    x = np.arange(low, high + 1, dtype=np.float64)
    before = x[:-1]
    ratios = (count - before) * (chosen - before) / ((before + 1) * (items - count - chosen + before + 1))
    logs = np.concatenate([[0.0], np.cumsum(np.log(ratios))])
    probability = np.exp(logs - logs.max())
    x_log_x = x * np.log(np.maximum(x, 1))
    return float(probability @ x_log_x / probability.sum())
