"""Which item of a cluster comes first, and is therefore kept (SemDeDup, section 3 and Table 3)."""

from typing import Literal, get_args

import numpy as np

from semdedup_assets.algorithm.sampling import id_hash

KeepStrategy = Literal["hard", "easy", "random"]
"""`hard` keeps the item least similar to its centroid (the paper's default), `easy` the most similar."""


def check_keep(keep: KeepStrategy | np.ndarray, *, items: int) -> None:
    """Refuse an unknown strategy, or numbers that are not one per item.

    Raises:
        ValueError: names what was given, and what is possible.
    """
    if isinstance(keep, np.ndarray):
        if keep.shape != (items,):
            message = f"keep: {keep.shape} numbers for {items} items; give one number per item"
            raise ValueError(message)
    elif keep not in get_args(KeepStrategy):
        message = f"keep: {keep!r} is not one of 'hard', 'easy', 'random', nor an array with a number per item"
        raise ValueError(message)


def keep_priority(
    keep: KeepStrategy | np.ndarray, *, centroid_similarity: np.ndarray, ids: np.ndarray, seed: int
) -> np.ndarray:
    """A number for each item: the smaller, the earlier it comes in its cluster.

    Args:
        keep: the strategy, or (n,) numbers of the caller's own, smallest first, NaN last; integers beyond 2**53 lose
            their last digits.
        centroid_similarity: (n,) float64, cosine similarity to the assigned centroid.
        ids: (n,) uint64.
        seed: of `random`.

    Returns:
        (n,) float64 or uint64.

    Raises:
        ValueError: an unknown strategy, or numbers of another length.
    """
    check_keep(keep, items=len(ids))
    if isinstance(keep, np.ndarray):
        return keep.astype(np.float64)
    if keep == "random":
        return id_hash(ids, seed=seed)
    return centroid_similarity if keep == "hard" else -centroid_similarity


def cluster_order(cluster: np.ndarray, *, priority: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Rows sorted by cluster, then priority, then id: the keep-order within each cluster.

    Args:
        cluster: (n,) integers.
        priority: (n,) as from `keep_priority`.
        ids: (n,) uint64; they settle equal priorities.

    Returns:
        (n,) int64, positions into the given arrays.
    """
    return np.lexsort((ids, priority, cluster))


def cluster_offsets(cluster: np.ndarray, *, k: int) -> np.ndarray:
    """Where each cluster starts once rows are sorted by cluster: (k + 1,) int64, the last is n."""
    return np.concatenate([[0], np.cumsum(np.bincount(cluster, minlength=k))]).astype(np.int64)
