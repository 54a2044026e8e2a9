"""Items of different content that one vector stands for: a decoder or a model that cannot tell them apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SKETCH = 64
"""Contents of a shared vector that are named, so that those of several shards can be united."""


@dataclass(frozen=True, slots=True)
class SharedVector:
    """A vector that several items of different content have.

    Attributes:
        vector: hash of the vector.
        items: how many items have it.
        contents: how many different contents they have.
        sketch: the smallest hashes of these contents, ascending.
        example: position of one of the items.
    """

    vector: int
    items: int
    contents: int
    sketch: tuple[int, ...]
    example: int


def row_hashes(vectors: np.ndarray) -> np.ndarray:
    """A hash of each row's numbers; equal rows have equal ones.

    Args:
        vectors: (n, d) float32.

    Returns:
        (n,) uint64.
    """
    # Plus zero: a negative zero is the same number.
    words = (np.ascontiguousarray(vectors, np.float32) + np.float32(0)).view(np.uint32).astype(np.uint64)
    odd = np.random.default_rng(0).integers(0, 1 << 63, words.shape[1], np.uint64) * np.uint64(2) + np.uint64(1)
    mixed = (words ^ (words << np.uint64(17))) * odd
    hashes: np.ndarray = mixed.sum(axis=1, dtype=np.uint64)
    return hashes


def shared_vectors(vectors: np.ndarray, contents: np.ndarray, *, most: int) -> list[SharedVector]:
    """The vectors that items of different content share, those of most contents first.

    Args:
        vectors: (n,) uint64, hash of each item's vector.
        contents: (n,) uint64, hash of each item's content.
        most: how many are returned at most.
    """
    order = np.lexsort((contents, vectors))
    of_vector, of_content = vectors[order], contents[order]
    starts = np.flatnonzero(np.r_[True, of_vector[1:] != of_vector[:-1]]) if len(order) else np.zeros(0, np.int64)
    new = np.r_[True, (of_vector[1:] != of_vector[:-1]) | (of_content[1:] != of_content[:-1])][: len(order)]
    counts = np.add.reduceat(new, starts, dtype=np.int64) if len(starts) else np.zeros(0, np.int64)
    stops = np.r_[starts[1:], len(order)]
    found = []
    for group in np.argsort(-counts, kind="stable")[:most]:
        if counts[group] < 2:
            break
        part = slice(int(starts[group]), int(stops[group]))
        sketch = np.unique(of_content[part])[:_SKETCH]
        found.append(
            SharedVector(
                vector=int(of_vector[part.start]),
                items=part.stop - part.start,
                contents=int(counts[group]),
                sketch=tuple(sketch.tolist()),
                example=int(order[part].min()),
            )
        )
    return found


def united(found: Sequence[SharedVector]) -> tuple[int, int]:
    """Items and different contents of one vector that several shards share.

    Args:
        found: of the same vector, one a shard.

    Returns:
        The items, and the contents: exact up to 64, beyond that at most so many.
    """
    sketches = {content for each in found for content in each.sketch}
    complete = all(len(each.sketch) == each.contents for each in found)
    contents = len(sketches) if complete else max(len(sketches), *(each.contents for each in found))
    return sum(each.items for each in found), contents
