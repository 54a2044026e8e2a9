from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from semdedup_assets.records import Broken, ColumnType, ColumnValue, Content, VectorBatch
from semdedup_assets.sources.columns import Columns, column_value, item_key
from semdedup_assets.sources.parquet import PARQUET
from semdedup_assets.sources.reading import BadItem, TruncatedFile, file_name, opened, path_problem, source_files
from semdedup_assets.sources.tables import FieldPath, batches, field_path, field_type, parquet_file, values
from semdedup_assets.storage.files import FileStat

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_ROWS = 8192
_VECTOR, _KEY = ":vector", ":key"  # beside the carried columns, whose names are free


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
        """What a record carries."""
        return "vector"

    @property
    def column_types(self) -> dict[str, ColumnType]:
        """Every carried column by name and type."""
        return dict(self.columns)

    def problems(self) -> list[str]:
        """What is wrong with the paths, seen without a listing; begins with the setting's name."""
        paths = {"path": self.path} | ({"metadata": self.metadata} if self.metadata else {})
        return [f"{name}: {problem}" for name, path in paths.items() if (problem := path_problem(path))]

    def files(self) -> list[FileStat]:
        """Every file of embeddings, sorted by path; its stamp covers the metadata paired with it.

        Raises:
            FileNotFoundError: there is none; names the path and the cure.
            ValueError: there are not as many metadata files; names both paths and counts.
        """
        if self.metadata is None:
            return source_files(self.path, (*PARQUET, ".npy"))
        return [
            replace(array, stamp=f"{array.stamp} metadata:{table.size}:{table.stamp}") for array, table in self._pairs()
        ]

    def read(self, path: str) -> Iterator[VectorBatch | Broken]:
        """Every row of a file, in its order, at most 8192 a batch; at the end one `Broken` where it is damaged.

        Raises:
            ValueError: the file does not hold what the settings say, or metadata of other length; before any row.
            OSError: a file cannot be opened; names it.
        """
        try:
            yield from self._read_npy(path) if path.lower().endswith(".npy") else self._read_parquet(path)
        except TruncatedFile as cut:
            yield Broken(file_name(path), str(cut))

    def _read_parquet(self, path: str) -> Iterator[VectorBatch | Broken]:
        with parquet_file(path) as table:
            schema = table.schema_arrow
            fields = {_VECTOR: field_path(schema, self.vector, path=path), **self._label_fields(schema, path)}
            _check_floats(field_type(schema, fields[_VECTOR]), place=f"{path}: column {self.vector!r}")
            row, width = 0, 0
            for batch in batches(table, fields, rows=_ROWS, path=path):
                column = batch.pop(_VECTOR)
                labels = self._labels(batch, first=row, count=len(column), path=path)
                width = width or _width(column)
                vectors, broken = _stacked(column, width)
                yield from _runs(labels, vectors, broken)
                row += len(column)

    def _read_npy(self, path: str) -> Iterator[VectorBatch | Broken]:
        with ExitStack() as stack:
            stream = stack.enter_context(opened(path))
            header = _npy_header(stream, path)
            row = 0
            for labels in self._npy_labels(stack, header.rows, path):
                vectors = _npy_rows(stream, header, len(labels.keys))
                whole = len(vectors)
                yield from _runs(labels.until(whole), vectors, {})
                row += whole
                if whole < len(labels.keys):
                    message = f"{path}: cut off after {row} of its {header.rows} rows"
                    raise TruncatedFile(message)

    def _npy_labels(self, stack: ExitStack, rows: int, path: str) -> Iterator["_Labels"]:
        """Keys and columns of an array's rows, from its metadata where there are."""
        table_path = self._metadata_of(path)
        if table_path is None:
            yield from self._plain_labels(rows, path)
            return
        table = stack.enter_context(parquet_file(table_path))
        _check_row_counts(table, table_path, rows=rows, path=path)
        fields = self._label_fields(table.schema_arrow, table_path)
        if not fields:
            yield from self._plain_labels(rows, path)
            return
        first = 0
        for batch in batches(table, fields, rows=_ROWS, path=table_path):
            count = len(next(iter(batch.values())))
            yield self._labels(batch, first=first, count=count, path=path)
            first += count

    def _plain_labels(self, rows: int, path: str) -> Iterator["_Labels"]:
        for first in range(0, rows, _ROWS):
            yield self._labels({}, first=first, count=min(_ROWS, rows - first), path=path)

    def _label_fields(self, schema: "pa.Schema", path: str) -> dict[str, FieldPath]:
        key = {_KEY: field_path(schema, self.key, path=path)} if self.key else {}
        return key | {name: field_path(schema, name, path=path) for name in self.columns}

    def _labels(self, batch: dict[str, "pa.Array"], *, first: int, count: int, path: str) -> "_Labels":
        keys = [f"{file_name(path)}:{row}" for row in range(first, first + count)]
        labels = _Labels(keys, {name: [None] * count for name in self.columns}, {})
        if _KEY in batch and self.key:
            for row, value in enumerate(values(batch[_KEY])):
                try:
                    keys[row] = item_key(value, name=self.key)
                except BadItem as bad:
                    labels.broken[row] = str(bad)
        for name, kind in self.columns.items():
            for row, value in enumerate(values(batch[name])):
                try:
                    labels.columns[name][row] = column_value(value, name=name, kind=kind)
                except BadItem as bad:
                    labels.broken.setdefault(row, str(bad))
        return labels

    def _metadata_of(self, path: str) -> str | None:
        if self.metadata is not None:
            tables = {array.path: table.path for array, table in self._pairs()}
            if path not in tables:
                message = f"{path}: not among the .npy files of {self.path}, so it has no metadata there"
                raise ValueError(message)
            return tables[path]
        if self.key or self.columns:
            message = f"{path}: an .npy file has no column {self.key or next(iter(self.columns))!r}; set `metadata`"
            raise ValueError(message)
        return None

    def _pairs(self) -> list[tuple[FileStat, FileStat]]:
        arrays, tables = source_files(self.path, (".npy",)), source_files(self.metadata or "", PARQUET)
        if len(arrays) != len(tables):
            message = (
                f"{self.path} has {len(arrays)} .npy files and {self.metadata} {len(tables)} Parquet files; "
                "each array needs its own metadata file"
            )
            raise ValueError(message)
        return list(zip(arrays, tables, strict=True))


@dataclass(frozen=True, slots=True)
class _Labels:
    """Keys and columns of consecutive rows, and by row why some of them are broken."""

    keys: list[str]
    columns: dict[str, list[ColumnValue]]
    broken: dict[int, str]

    def until(self, row: int) -> "_Labels":
        columns = {name: found[:row] for name, found in self.columns.items()}
        return _Labels(self.keys[:row], columns, {at: why for at, why in self.broken.items() if at < row})


def _runs(labels: _Labels, vectors: np.ndarray, broken: dict[int, str]) -> Iterator[VectorBatch | Broken]:
    """Unbroken runs of rows, and the broken rows between them."""
    reasons = broken | labels.broken
    begin = 0
    for row in [*sorted(reasons), len(vectors)]:
        if begin < row:
            columns = {name: found[begin:row] for name, found in labels.columns.items()}
            yield VectorBatch(labels.keys[begin:row], vectors[begin:row], columns)
        if row in reasons:
            yield Broken(labels.keys[row], reasons[row])
        begin = row + 1


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
    broken = {int(row): _wrong_length(int(lengths[row]), width) for row in np.flatnonzero(~fits)}
    if numbers.null_count:
        gaps = numbers.is_null().to_numpy(zero_copy_only=False).reshape(-1, width).any(axis=1)
        broken |= {int(row): "a null among the vector's numbers" for row in np.flatnonzero(fits)[gaps]}
    if fits.all():
        return whole, broken
    vectors = np.zeros((len(lists), width), whole.dtype)
    vectors[fits] = whole
    return vectors, broken


def _wrong_length(length: int, width: int) -> str:
    if length < 0:
        return "null vector"
    return f"{length} numbers where the first row has {width}" if width else "empty vector: 0 numbers"


def _check_floats(kind: "pa.DataType", *, place: str) -> None:
    """Raise unless a type is a list of floats."""
    import pyarrow as pa

    stored = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    is_list = pa.types.is_list(stored) or pa.types.is_large_list(stored) or pa.types.is_fixed_size_list(stored)
    if not is_list or not pa.types.is_floating(stored.value_type):
        message = f"{place} holds {kind}, not lists of float16, float32 or float64"
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
