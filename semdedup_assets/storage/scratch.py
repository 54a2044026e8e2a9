"""Arrays that may be larger than memory."""

import tempfile

import numpy as np


def scratch_array(shape: tuple[int, int], dtype: np.dtype, *, budget: int) -> np.ndarray:
    """An array to be filled: in memory where it fits a budget, else mapped from a temporary file without a name.

    The file goes with the array. It lies where Python has temporary files (`TMPDIR`), which should be a disk.

    Args:
        shape: rows and columns.
        dtype: of its numbers.
        budget: bytes.
    """
    if shape[0] * shape[1] * dtype.itemsize <= budget:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="semdedup-") as file:
        return np.memmap(file, dtype, "w+", shape=shape)
