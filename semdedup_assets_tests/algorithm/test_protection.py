"""Protected items come first, are never removed, and know what they would be without protection."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets import semdedup
from semdedup_assets.algorithm.keep_order import cluster_offsets, overtaken_by_protected
from semdedup_assets.algorithm.protection import protect, unprotected_similarity
from semdedup_assets.algorithm.similarity import score_clusters
from semdedup_assets_tests import oracle
from semdedup_assets_tests.algorithm.vectors import near_duplicates, repeatable


@given(n=st.integers(0, 60), k=st.integers(1, 5), share=st.floats(0, 1), seed=st.integers(0, 1000))
@repeatable
def test_a_protected_row_knows_its_similarity_in_the_order_without_protection(
    n: int, k: int, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = near_duplicates(n, 8, epsilon=0.1, seed=seed).reshape(n, 8)
    cluster, protected, rank = np.sort(rng.integers(0, k, n)), rng.random(n) < share, rng.permutation(n)
    plain = np.lexsort((rank, cluster))
    overtaken = overtaken_by_protected(cluster, plain, protected)
    order = np.lexsort((rank, ~protected, cluster))
    offsets = cluster_offsets(cluster, k=k)
    rows = torch.from_numpy(vectors[order])
    earlier = score_clusters(rows, offsets, budget=1 << 20)
    found = unprotected_similarity(rows, offsets, earlier=earlier, overtaken=overtaken[order], budget=1 << 20)

    expected = np.full(n, np.nan)
    for own in range(k):
        members = plain[cluster[plain] == own]
        scores = oracle.chain_scores(vectors[members])
        expected[members] = np.where(protected[members], scores, np.nan)
        before = [(~protected[members[:position]]).sum() for position in range(len(members))]
        np.testing.assert_array_equal(overtaken[members], np.where(protected[members], before, -1))
    np.testing.assert_allclose(found, expected[order], atol=1e-5)
    shielded = protect(earlier, protected[order])
    assert np.isneginf(shielded.similarity[protected[order]]).all()
    np.testing.assert_array_equal(shielded.similarity[~protected[order]], earlier.similarity[~protected[order]])


@pytest.mark.parametrize("rule", ["chain", "greedy"])
@given(n=st.integers(1, 60), share=st.floats(0, 1), seed=st.integers(0, 1000), keep=st.sampled_from(["hard", "middle"]))
@repeatable
def test_no_epsilon_removes_a_protected_row_and_it_removes_others(
    n: int, share: float, seed: int, keep: str, rule: str
) -> None:
    protected = np.random.default_rng(seed).random(n) < share
    vectors = near_duplicates(n, 8, epsilon=0.1, seed=seed)
    result = semdedup(vectors, k=1, keep=keep, protect=protected)  # type: ignore[arg-type]
    similarity = oracle.unit(vectors) @ oracle.unit(vectors).T
    for epsilon in (0.0, 0.05, 0.2, 1.0, 2.0):
        kept = result.keep_mask(epsilon, rule=rule)  # type: ignore[arg-type]
        assert kept[protected].all()
        near = (similarity[:, protected] > 1 - epsilon + 1e-5).any(axis=1)
        assert not kept[near & ~protected].any()


def test_protection_needs_a_bool_for_each_row() -> None:
    vectors = near_duplicates(5, 8, epsilon=0.1)
    for wrong in (np.zeros(4, bool), np.zeros(5, np.int64)):
        with pytest.raises(ValueError, match="protect: expected a NumPy array of 5 bools"):
            semdedup(vectors, k=1, protect=wrong)
    with pytest.raises(TypeError, match="protect: list is no NumPy array"):
        semdedup(vectors, k=1, protect=[True] * 5)  # type: ignore[arg-type]
