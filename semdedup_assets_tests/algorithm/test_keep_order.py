"""Which item of a cluster comes first."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

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
def test_a_random_order_depends_on_seed_and_ids_alone(n: int, seed: int, shuffle: int) -> None:
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


def order_of(keep: np.ndarray, *, descending: bool) -> list[int]:
    """Rows of a single cluster in keep-order, equal numbers by row."""
    ids, none = np.arange(len(keep), dtype=np.uint64), np.zeros(len(keep))
    priority = keep_priority(keep, centroid_similarity=none, ids=ids, seed=0, descending=descending)
    return [int(row) for row in cluster_order(none.astype(np.int32), priority=priority, ids=ids)]


def by_python(values: list[int] | list[float], *, descending: bool) -> list[int]:
    """Python compares its integers exactly; its sort is stable, also when reversed by the sign."""
    return sorted(range(len(values)), key=lambda row: -values[row] if descending else values[row])


NEAR_2_63 = st.integers(-3, 3).flatmap(lambda step: st.sampled_from([2**63 - 4, 2**62, 0]).map(lambda at: at + step))


@pytest.mark.parametrize("descending", [False, True])
@given(values=st.lists(NEAR_2_63, min_size=1, max_size=30), sign=st.sampled_from([1, -1]))
@repeatable
def test_integers_that_are_equal_as_floats_are_ordered_exactly(values: list[int], sign: int, descending: bool) -> None:
    signed = [sign * value for value in values]
    assert order_of(np.array(signed, dtype=np.int64), descending=descending) == by_python(signed, descending=descending)
    unsigned = [2 * abs(value) + 1 for value in values]
    assert order_of(np.array(unsigned, dtype=np.uint64), descending=descending) == by_python(
        unsigned, descending=descending
    )


def test_the_extremes_of_int64_are_ordered_exactly() -> None:
    extremes = [-(2**63), 2**63 - 1, 0, -(2**63) + 1]
    assert order_of(np.array(extremes), descending=False) == [0, 3, 2, 1]
    assert order_of(np.array(extremes), descending=True) == [1, 2, 3, 0]


@pytest.mark.parametrize("descending", [False, True])
@given(
    values=arrays.arrays(
        st.sampled_from([np.int8, np.uint8, np.int32, np.float16, np.float32, np.float64, np.bool_]), st.integers(1, 40)
    )
)
@repeatable
def test_every_type_of_number_is_ordered_with_nan_last(values: np.ndarray, descending: bool) -> None:
    numbers = values.tolist()
    finite = [row for row, number in enumerate(numbers) if number == number]
    missing = [row for row, number in enumerate(numbers) if number != number]
    expected = [finite[i] for i in by_python([numbers[row] for row in finite], descending=descending)]
    assert order_of(values, descending=descending) == expected + missing


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float32])
def test_masked_numbers_come_last_whatever_the_direction(dtype: type, descending: bool) -> None:
    rng = np.random.default_rng(0)
    values, mask = rng.integers(0, 9, 50).astype(dtype), rng.random(50) < 0.4
    # What lies below a mask must not matter, not even the least and the greatest number.
    values[mask] = rng.choice([0, 100], mask.sum())
    present = np.flatnonzero(~mask).tolist()
    expected = [present[i] for i in by_python(values[~mask].tolist(), descending=descending)]
    found = order_of(np.ma.masked_array(values, mask=mask), descending=descending)
    assert found == expected + np.flatnonzero(mask).tolist()


def test_masked_times_in_nanoseconds_keep_their_exact_order() -> None:
    times = np.ma.masked_array(
        1_700_000_000_000_000_000 + np.array([2, 1, 3, 0, 5]), mask=[False, False, False, True, False]
    )
    assert order_of(times, descending=False) == [1, 0, 2, 4, 3]
    assert order_of(times, descending=True) == [4, 2, 0, 1, 3]


def test_a_direction_is_for_numbers_and_numbers_must_have_an_order() -> None:
    with pytest.raises(ValueError, match="keep: 'hard' has an order of its own; descending is for numbers"):
        keep_priority("hard", centroid_similarity=SIMILARITY, ids=IDS, seed=0, descending=True)
    with pytest.raises(ValueError, match="keep: values of type <U1 are not numbers; give integers, floats or times"):
        ordered_ids(np.array(list("abcde")))
    for keep in ([1, 2, 3, 4, 5], None):
        with pytest.raises(ValueError, match=rf"keep: {type(keep).__name__} is no NumPy array; give np\.asarray"):
            ordered_ids(keep)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["datetime64[ns]", ">M8[us]", "timedelta64[ns]"])
def test_times_are_ordered_exactly_with_nat_last(dtype: str) -> None:
    times = (2**62 + np.array([2, 1, 3, 0, 5])).astype(dtype)
    times[3] = "NaT"
    assert order_of(times, descending=False) == [1, 0, 2, 4, 3]
    assert order_of(times, descending=True) == [4, 2, 0, 1, 3]
