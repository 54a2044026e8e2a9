"""Contiguous ranges of clusters of about equal cost: what one worker scores at a time."""

from collections.abc import Iterator

import numpy as np


def plan_buckets(sizes: np.ndarray, *, buckets: int) -> np.ndarray:
    """Divide k clusters into contiguous ranges of about equal cost.

    A cluster of m items costs m² / 2 comparisons, and reading m vectors, which weighs as much as comparing each
    with some hundreds of others.

    Args:
        sizes: (k,) expected items of each cluster, on any scale.
        buckets: number of ranges; where it exceeds k, the last ones are empty.

    Returns:
        (buckets + 1,) int64: range b holds the clusters `[bounds[b], bounds[b + 1])`.

    Raises:
        ValueError: `buckets` is not positive.
    """
    if buckets < 1:
        message = f"buckets: {buckets} is not a positive number"
        raise ValueError(message)
    k = len(sizes)
    if buckets >= k:
        return np.minimum(np.arange(buckets + 1), k).astype(np.int64)
    weight = sizes.astype(np.float64)
    cost = weight**2 / 2 + 256 * weight + 1
    done = np.cumsum(cost) / cost.sum()
    inner = np.searchsorted(done, np.arange(1, buckets) / buckets) + 1
    # Every range holds at least one cluster, also where one cluster costs more than several shares.
    inner = np.maximum.accumulate(inner - np.arange(1, buckets)) + np.arange(1, buckets)
    inner = np.minimum(inner, k - np.arange(buckets - 1, 0, -1))
    return np.concatenate([[0], inner, [k]]).astype(np.int64)


def predicted_pairs(sizes: np.ndarray, *, items: int) -> int:
    """Pairs to compare within clusters, predicted for n items from the sizes in a sample."""
    share = sizes.astype(np.float64) / max(1, int(sizes.sum()))
    return int((items * share * (items * share - 1).clip(0) / 2).sum())


def runs(sizes: np.ndarray, *, most: int) -> Iterator[tuple[int, int]]:
    """Consecutive clusters whose rows fit together.

    Args:
        sizes: (k,) rows of each cluster.
        most: rows of a run; a larger cluster is a run of its own.

    Yields:
        First cluster, and the one after the last; runs without a row are passed over.
    """
    first, rows = 0, 0
    for cluster, size in enumerate(sizes.tolist()):
        if rows and rows + size > most:
            yield first, cluster
            first, rows = cluster, 0
        rows += size
    if rows:
        yield first, len(sizes)
