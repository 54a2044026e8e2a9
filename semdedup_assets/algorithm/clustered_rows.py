"""Vectors in memory, clustered and in keep-order: what the whole method in one call works on."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from semdedup_assets.algorithm.assignment import Assignment, NearestCentroids
from semdedup_assets.algorithm.call_progress import Report, silent
from semdedup_assets.algorithm.cluster_ranges import cluster_batches
from semdedup_assets.algorithm.cross_clusters import (
    Found,
    Reach,
    Visits,
    best_of,
    earlier_members,
    greatest_earlier,
)
from semdedup_assets.algorithm.detection_efficiency import ClusterRows
from semdedup_assets.algorithm.keep_order import ClusteredItems, KeepOrder, cluster_offsets, cluster_order, keep_keys
from semdedup_assets.algorithm.kmeans import spherical_kmeans
from semdedup_assets.algorithm.sampling import UniformSample
from semdedup_assets.algorithm.similarity import score_clusters
from semdedup_assets.algorithm.unit_rows import unit_rows

BUDGET = 1 << 30
"""Bytes that tiles of vectors may take."""

# Lloyd's iterations change centroids little once each has this many vectors to average (faiss' own default).
_SAMPLE_PER_CLUSTER = 256
_ITERATIONS = 100
# A hundredth of the items is scored between two reports of how far it is.
_REPORTS, _FEWEST_TOGETHER = 100, 1 << 16


@dataclass(frozen=True, slots=True)
class ClusteredRows:
    """The caller's vectors, and their order by cluster and within each in keep-order.

    Attributes:
        vectors: (n, d) as they were given.
        order: (n,) int64, rows of `vectors`.
        offsets: (k + 1,) int64, where each cluster starts in `order`.
        device: that does the work.
        everywhere: (n,) int64, rows of `vectors` in the keep-order of all clusters together.
        protected: (n,) bool, which rows are never removed; None where none are.
    """

    vectors: Tensor
    order: np.ndarray
    offsets: np.ndarray
    device: torch.device
    everywhere: np.ndarray
    protected: np.ndarray | None

    def unit_rows(self, first: int, stop: int) -> Tensor:
        """(m, d) float32 unit rows of the clusters from `first` to `stop`."""
        members = torch.as_tensor(self.order[self.offsets[first] : self.offsets[stop]], device=self.vectors.device)
        return unit_rows(self.vectors[members].to(self.device))

    def of_sample(self, clusters: np.ndarray) -> ClusterRows:
        """The items of some clusters, (c,) ascending, by the numbers of their rows."""
        parts = [self.members(cluster) for cluster in clusters.tolist()]
        members = np.concatenate(parts)
        vectors = unit_rows(self.vectors[torch.as_tensor(members, device=self.vectors.device)].to(self.device))
        return ClusterRows(members.astype(np.uint64), np.repeat(clusters, list(map(len, parts))), vectors)

    def members(self, cluster: int) -> np.ndarray:
        """(m,) int64, the rows of a cluster in keep-order."""
        return self.order[self.offsets[cluster] : self.offsets[cluster + 1]]

    def of_clusters(self, clusters: set[int]) -> Iterator[tuple[slice, Tensor]]:
        """The slice of `order`, and the unit rows, of each of some clusters."""
        for cluster in sorted(clusters):
            rows = slice(int(self.offsets[cluster]), int(self.offsets[cluster + 1]))
            yield rows, self.unit_rows(cluster, cluster + 1)


def clustered_rows(  # noqa: PLR0913  # what one call is given
    vectors: Tensor,
    ids: np.ndarray,
    *,
    k: int,
    order: KeepOrder,
    protected: np.ndarray | None,
    seed: int,
    report: Report,
) -> tuple[ClusteredRows, Assignment, np.ndarray]:
    """Cluster vectors, and put each cluster in keep-order.

    Args:
        vectors: (n, d) floats, none of them zero.
        ids: (n,) uint64, distinct.
        k: clusters.
        order: what orders items.
        protected: (n,) bool, which rows are never removed; None where none are.
        seed: of k-means and of random orders.
        report: is told how far it is.

    Returns:
        The ordered rows, the cluster of each, and (k, d) float32 centroids.
    """
    device, sample = _device(vectors), _sample(vectors, ids, k, seed)
    report("centroids", 0, 1)
    centroids = spherical_kmeans(sample, k=k, iterations=_ITERATIONS, seed=seed, devices=[device]).vectors
    report("centroids", 1, 1)
    assigned = _assigned(vectors, torch.from_numpy(centroids).to(device), report)
    items = ClusteredItems(ids, assigned.cluster, assigned.similarity)
    keys = keep_keys(order, items, seed=seed)
    in_order = cluster_order(assigned.cluster, keys=keys, ids=ids)
    # One cluster for all: the order of the whole data set.
    everywhere = cluster_order(np.zeros_like(assigned.cluster), keys=keys, ids=ids)
    offsets = cluster_offsets(assigned.cluster, k=len(centroids))
    return ClusteredRows(vectors, in_order, offsets, device, everywhere, protected), assigned, centroids


def _assigned(vectors: Tensor, centroids: Tensor, report: Report) -> Assignment:
    nearest, parts = NearestCentroids(centroids, budget=BUDGET), list[Assignment]()
    report("assignments", 0, len(vectors))
    step = max(_FEWEST_TOGETHER, -(-len(vectors) // _REPORTS))
    for start in range(0, len(vectors), step):
        parts.append(nearest.assign(vectors[start : start + step]))
        report("assignments", min(start + step, len(vectors)), len(vectors))
    clusters, similarities = ([getattr(part, name) for part in parts] for name in ("cluster", "similarity"))
    return Assignment(np.concatenate(clusters), np.concatenate(similarities))


def _device(vectors: Tensor) -> torch.device:
    if vectors.is_cuda or not torch.cuda.is_available():
        return vectors.device
    return torch.device("cuda")


def _sample(vectors: Tensor, ids: np.ndarray, k: int, seed: int) -> np.ndarray:
    """(m, d) float32 unit rows in the order of their ids: what the centroids are fitted to."""
    sample = UniformSample(size=max(1, k) * _SAMPLE_PER_CLUSTER, seed=seed)
    sample.add(ids)
    by_id = np.argsort(ids)
    chosen = by_id[np.searchsorted(ids[by_id], sample.ids)]
    result: np.ndarray = unit_rows(vectors[torch.as_tensor(chosen, device=vectors.device)]).cpu().numpy()
    return result


def search_across(rows: ClusteredRows, cluster: np.ndarray, centroids: np.ndarray, reach: Reach) -> Found:
    """The greatest similarity of each row to an earlier one of another cluster that it searches."""
    tensor = torch.from_numpy(centroids).to(rows.device)
    vectors = rows.vectors.to(rows.device)
    visits = Visits(vectors, cluster, tensor, reach=reach, budget=BUDGET)
    rank = np.argsort(rows.everywhere)
    found = [(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64))]
    for there in range(len(centroids)):
        visitors, _ = visits.of(range(there, there + 1))
        if rows.protected is not None:
            visitors = visitors[~rows.protected[visitors]]
        members = rows.members(there)
        keys = (np.concatenate([rank[members], rank[visitors]]),)
        earlier = greatest_earlier(
            unit_rows(vectors[torch.as_tensor(visitors, device=rows.device)]),
            rows.unit_rows(there, there + 1),
            earlier=earlier_members(keys, members=len(members)),
            budget=BUDGET,
        )
        known = earlier.position >= 0
        found.append((visitors[known], earlier.similarity[known], rank[members[earlier.position[known]]]))
    best = best_of(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    return Found(best.item, best.similarity, rows.everywhere[best.earlier])


def score_rows(rows: ClusteredRows, report: Report) -> tuple[np.ndarray, np.ndarray]:
    """Greatest similarity to an earlier item (n,) and its row (n,), in the vectors' own order."""
    order, offsets = rows.order, rows.offsets
    similarity = np.full(len(order), -np.inf, dtype=np.float32)
    duplicate_of = np.full(len(order), -1, dtype=np.int64)
    most, done = max(1, BUDGET // (8 * rows.vectors.shape[1])), 0
    if report is not silent:
        most = min(most, -(-len(order) // _REPORTS))
    report("duplicate scores", done, len(order))
    for first, stop in cluster_batches(np.diff(offsets), most=most):
        members = order[offsets[first] : offsets[stop]]
        earlier = score_clusters(rows.unit_rows(first, stop), offsets[first : stop + 1] - offsets[first], budget=BUDGET)
        similarity[members] = earlier.similarity
        duplicate_of[members] = np.where(earlier.position < 0, -1, members[earlier.position])
        done += len(members)
        report("duplicate scores", done, len(order))
    return similarity, duplicate_of
