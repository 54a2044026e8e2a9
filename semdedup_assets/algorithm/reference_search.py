"""Which rows of clusters lie within epsilon of reference rows: each reference visits the clusters where such rows can be."""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from semdedup_assets.algorithm.assignment import NearestCentroids
from semdedup_assets.algorithm.budget import rows_within
from semdedup_assets.algorithm.selection import check_epsilon, keep_mask
from semdedup_assets.algorithm.similarity import EarlierSimilarity, greatest_similarity
from semdedup_assets.algorithm.unit_rows import full_float32, unit_rows

# What rounding may shift a product of unit rows by, generously: a cluster too many costs time, one too few a match.
_SLACK = 1e-4
# Similarities that are no farther apart count as equal, as within a cluster.
_TIE = 1e-6


@dataclass(frozen=True, slots=True)
class Matches:
    """What was found for some rows.

    Attributes:
        similarity: (n,) float32, to the most similar reference row within epsilon; -inf where there is none.
        position: (n,) int64, that reference row, -1 where there is none.
        pairs: of rows that were compared.
    """

    similarity: np.ndarray
    position: np.ndarray
    pairs: int


@dataclass(frozen=True, slots=True)
class NearestClusters:
    """Where reference rows lie among the centroids.

    Attributes:
        cluster: (m,) int64, the nearest centroid of each.
        similarity: (m,) float32, cosine similarity to it.
        allowed: (m, p) int64, the only clusters that each may visit; None: all.
    """

    cluster: Tensor
    similarity: Tensor
    allowed: Tensor | None

    @classmethod
    def of(cls, rows: Tensor, nearest: NearestCentroids, *, most: int | None, budget: int) -> "NearestClusters":
        """Assign reference rows.

        Args:
            rows: (m, d) unit rows, any float type.
            nearest: the k centroids.
            most: clusters that each may visit, the nearest ones; None: all.
            budget: bytes the tiles may take.

        Raises:
            ValueError: rows and centroids differ in dimension.
        """
        found, centroids = nearest.assign(rows), nearest.centroids
        device = centroids.device
        cluster = torch.as_tensor(found.cluster, device=device).long()
        similarity = torch.as_tensor(found.similarity, device=device).float()
        if most is None or most >= len(centroids):
            return cls(cluster, similarity, None)
        step = rows_within(budget // 2, row_bytes=8 * len(centroids))
        with full_float32():
            parts = [
                (unit_rows(rows[start : start + step].to(device)) @ centroids.T).topk(most, dim=1).indices
                for start in range(0, len(rows), step)
            ]
        allowed = torch.cat(parts) if parts else torch.empty((0, most), dtype=torch.int64, device=device)
        # The assignment settles ties that the products leave open.
        missing = (allowed != cluster[:, None]).all(1)
        allowed[missing, -1] = cluster[missing]
        return cls(cluster, similarity, allowed)

    def visits(self, rows: Tensor, centroids: Tensor, first: int, last: int, *, epsilon: float) -> Tensor:
        """Which of some clusters may hold a row within epsilon of each reference row.

        For unit rows x of cluster A and y of cluster B with x·y ≥ 1 - ε, x·(c_A - c_B) ≤ √(2ε)·‖c_A - c_B‖: their
        distance is at most √(2ε), and y is no nearer to c_A than to c_B.

        Args:
            rows: (m, d) float32 unit rows, those that were assigned.
            centroids: (k, d) float32 unit rows.
            first: the first cluster.
            last: the one after the last.
            epsilon: in [0, 2].

        Returns:
            (m, last - first) bool.
        """
        own, back = torch.unique(self.cluster, return_inverse=True)
        between = centroids[own] @ centroids[first:last].T  # (a, c)
        reach = sqrt(2 * epsilon) * (2 - 2 * between).clamp_(min=0).sqrt_() + _SLACK
        margin = self.similarity[:, None] - rows @ centroids[first:last].T  # (m, c)
        visits = margin <= reach[back]
        if self.allowed is not None:
            within = (self.allowed >= first) & (self.allowed < last)
            row, at = within.nonzero(as_tuple=True)
            chosen = torch.zeros_like(visits)
            chosen[row, self.allowed[row, at] - first] = True
            visits &= chosen
        return visits


@dataclass(frozen=True, slots=True)
class ReferenceRows:
    """Reference rows, ready to be searched for.

    Attributes:
        rows: (m, d) unit rows, any float type, on the device that does the work.
        nearest: where they lie among the centroids.
        centroids: (k, d) float32 unit rows.
        epsilon: rows more similar than 1 - epsilon match.
    """

    rows: Tensor
    nearest: NearestClusters
    centroids: Tensor
    epsilon: float

    def search(self, vectors: Tensor, offsets: np.ndarray, first: int, *, budget: int) -> Matches:
        """The most similar reference row within epsilon of each row of some clusters.

        Args:
            vectors: (n, d) unit rows, sorted by cluster.
            offsets: (clusters + 1,) int64, where each cluster starts.
            first: index of the first cluster.
            budget: bytes the tiles may take.

        Returns:
            `Matches` with n entries; among equals (within 1e-6) the earliest reference row. Exact where every cluster
            may be visited.

        Raises:
            ValueError: epsilon is outside [0, 2]; a row is not finite or not of unit norm.
        """
        check_epsilon(self.epsilon)
        found = Matches(np.full(len(vectors), -np.inf, np.float32), np.full(len(vectors), -1, np.int64), 0)
        if len(self.rows) == 0 or len(vectors) == 0:
            return found
        rows, pairs = unit_rows(self.rows), 0
        step = rows_within(budget // 4, row_bytes=16 * len(rows))
        for start in range(0, len(offsets) - 1, step):
            stop = min(start + step, len(offsets) - 1)
            with full_float32():
                visits = self.nearest.visits(rows, self.centroids, first + start, first + stop, epsilon=self.epsilon)
            for cluster in range(start, stop):
                part = slice(int(offsets[cluster]), int(offsets[cluster + 1]))
                visitors = visits[:, cluster - start].nonzero().squeeze(1)
                if len(visitors) and part.start < part.stop:
                    best = greatest_similarity(vectors[part], self.rows[visitors], budget=budget // 2)
                    found.similarity[part], found.position[part] = self._within(best, visitors)
                    pairs += len(visitors) * (part.stop - part.start)
        return Matches(found.similarity, found.position, pairs)

    def _within(self, best: EarlierSimilarity, visitors: Tensor) -> tuple[np.ndarray, np.ndarray]:
        beyond = keep_mask(best.similarity, self.epsilon)
        position = visitors.cpu().numpy()[best.position]
        return np.where(beyond, np.float32(-np.inf), best.similarity), np.where(beyond, -1, position)


def best_by_group(group: np.ndarray, rank: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """Of several matches of the same thing the most similar one, the lowest rank among equals (within 1e-6).

    Args:
        group: (n,) integers, what is matched.
        rank: (n,) integers, of what it is matched with.
        similarity: (n,) float32.

    Returns:
        (groups,) int64: a position for each distinct group, ascending by group.
    """
    if len(group) == 0:
        return np.empty(0, np.int64)
    order = np.lexsort((rank, group))
    starts = np.flatnonzero(np.diff(group[order], prepend=group[order[0]] + 1) != 0)
    greatest = np.maximum.reduceat(similarity[order], starts)
    of_group = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
    candidates = np.flatnonzero(similarity[order] >= greatest[of_group] - np.float32(_TIE))
    _, chosen = np.unique(of_group[candidates], return_index=True)
    result: np.ndarray = order[candidates[chosen]]
    return result
