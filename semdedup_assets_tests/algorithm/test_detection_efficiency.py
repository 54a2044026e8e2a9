"""The share of duplicates that lie within clusters, against whole matrices in float64."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semdedup_assets.algorithm.deduplication import Deduplication, semdedup
from semdedup_assets.algorithm.detection_efficiency import FoundShare
from semdedup_assets_tests import oracle
from semdedup_assets_tests.toy_source import near_duplicates

EPSILONS = (0.01, 0.05, 0.1, 0.2, 0.4)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return near_duplicates(3, groups=150, copies=6)


@pytest.fixture(scope="module")
def result(vectors: np.ndarray) -> Deduplication:
    return semdedup(vectors, k=15)


def _matrices(vectors: np.ndarray, epsilon: float) -> np.ndarray:
    """(n, n) bool: which pairs are duplicates; none lies at the threshold."""
    similarity = oracle.unit(vectors) @ oracle.unit(vectors).T
    np.fill_diagonal(similarity, -2)
    assert np.abs(similarity - (1 - epsilon)).min() > 1e-7
    return similarity > 1 - epsilon


def _counts(share: FoundShare, index: int) -> tuple[int, int]:
    return int(share.found[index]), int(share.total[index])


def test_all_pairs_are_counted_as_whole_matrices_count_them(vectors: np.ndarray, result: Deduplication) -> None:
    found = result.detection_efficiency(epsilon=EPSILONS[::-1], neighbours=None)
    within = result.cluster[:, None] == result.cluster
    assert found.epsilons.tolist() == list(EPSILONS)
    for index, epsilon in enumerate(EPSILONS):
        pairs = _matrices(vectors, epsilon)
        assert _counts(found.pairs, index) == ((pairs & within).sum(), pairs.sum())
        assert _counts(found.items, index) == ((pairs & within).any(1).sum(), pairs.any(1).sum())
    assert found.items.share[-1] < 1
    np.testing.assert_array_equal(found.items.low, found.items.share)


def test_sampled_clusters_are_compared_with_their_nearest_neighbours(
    vectors: np.ndarray, result: Deduplication
) -> None:
    found = result.detection_efficiency(epsilon=EPSILONS, neighbours=4, clusters=6, seed=5)
    centroids = oracle.unit(result.centroids)
    among = centroids @ centroids.T
    np.fill_diagonal(among, 2)
    searched = np.zeros((15, 15), dtype=bool)
    np.put_along_axis(searched, np.argsort(-among, axis=1)[:, :5], True, axis=1)
    sampled = np.isin(result.cluster, found.clusters)
    seen = searched[result.cluster][:, result.cluster] & sampled[:, None]
    within = result.cluster[:, None] == result.cluster
    for index, epsilon in enumerate(EPSILONS):
        pairs = _matrices(vectors, epsilon) & seen
        assert _counts(found.pairs, index) == ((pairs & within).sum(), pairs.sum())
        assert _counts(found.items, index) == ((pairs & within).any(1).sum(), pairs.any(1).sum())
    assert len(found.clusters) == 6
    assert (found.pairs.low <= found.pairs.share).all()
    assert (found.pairs.share <= found.pairs.high).all()
    assert found.pairs.low[-1] < found.pairs.high[-1]


def test_next_nearest_clusters_find_what_lies_in_them(vectors: np.ndarray, result: Deduplication) -> None:
    found = result.detection_efficiency(epsilon=EPSILONS, neighbours=None)
    similarity = oracle.unit(vectors) @ oracle.unit(result.centroids).T
    np.put_along_axis(similarity, result.cluster[:, None], 2, axis=1)
    rank = np.argsort(np.argsort(-similarity, axis=1), axis=1)[:, result.cluster]
    sizes = np.bincount(result.cluster, minlength=15)
    for searched in found.searched:
        for index, epsilon in enumerate(EPSILONS):
            pairs = _matrices(vectors, epsilon)
            here = pairs & (rank <= searched.clusters)
            assert _counts(searched.pairs, index) == (here.sum(), pairs.sum())
            assert _counts(searched.items, index) == (here.any(1).sum(), pairs.any(1).sum())
        # At most so many are compared: a cluster out of reach is not.
        most = (sizes[result.cluster] - 1 + _sizes_of_next(similarity, sizes, searched.clusters)).mean() / 2
        assert searched.comparisons[0] <= searched.comparisons[-1] <= most + 1e-9
    assert found.searched[-1].pairs.share.min() == 1


def _sizes_of_next(similarity: np.ndarray, sizes: np.ndarray, clusters: int) -> np.ndarray:
    return sizes[np.argsort(-similarity, axis=1)[:, 1 : 1 + clusters]].sum(1)


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 60),
    k=st.integers(1, 8),
    clusters=st.none() | st.integers(1, 8),
    neighbours=st.none() | st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_no_share_exceeds_one(n: int, k: int, clusters: int | None, neighbours: int | None, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(n, 4))
    result = semdedup(vectors, k=min(n, k), seed=seed)
    found = result.detection_efficiency(epsilon=EPSILONS, neighbours=neighbours, clusters=clusters, seed=seed)
    for share in (found.items, found.pairs):
        assert (share.found <= share.total).all()
        known = share.total > 0
        assert np.isfinite(share.share[known]).all()
        assert np.isnan(share.share[~known]).all()
        assert (share.share[known] <= 1).all()


@settings(max_examples=10, deadline=None)
@given(n=st.integers(1, 50), seed=st.integers(0, 99))
def test_of_one_cluster_everything_is_found(n: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(n, 3))
    found = semdedup(vectors, k=1).detection_efficiency(epsilon=EPSILONS, neighbours=None)
    for share in (found.items, found.pairs):
        np.testing.assert_array_equal(share.found, share.total)


def test_equal_vectors_are_duplicates_at_any_epsilon_but_zero() -> None:
    vectors = np.repeat(np.random.default_rng(0).normal(size=(5, 8)), 3, axis=0).astype(np.float16)
    found = semdedup(vectors, k=2).detection_efficiency(epsilon=[0, 1e-6], neighbours=None)
    assert found.items.total.tolist() == [0, 15]
    assert found.pairs.found.tolist() == [0, 30]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 3.0}, "epsilon: 3.0 is outside"),
        ({"epsilon": 0.1, "neighbours": -1}, "neighbours: -1 is negative"),
        ({"epsilon": 0.1, "clusters": 0}, "clusters: 0 is not a positive"),
    ],
)
def test_invalid_arguments_are_named(result: Deduplication, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        result.detection_efficiency(**arguments)


@pytest.mark.parametrize("epsilon", [0.1, [0.1], np.array([0.1])])
def test_one_epsilon_or_several(result: Deduplication, epsilon: float | Sequence[float]) -> None:
    assert result.detection_efficiency(epsilon=epsilon).items.share.shape == (1,)
