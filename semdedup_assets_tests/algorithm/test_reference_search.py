"""Reference rows within epsilon, against whole matrices in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semdedup_assets.algorithm.assignment import NearestCentroids
from semdedup_assets.algorithm.reference_search import Matches, NearestClusters, ReferenceRows, best_by_group
from semdedup_assets_tests.oracle import unit
from semdedup_assets_tests.toy_source import near_duplicates

BUDGET = 1 << 20


def clustered(rows: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows sorted by their nearest centroid, that centroid of each, and where each cluster starts."""
    cluster = (unit(rows) @ centroids.T).argmax(axis=1)
    order = np.argsort(cluster, kind="stable")
    return rows[order], cluster[order], np.searchsorted(cluster[order], np.arange(len(centroids) + 1))


def searched(
    rows: np.ndarray, offsets: np.ndarray, references: np.ndarray, centroids: np.ndarray, **settings: float
) -> Matches:
    nearest = NearestCentroids(torch.from_numpy(centroids.astype(np.float32)), budget=BUDGET)
    most = settings.get("most")
    found = NearestClusters.of(
        torch.from_numpy(references), nearest, most=None if most is None else int(most), budget=BUDGET
    )
    prepared = ReferenceRows(torch.from_numpy(references), found, nearest.centroids, settings["epsilon"])
    return prepared.search(torch.from_numpy(rows), offsets, 0, budget=BUDGET)


def gap_epsilon(similarity: np.ndarray, epsilon: float) -> float:
    """An epsilon near to a wanted one whose threshold lies away from every similarity."""
    values = np.sort(similarity.ravel())
    edges = np.concatenate([[-1.0], values, [1.0]])
    wide = np.flatnonzero(np.diff(edges) > 2e-5)
    middle = (edges[wide] + edges[wide + 1]) / 2
    return float(1 - middle[np.abs(middle - (1 - epsilon)).argmin()])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("k", [1, 4, 30])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), epsilon=st.floats(0.001, 1.2))
def test_every_row_within_epsilon_is_found_whatever_its_cluster(k: int, dtype: type, seed: int, epsilon: float) -> None:
    made = unit(near_duplicates(seed, groups=30, copies=5)).astype(dtype)
    centroids = unit(np.random.default_rng(seed).normal(size=(k, made.shape[1])))
    rows, _, offsets = clustered(made[:110], centroids)
    references = made[110:]
    similarity = unit(rows) @ unit(references).T  # (n, m)
    epsilon = gap_epsilon(similarity, epsilon)
    found = searched(rows, offsets, references, centroids, epsilon=epsilon)
    within = similarity.max(axis=1) > 1 - epsilon
    np.testing.assert_array_equal(found.position >= 0, within)
    here = np.flatnonzero(within)
    np.testing.assert_allclose(found.similarity[here], similarity[here].max(axis=1), atol=2e-6)
    np.testing.assert_allclose(similarity[here, found.position[here]], similarity[here].max(axis=1), atol=2e-6)
    assert np.isneginf(found.similarity[~within]).all()


def test_clusters_too_far_away_are_not_visited() -> None:
    made = unit(near_duplicates(0, groups=60, copies=8, dimension=32)).astype(np.float32)
    rng = np.random.default_rng(1)
    centroids = unit(made[rng.choice(len(made), 20, replace=False)])
    rows, _, offsets = clustered(made[:400], centroids)
    found = searched(rows, offsets, made[400:], centroids, epsilon=0.01)
    similarity = unit(rows) @ unit(made[400:]).T
    assert ((similarity.max(axis=1) > 0.99) == (found.position >= 0)).all()
    assert 0 < found.pairs < 0.5 * similarity.size


def test_a_bound_on_clusters_searches_the_nearest_ones_only() -> None:
    made = unit(near_duplicates(3, groups=40, copies=6)).astype(np.float32)
    centroids = unit(np.random.default_rng(3).normal(size=(12, 16)))
    rows, cluster, offsets = clustered(made[:180], centroids)
    references = made[180:]
    similarity = unit(rows) @ unit(references).T
    epsilon = gap_epsilon(similarity, 0.3)
    for most in (1, 3):
        allowed = np.argsort(-(unit(references) @ centroids.T), axis=1)[:, :most]
        seen = (allowed[None] == cluster[:, None, None]).any(axis=2)  # (n, m)
        expected = np.where(seen, similarity, -1).max(axis=1) > 1 - epsilon
        found = searched(rows, offsets, references, centroids, epsilon=epsilon, most=most)
        np.testing.assert_array_equal(found.position >= 0, expected)
    whole = searched(rows, offsets, references, centroids, epsilon=epsilon)
    assert (whole.position >= 0).sum() > expected.sum()


def test_the_earliest_of_equal_references_wins() -> None:
    made = unit(near_duplicates(5, groups=10, copies=2)).astype(np.float16)
    centroids = unit(np.random.default_rng(5).normal(size=(3, 16)))
    rows, _, offsets = clustered(made, centroids)
    found = searched(rows, offsets, np.concatenate([rows[::-1], rows]), centroids, epsilon=0.001)
    copies = unit(rows) @ unit(rows).T > 1 - 1e-6
    for row, position in enumerate(found.position):
        assert position == min(len(rows) - 1 - other for other in np.flatnonzero(copies[row]))


def test_nothing_to_hold_against_matches_nothing() -> None:
    made = unit(near_duplicates(6)).astype(np.float32)
    rows, _, offsets = clustered(made, unit(made[:2]))
    found = searched(rows, offsets, made[:0], unit(made[:2]), epsilon=0.5)
    assert (found.position == -1).all()
    assert found.pairs == 0
    assert len(searched(made[:0], np.zeros(3, np.int64), made, unit(made[:2]), epsilon=0.5).position) == 0


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.sampled_from([0.5, 0.7, 0.7 + 5e-7, 0.9])), max_size=40)
)
def test_the_best_of_each_group_is_the_most_similar_and_then_the_first(rows: list[tuple[int, int, float]]) -> None:
    group, rank, similarity = (
        np.array([row[at] for row in rows], dtype) for at, dtype in ((0, np.uint64), (1, np.uint64), (2, np.float32))
    )
    expected = []
    for each in sorted(set(group.tolist())):
        own = [row for row in range(len(rows)) if group[row] == each]
        best = max(float(similarity[row]) for row in own)
        near = [row for row in own if float(similarity[row]) >= best - 1e-6]
        expected.append(min(near, key=lambda row: rank[row]))
    found = best_by_group(group, rank, similarity).tolist()
    assert [(group[row], rank[row]) for row in found] == [(group[row], rank[row]) for row in expected]
