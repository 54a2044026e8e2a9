"""Rows of unit norm: what every cosine similarity here is computed on."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_CHUNK = 65536


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
    rows = rows.to(dtype)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / norms


def check_rows(vectors: Tensor, *, unit: bool = False) -> None:
    """Refuse rows that no cosine similarity can be computed on.

    Args:
        vectors: (n, d) floats.
        unit: also refuse rows whose norm is off 1 by more than 1e-2.

    Raises:
        ValueError: not a two-dimensional float array; or a row is not finite, zero, or (with `unit`) not of
            unit norm; names the first such row.
    """
    if vectors.ndim != 2 or not vectors.is_floating_point():
        message = f"vectors: expected an (n, d) array of floats, got {vectors.dtype} of shape {tuple(vectors.shape)}"
        raise ValueError(message)
    for start in range(0, len(vectors), _CHUNK):
        norms = torch.linalg.vector_norm(vectors[start : start + _CHUNK].float(), dim=1)
        bad = ~torch.isfinite(norms) | (norms == 0)
        if unit:
            bad |= (norms - 1).abs() > 1e-2
        if bad.any():
            row = int(bad.nonzero()[0])
            _refuse(start + row, float(norms[row]))


def _refuse(row: int, norm: float) -> None:
    if norm == 0:
        message = f"vectors: row {row} is a zero vector, which has no direction; leave it out"
    elif norm == norm and norm != float("inf"):
        message = f"vectors: row {row} has norm {norm:.4g}, not 1; scale the rows to unit norm"
    else:
        message = f"vectors: row {row} is not finite (NaN or infinity); leave it out"
    raise ValueError(message)


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
        products: type in which numbers are multiplied; they are summed in float64. float32 halves the memory
            traffic, and is right to about 1e-7.

    Returns:
        (n,) float64.
    """
    chunk = max(1, (32 << 20) // (8 * max(1, left.shape[1])))
    parts = []
    for start in range(0, len(left), chunk):
        a, b = left[start : start + chunk].to(products), right[start : start + chunk].to(products)
        dot, a2, b2 = ((x * y).sum(1, dtype=torch.float64) for x, y in ((a, b), (a, a), (b, b)))
        parts.append((dot / (a2 * b2).sqrt()).clamp(-1.0, 1.0))
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64, device=left.device)
