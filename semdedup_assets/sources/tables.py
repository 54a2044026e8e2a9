"""Columns of Parquet files, read as a stream by those sources that are made of them."""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from semdedup_assets.sources.reading import TruncatedFile, opened

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_SHOWN = 30
_PAGE_BUFFER = 1 << 20

FieldPath = tuple[str, ...]
"""A column's name, or the names that lead to a field of a struct."""


@contextmanager
def parquet_file(path: str) -> Iterator["pq.ParquetFile"]:
    """Open a Parquet file.

    Raises:
        TruncatedFile: its footer cannot be read; names the file.
        OSError: it cannot be opened; names it.
    """
    import pyarrow.parquet as pq

    with opened(path) as stream:
        with _damage_named(path, "its footer"):
            # Without the buffer a whole row group's column would be in memory at once.
            table = pq.ParquetFile(stream, buffer_size=_PAGE_BUFFER, pre_buffer=False, page_checksum_verification=True)
        with table:
            yield table


def batches(
    table: "pq.ParquetFile", fields: Mapping[str, FieldPath], *, rows: int, path: str
) -> Iterator[dict[str, "pa.Array"]]:
    """Consecutive rows of some columns.

    Args:
        table: an open file.
        fields: the columns to read, at least one, by the name they get; nothing else is read.
        rows: most rows in one batch.
        path: the file's path, for messages.

    Raises:
        TruncatedFile: the file is damaged from some row on; names both.
    """
    wanted = list(dict.fromkeys(".".join(field) for field in fields.values()))
    stream = table.iter_batches(batch_size=rows, columns=wanted)
    row = 0
    while True:
        with _damage_named(path, f"row {row} (counted from 0) or soon after"):
            batch = next(stream, None)
        if batch is None:
            return
        yield {name: _field(batch, field) for name, field in fields.items()}
        row += batch.num_rows


def field_path(schema: "pa.Schema", name: str, *, path: str) -> FieldPath:
    """Where a column, or a dotted field of a struct, lies in a table.

    Raises:
        ValueError: it is not there; names the file, the column, near names and the columns that are there.
    """
    there = list(_field_paths(schema))
    found = next((field for field in there if field == (name,) or ".".join(field) == name), None)
    if found is None:
        names = [".".join(field) for field in there]
        folded = {other.lower(): other for other in names}
        near = [folded[match] for match in difflib.get_close_matches(name.lower(), folded)]
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        message = f"{path}: no column {name!r}; {hint}its columns are {', '.join(names[:_SHOWN])}"
        raise ValueError(message + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""))
    return found


def field_type(schema: "pa.Schema", field: FieldPath) -> "pa.DataType":
    """The type of a field, that of its values where it is dictionary-encoded."""
    import pyarrow as pa

    kind = schema.field(field[0]).type
    for name in field[1:]:
        kind = kind.field(name).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def values(array: "pa.Array") -> list[Any]:
    """The values of a column as Python's own; strings that are not UTF-8 as bytes."""
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in array]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes()


def _field(batch: "pa.RecordBatch", field: FieldPath) -> "pa.Array":
    import pyarrow as pa
    import pyarrow.compute as pc

    array = batch.column(field[0])
    for name in field[1:]:
        array = pc.struct_field(array, name)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _field_paths(schema: "pa.Schema") -> Iterator[FieldPath]:
    """Every column, and every field of every struct."""
    import pyarrow as pa

    todo: list[tuple[FieldPath, pa.DataType]] = [((field.name,), field.type) for field in reversed(schema)]
    while todo:
        path, kind = todo.pop()
        yield path
        if pa.types.is_struct(kind):
            todo.extend(((*path, field.name), field.type) for field in reversed(list(kind)))


@contextmanager
def _damage_named(path: str, place: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        # Arrow reports damaged data as an OSError of its own; one with a number came from the store.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        message = f"{path}: cut off or damaged at {place}: {error}"
        raise TruncatedFile(message) from error
