"""The nearest centroid, held against the whole matrix in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.assignment import assign
from semdedup_assets_tests import oracle
from semdedup_assets_tests.algorithm.vectors import random_vectors, repeatable, tensor, vector_arrays

ROOMY, TINY = 1 << 30, 1 << 12


@pytest.mark.parametrize("budget", [ROOMY, 1 << 18, TINY])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 7, 3000])
def test_each_vector_goes_to_its_nearest_centroid(k: int, dtype: type, budget: int) -> None:
    rows, centroids = random_vectors(500, 16, dtype=dtype), random_vectors(k, 16, seed=1)
    found = assign(tensor(rows), tensor(centroids), budget=budget)
    similarity = oracle.unit(rows) @ oracle.unit(centroids).T
    # Two centroids are distinguished down to the rounding of the float32 rows they are compared with.
    assert (similarity.max(axis=1) - similarity[np.arange(500), found.cluster]).max() <= 1e-7
    np.testing.assert_allclose(found.similarity, similarity.max(axis=1), atol=1e-6)
    assert found.cluster.dtype == np.int32
    assert found.similarity.dtype == np.float64


def test_real_vectors_go_to_the_centroid_of_the_whole_matrix(real_vectors: np.ndarray) -> None:
    centroids = oracle.unit(real_vectors[::10]).astype(np.float32)
    found = assign(tensor(real_vectors), tensor(centroids), budget=1 << 20)
    similarity = oracle.unit(real_vectors) @ oracle.unit(centroids).T
    clear = np.diff(np.sort(similarity, axis=1)[:, -2:])[:, 0] > 1e-7
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found.cluster[clear], similarity.argmax(axis=1)[clear])


def test_of_equal_centroids_the_lower_is_taken() -> None:
    distinct = random_vectors(40, 16, seed=1)
    rows = random_vectors(600, 16)
    found = assign(tensor(rows), tensor(np.tile(distinct, (5, 1))), budget=TINY)
    np.testing.assert_array_equal(found.cluster, (rows.astype(np.float64) @ distinct.T).argmax(axis=1))


def test_of_centroids_that_float32_cannot_tell_apart_the_nearer_is_taken() -> None:
    rows, centroids = random_vectors(300, 64), np.repeat(random_vectors(1, 64, seed=1), 50, axis=0)
    steps = np.random.default_rng(0).integers(-1, 2, size=centroids.shape)
    centroids += steps.astype(np.float32) * np.spacing(centroids)
    found = assign(tensor(rows), tensor(centroids), budget=ROOMY)
    exact = oracle.unit(rows) @ centroids.astype(np.float64).T
    assert np.ptp(exact, axis=1).max() < 1e-7
    assert (exact.max(axis=1) - exact[np.arange(300), found.cluster]).max() < 2e-12


@given(rows=vector_arrays(), k=st.integers(1, 9), seed=st.integers(0, 1000), budget=st.sampled_from([ROOMY, TINY, 1]))
@repeatable
def test_order_and_batches_change_no_assignment(rows: np.ndarray, k: int, seed: int, budget: int) -> None:
    centroids = tensor(random_vectors(k, rows.shape[1], seed=seed))
    order = np.random.default_rng(seed).permutation(len(rows))
    whole, mixed = assign(tensor(rows), centroids, budget=ROOMY), assign(tensor(rows[order]), centroids, budget=budget)
    np.testing.assert_array_equal(mixed.cluster, whole.cluster[order])
    np.testing.assert_array_equal(mixed.similarity, whole.similarity[order])
    alone = [assign(tensor(rows[i : i + 1]), centroids, budget=ROOMY) for i in range(min(5, len(rows)))]
    assert [float(a.similarity[0]) for a in alone] == whole.similarity[:5].tolist()


def test_no_vectors_have_no_clusters() -> None:
    found = assign(torch.empty(0, 8), tensor(random_vectors(3, 8)), budget=ROOMY)
    assert found.cluster.shape == found.similarity.shape == (0,)


def test_vectors_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="vectors of 8 numbers, centroids of 16: they come from different models"):
        assign(tensor(random_vectors(4, 8)), tensor(random_vectors(3, 16)), budget=ROOMY)
