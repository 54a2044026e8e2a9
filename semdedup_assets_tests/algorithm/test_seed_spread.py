"""A difference between models counts only beyond the spread of their seeds."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.seed_spread import SeedSpread, compare_spreads

VALUES = st.lists(st.floats(-100, 100), min_size=3, max_size=6)


@given(VALUES)
def test_a_spread_is_mean_and_sample_deviation(values: list[float]) -> None:
    spread = SeedSpread.of(values)
    assert spread.seeds == len(values)
    assert spread.mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert spread.deviation == pytest.approx(statistics.stdev(values), abs=1e-6)


@given(VALUES, VALUES, st.booleans())
def test_the_verdict_turns_round_with_the_order_and_the_direction(a: list[float], b: list[float], higher: bool) -> None:
    first, second = SeedSpread.of(a), SeedSpread.of(b)
    verdict = compare_spreads(first, second, higher_is_better=higher).verdict
    turned = {"better": "worse", "worse": "better"}.get(verdict, verdict)
    assert compare_spreads(second, first, higher_is_better=higher).verdict == turned
    assert compare_spreads(first, second, higher_is_better=not higher).verdict == turned


@given(VALUES, VALUES)
def test_clear_is_beyond_two_pooled_deviations(a: list[float], b: list[float]) -> None:
    compared = compare_spreads(SeedSpread.of(a), SeedSpread.of(b), higher_is_better=True)
    squares = [(value - statistics.fmean(part)) ** 2 for part in (a, b) for value in part]
    pooled = math.sqrt(sum(squares) / (len(a) + len(b) - 2))
    assert compared.pooled_deviation == pytest.approx(pooled, abs=1e-6)
    difference = statistics.fmean(a) - statistics.fmean(b)
    if abs(abs(difference) - 2 * pooled) > 1e-6:
        assert (compared.verdict in ("better", "no spread")) == (abs(difference) > 2 * pooled and difference > 0) or (
            compared.verdict in ("worse", "no spread") and difference < 0
        )


def test_equal_values_of_all_seeds_are_no_spread_to_judge_by() -> None:
    # The mean of three tenths is no tenth.
    for value in (1.0, 0.1):
        same, other = SeedSpread.of([value] * 3), SeedSpread.of([value + 1e-9] * 3)
        assert compare_spreads(same, other, higher_is_better=True).verdict == "no spread"
    assert compare_spreads(same, same, higher_is_better=True).verdict == "within the spread"


@pytest.mark.parametrize(("a", "b"), [([1.0], [2.0, 3.0, 4.0]), ([1.0, 2.0], [8.0, 9.0]), ([], [1.0, 2.0, 3.0])])
def test_fewer_than_three_seeds_decide_nothing(a: list[float], b: list[float]) -> None:
    compared = compare_spreads(SeedSpread.of(a), SeedSpread.of(b), higher_is_better=True)
    assert compared.verdict == "too few seeds"
