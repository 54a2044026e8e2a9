"""The epsilon that keeps a wanted share, exactly, from the scores of one pass."""

from collections.abc import Callable, Iterable

import numpy as np

_DIGIT = 16


def epsilon_for(scores: Callable[[], Iterable[np.ndarray]], *, keep: float) -> float:
    """The smallest epsilon range's end that keeps at least a wanted share of the items, and no more than ties force.

    Finds an order statistic of all scores by two passes of counting, so that billions of scores need 1 MiB.

    Args:
        scores: gives the similarities afresh at each call: arrays of float32, -inf for the first of a cluster.
        keep: share of the items to keep, in (0, 1].

    Returns:
        Epsilon in [0, 2]. Items with equal scores are kept or removed together, so that ties may keep more; and the
        first item of each cluster is always kept.

    Raises:
        ValueError: `keep` is outside (0, 1], or there are no scores.
    """
    if not 0 < keep <= 1:
        message = f"keep: {keep} is not a share in (0, 1]"
        raise ValueError(message)
    high = np.zeros(1 << _DIGIT, dtype=np.int64)
    for part in scores():
        high += np.bincount(_sortable(part) >> _DIGIT, minlength=1 << _DIGIT)
    total = int(high.sum())
    if total == 0:
        message = "there are no scores to choose an epsilon from"
        raise ValueError(message)
    rank = max(1, int(np.ceil(keep * total - 1e-9)))
    first = int(np.searchsorted(np.cumsum(high), rank))
    low = np.zeros(1 << _DIGIT, dtype=np.int64)
    for part in scores():
        bits = _sortable(part)
        low += np.bincount(bits[bits >> _DIGIT == first] & ((1 << _DIGIT) - 1), minlength=1 << _DIGIT)
    second = int(np.searchsorted(np.cumsum(low), rank - int(high[:first].sum())))
    return _epsilon_keeping(_from_sortable((first << _DIGIT) | second))


def _epsilon_keeping(similarity: float) -> float:
    """The greatest epsilon in [0, 2] at which an item of this similarity is still kept."""
    epsilon = min(2.0, max(0.0, 1.0 - similarity))
    while 1.0 - epsilon < similarity and epsilon > 0:
        epsilon = float(np.nextafter(epsilon, 0.0))
    return epsilon


def _sortable(scores: np.ndarray) -> np.ndarray:
    """float32 as integers of the same order."""
    bits = np.ascontiguousarray(scores, dtype=np.float32).view(np.uint32).astype(np.int64)
    return np.where(bits >> 31 == 1, 0xFFFFFFFF - bits, bits + (1 << 31))


def _from_sortable(value: int) -> float:
    bits = value - (1 << 31) if value >> 31 else 0xFFFFFFFF - value
    return float(np.array([bits], dtype=np.uint32).view(np.float32)[0])
