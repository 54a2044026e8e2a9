"""Columns of Parquet files, read as a stream by the sources that use them."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import IO, TYPE_CHECKING, Any

from semdedup_assets.sources.columns import NotUtf8, check_item_size
from semdedup_assets.sources.foreign import HEAD, foreign
from semdedup_assets.sources.reading import InvalidValue, ReadMeter, TruncatedFile, opened

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_SHOWN = 30
_PAGE_BUFFER = 1 << 20
_MOST_ROWS = 4096
# Bytes of a batch, by a column's mean: of cells that may differ in size much less, for large ones may come together.
_BATCH_BYTES, _FIXED_BATCH_BYTES, _WORST_BATCH_BYTES = 1 << 20, 16 << 20, 64 << 20
_SIGNATURE_BYTES = 28
_SMALLER = 8  # how many times fewer rows are tried where a batch is more than Arrow can hold

FieldPath = tuple[str, ...]
"""A column's name, or the names that lead to a field of a struct."""


@dataclass(frozen=True, slots=True)
class ParquetTable:
    """An open Parquet file.

    Attributes:
        path: the file's path, for messages.
        file: the file.
        stream: what it is read from.
    """

    path: str
    file: "pq.ParquetFile"
    stream: IO[bytes]

    @property
    def rows(self) -> int:
        """Rows that the footer counts."""
        return int(self.file.metadata.num_rows)

    @property
    def group_rows(self) -> list[int]:
        """Rows of each row group."""
        metadata = self.file.metadata
        return [int(metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)]

    @property
    def schema(self) -> "pa.Schema":
        """Names and types of the columns."""
        return self.file.schema_arrow

    def reopened(self, *, old_times: str = "ns") -> "pq.ParquetFile":
        """The file once more: Arrow reads all columns of one `ParquetFile` in batches of the size last asked for.

        Args:
            old_times: the unit that times of the old type INT96 are read in; in nanoseconds those after 2262 overflow.
        """
        return _parquet_file(self.stream, self.file.metadata, old_times)


@contextmanager
def parquet_table(path: str, meter: ReadMeter | None = None) -> Iterator[ParquetTable]:
    """Open a Parquet file.

    Args:
        path: of the file.
        meter: counts what is read, where few rows are wanted.

    Raises:
        TruncatedFile: it is encrypted, or its footer cannot be read; names the file, and what it is instead where that is
            known.
        OSError: it cannot be opened; names it.
    """
    with opened(path, seekable=True, meter=meter) as stream:
        try:
            with _damage_named(path, "its footer"):
                file = _parquet_file(stream, None, "ns")
        except TruncatedFile as damage:
            raise _named(damage, stream, path) from damage
        if _is_signed(stream, file.metadata):
            raise _encrypted(path)
        yield ParquetTable(path, file, stream)


def _is_signed(stream: IO[bytes], metadata: "pq.FileMetaData") -> bool:
    """Whether a footer has the signature of a file with encrypted columns.

    Asked about such a column, Arrow ends the process.
    """
    stream.seek(-8, 2)
    length = int.from_bytes(stream.read(4), "little")
    return length == int(metadata.serialized_size) + _SIGNATURE_BYTES


def _parquet_file(stream: IO[bytes], metadata: "pq.FileMetaData | None", old_times: str) -> "pq.ParquetFile":
    import pyarrow.parquet as pq

    # Without the buffer a whole row group's column would be in memory at once.
    return pq.ParquetFile(
        stream,
        metadata=metadata,
        buffer_size=_PAGE_BUFFER,
        pre_buffer=False,
        coerce_int96_timestamp_unit=old_times,
        page_checksum_verification=True,
    )


def _named(damage: TruncatedFile, stream: IO[bytes], path: str) -> TruncatedFile:
    """The damage at a file's footer, or what the file is instead of a Parquet file."""
    stream.seek(0)
    head = stream.read(HEAD)
    if head.startswith(b"PARE"):
        return _encrypted(path)
    what = foreign(head, own=b"PAR1")
    return damage if what is None else TruncatedFile(f"{path}: not Parquet: {what}")


def _encrypted(path: str) -> TruncatedFile:
    return TruncatedFile(f"{path}: its columns are encrypted; write it without encryption")


def batches(table: ParquetTable, field: FieldPath, groups: Sequence[int] | None = None) -> "Iterator[pa.Array]":
    """Consecutive values of one column, some MiB and at most 4096 of them a batch; nothing else is read.

    Args:
        table: an open file.
        field: the column.
        groups: row groups that are read; None: all.

    Raises:
        TruncatedFile: the column is damaged from some row on; names both.
    """
    chosen = range(table.file.num_row_groups) if groups is None else groups
    first = sum(table.group_rows[: min(chosen, default=0)])
    records = _record_batches(table.reopened(), ".".join(field), chosen)
    for batch in _named_batches(table.path, records, first):
        yield batch_column(batch, field)


def row_batches(table: ParquetTable) -> "Iterator[pa.RecordBatch]":
    """Consecutive rows with all their columns, in batches as small as those of `batches`, and row by row before damage.

    Raises:
        TruncatedFile: a column is damaged from some row on; names the row.
    """
    return _named_batches(table.path, _record_batches(table.file, None, range(table.file.num_row_groups)), 0)


def damaged_columns(table: ParquetTable) -> list[str]:
    """The columns that cannot be read to their end; reads the whole file."""
    damaged = []
    for name in table.file.schema_arrow.names:
        try:
            for _ in _named_batches(
                table.path, _record_batches(table.reopened(), name, range(table.file.num_row_groups)), 0
            ):
                pass
        except TruncatedFile:
            damaged.append(name)
    return damaged


def _named_batches(path: str, stream: "Iterator[pa.RecordBatch]", row: int) -> "Iterator[pa.RecordBatch]":
    """Batches from a row on; what cannot be read is named by its row."""
    while True:
        with _damage_named(path, f"row {row} (counted from 0) or soon after"):
            batch = next(stream, None)
        if batch is None:
            return
        yield batch
        row += batch.num_rows


def _record_batches(file: "pq.ParquetFile", name: str | None, groups: Iterable[int]) -> "Iterator[pa.RecordBatch]":
    """The rows of a column, or of all, in some row groups."""
    import pyarrow as pa

    paths = enumerate(leaf_paths(file))
    leaves = [at for at, path in paths if name is None or path == name or path.startswith(f"{name}.")]
    for group in groups:
        rows, done = _batch_rows(file.metadata.row_group(group), leaves), 0
        while rows:
            try:
                for batch in _rest_of_group(file, name, group, rows=rows, first=done):
                    yield batch
                    done += batch.num_rows
                rows = 0
            except (pa.ArrowNotImplementedError, pa.ArrowCapacityError):
                # More than 2 GiB of a nested column do not fit one array.
                if rows == 1:
                    raise
                rows = max(1, rows // _SMALLER)
            except (pa.ArrowInvalid, OSError) as error:
                # The batches of one column, of which each decides which rows are good, end elsewhere than those of all.
                if rows == 1 or name is not None or getattr(error, "errno", None) is not None:
                    raise
                rows = max(1, rows // _SMALLER)


def leaf_paths(file: "pq.ParquetFile") -> list[str]:
    """The columns that hold values: dotted where they are nested, as Parquet names them."""
    return [file.schema.column(at).path for at in range(len(file.schema))]


def _rest_of_group(
    file: "pq.ParquetFile", name: str | None, group: int, *, rows: int, first: int
) -> "Iterator[pa.RecordBatch]":
    """The rows of a row group from one on, in batches."""
    for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=None if name is None else [name]):
        if first < batch.num_rows:
            yield batch.slice(first)
        first = max(0, first - batch.num_rows)


def _batch_rows(group: "pq.RowGroupMetaData", leaves: list[int]) -> int:
    """Rows of a row group's batches: fewer the larger its cells are on average, and may be at most; 0 without rows."""
    chunks = [group.column(at) for at in leaves]
    # Repeated numbers are stored once; four bytes each are a lower bound of what they take here.
    size = sum(max(chunk.total_uncompressed_size, 4 * chunk.num_values) for chunk in chunks)
    varying = any(chunk.physical_type == "BYTE_ARRAY" for chunk in chunks)
    by_mean = (_BATCH_BYTES if varying else _FIXED_BATCH_BYTES) * group.num_rows // max(1, size)
    by_worst = _WORST_BATCH_BYTES // max(1, *map(_repeatable_bytes, chunks))
    return min(int(group.num_rows), max(1, min(_MOST_ROWS, int(by_mean), int(by_worst))))


def _repeatable_bytes(chunk: "pq.ColumnChunkMetaData") -> int:
    """About how many bytes a single cell may stand for many times: those of the column's dictionary."""
    if chunk.physical_type != "BYTE_ARRAY" or not any("DICTIONARY" in encoding for encoding in chunk.encodings):
        return 0
    size, packed = int(chunk.total_uncompressed_size), max(1, int(chunk.total_compressed_size))
    if not chunk.has_dictionary_page or not chunk.dictionary_page_offset:
        return size
    # Only its packed size is known; twice, for it may be packed better than what follows.
    return min(size, 2 * size * int(chunk.data_page_offset - chunk.dictionary_page_offset) // packed)


def table_rows(
    table: ParquetTable, fields: Mapping[str, FieldPath], *, most_mib: int, groups: Sequence[int] | None = None
) -> Iterator[dict[str, Any]]:
    """Every row that the file's footer counts, whatever is damaged and whichever columns are read.

    Args:
        table: an open file.
        fields: the columns to read by the name they get; nothing else is read.
        most_mib: MiB of a cell's strings or bytes; in place of a larger one stands an `InvalidValue`.
        groups: row groups that are read; None: all.

    Yields:
        Values by name; from the row where a column is damaged on, a `TruncatedFile` in place of its values.
    """
    # Each column is a stream of its own, so that damage in one cannot shift or hide the rows of another.
    columns = [_values_or_damage(table, field, most_mib, groups) for field in fields.values()]
    for _ in range(table.rows if groups is None else sum(table.group_rows[group] for group in groups)):
        yield {name: next(column) for name, column in zip(fields, columns, strict=True)}


def _values_or_damage(
    table: ParquetTable, field: FieldPath, most_mib: int, groups: Sequence[int] | None
) -> Iterator[Any]:
    try:
        for batch in batches(table, field, groups):
            yield from values(batch, most_mib=most_mib)
        yield from repeat(TruncatedFile(f"{table.path}: column {'.'.join(field)!r} ends before its last row"))
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
    if found is not None and schema.names.count(found[0]) > 1:
        message = f"{path}: column {found[0]!r} is there {schema.names.count(found[0])} times; rename all but one"
        raise ValueError(message)
    if found is None:
        names = [".".join(field) for field in there]
        folded = {other.lower(): other for other in names}
        near = [folded[match] for match in difflib.get_close_matches(name.lower(), folded)]
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        message = f"{path}: no column {name!r}; {hint}its columns are {', '.join(names[:_SHOWN])}"
        raise ValueError(message + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""))
    return found


def column_names(schema: "pa.Schema") -> list[str]:
    """Every column, and every field of every struct by its dotted name."""
    return [".".join(field) for field in _field_paths(schema)]


def field_type(schema: "pa.Schema", field: FieldPath) -> "pa.DataType":
    """The type of a field, that of its values where it is dictionary-encoded."""
    import pyarrow as pa

    kind = schema.field(field[0]).type
    for name in field[1:]:
        kind = kind.field(name).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def check_key_type(schema: "pa.Schema", field: FieldPath, *, path: str) -> None:
    """Check that a column can hold keys, before any row is read.

    Raises:
        ValueError: it holds what no key can be made of, such as lists; names the file, the column and the remedy.
    """
    import pyarrow as pa

    kind = field_type(schema, field)
    stored = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    exact = pa.types.is_integer(stored) or pa.types.is_decimal(stored) or pa.types.is_floating(stored)
    named = _has_bytes(stored) or pa.types.is_string_view(stored) or pa.types.is_binary_view(stored)
    if not (exact or named or pa.types.is_fixed_size_binary(stored) or pa.types.is_null(stored)):
        message = (
            f"{path}: column {'.'.join(field)!r} holds {kind}, of which no key can be made; set `key` to a column of "
            "strings, whole numbers, UUIDs or bytes"
        )
        raise ValueError(message)


def values(array: "pa.Array", *, most_mib: int) -> list[Any]:
    """The values of a column as Python's own.

    Dates, times and durations are integers, in the column's own unit. Strings that are not UTF-8 are `NotUtf8`; what is
    larger than allowed, or has no Python value, is an `InvalidValue` with the reason.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if _has_bytes(kind) and (pc.max(pc.binary_length(array)).as_py() or 0) > most_mib << 20:
        return [_value(scalar, most_mib) for scalar in array]
    if pa.types.is_date32(kind) or pa.types.is_time32(kind):
        array = array.view(pa.int32())
    elif pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        array = array.view(pa.int64())
    try:
        return list(array.to_pylist())
    except ValueError:  # of a single value, such as a string that is not UTF-8
        return [_value(scalar, most_mib) for scalar in array]


def _has_bytes(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    of_kind = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(check(kind) for check in of_kind)


def _value(scalar: Any, most_mib: int) -> Any:
    try:
        if _has_bytes(scalar.type) and scalar.is_valid:
            check_item_size(scalar.as_buffer().size, most_mib=most_mib)
        return scalar.as_py()
    except InvalidValue as error:
        return error
    except UnicodeDecodeError as error:
        return NotUtf8(scalar.as_buffer().to_pybytes()) if _has_bytes(scalar.type) else InvalidValue(str(error))
    except ValueError as error:
        return InvalidValue(str(error))


def batch_values(batch: "pa.RecordBatch", fields: Mapping[str, FieldPath], *, most_mib: int) -> list[dict[str, Any]]:
    """The rows of a batch, as `table_rows` gives those of a file."""
    columns = [values(batch_column(batch, field), most_mib=most_mib) for field in fields.values()]
    return [dict(zip(fields, row, strict=True)) for row in zip(*columns, strict=True)]


def batch_column(batch: "pa.RecordBatch", field: FieldPath) -> "pa.Array":
    """A column, or a field of a struct, of a batch; its values where it is dictionary-encoded."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = batch.column(field[0])
    for name in field[1:]:
        array = pc.struct_field(array, name)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def with_values(array: "pa.Array", path: Sequence[str], values: Sequence[Any]) -> "pa.Array":
    """An array, or a field of its structs, with some of its values replaced.

    Args:
        array: of n values.
        path: of the field in a struct; empty: the array itself.
        values: n; None: what is there stays.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not path:
        pairs = zip(array.to_pylist(), values, strict=True)
        return pa.array([old if new is None else new for old, new in pairs], array.type)
    children = [pc.struct_field(array, [index]) for index in range(array.type.num_fields)]
    index = array.type.get_field_index(path[0])
    children[index] = with_values(children[index], path[1:], values)
    return pa.StructArray.from_arrays(children, fields=list(array.type), mask=array.is_null())


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
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowCapacityError, OSError) as error:
        # Arrow reports damaged data as an OSError without a number; one with a number comes from the store.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        message = f"{path}: cut off or damaged at {location}: {error}"
        raise TruncatedFile(message) from error
