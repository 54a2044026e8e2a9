import errno
import lzma
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice, repeat
from tokenize import TokenError
from typing import IO, TYPE_CHECKING, Any, Literal
from zipfile import BadZipFile, ZipFile

import numpy as np
from pydantic import BaseModel, Field

from semdedup_assets.records import ColumnType, Content, Invalid, Item, VectorBatch
from semdedup_assets.sources.columns import Columns, ItemFields, check_item_size
from semdedup_assets.sources.foreign import HEAD, foreign
from semdedup_assets.sources.pairing import paired
from semdedup_assets.sources.parquet import PARQUET
from semdedup_assets.sources.reading import (
    MAX_ITEM_MIB,
    InvalidValue,
    ItemMib,
    TruncatedFile,
    file_name,
    opened,
    path_problem,
    source_files,
    source_listing,
)
from semdedup_assets.sources.tables import (
    ParquetTable,
    batch_column,
    batches,
    check_key_type,
    column_names,
    field_path,
    field_paths,
    field_type,
    parquet_table,
    table_rows,
)
from semdedup_assets.storage.files import FileStat, Listing

if TYPE_CHECKING:
    import pyarrow as pa

ARRAYS = (".npy", ".npz")
"""Suffixes of files that hold one array of vectors, without names."""

# NumPy itself reads 10 kB of an unknown file, which some hundred fields fill.
_HEADER_BYTES = 1 << 20
_RAW = (".memmap", ".mmap", ".dat", ".bin", ".raw", ".f16", ".f32", ".fvecs")
_CLIP_RETRIEVAL, _CLIP_METADATA = ("img_emb", "text_emb"), "metadata"
_ROWS, _BATCH_BYTES, _CHUNK = 8192, 64 << 20, 1 << 16
# What Python's zipfile raises on bytes that contradict each other, and on what it cannot unpack.
_UNZIPPING = (
    BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, struct.error, OverflowError, UnicodeDecodeError,
)  # fmt: skip

_Rows = Iterator[dict[str, Any]]
"""Fields by name, row by row."""


class Vectors(BaseModel, frozen=True, extra="forbid"):
    """Ready embeddings: Parquet tables, or `.npy` arrays with tables beside them as clip-retrieval writes them."""

    kind: Literal["vectors"] = "vectors"
    path: str = Field(
        min_length=1,
        description="A Parquet or .npy file, or an .npz file with one array in it; a folder of these (all below it are "
        "taken), a glob, or an fsspec URL of any of these.",
    )
    vector: str = Field(
        "embedding",
        min_length=1,
        description="Column of embeddings in the Parquet files: lists of floats, all of one length.",
    )
    key: str | None = Field(
        None,
        min_length=1,
        description="Column of the items' keys: strings, whole or decimal numbers, UUIDs or bytes; empty: file name and "
        "row, counted from 0.",
    )
    metadata: str | None = Field(
        None,
        min_length=1,
        description="Parquet files with keys and columns for .npy files (path, folder or glob), one for each, paired "
        "with them by the last number in their names and row by row; clip-retrieval's `metadata/`.",
    )
    columns: Columns = {}
    max_item_mib: ItemMib = MAX_ITEM_MIB

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
        return self.model_dump(include={"kind", "vector", "max_item_mib"})

    def item_settings(self) -> dict[str, Any]:
        """The settings that can change keys and columns."""
        return self.model_dump(include={"kind", "key", "metadata", "columns", "max_item_mib"})

    def problems(self) -> list[str]:
        """What is wrong with the paths as settings; each begins with the setting's name."""
        paths = {"path": self.path} | ({"metadata": self.metadata} if self.metadata else {})
        return [f"{name}: {problem}" for name, path in paths.items() if (problem := path_problem(path))]

    def files(self) -> list[FileStat]:
        """Every file of embeddings, sorted by path; its stamp covers the metadata paired with it.

        Raises:
            FileNotFoundError: there is none; names the path and the remedy.
            ValueError: an array or its metadata have no partner, or only raw numbers are there; names them.
        """
        if self.metadata is None:
            return self._listed((*PARQUET, *ARRAYS))
        return [
            replace(array, stamp=f"{array.stamp} metadata:{table.size}:{table.stamp}") for array, table in self._pairs()
        ]

    def listing(self) -> Listing:
        """The files, and what was passed over; raises as `files` does."""
        return replace(source_listing(self.path, (*PARQUET, *ARRAYS)), files=self.files())

    def field_names(self, path: str, limit: int = 1000) -> list[str]:
        """Columns of a file, or of the metadata paired with it, and fields of their structs by dotted names.

        Args:
            path: a file of embeddings.
            limit: not used here, for a table lists its columns without its rows.

        Raises:
            TruncatedFile: the table's footer cannot be read; names it.
            OSError: the file cannot be opened; names it.
        """
        del limit
        if is_array(path) and self.metadata is None:
            return []
        with parquet_table(self._metadata_of(path) if is_array(path) else path) as table:
            return column_names(table.schema)

    def read(self, path: str) -> Iterator[VectorBatch | Invalid]:
        """Every row of a file, in its order, at most 8192 a batch; those of a batch have as many numbers each.

        Raises:
            ValueError: the file does not hold what the settings say; before any row.
            TruncatedFile: its head or footer is damaged, or it ends before its last row: after the rows that it has;
                names it, and how many are missing where that is known.
            OSError: a file cannot be opened; names it.
        """
        yield from self._read_array(path) if is_array(path) else self._read_parquet(path)

    def vectors_in(self, batch: "pa.RecordBatch", path: str) -> np.ndarray:
        """(n, d) the vectors of some rows of a Parquet file, which were read with all their columns.

        Args:
            batch: rows that `read` gives vectors of one length of.
            path: of the file.
        """
        column = batch_column(batch, field_path(batch.schema, self.vector, path=path))
        found = _vectors(column, [""] * len(column), self.max_item_mib << 20)
        parts = [each.vectors for each in found if isinstance(each, VectorBatch)]
        return parts[0] if len(parts) == 1 else np.empty((0, 0), np.float32)

    def metadata_of(self, paths: Iterable[str]) -> dict[str, FileStat]:
        """The table that is paired with each of some arrays; nothing where the settings name no metadata."""
        wanted = set(paths)
        return {} if self.metadata is None else {a.path: table for a, table in self._pairs() if a.path in wanted}

    def read_items(self, path: str) -> Iterator[Item]:
        """Key and columns of every row of a file; reads no vector.

        Raises:
            ValueError: a column is missing, the metadata have another number of rows, or no key can be made of the
                key's column; before any row.
            TruncatedFile: as from `read`, after as many rows.
            OSError: a file cannot be opened; names it.
        """
        fields = self._item_fields
        with ExitStack() as stack:
            for row, found in enumerate(self._rows(stack, path)):
                yield fields.item(found, fallback=f"{file_name(path)}:{row}")

    def _read_parquet(self, path: str) -> Iterator[VectorBatch | Invalid]:
        with parquet_table(path) as table:
            field = field_path(table.schema, self.vector, path=path)
            _check_floats(field_type(table.schema, field), location=f"{path}: column {self.vector!r}")
            keys = self._keys(lambda names: self._table_rows(table, names), path=path)
            try:
                for column in batches(table, field):
                    yield from _vectors(column, list(islice(keys, len(column))), self.max_item_mib << 20)
            except TruncatedFile as damage:
                yield from (Invalid(key, str(damage)) for key in keys)

    def _read_array(self, path: str) -> Iterator[VectorBatch | Invalid]:
        with ExitStack() as stack:
            array = stack.enter_context(opened_array(path, self.max_item_mib))
            keys = self._keys(lambda names: self._metadata_rows(stack, names, array=array, path=path), path=path)
            left, damage = array.rows_there, None
            while left and damage is None:
                vectors, damage = array.next_rows(min(array.batch_rows, left))
                left -= len(vectors)
                if len(vectors):
                    yield VectorBatch(list(islice(keys, len(vectors))), vectors)
            # Rows of an array whose end is there are counted; those that are damaged are invalid, one by one.
            yield from (Invalid(key, f"{path}: {damage}") for key in islice(keys, left))
            array.check_whole()

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

    def _rows(self, stack: ExitStack, path: str) -> _Rows:
        """Key and columns of every row of a file; at the end of one that is cut, `TruncatedFile`."""
        names = [*([self.key] if self.key else []), *self.columns]
        if not is_array(path):
            return self._table_rows(stack.enter_context(parquet_table(path)), names)
        array = stack.enter_context(opened_array(path, self.max_item_mib))
        return _until_end(self._metadata_rows(stack, names, array=array, path=path), array)

    def _metadata_rows(self, stack: ExitStack, names: list[str], *, array: "VectorArray", path: str) -> _Rows:
        """The named fields of every row of an array, from the metadata paired with it.

        Raises:
            ValueError: there are no metadata, a field is missing, or the metadata have another number of rows.
        """
        if not names:
            return repeat({}, array.rows)
        table_path = self._metadata_of(path)
        try:
            table = stack.enter_context(parquet_table(table_path))
        except TruncatedFile as damage:
            return repeat(dict.fromkeys(names, damage), array.rows)
        if table.rows != array.rows:
            message = f"{path} has {array.rows} rows but its metadata {table_path} has {table.rows}"
            raise ValueError(message)
        return self._table_rows(table, names)

    def _table_rows(self, table: ParquetTable, names: list[str]) -> _Rows:
        fields = field_paths(table.schema, names, path=table.path)
        if self.key in names:
            check_key_type(table.schema, fields[self.key], path=table.path)
        return table_rows(table, fields, most_mib=self.max_item_mib)

    def _metadata_of(self, path: str) -> str:
        if self.metadata is None:
            message = f"{path}: an array has no column {self.key or next(iter(self.columns))!r}; set `metadata`"
            raise ValueError(message)
        tables = {array.path: table.path for array, table in self._pairs()}
        if path not in tables:
            message = f"{path}: not among the arrays of {self.path}, so it has no metadata there"
            raise ValueError(message)
        return tables[path]

    def _pairs(self) -> list[tuple[FileStat, FileStat]]:
        arrays, tables = self._listed(ARRAYS), source_files(self.metadata or "", PARQUET)
        return paired(arrays, tables, arrays_path=self.path, tables_path=self.metadata or "")

    def _listed(self, suffixes: tuple[str, ...]) -> list[FileStat]:
        """The files of some suffixes, unless raw numbers are all that there is."""
        try:
            found = source_files(self.path, suffixes)
        except FileNotFoundError:
            try:
                raw = source_files(self.path, _RAW)
            except FileNotFoundError:
                raw = []
            if not raw:
                raise
            found = raw
        if all(file.path.lower().endswith(_RAW) for file in found):
            raise ValueError(_raw_numbers(found[0].path))
        if problem := _mixed_folders(found):
            raise ValueError(problem)
        return found


def _mixed_folders(files: Sequence[FileStat]) -> str | None:
    """Why the files that clip-retrieval wrote into several folders are no one set of vectors; None where there is one."""
    folders = {parts[-2]: "/".join(parts[:-1]) for file in files if len(parts := file.path.split("/")) > 1}
    found = {name: folders[name] for name in (*_CLIP_RETRIEVAL, _CLIP_METADATA) if name in folders}
    if len(found) < 2 or not set(found) & set(_CLIP_RETRIEVAL):
        return None
    metadata = f" and `metadata: {found[_CLIP_METADATA]}`" if _CLIP_METADATA in found else ""
    choices = " or ".join(f"`path: {found[name]}`" for name in _CLIP_RETRIEVAL if name in found)
    return (
        f"path: clip-retrieval's folders {', '.join(found)} lie below it, which are not one set of vectors: vectors of "
        f"images, of texts, and tables that belong to them; set {choices}{metadata}"
    )


def _raw_numbers(path: str) -> str:
    return (
        f"{path}: raw numbers without a header, of which neither type nor length of a vector is known; save them once "
        "as .npy: `np.save('vectors.npy', np.memmap(path, np.float16, 'r').reshape(-1, dimension))`"
    )


def is_array(path: str) -> bool:
    """Whether a file holds one array of vectors, without names."""
    return path.lower().endswith(ARRAYS)


def array_rows(path: str) -> int:
    """How many vectors lie in an array's file.

    Raises:
        ValueError: it is not one two-dimensional array of floats, or its head is damaged; names the file.
    """
    with opened_array(path, MAX_ITEM_MIB) as array:
        return array.rows_there


def _until_end(rows: _Rows, array: "VectorArray") -> _Rows:
    yield from islice(rows, array.rows_there)
    array.check_whole()


def _vectors(column: "pa.Array", keys: list[str], most_bytes: int) -> Iterator[VectorBatch | Invalid]:
    """A column of lists as batches of consecutive vectors of one length, and the invalid rows between them.

    Args:
        column: n lists of floats.
        keys: n names.
        most_bytes: of a vector.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = column.storage if isinstance(column, pa.ExtensionArray) else column
    lengths = pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    numbers = lists.flatten()
    ends = np.cumsum(np.maximum(lengths, 0))
    starts = ends - np.maximum(lengths, 0)
    # What is consecutive and of one length is one batch; rows with a null are of none.
    width = lengths.copy()
    if numbers.null_count:
        nulls = np.flatnonzero(numbers.is_null().to_numpy(zero_copy_only=False))
        width[np.searchsorted(ends, nulls, side="right")] = -2
    content = numbers.to_numpy(zero_copy_only=False)
    width[width * content.itemsize > most_bytes] = -3
    edges = np.flatnonzero(np.diff(width, prepend=np.nan, append=np.nan) != 0)
    for first, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        length = int(width[first])
        if length > 0:
            rows = content[starts[first] : ends[stop - 1]].reshape(-1, length)
            yield VectorBatch(keys[first:stop], rows)
        else:
            yield from (Invalid(key, _NO_VECTOR[length]) for key in keys[first:stop])


_NO_VECTOR = {
    0: "empty vector: 0 numbers",
    -1: "null vector",
    -2: "a null among the vector's numbers",
    -3: "more numbers than `max_item_mib` allows",
}


def _check_floats(kind: "pa.DataType", *, location: str) -> None:
    """Raise unless a type is a list of floats."""
    import pyarrow as pa

    stored = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    is_list = pa.types.is_list(stored) or pa.types.is_large_list(stored) or pa.types.is_fixed_size_list(stored)
    if not is_list or not pa.types.is_floating(stored.value_type):
        message = f"{location} holds {kind}, not lists of float16, float32 or float64"
        raise ValueError(message)


@dataclass(frozen=True, slots=True)
class VectorArray:
    """An open array of vectors: rows × width numbers of a type.

    Attributes:
        path: its file.
        stream: its numbers, from the next row on.
        rows: as many as its header states.
        rows_there: as many as lie in the file.
        more_bytes: that follow the last row.
    """

    path: str
    stream: IO[bytes]
    rows: int
    rows_there: int
    more_bytes: int
    width: int
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of a vector."""
        return self.width * self.dtype.itemsize

    @property
    def batch_rows(self) -> int:
        """Rows of a batch: 64 MiB at most, but at least one."""
        return max(1, min(_ROWS, _BATCH_BYTES // self.row_bytes))

    def next_rows(self, rows: int) -> tuple[np.ndarray, str | None]:
        """The next rows, (m, width) in the machine's byte order; where they are fewer than asked for, why."""
        parts, missing, damage = list[bytes](), rows * self.row_bytes, None
        try:
            while missing and (part := self.stream.read(min(missing, _CHUNK))):
                parts.append(part)
                missing -= len(part)
        except _UNZIPPING as error:
            damage = f"cut off or damaged: {error}"
        content = b"".join(parts)
        whole = len(content) // self.row_bytes
        vectors = np.frombuffer(content[: whole * self.row_bytes], self.dtype).reshape(whole, self.width)
        reason = None if whole == rows else damage or "became shorter while it was read"
        return vectors.astype(self.dtype.newbyteorder("="), copy=False), reason

    def check_whole(self) -> None:
        """Raise where the file ends before its last row, or goes on behind it.

        Raises:
            TruncatedFile: names the file, the rows that are there and how many are missing, or the bytes behind them.
        """
        if self.more_bytes:
            message = (
                f"{self.path}: {self.more_bytes:,} bytes follow the {self.rows:,} rows that its header counts, such as a "
                "second array saved to the same file; save all rows as one array"
            )
            raise TruncatedFile(message)
        if self.rows_there < self.rows:
            message = (
                f"{self.path}: cut off after {self.rows_there:,} of its {self.rows:,} rows; "
                f"{self.rows - self.rows_there:,} are missing"
            )
            raise TruncatedFile(message)


@contextmanager
def opened_array(path: str, most_mib: int) -> Iterator[VectorArray]:
    """Open an `.npy` file, or the one array of vectors in an `.npz` file.

    Raises:
        TruncatedFile: its head, or the list of an .npz file's arrays, cannot be read; names the file.
        ValueError: not one two-dimensional array of floats, row after row; names the file and what it is.
    """
    # The list of an archive's files stands at its end.
    with opened(path, seekable=not path.lower().endswith(".npy")) as stream, ExitStack() as stack:
        if path.lower().endswith(".npy"):
            yield _array(path, stream, _size(stream, path), most_mib)
        else:
            yield _array_in_archive(path, stream, most_mib, stack)


def _array_in_archive(path: str, stream: IO[bytes], most_mib: int, stack: ExitStack) -> VectorArray:
    """The one array of vectors in an archive, which stays open as long as a stack does.

    Raises:
        TruncatedFile, ValueError: as from `opened_array`.
    """
    try:
        archive = stack.enter_context(ZipFile(stream))
        name = only_array(archive, path)
        member = stack.enter_context(archive.open(name))
        return _array(path, member, archive.getinfo(name).file_size, most_mib)
    except (*_UNZIPPING, OSError) as error:
        # A damaged list leads to before the file's start; other errors of the system are the disk's or the store's.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        what = _foreign_start(stream, own=b"PK")
        message = f"{path}: {'not an .npz archive: ' + what if what else f'cut off or damaged: {error}'}"
        raise TruncatedFile(message) from error


def _size(stream: IO[bytes], path: str) -> int:
    """Bytes of a file, whose stream is at its start before and after; of one that cannot be sought, by reading it."""
    try:
        size = stream.seek(0, 2)
        stream.seek(0)
    except (OSError, ValueError):  # such as an HTTP server's that does not state it
        with opened(path) as again:
            return sum(map(len, iter(lambda: again.read(_CHUNK), b"")))
    return size


def only_array(archive: ZipFile, path: str) -> str:
    """The name of the only array of vectors in an archive.

    Raises:
        ValueError: there is none, or there are several; names all arrays with their types and shapes.
    """
    found, vectors = [], []
    for name in archive.namelist():
        with archive.open(name) as member:
            try:
                shape, _, dtype = array_header(member)
            except ValueError:
                continue
        found.append(f"{name.removesuffix('.npy')} ({dtype}, {shape})")
        if len(shape) == 2 and dtype.kind == "f":
            vectors.append(name)
    if len(vectors) != 1:
        message = (
            f"{path}: holds {len(vectors)} two-dimensional arrays of floats where one is needed, among "
            f"{', '.join(found) or 'no arrays at all'}; save the vectors alone: `np.save('vectors.npy', vectors)`"
        )
        raise ValueError(message)
    return vectors[0]


def _foreign_start(stream: IO[bytes], *, own: bytes) -> str | None:
    try:
        stream.seek(0)
        return foreign(stream.read(HEAD), own=own)
    except (OSError, ValueError):
        return None


def array_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape of an array, whether it lies column by column, and type of its numbers.

    Raises:
        ValueError: there is no such header.
    """
    numpy_format = np.lib.format
    version = numpy_format.read_magic(stream)
    read = numpy_format.read_array_header_1_0 if version == (1, 0) else numpy_format.read_array_header_2_0
    try:
        return read(stream, max_header_size=_HEADER_BYTES)
    except (EOFError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError) as error:
        raise ValueError(str(error)) from error


def _array(path: str, stream: IO[bytes], size: int, most_mib: int) -> VectorArray:
    """The array that begins where a stream is.

    Args:
        path: of its file.
        stream: at the head of the array.
        size: bytes of the array with its header, as many as there are.
        most_mib: MiB of a vector.

    Raises:
        TruncatedFile: there is no header that can be read; names the file.
        ValueError: not a two-dimensional array of floats, row after row; names the file and what it is.
    """
    try:
        shape, by_column, dtype = array_header(stream)
    except ValueError as error:
        what = _foreign_start(stream, own=b"\x93NUMPY")
        message = f"{path}: {'not an array: ' + what if what else f'cut off or damaged at its header: {error}'}"
        raise TruncatedFile(message) from error
    if len(shape) != 2 or dtype.kind != "f" or dtype.itemsize > 8 or by_column or shape[1] < 1 or shape[0] < 0:
        message = (
            f"{path}: holds {dtype} of shape {shape}{' column by column' if by_column else ''}, not two dimensions "
            "of float16, float32 or float64 row by row; save `np.ascontiguousarray(vectors, np.float32)`"
        )
        raise ValueError(message)
    rows, width = shape
    try:
        check_item_size(width * dtype.itemsize, most_mib=most_mib)
    except InvalidValue as error:
        message = f"{path}: a vector has {error}"
        raise ValueError(message) from error
    content, row_bytes = size - stream.tell(), width * dtype.itemsize
    return VectorArray(
        path, stream, rows, min(rows, content // row_bytes), max(0, content - rows * row_bytes), width, dtype
    )
