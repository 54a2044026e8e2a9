"""The epsilon for a wanted share, held against sorting all the scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.selection import keep_mask
from semdedup_assets.algorithm.tuning import epsilon_for
from semdedup_assets_tests.algorithm.vectors import repeatable

SHARES = st.floats(0, 1, exclude_min=True)


@st.composite
def score_arrays(draw: st.DrawFn) -> np.ndarray:
    """Scores with ties, first items (-inf), negative ones, both zeros, and neighbours by one float32 step."""
    n, rng = draw(st.integers(1, 400)), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = rng.uniform(-1, 1, n).astype(np.float32)
    if draw(st.booleans()):
        scores = scores.round(draw(st.integers(0, 2)))
    if draw(st.booleans()):
        near = rng.random(n) < 0.5
        scores[near] = np.float32(0.95) + rng.integers(-3, 4, near.sum()).astype(np.float32) * np.float32(2**-24)
    for special in (-np.inf, np.float32(-0.0), np.float32(0.0), np.float32(-1), np.float32(1), np.float32(1e-30)):
        scores[rng.random(n) < draw(st.sampled_from([0, 0.1]))] = special
    return scores.clip(max=1)


@given(scores=score_arrays(), keep=SHARES, parts=st.integers(1, 7))
@repeatable
def test_it_keeps_the_wanted_share_and_no_epsilon_keeps_a_count_in_between(
    scores: np.ndarray, keep: float, parts: int
) -> None:
    epsilon = epsilon_for(lambda: np.array_split(scores, parts), keep=keep)
    kept, wanted = int(keep_mask(scores, epsilon).sum()), max(1, int(np.ceil(keep * len(scores) - 1e-9)))
    assert 0 <= epsilon <= 2
    assert kept >= wanted
    # Every count that some epsilon can give: what is kept at each distinct score, and at the ends.
    at_scores = [min(2.0, max(0.0, 1 - float(s))) for s in np.unique(scores[np.isfinite(scores)])]
    others = [0.0, 2.0, *at_scores, *(max(0.0, float(np.nextafter(at, 0))) for at in at_scores)]
    possible = {int(keep_mask(scores, other).sum()) for other in others}
    assert kept == min(count for count in possible if count >= wanted)


@given(scores=score_arrays(), keep=SHARES)
@repeatable
def test_the_threshold_is_the_exact_order_statistic(scores: np.ndarray, keep: float) -> None:
    rank = max(1, int(np.ceil(keep * len(scores) - 1e-9)))
    score = float(np.partition(scores, rank - 1)[rank - 1])
    epsilon = epsilon_for(lambda: [scores], keep=keep)
    if score == -np.inf:
        assert epsilon == 2
    else:
        assert 1 - epsilon == pytest.approx(score, abs=1e-15)
        assert keep_mask(np.array([score], dtype=np.float32), epsilon).all()


@given(scores=score_arrays(), keep=SHARES, parts=st.integers(2, 9))
@repeatable
def test_in_how_many_parts_the_scores_come_changes_nothing(scores: np.ndarray, keep: float, parts: int) -> None:
    whole = epsilon_for(lambda: [scores], keep=keep)
    assert epsilon_for(lambda: iter(np.array_split(scores, parts)), keep=keep) == whole


def test_half_of_distinct_scores_is_exactly_half() -> None:
    scores = np.random.default_rng(0).permutation(np.linspace(-0.5, 0.999, 100_001, dtype=np.float32))
    scores[0] = -np.inf
    for keep in (0.5, 0.63, 1e-5, 1.0):
        epsilon = epsilon_for(lambda: [scores], keep=keep)
        assert keep_mask(scores, epsilon).sum() == int(np.ceil(keep * len(scores) - 1e-9))


def test_equal_zeros_of_either_sign_stay_together() -> None:
    scores = np.array([-0.0, 0.0, -0.0, 0.0, 0.5], dtype=np.float32)
    epsilon = epsilon_for(lambda: [scores], keep=0.2)
    assert epsilon == 1
    assert keep_mask(scores, epsilon).tolist() == [True, True, True, True, False]


def test_a_score_too_small_to_tell_from_zero_is_kept_where_it_is_wanted() -> None:
    scores = np.array([0.0, 1e-30, 0.5], dtype=np.float32)
    assert keep_mask(scores, epsilon_for(lambda: [scores], keep=0.6)).tolist() == [True, True, False]


def test_first_items_are_kept_even_where_fewer_are_wanted() -> None:
    scores = np.array([-np.inf] * 6 + [-1.0, 0.3, 0.9, 1.0], dtype=np.float32)
    assert epsilon_for(lambda: [scores], keep=0.1) == 2
    assert keep_mask(scores, 2).sum() == 7


@pytest.mark.parametrize("keep", [0, -0.1, 1.0001, np.nan])
def test_a_share_outside_its_range_is_refused(keep: float) -> None:
    with pytest.raises(ValueError, match=rf"keep: {keep} is not a share in \(0, 1\]"):
        epsilon_for(lambda: [np.zeros(3, dtype=np.float32)], keep=keep)


def test_no_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="there are no scores to choose an epsilon from"):
        epsilon_for(lambda: [np.empty(0, dtype=np.float32)], keep=0.5)
