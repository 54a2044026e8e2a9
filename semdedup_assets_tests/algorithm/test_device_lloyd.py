"""Lloyd's iterations over several devices, here the CPU several times, held against NumPy in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.assignment import assign_on
from semdedup_assets.algorithm.device_lloyd import Candidates, fit_on_devices
from semdedup_assets.algorithm.lloyd import first_rows, split_for_empty
from semdedup_assets.algorithm.parallel import on_devices
from semdedup_assets_tests import oracle
from semdedup_assets_tests.algorithm.vectors import random_vectors, repeatable

CPU = torch.device("cpu")


def clustered(count: int, dimension: int, *, clusters: int) -> np.ndarray:
    """(n, d) float16 rows of different lengths, some near to each of a few directions."""
    centres, noise = random_vectors(clusters, dimension), random_vectors(count, dimension, seed=1)
    rows = centres[np.arange(count) % clusters] + 0.8 * noise
    return (rows * np.linspace(0.5, 2, count)[:, None]).astype(np.float16)


def plain_lloyd(rows: np.ndarray, first: np.ndarray, iterations: int) -> tuple[np.ndarray, list[float]]:
    """Centroids and mean similarities of spherical k-means, of clusters that do not become empty."""
    unit, objective = oracle.unit(rows), list[float]()
    centroids = unit[first]
    for _ in range(iterations):
        similarity = unit @ centroids.T
        objective.append(float(similarity.max(axis=1).mean()))
        nearest = similarity.argmax(axis=1)
        centroids = oracle.unit(np.stack([unit[nearest == cluster].sum(axis=0) for cluster in range(len(first))]))
    return centroids, objective


def test_centroids_are_those_of_plain_lloyd_iterations(real_vectors: np.ndarray) -> None:
    rows, first = torch.from_numpy(real_vectors), first_rows(len(real_vectors), k=12, seed=2)
    vectors, objective = fit_on_devices(rows, first, iterations=6, devices=[CPU], budget=0)
    expected, similarities = plain_lloyd(real_vectors, first.numpy(), 6)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(objective, similarities, atol=1e-6)


def test_the_number_of_devices_changes_no_bit() -> None:
    rows = torch.from_numpy(clustered(70_000, 16, clusters=60))
    first = first_rows(len(rows), k=50, seed=0)
    alone, *others = (
        fit_on_devices(rows, first, iterations=4, devices=[CPU] * count, budget=0) for count in (1, 2, 3, 9)
    )
    for vectors, objective in others:
        np.testing.assert_array_equal(vectors, alone[0])
        np.testing.assert_array_equal(objective, alone[1])


def test_more_devices_than_blocks_and_early_convergence_are_fine() -> None:
    rows = torch.from_numpy(np.repeat(random_vectors(6), 4, axis=0))
    vectors, objective = fit_on_devices(rows, torch.arange(0, 24, 4), iterations=50, devices=[CPU] * 3, budget=0)
    np.testing.assert_allclose(vectors, oracle.unit(random_vectors(6)), atol=1e-6)
    assert len(objective) == 2
    assert objective[-1] == pytest.approx(1, abs=1e-6)


def test_in_half_precision_the_chosen_centroid_is_as_good_as_the_nearest() -> None:
    """Also where all vectors share a large number, as CLIP's do, which would take most of the digits."""
    shared = np.zeros(64)
    shared[0] = 3
    rows, centroids = (oracle.unit(random_vectors(count, 64, seed=count) + shared) for count in (300, 5000))
    nearest = nearest_in_half(rows, centroids)
    similarity = rows @ centroids.T
    lost = similarity.max(axis=1) - similarity[np.arange(len(rows)), nearest]
    assert lost.max() < 1e-3
    assert lost.mean() < 2e-5


def nearest_in_half(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """What a GPU would choose, whose products are of 16 bits."""
    candidates = Candidates.of(
        torch.from_numpy(centroids).float(), torch.from_numpy(centroids.mean(axis=0)).float(), CPU, torch.float16
    )
    nearest: np.ndarray = candidates.nearest(torch.from_numpy(rows).float()).numpy()
    return nearest


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=30))
@repeatable
def test_each_empty_cluster_takes_half_of_the_largest(sizes: list[int]) -> None:
    centroids = torch.from_numpy(oracle.unit(random_vectors(len(sizes), 8))).float()
    expected, left = centroids.clone(), list(sizes)
    for empty in [cluster for cluster, size in enumerate(sizes) if size == 0]:
        largest = left.index(max(left))
        if left[largest] < 2:
            break
        signs = torch.tensor([1.0, -1.0] * 4) / 1024
        up, down = expected[largest] * (1 + signs), expected[largest] * (1 - signs)
        expected[empty], expected[largest] = up / up.norm(), down / down.norm()
        left[empty], left[largest] = left[largest] // 2, left[largest] - left[largest] // 2
    split_for_empty(centroids, torch.tensor(sizes))
    torch.testing.assert_close(centroids, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("devices", [1, 2, 7])
def test_vectors_that_are_divided_among_devices_get_the_nearest_centroid(
    real_vectors: np.ndarray, devices: int
) -> None:
    centroids = oracle.unit(real_vectors[::9]).astype(np.float32)
    found = assign_on(
        torch.from_numpy(real_vectors), torch.from_numpy(centroids), devices=[CPU] * devices, budget=1 << 24
    )
    similarity = oracle.unit(real_vectors) @ oracle.unit(centroids).T
    np.testing.assert_allclose(found.similarity, similarity.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(similarity[np.arange(len(similarity)), found.cluster], similarity.max(axis=1), atol=1e-9)


def test_what_fails_on_one_device_is_raised() -> None:
    def fail() -> int:
        message = "out of memory"
        raise RuntimeError(message)

    assert on_devices([lambda: 1, lambda: 2, lambda: 3]) == [1, 2, 3]
    with pytest.raises(RuntimeError, match="out of memory"):
        on_devices([lambda: 1, fail])
