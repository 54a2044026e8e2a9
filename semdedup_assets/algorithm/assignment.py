"""The nearest centroid of each vector, in one pass."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from semdedup_assets.algorithm.budget import TileShape, tile_shape
from semdedup_assets.algorithm.unit_rows import full_float32, row_cosine, unit_rows

# Farther apart than this, float32 cannot mistake which of two centroids is nearer.
_CLOSE = 1e-5


@dataclass(frozen=True, slots=True)
class Assignment:
    """The cluster of each vector.

    Attributes:
        cluster: (n,) int32, the nearest centroid by cosine similarity; the lower one of equals.
        similarity: (n,) float64, cosine similarity to it; equal vectors have equal values.
    """

    cluster: np.ndarray
    similarity: np.ndarray


def assign(vectors: Tensor, centroids: Tensor, *, budget: int) -> Assignment:
    """Assign each vector to its nearest centroid by cosine similarity.

    Close calls are settled in float64, so that equal vectors always share a cluster.

    Args:
        vectors: (n, d) rows, any float type, on the CPU or the centroids' device.
        centroids: (k, d) float32 unit rows, on the device that does the work.
        budget: bytes the tiles may take there.

    Returns:
        Cluster and similarity of each vector.

    Raises:
        ValueError: vectors and centroids differ in dimension.
    """
    if vectors.shape[1] != centroids.shape[1]:
        message = (
            f"vectors of {vectors.shape[1]} numbers, centroids of {centroids.shape[1]}: "
            "they come from different models; fit the centroids again"
        )
        raise ValueError(message)
    shape = tile_shape(budget, dimension=centroids.shape[1], gpu=centroids.is_cuda)
    clusters, similarities = [], []
    for start in range(0, len(vectors), shape.rows):
        rows = unit_rows(vectors[start : start + shape.rows].to(centroids.device))
        with full_float32():
            cluster = _nearest(rows, centroids, shape)
        clusters.append(cluster.int().cpu())
        similarities.append(row_cosine(rows, centroids[cluster]).cpu())
    if not clusters:
        return Assignment(np.empty(0, np.int32), np.empty(0, np.float64))
    return Assignment(torch.cat(clusters).numpy(), torch.cat(similarities).numpy())


def _nearest(rows: Tensor, centroids: Tensor, shape: TileShape) -> Tensor:
    """(b,) int64: the nearest centroid of each row."""
    best = torch.full((len(rows),), -torch.inf, device=rows.device)
    cluster = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    close = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for left in range(0, len(centroids), shape.columns):
        tile = rows @ centroids[left : left + shape.columns].T  # (b, m)
        greatest, index = tile.max(1)
        rivals = (tile >= (greatest - _CLOSE)[:, None]).sum(1) > 1
        close = torch.where(greatest > best + _CLOSE, rivals, close | (greatest >= best - _CLOSE))
        cluster = torch.where(greatest > best, left + index, cluster)
        best = torch.maximum(best, greatest)
    doubtful = close.nonzero().squeeze(1)
    if len(doubtful):
        cluster[doubtful] = _nearest_exactly(rows[doubtful], centroids)
    return cluster


def _nearest_exactly(rows: Tensor, centroids: Tensor) -> Tensor:
    """(b,) int64: the nearest centroid in float64, the lowest of those that are equal within 1e-12."""
    nearest = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    step = max(1, (64 << 20) // (8 * len(centroids)))
    exact = centroids.double()
    for start in range(0, len(rows), step):
        similarity = rows[start : start + step].double() @ exact.T
        greatest = similarity.amax(1, keepdim=True)
        nearest[start : start + step] = (similarity >= greatest - 1e-12).to(torch.uint8).argmax(1)
    return nearest
