"""Groups of items that are equal, or near each other by fingerprints: each known by its first member.

All functions return (n,) int64, for each item the position of the first item of its group; that one is kept. Where
positions follow ids, a result does not depend on shards or batches.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np

from semdedup_assets.algorithm.budget import rows_within

_MISSED = 1e-5
"""How likely a pair of texts exactly at the threshold may share no band."""

_HASH_BITS = 64


def first_of_equal(rows: np.ndarray) -> np.ndarray:
    """Groups of equal rows.

    Args:
        rows: (n, w) integers.
    """
    n = len(rows)
    # By position last, so that the first of equal rows is the first in their order.
    order = np.lexsort((np.arange(n), *rows.T))
    sorted_rows = rows[order]
    is_new = np.r_[True, (sorted_rows[1:] != sorted_rows[:-1]).any(axis=1)][:n]
    first = np.empty(n, np.int64)
    first[order] = order[np.maximum.accumulate(np.where(is_new, np.arange(n), 0))]
    return first


def band_rows(permutations: int, *, threshold: float) -> int:
    """Entries of a MinHash signature that make a band: as many as leave hardly a pair without a band in common.

    Of two texts whose n-grams have Jaccard similarity s, a band of r entries is equal with probability s**r. The more
    entries, the fewer texts are compared in vain. Lee et al. (2021, appendix A) take 20 of 9,000 at 0.8.

    Args:
        permutations: entries of a signature.
        threshold: Jaccard similarity in (0, 1]; a pair at it is missed once in 100,000 times, a nearer one less.
    """
    fitting = [
        rows for rows in range(1, permutations + 1) if (1 - threshold**rows) ** (permutations // rows) <= _MISSED
    ]
    return max(fitting, default=1)


def band_hashes(signatures: np.ndarray, *, rows: int) -> np.ndarray:
    """A hash of each band of signatures; equal bands have equal ones.

    Args:
        signatures: (n, p) uint32.
        rows: entries of a band; those left over at the end are in none.

    Returns:
        (p // rows, n) uint64.
    """
    bands = signatures.shape[1] // rows
    words = signatures[:, : bands * rows].reshape(len(signatures), bands, rows).astype(np.uint64)
    odd = np.random.default_rng(0).integers(0, 1 << 63, rows, np.uint64) * np.uint64(2) + np.uint64(1)
    hashes: np.ndarray = ((words ^ (words << np.uint64(31))) * odd).sum(axis=2, dtype=np.uint64)
    return np.ascontiguousarray(hashes.T)


def near_texts(signatures: np.ndarray, bands: Iterable[np.ndarray], *, threshold: float, budget: int) -> np.ndarray:
    """Groups of near-duplicate texts: connected by pairs of an estimated Jaccard similarity (Lee et al. 2021, NearDup).

    Args:
        signatures: (n, p) uint32, MinHash; may lie in a file.
        bands: (n,) uint64 each, as from `band_hashes`; only texts with an equal band are compared.
        threshold: share of equal entries from which on two texts are near duplicates.
        budget: bytes that comparing may take.
    """

    def near(item: int, others: np.ndarray) -> np.ndarray:
        shares: np.ndarray = (signatures[others] == signatures[item]).mean(axis=1)
        return shares >= threshold

    most = rows_within(budget, row_bytes=5 * signatures.shape[1])
    # Texts with one signature are compared once: a bucket of a million copies has no pairs.
    first = _first_of_equal_signatures(signatures, budget=budget)
    distinct = np.flatnonzero(first == np.arange(len(first)))

    def near_distinct(item: int, others: np.ndarray) -> np.ndarray:
        return near(int(distinct[item]), distinct[others])

    found = connected((band[distinct] for band in bands), near_distinct, items=len(distinct), most=most)
    number = np.empty(len(first), np.int64)
    number[distinct] = np.arange(len(distinct))
    connected_first: np.ndarray = distinct[found[number[first]]]
    return connected_first


def _first_of_equal_signatures(signatures: np.ndarray, *, budget: int) -> np.ndarray:
    n, permutations = signatures.shape
    odd = np.random.default_rng(1).integers(0, 1 << 63, (2, permutations), np.uint64) * np.uint64(2) + np.uint64(1)
    hashes, size = np.empty((n, 2), np.uint64), rows_within(budget, row_bytes=3 * 8 * permutations)
    for start in range(0, n, size):
        words = signatures[start : start + size].astype(np.uint64)
        words ^= words << np.uint64(31)
        for side in range(2):
            hashes[start : start + size, side] = (words * odd[side]).sum(axis=1, dtype=np.uint64)
    return first_of_equal(hashes)


def near_hashes(hashes: np.ndarray, *, distance: int, budget: int) -> np.ndarray:
    """Groups of hashes connected by pairs that differ in few bits; no such pair is missed.

    Of two hashes that differ in d bits, cut into d + 1 parts, at least one part is equal (multi-index hashing, Norouzi
    et al. 2012): only hashes with an equal part are compared.

    Args:
        hashes: (n,) uint64.
        distance: bits in which two hashes may differ.
        budget: bytes that comparing may take.
    """
    distinct, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    # Numbered by where they first stand, so that the first of connected hashes is that of the first item.
    rank = np.argsort(first, kind="stable")
    distinct, first = distinct[rank], first[rank]
    if distance >= _HASH_BITS:
        return np.zeros(len(hashes), np.int64)

    def near(item: int, others: np.ndarray) -> np.ndarray:
        return differing_bits(distinct[others], distinct[item]) <= distance

    most = rows_within(budget, row_bytes=4 * 8)
    found = connected(_parts(distinct, distance + 1), near, items=len(distinct), most=most)
    number = np.empty(len(rank), np.int64)
    number[rank] = np.arange(len(rank))
    connected_first: np.ndarray = first[found[number[group.reshape(-1)]]]
    return connected_first


def differing_bits(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) int64: in how many bits (n,) uint64 hashes differ from one, or from (n,) others."""
    bits = hashes ^ others
    for shift, mask in ((1, 0x5555555555555555), (2, 0x3333333333333333), (4, 0x0F0F0F0F0F0F0F0F)):
        bits = (bits & np.uint64(mask)) + ((bits >> np.uint64(shift)) & np.uint64(mask))
    with np.errstate(over="ignore"):
        counts: np.ndarray = ((bits * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64)
    return counts


def _parts(hashes: np.ndarray, count: int) -> Iterable[np.ndarray]:
    """Hashes cut into parts of about equal width."""
    bounds = np.linspace(0, _HASH_BITS, count + 1).astype(int).tolist()
    for low, high in pairwise(bounds):
        yield (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)


def connected(
    keys: Iterable[np.ndarray], near: Callable[[int, np.ndarray], np.ndarray], *, items: int, most: int
) -> np.ndarray:
    """Connected components of the graph whose edges are near pairs with a key in common.

    Pairs that are connected already are not compared. At worst, all pairs of a key are.

    Args:
        keys: (n,) integers each.
        near: of an item's position and (m,) positions of others, which of these are near it: (m,) bool.
        items: n.
        most: others that are compared at a time.
    """
    first = np.arange(items, dtype=np.int64)
    for key in keys:
        order = np.argsort(key, kind="stable")
        starts = np.flatnonzero(np.r_[True, key[order][1:] != key[order][:-1]][:items])
        if len(starts) == items:
            continue
        roots = first[order]
        lowest, highest = np.minimum.reduceat(roots, starts), np.maximum.reduceat(roots, starts)
        stops = np.r_[starts[1:], items]
        for group in np.flatnonzero(lowest != highest).tolist():
            _connect(first, order[starts[group] : stops[group]], near, most)
        _flatten(first)
    return first


def _connect(first: np.ndarray, members: np.ndarray, near: Callable[[int, np.ndarray], np.ndarray], most: int) -> None:
    """Connect what is near of the items of one key; `first` holds an earlier member of each one's component."""
    roots = _roots(first, members)
    for index in range(len(members) - 1):
        others = members[index + 1 :][roots[index + 1 :] != roots[index]]
        item, was_united = int(members[index]), False
        for start in range(0, len(others), most):
            part = others[start : start + most]
            for other in part[near(item, part)].tolist():
                was_united |= _unite(first, item, other)
        if was_united:
            roots = _roots(first, members)
            if (roots == roots[0]).all():
                return


def _unite(first: np.ndarray, item: int, other: int) -> bool:
    low, high = sorted((_root(first, item), _root(first, other)))
    first[high] = low
    return low != high


def _root(first: np.ndarray, item: int) -> int:
    while (above := int(first[item])) != item:
        first[item] = first[above]
        item = above
    return item


def _roots(first: np.ndarray, items: np.ndarray) -> np.ndarray:
    found: np.ndarray = first[items]
    while not np.array_equal(above := first[found], found):
        found = above
    return found


def _flatten(first: np.ndarray) -> None:
    while not np.array_equal(above := first[first], first):
        first[:] = above
