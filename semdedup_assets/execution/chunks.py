"""How a stage's work on all shards is cut into tasks."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def contiguous_chunks(items: Sequence[T], weights: Sequence[int], *, most: int) -> list[tuple[T, ...]]:
    """Cut items into at most so many contiguous chunks of about equal weight, none of them empty.

    Args:
        items: at least one, in their order.
        weights: of each, at least 0.
        most: chunks, at least 1.
    """
    # An item without weight costs a little too: many of them are not all one chunk's.
    ends = np.cumsum(np.asarray(weights, np.float64) + 1)
    chunk = np.minimum((ends - (np.asarray(weights) + 1) / 2) * most / ends[-1], most - 1).astype(np.int64)
    starts = np.flatnonzero(np.diff(chunk, prepend=-1)).tolist()
    return [tuple(items[start:stop]) for start, stop in zip(starts, [*starts[1:], len(items)], strict=True)]
