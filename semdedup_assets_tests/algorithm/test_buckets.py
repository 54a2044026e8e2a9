"""The plan of buckets: contiguous, complete, balanced."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.buckets import plan_buckets, predicted_pairs
from semdedup_assets_tests.algorithm.vectors import repeatable

SIZES = st.lists(st.one_of(st.integers(0, 20), st.integers(0, 100_000)), min_size=1, max_size=200)


def cost(size: int) -> float:
    """Comparisons of a cluster, and its reading at 256 comparisons a vector."""
    return size * size / 2 + 256 * size + 1


@given(sizes=SIZES, buckets=st.integers(1, 250))
@repeatable
def test_buckets_hold_every_cluster_once_in_order_and_none_is_empty_needlessly(sizes: list[int], buckets: int) -> None:
    bounds = plan_buckets(np.array(sizes), buckets=buckets)
    assert bounds.shape == (buckets + 1,)
    assert bounds[0] == 0
    assert bounds[-1] == len(sizes)
    assert (np.diff(bounds) >= 0).all()
    assert (np.diff(bounds) > 0).sum() == min(buckets, len(sizes))


@given(sizes=SIZES, buckets=st.integers(1, 50))
@repeatable
def test_no_bucket_costs_more_than_its_share_and_one_cluster(sizes: list[int], buckets: int) -> None:
    bounds = plan_buckets(np.array(sizes), buckets=buckets)
    costs = [sum(map(cost, sizes[start:stop])) for start, stop in pairwise(bounds)]
    assert max(costs) <= (sum(map(cost, sizes)) / buckets + max(map(cost, sizes))) * (1 + 1e-9)


def test_a_cluster_that_costs_more_than_several_shares_leaves_no_bucket_empty() -> None:
    for place in range(8):
        sizes = np.ones(8, dtype=np.int64)
        sizes[place] = 100_000
        assert (np.diff(plan_buckets(sizes, buckets=5)) > 0).all()


def test_many_alike_clusters_are_divided_evenly() -> None:
    assert np.diff(plan_buckets(np.full(1000, 400), buckets=10)).tolist() == [100] * 10


def test_large_clusters_fill_a_bucket_sooner_by_the_square_of_their_size() -> None:
    sizes = np.repeat([20_000, 2_000], [500, 5_000])
    bounds = plan_buckets(sizes, buckets=20)
    costs = np.array([sum(map(cost, sizes[start:stop].tolist())) for start, stop in pairwise(bounds)])
    assert costs.max() < 1.1 * costs.mean()


def test_the_number_of_buckets_must_be_positive() -> None:
    with pytest.raises(ValueError, match="buckets: 0 is not a positive number"):
        plan_buckets(np.ones(3), buckets=0)


def test_predicted_pairs_are_those_of_the_sample_scaled_up() -> None:
    sizes = np.array([10, 30, 0])
    assert predicted_pairs(sizes, items=40) == 10 * 9 // 2 + 30 * 29 // 2
    assert predicted_pairs(sizes, items=4000) == 1000 * 999 // 2 + 3000 * 2999 // 2
    assert predicted_pairs(np.zeros(3, dtype=np.int64), items=10) == 0
