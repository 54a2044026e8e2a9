"""Which other clusters can hold duplicates of an item: those nearest to it, and those whose boundary is near enough."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from semdedup_assets.algorithm.budget import rows_within
from semdedup_assets.algorithm.unit_rows import full_float32, row_cosine, unit_rows

# What float32 arithmetic may add to a similarity of unit rows, several times over: nothing within reach is missed.
_SLACK = 1e-5
# Centroids beyond those asked for that are compared once more in float64, so that no tie falls to a tile's rounding.
_SPARE = 8
_ROWS = 1 << 14


@dataclass(frozen=True, slots=True)
class NextClusters:
    """The clusters nearest to each item beside its own, nearest first.

    Attributes:
        cluster: (n, p) int64.
        similarity: (n, p) float64, of the item to their centroids.
    """

    cluster: np.ndarray
    similarity: np.ndarray


def next_nearest(rows: Tensor, own: np.ndarray, centroids: Tensor, *, most: int, budget: int) -> NextClusters:
    """The clusters nearest to each row beside its own.

    Args:
        rows: (n, d) unit rows, float16 or float32.
        own: (n,) integers, the cluster of each row.
        centroids: (k, d) float32 unit rows on the same device.
        most: how many; fewer where there are not so many others.
        budget: bytes that similarities to centroids may take.

    Returns:
        p = min(most, k - 1) clusters for each row; among equally near ones, those of the smallest index.
    """
    count = min(most, len(centroids) - 1)
    wanted = min(count + _SPARE, len(centroids) - 1)
    cluster = np.empty((len(rows), count), dtype=np.int64)
    similarity = np.empty((len(rows), count), dtype=np.float64)
    if count < 1:
        return NextClusters(cluster, similarity)
    row_bytes = 12 * len(centroids) + 24 * wanted * rows.shape[1]
    step = rows_within(budget // 2, row_bytes=row_bytes, most=_ROWS)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        mine = torch.as_tensor(own[part].astype(np.int64), device=rows.device)
        cluster[part], similarity[part] = _nearest_of(unit_rows(rows[part]), mine, centroids, (count, wanted))
    return NextClusters(cluster, similarity)


def _nearest_of(rows: Tensor, own: Tensor, centroids: Tensor, counts: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The first of `counts` for (b, d) rows, chosen in float64 from as many as the second."""
    count, wanted = counts
    with full_float32():
        tile = rows @ centroids.T  # (b, k)
    tile.scatter_(1, own[:, None], -torch.inf)
    near = tile.topk(wanted, dim=1).indices
    exact = row_cosine(rows.repeat_interleave(wanted, 0), centroids[near.reshape(-1)]).view(len(rows), wanted)
    index, similarity = near.cpu().numpy(), exact.cpu().numpy()
    order = np.lexsort((index, -similarity))[:, :count]
    return np.take_along_axis(index, order, 1), np.take_along_axis(similarity, order, 1)


def own_similarity(rows: Tensor, own: np.ndarray, centroids: Tensor) -> np.ndarray:
    """The similarity of each row to its own centroid, a few rows at a time.

    Args:
        rows: (n, d) unit rows.
        own: (n,) int64, the cluster of each.
        centroids: (k, d) float32 unit rows on the same device.

    Returns:
        (n,) float64.
    """
    found = np.empty(len(own))
    for start in range(0, len(own), _ROWS):
        part = slice(start, start + _ROWS)
        mine = centroids[torch.as_tensor(own[part], device=centroids.device)]
        found[part] = row_cosine(unit_rows(rows[part]), mine).cpu().numpy()
    return found


def within_reach(margin: np.ndarray, distance: np.ndarray, epsilon: float | np.ndarray) -> np.ndarray:
    """Whether a pair within epsilon can lie on the two sides of the boundary between two clusters.

    Of unit vectors x in cluster A and y in cluster B, x·(c_A - c_B) is at least 0 and y·(c_A - c_B) at most 0. If they are
    within epsilon, |x - y| < √(2ε), so neither lies further than √(2ε)·|c_A - c_B| on its side.

    Args:
        margin: similarity to the own centroid less that to the other.
        distance: between the two centroids.
        epsilon: items more similar than 1 - epsilon are duplicates.

    Returns:
        bool, of the shape that the arguments broadcast to; float32 rounding makes none False.
    """
    near: np.ndarray = margin <= np.sqrt(2.0 * np.asarray(epsilon)) * distance + _SLACK
    return near


def centroid_distances(centroids: np.ndarray, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Distances of pairs of centroids.

    Args:
        centroids: (k, d) float32.
        own: (n,) integers.
        other: (n,) integers.

    Returns:
        (n,) float64; each pair of clusters is computed once.
    """
    pairs, index = np.unique(own.astype(np.int64) * len(centroids) + other, return_inverse=True)
    found = np.empty(len(pairs))
    for start in range(0, len(pairs), _ROWS):
        left, right = np.divmod(pairs[start : start + _ROWS], len(centroids))
        found[start : start + _ROWS] = np.linalg.norm(
            centroids[left].astype(np.float64) - centroids[right].astype(np.float64), axis=1
        )
    distances: np.ndarray = found[index.reshape(-1)]
    return distances
