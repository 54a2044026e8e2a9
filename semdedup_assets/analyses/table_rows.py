"""Records of one kind as the rows of a table, and of a result's record."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np


def columns_of(rows: Sequence[Any]) -> dict[str, np.ndarray]:
    """A column for each field; NaN is null.

    Args:
        rows: at least one instance of a data class.
    """
    named = {name: np.array([getattr(row, name) for row in rows]) for name in asdict(rows[0])}
    return {name: np.ma.masked_invalid(each) if each.dtype.kind == "f" else each for name, each in named.items()}


def row_of(record: Any) -> dict[str, Any]:
    """A row as JSON has it; NaN is None.

    Args:
        record: an instance of a data class, or a mapping.
    """
    values = record if isinstance(record, Mapping) else asdict(record)
    return {name: None if isinstance(each, float) and np.isnan(each) else each for name, each in values.items()}
