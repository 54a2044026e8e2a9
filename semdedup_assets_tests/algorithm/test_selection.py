"""Both rules, and the nearest kept neighbours, held against their definitions."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm import selection
from semdedup_assets.algorithm.selection import (
    SelectionRule,
    chain_selection,
    earlier_positions,
    greedy_keep_clusters,
    greedy_keep_mask,
    keep_mask,
    orphans,
    select,
    select_clusters,
)
from semdedup_assets.algorithm.similarity import EarlierSimilarity, max_earlier_similarity, score_clusters
from semdedup_assets_tests import oracle
from semdedup_assets_tests.algorithm.vectors import (
    arc,
    near_duplicates,
    random_vectors,
    repeatable,
    repeated,
    tensor,
    vector_arrays,
)

ROOMY, TINY = 1 << 30, 1 << 17


def chain_mask(rows: np.ndarray, epsilon: float) -> np.ndarray:
    return keep_mask(max_earlier_similarity(tensor(rows), budget=ROOMY).similarity, epsilon)


def greedy_mask(rows: np.ndarray, epsilon: float, *, budget: int = ROOMY) -> np.ndarray:
    earlier = max_earlier_similarity(tensor(rows), budget=budget)
    return greedy_keep_mask(tensor(rows), earlier, epsilon, budget=budget)


@given(
    similarity=st.floats(-1, 1, width=32).filter(lambda s: s == 0 or abs(s) > 1e-6),
)
@repeatable
def test_removal_is_strict_an_item_at_the_threshold_is_kept(similarity: float) -> None:
    scores = np.array([similarity], dtype=np.float32)
    epsilon = 1 - float(similarity)
    assert keep_mask(scores, epsilon).all()
    assert keep_mask(scores, max(0.0, epsilon - 1e-9)).all()
    if epsilon + 1e-9 <= 2:
        assert not keep_mask(scores, epsilon + 1e-9).any()


def test_at_epsilon_zero_nothing_is_removed_not_even_exact_duplicates() -> None:
    rows, _ = repeated(200, groups=5)
    assert chain_mask(rows, 0).all()
    assert greedy_mask(rows, 0).all()


def test_at_epsilon_two_only_the_first_and_opposites_are_kept() -> None:
    rows = random_vectors(100)
    assert chain_mask(rows, 2).tolist() == [True] + [False] * 99
    assert greedy_mask(rows, 2).tolist() == [True] + [False] * 99
    opposites = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    assert chain_mask(opposites, 2).all()


def test_the_greedy_rule_too_keeps_an_item_at_the_threshold() -> None:
    # The second row falls to the first, and alone stands between the chain rule and the last two.
    rows = np.array([[1, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    rows[1] /= np.linalg.norm(rows[1])
    assert chain_mask(rows, 1).tolist() == [True, False, False, False]
    assert greedy_mask(rows, 1).tolist() == [True, False, True, True]


@pytest.mark.parametrize("epsilon", [0, 0.05, 1, 2])
def test_a_cluster_of_one_is_kept(epsilon: float) -> None:
    assert chain_mask(random_vectors(1), epsilon).tolist() == [True]
    assert greedy_mask(random_vectors(1), epsilon).tolist() == [True]


@pytest.mark.parametrize("epsilon", [-0.001, 2.001, np.nan, np.inf])
def test_an_epsilon_outside_its_range_is_refused(epsilon: float) -> None:
    rows = random_vectors(3)
    with pytest.raises(ValueError, match=rf"epsilon: {epsilon} is outside \[0, 2\].*higher epsilon removes more"):
        keep_mask(np.zeros(3, dtype=np.float32), epsilon)
    with pytest.raises(ValueError, match="epsilon"):
        greedy_mask(rows, epsilon)


@pytest.mark.parametrize("budget", [ROOMY, TINY])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("n", [1, 2, 5, 300, 1500])
def test_both_rules_keep_what_their_definitions_keep(n: int, dtype: type, budget: int) -> None:
    rows = near_duplicates(n, epsilon=0.05, seed=n, dtype=dtype)
    epsilon = oracle.epsilon_in_gap(rows, 0.05)
    np.testing.assert_array_equal(chain_mask(rows, epsilon), oracle.chain_keep(rows, epsilon))
    np.testing.assert_array_equal(greedy_mask(rows, epsilon, budget=budget), oracle.greedy_keep(rows, epsilon))


@pytest.mark.parametrize("epsilon", [0.005, 0.05, 0.2, 0.5])
def test_both_rules_keep_what_their_definitions_keep_of_real_vectors(real_vectors: np.ndarray, epsilon: float) -> None:
    epsilon = oracle.epsilon_in_gap(real_vectors, epsilon)
    chain, greedy = oracle.chain_keep(real_vectors, epsilon), oracle.greedy_keep(real_vectors, epsilon)
    assert chain.sum() < len(chain)
    np.testing.assert_array_equal(chain_mask(real_vectors, epsilon), chain)
    np.testing.assert_array_equal(greedy_mask(real_vectors, epsilon), greedy)


def test_the_greedy_rule_holds_in_a_chain_longer_than_its_blocks() -> None:
    rows = arc(1500, step=0.004)
    epsilon = oracle.epsilon_in_gap(rows, float(1 - np.cos(2.5 * 0.004)))
    greedy = greedy_mask(rows, epsilon)
    np.testing.assert_array_equal(greedy, oracle.greedy_keep(rows, epsilon))
    # The chain rule lets each fall to the one before it; the greedy rule keeps every third.
    assert chain_mask(rows, epsilon).sum() == 1
    np.testing.assert_array_equal(np.flatnonzero(greedy), np.arange(0, 1500, 3))


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_greedy_rule_holds_on_a_net_larger_than_its_blocks(shuffled: bool) -> None:
    circle = arc(40, step=0.15)
    rows = np.concatenate([np.repeat(circle, 40, axis=0), np.tile(circle, (40, 1))], axis=1) / np.float32(np.sqrt(2))
    if shuffled:
        rows = np.random.default_rng(0).permutation(rows)
    epsilon = oracle.epsilon_in_gap(rows, float(1 - (1 + np.cos(1.5 * 0.15)) / 2))
    greedy = greedy_mask(rows, epsilon)
    np.testing.assert_array_equal(greedy, oracle.greedy_keep(rows, epsilon))
    assert chain_mask(rows, epsilon).sum() < greedy.sum() < 1000


@given(rows=vector_arrays(), epsilon=st.sampled_from([1e-5, 1e-3, 0.05, 0.5, 1.5]))
@repeatable
def test_the_greedy_rule_keeps_all_that_the_chain_rule_keeps_and_no_two_within_epsilon(
    rows: np.ndarray, epsilon: float
) -> None:
    chain, greedy = chain_mask(rows, epsilon), greedy_mask(rows, epsilon)
    assert (greedy | ~chain).all()
    similarity = oracle.unit(rows) @ oracle.unit(rows).T
    pairs = similarity[np.ix_(greedy, greedy)][np.triu_indices(greedy.sum(), k=1)]
    assert pairs.max(initial=-1) <= 1 - epsilon + 3e-6
    suppressed = np.where(np.tri(len(rows), k=-1, dtype=bool) & greedy, similarity, -np.inf).max(axis=1)[~greedy]
    assert suppressed.min(initial=2) > 1 - epsilon - 3e-6


@given(rows=vector_arrays(), low=st.floats(0, 2), high=st.floats(0, 2))
@repeatable
def test_a_higher_epsilon_never_keeps_what_a_lower_one_removed(rows: np.ndarray, low: float, high: float) -> None:
    low, high = sorted([low, high])
    scores = max_earlier_similarity(tensor(rows), budget=ROOMY).similarity
    assert (keep_mask(scores, low) | ~keep_mask(scores, high)).all()


@pytest.mark.parametrize("budget", [ROOMY, TINY])
@pytest.mark.parametrize("rule", ["chain", "greedy"])
def test_each_removed_item_gets_its_nearest_kept_neighbour(real_vectors: np.ndarray, rule: str, budget: int) -> None:
    mask = chain_mask if rule == "chain" else greedy_mask
    keep = mask(real_vectors, 0.2)
    found = select(tensor(real_vectors), keep, budget=budget)
    expected = oracle.nearest_kept(real_vectors, keep)
    assert 0 < keep.sum() < len(keep)
    assert np.abs(found.kept_similarity[~keep] - expected[~keep]).max() <= 1e-5
    assert keep[found.kept_neighbour[~keep]].all()
    exact = oracle.unit(real_vectors)
    of_named = (exact[~keep] * exact[found.kept_neighbour[~keep]]).sum(axis=1)
    assert np.abs(of_named - expected[~keep]).max() <= 1e-5
    assert (found.kept_neighbour[keep] == -1).all()
    assert np.isnan(found.kept_similarity[keep]).all()


def test_an_orphan_has_no_kept_neighbour_within_epsilon() -> None:
    rows, epsilon = arc(6, step=0.1), float(1 - np.cos(0.15))
    found = select(tensor(rows), chain_mask(rows, epsilon), budget=ROOMY)
    assert found.kept_neighbour.tolist() == [-1, 0, 0, 0, 0, 0]
    assert orphans(found, epsilon).tolist() == [False, False, True, True, True, True]
    greedy = select(tensor(rows), greedy_mask(rows, epsilon), budget=ROOMY)
    assert not orphans(greedy, epsilon).any()


@pytest.mark.parametrize("epsilon", [0.02, 0.2, 0.6])
def test_kept_neighbours_that_follow_from_the_scores_are_those_of_the_vectors(
    real_vectors: np.ndarray, epsilon: float
) -> None:
    earlier = max_earlier_similarity(tensor(real_vectors), budget=ROOMY)
    keep = keep_mask(earlier.similarity, epsilon)
    known_selection, complete = chain_selection(earlier, keep)
    full = select(tensor(real_vectors), keep, budget=ROOMY)
    known = known_selection.kept_neighbour >= 0
    assert known.any()
    assert complete == (known | keep).all()
    assert not known[keep].any()
    assert np.abs(known_selection.kept_similarity[known] - full.kept_similarity[known]).max() <= 3e-6
    assert np.isnan(known_selection.kept_similarity[~known]).all()


class Clusters:
    """Clusters of several kinds side by side, and which of them were asked for."""

    def __init__(self) -> None:
        parts = [
            arc(40, step=0.1),  # A chain: all but the first are removed, most of them orphans.
            arc(1, step=0.1),
            arc(5, step=2.0),  # Nothing is removed.
            arc(3, step=0.1)[[1, 0, 2]],  # Both neighbours of the first are removed by it: the scores suffice.
            np.concatenate([arc(25, step=0.07), arc(25, step=0.07)]),
        ]
        self.rows = np.concatenate(parts)
        self.cluster = np.repeat([3, 4, 6, 7, 9], [len(part) for part in parts])
        starts = np.cumsum([0, *map(len, parts)])
        self.slices = {c: slice(*ends) for c, ends in zip([3, 4, 6, 7, 9], pairwise(starts.tolist()), strict=True)}
        self.earlier = score_clusters(tensor(self.rows), starts, budget=ROOMY)
        self.asked: list[set[int]] = []

    def vectors_of(self, clusters: set[int]) -> Iterator[tuple[slice, torch.Tensor]]:
        self.asked.append(clusters)
        for cluster in sorted(clusters):
            yield self.slices[cluster], tensor(self.rows[self.slices[cluster]])


EPSILON = float(1 - np.cos(0.15))


@pytest.mark.parametrize("rule", ["chain", "greedy"])
def test_many_clusters_are_selected_as_defined_and_only_those_in_doubt_are_read(rule: SelectionRule) -> None:
    clusters = Clusters()
    found = select_clusters(
        clusters.earlier, clusters.cluster, EPSILON, rule=rule, vectors_of=clusters.vectors_of, budget=ROOMY
    )
    assert clusters.asked == [{3, 9}]
    keep_of = oracle.chain_keep if rule == "chain" else oracle.greedy_keep
    for part in clusters.slices.values():
        rows, keep = clusters.rows[part], keep_of(clusters.rows[part], EPSILON)
        np.testing.assert_array_equal(found.keep[part], keep)
        assert (found.kept_neighbour[part][keep] == -1).all()
        assert np.isnan(found.kept_similarity[part][keep]).all()
        neighbour = found.kept_neighbour[part][~keep] - part.start
        assert keep[neighbour].all()
        expected = oracle.nearest_kept(rows, keep)[~keep]
        named = (oracle.unit(rows)[~keep] * oracle.unit(rows)[neighbour]).sum(axis=1)
        np.testing.assert_allclose(found.kept_similarity[part][~keep], expected, atol=1e-6)
        np.testing.assert_allclose(named, expected, atol=1e-6)
    assert orphans(found, EPSILON).any() == (rule == "chain")


def test_the_chain_rule_never_computes_the_greedy_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(selection, "greedy_keep_mask")
    clusters = Clusters()
    select_clusters(
        clusters.earlier, clusters.cluster, EPSILON, rule="chain", vectors_of=clusters.vectors_of, budget=ROOMY
    )


@given(rows=vector_arrays(), clusters=st.integers(1, 6), epsilon=st.sampled_from([0.0, 1e-3, 0.05, 0.5, 1.5]))
@repeatable
def test_the_greedy_masks_of_clusters_are_those_of_each_alone(rows: np.ndarray, clusters: int, epsilon: float) -> None:
    bounds = np.linspace(0, len(rows), clusters + 1).astype(np.int64)
    cluster = np.repeat(np.arange(clusters), np.diff(bounds))
    earlier = score_clusters(tensor(rows), bounds, budget=ROOMY)

    def vectors_of(wanted: set[int]) -> Iterator[tuple[slice, torch.Tensor]]:
        for c in wanted:
            yield slice(int(bounds[c]), int(bounds[c + 1])), tensor(rows[bounds[c] : bounds[c + 1]])

    keep = greedy_keep_clusters(earlier, cluster, epsilon, vectors_of=vectors_of, budget=ROOMY)
    alone = [greedy_mask(rows[start:stop], epsilon) for start, stop in pairwise(bounds) if start < stop]
    np.testing.assert_array_equal(keep, np.concatenate(alone))
    both = select_clusters(earlier, cluster, epsilon, rule="greedy", vectors_of=vectors_of, budget=ROOMY)
    np.testing.assert_array_equal(both.keep, keep)


def test_an_unknown_rule_is_an_error_that_names_the_known_ones() -> None:
    clusters = Clusters()
    with pytest.raises(ValueError, match="rule: 'best' is not one of 'chain', 'greedy'"):
        select_clusters(
            clusters.earlier,
            clusters.cluster,
            EPSILON,
            rule="best",  # type: ignore[arg-type]
            vectors_of=clusters.vectors_of,
            budget=ROOMY,
        )


@given(n=st.integers(0, 60), seed=st.integers(0, 1000))
@repeatable
def test_earlier_items_are_found_by_their_ids(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = np.unique(rng.integers(0, 2**64 - 1, size=n, dtype=np.uint64))
    ids = rng.permutation(ids)
    position = np.array([rng.integers(row) if row and rng.random() < 0.7 else -1 for row in range(len(ids))], np.int64)
    duplicate_of = np.where(position < 0, 0, ids[position]) if len(ids) else ids
    similarity = np.where(position < 0, -np.inf, 0.5).astype(np.float32)
    np.testing.assert_array_equal(earlier_positions(ids, duplicate_of, similarity), position)


def test_an_earlier_item_that_is_missing_is_an_error_that_names_it() -> None:
    ids = np.array([4, 9], dtype=np.uint64)
    with pytest.raises(ValueError, match="item 9 names 7, which is not among the ids"):
        earlier_positions(ids, np.array([0, 7], dtype=np.uint64), np.array([-np.inf, 0.9], dtype=np.float32))


def test_positions_from_ids_give_the_selection_of_the_scores() -> None:
    clusters = Clusters()
    ids = np.random.default_rng(0).permutation(10**6)[: len(clusters.rows)].astype(np.uint64)
    scores = clusters.earlier
    named = ids[np.maximum(scores.position, 0)]
    again = EarlierSimilarity(scores.similarity, earlier_positions(ids, named, scores.similarity))
    np.testing.assert_array_equal(again.position, scores.position)
