"""Counts by epsilon, by similarity and by cluster: what the paper's figures 3, A7 and A8 are drawn from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from semdedup_assets.algorithm.sampling import id_hash
from semdedup_assets.algorithm.selection import keep_mask
from semdedup_assets.algorithm.similarity import greatest_similarity, score_clusters
from semdedup_assets.algorithm.unit_rows import unit_rows

EPSILON_GRID = np.concatenate([[0.0], np.geomspace(1e-6, 2.0, 1500)])
"""Epsilons of a curve: some hundred for each power of ten, finer than a picture shows."""

SIMILARITY_EDGES = np.linspace(-1.0, 1.0, 201)
"""Edges of the bins of a similarity histogram."""

# Scores cannot answer everything; the rest is counted on clusters of about so many items (at least one), and so many
# of their pairs.
_SAMPLE_ITEMS, _SAMPLE_PAIRS = 1 << 18, 1 << 21
# Of these clusters' items so many are compared that it takes this many pairs, or this share of all that scores take:
# figures are to cost less than the scores that they explain.
_COMPARED_PAIRS, _COMPARED_SHARE = 1 << 23, 1 / 4
# An object store is read a range at a time: one of the largest data sets would otherwise be opened for few clusters.
_FEWEST_RANGES = 4
_SEED = 0
# Numbers of the rows, and of the products, that are worked on together; and clusters for which one product each would
# cost more in overheads than in arithmetic.
_TOGETHER, _SMALL = 1 << 20, 640


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
    """What the vectors of some clusters add up to: whether an item has any duplicate, and similarities of pairs.

    Attributes:
        clusters: the chosen ones, by the index of their range.
        without_duplicate: of the items compared, by epsilon: those without another item within it, earlier or later.
        pairs_within: pairs of items within the chosen clusters.
        one_in: of so many items of each cluster, one drawn at random is compared with all others of its cluster.
        pairs: (b,) int64, pairs by similarity: all of them, or one or two million, those within the parts of clusters
            that are divided at random.
        items: items compared so far.
    """

    clusters: dict[int, set[int]]
    without_duplicate: EpsilonCounts
    pairs_within: int
    one_in: int = 1
    pairs: np.ndarray = field(default_factory=_no_similarities)
    items: int = 0

    @classmethod
    def choose(cls, counts: ClusterCounts, ranges: list[range]) -> "ClusterSample":
        """Choose the clusters by `choose_clusters`, and count over the grid of `counts`."""
        chosen = choose_clusters(counts.sizes, ranges)
        sizes = counts.sizes[[cluster for clusters in chosen.values() for cluster in sorted(clusters)]]
        within = _pairs_within(sizes)
        compared = max(_COMPARED_PAIRS, int(_COMPARED_SHARE * _pairs_within(counts.sizes)))
        return cls(chosen, EpsilonCounts(counts.grid), within, max(1, -(-within // compared)))

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
        drawn = _item_hash(offsets, first) % np.uint64(self.one_in) == 0
        later = _greatest_to_later(vectors, offsets, drawn, budget=budget)
        self.without_duplicate.add(np.maximum(earlier[drawn], later))
        for similarity in self._pair_similarities(first, offsets, vectors):
            self.pairs += similarity_histogram(similarity)
        self.items += len(later)

    def _pair_similarities(self, first: int, offsets: np.ndarray, vectors: Tensor) -> Iterator[np.ndarray]:
        """Similarities of pairs of a batch of clusters, which `add` describes; of some parts at a time."""
        order, bounds = random_parts(offsets, first=first, parts=max(1, -(-self.pairs_within // _SAMPLE_PAIRS)))
        sizes = np.diff(bounds)
        for parts in _alike_in_size(sizes, dimension=vectors.shape[1]):
            rank, inside, places = _padded(bounds[parts], sizes[parts])
            members = torch.from_numpy(order[places]).to(vectors.device)
            # In float64, so that no pair changes its bin with the shape of a product.
            rows = unit_rows(vectors[members.view(-1)], dtype=torch.float64).view(*members.shape, -1)
            # Each pair once: the column before the row.
            is_pair = torch.from_numpy(inside[:, :, None] & (rank < rank[:, None])).to(vectors.device)
            yield torch.bmm(rows, rows.mT)[is_pair].cpu().numpy()


def _alike_in_size(sizes: np.ndarray, *, dimension: int) -> Iterator[np.ndarray]:
    """Indices of groups of two rows or more that are worked on together: of about equal size, so of little padding."""
    order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes > 1)]
    start = 0
    while start < len(order):
        width = int(sizes[order[start]])
        stop = start + max(1, _TOGETHER // (width * (width + dimension)))
        yield order[start:stop]
        start = stop


def _padded(starts: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of (g,) groups of rows: (m,) ranks in a group, (g, m) which of them there are, and (g, m) rows, else the first."""
    rank = np.arange(sizes.max())
    inside = rank < sizes[:, None]
    return rank, inside, starts[:, None] + np.where(inside, rank, 0)


def _pairs_within(sizes: np.ndarray) -> int:
    return int((sizes * (sizes - 1) // 2).sum())


def _greatest_to_later(vectors: Tensor, offsets: np.ndarray, drawn: np.ndarray, *, budget: int) -> np.ndarray:
    """Greatest similarity of each of the rows that are drawn, a mask, to a later one of its cluster: (m,) float32."""
    # In reversed order, later items come earlier.
    if drawn.all():
        return score_clusters(vectors.flip(0), len(vectors) - offsets[::-1], budget=budget).similarity[::-1]
    found, sizes = np.full(len(drawn), -np.inf, dtype=np.float32), np.diff(offsets)
    for cluster in np.flatnonzero(sizes > _SMALL).tolist():
        start, stop = offsets[cluster : cluster + 2].tolist()
        members, later = vectors[start:stop].flip(0), np.flatnonzero(drawn[start:stop][::-1])
        if len(later):
            similarity = greatest_similarity(members[later], members, visible=later, budget=budget).similarity
            found[stop - 1 - later] = similarity
    for clusters in _alike_in_size(np.where(sizes > _SMALL, 0, sizes), dimension=vectors.shape[1]):
        _compare_small(vectors, offsets[clusters], sizes[clusters], drawn, found)
    of_drawn: np.ndarray = found[drawn]
    return of_drawn


def _compare_small(
    vectors: Tensor, starts: np.ndarray, sizes: np.ndarray, drawn: np.ndarray, found: np.ndarray
) -> None:
    """Write the greatest similarities to later rows of some small clusters to `found`, where they are drawn."""
    rank, inside, places = _padded(starts, sizes)
    wanted = drawn[places] & inside
    # The ranks that are drawn come first, as many columns as any cluster has of them.
    query = np.argsort(~wanted, axis=1, kind="stable")[:, : wanted.sum(1).max()]
    rows = unit_rows(vectors[torch.from_numpy(places).to(vectors.device).view(-1)]).view(*places.shape, -1)
    queries = rows[torch.arange(len(starts), device=rows.device)[:, None], torch.from_numpy(query).to(rows.device)]
    is_later = torch.from_numpy(inside[:, None] & (rank > query[:, :, None])).to(rows.device)
    greatest = torch.bmm(queries, rows.mT).masked_fill_(~is_later, -torch.inf).amax(2).cpu().numpy()
    is_drawn = np.take_along_axis(wanted, query, 1)
    found[np.take_along_axis(places, query, 1)[is_drawn]] = greatest[is_drawn]


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
    cluster = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    part = _item_hash(offsets, first) % np.uint64(parts)
    order = np.lexsort((part, cluster))
    is_first = (np.diff(cluster[order], prepend=-1) != 0) | (np.diff(part[order], prepend=0) != 0)
    return order, np.append(np.flatnonzero(is_first), len(order))


def _item_hash(offsets: np.ndarray, first: int) -> np.ndarray:
    """(n,) uint64 of the items of clusters: of the index of its cluster, counted from `first`, and its rank there."""
    sizes = np.diff(offsets)
    cluster = np.repeat(first + np.arange(len(sizes)), sizes).astype(np.uint64)
    rank = (np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)).astype(np.uint64)
    return id_hash((cluster << np.uint64(32)) | rank, seed=_SEED)
