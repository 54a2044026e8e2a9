"""Columns of Parquet files, read as a stream by the sources that use them."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import repeat
from typing import TYPE_CHECKING, Any

from semdedup_assets.sources.reading import TruncatedFile, opened

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_SHOWN = 30
_PAGE_BUFFER = 1 << 20
_ROWS = 4096

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

    with opened(path, seekable=True) as stream:
        with _damage_named(path, "its footer"):
            # Without the buffer a whole row group's column would be in memory at once.
            table = pq.ParquetFile(stream, buffer_size=_PAGE_BUFFER, pre_buffer=False, page_checksum_verification=True)
        with table:
            yield table


def batches(table: "pq.ParquetFile", field: FieldPath, *, rows: int, path: str) -> Iterator["pa.Array"]:
    """Consecutive values of one column; nothing else is read.

    Args:
        table: an open file.
        field: the column.
        rows: most values in one batch.
        path: the file's path, for messages.

    Raises:
        TruncatedFile: the column is damaged from some row on; names both.
    """
    stream = table.iter_batches(batch_size=rows, columns=[".".join(field)])
    row = 0
    while True:
        with _damage_named(path, f"row {row} (counted from 0) or soon after"):
            batch = next(stream, None)
        if batch is None:
            return
        yield _field(batch, field)
        row += batch.num_rows


def table_rows(
    table: "pq.ParquetFile", fields: Mapping[str, FieldPath], *, path: str, batch_rows: int = _ROWS
) -> Iterator[dict[str, Any]]:
    """Every row that the file's footer counts, whatever is damaged and whichever columns are read.

    Args:
        table: an open file.
        fields: the columns to read by the name they get; nothing else is read.
        path: the file's path, for messages.
        batch_rows: rows that are in memory together.

    Yields:
        Values by name; from the row where a column is damaged on, a `TruncatedFile` in place of its values.
    """
    # Each column is a stream of its own, so that damage in one cannot shift or hide the rows of another.
    columns = [_values_or_damage(table, field, rows=batch_rows, path=path) for field in fields.values()]
    for _ in range(table.metadata.num_rows):
        yield {name: next(column) for name, column in zip(fields, columns, strict=True)}


def _values_or_damage(table: "pq.ParquetFile", field: FieldPath, *, rows: int, path: str) -> Iterator[Any]:
    try:
        for batch in batches(table, field, rows=rows, path=path):
            yield from values(batch)
        yield from repeat(TruncatedFile(f"{path}: column {'.'.join(field)!r} ends before its last row"))
    except TruncatedFile as damage:
        yield from repeat(damage)


def field_paths(schema: "pa.Schema", names: Iterable[str], *, path: str) -> dict[str, FieldPath]:
    """Where columns lie in a table, by name.

    Raises:
        ValueError: one is not there; names the file, the column, near names and the columns that are there.
    """
    return {name: field_path(schema, name, path=path) for name in names}


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
def _damage_named(path: str, location: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        # Arrow reports damaged data as an OSError without a number; one with a number comes from the store.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        message = f"{path}: cut off or damaged at {location}: {error}"
        raise TruncatedFile(message) from error
