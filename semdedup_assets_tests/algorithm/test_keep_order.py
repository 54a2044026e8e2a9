"""Which item of a cluster comes first."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from semdedup_assets.algorithm.keep_order import (
    ClusteredItems,
    KeepOrder,
    KeepStrategy,
    check_keep,
    cluster_medians,
    cluster_offsets,
    cluster_order,
    descending,
    keep_keys,
)
from semdedup_assets_tests.algorithm.vectors import repeatable

IDS = np.array([7, 3, 9, 1, 5], dtype=np.uint64)
SIMILARITY = np.array([0.5, 0.9, 0.5, 0.7, 0.2])
CLUSTER = np.array([1, 0, 1, 1, 0], dtype=np.int32)


def ordered_ids(keep: KeepStrategy | np.ndarray | KeepOrder, *, seed: int = 0) -> list[int]:
    keys = keep_keys(check_keep(keep, items=len(IDS)), ClusteredItems(IDS, CLUSTER, SIMILARITY), seed=seed)
    return [int(i) for i in IDS[cluster_order(CLUSTER, keys=keys, ids=IDS)]]


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

    def keys(ids: np.ndarray, similarity: np.ndarray) -> tuple[np.ndarray, ...]:
        return keep_keys(["random"], ClusteredItems(ids, np.zeros(len(ids), np.int32), similarity), seed=seed)

    def order(ids: np.ndarray, similarity: np.ndarray) -> list[int]:
        return list(ids[cluster_order(np.zeros(n, dtype=np.int32), keys=keys(ids, similarity), ids=ids)])

    assert order(ids, similarity) == order(ids[arrival], rng.random(n))
    np.testing.assert_array_equal(keys(ids[:3], similarity[:3])[0], keys(ids, similarity)[0][:3])


def test_another_seed_gives_another_random_order_and_each_item_is_first_about_as_often() -> None:
    ids = np.arange(10, dtype=np.uint64) + (np.uint64(1) << np.uint64(32))
    first = [
        int(keep_keys(["random"], ClusteredItems(ids, np.zeros(10), np.zeros(10)), seed=seed)[0].argmin())
        for seed in range(2000)
    ]
    counts = np.bincount(first, minlength=10)
    # Chi-square with 9 degrees of freedom: 33.7 is passed by chance once in ten thousand.
    assert ((counts - 200) ** 2 / 200).sum() < 33.7


def test_clusters_come_one_after_the_other_also_empty_ones() -> None:
    assert cluster_offsets(CLUSTER, k=4).tolist() == [0, 2, 5, 5, 5]
    assert cluster_offsets(np.empty(0, dtype=np.int32), k=2).tolist() == [0, 0, 0]


def test_unknown_strategies_and_columns_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="keep: 'hardest' is not one of 'hard', 'middle', 'easy', 'random'"):
        ordered_ids("hardest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"keep: \(4,\) numbers for 5 items; give one number per item"):
        ordered_ids(np.zeros(4))


def order_of(
    *keep: np.ndarray | KeepStrategy, reverse: bool = False, similarity: np.ndarray | None = None
) -> list[int]:
    """Rows of a single cluster in keep-order, ties by row."""
    parts = [descending(part) if reverse and isinstance(part, np.ndarray) else part for part in keep]
    n = len(keep[0]) if similarity is None else len(similarity)
    ids, cluster = np.arange(n, dtype=np.uint64), np.zeros(n, np.int32)
    items = ClusteredItems(ids, cluster, np.zeros(n) if similarity is None else similarity)
    return [int(row) for row in cluster_order(cluster, keys=keep_keys(parts, items, seed=0), ids=ids)]


def by_python(values: list[int] | list[float], *, reverse: bool) -> list[int]:
    """Python compares its integers exactly; its sort is stable, also when reversed by the sign."""
    return sorted(range(len(values)), key=lambda row: -values[row] if reverse else values[row])


NEAR_2_63 = st.integers(-3, 3).flatmap(lambda step: st.sampled_from([2**63 - 4, 2**62, 0]).map(lambda at: at + step))


@pytest.mark.parametrize("reverse", [False, True])
@given(values=st.lists(NEAR_2_63, min_size=1, max_size=30), sign=st.sampled_from([1, -1]))
@repeatable
def test_integers_that_are_equal_as_floats_are_ordered_exactly(values: list[int], sign: int, reverse: bool) -> None:
    signed = [sign * value for value in values]
    assert order_of(np.array(signed, dtype=np.int64), reverse=reverse) == by_python(signed, reverse=reverse)
    unsigned = [2 * abs(value) + 1 for value in values]
    assert order_of(np.array(unsigned, dtype=np.uint64), reverse=reverse) == by_python(unsigned, reverse=reverse)


def test_the_extremes_of_int64_are_ordered_exactly() -> None:
    extremes = [-(2**63), 2**63 - 1, 0, -(2**63) + 1]
    assert order_of(np.array(extremes), reverse=False) == [0, 3, 2, 1]
    assert order_of(np.array(extremes), reverse=True) == [1, 2, 3, 0]


@pytest.mark.parametrize("reverse", [False, True])
@given(
    values=arrays.arrays(
        st.sampled_from([np.int8, np.uint8, np.int32, np.float16, np.float32, np.float64, np.bool_]), st.integers(1, 40)
    )
)
@repeatable
def test_every_type_of_number_is_ordered_with_nan_last(values: np.ndarray, reverse: bool) -> None:
    numbers = values.tolist()
    finite = [row for row, number in enumerate(numbers) if number == number]
    missing = [row for row, number in enumerate(numbers) if number != number]
    expected = [finite[i] for i in by_python([numbers[row] for row in finite], reverse=reverse)]
    assert order_of(values, reverse=reverse) == expected + missing


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float32])
def test_masked_numbers_come_last_whatever_the_direction(dtype: type, reverse: bool) -> None:
    rng = np.random.default_rng(0)
    values, mask = rng.integers(0, 9, 50).astype(dtype), rng.random(50) < 0.4
    # What lies below a mask must not matter, not even the least and the greatest number.
    values[mask] = rng.choice([0, 100], mask.sum())
    present = np.flatnonzero(~mask).tolist()
    expected = [present[i] for i in by_python(values[~mask].tolist(), reverse=reverse)]
    found = order_of(np.ma.masked_array(values, mask=mask), reverse=reverse)
    assert found == expected + np.flatnonzero(mask).tolist()


def test_masked_times_in_nanoseconds_keep_their_exact_order() -> None:
    times = np.ma.masked_array(
        1_700_000_000_000_000_000 + np.array([2, 1, 3, 0, 5]), mask=[False, False, False, True, False]
    )
    assert order_of(times, reverse=False) == [1, 0, 2, 4, 3]
    assert order_of(times, reverse=True) == [4, 2, 0, 1, 3]


def test_numbers_must_have_an_order() -> None:
    with pytest.raises(ValueError, match="keep: values of type <U1 are not numbers; give integers, floats or times"):
        ordered_ids(np.array(list("abcde")))
    with pytest.raises(TypeError, match=r"keep\[0\]: int is no NumPy array; give np\.asarray"):
        ordered_ids([1, 2, 3, 4, 5])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"keep: None .* orders no items"):
        ordered_ids(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["datetime64[ns]", ">M8[us]", "timedelta64[ns]"])
def test_times_are_ordered_exactly_with_nat_last(dtype: str) -> None:
    times = (2**62 + np.array([2, 1, 3, 0, 5])).astype(dtype)
    times[3] = "NaT"
    assert order_of(times, reverse=False) == [1, 0, 2, 4, 3]
    assert order_of(times, reverse=True) == [4, 2, 0, 1, 3]


def by_definition(clusters: dict[int, list[float]]) -> dict[int, list[int]]:
    """Rows of each cluster by `middle`: sort, take the element in the middle, sort by the distance to it."""
    found = {}
    for cluster, values in clusters.items():
        median = sorted(values)[(len(values) - 1) // 2]
        found[cluster] = sorted(range(len(values)), key=lambda row: (abs(values[row] - median), row))
    return found


@given(
    clusters=st.dictionaries(st.integers(0, 9), st.lists(st.floats(-1, 1), min_size=1, max_size=12), max_size=4),
    shuffle=st.randoms(use_true_random=False),
)
@repeatable
def test_middle_puts_the_items_nearest_to_the_median_of_their_cluster_first(
    clusters: dict[int, list[float]], shuffle: Any
) -> None:
    rows = [(cluster, row, value) for cluster, values in clusters.items() for row, value in enumerate(values)]
    shuffle.shuffle(rows)
    cluster, ids = np.array([row[0] for row in rows], np.int32), np.array([row[1] for row in rows], np.uint64)
    items = ClusteredItems(ids, cluster, np.array([row[2] for row in rows], np.float64))
    order = cluster_order(cluster, keys=keep_keys(["middle"], items, seed=0), ids=ids)
    found: dict[int, list[int]] = {}
    for index in order.tolist():
        found.setdefault(int(cluster[index]), []).append(int(ids[index]))
    assert found == by_definition(clusters)


def test_keys_compare_items_of_different_clusters_by_the_median_of_each_ones_own() -> None:
    rng = np.random.default_rng(0)
    cluster, similarity = rng.integers(0, 5, 200), rng.random(200)
    ids = np.arange(200, dtype=np.uint64)
    (whole,) = keep_keys(["middle"], ClusteredItems(ids, cluster, similarity), seed=0)
    some = rng.permutation(200)[:30]
    medians = cluster_medians(cluster, similarity)
    (of_some,) = keep_keys(
        ["middle"], ClusteredItems(ids[some], cluster[some], similarity[some], medians[some]), seed=0
    )
    np.testing.assert_array_equal(of_some, whole[some])
    expected = [np.sort(similarity[cluster == own])[((cluster == own).sum() - 1) // 2] for own in cluster]
    np.testing.assert_array_equal(medians, expected)


@given(data=st.data(), n=st.integers(1, 30), last=st.sampled_from(["hard", "easy", "middle", None]))
@repeatable
def test_of_several_the_next_decides_where_the_first_ties(
    data: st.DataObject, n: int, last: KeepStrategy | None
) -> None:
    whole = st.sampled_from([2**63 - 1, 2**63 - 2, -(2**63), 0, None])
    columns = [data.draw(st.lists(whole, min_size=n, max_size=n)) for _ in range(2)]
    similarity = [value / 4 for value in data.draw(st.lists(st.integers(-4, 4), min_size=n, max_size=n))]
    arrays_of = [
        np.ma.masked_array([value or 0 for value in column], mask=[value is None for value in column], dtype=np.int64)
        for column in columns
    ]
    median = sorted(similarity)[(n - 1) // 2]
    by_strategy = {
        "hard": lambda row: similarity[row],
        "easy": lambda row: -similarity[row],
        "middle": lambda row: abs(similarity[row] - median),
        None: lambda row: 0,
    }[last]
    expected = sorted(
        range(n),
        key=lambda row: (
            columns[0][row] is None,
            columns[0][row] or 0,
            columns[1][row] is None,
            -(columns[1][row] or 0),
            by_strategy(row),
            row,
        ),
    )
    keep = [arrays_of[0], descending(arrays_of[1]), *([] if last is None else [last])]
    assert order_of(*keep, similarity=np.array(similarity)) == expected


def test_nan_and_masked_entries_leave_the_order_to_what_comes_next() -> None:
    first = np.ma.masked_array([np.nan, 1.0, 7.0, 3.0, 2.0], mask=[False, False, False, True, True])
    assert order_of(first, np.array([5, 9, 9, 4, 3])) == [1, 2, 4, 3, 0]
    assert order_of(first, "easy", similarity=np.array([0.3, 0.1, 0.1, 0.2, 0.4])) == [1, 2, 4, 0, 3]


def test_a_list_is_refused_by_the_index_of_what_is_wrong_in_it() -> None:
    numbers = np.arange(5)
    with pytest.raises(ValueError, match=r"keep\[0\]: 'hard' is not the last; a strategy settles"):
        ordered_ids(["hard", numbers])
    with pytest.raises(ValueError, match=r"keep\[1\]: 'hardest' is not one of"):
        ordered_ids([numbers, "hardest"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"keep\[1\]: \(4,\) numbers for 5 items"):
        ordered_ids([numbers, numbers[:4]])
    with pytest.raises(ValueError, match="keep: nothing orders the items"):
        ordered_ids([])


def test_no_items_have_an_order() -> None:
    empty = ClusteredItems(np.empty(0, np.uint64), np.empty(0, np.int32), np.empty(0))
    for keep in ("hard", "middle", "easy", "random"):
        (key,) = keep_keys([keep], empty, seed=0)  # type: ignore[list-item]
        assert len(cluster_order(empty.cluster, keys=[key], ids=empty.ids)) == 0
