"""Ranges of clusters are contiguous, complete and balanced; so are their groups."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.cluster_ranges import (
    cluster_batches,
    group_ranges,
    plan_ranges,
    predicted_pairs,
    range_count,
)
from semdedup_assets_tests.algorithm.vectors import repeatable

SIZES = st.lists(st.one_of(st.integers(0, 20), st.integers(0, 100_000)), min_size=1, max_size=200)


def cost(size: int) -> float:
    """Comparisons of a cluster, and its reading at 256 comparisons a vector."""
    return size * size / 2 + 256 * size + 1


@given(sizes=SIZES, ranges=st.integers(1, 250))
@repeatable
def test_ranges_hold_every_cluster_once_in_order_and_none_is_empty_needlessly(sizes: list[int], ranges: int) -> None:
    bounds = plan_ranges(np.array(sizes), ranges=ranges)
    assert bounds.shape == (ranges + 1,)
    assert bounds[0] == 0
    assert bounds[-1] == len(sizes)
    assert (np.diff(bounds) >= 0).all()
    assert (np.diff(bounds) > 0).sum() == min(ranges, len(sizes))


@given(sizes=SIZES, ranges=st.integers(1, 50))
@repeatable
def test_no_range_costs_more_than_its_share_and_one_cluster(sizes: list[int], ranges: int) -> None:
    bounds = plan_ranges(np.array(sizes), ranges=ranges)
    costs = [sum(map(cost, sizes[start:stop])) for start, stop in pairwise(bounds)]
    assert max(costs) <= (sum(map(cost, sizes)) / ranges + max(map(cost, sizes))) * (1 + 1e-9)


def test_a_cluster_that_costs_more_than_several_shares_leaves_no_range_empty() -> None:
    for index in range(8):
        sizes = np.ones(8, dtype=np.int64)
        sizes[index] = 100_000
        assert (np.diff(plan_ranges(sizes, ranges=5)) > 0).all()


def test_many_alike_clusters_are_divided_evenly() -> None:
    assert np.diff(plan_ranges(np.full(1000, 400), ranges=10)).tolist() == [100] * 10


def test_large_clusters_fill_a_range_sooner_by_the_square_of_their_size() -> None:
    sizes = np.repeat([20_000, 2_000], [500, 5_000])
    bounds = plan_ranges(sizes, ranges=20)
    costs = np.array([sum(map(cost, sizes[start:stop].tolist())) for start, stop in pairwise(bounds)])
    assert costs.max() < 1.1 * costs.mean()


def test_the_number_of_ranges_must_be_positive() -> None:
    with pytest.raises(ValueError, match="ranges: 0 is not a positive number"):
        plan_ranges(np.ones(3), ranges=0)


def test_predicted_pairs_are_those_of_the_sample_scaled_up() -> None:
    sizes = np.array([10, 30, 0])
    assert predicted_pairs(sizes, items=40) == 10 * 9 // 2 + 30 * 29 // 2
    assert predicted_pairs(sizes, items=4000) == 1000 * 999 // 2 + 3000 * 2999 // 2
    assert predicted_pairs(np.zeros(3, dtype=np.int64), items=10) == 0


@pytest.mark.parametrize(
    ("items", "k", "row_bytes", "expected"),
    [
        (0, 1000, 1024, 32),  # A small data set still has enough ranges for many partitions.
        (10, 7, 1024, 7),  # A range holds at least one cluster.
        (1_000_000, 1000, 768, 32),
        (40_000_000, 50_000, 1024, 153),  # 38 GiB and 150 MiB, by 256 MiB.
        (33 << 18, 1000, 1024, 33),
        ((33 << 18) + 1, 1000, 1024, 34),
        (1_000_000_000, 50_000, 1536, 512),
    ],
)
def test_ranges_hold_about_256_mib_of_vectors_within_limits(items: int, k: int, row_bytes: int, expected: int) -> None:
    assert range_count(items, k=k, row_bytes=row_bytes) == expected


@given(ranges=st.integers(0, 512), groups=st.integers(1, 600))
@repeatable
def test_groups_hold_every_range_once_in_order_and_differ_by_at_most_one(ranges: int, groups: int) -> None:
    grouped = group_ranges(ranges, groups=groups)
    assert len(grouped) == groups
    assert [index for group in grouped for index in group] == list(range(ranges))
    counts = [len(group) for group in grouped]
    assert max(counts) - min(counts) <= 1


def test_the_number_of_groups_must_be_positive() -> None:
    with pytest.raises(ValueError, match="groups: 0 is not a positive number"):
        group_ranges(5, groups=0)


@given(sizes=st.lists(st.integers(0, 30), max_size=60), most=st.integers(1, 50))
@repeatable
def test_batches_hold_every_row_once_and_only_a_single_cluster_exceeds_the_limit(sizes: list[int], most: int) -> None:
    batches = list(cluster_batches(np.array(sizes, dtype=np.int64), most=most))
    covered = [cluster for first, stop in batches for cluster in range(first, stop) if sizes[cluster]]
    assert covered == [cluster for cluster, size in enumerate(sizes) if size]
    for first, stop in batches:
        filled = [size for size in sizes[first:stop] if size]
        assert filled
        assert sum(filled) <= most or len(filled) == 1
    # No two neighbours would have fitted together.
    assert all(sum(sizes[a:d]) > most for (a, _), (_, d) in pairwise(batches))
