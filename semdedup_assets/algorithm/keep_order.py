"""Which item of a cluster comes first, and is therefore kept (SemDeDup, section 3 and Table 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np

from semdedup_assets.algorithm.arguments import described
from semdedup_assets.algorithm.sampling import id_hash

KeepStrategy = Literal["hard", "middle", "easy", "random"]
"""`hard` keeps the item least similar to its centroid (the paper's default), `easy` the most similar, `middle` the one
whose similarity is nearest to the median of its cluster's."""

KeepOrder = Sequence[KeepStrategy | np.ndarray]
"""What orders items, the next deciding where the first ties: numbers, smallest first; at its end perhaps a strategy."""


@dataclass(frozen=True, slots=True)
class ClusteredItems:
    """Items that are to be ordered.

    Attributes:
        ids: (n,) uint64, distinct.
        cluster: (n,) integers.
        centroid_similarity: (n,) float64, cosine similarity to the assigned centroid.
        medians: (n,) float64, the median of the similarities in each item's own cluster, which `middle` needs; None:
            found among these items, which then must be all of their clusters.
    """

    ids: np.ndarray
    cluster: np.ndarray
    centroid_similarity: np.ndarray
    medians: np.ndarray | None = None

    def from_median(self) -> np.ndarray:
        """(n,) float64, how far each similarity is from the median of its cluster's."""
        medians = cluster_medians(self.cluster, self.centroid_similarity) if self.medians is None else self.medians
        distance: np.ndarray = np.abs(self.centroid_similarity - medians)
        return distance


def check_keep(keep: KeepStrategy | np.ndarray | KeepOrder, *, items: int) -> KeepOrder:
    """Check that strategies are known, and that there is one number per item.

    Args:
        keep: a strategy, numbers, or a sequence of numbers that a strategy may end.
        items: how many there are.

    Returns:
        The order as a sequence.

    Raises:
        TypeError: neither text nor an array, nor a sequence of these.
        ValueError: an unknown strategy or one that is not the last, numbers of another length or of a type that has no
            order, or something else; names what was given and what is possible.
    """
    listed = not isinstance(keep, str) and isinstance(keep, Sequence)
    if keep is None or isinstance(keep, bool | int | float | Mapping):
        known = str(get_args(KeepStrategy))[1:-1]
        message = f"keep: {described(keep)} orders no items; give {known}, or an array with a number per item"
        raise TypeError(message)
    parts = cast("KeepOrder", keep if listed else [keep])
    for index, part in enumerate(parts):
        problem = _problem(part, items)
        if problem is None and isinstance(part, str) and index + 1 < len(parts):
            problem = f"{part!r} is not the last; a strategy settles what the numbers before it leave open"
        if problem is not None:
            message = f"keep{f'[{index}]' if listed else ''}: {problem}"
            raise (ValueError if isinstance(part, str | np.ndarray) else TypeError)(message)
    if not parts:
        message = "keep: nothing orders the items; give a strategy such as 'hard', or numbers"
        raise ValueError(message)
    return parts


def keep_in_words(keep: KeepStrategy | np.ndarray | KeepOrder) -> str:
    """What orders items, as a call is written, without the numbers of arrays."""
    if isinstance(keep, str):
        return repr(keep)
    return "array" if isinstance(keep, np.ndarray) else f"[{', '.join(map(keep_in_words, keep))}]"


def _problem(part: object, items: int) -> str | None:
    if isinstance(part, str):
        known = get_args(KeepStrategy)
        return (
            None if part in known else f"{part!r} is not one of {str(known)[1:-1]}, nor an array with a number per item"
        )
    if not isinstance(part, np.ndarray):
        # A list that mixes signed and unsigned integers becomes floats: only the caller can know which type is right.
        return f"{type(part).__name__} is no NumPy array; give np.asarray(keep, np.int64), or the type it has"
    if part.shape != (items,):
        return f"{part.shape} numbers for {items} items; give one number per item"
    if part.dtype.kind not in "biufmM":
        return f"values of type {part.dtype} are not numbers; give integers, floats or times"
    return None


def keep_keys(keep: KeepOrder, items: ClusteredItems, *, seed: int) -> tuple[np.ndarray, ...]:
    """Numbers by which items are ordered, the most significant first; the smaller, the earlier an item comes.

    Integers are never converted to floats, so that times in nanoseconds keep their exact order. Keys of one call can be
    compared across clusters, those of different calls only where all numbers are the same.

    Args:
        keep: what orders them. NaN, NaT and the masked entries of a masked array come last.
        items: the items.
        seed: of `random`.

    Returns:
        Arrays (n,) of integers, bools or floats; equal in all of them are items that only their ids can order.

    Raises:
        ValueError: as of `check_keep`.
    """
    found: list[np.ndarray] = []
    for part in check_keep(keep, items=len(items.ids)):
        if isinstance(part, np.ndarray):
            found += _number_keys(part)
        elif part == "random":
            found.append(id_hash(items.ids, seed=seed))
        elif part == "middle":
            found.append(items.from_median())
        else:
            found.append(items.centroid_similarity if part == "hard" else -items.centroid_similarity)
    return tuple(found)


def _number_keys(numbers: np.ndarray) -> list[np.ndarray]:
    """The numbers as keys, before them which are missing where some are."""
    values: np.ndarray = np.ma.getdata(numbers)
    missing = np.ma.getmaskarray(numbers)
    if values.dtype.kind in "mM":
        missing, values = missing | np.isnat(values), values.astype(np.int64)
    elif values.dtype.kind == "f":
        missing = missing | np.isnan(values)
    if not missing.any():
        return [values]
    # What lies below a mask must not order anything.
    return [missing, np.where(missing, np.zeros((), values.dtype), values)]


def descending(numbers: np.ndarray) -> np.ndarray:
    """Numbers that order items the other way round: the greatest first, the missing still last.

    Args:
        numbers: (n,) integers, floats, bools or times, possibly masked.

    Returns:
        (n,) of a type that orders them exactly; NaN, NaT and masked entries stay missing.
    """
    values: np.ndarray = np.ma.getdata(numbers)
    missing = np.ma.getmaskarray(numbers)
    if values.dtype.kind == "f":
        directed = np.negative(values)
    else:
        if values.dtype.kind in "mM":
            missing, values = missing | np.isnat(values), values.astype(np.int64)
        # Bitwise not reverses the order of integers, signed or not, without overflow.
        directed = np.invert(values)
    return np.ma.masked_array(directed, mask=missing) if missing.any() else directed


def cluster_medians(cluster: np.ndarray, centroid_similarity: np.ndarray) -> np.ndarray:
    """The median of each item's cluster: of an even number of items the lower of the two in the middle.

    So one similarity is nearest to it whatever the rounding, where between two the last bit would decide.

    Args:
        cluster: (n,) integers.
        centroid_similarity: (n,) float64, of all items of the clusters.

    Returns:
        (n,) float64.
    """
    order = np.lexsort((centroid_similarity, cluster))
    index, counts = np.unique(cluster, return_inverse=True, return_counts=True)[1:]
    middle = np.cumsum(counts) - counts + (counts - 1) // 2
    medians: np.ndarray = centroid_similarity[order[middle]][index]
    return medians


def cluster_order(cluster: np.ndarray, *, keys: Sequence[np.ndarray], ids: np.ndarray) -> np.ndarray:
    """Rows sorted by cluster, then by keys, then by id: the keep-order within each cluster.

    Args:
        cluster: (n,) integers.
        keys: (n,) each, as from `keep_keys`.
        ids: (n,) uint64; they settle what the keys leave equal.

    Returns:
        (n,) int64, indices into the given arrays.
    """
    return np.lexsort((ids, *reversed(keys), cluster))


def overtaken_by_protected(cluster: np.ndarray, order: np.ndarray, protected: np.ndarray) -> np.ndarray:
    """How many unprotected items of its cluster each protected one overtakes by coming first.

    Args:
        cluster: (n,) integers.
        order: (n,) int64, the rows by cluster and within each in the order that they would have without protection.
        protected: (n,) bool.

    Returns:
        (n,) int64, -1 of unprotected rows; by row.
    """
    before = np.cumsum(~protected[order])
    starts = np.searchsorted(cluster[order], cluster[order])
    # Of a cluster's first row, what came before it is all of other clusters.
    of_others = np.concatenate([[0], before])[starts]
    overtaken = np.empty(len(order), dtype=np.int64)
    overtaken[order] = np.where(protected[order], before - of_others, -1)
    return overtaken


def cluster_offsets(cluster: np.ndarray, *, k: int) -> np.ndarray:
    """Where each cluster starts once rows are sorted by cluster: (k + 1,) int64, the last is n."""
    return np.concatenate([[0], np.cumsum(np.bincount(cluster, minlength=k))]).astype(np.int64)
