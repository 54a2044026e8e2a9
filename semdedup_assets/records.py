"""What a source yields and an encoder embeds: records in the file's order, the invalid ones among them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xxhash

Content = Literal["image", "text", "vector"]
"""The payload of a record: an encoded image (bytes), a text (str) or a ready embedding (float array)."""

ColumnType = Literal["string", "int", "uint", "float", "bool"]
"""Type of a column that is carried along from the source into the manifests; `int` is int64, `uint` is uint64."""

ColumnValue = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Record:
    """One item of a source, with what is embedded.

    Attributes:
        key: the item's own name, never cut (`__key__`, URL, path, line number).
        payload: encoded image (bytes), text (str) or embedding ((d,) float array).
    """

    key: str
    payload: bytes | str | np.ndarray


@dataclass(frozen=True, slots=True)
class Invalid:
    """One item that cannot be embedded: it is counted, listed with its reason, and skipped.

    Attributes:
        key: the item's own name.
        reason: why it cannot be embedded.
        expected: whether it is no fault of the source's files: the source itself states that the item has no payload, or
            the item is held out.
    """

    key: str
    reason: str
    expected: bool = False


@dataclass(frozen=True, slots=True)
class VectorBatch:
    """Consecutive ready embeddings of a source.

    Attributes:
        keys: n names, never cut.
        vectors: (n, d) floats as they were stored, not yet checked or normalised.
    """

    keys: list[str]
    vectors: np.ndarray


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a source, without its payload.

    Attributes:
        key: the same key as that of its `Record` or `Invalid`.
        columns: carried columns by name, each present; None where the source has no valid value.
        invalid_values: why a key or a column's value could not be used; each names field, value and type.
    """

    key: str
    columns: dict[str, ColumnValue]
    invalid_values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """An invalid item with its row among all records of its shard."""

    row: int
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Embedded:
    """A batch of embedded items, in the order of the source.

    Attributes:
        rows: (n,) int64, each item's row among all records of the shard, the invalid ones counted.
        keys: n names.
        vectors: (n, d) float32 of unit norm.
        skipped: the invalid items before and between these rows.
    """

    rows: np.ndarray
    keys: list[str]
    vectors: np.ndarray
    skipped: list[Skipped]


def is_unicode(text: str) -> bool:
    """Whether a string is UTF-8 once it is encoded: halves of surrogate pairs are not, which JSON and file names can hold."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def visible(text: str) -> str:
    """A text for one line, in which what has no shape shows as �: line breaks, control characters, changes of direction."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def content_hash(payload: bytes | str) -> int:
    """What identifies an encoded image or a text: XXH3 of its bytes, 64 bits."""
    return int(xxhash.xxh3_64_intdigest(content_bytes(payload)))


def content_bytes(payload: bytes | str) -> bytes:
    """An encoded image as it is, or the UTF-8 bytes of a text, whatever it holds."""
    return payload if isinstance(payload, bytes) else payload.encode("utf-8", "surrogatepass")


MOST_ROWS, MOST_SHARDS = 1 << 32, 1 << 31
"""What ids can number: rows of a shard, and shards."""


class TooManyRowsError(RuntimeError):
    """A shard has more rows than ids can number; names it, its files and the remedy. No attempt can mend that."""


def item_ids(shard: int, rows: np.ndarray) -> np.ndarray:
    """The identity of items: 64 bits, the shard's index above, the row in the shard below.

    Args:
        shard: index of the shard, below 2**31, so that ids also fit signed integers.
        rows: (n,) rows among all records of the shard, below 2**32.

    Returns:
        (n,) uint64.

    Raises:
        TooManyRowsError: a row does not fit into 32 bits, so that its id would be that of another shard's item.
        ValueError: the shard's index is out of range.
    """
    if not 0 <= shard < MOST_SHARDS:
        message = f"shard {shard}: its index exceeds the range 0 to 2**31 - 1"
        raise ValueError(message)
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < MOST_ROWS:
        message = (
            f"shard {shard}: rows {rows.min()} to {rows.max()} exceed the range 0 to 2**32 - 1 of one shard; "
            "use smaller files, or a lower `shards.files_per_shard` in a new store"
        )
        raise TooManyRowsError(message)
    return (np.uint64(shard) << np.uint64(32)) | rows.astype(np.uint64)


def id_shards(ids: np.ndarray) -> np.ndarray:
    """(n,) int64: the index of the shard that each id belongs to."""
    return (ids >> np.uint64(32)).astype(np.int64)


def id_rows(ids: np.ndarray) -> np.ndarray:
    """(n,) int64: the row in its shard of each id."""
    return (ids & np.uint64(0xFFFFFFFF)).astype(np.int64)


def positions_by_shard(ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The shards that some ids belong to, ascending, each with where its ids stand.

    Args:
        ids: (n,) uint64, in any order.

    Yields:
        Index of a shard, and (m,) int64, ascending, the positions of its ids.
    """
    shards = id_shards(ids)
    # NumPy sorts 16 bits by radix, in a fifth of the time.
    order = np.argsort(shards.astype(np.min_scalar_type(shards.max(initial=0))), kind="stable")
    found, starts, counts = np.unique(shards[order], return_index=True, return_counts=True)
    for shard, start, count in zip(found.tolist(), starts, counts, strict=True):
        yield shard, order[start : start + count]
