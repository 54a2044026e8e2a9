"""Contiguous ranges of clusters: the unit of storage, grouped into the partitions that one worker scores."""

from collections.abc import Iterator

import numpy as np

# Ranges are stored in files of about this size: large enough to read at full speed from an object store, small enough
# to hold in memory.
_RANGE_BYTES = 256 << 20
# Enough to group into many partitions later, few enough that a shard's index of them stays small.
_FEWEST_RANGES, _MOST_RANGES = 32, 512


def range_count(items: int, *, k: int, row_bytes: int) -> int:
    """How many fine ranges of clusters are stored: about 256 MiB of vectors each, 32 to 512 of them, at most k.

    Args:
        items: n, the vectors of all clusters.
        k: number of clusters.
        row_bytes: bytes of a stored vector.

    Returns:
        At least 1.
    """
    wanted = -(-items * row_bytes // _RANGE_BYTES)
    return max(1, min(k, max(_FEWEST_RANGES, min(_MOST_RANGES, wanted))))


def plan_ranges(sizes: np.ndarray, *, ranges: int) -> np.ndarray:
    """Divide k clusters into contiguous ranges of about equal cost.

    A cluster of m items costs m² / 2 comparisons. Reading its m vectors costs as much as some hundred comparisons each.

    Args:
        sizes: (k,) expected items of each cluster, on any scale.
        ranges: number of ranges; where it exceeds k, the last ones are empty.

    Returns:
        (ranges + 1,) int64: range r holds the clusters `[bounds[r], bounds[r + 1])`.

    Raises:
        ValueError: `ranges` is not positive.
    """
    if ranges < 1:
        message = f"ranges: {ranges} is not a positive number"
        raise ValueError(message)
    k = len(sizes)
    if ranges >= k:
        return np.minimum(np.arange(ranges + 1), k).astype(np.int64)
    weight = sizes.astype(np.float64)
    cost = weight**2 / 2 + 256 * weight + 1
    done = np.cumsum(cost) / cost.sum()
    inner = np.searchsorted(done, np.arange(1, ranges) / ranges) + 1
    # Every range holds at least one cluster, also where one cluster costs more than several shares.
    inner = np.maximum.accumulate(inner - np.arange(1, ranges)) + np.arange(1, ranges)
    inner = np.minimum(inner, k - np.arange(ranges - 1, 0, -1))
    return np.concatenate([[0], inner, [k]]).astype(np.int64)


def group_ranges(ranges: int, *, groups: int) -> list[range]:
    """Divide ranges into contiguous groups of about equal numbers of them.

    Args:
        ranges: number of ranges.
        groups: number of groups; where it exceeds `ranges`, some are empty.

    Returns:
        The indices of the ranges of each group.

    Raises:
        ValueError: `groups` is not positive.
    """
    if groups < 1:
        message = f"groups: {groups} is not a positive number"
        raise ValueError(message)
    return [range(group * ranges // groups, (group + 1) * ranges // groups) for group in range(groups)]


def predicted_pairs(sizes: np.ndarray, *, items: int) -> int:
    """Pairs to compare within clusters, predicted for n items from the sizes in a sample."""
    share = sizes.astype(np.float64) / max(1, int(sizes.sum()))
    return int((items * share * (items * share - 1).clip(0) / 2).sum())


def cluster_batches(sizes: np.ndarray, *, most: int) -> Iterator[tuple[int, int]]:
    """Batches of consecutive clusters whose rows fit together.

    Args:
        sizes: (k,) rows of each cluster.
        most: rows of a batch; a larger cluster is a batch of its own.

    Yields:
        First cluster, and the one after the last; batches without a row are skipped.
    """
    first, rows = 0, 0
    for cluster, size in enumerate(sizes.tolist()):
        if rows and rows + size > most:
            yield first, cluster
            first, rows = cluster, 0
        rows += size
    if rows:
        yield first, len(sizes)
