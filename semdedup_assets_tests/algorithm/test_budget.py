"""One budget in bytes, divided into tiles."""

from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.budget import COLUMN_GROUP, rows_within, tile_shape
from semdedup_assets_tests.algorithm.vectors import repeatable


@given(budget=st.integers(1, 1 << 34), dimension=st.integers(1, 8192), gpu=st.booleans())
@repeatable
def test_a_tile_and_its_operands_fit_the_budget_unless_it_is_a_single_row(
    budget: int, dimension: int, gpu: bool
) -> None:
    rows, columns = tile_shape(budget, dimension=dimension, gpu=gpu)
    assert rows >= 1
    assert columns >= COLUMN_GROUP
    assert columns % COLUMN_GROUP == 0
    assert rows == 1 or 4 * (rows * columns + dimension * (rows + columns)) <= budget


@given(budget=st.integers(1, 1 << 34), dimension=st.integers(1, 8192), gpu=st.booleans())
@repeatable
def test_a_larger_budget_never_gives_a_smaller_tile(budget: int, dimension: int, gpu: bool) -> None:
    small, large = (tile_shape(b, dimension=dimension, gpu=gpu) for b in (budget, 2 * budget))
    assert large.rows >= small.rows
    assert large.columns >= small.columns


def test_rows_within_a_budget_are_at_least_one_and_at_most_what_is_asked() -> None:
    assert rows_within(1000, row_bytes=100) == 10
    assert rows_within(1000, row_bytes=100, most=4) == 4
    assert rows_within(10, row_bytes=100) == 1
    assert rows_within(10, row_bytes=0) == 10
