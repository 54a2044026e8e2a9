"""Duplicates in other clusters: which items can have some there, and the search for the earlier ones."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from semdedup_assets.algorithm.budget import rows_within
from semdedup_assets.algorithm.neighbour_clusters import centroid_distances, next_nearest, own_similarity, within_reach
from semdedup_assets.algorithm.similarity import EarlierSimilarity, greatest_similarity
from semdedup_assets.algorithm.unit_rows import full_float32, unit_rows

_ROWS = 1 << 14


@dataclass(frozen=True, slots=True)
class Reach:
    """Which other clusters an item searches.

    Attributes:
        clusters: at most so many, those nearest to it; None: all.
        epsilon: up to which no duplicate in them is missed; clusters that can hold none are not searched.
    """

    clusters: int | None
    epsilon: float


class Visits:
    """The other clusters that each of some items searches."""

    def __init__(self, rows: Tensor, own: np.ndarray, centroids: Tensor, *, reach: Reach, budget: int) -> None:
        """Find the nearest clusters, if they are limited.

        Args:
            rows: (n, d) unit rows.
            own: (n,) integers, the cluster of each.
            centroids: (k, d) float32 unit rows on the same device.
            reach: which clusters.
            budget: bytes that similarities to centroids may take.
        """
        self._rows, self._own, self._centroids = rows, own.astype(np.int64), centroids
        self._reach, self._budget = reach, budget
        self._on_cpu = centroids.cpu().numpy()
        self._similarity = own_similarity(rows, self._own, centroids)
        self._nearest = None if reach.clusters is None else self._among_nearest(reach.clusters)

    def of(self, clusters: range) -> tuple[np.ndarray, np.ndarray]:
        """Who searches some clusters.

        Args:
            clusters: consecutive ones.

        Returns:
            (m,) int64 rows, ascending, and (m,) int64 clusters, ascending for each row.
        """
        if self._nearest is None:
            return self._among_all(clusters)
        row, cluster = self._nearest
        start, stop = np.searchsorted(cluster, [clusters.start, clusters.stop])
        order = np.lexsort((cluster[start:stop], row[start:stop]))
        return row[start:stop][order], cluster[start:stop][order]

    def _among_nearest(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and clusters of all visits, by cluster."""
        near = next_nearest(self._rows, self._own, self._centroids, most=most, budget=self._budget)
        row = np.repeat(np.arange(len(self._own)), near.cluster.shape[1])
        cluster = near.cluster.reshape(-1)
        margin = self._similarity[row] - near.similarity.reshape(-1)
        reached = within_reach(margin, centroid_distances(self._on_cpu, self._own[row], cluster), self._reach.epsilon)
        row, cluster = row[reached], cluster[reached]
        order = np.argsort(cluster, kind="stable")
        return row[order], cluster[order]

    def _among_all(self, clusters: range) -> tuple[np.ndarray, np.ndarray]:
        rows, found = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        if len(clusters) == 0:
            return rows[0], found[0]
        there = np.arange(clusters.start, clusters.stop)
        homes, index = np.unique(self._own, return_inverse=True)
        pairs = np.repeat(homes, len(there)), np.tile(there, len(homes))
        distances = centroid_distances(self._on_cpu, *pairs).reshape(len(homes), len(there))
        step = rows_within(self._budget // 4, row_bytes=32 * len(there), most=_ROWS)
        for start in range(0, len(self._own), step):
            part = slice(start, start + step)
            with full_float32():
                tile = unit_rows(self._rows[part]) @ self._centroids[clusters.start : clusters.stop].T
            margin = self._similarity[part, None] - tile.cpu().numpy()
            near = within_reach(margin, distances[index[part]], self._reach.epsilon)
            near &= self._own[part, None] != there
            row, column = np.nonzero(near)
            rows.append(row + start)
            found.append(there[column])
        return np.concatenate(rows), np.concatenate(found)


def greatest_earlier(visitors: Tensor, members: Tensor, *, earlier: np.ndarray, budget: int) -> EarlierSimilarity:
    """The greatest similarity of each visitor to the members of a cluster that come before it.

    Args:
        visitors: (v, d) unit rows, in any order.
        members: (m, d) unit rows in keep-order, on the same device.
        earlier: (v,) integers, how many members come before each visitor.
        budget: bytes the tiles may take.

    Returns:
        `EarlierSimilarity` with v entries; positions are rows of `members`, -1 where none comes before.
    """
    similarity = np.full(len(earlier), -np.inf, dtype=np.float32)
    position = np.full(len(earlier), -1, dtype=np.int64)
    order = np.argsort(earlier, kind="stable")
    order = order[np.searchsorted(earlier[order], 1) :]
    if len(order):
        rows = visitors[torch.as_tensor(order, device=visitors.device)]
        found = greatest_similarity(rows, members, visible=earlier[order], budget=budget)
        similarity[order], position[order] = found.similarity, found.position
    return EarlierSimilarity(similarity, position)


def earlier_members(keys: tuple[np.ndarray, ...], *, members: int) -> np.ndarray:
    """How many members of a cluster come before each visitor.

    Args:
        keys: (m + v,) each, of m members in keep-order and then of v visitors, of one call of `keep_keys`; the last of
            them settles every tie (ids).
        members: m.

    Returns:
        (v,) int64.
    """
    order = np.lexsort(keys[::-1])
    earlier = np.empty(len(order), dtype=np.int64)
    earlier[order] = np.cumsum(order < members)
    return earlier[members:]


@dataclass(frozen=True, slots=True)
class Found:
    """The best of several searches for each item.

    Attributes:
        item: (m,) integers, distinct, ascending.
        similarity: (m,) float32.
        earlier: (m,) of the type that was given, which earlier item.
    """

    item: np.ndarray
    similarity: np.ndarray
    earlier: np.ndarray


def best_of(item: np.ndarray, similarity: np.ndarray, earlier: np.ndarray) -> Found:
    """The greatest similarity that was found for each item; among equal ones, the smallest of `earlier`.

    Args:
        item: (n,) integers.
        similarity: (n,) float32.
        earlier: (n,) integers that name the earlier items.
    """
    order = np.lexsort((earlier, -similarity, item))
    first = np.ones(len(order), dtype=bool)
    first[1:] = item[order][1:] != item[order][:-1]
    chosen = order[first]
    return Found(item[chosen], similarity[chosen], earlier[chosen])
