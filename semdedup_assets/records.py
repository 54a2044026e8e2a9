"""What a source hands to an encoder: records in the file's order, the broken ones among them."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Content = Literal["image", "text", "vector"]
"""What a record carries: an encoded image (bytes), a text (str) or a ready embedding (float array)."""

ColumnType = Literal["string", "int", "float", "bool"]
"""Type of a column that is carried along from the source into the manifests."""

ColumnValue = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Record:
    """One item of a source.

    Attributes:
        key: the item's own name, never cut (`__key__`, URL, path, line number).
        payload: encoded image (bytes), text (str) or embedding ((d,) float array).
        columns: carried columns by name, each present, None where the source has no value.
    """

    key: str
    payload: bytes | str | np.ndarray
    columns: dict[str, ColumnValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Broken:
    """One item that cannot be embedded: it is counted, listed with its reason, and skipped."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class VectorBatch:
    """Consecutive ready embeddings of a source.

    Attributes:
        keys: n names, never cut.
        vectors: (n, d) floats as they were stored, not yet checked or normalised.
        columns: carried columns by name, n values each.
    """

    keys: list[str]
    vectors: np.ndarray
    columns: dict[str, list[ColumnValue]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A broken item with its place: the row it has among all records of its shard."""

    row: int
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Embedded:
    """A batch of embedded items, in the order of the source.

    Attributes:
        rows: (n,) int64, each item's place among all records of the shard, the broken ones counted.
        keys: n names.
        vectors: (n, d) float32 of unit norm.
        columns: carried columns by name, n values each.
        skipped: the broken items that lie before or between these rows.
    """

    rows: np.ndarray
    keys: list[str]
    vectors: np.ndarray
    columns: dict[str, list[ColumnValue]]
    skipped: list[Skipped]


def item_ids(shard: int, rows: np.ndarray) -> np.ndarray:
    """The identity of items: 64 bits, the shard's index above, the row in the shard below.

    Args:
        shard: index of the shard, below 2**31, so that ids also fit signed integers.
        rows: (n,) places among all records of the shard.

    Returns:
        (n,) uint64.
    """
    return (np.uint64(shard) << np.uint64(32)) | rows.astype(np.uint64)


def id_shards(ids: np.ndarray) -> np.ndarray:
    """(n,) int64: the index of the shard that each id belongs to."""
    return (ids >> np.uint64(32)).astype(np.int64)


def id_rows(ids: np.ndarray) -> np.ndarray:
    """(n,) int64: the row in its shard of each id."""
    return (ids & np.uint64(0xFFFFFFFF)).astype(np.int64)
