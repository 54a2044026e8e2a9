"""Which item of a cluster comes first."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.keep_order import KeepStrategy, cluster_offsets, cluster_order, keep_priority
from semdedup_assets_tests.algorithm.vectors import repeatable

IDS = np.array([7, 3, 9, 1, 5], dtype=np.uint64)
SIMILARITY = np.array([0.5, 0.9, 0.5, 0.7, 0.2])
CLUSTER = np.array([1, 0, 1, 1, 0], dtype=np.int32)


def ordered_ids(keep: KeepStrategy | np.ndarray, *, seed: int = 0) -> list[int]:
    priority = keep_priority(keep, centroid_similarity=SIMILARITY, ids=IDS, seed=seed)
    return [int(i) for i in IDS[cluster_order(CLUSTER, priority=priority, ids=IDS)]]


def test_hard_puts_the_least_similar_first_and_settles_ties_by_id() -> None:
    assert ordered_ids("hard") == [5, 3, 7, 9, 1]


def test_easy_puts_the_most_similar_first_and_settles_ties_by_id() -> None:
    assert ordered_ids("easy") == [3, 5, 1, 7, 9]


def test_a_column_puts_the_smallest_first_the_missing_last_and_settles_ties_by_id() -> None:
    assert ordered_ids(np.array([np.nan, np.nan, 4.0, 8.0, np.inf])) == [5, 3, 9, 1, 7]
    assert ordered_ids(np.array([2, 2, 2, 2, 2])) == [3, 5, 1, 7, 9]
    assert ordered_ids(-np.array([np.nan, 1.0, 4.0, 8.0, 2.0])) == [5, 3, 1, 9, 7]


@given(n=st.integers(1, 200), seed=st.integers(0, 2**63), shuffle=st.integers(0, 1000))
@repeatable
def test_a_random_order_hangs_on_seed_and_ids_alone(n: int, seed: int, shuffle: int) -> None:
    rng = np.random.default_rng(shuffle)
    ids = rng.choice(10**6, n, replace=False).astype(np.uint64)
    arrival, similarity = rng.permutation(n), rng.random(n)

    def order(ids: np.ndarray, similarity: np.ndarray) -> list[int]:
        priority = keep_priority("random", centroid_similarity=similarity, ids=ids, seed=seed)
        return list(ids[cluster_order(np.zeros(n, dtype=np.int32), priority=priority, ids=ids)])

    assert order(ids, similarity) == order(ids[arrival], rng.random(n))
    batch = keep_priority("random", centroid_similarity=similarity[:3], ids=ids[:3], seed=seed)
    np.testing.assert_array_equal(
        batch, keep_priority("random", centroid_similarity=similarity, ids=ids, seed=seed)[:3]
    )


def test_another_seed_gives_another_random_order_and_each_item_is_first_about_as_often() -> None:
    ids = np.arange(10, dtype=np.uint64) + (np.uint64(1) << np.uint64(32))
    first = [
        int(keep_priority("random", centroid_similarity=np.zeros(10), ids=ids, seed=seed).argmin())
        for seed in range(2000)
    ]
    counts = np.bincount(first, minlength=10)
    # Chi-square with 9 degrees of freedom: 33.7 is passed by chance once in ten thousand.
    assert ((counts - 200) ** 2 / 200).sum() < 33.7


def test_clusters_come_one_after_the_other_also_empty_ones() -> None:
    assert cluster_offsets(CLUSTER, k=4).tolist() == [0, 2, 5, 5, 5]
    assert cluster_offsets(np.empty(0, dtype=np.int32), k=2).tolist() == [0, 0, 0]


def test_unknown_strategies_and_columns_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="keep: 'hardest' is not one of 'hard', 'easy', 'random'"):
        ordered_ids("hardest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"keep: \(4,\) numbers for 5 items; give one number per item"):
        ordered_ids(np.zeros(4))
