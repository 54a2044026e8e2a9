"""Which item of a cluster comes first, and is therefore kept (SemDeDup, section 3 and Table 3)."""

from typing import Literal, get_args

import numpy as np

from semdedup_assets.algorithm.sampling import id_hash

KeepStrategy = Literal["hard", "easy", "random"]
"""`hard` keeps the item least similar to its centroid (the paper's default), `easy` the most similar."""


def check_keep(keep: KeepStrategy | np.ndarray, *, items: int) -> None:
    """Check that a strategy is known, or that there is one number per item.

    Raises:
        ValueError: an unknown strategy, numbers of another length or of a type that has no order, or no array; names
            what was given and what is possible.
    """
    if not isinstance(keep, str | np.ndarray):
        # A list that mixes signed and unsigned integers becomes floats: only the caller can know which type is right.
        message = f"keep: {type(keep).__name__} is no NumPy array; give np.asarray(keep, np.int64), or the type it has"
        raise ValueError(message)
    if isinstance(keep, np.ndarray):
        if keep.shape != (items,):
            message = f"keep: {keep.shape} numbers for {items} items; give one number per item"
            raise ValueError(message)
        if keep.dtype.kind not in "biufmM":
            message = f"keep: values of type {keep.dtype} are not numbers; give integers, floats or times"
            raise ValueError(message)
    elif keep not in get_args(KeepStrategy):
        message = f"keep: {keep!r} is not one of 'hard', 'easy', 'random', nor an array with a number per item"
        raise ValueError(message)


def keep_priority(
    keep: KeepStrategy | np.ndarray,
    *,
    centroid_similarity: np.ndarray,
    ids: np.ndarray,
    seed: int,
    descending: bool = False,
) -> np.ndarray:
    """A number for each item: the smaller, the earlier it comes in its cluster.

    Integers are never converted to floats, so that times in nanoseconds keep their exact order.

    Args:
        keep: the strategy, or (n,) integers, floats or times of the caller's own, smallest first. NaN, NaT and the
            masked entries of a masked array come last in either direction.
        centroid_similarity: (n,) float64, cosine similarity to the assigned centroid.
        ids: (n,) uint64.
        seed: of `random`.
        descending: whether the largest of the caller's numbers comes first; not for a strategy.

    Returns:
        (n,) floats or integers, comparable within this call only.

    Raises:
        ValueError: an unknown strategy, `descending` with a strategy, or numbers of another length or without an order.
    """
    check_keep(keep, items=len(ids))
    if isinstance(keep, np.ndarray):
        return _number_priority(keep, descending=descending)
    if descending:
        message = f"keep: {keep!r} has an order of its own; descending is for numbers"
        raise ValueError(message)
    if keep == "random":
        return id_hash(ids, seed=seed)
    return centroid_similarity if keep == "hard" else -centroid_similarity


def _number_priority(keep: np.ndarray, *, descending: bool) -> np.ndarray:
    """(n,): the caller's numbers in the wanted direction, those that are missing last."""
    values: np.ndarray = np.ma.getdata(keep)
    missing = np.ma.getmaskarray(keep)
    if values.dtype.kind in "mM":
        missing, values = missing | np.isnat(values), values.astype(np.int64)
    if values.dtype.kind == "f":
        directed = np.negative(values) if descending else values
        return np.where(missing, np.asarray(np.nan, values.dtype), directed)
    # Bitwise not reverses the order of integers, signed or not, without overflow.
    directed = np.invert(values) if descending else values
    if not missing.any():
        return directed
    rank = np.unique(directed, return_inverse=True)[1].astype(np.int64)
    rank[missing] = len(rank)
    return rank


def cluster_order(cluster: np.ndarray, *, priority: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Rows sorted by cluster, then priority, then id: the keep-order within each cluster.

    Args:
        cluster: (n,) integers.
        priority: (n,) as from `keep_priority`.
        ids: (n,) uint64; they settle equal priorities.

    Returns:
        (n,) int64, indices into the given arrays.
    """
    return np.lexsort((ids, priority, cluster))


def cluster_offsets(cluster: np.ndarray, *, k: int) -> np.ndarray:
    """Where each cluster starts once rows are sorted by cluster: (k + 1,) int64, the last is n."""
    return np.concatenate([[0], np.cumsum(np.bincount(cluster, minlength=k))]).astype(np.int64)
