"""The nearest centroid of each vector, in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from semdedup_assets.algorithm.budget import TileShape, tile_shape
from semdedup_assets.algorithm.parallel import even_parts, on_devices
from semdedup_assets.algorithm.prefilter import (
    FALLBACKS,
    QUERY_BLOCK,
    Prefilter,
    can_prefilter,
    centre_of,
    encode,
    first_of_greatest,
)
from semdedup_assets.algorithm.sparse import products_at
from semdedup_assets.algorithm.unit_rows import full_float32, row_cosine, unit_rows

# Farther apart than this, float32 cannot mistake which of two centroids is nearer.
_CLOSE = 1e-5
# Closer than this, float64 cannot either: the lower one counts.
_EQUAL = 1e-12
# Centroids that are compared in float64 together.
_EXACT_TOGETHER = 1 << 16
# With fewer centroids, float32 is as fast.
_FEWEST_FOR_PREFILTER = 512


@dataclass(frozen=True, slots=True)
class Assignment:
    """The cluster of each vector.

    Attributes:
        cluster: (n,) int32, the nearest centroid by cosine similarity; the lower one of equals.
        similarity: (n,) float64, cosine similarity to it, right to about 1e-7; equal vectors have equal values.
    """

    cluster: np.ndarray
    similarity: np.ndarray


class NearestCentroids:
    """Centroids that many vectors are assigned to, prepared once."""

    def __init__(self, centroids: Tensor, *, budget: int) -> None:
        """Prepare products in 8 bits where the processor has fast ones.

        Args:
            centroids: (k, d) float32 unit rows, on the device that does the work.
            budget: bytes the tiles may take there.
        """
        self.centroids = centroids
        self._shape = tile_shape(budget, dimension=centroids.shape[1], gpu=centroids.is_cuda)
        self._prefilter: Prefilter | None = None
        self._fallbacks = 0
        if len(centroids) >= _FEWEST_FOR_PREFILTER and can_prefilter(centroids, budget=budget):
            self._centre = centre_of(centroids)
            self._prefilter = Prefilter(encode(centroids, self._centre))

    def assign(self, vectors: Tensor) -> Assignment:
        """Assign each vector to its nearest centroid by cosine similarity.

        float64 decides close calls, so that equal vectors always share a cluster.

        Args:
            vectors: (n, d) rows, any float type, on the CPU or the centroids' device.

        Returns:
            Cluster and similarity of each vector.

        Raises:
            ValueError: vectors and centroids differ in dimension.
        """
        if vectors.shape[1] != self.centroids.shape[1]:
            message = (
                f"vectors of {vectors.shape[1]} numbers, centroids of {self.centroids.shape[1]}: "
                "they come from different models; fit the centroids again"
            )
            raise ValueError(message)
        clusters, similarities = [], []
        height = self._shape.rows if self._prefilter is None else QUERY_BLOCK
        for start in range(0, len(vectors), height):
            rows = unit_rows(vectors[start : start + height].to(self.centroids.device))
            cluster = self._nearest(rows)
            clusters.append(cluster.int().cpu())
            products = rows * self.centroids.index_select(0, cluster)  # Of unit rows.
            similarities.append(products.sum(1, dtype=torch.float64).clamp(-1.0, 1.0).cpu())
        if not clusters:
            return Assignment(np.empty(0, np.int32), np.empty(0, np.float64))
        return Assignment(torch.cat(clusters).numpy(), torch.cat(similarities).numpy())

    def _nearest(self, rows: Tensor) -> Tensor:
        """(b,) int64: the nearest centroid of each unit row."""
        pairs = None if self._prefilter is None else self._prefilter.pairs(encode(rows, self._centre))
        if pairs is not None:
            self._fallbacks = 0
            return _nearest_of(rows, self.centroids, *pairs)
        self._fallbacks += 1
        if self._fallbacks == FALLBACKS:
            # These vectors are about equally near to many centroids: the prefilter excludes little.
            self._prefilter = None
        with full_float32():
            return _nearest(rows, self.centroids, self._shape)


def assign(vectors: Tensor, centroids: Tensor, *, budget: int) -> Assignment:
    """`NearestCentroids.assign` for vectors that are assigned once.

    Args:
        vectors: (n, d) rows, any float type, on the CPU or the centroids' device.
        centroids: (k, d) float32 unit rows, on the device that does the work.
        budget: bytes the tiles may take there.

    Returns:
        Cluster and similarity of each vector.

    Raises:
        ValueError: vectors and centroids differ in dimension.
    """
    return NearestCentroids(centroids, budget=budget).assign(vectors)


def assign_on(vectors: Tensor, centroids: Tensor, *, devices: Sequence[torch.device], budget: int) -> Assignment:
    """`assign`, with the vectors divided among devices: the result is the same.

    Args:
        vectors: (n, d) rows, any float type, on the CPU.
        centroids: (k, d) float32 unit rows; each device gets a copy.
        devices: at least one.
        budget: bytes the tiles may take on each.

    Returns:
        Cluster and similarity of each vector.
    """

    def share(device: torch.device, part: slice) -> Assignment:
        return assign(vectors[part], centroids.to(device), budget=budget)

    # Set for all threads together: it belongs to the process.
    with full_float32():
        parts = zip(devices, even_parts(len(vectors), len(devices)), strict=True)
        found = on_devices([partial(share, *each) for each in parts])
    if len(found) == 1:
        return found[0]
    return Assignment(
        np.concatenate([each.cluster for each in found]), np.concatenate([each.similarity for each in found])
    )


def _nearest_of(rows: Tensor, centroids: Tensor, query: Tensor, candidate: Tensor) -> Tensor:
    """(b,) int64: of some pairs, the nearest centroid of each row; in float64 where float32 leaves a choice."""
    similarity = products_at(rows, centroids, query, candidate)
    greatest = torch.full((len(rows),), -torch.inf).scatter_reduce_(0, query, similarity, "amax")
    close = similarity >= greatest[query] - _CLOSE
    query, candidate = query[close], candidate[close]
    rivals = torch.bincount(query, minlength=len(rows))[query] > 1
    exact = torch.ones(len(query), dtype=torch.float64)
    exact[rivals] = row_cosine(rows[query[rivals]], centroids[candidate[rivals]])
    return first_of_greatest(query, candidate, exact, queries=len(rows), tie=_EQUAL)


def _nearest(rows: Tensor, centroids: Tensor, shape: TileShape) -> Tensor:
    """(b,) int64: the nearest centroid of each row."""
    best = torch.full((len(rows),), -torch.inf, device=rows.device)
    cluster = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    close = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for left in range(0, len(centroids), shape.columns):
        tile = rows @ centroids[left : left + shape.columns].T  # (b, m)
        greatest, index = tile.max(1)
        # As floats where the tile lies: to add up bits, each would become an integer of 8 bytes.
        rivals = torch.ge(tile, (greatest - _CLOSE)[:, None], out=tile).sum(1) > 1
        close = torch.where(greatest > best + _CLOSE, rivals, close | (greatest >= best - _CLOSE))
        cluster = torch.where(greatest > best, left + index, cluster)
        best = torch.maximum(best, greatest)
    doubtful = close.nonzero().squeeze(1)
    if len(doubtful):
        cluster[doubtful] = _nearest_exactly(rows[doubtful], centroids)
    return cluster


def _nearest_exactly(rows: Tensor, centroids: Tensor) -> Tensor:
    """(b,) int64: the nearest centroid in float64, the lowest of those that are equal within `_EQUAL`."""
    nearest = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    step = max(1, (64 << 20) // (8 * len(centroids)))
    for start in range(0, len(rows), step):
        exact = rows[start : start + step].double()
        # Some at a time: as float64, all of them would take two times their own memory.
        parts = [exact @ part.double().T for part in torch.split(centroids, _EXACT_TOGETHER)]
        similarity = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        greatest = similarity.amax(1, keepdim=True)
        nearest[start : start + step] = (similarity >= greatest - _EQUAL).to(torch.uint8).argmax(1)
    return nearest
