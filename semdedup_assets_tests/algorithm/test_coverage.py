"""Coverage of a random choice in closed form: against every choice there is, and against many drawn ones."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm import coverage as module
from semdedup_assets.algorithm.coverage import coverage, effective_number, missed_probability, random_coverage


def entropy(values: np.ndarray) -> float:
    shares = [float((values == value).mean()) for value in set(values.tolist())]
    return -sum(share * math.log(share) for share in shares)


def covered(values: np.ndarray, chosen: list[int]) -> tuple[int, int]:
    """Values and items that some items cover, by the definition."""
    found = set(values[chosen].tolist())
    return len(found), sum(value in found for value in values.tolist())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.data())
def test_random_moments_are_those_of_all_choices(drawn: list[int], data: st.DataObject) -> None:
    values = np.array(drawn)
    chosen = data.draw(st.integers(0, len(values)))
    every = [list(each) for each in combinations(range(len(values)), chosen)]
    counts = np.array([covered(values, each) for each in every], dtype=np.float64)
    found = random_coverage(np.unique(values, return_counts=True)[1], chosen=chosen)
    assert [found.values, found.items] == pytest.approx(counts.mean(axis=0))
    # The square root of what rounding leaves of a variance of 0 is larger than it.
    assert [found.values_sd, found.items_sd] == pytest.approx(counts.std(axis=0), abs=1e-6)
    mean = np.mean([entropy(values[each]) for each in every])
    assert found.effective == pytest.approx(math.exp(mean) if chosen else 0)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_random_moments_are_those_of_many_draws(share: float) -> None:
    rng = np.random.default_rng(0)
    values = np.minimum(rng.zipf(1.5, 3000), 800)
    chosen, draws = int(share * len(values)), 1000
    counts = np.array([covered(values, rng.choice(len(values), chosen, replace=False).tolist()) for _ in range(draws)])
    found = random_coverage(np.unique(values, return_counts=True)[1], chosen=chosen)
    mean, sd = counts.mean(axis=0), counts.std(axis=0)
    # Five standard errors of 1,000 draws.
    assert (abs(mean - [found.values, found.items]) <= 5 * sd / math.sqrt(draws)).all()
    assert [found.values_sd, found.items_sd] == pytest.approx(sd, rel=0.12)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_kept_items_cover_what_they_show(items: list[tuple[int, bool]]) -> None:
    values, kept = np.array([value for value, _ in items]), np.array([each for _, each in items])
    found = coverage(values, kept)
    assert (found.covered, found.covered_items) == covered(values, np.flatnonzero(kept).tolist())
    assert (found.items, found.kept, found.values) == (len(items), kept.sum(), len(set(values.tolist())))
    assert found.effective_all == pytest.approx(math.exp(entropy(values)))
    assert found.effective == pytest.approx(math.exp(entropy(values[kept])) if kept.any() else 0)


def test_chances_are_those_of_binomials_to_the_last_digits() -> None:
    counts = np.array([1, 2, 7, 300])
    expected = [math.comb(50_000 - n, 5_000) / math.comb(50_000, 5_000) for n in counts.tolist()]
    assert missed_probability(counts, items=50_000, chosen=5_000) == pytest.approx(expected, rel=1e-12)


def test_effective_number_of_equal_shares_is_their_number() -> None:
    assert effective_number(np.array([7, 7, 0, 7])) == pytest.approx(3)
    assert effective_number(np.zeros(3, np.int64)) == 0


def test_without_covariances_deviations_are_upper_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.random.default_rng(1).integers(1, 40, 200)
    exact = random_coverage(counts, chosen=900)
    monkeypatch.setattr(module, "_MOST_TERMS", 0)
    bound = random_coverage(counts, chosen=900)
    assert exact.values_sd < bound.values_sd < 3 * exact.values_sd
    assert bound.values == exact.values
