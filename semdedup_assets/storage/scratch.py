"""Arrays that may be larger than memory."""

import os
import shutil
import tempfile
from typing import IO, Any

import numpy as np

_BLOCK_BYTES = 32 << 20


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
        raise _no_room(error, size) from error


def _no_room(error: OSError, size: int) -> OSError:
    folder = tempfile.gettempdir()
    message = (
        f"{folder}: no room for {size / 1e9:.1f} GB of temporary data ({error.strerror}; "
        f"{shutil.disk_usage(folder).free / 1e9:.1f} GB are free); set TMPDIR to a larger disk, or raise "
        "`compute.memory_mib` above it"
    )
    return OSError(error.errno, message, folder)


class ScratchBytes:
    """Bytes that come one after the other: in memory, beyond a budget in a file, which has no name and goes with them.

    Args:
        budget: bytes that may stay in memory.
    """

    def __init__(self, *, budget: int) -> None:
        self._budget, self._size = budget, 0
        self._held = bytearray()
        self._file: IO[bytes] | None = None

    def append(self, content: Any) -> None:
        """Hold the bytes of an array or a buffer after those that are there.

        Raises:
            OSError: there is no room for the file; names the folder and the remedy.
        """
        view = memoryview(content).cast("B")
        self._size += view.nbytes
        if self._file is None and self._size <= self._budget:
            self._held += view
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="semdedup-")  # noqa: SIM115  # it goes with this object
                self._file.write(self._held)
                self._held = bytearray()
            self._file.write(view)
        except OSError as error:
            raise _no_room(error, self._size) from error

    def array(self, dtype: np.dtype) -> np.ndarray:
        """(n,) all of them as numbers of a type; once, after the last is there."""
        if self._file is None:
            return np.frombuffer(self._held, dtype)
        try:
            self._file.flush()
        except OSError as error:
            raise _no_room(error, self._size) from error
        return np.memmap(self._file, dtype, "r+", shape=(self._size // dtype.itemsize,))

    def __del__(self) -> None:
        # What is mapped stays so.
        if self._file is not None:
            self._file.close()


class ScratchRows:
    """Rows that come one after the other and are read again in any order: in memory, beyond a budget in files.

    The number of rows need not be known before. The files have no name, and go with the object.
    """

    def __init__(self, dtype: np.dtype, *, budget: int) -> None:
        """Nothing is held yet.

        Args:
            dtype: of the numbers.
            budget: bytes that may stay in memory.
        """
        self._dtype = np.dtype(dtype)
        self._budget = budget
        self._blocks: list[np.ndarray] = []

    def put(self, index: np.ndarray, rows: np.ndarray) -> None:
        """Hold rows.

        Args:
            index: (n,) int64, at which each is to be found.
            rows: (n, d) numbers; d is the same in each call.

        Raises:
            OSError: there is no room for a file; names the folder, what is needed and the remedy.
        """
        if len(index) == 0:
            return
        size = _block_rows(rows.shape[1] * self._dtype.itemsize)
        while len(self._blocks) <= int(index.max()) // size:
            held = sum(block.nbytes for block in self._blocks)
            self._blocks.append(scratch_array((size, rows.shape[1]), self._dtype, budget=self._budget - held))
        for block in np.unique(index // size).tolist():
            here = index // size == block
            self._blocks[block][index[here] - block * size] = rows[here]

    def take(self, index: np.ndarray) -> np.ndarray:
        """(n, d) the rows at (n,) int64 indices, which were put there before; (0, d or 0) of none."""
        if not self._blocks:
            return np.empty((0, 0), self._dtype)
        size, width = self._blocks[0].shape
        found = np.empty((len(index), width), self._dtype)
        for block in np.unique(index // size).tolist():
            here = index // size == block
            found[here] = self._blocks[block][index[here] - block * size]
        return found


def _block_rows(row_bytes: int) -> int:
    """Rows of a block: it is reserved as a whole, and a shard may have few."""
    return max(1, _BLOCK_BYTES // max(1, row_bytes))
