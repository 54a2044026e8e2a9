"""The whole method in one call, on vectors in memory."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from semdedup_assets.algorithm.assignment import assign
from semdedup_assets.algorithm.buckets import runs
from semdedup_assets.algorithm.keep_order import (
    KeepStrategy,
    check_keep,
    cluster_offsets,
    cluster_order,
    keep_priority,
)
from semdedup_assets.algorithm.kmeans import spherical_kmeans, suggest_k
from semdedup_assets.algorithm.sampling import UniformSample
from semdedup_assets.algorithm.selection import keep_mask
from semdedup_assets.algorithm.similarity import score_clusters
from semdedup_assets.algorithm.tuning import epsilon_for
from semdedup_assets.algorithm.unit_rows import as_tensor, check_rows, unit_rows

# Lloyd's iterations change centroids little once each has this many vectors to average (faiss' own default).
_SAMPLE_PER_CLUSTER = 256
_ITERATIONS = 100
_BUDGET = 1 << 30


@dataclass(frozen=True, slots=True)
class Deduplication:
    """What one pass found; every epsilon is answered from it without another.

    Attributes:
        similarity: (n,) float32, greatest cosine similarity to an earlier item of the cluster, -inf for its first.
        duplicate_of: (n,) int64, row of that earlier item, -1 for the first of a cluster.
        cluster: (n,) int32.
        centroid_similarity: (n,) float64, cosine similarity to the cluster's centroid.
        centroids: (k, d) float32 unit rows.
    """

    similarity: np.ndarray
    duplicate_of: np.ndarray
    cluster: np.ndarray
    centroid_similarity: np.ndarray
    centroids: np.ndarray

    def keep_mask(self, epsilon: float) -> np.ndarray:
        """Which items are kept at an epsilon (Alg. A7): (n,) bool; a higher epsilon removes more.

        Raises:
            ValueError: epsilon is outside [0, 2].
        """
        return keep_mask(self.similarity, epsilon)

    def epsilon_for(self, *, keep: float) -> float:
        """The epsilon that keeps a share of the items; equal similarities stay together, so ties may keep more.

        Raises:
            ValueError: `keep` is outside (0, 1].
        """
        return epsilon_for(lambda: [self.similarity], keep=keep)


def semdedup(
    vectors: np.ndarray | Tensor,
    *,
    k: int | None = None,
    keep: KeepStrategy | np.ndarray = "hard",
    seed: int = 0,
    ids: np.ndarray | None = None,
) -> Deduplication:
    """Deduplicate vectors by SemDeDup (Abbas et al. 2023).

    Runs on the vectors' device, or on a GPU where there is one.

    Args:
        vectors: (n, d) floats; need not be of unit norm.
        k: clusters; None: a suggestion for n.
        keep: which item of a group is kept: `hard` the least similar to its centroid, `easy` the most similar,
            `random`; or (n,) numbers, smallest first.
        seed: of k-means and of `random`.
        ids: (n,) distinct non-negative integers that settle ties and choose the sample, so that the order of the
            rows does not matter; None: the row numbers.

    Returns:
        Scores from which any epsilon's keep mask follows.

    Raises:
        ValueError: an argument is invalid, or a row is zero or not finite; names it.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> vectors = np.repeat(rng.normal(size=(50, 8)), 2, axis=0)
        >>> int(semdedup(vectors, k=2).keep_mask(0.01).sum())
        50
    """
    tensor = as_tensor(vectors)
    check_rows(tensor)
    if len(tensor) == 0:
        message = "vectors: there are no rows to deduplicate"
        raise ValueError(message)
    identity = _checked_ids(ids, len(tensor))
    check_keep(keep, items=len(tensor))
    k = suggest_k(len(tensor)) if k is None else k
    centroids = spherical_kmeans(_sample(tensor, identity, k, seed), k=k, iterations=_ITERATIONS, seed=seed).vectors
    device = _device(tensor)
    assigned = assign(tensor, torch.from_numpy(centroids).to(device), budget=_BUDGET)
    priority = keep_priority(keep, centroid_similarity=assigned.similarity, ids=identity, seed=seed)
    order = cluster_order(assigned.cluster, priority=priority, ids=identity)
    offsets = cluster_offsets(assigned.cluster, k=len(centroids))
    similarity, duplicate_of = _score(tensor, order, offsets, device)
    return Deduplication(similarity, duplicate_of, assigned.cluster, assigned.similarity, centroids)


def _device(vectors: Tensor) -> torch.device:
    if vectors.is_cuda or not torch.cuda.is_available():
        return vectors.device
    return torch.device("cuda")


def _checked_ids(ids: np.ndarray | None, n: int) -> np.ndarray:
    if ids is None:
        return np.arange(n, dtype=np.uint64)
    ids = np.asarray(ids)
    if ids.shape != (n,) or ids.dtype.kind not in "iu" or len(np.unique(ids)) != n or (n and ids.min() < 0):
        message = f"ids: expected {n} distinct non-negative integers, one per row"
        raise ValueError(message)
    return ids.astype(np.uint64)


def _sample(vectors: Tensor, ids: np.ndarray, k: int, seed: int) -> np.ndarray:
    """(m, d) float32 unit rows in the order of their ids: what the centroids are fitted to."""
    sample = UniformSample(size=max(1, k) * _SAMPLE_PER_CLUSTER, seed=seed)
    sample.add(ids)
    by_id = np.argsort(ids)
    chosen = by_id[np.searchsorted(ids[by_id], sample.ids)]
    result: np.ndarray = unit_rows(vectors[torch.as_tensor(chosen, device=vectors.device)]).cpu().numpy()
    return result


def _score(
    vectors: Tensor, order: np.ndarray, offsets: np.ndarray, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Greatest similarity to an earlier item (n,) and its row (n,), in the vectors' own order."""
    similarity = np.full(len(order), -np.inf, dtype=np.float32)
    duplicate_of = np.full(len(order), -1, dtype=np.int64)
    for first, last in runs(np.diff(offsets), most=max(1, _BUDGET // (8 * vectors.shape[1]))):
        members = order[offsets[first] : offsets[last]]
        rows = unit_rows(vectors[torch.as_tensor(members, device=vectors.device)].to(device))
        earlier = score_clusters(rows, offsets[first : last + 1] - offsets[first], budget=_BUDGET)
        similarity[members] = earlier.similarity
        duplicate_of[members] = np.where(earlier.position < 0, -1, members[earlier.position])
    return similarity, duplicate_of
