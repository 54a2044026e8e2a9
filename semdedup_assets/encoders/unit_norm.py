"""Rows of unit norm, and those that can have none."""

from dataclasses import dataclass

import numpy as np

_NORM_TOLERANCE = 1e-2
# Outside these norms, the squares of float32 numbers are no longer exact to float32.
_SMALLEST_NORM, _GREATEST_NORM = 1e-12, 1e18


@dataclass(frozen=True, slots=True)
class UnitRows:
    """Rows of unit norm.

    Attributes:
        vectors: (n, d) float32; unit norm except for the invalid rows, whose values are undefined.
        invalid: why a row has no direction, by its position.
    """

    vectors: np.ndarray
    invalid: dict[int, str]


def normalise_rows(vectors: np.ndarray) -> UnitRows:
    """Divide each row by its L2 norm.

    Args:
        vectors: (n, d) floats of any width; left as they are.

    Returns:
        The unit rows; invalid are those that are not finite or zero.
    """
    rows, norms = _with_norms(vectors)
    usual = (norms > _SMALLEST_NORM) & (norms < _GREATEST_NORM)  # False for NaN
    rows /= np.where(usual, norms, np.float32(1))[:, None]
    invalid = {}
    for position in np.flatnonzero(~usual):
        unit = _extreme_unit_row(vectors[position])
        if isinstance(unit, str):
            invalid[int(position)] = unit
        else:
            rows[position] = unit
    return UnitRows(rows, invalid)


def check_unit_rows(vectors: np.ndarray) -> UnitRows:
    """Rows that must have unit norm already, as far as the precision they were kept in allows.

    Args:
        vectors: (n, d) floats of any width; left as they are.

    Returns:
        The same rows in float32, of unit norm to its precision; invalid are those that are not finite, zero, or of a
        norm more than 0.01 off.
    """
    rows, norms = _with_norms(vectors)
    near = np.abs(norms - 1) <= _NORM_TOLERANCE  # False for NaN
    rows /= np.where(near, norms, np.float32(1))[:, None]
    off = np.flatnonzero(~near)
    return UnitRows(rows, {int(position): _invalid_reason(vectors[position], norms[position]) for position in off})


def _with_norms(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(over="ignore", invalid="ignore"):
        rows = vectors.astype(np.float32)  # (n, d), a copy
        return rows, np.sqrt(np.einsum("nd,nd->n", rows, rows))


def _extreme_unit_row(row: np.ndarray) -> np.ndarray | str:
    exact = row.astype(np.float64)  # (d,)
    peak = np.abs(exact).max(initial=0.0)
    if not np.isfinite(peak):
        return "not finite"
    if peak == 0:
        return "zero vector"
    scaled = exact / peak
    unit: np.ndarray = scaled / np.linalg.norm(scaled)
    return unit


def _invalid_reason(row: np.ndarray, norm: float) -> str:
    unit = _extreme_unit_row(row)
    return unit if isinstance(unit, str) else f"norm {norm:.3g}, not 1; set `normalise: true`"
