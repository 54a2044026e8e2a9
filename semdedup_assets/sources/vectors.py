from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice, repeat
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from semdedup_assets.records import ColumnType, Content, Invalid, Item, VectorBatch
from semdedup_assets.sources.columns import Columns, ItemFields
from semdedup_assets.sources.parquet import PARQUET
from semdedup_assets.sources.reading import TruncatedFile, file_name, opened, path_problem, source_files, source_listing
from semdedup_assets.sources.tables import batches, field_path, field_paths, field_type, parquet_file, table_rows
from semdedup_assets.storage.files import FileStat, Listing

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_ROWS = 8192

_Rows = Iterator[dict[str, Any]]
"""Fields by name, row by row."""


class Vectors(BaseModel, frozen=True, extra="forbid"):
    """Ready embeddings: Parquet tables, or `.npy` arrays with tables beside them as clip-retrieval writes them."""

    kind: Literal["vectors"] = "vectors"
    path: str = Field(
        min_length=1,
        description="A Parquet or .npy file, a folder of either (all below it are taken), a glob, or an fsspec URL "
        "of any of these.",
    )
    vector: str = Field(
        "embedding",
        min_length=1,
        description="Column of embeddings in the Parquet files: lists of floats, all of one length.",
    )
    key: str | None = Field(
        None,
        min_length=1,
        description="Column of the items' keys, strings or whole numbers; empty: file name and row, counted from 0.",
    )
    metadata: str | None = Field(
        None,
        min_length=1,
        description="Parquet files with keys and columns for .npy files (path, folder or glob), as many as those, "
        "paired with them in the order of their paths and row by row; clip-retrieval's `metadata/`.",
    )
    columns: Columns = {}

    @property
    def content(self) -> Content:
        """The payload of a record."""
        return "vector"

    @property
    def column_types(self) -> dict[str, ColumnType]:
        """Every carried column by name and type."""
        return self._item_fields.column_types

    def payload_settings(self) -> dict[str, Any]:
        """The settings that can change which vectors are read."""
        return self.model_dump(include={"kind", "vector"})

    def item_settings(self) -> dict[str, Any]:
        """The settings that can change keys and columns."""
        return self.model_dump(include={"kind", "key", "metadata", "columns"})

    def problems(self) -> list[str]:
        """What is wrong with the paths as settings; each begins with the setting's name."""
        paths = {"path": self.path} | ({"metadata": self.metadata} if self.metadata else {})
        return [f"{name}: {problem}" for name, path in paths.items() if (problem := path_problem(path))]

    def files(self) -> list[FileStat]:
        """Every file of embeddings, sorted by path; its stamp covers the metadata paired with it.

        Raises:
            FileNotFoundError: there is none; names the path and the remedy.
            ValueError: there are not as many metadata files; names both paths and counts.
        """
        if self.metadata is None:
            return source_files(self.path, (*PARQUET, ".npy"))
        return [
            replace(array, stamp=f"{array.stamp} metadata:{table.size}:{table.stamp}") for array, table in self._pairs()
        ]

    def listing(self) -> Listing:
        """The files, and what was passed over; raises as `files` does."""
        return replace(source_listing(self.path, (*PARQUET, ".npy")), files=self.files())

    def read(self, path: str) -> Iterator[VectorBatch | Invalid]:
        """Every row of a file, in its order, at most 8192 a batch; one `Invalid` where its head or footer is damaged.

        Raises:
            ValueError: the file does not hold what the settings say; before any row.
            OSError: a file cannot be opened; names it.
        """
        try:
            yield from self._read_npy(path) if _is_npy(path) else self._read_parquet(path)
        except TruncatedFile as cut:
            yield Invalid(file_name(path), str(cut))

    def read_items(self, path: str) -> Iterator[Item]:
        """Key and columns of every row of a file; reads no vector.

        Raises:
            ValueError: a column is missing, or the metadata have another number of rows; before any row.
            OSError: a file cannot be opened; names it.
        """
        fields = self._item_fields
        try:
            with ExitStack() as stack:
                names = [*([self.key] if self.key else []), *self.columns]
                for row, found in enumerate(self._rows(stack, names, path=path)):
                    yield fields.item(found, fallback=f"{file_name(path)}:{row}")
        except TruncatedFile as cut:
            yield fields.without_values(Invalid(file_name(path), str(cut)))

    def _read_parquet(self, path: str) -> Iterator[VectorBatch | Invalid]:
        with parquet_file(path) as table:
            field = field_path(table.schema_arrow, self.vector, path=path)
            _check_floats(field_type(table.schema_arrow, field), location=f"{path}: column {self.vector!r}")
            keys, width = self._keys(lambda names: _table_rows(table, names, path=path), path=path), 0
            try:
                for column in batches(table, field, rows=_ROWS, path=path):
                    width = width or _width(column)
                    yield from _valid_batches(list(islice(keys, len(column))), *_stacked(column, width))
            except TruncatedFile as damage:
                yield from (Invalid(key, str(damage)) for key in keys)

    def _read_npy(self, path: str) -> Iterator[VectorBatch | Invalid]:
        with ExitStack() as stack:
            stream = stack.enter_context(opened(path))
            header, done = _npy_header(stream, path), 0
            keys = self._keys(lambda names: self._metadata_rows(stack, names, count=header.rows, path=path), path=path)
            for first in range(0, header.rows, _ROWS):
                vectors = _npy_rows(stream, header, min(_ROWS, header.rows - first))
                yield from _valid_batches(list(islice(keys, len(vectors))), vectors, {})
                done += len(vectors)
                if done < min(first + _ROWS, header.rows):
                    break
            yield from (Invalid(key, f"{path}: cut off after {done} of its {header.rows} rows") for key in keys)

    @property
    def _item_fields(self) -> ItemFields:
        return ItemFields(self.key, self.columns)

    def _keys(self, rows_of: Callable[[list[str]], _Rows], *, path: str) -> Iterator[str]:
        """The key of every row of a file: its row where it has none, which only `read_items` reports."""
        fields = ItemFields(self.key, {})
        try:
            rows = rows_of([self.key] if self.key else [])
        except ValueError:
            rows = rows_of([])
        return (fields.key_of(found, fallback=f"{file_name(path)}:{row}") for row, found in enumerate(rows))

    def _rows(self, stack: ExitStack, names: list[str], *, path: str) -> _Rows:
        """The named fields of every row of a file."""
        if not _is_npy(path):
            return _table_rows(stack.enter_context(parquet_file(path)), names, path=path)
        with opened(path) as stream:
            count = _npy_header(stream, path).rows
        return self._metadata_rows(stack, names, count=count, path=path)

    def _metadata_rows(self, stack: ExitStack, names: list[str], *, count: int, path: str) -> _Rows:
        """The named fields of every row of an array, from the metadata paired with it.

        Raises:
            ValueError: there are no metadata, a field is missing, or the metadata have another number of rows.
        """
        if not names:
            return repeat({}, count)
        table_path = self._metadata_of(path)
        try:
            table = stack.enter_context(parquet_file(table_path))
        except TruncatedFile as damage:
            return repeat(dict.fromkeys(names, damage), count)
        _check_row_counts(table, table_path, rows=count, path=path)
        return _table_rows(table, names, path=table_path)

    def _metadata_of(self, path: str) -> str:
        if self.metadata is None:
            message = f"{path}: an .npy file has no column {self.key or next(iter(self.columns))!r}; set `metadata`"
            raise ValueError(message)
        tables = {array.path: table.path for array, table in self._pairs()}
        if path not in tables:
            message = f"{path}: not among the .npy files of {self.path}, so it has no metadata there"
            raise ValueError(message)
        return tables[path]

    def _pairs(self) -> list[tuple[FileStat, FileStat]]:
        arrays, tables = source_files(self.path, (".npy",)), source_files(self.metadata or "", PARQUET)
        if len(arrays) != len(tables):
            message = (
                f"{self.path} has {len(arrays)} .npy files and {self.metadata} {len(tables)} Parquet files; "
                "each array needs its own metadata file"
            )
            raise ValueError(message)
        return list(zip(arrays, tables, strict=True))


def _is_npy(path: str) -> bool:
    return path.lower().endswith(".npy")


def _table_rows(table: "pq.ParquetFile", names: list[str], *, path: str) -> _Rows:
    return table_rows(table, field_paths(table.schema_arrow, names, path=path), path=path)


def _valid_batches(keys: list[str], vectors: np.ndarray, invalid: dict[int, str]) -> Iterator[VectorBatch | Invalid]:
    """Batches of consecutive valid rows, and the invalid rows between them.

    Args:
        keys: n names.
        vectors: (n, d) floats.
        invalid: by row why it cannot be used.
    """
    start = 0
    for row in [*sorted(invalid), len(vectors)]:
        if start < row:
            yield VectorBatch(keys[start:row], vectors[start:row])
        if row in invalid:
            yield Invalid(keys[row], invalid[row])
        start = row + 1


def _lists(column: "pa.Array") -> "pa.Array":
    import pyarrow as pa

    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _width(column: "pa.Array") -> int:
    """Length of the first list that has any numbers, 0 where none has."""
    import pyarrow.compute as pc

    lengths = pc.fill_null(pc.list_value_length(_lists(column)), 0).to_numpy(zero_copy_only=False)
    return int(lengths[np.argmax(lengths > 0)]) if len(lengths) else 0


def _stacked(column: "pa.Array", width: int) -> tuple[np.ndarray, dict[int, str]]:
    """A column of lists as an array.

    Args:
        column: n lists of floats.
        width: numbers that each must have.

    Returns:
        (n, width) floats as they were stored, zeros where the list is not whole;
        by row why it is not.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = _lists(column)
    lengths = pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False)
    fits = (lengths == width) & (lengths > 0)
    numbers = (lists if fits.all() else lists.filter(pa.array(fits))).flatten()
    whole = numbers.to_numpy(zero_copy_only=False).reshape(-1, width) if width else np.zeros((0, 0), np.float32)
    invalid = {int(row): _wrong_length(int(lengths[row]), width) for row in np.flatnonzero(~fits)}
    if numbers.null_count:
        gaps = numbers.is_null().to_numpy(zero_copy_only=False).reshape(-1, width).any(axis=1)
        invalid |= {int(row): "a null among the vector's numbers" for row in np.flatnonzero(fits)[gaps]}
    if fits.all():
        return whole, invalid
    vectors = np.zeros((len(lists), width), whole.dtype)
    vectors[fits] = whole
    return vectors, invalid


def _wrong_length(length: int, width: int) -> str:
    if length < 0:
        return "null vector"
    return f"{length} numbers where the first row has {width}" if width else "empty vector: 0 numbers"


def _check_floats(kind: "pa.DataType", *, location: str) -> None:
    """Raise unless a type is a list of floats."""
    import pyarrow as pa

    stored = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    is_list = pa.types.is_list(stored) or pa.types.is_large_list(stored) or pa.types.is_fixed_size_list(stored)
    if not is_list or not pa.types.is_floating(stored.value_type):
        message = f"{location} holds {kind}, not lists of float16, float32 or float64"
        raise ValueError(message)


def _check_row_counts(table: "pq.ParquetFile", table_path: str, *, rows: int, path: str) -> None:
    if table.metadata.num_rows != rows:
        message = f"{path} has {rows} rows but its metadata {table_path} has {table.metadata.num_rows}"
        raise ValueError(message)


@dataclass(frozen=True, slots=True)
class _Npy:
    """The header of an `.npy` file: rows × width numbers of a type."""

    rows: int
    width: int
    dtype: np.dtype[Any]


def _npy_header(stream: IO[bytes], path: str) -> _Npy:
    """Read the header of an array.

    Raises:
        TruncatedFile: there is none that can be read; names the file.
        ValueError: not a two-dimensional array of floats, row after row; names the file and what it is.
    """
    numpy_format = np.lib.format
    try:
        version = numpy_format.read_magic(stream)
        read = numpy_format.read_array_header_1_0 if version == (1, 0) else numpy_format.read_array_header_2_0
        shape, by_column, dtype = read(stream)
    except (ValueError, EOFError) as error:
        message = f"{path}: cut off or damaged at its header: {error}"
        raise TruncatedFile(message) from error
    if len(shape) != 2 or dtype.kind != "f" or dtype.itemsize > 8 or by_column:
        message = (
            f"{path}: holds {dtype} of shape {shape}{' column by column' if by_column else ''}, not two dimensions "
            "of float16, float32 or float64 row by row; save `np.ascontiguousarray(vectors, np.float32)`"
        )
        raise ValueError(message)
    return _Npy(*shape, dtype)


def _npy_rows(stream: IO[bytes], header: _Npy, rows: int) -> np.ndarray:
    """The next rows of an array, fewer where the file ends: (m, width), in the machine's byte order."""
    row_bytes = header.width * header.dtype.itemsize
    content = stream.read(rows * row_bytes)
    whole = len(content) // row_bytes if row_bytes else rows
    vectors = np.frombuffer(content[: whole * row_bytes], header.dtype).reshape(whole, header.width)
    return vectors.astype(header.dtype.newbyteorder("="), copy=False)
