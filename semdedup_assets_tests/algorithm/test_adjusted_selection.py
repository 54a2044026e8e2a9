"""Rows that must go, and rows that are spared, against the rules' definitions on the rest."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semdedup_assets.algorithm.adjusted_selection import decide_rest, with_spared, without_rows
from semdedup_assets.algorithm.selection import Selection, SelectionRule, select_clusters
from semdedup_assets.algorithm.similarity import score_clusters
from semdedup_assets_tests import oracle
from semdedup_assets_tests.toy_source import near_duplicates

BUDGET = 1 << 24


def selected(rows: np.ndarray, offsets: np.ndarray, epsilon: float, rule: SelectionRule, gone: np.ndarray) -> Selection:
    cluster = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    vectors = torch.from_numpy(rows)

    def vectors_of(wanted: set[int]) -> Iterator[tuple[slice, torch.Tensor]]:
        for each in sorted(wanted):
            part = slice(int(offsets[each]), int(offsets[each + 1]))
            yield part, vectors[part]

    found = select_clusters(
        score_clusters(vectors, offsets, budget=BUDGET),
        cluster,
        epsilon,
        rule=rule,
        vectors_of=vectors_of,
        budget=BUDGET,
    )
    nothing = np.zeros(len(rows), dtype=bool)
    decide = partial(decide_rest, protected=nothing, rule=rule, epsilon=epsilon, budget=BUDGET)
    return without_rows(found, cluster, gone, vectors_of=vectors_of, decide=decide)


@pytest.mark.parametrize("rule", ["chain", "greedy"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_gone_rows_are_removed_as_if_by_one_before_all(rule: SelectionRule, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    rows = oracle.unit(near_duplicates(seed, groups=12, copies=5)).astype(np.float32)
    offsets = np.array([0, 13, 13, 14, 40, len(rows)])
    gone = rng.random(len(rows)) < share
    epsilon = oracle.epsilon_in_gap(rows, 0.2)
    found = selected(rows, offsets, epsilon, rule, gone)
    for start, stop in pairwise(offsets):
        own, lost = rows[start:stop], gone[start:stop]
        if rule == "chain":
            keep = oracle.chain_keep(own, epsilon) & ~lost if len(own) else np.zeros(0, bool)
        else:
            keep = np.zeros(len(own), bool)
            keep[~lost] = oracle.greedy_keep(own[~lost], epsilon) if (~lost).any() else False
        np.testing.assert_array_equal(found.keep[start:stop], keep)
        removed = np.flatnonzero(~keep & ~lost) + start
        if not keep.any():
            assert (found.kept_neighbour[start:stop] == -1).all()
            continue
        nearest = oracle.nearest_kept(own, keep)
        np.testing.assert_allclose(found.kept_similarity[removed], nearest[removed - start], atol=2e-6)
        assert found.keep[found.kept_neighbour[removed]].all()
        assert ((found.kept_neighbour[removed] >= start) & (found.kept_neighbour[removed] < stop)).all()
    without = found.keep | gone
    assert (found.kept_neighbour[without] == -1).all()
    assert np.isnan(found.kept_similarity[without]).all()


def test_only_clusters_that_lose_a_kept_row_are_read() -> None:
    selection = Selection(
        np.array([True, False, True, False]),
        np.array([-1, 0, -1, 2]),
        np.array([np.nan, 0.99, np.nan, 0.98], np.float32),
    )

    def never(wanted: set[int]) -> Iterator[tuple[slice, torch.Tensor]]:
        assert not wanted
        return iter(())

    gone = np.array([False, True, False, False])
    found = without_rows(selection, np.array([0, 0, 1, 1]), gone, vectors_of=never, decide=lambda _, __, ___: selection)
    np.testing.assert_array_equal(found.kept_neighbour, [-1, -1, -1, 2])
    np.testing.assert_array_equal(found.keep, selection.keep)


def test_spared_rows_are_kept_and_stand_for_themselves() -> None:
    selection = Selection(
        np.array([True, False, False]), np.array([-1, 0, 0]), np.array([np.nan, 0.99, 0.98], np.float32)
    )
    found = with_spared(selection, np.array([False, False, True]))
    np.testing.assert_array_equal(found.keep, [True, False, True])
    np.testing.assert_array_equal(found.kept_neighbour, [-1, 0, -1])
    np.testing.assert_array_equal(np.isnan(found.kept_similarity), [True, False, True])
