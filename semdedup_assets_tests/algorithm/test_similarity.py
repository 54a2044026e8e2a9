"""Alg. A7 by tiles, held against its definition in float64 on the stored vectors."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from semdedup_assets.algorithm.similarity import EarlierSimilarity, greatest_similarity, max_earlier_similarity
from semdedup_assets_tests import oracle
from semdedup_assets_tests.algorithm.vectors import near_duplicates, random_vectors, repeated, tensor

ROOMY, TINY = 1 << 30, 1 << 17
TOLERANCE = 1e-5


def assert_scores(rows: np.ndarray, found: EarlierSimilarity) -> None:
    """Holds scores and positions against the oracle."""
    expected = oracle.chain_scores(rows)
    assert found.similarity.dtype == np.float32
    assert found.similarity[0] == -np.inf
    assert found.position[0] == -1
    assert np.abs(found.similarity[1:] - expected[1:]).max(initial=0) <= TOLERANCE
    later, named = np.arange(1, len(rows)), found.position[1:]
    assert (named >= 0).all()
    assert (named < later).all()
    exact = oracle.unit(rows)
    of_named = (exact[later] * exact[named]).sum(axis=1)
    assert np.abs(of_named - found.similarity[1:]).max(initial=0) <= 1e-6


@pytest.mark.parametrize("budget", [ROOMY, 1 << 20, TINY])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("n", [1, 2, 5, 300, 1500])
def test_scores_of_random_vectors_are_those_of_the_definition(n: int, dtype: type, budget: int) -> None:
    rows = random_vectors(n, 48, seed=n, dtype=dtype)
    assert_scores(rows, max_earlier_similarity(tensor(rows), budget=budget))


@pytest.mark.parametrize("budget", [ROOMY, TINY])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("epsilon", [0.1, 0.001, 0.0001])
def test_scores_near_one_are_those_of_the_definition(epsilon: float, dtype: type, budget: int) -> None:
    rows = near_duplicates(1000, 64, epsilon=epsilon, dtype=dtype)
    found = max_earlier_similarity(tensor(rows), budget=budget)
    assert_scores(rows, found)
    removed, expected = found.similarity > 1 - epsilon, oracle.chain_scores(rows)
    clear = np.abs(expected - (1 - epsilon)) > 1.5e-6
    assert clear.mean() > 0.9
    assert 0.1 < removed.mean() < 0.9
    np.testing.assert_array_equal(removed[clear], expected[clear] > 1 - epsilon)


@pytest.mark.parametrize("budget", [ROOMY, 1 << 20, TINY])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_scores_of_real_vectors_are_those_of_the_definition(real_vectors: np.ndarray, dtype: type, budget: int) -> None:
    rows: np.ndarray = real_vectors.astype(dtype)
    found = max_earlier_similarity(tensor(rows), budget=budget)
    assert_scores(rows, found)
    assert (found.similarity[-20:] == 1).all()


@pytest.mark.parametrize("budget", [ROOMY, TINY])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_of_exact_duplicates_the_earliest_is_named_with_similarity_one(dtype: type, budget: int) -> None:
    rows, group = repeated(1500, groups=20, dtype=dtype)
    found = max_earlier_similarity(tensor(rows), budget=budget)
    _, first = np.unique(group, return_index=True)
    again = ~np.isin(np.arange(len(rows)), first)
    np.testing.assert_array_equal(found.position[again], first[group[again]])
    assert (found.similarity[again] == 1).all()
    assert (found.similarity[first] < 0.9).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_budget_changes_nothing_where_no_two_candidates_tie(dtype: type) -> None:
    rows = random_vectors(1200, 24, seed=5, dtype=dtype)
    rows = rows[_without_rivals(rows)]
    assert len(rows) > 1000
    whole = max_earlier_similarity(tensor(rows), budget=ROOMY)
    for budget in (1 << 22, 1 << 20, TINY):
        tiled = max_earlier_similarity(tensor(rows), budget=budget)
        np.testing.assert_array_equal(tiled.similarity, whole.similarity)
        np.testing.assert_array_equal(tiled.position, whole.position)


def test_where_candidates_tie_the_budget_changes_scores_by_no_more_than_the_tie() -> None:
    # Ten thousand candidates within 1e-4 of one another: which of those within 1e-6 is named depends on the tiles.
    rows = near_duplicates(1500, 16, epsilon=0.0001)
    whole = max_earlier_similarity(tensor(rows), budget=ROOMY)
    for budget in (1 << 20, TINY):
        tiled = max_earlier_similarity(tensor(rows), budget=budget)
        assert np.abs(tiled.similarity[1:] - whole.similarity[1:]).max() <= 3e-6


def _without_rivals(rows: np.ndarray) -> np.ndarray:
    """Rows but those whose two most similar earlier rows are within 1e-5 of each other."""
    similarity = oracle.unit(rows) @ oracle.unit(rows).T
    best = np.sort(np.where(np.tri(len(rows), k=-1, dtype=bool), similarity, -2), axis=1)
    return np.flatnonzero(best[:, -1] - best[:, -2] > 1e-5)


def test_rows_a_little_off_unit_norm_are_scored_by_their_cosine_whatever_the_budget() -> None:
    lengths = np.random.default_rng(1).uniform(0.992, 1.008, size=(600, 1)).astype(np.float32)
    rows = near_duplicates(600, epsilon=0.01) * lengths
    for budget in (ROOMY, 1 << 18, TINY):
        assert_scores(rows, max_earlier_similarity(tensor(rows), budget=budget))


@pytest.mark.parametrize("budget", [ROOMY, TINY])
def test_each_query_sees_only_the_candidates_it_may(budget: int) -> None:
    queries, candidates = random_vectors(400, seed=1), random_vectors(700, seed=2)
    visible = np.sort(np.random.default_rng(3).integers(0, 701, size=400))
    visible[:3] = 0
    found = greatest_similarity(tensor(queries), tensor(candidates), visible=visible, budget=budget)
    similarity = oracle.unit(queries) @ oracle.unit(candidates).T
    expected = np.where(np.arange(700) < visible[:, None], similarity, -np.inf).max(axis=1)
    assert (found.position < visible).all()
    assert (found.similarity[:3] == -np.inf).all()
    assert np.abs(found.similarity[3:] - expected[3:]).max() <= TOLERANCE


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the bytes of the largest tensor that any operation returns."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.bytes = max(self.bytes, result.numel() * result.element_size())
        return result


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_no_matrix_of_all_pairs_is_ever_held(dtype: type) -> None:
    n, d, budget = 6000, 8, 1 << 20
    rows = tensor(random_vectors(n, d, dtype=dtype))
    with _Largest() as largest:
        max_earlier_similarity(rows, budget=budget)
    # The most that is held: a tile within the budget, or all vectors once in float64.
    assert 0 < largest.bytes <= max(budget, 8 * n * d) < 4 * n * n / 100


def spoiled(row: int, value: float) -> torch.Tensor:
    rows = random_vectors(20, 8)
    rows[row] = value
    return tensor(rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (spoiled(7, np.nan), "row 7 is not finite"),
        (spoiled(19, np.inf), "row 19 is not finite"),
        (spoiled(0, 0), "row 0 is a zero vector"),
        (spoiled(3, 1), r"row 3 has norm 2\.828, not 1"),
        (torch.ones(4), r"expected an \(n, d\) array of floats, got torch.float32 of shape \(4,\)"),
        (torch.ones(4, 1, dtype=torch.int64), r"expected an \(n, d\) array of floats, got torch.int64"),
    ],
)
def test_rows_without_a_cosine_similarity_are_refused_by_name(rows: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        max_earlier_similarity(rows, budget=ROOMY)
