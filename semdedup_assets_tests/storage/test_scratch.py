"""Arrays that may be larger than memory."""

import errno
from pathlib import Path

import numpy as np
import pytest

from semdedup_assets.storage.scratch import scratch_array


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
