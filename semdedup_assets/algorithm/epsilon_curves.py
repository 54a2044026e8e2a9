"""Counts by epsilon, by similarity and by cluster: what the paper's figures 3, A7 and A8 are drawn from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from semdedup_assets.algorithm.sampling import id_hash
from semdedup_assets.algorithm.selection import keep_mask
from semdedup_assets.algorithm.similarity import score_clusters
from semdedup_assets.algorithm.unit_rows import unit_rows

EPSILON_GRID = np.concatenate([[0.0], np.geomspace(1e-6, 2.0, 1500)])
"""Epsilons of a curve: some hundred for each power of ten, finer than a picture shows."""

SIMILARITY_EDGES = np.linspace(-1.0, 1.0, 201)
"""Edges of the bins of a similarity histogram."""

# Scores cannot answer everything; the rest is counted on about so many items (at least one whole cluster), and pairs.
_SAMPLE_ITEMS, _SAMPLE_PAIRS = 1 << 18, 1 << 21
# An object store is read a range at a time: one of the largest data sets would otherwise be opened for few clusters.
_FEWEST_RANGES = 4
_SEED = 0
# Small clusters are multiplied together, up to so many rows: more would mostly be pairs of different clusters.
_ROWS_TOGETHER = 64
# Of a product's tile: its columns, its similarities, and its rows, of which each has columns that come before it.
_COLUMNS, _TILE, _ROWS = 1 << 12, 1 << 18, 1 << 7


class EpsilonCounts:
    """Counts the similarities that are at most 1 - epsilon, for many epsilons in one pass."""

    def __init__(self, epsilons: np.ndarray) -> None:
        """Start counting at zero.

        Args:
            epsilons: (m,) ascending.
        """
        self._thresholds = (1.0 - epsilons)[::-1]
        self._counts = np.zeros(len(epsilons) + 1, dtype=np.int64)

    def add(self, similarity: np.ndarray) -> None:
        """Count (n,) float32 similarities, -inf where there is no other item."""
        rank = np.searchsorted(self._thresholds, similarity.astype(np.float64), side="left")
        self._counts += np.bincount(rank, minlength=len(self._counts))

    @property
    def within(self) -> np.ndarray:
        """(m,) int64: how many are at most 1 - epsilon, for each epsilon."""
        return np.cumsum(self._counts[:-1])[::-1]


def similarity_histogram(similarity: np.ndarray) -> np.ndarray:
    """Finite similarities by the bins of `SIMILARITY_EDGES`: (b,) int64; rounding may have put some beyond 1."""
    finite = similarity[np.isfinite(similarity)].clip(-1, 1)
    # Given as a number, the same bins take a tenth of the time: none is searched for.
    return np.histogram(finite, bins=len(SIMILARITY_EDGES) - 1, range=(-1, 1))[0]


def _no_similarities() -> np.ndarray:
    return np.zeros(len(SIMILARITY_EDGES) - 1, dtype=np.int64)


def _fraction(counts: np.ndarray, items: int) -> np.ndarray:
    fraction: np.ndarray = counts / items if items else np.full(len(counts), np.nan)
    return fraction


@dataclass(frozen=True, slots=True)
class ClusterCounts:
    """What the scores of all items add up to: exact at every epsilon of the grid.

    Attributes:
        epsilons: (e,) float64, those that are counted by cluster.
        grid: (m,) float64, ascending: `EPSILON_GRID` and all of `epsilons`.
        kept: of all items, by epsilon of the grid (chain rule).
        sizes: (k,) int64, items of each cluster.
        removed: (e, k) int64, items removed at each of `epsilons` (chain rule).
        similarity: (b,) int64, items by greatest similarity to an earlier one.
    """

    epsilons: np.ndarray
    grid: np.ndarray
    kept: EpsilonCounts
    sizes: np.ndarray
    removed: np.ndarray
    similarity: np.ndarray

    @classmethod
    def empty(cls, epsilons: Sequence[float], *, k: int) -> "ClusterCounts":
        """Start counting at zero.

        Args:
            epsilons: those that are counted by cluster, in any order.
            k: number of clusters.
        """
        own = np.asarray(epsilons, dtype=np.float64)
        grid = np.unique(np.concatenate([EPSILON_GRID, own]))
        sizes, removed = np.zeros(k, dtype=np.int64), np.zeros((len(own), k), dtype=np.int64)
        return cls(own, grid, EpsilonCounts(grid), sizes, removed, _no_similarities())

    def add(self, cluster: np.ndarray, similarity: np.ndarray) -> None:
        """Count some items.

        Args:
            cluster: (n,) integers, ascending.
            similarity: (n,) float32, greatest similarity to an earlier item, -inf for the first of a cluster.
        """
        if len(cluster) == 0:
            return
        self.kept.add(similarity)
        self.similarity[:] += similarity_histogram(similarity)
        first, stop = int(cluster[0]), int(cluster[-1]) + 1
        self.sizes[first:stop] += np.bincount(cluster - first)
        for removed, epsilon in zip(self.removed, self.epsilons.tolist(), strict=True):
            lost = cluster[~keep_mask(similarity, epsilon)] - first
            removed[first:stop] += np.bincount(lost, minlength=stop - first)

    @property
    def items(self) -> int:
        """All items."""
        return int(self.sizes.sum())

    @property
    def empty_clusters(self) -> int:
        """Clusters without an item."""
        return int((self.sizes == 0).sum())

    @property
    def kept_fraction(self) -> np.ndarray:
        """(m,) float64: share of the items that is kept at each epsilon of the grid; NaN without items."""
        return _fraction(self.kept.within, self.items)

    def at_epsilons(self, curve: np.ndarray) -> np.ndarray:
        """(e,): the values at `epsilons` of an (m,) curve over the grid."""
        values: np.ndarray = curve[np.searchsorted(self.grid, self.epsilons)]
        return values


def choose_clusters(sizes: np.ndarray, ranges: list[range]) -> dict[int, set[int]]:
    """Whole clusters to look at: all, or a seeded choice with about 262,144 items.

    Args:
        sizes: (k,) items of each cluster.
        ranges: the clusters of each range that can be read on its own.

    Returns:
        The chosen clusters by the index of their range, ascending; none of them is empty.
    """
    held = np.array([int(sizes[clusters.start : clusters.stop].sum()) for clusters in ranges], dtype=np.int64)
    filled = _shuffled(np.flatnonzero(held))
    enough = int(np.searchsorted(np.cumsum(held[filled]), _SAMPLE_ITEMS)) + 1
    opened = sorted(filled[: max(_FEWEST_RANGES, enough)].tolist())
    within = np.array([cluster for index in opened for cluster in ranges[index] if sizes[cluster]], dtype=np.int64)
    within = _shuffled(within)
    count = max(1, int(np.searchsorted(np.cumsum(sizes[within]), _SAMPLE_ITEMS, side="right")))
    chosen = set(within[:count].tolist())
    return {index: found for index in opened if (found := chosen.intersection(ranges[index]))}


def _shuffled(indices: np.ndarray) -> np.ndarray:
    """Indices in a seeded order that does not depend on which others there are."""
    order: np.ndarray = indices[np.argsort(id_hash(indices.astype(np.uint64), seed=_SEED))]
    return order


@dataclass(slots=True)
class ClusterSample:
    """What the vectors of some whole clusters add up to: whether an item has any duplicate, and similarities of pairs.

    Attributes:
        clusters: the chosen ones, by the index of their range.
        without_duplicate: of their items, by epsilon: those without another item within it, earlier or later.
        pairs_within: pairs of items within the chosen clusters.
        pairs: (b,) int64, pairs by similarity: all of them, or one or two million, those within the parts of clusters
            that are divided at random.
        items: items counted so far.
    """

    clusters: dict[int, set[int]]
    without_duplicate: EpsilonCounts
    pairs_within: int
    pairs: np.ndarray = field(default_factory=_no_similarities)
    items: int = 0

    @classmethod
    def choose(cls, counts: ClusterCounts, ranges: list[range]) -> "ClusterSample":
        """Choose the clusters by `choose_clusters`, and count over the grid of `counts`."""
        chosen = choose_clusters(counts.sizes, ranges)
        sizes = counts.sizes[[cluster for clusters in chosen.values() for cluster in sorted(clusters)]]
        return cls(chosen, EpsilonCounts(counts.grid), int((sizes * (sizes - 1) // 2).sum()))

    @property
    def cluster_indices(self) -> list[int]:
        """The chosen clusters of all ranges, ascending."""
        return sorted(cluster for clusters in self.clusters.values() for cluster in clusters)

    @property
    def with_duplicate(self) -> np.ndarray:
        """(m,) int64: items that have another within each epsilon."""
        return self.items - self.without_duplicate.within

    @property
    def with_duplicate_fraction(self) -> np.ndarray:
        """(m,) float64: share of the sampled items; NaN without items."""
        return _fraction(self.with_duplicate, self.items)

    def add(self, first: int, offsets: np.ndarray, *, earlier: np.ndarray, vectors: Tensor, budget: int) -> None:
        """Count a batch of consecutive clusters.

        Args:
            first: index of the first cluster.
            offsets: (clusters + 1,) int64, where each cluster starts in the rows.
            earlier: (n,) float32, greatest similarity of each row to an earlier one of its cluster.
            vectors: (n, d) unit rows by cluster, in keep-order.
            budget: bytes the tiles may take on their device.
        """
        # In reversed order, later items come earlier.
        later = score_clusters(vectors.flip(0), len(vectors) - offsets[::-1], budget=budget)
        self.without_duplicate.add(np.maximum(earlier, later.similarity[::-1]))
        for similarity in self._pair_similarities(first, offsets, vectors):
            self.pairs += similarity_histogram(similarity)
        self.items += len(vectors)

    def _pair_similarities(self, first: int, offsets: np.ndarray, vectors: Tensor) -> Iterator[np.ndarray]:
        """Similarities of pairs of a batch of clusters, which `add` describes; a tile of a product at a time."""
        order, bounds = random_parts(offsets, first=first, parts=max(1, -(-self.pairs_within // _SAMPLE_PAIRS)))
        device = vectors.device
        by_part = torch.from_numpy(order).to(device)
        part = torch.from_numpy(np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))).to(device)
        for start, stop in _blocks(bounds):
            for first_column in range(start, stop, _COLUMNS):
                columns = torch.arange(first_column, min(first_column + _COLUMNS, stop), device=device)
                # In float64, so that no pair changes its bin with the shape of a tile.
                others = unit_rows(vectors[by_part[columns]], dtype=torch.float64).T
                step = max(1, min(_TILE // len(columns), _ROWS))
                # Each pair once: the row before the column.
                for at in range(start, int(columns[-1]), step):
                    rows = torch.arange(at, min(at + step, stop), device=device)
                    before = max(0, at - first_column)
                    is_pair = (rows[:, None] < columns[before:]) & (part[rows][:, None] == part[columns[before:]])
                    product = unit_rows(vectors[by_part[rows]], dtype=torch.float64) @ others[:, before:]
                    yield product[is_pair].cpu().numpy()


def _blocks(bounds: np.ndarray) -> Iterator[tuple[int, int]]:
    """First row and end of blocks of whole parts: some small ones together, or a larger one."""
    start = 0
    for stop, following in pairwise([*bounds[1:].tolist(), np.inf]):
        if following - start > _ROWS_TOGETHER:
            if stop - start > 1:
                yield start, stop
            start = stop


def random_parts(offsets: np.ndarray, *, first: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide each cluster at random, so that of its pairs one in `parts` lies within a part, whatever its size.

    All items are among these pairs. Were they the pairs of a few items with all others, those few would decide what the
    pairs of a large cluster look like.

    Args:
        offsets: (clusters + 1,) int64, where each cluster starts.
        first: index of the first cluster; an item's part depends on its cluster's index and its rank there.
        parts: of each cluster; some may be empty.

    Returns:
        (n,) int64, the rows by cluster and part; and (p + 1,) int64, where each part that is not empty starts in them.
    """
    sizes = np.diff(offsets)
    cluster = np.repeat(first + np.arange(len(sizes)), sizes).astype(np.uint64)
    rank = (np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)).astype(np.uint64)
    part = id_hash((cluster << np.uint64(32)) | rank, seed=_SEED) % np.uint64(parts)
    order = np.lexsort((part, cluster))
    is_first = (np.diff(cluster[order], prepend=0) != 0) | (np.diff(part[order], prepend=0) != 0)
    is_first[:1] = True
    return order, np.append(np.flatnonzero(is_first), len(order))
