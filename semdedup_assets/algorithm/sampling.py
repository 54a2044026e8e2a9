"""Seeded choices that depend on an item's id alone: never on batches, shards or their order."""

import math
from dataclasses import dataclass

import numpy as np

# Below 2**63, a checksum is an int64 wherever it is stored; it divides the 2**64 at which NumPy's sums wrap.
CHECKSUM_MODULUS = 1 << 63

# Below this many vectors a cluster, faiss itself warns that centroids are poorly determined.
FEWEST_PER_CLUSTER = 39

_CHECKSUM_SEED = 0x5EED
_SPARE = 6.0  # standard deviations: of a million items to choose, six in a thousand are candidates too many


def id_hash(ids: np.ndarray, *, seed: int) -> np.ndarray:
    """A pseudo-random number for each id (SplitMix64, Steele et al. 2014).

    Args:
        ids: (n,) uint64.
        seed: any non-negative integer; another seed gives another, unrelated number.

    Returns:
        (n,) uint64, uniform over all 64 bits, distinct for distinct ids.
    """
    state = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))
    return _mix(ids.astype(np.uint64) ^ state)


def id_checksum(ids: np.ndarray) -> int:
    """A number by which two sets of ids differ, whatever their order: the sum of their hashes.

    The checksums of parts add up, modulo `CHECKSUM_MODULUS`, to the checksum of the whole.

    Args:
        ids: (n,) uint64.

    Returns:
        At least 0 and less than `CHECKSUM_MODULUS`; 0 for no id.
    """
    total = int(id_hash(ids, seed=_CHECKSUM_SEED).sum(dtype=np.uint64))
    return total % CHECKSUM_MODULUS


def _mix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


@dataclass
class UniformSample:
    """A uniform sample without replacement of a stream of ids: those with the smallest hashes.

    The same items are chosen whatever the order in which their ids arrive.

    Attributes:
        size: items to choose at most; None chooses all.
        seed: of the choice.
        seen: items that have arrived.
    """

    size: int | None
    seed: int
    seen: int = 0

    def __post_init__(self) -> None:
        self._ids = [np.empty(0, dtype=np.uint64)]
        self._hashes = [np.empty(0, dtype=np.uint64)]
        self._count, self._limit = 0, np.uint64(np.iinfo(np.uint64).max)

    def add(self, ids: np.ndarray) -> None:
        """Add (n,) uint64 ids."""
        self.seen += len(ids)
        hashes = id_hash(ids, seed=self.seed)
        near = hashes <= self._limit
        self._ids.append(ids[near].astype(np.uint64))
        self._hashes.append(hashes[near])
        self._count += len(self._ids[-1])
        # A choice reads all that are held, so it waits until they are two times as many as are wanted.
        if self.size is not None and self._count > 2 * self.size:
            self._choose(self.size)

    @property
    def ids(self) -> np.ndarray:
        """The chosen ids, (m,) uint64, ascending."""
        self._choose(self.size)
        return np.sort(self._ids[0])

    def _choose(self, size: int | None) -> None:
        """Keep the ids with the smallest hashes, and remember how small one must be."""
        ids, hashes = np.concatenate(self._ids), np.concatenate(self._hashes)
        if size is not None and len(ids) > size:
            smallest = np.argpartition(hashes, size)[:size]
            ids, hashes = ids[smallest], hashes[smallest]
            self._limit = hashes.max()
        self._ids, self._hashes, self._count = [ids], [hashes], len(ids)


def with_spare(count: int) -> int:
    """More than what a random number of items with this mean almost ever is: one time in 1,000, of large ones in 10**9."""
    return count + math.ceil(_SPARE * math.sqrt(count))


def candidate_limit(size: int | None, items: int) -> int:
    """What the hash of an item must not exceed to be a candidate for a sample, whatever the other items are.

    Args:
        size: of the sample; None: all.
        items: in all.

    Returns:
        Less than 2**64. On average `with_spare(size)` items are candidates; fewer than `size` are one time in 1,000, of
        large samples one in 10**9.
    """
    most = (1 << 64) - 1
    return most if size is None or with_spare(size) >= items else (with_spare(size) << 64) // items


def smallest(hashes: np.ndarray, size: int | None) -> np.ndarray:
    """(n,) bool: which of (n,) uint64 distinct hashes are among the smallest `size`; None: all are."""
    if size is None or len(hashes) <= size:
        return np.ones(len(hashes), dtype=bool)
    chosen: np.ndarray = hashes <= np.partition(hashes, size - 1)[size - 1]
    return chosen
