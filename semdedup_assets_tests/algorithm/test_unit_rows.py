"""Unit rows and the similarity of pairs, row by row."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.unit_rows import UnitRows, as_tensor, check_rows, row_cosine, unit_rows
from semdedup_assets_tests import oracle
from semdedup_assets_tests.algorithm.vectors import random_vectors, repeatable, tensor


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("length", [1e-2, 1, 100])
def test_rows_become_unit_whatever_their_length_and_type(length: float, dtype: type) -> None:
    rows: np.ndarray = (random_vectors(50) * length).astype(dtype)
    np.testing.assert_allclose(unit_rows(tensor(rows)).numpy(), oracle.unit(rows), atol=1e-7)


@given(n=st.integers(1, 300), d=st.integers(1, 600), seed=st.integers(0, 1000), half=st.booleans())
@repeatable
def test_a_pair_has_the_same_similarity_to_the_last_bit_whatever_else_is_in_the_batch(
    n: int, d: int, seed: int, half: bool
) -> None:
    dtype = np.float16 if half else np.float32
    left, right = random_vectors(n, d, seed=seed, dtype=dtype), random_vectors(n, d, seed=seed + 1, dtype=dtype)
    whole = row_cosine(tensor(left), tensor(right)).numpy()
    np.testing.assert_allclose(whole, (oracle.unit(left) * oracle.unit(right)).sum(axis=1), atol=1e-12)
    for some in (slice(0, 1), slice(n // 2, None), slice(None, None, 3)):
        alone = row_cosine(tensor(left[some].copy()), tensor(right[some].copy())).numpy()
        np.testing.assert_array_equal(alone, whole[some])
    assert (row_cosine(tensor(left), tensor(left)).numpy() == 1).all()


def test_large_batches_are_taken_in_parts_without_a_trace() -> None:
    rows = random_vectors(9000, 600, dtype=np.float16)
    whole = row_cosine(tensor(rows[:-1]), tensor(rows[1:])).numpy()
    np.testing.assert_allclose(whole, (oracle.unit(rows[:-1]) * oracle.unit(rows[1:])).sum(axis=1), atol=1e-12)


def test_read_only_and_strided_arrays_become_tensors_without_a_warning() -> None:
    rows = random_vectors(20, 8)
    rows.setflags(write=False)
    np.testing.assert_array_equal(as_tensor(rows).numpy(), rows)
    np.testing.assert_array_equal(as_tensor(rows[::-2, ::2]).numpy(), rows[::-2, ::2])


@pytest.mark.parametrize("row", [0, 1, 65_535, 65_536, 131_071, 140_000])
def test_a_bad_row_is_named_in_whichever_chunk_it_lies(row: int) -> None:
    rows = torch.ones(140_001, 2)
    rows[row, 1] = torch.nan
    with pytest.raises(ValueError, match=rf"vectors: row {row} is not finite \(NaN or infinity\); exclude it"):
        check_rows(rows)


def test_only_the_first_bad_row_is_named() -> None:
    rows = tensor(random_vectors(10, 4))
    rows[8], rows[5] = torch.nan, 0
    with pytest.raises(ValueError, match="vectors: row 5 is a zero vector"):
        check_rows(rows)


def test_unit_norm_is_asked_only_where_it_is_needed() -> None:
    rows = torch.full((3, 4), 0.6)
    check_rows(rows)
    with pytest.raises(ValueError, match=r"row 0 has norm 1\.2, not 1; scale the rows to unit norm"):
        UnitRows(rows, budget=1 << 20)
    UnitRows(torch.full((3, 4), 0.5), budget=1 << 20)
