"""Spherical k-means on a sample (SemDeDup, section 3 and appendix G)."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from semdedup_assets.algorithm.assignment import assign
from semdedup_assets.algorithm.unit_rows import as_tensor, check_rows, unit_rows


@dataclass(frozen=True, slots=True)
class Centroids:
    """The result of a k-means fit.

    Attributes:
        vectors: (k, d) float32 unit rows.
        objective: (i,) float64, mean cosine similarity of the sample to its centroids, by iteration; fewer than were
            asked for where it no longer rises.
        sizes: (k,) int64, sample vectors nearest to each centroid after the last iteration.
    """

    vectors: np.ndarray
    objective: np.ndarray
    sizes: np.ndarray

    @property
    def k(self) -> int:
        """Number of clusters."""
        return len(self.vectors)

    @property
    def empty(self) -> int:
        """Clusters that no vector of the sample is nearest to."""
        return int((self.sizes == 0).sum())


def spherical_kmeans(sample: np.ndarray, *, k: int, iterations: int, seed: int, budget: int = 1 << 30) -> Centroids:
    """Fit k centroids by spherical k-means: centroids are scaled to unit norm after each iteration.

    Runs in faiss, on all GPUs where there are some, else on the CPU; seeded, and on the CPU reproducible.

    Args:
        sample: (n, d) floats, no zero rows; all of it is used.
        k: clusters; more than n gives n clusters, with a warning.
        iterations: passes over the sample (paper: 100 for images, 20 for text).
        seed: of the first centroids.
        budget: bytes the last assignment's tiles may take.

    Returns:
        Centroids, objective by iteration, cluster sizes in the sample.

    Raises:
        ValueError: k or iterations is not positive, the sample is empty, or a row is zero or not finite.
    """
    import faiss

    if k < 1 or iterations < 1:
        message = f"k = {k}, iterations = {iterations}: both must be at least 1"
        raise ValueError(message)
    if len(sample) == 0:
        message = "the sample is empty: there is nothing to fit centroids to"
        raise ValueError(message)
    if k > len(sample):
        warnings.warn(
            f"k = {k} exceeds the {len(sample)} sampled items; {len(sample)} clusters are fitted", stacklevel=2
        )
        k = len(sample)
    rows = as_tensor(sample)
    check_rows(rows)
    unit = np.ascontiguousarray(unit_rows(rows).cpu().numpy())
    kmeans = faiss.Kmeans(
        unit.shape[1], k, niter=iterations, seed=seed % (1 << 31), spherical=True, gpu=faiss.get_num_gpus() > 0,
        min_points_per_centroid=1, max_points_per_centroid=len(unit),
    )  # fmt: skip
    kmeans.train(unit)
    centroids = _without_zero_rows(np.asarray(kmeans.centroids, dtype=np.float32), unit)
    assigned = assign(torch.from_numpy(unit), torch.from_numpy(centroids), budget=budget)
    # faiss copies k of k vectors without an iteration, and calls the objective 0.
    objective = (
        np.asarray(kmeans.obj, np.float64) / len(unit) if k < len(unit) else assigned.similarity.mean(keepdims=True)
    )
    return Centroids(centroids, objective, np.bincount(assigned.cluster, minlength=k))


def _without_zero_rows(centroids: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Unit centroids: one whose members cancel out has no direction, and becomes a vector of the sample."""
    norms = np.linalg.norm(centroids, axis=1, keepdims=True)
    lost = (norms[:, 0] < 1e-12) | ~np.isfinite(norms[:, 0])
    centroids = np.where(lost[:, None], unit[: len(centroids)], centroids / np.where(norms == 0, 1, norms))
    return np.ascontiguousarray(centroids, dtype=np.float32)


def suggest_k(items: int) -> int:
    """A number of clusters for n items: about sqrt(n / 2), rounded to two digits.

    There the arithmetic of assignment (2 n k d) equals that of comparing pairs (n² d / k), so that the sum is
    least, and clusters stay large: the paper (section 6.1, Table A2) finds that quality changes little with k
    while n / k is large.

    Args:
        items: n.

    Returns:
        At least 1.
    """
    k: int = max(1, round((items / 2) ** 0.5))
    digits: int = 10 ** max(0, len(str(k)) - 2)
    rounded: int = round(k / digits) * digits
    return max(1, rounded)
