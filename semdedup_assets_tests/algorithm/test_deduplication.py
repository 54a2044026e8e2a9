"""The library call: everything in one, held against the definitions cluster by cluster."""

import doctest
import subprocess
import sys
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets import Deduplication, semdedup
from semdedup_assets.algorithm.keep_order import KeepStrategy
from semdedup_assets.algorithm.selection import SelectionRule, select
from semdedup_assets_tests import oracle
from semdedup_assets_tests.algorithm.vectors import (
    arc,
    near_duplicates,
    random_vectors,
    repeatable,
    repeated,
    tensor,
    vector_arrays,
)

EPSILONS = st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.5, 1.0, 2.0])


def in_keep_order(result: Deduplication, ids: np.ndarray | None = None) -> list[list[int]]:
    """Rows of each cluster in the keep-order `hard`."""
    ids = np.arange(len(result.cluster)) if ids is None else ids
    return list(oracle.order_in_clusters(result.cluster, result.centroid_similarity, ids).values())


def assert_as_defined(result: Deduplication, vectors: np.ndarray, orders: list[list[int]]) -> None:
    """Holds every score, and which item it is to, against Alg. A7 on each cluster in the given order."""
    for order in orders:
        expected = oracle.chain_scores(vectors[order])
        assert result.similarity[order[0]] == -np.inf
        assert result.duplicate_of[order[0]] == -1
        assert np.abs(result.similarity[order][1:] - expected[1:]).max(initial=0) <= 1e-5
        rank = {row: index for index, row in enumerate(order)}
        exact = oracle.unit(vectors)
        for row in order[1:]:
            named = int(result.duplicate_of[row])
            assert rank[named] < rank[row]
            assert float(exact[row] @ exact[named]) == pytest.approx(float(result.similarity[row]), abs=1e-6)


@pytest.mark.parametrize("as_torch", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_documented_call_works_on_arrays_and_tensors(dtype: type, as_torch: bool) -> None:
    array = near_duplicates(2000, epsilon=0.05, dtype=dtype)
    vectors = tensor(array) if as_torch else array

    result = semdedup(vectors, k=10, keep="hard", seed=0)

    mask = result.keep_mask(0.05)
    epsilon = result.epsilon_for(keep=0.5)
    for values in (mask, result.similarity, result.duplicate_of, result.cluster, result.centroid_similarity):
        assert values.shape == (2000,)
    np.testing.assert_array_equal(mask, result.similarity <= 0.95)
    assert result.keep_mask(epsilon).sum() == 1000
    assert_as_defined(result, array, in_keep_order(result))
    to_centroids = oracle.unit(array) @ oracle.unit(result.centroids).T
    np.testing.assert_array_equal(result.cluster, to_centroids.argmax(axis=1))
    np.testing.assert_allclose(result.centroid_similarity, to_centroids.max(axis=1), atol=1e-6)


def test_real_vectors_are_scored_as_defined(real_vectors: np.ndarray) -> None:
    result = semdedup(real_vectors, k=12)
    assert_as_defined(result, real_vectors, in_keep_order(result))
    for epsilon in (0.01, 0.1, 0.3):
        decided = oracle.epsilon_in_gap(real_vectors, epsilon)
        mask = result.keep_mask(decided)
        assert not mask.all()
        for order in in_keep_order(result):
            np.testing.assert_array_equal(mask[order], oracle.chain_keep(real_vectors[order], decided))


@pytest.mark.parametrize("keep", ["easy", "random", "column"])
def test_other_keep_orders_are_followed(real_vectors: np.ndarray, keep: Any) -> None:
    n = len(real_vectors)
    column = np.random.default_rng(0).integers(0, 50, n).astype(np.float64)
    result = semdedup(real_vectors, k=6, keep=column if keep == "column" else keep)
    again = semdedup(real_vectors, k=6, keep=column if keep == "column" else keep, seed=0)
    np.testing.assert_array_equal(result.similarity, again.similarity)
    if keep == "random":
        hard = semdedup(real_vectors, k=6)
        np.testing.assert_array_equal(hard.cluster, result.cluster)
        assert not np.array_equal(hard.similarity, result.similarity)
    else:
        rank = column if keep == "column" else -result.centroid_similarity
        orders = list(oracle.order_in_clusters(result.cluster, rank, np.arange(n)).values())
        assert_as_defined(result, real_vectors, orders)


def test_the_random_keep_order_follows_its_seed() -> None:
    vectors, group = repeated(300, groups=10)
    kept = {
        seed: tuple(np.flatnonzero(semdedup(vectors, k=1, keep="random", seed=seed).keep_mask(0.01)))
        for seed in range(4)
    }
    assert all(len(rows) == len(set(group[list(rows)])) == 10 for rows in kept.values())
    assert len(set(kept.values())) == 4


@given(
    vectors=vector_arrays(),
    k=st.integers(1, 6),
    epsilon=EPSILONS,
    keep=st.sampled_from(["hard", "easy", "random"]),
    seed=st.integers(0, 2**32),
)
@repeatable
def test_the_order_of_the_rows_does_not_change_what_is_kept(
    vectors: np.ndarray, k: int, epsilon: float, keep: KeepStrategy, seed: int
) -> None:
    n, rng = len(vectors), np.random.default_rng(seed)
    ids, order = rng.choice(10**12, n, replace=False), rng.permutation(n)
    k = min(k, n)
    result = semdedup(vectors, k=k, keep=keep, seed=seed, ids=ids)
    mixed = semdedup(vectors[order], k=k, keep=keep, seed=seed, ids=ids[order])
    assert set(ids[result.keep_mask(epsilon)]) == set(ids[order][mixed.keep_mask(epsilon)])
    np.testing.assert_array_equal(mixed.similarity, result.similarity[order])
    np.testing.assert_array_equal(mixed.cluster, result.cluster[order])


@given(vectors=vector_arrays(), k=st.integers(1, 6))
@repeatable
def test_masks_shrink_as_epsilon_grows(vectors: np.ndarray, k: int) -> None:
    result = semdedup(vectors, k=min(k, len(vectors)))
    masks = [result.keep_mask(epsilon) for epsilon in np.linspace(0, 2, 41)]
    assert masks[0].all()
    assert all((low | ~high).all() for low, high in pairwise(masks))
    assert all(masks[-1][order[0]] for order in in_keep_order(result))


@given(vectors=vector_arrays(), k=st.integers(1, 6), epsilon=EPSILONS)
@repeatable
def test_every_removed_item_and_no_kept_one_has_an_earlier_item_within_epsilon(
    vectors: np.ndarray, k: int, epsilon: float
) -> None:
    result = semdedup(vectors, k=min(k, len(vectors)))
    mask, exact = result.keep_mask(epsilon), oracle.unit(vectors)
    for order in in_keep_order(result):
        for rank, row in enumerate(order):
            nearest = (exact[order[:rank]] @ exact[row]).max(initial=-np.inf)
            assert nearest > 1 - epsilon - 1e-5 if not mask[row] else nearest <= 1 - epsilon + 1e-5


@given(vectors=vector_arrays(), k=st.integers(1, 6))
@repeatable
def test_equal_vectors_share_cluster_and_centroid_similarity(vectors: np.ndarray, k: int) -> None:
    result = semdedup(vectors, k=min(k, len(vectors)))
    _, group = np.unique(vectors, axis=0, return_inverse=True)
    for members in (np.flatnonzero(group == g) for g in range(group.max() + 1)):
        assert len(set(result.cluster[members])) == 1
        assert len(set(result.centroid_similarity[members])) == 1


@given(
    n=st.integers(1, 300),
    groups=st.integers(1, 30),
    k=st.integers(1, 12),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([np.float16, np.float32]),
)
@repeatable
def test_exact_duplicates_keep_exactly_one_the_lowest_id(n: int, groups: int, k: int, seed: int, dtype: type) -> None:
    vectors, group = repeated(n, groups=groups, seed=seed)
    kept = semdedup(vectors.astype(dtype), k=min(k, n)).keep_mask(0.001)
    _, first = np.unique(group, return_index=True)
    assert np.flatnonzero(kept).tolist() == sorted(first)


def test_the_nearest_kept_neighbour_within_a_cluster_is_that_of_the_definition(real_vectors: np.ndarray) -> None:
    result = semdedup(real_vectors, k=8)
    mask = result.keep_mask(0.3)
    for order in in_keep_order(result):
        keep = mask[order]
        selection = select(tensor(real_vectors[order]), keep, budget=1 << 20)
        expected = oracle.nearest_kept(real_vectors[order], keep)[~keep]
        assert np.abs(selection.kept_similarity[~keep] - expected).max(initial=0) <= 1e-5


def test_the_same_call_gives_the_same_result_to_the_last_bit(real_vectors: np.ndarray) -> None:
    first, again = semdedup(real_vectors, k=9, seed=4), semdedup(real_vectors, k=9, seed=4)
    for name in ("similarity", "duplicate_of", "cluster", "centroid_similarity", "centroids"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


def test_the_length_of_the_vectors_does_not_matter(real_vectors: np.ndarray) -> None:
    vectors = real_vectors.astype(np.float32)
    lengths = 2.0 ** np.random.default_rng(0).integers(-8, 9, size=(len(vectors), 1)).astype(np.float32)
    np.testing.assert_array_equal(
        semdedup(vectors, k=5).keep_mask(0.1), semdedup(vectors * lengths, k=5).keep_mask(0.1)
    )


def test_the_input_is_left_as_it_was_also_where_it_is_read_only_or_learns() -> None:
    array = near_duplicates(100, epsilon=0.01) * np.float32(3)
    before = array.copy()
    array.setflags(write=False)
    expected = semdedup(array, k=2).similarity
    np.testing.assert_array_equal(array, before)
    learning = torch.nn.Parameter(tensor(before))
    np.testing.assert_array_equal(semdedup(learning, k=2).similarity, expected)
    doubled = np.repeat(before, 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(semdedup(doubled, k=2).similarity, expected)


def test_bfloat16_is_scored_on_the_stored_values() -> None:
    vectors = tensor(near_duplicates(300, epsilon=0.05)).bfloat16()
    result = semdedup(vectors, k=3)
    assert_as_defined(result, vectors.double().numpy(), in_keep_order(result))


def test_one_vector_is_kept() -> None:
    result = semdedup(random_vectors(1), k=1)
    assert result.keep_mask(2).tolist() == [True]
    assert result.epsilon_for(keep=1.0) == 2
    assert result.similarity.tolist() == [-np.inf]


def test_a_seed_may_be_an_integer_of_any_kind() -> None:
    vectors = random_vectors(12)
    assert semdedup(vectors, k=2, seed=np.uint64(3)).seed == 3  # type: ignore[arg-type]
    assert semdedup(vectors, k=2, seed=np.int32(3)).seed == 3  # type: ignore[arg-type]


def test_without_k_one_is_chosen() -> None:
    assert len(semdedup(random_vectors(800)).centroids) == 20


def test_more_clusters_than_vectors_keeps_all_distinct_ones() -> None:
    with pytest.warns(UserWarning, match="k = 40 exceeds the 12 sampled items"):
        result = semdedup(random_vectors(12), k=40)
    assert result.keep_mask(0.5).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k: 0 is not a positive number; 'auto' chooses a number"),
        ({"k": -5}, "k: -5 is not a positive number"),
        ({"keep": "best"}, "keep: 'best' is not one of"),
        ({"keep": np.zeros(3)}, r"keep: \(3,\) numbers for 10 items"),
        ({"ids": np.arange(9)}, r"ids: expected 10 distinct .* integers, one per row; got int64 of shape \(9,\)"),
        ({"ids": np.zeros(10, dtype=np.int64)}, "ids: expected 10 distinct .*; got 0 more than once"),
        ({"ids": np.arange(10) - 1}, "ids: expected 10 distinct non-negative .*; got -1 among them"),
        ({"ids": np.arange(10.0)}, "ids: expected 10 distinct non-negative integers, .*; got float64"),
        ({"vectors": random_vectors(10)[0]}, r"expected an \(n, d\) array of floats"),
        (
            {"vectors": np.ones((10, 4), dtype=np.int64)},
            r"expected an \(n, d\) array of floats .*, got int64 of shape \(10, 4\); convert them",
        ),
        ({"vectors": random_vectors(10)[:0]}, "there are no rows to deduplicate"),
        ({"vectors": np.where(np.arange(10)[:, None] == 6, np.nan, random_vectors(10))}, "row 6 is not finite"),
        ({"vectors": np.where(np.arange(10)[:, None] == 9, 0, random_vectors(10))}, "row 9 is a zero vector"),
    ],
)
def test_invalid_arguments_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        semdedup(**{"vectors": random_vectors(10), "k": 2, **change})


def test_invalid_thresholds_are_refused_by_name() -> None:
    result = semdedup(random_vectors(10), k=2)
    for epsilon in (-0.1, 2.1, np.nan):
        with pytest.raises(ValueError, match=rf"epsilon: {epsilon} is outside \[0, 2\]"):
            result.keep_mask(epsilon)
    for keep in (0, 1.5, -1):
        with pytest.raises(ValueError, match=rf"keep: {keep} is not a share in \(0, 1\]"):
            result.epsilon_for(keep=keep)


def test_the_example_in_the_documentation_is_true() -> None:
    module = sys.modules[semdedup.__module__]
    assert isinstance(module, ModuleType)
    tests = doctest.DocTestFinder(recurse=False).find(semdedup, "semdedup", module, {"semdedup": semdedup})
    outcome = [doctest.DocTestRunner().run(test) for test in tests]
    assert sum(result.attempted for result in outcome) >= 4
    assert sum(result.failed for result in outcome) == 0


def test_a_library_user_loads_neither_dagster_nor_the_table_libraries() -> None:
    program = (
        "import sys; import numpy as np; from semdedup_assets import semdedup; "
        "semdedup(np.random.default_rng(0).normal(size=(50, 4)), k=2).keep_mask(0.1); "
        "print(sorted({'dagster', 'polars', 'pyarrow', 'transformers', 'open_clip', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_package_loads_no_heavy_library() -> None:
    program = (
        "import sys; import semdedup_assets; "
        "print(sorted({'dagster', 'torch', 'faiss', 'numpy', 'polars', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("epsilon", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("rule", ["chain", "greedy"])
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_masks_and_nearest_kept_items_are_those_of_the_rule_in_every_cluster(
    real_vectors: np.ndarray, rule: SelectionRule, epsilon: float, scale: float
) -> None:
    vectors = real_vectors.astype(np.float32) * np.float32(scale)
    epsilon, ids = (
        oracle.epsilon_in_gap(real_vectors, epsilon),
        np.random.default_rng(1).permutation(10_000)[: len(vectors)],
    )
    result = semdedup(vectors, k=6, ids=ids)
    found, keep = result.nearest_kept(epsilon, rule=rule), result.keep_mask(epsilon, rule=rule)
    np.testing.assert_array_equal(found.keep, keep)
    exact, definition = oracle.unit(vectors), oracle.chain_keep if rule == "chain" else oracle.greedy_keep
    for order in in_keep_order(result, ids):
        expected = definition(vectors[order], epsilon)
        np.testing.assert_array_equal(keep[order], expected)
        nearest = oracle.nearest_kept(vectors[order], expected)
        for row, similarity in zip(order, nearest, strict=True):
            named = int(found.kept_neighbour[row])
            if keep[row]:
                assert named == -1
                assert np.isnan(found.kept_similarity[row])
            else:
                assert keep[named]
                assert result.cluster[named] == result.cluster[row]
                assert found.kept_similarity[row] == pytest.approx(similarity, abs=1e-5)
                assert exact[row] @ exact[named] == pytest.approx(similarity, abs=1e-5)
    assert 0 < keep.sum() < len(keep)


@given(vectors=vector_arrays(), k=st.integers(1, 3), epsilon=EPSILONS, rule=st.sampled_from(["chain", "greedy"]))
@repeatable
def test_groups_partition_the_items_each_around_one_kept_item(
    vectors: np.ndarray, k: int, epsilon: float, rule: SelectionRule
) -> None:
    result = semdedup(vectors, k=min(k, len(vectors)))
    groups, kept = result.groups(epsilon, rule=rule), result.keep_mask(epsilon, rule=rule)
    rows = np.arange(len(vectors))
    assert groups.dtype == np.int64
    np.testing.assert_array_equal(groups == rows, kept)
    assert set(groups.tolist()) == set(rows[kept].tolist())
    np.testing.assert_array_equal(result.cluster[groups], result.cluster)
    nearest = result.nearest_kept(epsilon, rule=rule)
    np.testing.assert_array_equal(groups[~kept], nearest.kept_neighbour[~kept])


LISTS: dict[str, Any] = {
    "middle": ["middle"],
    "stars, then easy": ["stars", "easy"],
    "stars, then length": ["stars", "length"],
}


@pytest.mark.parametrize("name", LISTS)
def test_real_vectors_are_ordered_and_scored_by_each_strategy_and_list(real_vectors: np.ndarray, name: str) -> None:
    rng, n = np.random.default_rng(0), len(real_vectors)
    numbers = {"stars": rng.integers(2**63 - 3, 2**63 - 1, n), "length": rng.random(n)}
    numbers["length"][::7] = np.nan
    result = semdedup(real_vectors, k=6, keep=[numbers.get(each, each) for each in LISTS[name]])
    orders = []
    for own in np.unique(result.cluster):
        rows = np.flatnonzero(result.cluster == own).tolist()
        median = sorted(result.centroid_similarity[rows])[(len(rows) - 1) // 2]

        def rank(row: int, median: float = median) -> tuple[Any, ...]:
            similarity, length = float(result.centroid_similarity[row]), float(numbers["length"][row])
            by = {
                "middle": (abs(similarity - median),),
                "easy": (-similarity,),
                "stars": (int(numbers["stars"][row]),),
                "length": (length != length, 0.0 if length != length else length),
            }
            return (*(part for each in LISTS[name] for part in by[each]), row)

        orders.append(sorted(rows, key=rank))
    assert_as_defined(result, real_vectors, orders)


def test_orphans_are_removed_items_without_a_kept_one_within_epsilon() -> None:
    vectors, epsilon = arc(30, step=0.1), float(1 - np.cos(0.15))
    result = semdedup(vectors, k=1)
    (order,) = in_keep_order(result)
    keep = oracle.chain_keep(vectors[order], epsilon)
    expected = ~keep & (oracle.nearest_kept(vectors[order], keep) <= 1 - epsilon)
    np.testing.assert_array_equal(result.orphans(epsilon)[order], expected)
    assert expected.any()


@given(vectors=vector_arrays(), k=st.integers(1, 4), epsilons=st.lists(EPSILONS, max_size=8))
@repeatable
def test_the_curve_of_kept_shares_is_that_of_the_masks(vectors: np.ndarray, k: int, epsilons: list[float]) -> None:
    result = semdedup(vectors, k=min(k, len(vectors)))
    expected = [result.keep_mask(epsilon).mean() for epsilon in epsilons]
    np.testing.assert_allclose(result.kept_fraction(epsilons), expected, atol=1e-12)


def test_the_greedy_share_is_not_monotone_so_no_epsilon_follows_from_it() -> None:
    # A larger epsilon may remove an item that removed others before: these then stay.
    result = semdedup(random_vectors(400, 3), k=1)
    shares = [result.keep_mask(epsilon, rule="greedy").sum() for epsilon in np.linspace(0.05, 0.8, 60)]
    assert (np.diff(shares) > 0).any()
    with pytest.raises(ValueError, match=r"rule: no epsilon follows from a share under 'greedy'.*give an epsilon"):
        result.epsilon_for(keep=0.5, rule="greedy")


def test_an_unknown_rule_is_an_error_that_names_the_known_ones() -> None:
    result = semdedup(random_vectors(10), k=2)
    calls: list[Any] = [result.keep_mask, result.nearest_kept, lambda _, rule: result.epsilon_for(keep=0.5, rule=rule)]
    for call in calls:
        with pytest.raises(ValueError, match="rule: 'best' is not one of 'chain', 'greedy'"):
            call(0.1, rule="best")
    with pytest.raises(ValueError, match=r"epsilon: 3.0 is outside \[0, 2\]"):
        result.kept_fraction([0.1, 3.0])


def test_the_result_refers_to_the_vectors_and_does_not_show_them() -> None:
    vectors = tensor(random_vectors(50))
    result = semdedup(vectors, k=2)
    assert result._rows.vectors.data_ptr() == vectors.data_ptr()
    assert "_rows" not in repr(result)


def test_integers_that_are_equal_as_floats_decide_which_item_is_kept() -> None:
    vectors, group = repeated(200, groups=5)
    times = 2**62 + np.random.default_rng(0).permutation(200)
    kept = np.flatnonzero(semdedup(vectors, k=2, keep=times).keep_mask(0.01))
    first = [min(np.flatnonzero(group == one), key=lambda row: times[row]) for one in range(5)]
    assert kept.tolist() == sorted(first)


@pytest.mark.parametrize(
    "keep",
    [
        1_700_000_000_000_000_000 + np.array([2, 1, 4, 3, 0], np.int64),
        (2**64 - np.array([2, 3, 4, 1, 5], dtype=object)).astype(np.uint64),
        (2**62 + np.array([2, 1, 4, 3, 0])).astype("datetime64[ns]"),
    ],
)
def test_of_equal_items_the_first_by_integers_that_floats_cannot_tell_apart_is_kept(keep: np.ndarray) -> None:
    result = semdedup(np.ones((5, 3), np.float32), k=1, keep=keep)
    assert np.flatnonzero(result.keep_mask(0.01)).tolist() == [4]
