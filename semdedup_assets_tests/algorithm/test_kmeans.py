"""Spherical k-means, held against plain Lloyd iterations in float64."""

from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.kmeans import Engine, chosen_engine, spherical_kmeans, suggest_k
from semdedup_assets.algorithm.prefilter import integers_are_fast
from semdedup_assets_tests import oracle
from semdedup_assets_tests.algorithm.vectors import random_vectors, repeatable, repeated

ENGINES: tuple[Engine, ...] = ("faiss", "int8", "torch")
each = pytest.mark.parametrize("engine", ENGINES)


def mean_similarity(rows: np.ndarray, centroids: np.ndarray) -> float:
    return float((oracle.unit(rows) @ oracle.unit(centroids).T).max(axis=1).mean())


@each
@pytest.mark.parametrize("k", [2, 10, 40])
def test_the_objective_does_not_fall_over_the_iterations(real_vectors: np.ndarray, k: int, engine: Engine) -> None:
    objective = spherical_kmeans(real_vectors, k=k, iterations=30, seed=0, engine=engine).objective
    assert 3 < len(objective) <= 30
    assert np.diff(objective).min() > -1e-5
    assert objective[-1] > objective[0] + 0.01


@each
@pytest.mark.parametrize("k", [1, 10, 40])
def test_the_last_objective_is_the_mean_similarity_to_the_nearest_centroid(
    real_vectors: np.ndarray, k: int, engine: Engine
) -> None:
    fitted = spherical_kmeans(real_vectors, k=k, iterations=60, seed=0, engine=engine)
    assert fitted.objective[-1] == pytest.approx(mean_similarity(real_vectors, fitted.vectors), abs=1e-4)
    nearest = (oracle.unit(real_vectors) @ fitted.vectors.T).argmax(axis=1)
    np.testing.assert_array_equal(fitted.sizes, np.bincount(nearest, minlength=k))


@each
@pytest.mark.parametrize("k", [5, 20])
def test_the_objective_is_that_of_plain_lloyd_iterations_or_better(
    real_vectors: np.ndarray, k: int, engine: Engine
) -> None:
    fitted = spherical_kmeans(real_vectors, k=k, iterations=50, seed=3, engine=engine)
    plain = np.median([oracle.lloyd_objective(real_vectors, k, 50, seed) for seed in range(3)])
    assert mean_similarity(real_vectors, fitted.vectors) >= 0.98 * plain


@each
def test_one_centroid_is_the_mean_direction(real_vectors: np.ndarray, engine: Engine) -> None:
    fitted = spherical_kmeans(real_vectors, k=1, iterations=5, seed=0, engine=engine)
    mean = oracle.unit(oracle.unit(real_vectors).sum(axis=0, keepdims=True))
    np.testing.assert_allclose(fitted.vectors, mean, atol=1e-5)
    assert fitted.sizes.tolist() == [len(real_vectors)]


@each
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_gives_the_same_centroids_and_another_seed_others(
    real_vectors: np.ndarray, threads: int, engine: Engine
) -> None:
    faiss.omp_set_num_threads(threads)
    first, again, other = (
        spherical_kmeans(real_vectors, k=15, iterations=20, seed=seed, engine=engine) for seed in (7, 7, 8)
    )
    faiss.omp_set_num_threads(1)
    np.testing.assert_array_equal(first.vectors, again.vectors)
    np.testing.assert_array_equal(first.objective, again.objective)
    assert not np.array_equal(first.vectors, other.vectors)


@each
def test_as_many_clusters_as_items_gives_each_its_own(engine: Engine) -> None:
    rows = random_vectors(30)
    fitted = spherical_kmeans(rows, k=30, iterations=10, seed=0, engine=engine)
    assert fitted.sizes.tolist() == [1] * 30
    assert fitted.empty == 0
    assert fitted.objective[-1] == pytest.approx(1, abs=1e-6)


def test_more_clusters_than_items_gives_as_many_as_items_and_says_so() -> None:
    with pytest.warns(UserWarning, match="k = 50 exceeds the 7 sampled items; 7 clusters are fitted"):
        fitted = spherical_kmeans(random_vectors(7), k=50, iterations=10, seed=0)
    assert fitted.k == 7
    assert fitted.sizes.tolist() == [1] * 7


@each
@pytest.mark.parametrize("k", [4, 20, 199])
def test_duplicates_leave_clusters_empty_and_the_others_right(k: int, engine: Engine) -> None:
    rows, _ = repeated(200, groups=3)
    fitted = spherical_kmeans(rows, k=k, iterations=10, seed=0, engine=engine)
    assert fitted.vectors.shape == (k, 32)
    assert fitted.empty >= k - 3
    assert fitted.sizes.sum() == 200
    assert mean_similarity(rows, fitted.vectors) == pytest.approx(1, abs=1e-3)


@each
@pytest.mark.parametrize("k", [1, 3, 20])
def test_centroids_are_of_unit_norm_also_where_members_cancel_out(k: int, engine: Engine) -> None:
    half = random_vectors(10, 4)
    fitted = spherical_kmeans(np.concatenate([half, -half]), k=k, iterations=10, seed=0, engine=engine)
    np.testing.assert_allclose(np.linalg.norm(fitted.vectors, axis=1), 1, atol=1e-6)


@each
def test_the_length_of_the_rows_does_not_matter(real_vectors: np.ndarray, engine: Engine) -> None:
    rows = oracle.unit(real_vectors).astype(np.float32)
    longer = rows * np.float32(4)
    np.testing.assert_array_equal(
        spherical_kmeans(rows, k=8, iterations=10, seed=0, engine=engine).vectors,
        spherical_kmeans(longer, k=8, iterations=10, seed=0, engine=engine).vectors,
    )


@pytest.mark.parametrize("engine", ["int8", "torch"])
def test_a_sample_that_does_not_fit_the_budget_gives_the_same_centroids(tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "sample.npy"
    np.save(path, random_vectors(70_000, 16).astype(np.float16))
    mapped = np.load(path, mmap_mode="r")
    within, beyond = (
        spherical_kmeans(mapped, k=50, iterations=4, seed=0, engine=engine, budget=budget)
        for budget in (1 << 30, 1 << 20)
    )
    np.testing.assert_array_equal(within.vectors, beyond.vectors)
    np.testing.assert_array_equal(within.objective, beyond.objective)
    np.testing.assert_array_equal(within.sizes, beyond.sizes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k = 0, iterations = 5: both must be at least 1"),
        ({"k": -3}, "k = -3"),
        ({"iterations": 0}, "iterations = 0"),
    ],
)
def test_counts_below_one_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spherical_kmeans(random_vectors(9), **{"k": 2, "iterations": 5, "seed": 0, **change})


def test_samples_without_directions_are_refused() -> None:
    rows = random_vectors(9)
    rows[4] = 0
    with pytest.raises(ValueError, match="row 4 is a zero vector"):
        spherical_kmeans(rows, k=2, iterations=5, seed=0)
    rows[2, 3] = np.nan
    with pytest.raises(ValueError, match="row 2 is not finite"):
        spherical_kmeans(rows, k=2, iterations=5, seed=0)
    with pytest.raises(ValueError, match="the sample is empty"):
        spherical_kmeans(rows[:0], k=2, iterations=5, seed=0)


def test_the_engine_follows_the_devices_that_are_allowed() -> None:
    def chosen(engine: Engine, *devices: str) -> str:
        return chosen_engine(engine, k=1000, dimension=512, devices=[torch.device(name) for name in devices])

    assert chosen("auto", "cuda:0", "cuda:1") == "torch"
    assert chosen("auto", "cpu") == ("int8" if integers_are_fast() else "faiss")
    assert chosen_engine("auto", k=10, dimension=512, devices=[torch.device("cpu")]) == "faiss"
    assert [chosen(engine, "cuda:1") for engine in ENGINES] == list(ENGINES)


@given(few=st.integers(0, 10**10), factor=st.floats(1.2, 1000))
@repeatable
def test_the_suggested_k_grows_as_the_square_root_of_half_the_items(few: int, factor: float) -> None:
    assert 1 <= suggest_k(few) <= suggest_k(int(few * factor))
    if few >= 200:
        assert suggest_k(few) == pytest.approx(np.sqrt(few / 2), rel=0.06)
