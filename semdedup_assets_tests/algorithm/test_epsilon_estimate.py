"""Epsilons estimated from some clusters, held against sorting, straight lines, and what repeated draws give."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.epsilon_estimate import (
    Bootstrap,
    ClusterScores,
    interpolated_epsilon,
    sample_clusters,
    straightness,
)
from semdedup_assets_tests.algorithm.vectors import repeatable


def uneven_ranges(count: int) -> list[range]:
    bounds = np.cumsum([0, *(1 + index % 7 for index in range(count))])
    return [range(int(start), int(stop)) for start, stop in pairwise(bounds)]


@pytest.mark.parametrize("ranges", [uneven_ranges(20), uneven_ranges(90)])
def test_each_cluster_is_chosen_with_the_same_probability_however_many_ranges_are_opened(ranges: list[range]) -> None:
    k, seeds = ranges[-1].stop, 1500
    times = np.zeros(k)
    for seed in range(seeds):
        for index, clusters in sample_clusters(ranges, share=0.2, fewest=2, seed=seed).items():
            assert clusters <= set(ranges[index])
            times[list(clusters)] += 1
    # Five standard deviations of a binomial count, and the rounding of one cluster of a draw.
    assert np.abs(times / seeds - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / seeds) + 0.5 / k
    # Of ranges of many clusters and of few alike.
    sizes = np.repeat([len(each) for each in ranges], [len(each) for each in ranges])
    means = [times[sizes == size].mean() / seeds for size in range(1, 8)]
    assert np.ptp(means) < 0.02


@given(count=st.integers(1, 80), share=st.floats(0.01, 1), fewest=st.integers(2, 400), seed=st.integers(0, 2**40))
@repeatable
def test_as_many_are_chosen_as_are_wanted(count: int, share: float, fewest: int, seed: int) -> None:
    ranges = [*uneven_ranges(count), range(uneven_ranges(count)[-1].stop, uneven_ranges(count)[-1].stop)]
    chosen = sample_clusters(ranges, share=share, fewest=fewest, seed=seed)
    k, found = ranges[-1].stop, sum(len(clusters) for clusters in chosen.values())
    assert list(chosen) == sorted(chosen)
    assert chosen == sample_clusters(ranges, share=share, fewest=fewest, seed=seed)
    if count <= 32:
        assert found == min(k, max(fewest, round(share * k)))
    if share == 1:
        assert found == k


@given(
    start=st.tuples(st.floats(0, 0.5), st.floats(0.6, 2)),
    line=st.tuples(st.floats(0.5, 1), st.floats(-0.4, -0.1)),
    share=st.floats(0.01, 1),
)
@repeatable
def test_on_a_straight_line_the_interpolation_is_exact(
    start: tuple[float, float], line: tuple[float, float], share: float
) -> None:
    kept = line[0] + line[1] * start[0], line[0] + line[1] * start[1]
    exact = (share - line[0]) / line[1]
    assert interpolated_epsilon(start, kept, share=share) == pytest.approx(min(2, max(0, exact)), abs=1e-9)


def test_two_start_values_that_keep_the_same_give_no_line() -> None:
    assert np.isnan(interpolated_epsilon((0.1, 0.2), (0.5, 0.5), share=0.4))


def population(clusters: int, *, seed: int) -> list[np.ndarray]:
    """Scores of clusters that differ in size and in how redundant they are; some are empty."""
    rng = np.random.default_rng(seed)
    found = []
    for size in rng.integers(0, 120, size=clusters):
        scores = rng.beta(rng.uniform(2, 9), 2, size=size).astype(np.float32)
        scores[:1] = -np.inf
        found.append(scores)
    return found


def joined(scores: list[np.ndarray], *, clusters: int) -> ClusterScores:
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in scores])]).astype(np.int64)
    return ClusterScores(np.concatenate(scores), offsets, clusters)


@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.05, 1))
@repeatable
def test_the_solved_epsilon_keeps_the_share_of_the_sample(seed: int, share: float) -> None:
    sample = joined([np.array([-np.inf], np.float32), *population(8, seed=seed)], clusters=20)
    scores = np.sort(sample.similarity)
    epsilon = sample.epsilon_for(share)
    kept = (scores.astype(np.float64) <= 1 - epsilon).mean()
    assert sample.kept_fraction(epsilon) == kept >= share - 1e-9
    wanted = scores[max(1, int(np.ceil(share * len(scores) - 1e-9))) - 1]
    assert kept == (scores <= wanted).mean()
    low, high = Bootstrap.of(sample, seed=seed).epsilon_interval(share)
    assert 0 <= low <= high <= 2


def test_where_all_clusters_were_chosen_nothing_is_uncertain() -> None:
    scores = population(30, seed=0)
    sample = joined(scores, clusters=30)
    bootstrap = Bootstrap.of(sample, seed=1)
    for share in (0.3, 0.5, 0.8):
        assert bootstrap.epsilon_interval(share) == pytest.approx([sample.epsilon_for(share)] * 2, abs=1e-7)
    curve = bootstrap.curve
    assert np.allclose(curve.low, curve.kept)
    assert np.allclose(curve.high, curve.kept)
    assert np.allclose(curve.kept, [sample.kept_fraction(each - 1e-9) for each in curve.epsilon])


def test_the_interval_covers_the_exact_epsilon_about_as_often_as_it_says() -> None:
    scores = population(200, seed=3)
    exact = joined(scores, clusters=200).epsilon_for(0.5)
    inside = 0
    for draw in range(60):
        chosen = np.random.default_rng(draw).choice(200, 30, replace=False)
        low, high = Bootstrap.of(joined([scores[each] for each in chosen], clusters=200), seed=draw).epsilon_interval(
            0.5
        )
        inside += low <= exact <= high
    assert inside >= 51


def test_one_cluster_of_several_tells_no_variance() -> None:
    sample = joined([np.array([-np.inf, 0.5, 0.9], np.float32)], clusters=4)
    assert np.isnan(Bootstrap.of(sample, seed=0).epsilon_interval(0.5)).all()


def test_no_item_gives_no_estimate() -> None:
    sample = ClusterScores(np.empty(0, np.float32), np.zeros(4, np.int64), 9)
    assert np.isnan(sample.epsilon_for(0.5))
    assert np.isnan(sample.kept_fraction(0.5))


def test_straightness_is_the_share_of_variance_that_a_line_explains() -> None:
    rng = np.random.default_rng(0)
    x, y = np.linspace(0, 1, 50), rng.normal(size=50)
    residual = y - np.polyval(np.polyfit(x, y, 1), x)
    assert straightness(x, y) == pytest.approx(1 - residual.var() / y.var())
    assert straightness(x, 3 - 2 * x) == pytest.approx(1)
    assert np.isnan(straightness(x, np.ones(50)))
    assert np.isnan(straightness(x[:2], y[:2]))
