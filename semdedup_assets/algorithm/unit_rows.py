"""Rows of unit norm: what every cosine similarity here is computed on."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from semdedup_assets.algorithm.parallel import in_parallel

IN_CACHE = 1024
"""Rows that are worked on together where every number is touched more than once."""

# Rows that are worth a task of their own.
_ONE_CORES = 1 << 14


def as_tensor(vectors: np.ndarray | Tensor) -> Tensor:
    """The same memory as a tensor, also of arrays that cannot be written to (mapped files): it is only read."""
    if isinstance(vectors, Tensor):
        return vectors.detach()
    with warnings.catch_warnings():
        # torch has no read-only tensors and warns of undefined behaviour on writing; nothing here writes.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(vectors))


def unit_rows(rows: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows scaled to unit norm.

    Stored float16 rows are off unit norm by up to 1e-4, coarser than the smallest epsilons: scaling
    them again makes a product of two rows their cosine similarity.

    Args:
        rows: (n, d) of any float type, no zero rows.
        dtype: of the result, and of the arithmetic.

    Returns:
        (n, d) of `dtype` on the same device.
    """
    converted = rows.to(dtype)
    norms: Tensor = torch.linalg.vector_norm(converted, dim=1, keepdim=True)
    # What was made here can be scaled where it lies.
    return converted / norms if rows.dtype == dtype else converted.div_(norms)


def check_rows(vectors: Tensor) -> None:
    """Check that cosine similarities can be computed on rows.

    Args:
        vectors: (n, d) floats.

    Raises:
        ValueError: not a two-dimensional float array; or a row is not finite, or zero; names the first such row.
    """
    check_kind(vectors)
    for start in range(0, len(vectors), IN_CACHE):
        norms = torch.linalg.vector_norm(vectors[start : start + IN_CACHE].float(), dim=1)
        _check_norms(norms, _without_direction(norms), start)


def check_kind(vectors: Tensor) -> None:
    """Check that vectors are rows of floats.

    Raises:
        ValueError: not a two-dimensional float array.
    """
    if vectors.ndim != 2 or not vectors.is_floating_point():
        message = f"vectors: expected an (n, d) array of floats, got {vectors.dtype} of shape {tuple(vectors.shape)}"
        raise ValueError(message)


def _without_direction(norms: Tensor) -> Tensor:
    return ~torch.isfinite(norms) | (norms == 0)


def _check_norms(norms: Tensor, bad: Tensor, start: int, names: Tensor | None = None) -> None:
    if bad.any():
        row = int(bad.nonzero()[0])
        _raise_for(start + row if names is None else int(names[start + row]), float(norms[row]))


def _raise_for(row: int, norm: float) -> None:
    if norm == 0:
        message = f"vectors: row {row} is a zero vector, which has no direction; exclude it"
    elif norm == norm and norm != float("inf"):
        message = f"vectors: row {row} has norm {norm:.4g}, not 1; scale the rows to unit norm"
    else:
        message = f"vectors: row {row} is not finite (NaN or infinity); exclude it"
    raise ValueError(message)


class UnitRows:
    """Rows as float32 rows of unit norm: converted once where that fits a budget, else whenever they are asked for."""

    def __init__(self, rows: Tensor, *, budget: int, of_unit_norm: bool = True, names: Tensor | None = None) -> None:
        """Check the rows, and convert them where 4 d bytes a row fit the budget.

        Args:
            rows: (n, d) floats.
            budget: bytes.
            of_unit_norm: whether a norm other than 1 (within 1e-2) is an error; else only zero is.
            names: (n,) int64, what errors call the rows; None: their numbers.

        Raises:
            ValueError: not a two-dimensional float array; or a row is not finite or of an invalid norm; names the
                row.
        """
        check_kind(rows)
        self._rows, self._ready = rows, 4 * rows.numel() <= budget
        converted = torch.empty(rows.shape, device=rows.device) if self._ready else None
        on_cpu = rows.device.type == "cpu"

        def convert(part: range) -> None:
            # A few rows at a time, so that they are read from memory once for the check and the division.
            for start in range(part.start, part.stop, IN_CACHE) if on_cpu else [part.start]:
                stop = min(start + IN_CACHE, part.stop) if on_cpu else part.stop
                some = rows[start:stop].float()
                norms = torch.linalg.vector_norm(some, dim=1, keepdim=True)
                bad = ~((norms - 1).abs() <= 1e-2) if of_unit_norm else _without_direction(norms)
                _check_norms(norms.squeeze(1), bad.squeeze(1), start, names)
                if converted is not None:
                    torch.div(some, norms, out=converted[start:stop])

        step = _ONE_CORES if on_cpu else max(1, len(rows))
        parts = [range(start, min(start + step, len(rows))) for start in range(0, len(rows), step)]
        in_parallel(convert, parts, most=len(parts) if on_cpu else 1)
        if converted is not None:
            self._rows = converted

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def ready(self) -> bool:
        """Whether they are converted, and a slice costs nothing."""
        return self._ready

    @property
    def device(self) -> torch.device:
        """Where the rows lie."""
        return self._rows.device

    @property
    def dimension(self) -> int:
        """Numbers in a row."""
        return int(self._rows.shape[1])

    def __getitem__(self, part: slice) -> Tensor:
        """(m, d) float32 unit rows."""
        return self._rows[part] if self._ready else unit_rows(self._rows[part])

    def take(self, index: Tensor) -> Tensor:
        """(m, d) float32 unit rows at (m,) positions."""
        rows = self._rows.index_select(0, index)
        return rows if self._ready else unit_rows(rows)

    def part(self, start: int, stop: int) -> "UnitRows":
        """The rows from `start` to `stop`, without another conversion."""
        rows = object.__new__(UnitRows)
        rows._rows, rows._ready = self._rows[start:stop], self._ready
        return rows


@contextmanager
def full_float32() -> Iterator[None]:
    """Products of float32 matrices in float32, whatever the process allows itself elsewhere (TF32, bfloat16)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def row_cosine(left: Tensor, right: Tensor, *, products: torch.dtype = torch.float64) -> Tensor:
    """Cosine similarity of each pair of rows, at most 1.

    Computed row by row, so that equal rows get equal values whatever else is in the batch: a tile of a
    matrix product does not promise that.

    Args:
        left: (n, d) floats.
        right: (n, d) floats, on the same device.
        products: type in which numbers are multiplied and summed; float32 is right to about 1e-6.

    Returns:
        (n,) float64.
    """
    sums = torch.float32 if products == torch.float32 else torch.float64
    parts = []
    for start in range(0, len(left), IN_CACHE):
        part = slice(start, start + IN_CACHE)
        a, b = left[part].to(products), right[part].to(products)
        dot, a2, b2 = ((x * y).sum(1, dtype=sums).double() for x, y in ((a, b), (a, a), (b, b)))
        parts.append((dot / (a2 * b2).sqrt()).clamp(-1.0, 1.0))
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64, device=left.device)
