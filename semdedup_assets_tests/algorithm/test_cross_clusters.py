"""The search across clusters: all clusters give what Alg. A7 gives on the whole data set, at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semdedup_assets.algorithm.cross_clusters import Reach, Visits
from semdedup_assets.algorithm.deduplication import Deduplication, semdedup
from semdedup_assets.algorithm.keep_order import KeepStrategy
from semdedup_assets_tests import oracle
from semdedup_assets_tests.toy_source import near_duplicates

REACH = 0.3


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return near_duplicates(7, groups=80, copies=6)


def _key(result: Deduplication, keep: str, ids: np.ndarray) -> np.ndarray:
    """(n,) float64: the keep-order's number of each item, from what the result says of clusters."""
    similarity = result.centroid_similarity
    if keep == "middle":
        medians = np.zeros(len(similarity))
        for cluster in np.unique(result.cluster):
            own = np.sort(similarity[result.cluster == cluster])
            medians[result.cluster == cluster] = own[(len(own) - 1) // 2]
        return np.abs(similarity - medians)
    return {"hard": similarity, "easy": -similarity, "ids": ids.astype(np.float64)}[keep]


@pytest.mark.parametrize("keep", ["hard", "easy", "middle", "ids"])
def test_all_clusters_are_the_whole_data_set_in_one_order(vectors: np.ndarray, keep: KeepStrategy) -> None:
    ids = np.random.default_rng(1).permutation(len(vectors))
    result = semdedup(vectors, k=12, keep=ids if keep == "ids" else keep, ids=ids)
    repaired = result.repaired(clusters=None, epsilon=REACH)
    order = np.lexsort((ids, _key(result, keep, ids)))
    expected = oracle.chain_scores(vectors[order])
    near = expected > 1 - REACH
    found = repaired.similarity[order]
    np.testing.assert_allclose(found[near], expected[near], atol=1e-6)
    # Beyond its reach it may find less than there is, never more.
    assert (found <= expected + 1e-6).all()
    similarity = oracle.unit(vectors) @ oracle.unit(vectors).T
    rank = np.argsort(order)
    rows = np.flatnonzero(repaired.duplicate_of >= 0)
    assert (rank[repaired.duplicate_of[rows]] < rank[rows]).all()
    np.testing.assert_allclose(repaired.similarity[rows], similarity[rows, repaired.duplicate_of[rows]], atol=1e-6)
    assert (result.cluster[repaired.duplicate_of[rows]] != result.cluster[rows]).sum() > 20
    for epsilon in (0.05, 0.2):
        number = oracle.epsilon_in_gap(vectors, epsilon)
        np.testing.assert_array_equal(repaired.keep_mask(number)[order], oracle.chain_keep(vectors[order], number))


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 80), k=st.integers(1, 9), epsilon=st.sampled_from([0.01, 0.1, 0.5, 2.0]), seed=st.integers(0, 99)
)
def test_all_clusters_miss_nothing_within_reach(n: int, k: int, epsilon: float, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float16)
    result = semdedup(vectors, k=min(n, k), seed=seed)
    order = np.lexsort((np.arange(n), result.centroid_similarity))
    expected = oracle.chain_scores(vectors[order])
    near = expected > 1 - epsilon
    found = result.repaired(clusters=None, epsilon=epsilon).similarity[order]
    np.testing.assert_allclose(found[near], expected[near], atol=1e-6)


def test_more_clusters_find_more(vectors: np.ndarray) -> None:
    result = semdedup(vectors, k=12)
    kept = [int(result.repaired(clusters=most, epsilon=REACH).keep_mask(0.2).sum()) for most in (1, 2, 4, None)]
    assert int(result.keep_mask(0.2).sum()) > kept[0] >= kept[1] >= kept[2] >= kept[3]


def test_the_nearest_clusters_are_searched_as_their_definition_says(vectors: np.ndarray) -> None:
    result = semdedup(vectors, k=12)
    repaired = result.repaired(clusters=2, epsilon=REACH)
    unit, centroids = oracle.unit(vectors), oracle.unit(result.centroids)
    to_centroids = unit @ centroids.T
    order = np.lexsort((np.arange(len(vectors)), result.centroid_similarity))
    rank = np.argsort(order)
    others = to_centroids.copy()
    others[np.arange(len(vectors)), result.cluster] = -2
    next_two = np.argsort(-others, axis=1)[:, :2]
    for row in range(len(vectors)):
        there = np.isin(result.cluster, [result.cluster[row], *next_two[row]]) & (rank < rank[row])
        expected = (unit[there] @ unit[row]).max(initial=-np.inf)
        if expected > 1 - REACH:
            assert repaired.similarity[row] == pytest.approx(expected, abs=1e-6)
        assert repaired.similarity[row] <= expected + 1e-6


def test_no_pair_lies_beyond_the_reach_of_its_items(vectors: np.ndarray) -> None:
    result = semdedup(vectors, k=12)
    visits = Visits(
        torch.from_numpy(vectors),
        result.cluster,
        torch.from_numpy(result.centroids),
        reach=Reach(None, 0.08),
        budget=1 << 20,
    )
    row, cluster = visits.of(range(12))
    visited = np.zeros((len(vectors), 12), dtype=bool)
    visited[row, cluster] = True
    # Some clusters are too far for some items, or nothing was saved.
    assert 0 < visited.sum() < 11 * len(vectors)
    similarity = oracle.unit(vectors) @ oracle.unit(vectors).T
    one, other = np.nonzero((similarity > 0.92) & (result.cluster[:, None] != result.cluster))
    assert len(one) > 0
    assert visited[one, result.cluster[other]].all()
    parts = [visits.of(range(start, min(start + 5, 12))) for start in (0, 5, 10)]
    assert sum(len(rows) for rows, _ in parts) == len(row)


def test_every_removed_item_has_a_kept_one_that_stands_for_it(vectors: np.ndarray) -> None:
    result = semdedup(vectors, k=40)
    repaired = result.repaired(clusters=None, epsilon=REACH)
    found = repaired.nearest_kept(0.28)
    np.testing.assert_array_equal(found.keep, repaired.keep_mask(0.28))
    removed = np.flatnonzero(~found.keep)
    assert found.keep[found.kept_neighbour[removed]].all()
    assert (found.kept_neighbour[found.keep] == -1).all()
    similarity = (oracle.unit(vectors) @ oracle.unit(vectors).T)[removed, found.kept_neighbour[removed]]
    known = np.isfinite(found.kept_similarity[removed])
    np.testing.assert_allclose(found.kept_similarity[removed][known], similarity[known], atol=1e-6)
    # Where the nearest earlier item is kept, it is the one.
    direct = found.keep[repaired.duplicate_of[removed]]
    np.testing.assert_array_equal(found.kept_neighbour[removed][direct], repaired.duplicate_of[removed][direct])
    assert not direct.all()
    keeping = np.unique(result.cluster[found.keep])
    assert not np.isin(result.cluster, keeping).all(), "no cluster lost all its items: nothing had to be followed"


def test_what_a_repair_cannot_answer_is_refused(vectors: np.ndarray) -> None:
    repaired = semdedup(vectors, k=5).repaired(epsilon=0.1)
    with pytest.raises(ValueError, match=r"rule: 'greedy' needs all pairs"):
        repaired.keep_mask(0.05, rule="greedy")
    with pytest.raises(ValueError, match=r"epsilon: 0.2 exceeds 0.1"):
        repaired.nearest_kept(0.2)
    with pytest.raises(ValueError, match=r"clusters: 0 is not a positive number"):
        semdedup(vectors, k=5).repaired(clusters=0)


def test_one_cluster_has_no_others(vectors: np.ndarray) -> None:
    result = semdedup(vectors, k=1)
    np.testing.assert_array_equal(result.repaired().similarity, result.similarity)


def test_a_protected_row_is_never_removed_and_suppresses_others_everywhere(vectors: np.ndarray) -> None:
    protect = np.random.default_rng(2).random(len(vectors)) < 0.3
    result = semdedup(vectors, k=12, protect=protect)
    repaired = result.repaired(clusters=None, epsilon=REACH)
    order = np.lexsort((np.arange(len(vectors)), result.centroid_similarity, ~protect))
    expected = oracle.chain_scores(vectors[order])
    near = (expected > 1 - REACH) & ~protect[order]
    np.testing.assert_allclose(repaired.similarity[order][near], expected[near], atol=1e-6)
    assert repaired.keep_mask(0.29)[protect].all()
    assert result.keep_mask(0.29).sum() > repaired.keep_mask(0.29).sum()
