"""How much of what one clustering keeps another keeps too, for several sizes at once (SemDeDup, appendix A.1)."""

import numpy as np


def sets_kept_in(similarity: np.ndarray, epsilons: np.ndarray) -> np.ndarray:
    """In how many of some kept sets each item is; as a higher epsilon keeps less, it is in the first so many.

    Args:
        similarity: (n,) float32, greatest similarity to an earlier item.
        epsilons: (e,) ascending, at most 255 of them.

    Returns:
        (n,) uint8: an item with number m is kept at the first m epsilons, and at none of the others.
    """
    beyond = np.searchsorted((1.0 - epsilons)[::-1], similarity.astype(np.float64), side="left")
    return (len(epsilons) - beyond).astype(np.uint8)


def kept_together(first: np.ndarray, second: np.ndarray, *, sets: int) -> np.ndarray:
    """How many items both of two clusterings keep, at each of some sizes.

    Args:
        first: (n,) uint8, as `sets_kept_in` gives it for the items of one clustering.
        second: (n,) uint8, for the same items of another one.
        sets: e, the number of sizes.

    Returns:
        (e,) int64; with the same clustering twice, the size of each of its sets.
    """
    # In the smaller of both numbers of sets an item is kept by both.
    counts = np.bincount(np.minimum(first, second), minlength=sets + 1)
    return np.cumsum(counts[::-1])[::-1][1:].astype(np.int64)
