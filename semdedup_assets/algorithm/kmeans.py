"""Spherical k-means on a sample (SemDeDup, section 3 and appendix G)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from semdedup_assets.algorithm.assignment import assign_on
from semdedup_assets.algorithm.device_lloyd import fit_on_devices
from semdedup_assets.algorithm.lloyd import first_rows, fit_by_integers
from semdedup_assets.algorithm.prefilter import NARROWEST, integers_are_exact, integers_are_fast
from semdedup_assets.algorithm.unit_rows import UnitRows, as_tensor

Engine = Literal["auto", "faiss", "int8", "torch"]

_CPU = torch.device("cpu")
# With fewer clusters, products are not what takes the time.
_FEWEST_FOR_INTEGERS = 128


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


def spherical_kmeans(  # noqa: PLR0913  # each is a setting of its own
    sample: np.ndarray,
    *,
    k: int,
    iterations: int,
    seed: int,
    engine: Engine = "auto",
    devices: Sequence[torch.device] = (_CPU,),
    budget: int = 1 << 30,
) -> Centroids:
    """Fit k centroids by spherical k-means: centroids are scaled to unit norm after each iteration.

    Seeded, and on the CPU reproducible; another engine gives other centroids, of about the same objective.

    The sample may be larger than memory, such as a mapped float16 array: `torch` and `int8` then read it once in each
    iteration. faiss wants all of it as float32 in memory.

    Beside the sample, memory is a few times that of the centroids (4 k d bytes): `int8` takes 3.3 times, faiss 4 times
    and all that it copies to a GPU, `torch` 2.5 times on each GPU, and 3.5 times on the first one.

    Args:
        sample: (n, d) floats, no zero rows; all of it is used.
        k: clusters; more than n gives n clusters, with a warning.
        iterations: passes over the sample (paper: 100 for images, 20 for text).
        seed: of the first centroids.
        engine: `torch` divides the sample among GPUs, as faiss does; both use the CPU where none is given. `int8` uses
            the CPU, with products of 8-bit integers. `auto` is `torch` on GPUs, and on the CPU whichever of the others
            is faster on it.
        devices: GPUs that may be used; of others none is, and the CPU does the work.
        budget: bytes that `int8` may take to prepare the sample, beside 65,536 rows as float32, two times; or that
            `torch` may keep of the sample on each GPU. The result does not depend on it.

    Returns:
        Centroids, objective by iteration, cluster sizes in the sample.

    Raises:
        ValueError: k or iterations is not positive, the sample is empty, a row is zero or not finite, or this processor
            cannot run the engine.
    """
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
    devices = [device for device in devices if device.type == "cuda"] or [_CPU]
    used, length = chosen_engine(engine, k=k, dimension=sample.shape[-1], devices=devices), {"iterations": iterations}
    if used == "int8":
        unit = UnitRows(rows, budget=budget // 2, of_unit_norm=False)
        vectors, objective = fit_by_integers(unit, k=k, seed=seed, budget=budget // 4, **length)
        devices = [_CPU]
    elif used == "torch":
        UnitRows(rows, budget=0, of_unit_norm=False)  # It checks them.
        first = first_rows(len(rows), k=k, seed=seed)
        vectors, objective = fit_on_devices(rows, first, devices=devices, budget=budget, **length)
    else:
        unit = UnitRows(rows, budget=4 * rows.numel(), of_unit_norm=False)
        vectors, objective = _fit_by_faiss(unit[:].numpy(), k=k, seed=seed, devices=devices, **length)
    assigned = assign_on(rows, torch.from_numpy(vectors), devices=devices, budget=budget // 4)
    # k of k vectors are their own centroids: an iteration changes nothing.
    if k == len(rows):
        objective = assigned.similarity.mean(keepdims=True)
    return Centroids(vectors, objective, np.bincount(assigned.cluster, minlength=k))


def chosen_engine(
    engine: Engine, *, k: int, dimension: int, devices: Sequence[torch.device]
) -> Literal["faiss", "int8", "torch"]:
    """What fits centroids on this machine.

    Args:
        engine: as it is set.
        k: clusters.
        dimension: d.
        devices: GPUs, or the CPU alone.

    Raises:
        ValueError: this processor cannot run the engine.
    """
    if engine == "int8" and not integers_are_exact():
        message = "engine int8: PyTorch does not multiply 8-bit integers exactly on this processor; choose faiss"
        raise ValueError(message)
    if engine != "auto":
        return engine
    if devices[0].type == "cuda":
        return "torch"
    large = k >= _FEWEST_FOR_INTEGERS and dimension >= NARROWEST
    return "int8" if large and integers_are_fast() else "faiss"


def _fit_by_faiss(
    rows: np.ndarray, *, k: int, iterations: int, seed: int, devices: Sequence[torch.device]
) -> tuple[np.ndarray, np.ndarray]:
    """(k, d) float32 unit rows, and (i,) float64 the mean similarity in each iteration."""
    import faiss

    kmeans = faiss.Kmeans(
        rows.shape[1], k, niter=iterations, seed=seed % (1 << 31), spherical=True,
        min_points_per_centroid=1, max_points_per_centroid=len(rows),
    )  # fmt: skip
    gpus = [device.index or 0 for device in devices if device.type == "cuda"]
    if gpus and faiss.get_num_gpus() == 0:
        warnings.warn("engine faiss: this build of faiss uses no GPU, and fits on the CPU; choose torch", stacklevel=3)
    elif gpus:
        kmeans.index = faiss.index_cpu_to_gpus_list(kmeans.index, gpus=gpus)
    kmeans.train(rows)
    vectors = _without_zero_rows(np.asarray(kmeans.centroids, dtype=np.float32), rows)
    return vectors, np.asarray(kmeans.obj, np.float64) / len(rows)


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
