"""Arrays that may be larger than memory."""

import errno
from pathlib import Path

import numpy as np
import pytest

from semdedup_assets.storage.scratch import ScratchBytes, ScratchRows, scratch_array


def test_an_array_within_the_budget_is_in_memory() -> None:
    assert not isinstance(scratch_array((4, 8), np.dtype("float16"), budget=64), np.memmap)


def test_an_array_beyond_the_budget_is_mapped_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    array = scratch_array((1000, 8), np.dtype("float16"), budget=63)
    assert isinstance(array, np.memmap)
    array[:] = np.arange(8000).reshape(1000, 8) % 1024
    assert array[999].tolist() == [8000 % 1024 - 8 + column for column in range(8)]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_room_is_reported_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that finds no room later would end the process by a signal."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(OSError, match=rf"{tmp_path}: no room for 281475\.0 GB .*TMPDIR.*memory_mib") as raised:
        scratch_array((1 << 44, 8), np.dtype("float16"), budget=63)
    assert raised.value.errno in (errno.ENOSPC, errno.EFBIG)
    array = scratch_array((1000, 8), np.dtype("float16"), budget=63)
    assert (array == 0).all()


@pytest.mark.parametrize("budget", [0, 40 << 20, 1 << 30])
def test_rows_put_one_after_the_other_are_found_in_any_order(budget: int) -> None:
    rng = np.random.default_rng(0)
    # More than a block of 32 MiB, with rows that are never put.
    index = np.flatnonzero(rng.random(9_000) < 0.9)
    rows = rng.normal(size=(len(index), 2048)).astype(np.float16)
    held = ScratchRows(np.dtype("float16"), budget=budget)
    for part in np.array_split(np.arange(len(index)), 7):
        held.put(index[part], rows[part])
    wanted = rng.integers(0, len(index), 500)
    np.testing.assert_array_equal(held.take(index[wanted]), rows[wanted])


def test_no_rows_are_none() -> None:
    held = ScratchRows(np.dtype("float32"), budget=0)
    assert held.take(np.zeros(0, np.int64)).shape == (0, 0)
    held.put(np.array([3]), np.ones((1, 5)))
    assert held.take(np.zeros(0, np.int64)).shape == (0, 5)
    assert held.take(np.array([3, 3])).tolist() == [[1] * 5] * 2


@pytest.mark.parametrize("budget", [0, 100, 1 << 20])
def test_bytes_come_back_in_their_order_in_memory_and_beyond_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    held = ScratchBytes(budget=budget)
    for start in range(0, 100, 7):
        held.append(np.arange(start, min(start + 7, 100), dtype=np.int64))
    found = held.array(np.dtype(np.int64))
    del held
    assert found.tolist() == list(range(100))
    assert isinstance(found, np.memmap) == (budget < 800)
    assert list(tmp_path.iterdir()) == []
    assert len(ScratchBytes(budget=budget).array(np.dtype(np.float32))) == 0
