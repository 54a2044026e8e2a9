"""Which share of all duplicates the search within clusters finds (SemDeDup, appendix A.2), and what more would find.

Counts are of items that have a duplicate, and of duplicates as each item sees them: a pair counts once for each of its
two items. Neither depends on a keep-order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from semdedup_assets.algorithm.budget import tile_shape
from semdedup_assets.algorithm.neighbour_clusters import centroid_distances, next_nearest, own_similarity, within_reach
from semdedup_assets.algorithm.parallel import in_parallel
from semdedup_assets.algorithm.sampling import id_hash
from semdedup_assets.algorithm.unit_rows import UnitRows, full_float32, row_cosine

NEXT_CLUSTERS = (0, 1, 2, 4, 8, 16)
"""How many next-nearest clusters of each item are searched beside its own, for the cost of a repair."""

NEIGHBOURS = 20
"""Clusters that the paper searches beside a sampled one (appendix A.2)."""

_MOST_NEXT = NEXT_CLUSTERS[-1]
# Similarities as near to a threshold are computed once more in float64.
_CLOSE = 1e-5
_RESAMPLES, _LEVELS = 1000, (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class ClusterRows:
    """Some items with their clusters.

    Attributes:
        ids: (n,) uint64.
        cluster: (n,) integers, ascending.
        vectors: (n, d) unit rows.
    """

    ids: np.ndarray
    cluster: np.ndarray
    vectors: Tensor


@dataclass(frozen=True, slots=True)
class FoundShare:
    """How much of what there is was found, at each of e epsilons.

    Attributes:
        found: (e,) int64.
        total: (e,) int64, found among all clusters that were compared.
        share: (e,) float64, found / total; NaN where there is nothing to find.
        low: (e,) float64, 2.5 % of the shares of resampled clusters; the share itself where all clusters were sampled.
        high: (e,) float64, 97.5 %.
    """

    found: np.ndarray
    total: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, slots=True)
class SearchedClusters:
    """What is found if each item's next-nearest clusters are searched too.

    Attributes:
        clusters: how many of them; 0: the own cluster alone.
        items: with a duplicate.
        pairs: duplicates, as each item sees them.
        comparisons: (e,) float64, comparisons with earlier items, for each item on average; a cluster out of reach
            (`within_reach`) is not searched.
    """

    clusters: int
    items: FoundShare
    pairs: FoundShare
    comparisons: np.ndarray


@dataclass(frozen=True, slots=True)
class DetectionEfficiency:
    """The share of duplicates that lie in the cluster of the item that they are duplicates of: η.

    Attributes:
        epsilons: (e,) float64, ascending.
        clusters: (c,) int64, the sampled clusters.
        searched: for 0, 1, 2, 4, … of each item's next-nearest clusters.
    """

    epsilons: np.ndarray
    clusters: np.ndarray = field(repr=False)
    searched: tuple[SearchedClusters, ...] = field(repr=False)

    @property
    def items(self) -> FoundShare:
        """Of the items that have a duplicate, those that have one in their own cluster."""
        return self.searched[0].items

    @property
    def pairs(self) -> FoundShare:
        """Of the duplicates of all items, those in the item's own cluster."""
        return self.searched[0].pairs


def sample_clusters(k: int, *, most: int | None, seed: int) -> np.ndarray:
    """A seeded choice of clusters.

    Args:
        k: number of clusters.
        most: how many; None: all.
        seed: of the choice.

    Returns:
        (c,) int64, ascending.
    """
    every = np.arange(k, dtype=np.int64)
    if most is None or most >= k:
        return every
    hashes = id_hash(every.astype(np.uint64), seed=seed)
    return np.sort(np.argsort(hashes, kind="stable")[:most])


class DuplicateCounter:
    """Counts the duplicates of sampled items among the clusters that it is given, by epsilon and by their cluster."""

    def __init__(
        self,
        items: ClusterRows,
        *,
        centroids: Tensor,
        epsilons: Sequence[float] | np.ndarray,
        neighbours: int | None,
        budget: int,
    ) -> None:
        """Find the clusters nearest to each sampled one, and to each of its items.

        Args:
            items: of the sampled clusters.
            centroids: (k, d) float32 unit rows on the same device.
            epsilons: in [0, 2].
            neighbours: clusters that each sampled one is compared with beside itself, nearest first; None: all.
            budget: bytes that tiles may take.
        """
        self.epsilons = np.unique(np.asarray(epsilons, dtype=np.float64))
        self._items, self._budget = items, budget
        self._centroids = centroids.cpu().numpy()
        self._rows = UnitRows(items.vectors, budget=budget // 4)
        self._next = next_nearest(items.vectors, items.cluster, centroids, most=_MOST_NEXT, budget=budget // 4)
        self._own_similarity = own_similarity(items.vectors, items.cluster.astype(np.int64), centroids)
        device = items.vectors.device
        self._ids = torch.as_tensor(items.ids.view(np.int64), device=device)
        # Ascending thresholds; a similarity above j of them is a duplicate at the j largest epsilons.
        self._thresholds = torch.as_tensor(1.0 - self.epsilons[::-1].copy(), device=device)
        self._counts = torch.zeros(
            (len(items.ids), len(NEXT_CLUSTERS) + 1, len(self.epsilons)), dtype=torch.int32, device=device
        )
        self._searchers = _searchers(items.cluster, centroids, neighbours, budget // 4)

    @property
    def needed(self) -> np.ndarray:
        """(m,) int64, ascending: the clusters that the sampled ones are compared with, themselves among them."""
        return (
            np.arange(len(self._centroids)) if self._searchers is None else np.array(sorted(self._searchers), np.int64)
        )

    def add(self, candidates: ClusterRows) -> None:
        """Compare the items of further clusters with those of the sampled clusters that search them.

        Args:
            candidates: of whole clusters, each given once; an item is no duplicate of itself.
        """
        if self._searchers is None:
            self._add(np.arange(len(self._items.ids)), candidates)
            return
        clusters, starts = np.unique(candidates.cluster, return_index=True)
        for cluster, start, stop in zip(clusters.tolist(), starts, [*starts[1:], len(candidates.ids)], strict=True):
            if cluster in self._searchers:
                here = slice(int(start), int(stop))
                one = ClusterRows(candidates.ids[here], candidates.cluster[here], candidates.vectors[here])
                self._add(self._searchers[cluster], one)

    def _add(self, wanted: np.ndarray, candidates: ClusterRows) -> None:
        """Compare the items at (m,) positions with candidates."""
        if len(wanted) == 0 or len(candidates.ids) == 0 or len(self.epsilons) == 0:
            return
        on_cpu = self._ids.device.type == "cpu"
        shape = tile_shape(self._budget // 8, dimension=self._rows.dimension, gpu=not on_cpu)
        columns = _Columns.of(candidates, width=shape.columns, budget=self._budget // 4)
        starts = range(0, len(wanted), shape.rows)
        # A tile, which of it are duplicates, and these as indices and numbers.
        tile_bytes = 40 * shape.rows * shape.columns
        with full_float32():
            in_parallel(
                lambda start: self._compare(wanted[start : start + shape.rows], columns),
                starts,
                most=self._budget // 2 // tile_bytes if on_cpu else 1,
            )

    def _compare(self, wanted: np.ndarray, columns: "_Columns") -> None:
        """Count the duplicates of a tile's height of items."""
        device = self._ids.device
        part = torch.as_tensor(wanted, device=device)
        rows = self._rows.take(part)
        kinds = torch.as_tensor(self._kinds(wanted, columns), device=device)
        least = float(self._thresholds[0]) - _CLOSE
        size = self._counts[0].numel()
        for left in range(0, len(columns.rows), columns.width):
            tile = rows @ columns.rows[left : left + columns.width].T  # (b, m)
            query, column = (tile > least).nonzero(as_tuple=True)
            if len(query) == 0:
                continue
            similarity = tile[query, column].double()
            column = column + left
            above = self._above(similarity, rows, columns.rows, (query, column))
            counted = (above > 0) & (self._ids[part[query]] != columns.ids[column])
            query, column, above = query[counted], column[counted], above[counted]
            kind = kinds[query, columns.slot[column]]
            flat = (query * len(self._counts[0]) + kind) * len(self.epsilons) + len(self.epsilons) - above
            counts = torch.bincount(flat, minlength=len(rows) * size).view(len(rows), *self._counts.shape[1:])
            self._counts[part] += counts.int()

    def _above(self, similarity: Tensor, rows: Tensor, columns: UnitRows, pairs: tuple[Tensor, Tensor]) -> Tensor:
        """(h,) int64: how many thresholds the similarity of each pair exceeds; close calls are decided in float64."""
        lower = torch.searchsorted(self._thresholds, similarity - _CLOSE)
        close = (lower != torch.searchsorted(self._thresholds, similarity + _CLOSE)).nonzero().squeeze(1)
        if len(close):
            query, column = (each[close] for each in pairs)
            # Rounded as the scores of a selection are.
            exact = row_cosine(rows[query], columns.take(column)).float().double()
            lower[close] = torch.searchsorted(self._thresholds, exact)
        return lower

    def _kinds(self, wanted: np.ndarray, columns: "_Columns") -> np.ndarray:
        """(b, c) int64: for each item and cluster, the first entry of `NEXT_CLUSTERS` that searches it, or none."""
        kinds = np.full((len(wanted), len(columns.clusters)), len(NEXT_CLUSTERS), dtype=np.int64)
        near = self._next.cluster[wanted]
        own = self._items.cluster[wanted]
        ranks = np.searchsorted(NEXT_CLUSTERS, np.arange(near.shape[1] + 1))
        every = np.arange(len(wanted))
        for rank, cluster in enumerate([own, *near.T]):
            slot = np.minimum(np.searchsorted(columns.clusters, cluster), len(columns.clusters) - 1)
            here = columns.clusters[slot] == cluster
            kinds[every[here], slot[here]] = ranks[rank]
        return kinds

    def result(self, sizes: np.ndarray, *, all_clusters: bool, seed: int) -> DetectionEfficiency:
        """What was found, once all clusters are given.

        Args:
            sizes: (k,) items of each cluster, for the cost.
            all_clusters: whether every cluster is sampled: there is nothing to resample then.
            seed: of the resampling.
        """
        clusters, index = np.unique(self._items.cluster, return_inverse=True)
        # What is within a small epsilon is within every larger one; likewise clusters.
        counts = self._counts.long().cumsum(1).cumsum(2).cpu().numpy()  # (n, kinds, e)
        pairs, items = (
            _sums(each, index.reshape(-1), len(clusters)) for each in (counts, (counts > 0).astype(np.int64))
        )
        comparisons = self._comparisons(sizes.astype(np.float64))

        def found(counted: np.ndarray, kind: int) -> FoundShare:
            return _share(counted[:, kind], counted[:, -1], all_clusters=all_clusters, seed=seed)

        searched = tuple(
            SearchedClusters(most, found(items, kind), found(pairs, kind), comparisons[kind])
            for kind, most in enumerate(NEXT_CLUSTERS)
        )
        return DetectionEfficiency(self.epsilons, clusters.astype(np.int64), searched)

    def _comparisons(self, sizes: np.ndarray) -> np.ndarray:
        """(p, e): comparisons of an item on average; of a cluster's items, half come earlier."""
        own, near = self._items.cluster, self._next
        total = np.zeros((len(NEXT_CLUSTERS), len(self.epsilons)))
        if len(own) == 0:
            return total
        total += np.maximum(sizes[own] - 1, 0).sum()
        similarity = self._own_similarity
        for rank, cluster in enumerate(near.cluster.T):
            distance = centroid_distances(self._centroids, own, cluster)[:, None]
            reached = within_reach((similarity - near.similarity[:, rank])[:, None], distance, self.epsilons)
            first = int(np.searchsorted(NEXT_CLUSTERS, rank + 1))
            total[first:] += sizes[cluster] @ reached
        return total / 2 / len(own)


def _searchers(
    cluster: np.ndarray, centroids: Tensor, neighbours: int | None, budget: int
) -> dict[int, np.ndarray] | None:
    """The positions of the items that search each cluster; None where all items search all."""
    if neighbours is None or neighbours >= len(centroids) - 1:
        return None
    sampled, starts = np.unique(cluster, return_index=True)
    rows = centroids[torch.as_tensor(sampled.astype(np.int64), device=centroids.device)]
    near = next_nearest(rows, sampled, centroids, most=neighbours, budget=budget).cluster
    found: dict[int, list[np.ndarray]] = {}
    for own, others, start, stop in zip(sampled, near, starts, [*starts[1:], len(cluster)], strict=True):
        for other in [own, *others]:
            found.setdefault(int(other), []).append(np.arange(start, stop))
    return {other: np.concatenate(parts) for other, parts in found.items()}


@dataclass(frozen=True, slots=True)
class _Columns:
    """Candidates, ready to be compared with: their clusters, and which of these each is of."""

    rows: UnitRows
    ids: Tensor
    clusters: np.ndarray
    slot: Tensor
    width: int

    @classmethod
    def of(cls, candidates: ClusterRows, *, width: int, budget: int) -> "_Columns":
        device = candidates.vectors.device
        clusters, slot = np.unique(candidates.cluster, return_inverse=True)
        return cls(
            UnitRows(candidates.vectors, budget=budget),
            torch.as_tensor(candidates.ids.view(np.int64), device=device),
            clusters,
            torch.as_tensor(slot.reshape(-1), device=device),
            width,
        )


def _sums(counts: np.ndarray, index: np.ndarray, clusters: int) -> np.ndarray:
    """(c, kinds, e): the sums of (n, kinds, e) counts by cluster."""
    total = np.zeros((clusters, *counts.shape[1:]), dtype=np.int64)
    np.add.at(total, index, counts)
    return total


def _share(found: np.ndarray, total: np.ndarray, *, all_clusters: bool, seed: int) -> FoundShare:
    """The share of (c, e) counts, with the interval that resampled clusters give (percentile bootstrap)."""
    sums = found.sum(0), total.sum(0)
    share = _ratio(*sums)
    if all_clusters or len(found) == 0:
        return FoundShare(*sums, share, share, share)
    weights = np.random.default_rng(seed).multinomial(len(found), np.full(len(found), 1 / len(found)), size=_RESAMPLES)
    shares = _ratio(weights @ found, weights @ total)
    low, high = np.full((2, len(share)), np.nan)
    for column in np.flatnonzero(np.isfinite(share)):
        drawn = shares[np.isfinite(shares[:, column]), column]
        low[column], high[column] = np.quantile(drawn, _LEVELS)
    return FoundShare(*sums, share, low, high)


def _ratio(found: np.ndarray, total: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(found, total, out=np.full(np.shape(total), np.nan), where=total > 0)
    return ratio
