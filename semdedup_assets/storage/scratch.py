"""Arrays that may be larger than memory."""

import os
import shutil
import tempfile

import numpy as np


def scratch_array(shape: tuple[int, int], dtype: np.dtype, *, budget: int) -> np.ndarray:
    """An array to be filled: in memory where it fits a budget, else mapped from a temporary file without a name.

    The file goes with the array. It lies where Python has temporary files (`TMPDIR`), which should be a disk.

    Args:
        shape: rows and columns.
        dtype: of its numbers.
        budget: bytes.

    Raises:
        OSError: there is no room for the file; names the folder, what is needed and the remedy.
    """
    size = shape[0] * shape[1] * dtype.itemsize
    if size <= budget:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="semdedup-") as file:
        _reserve(file.fileno(), size)
        return np.memmap(file, dtype, "r+", shape=shape)


def _reserve(file: int, size: int) -> None:
    """Take the room on the disk now: where it runs out while a mapped page is written, the process is killed."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
        else:
            os.truncate(file, size)
    except OSError as error:
        folder = tempfile.gettempdir()
        message = (
            f"{folder}: no room for {size / 1e9:.1f} GB of temporary vectors ({error.strerror}; "
            f"{shutil.disk_usage(folder).free / 1e9:.1f} GB are free); set TMPDIR to a larger disk, or raise "
            "`compute.memory_mib` above it"
        )
        raise OSError(error.errno, message) from error
