"""Tables in Parquet, for anybody's tools."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.records import ColumnType
from semdedup_assets.storage.files import filesystem, is_local
from semdedup_assets.storage.overlap import ahead
from semdedup_assets.storage.remote_parts import WINDOW, RemoteFile, windows
from semdedup_assets.storage.results import MissingResultError, StoredFile, damaged_file

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

_ROW_GROUP = 1 << 18
# A remote file up to this size is read whole: that takes less time than a second request.
_SMALL_BYTES = 256 << 10
# What Arrow reads of the end of a larger one, whose index is there.
_TAIL_BYTES = 64 << 10

# Files whose content this process has held against their records: their names are never used again.
_verified: set[str] = set()


class TableWriter:
    """Writes a Parquet file, one row group a call; masked arrays give nulls."""

    def __init__(self, stream: io.RawIOBase) -> None:
        self._stream = stream
        self._writer: Any = None

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, columns: Mapping[str, np.ndarray]) -> None:
        """Append rows as one row group."""
        import pyarrow as pa

        self.write_arrow(pa.table({name: _arrow(values) for name, values in columns.items()}))

    def write_arrow(self, rows: "pa.Table | pa.RecordBatch") -> None:
        """Append rows as one row group."""
        import pyarrow.parquet as pq

        if self._writer is None:
            self._writer = pq.ParquetWriter(self._stream, rows.schema, compression="zstd", write_page_checksum=True)
        self._writer.write(rows)

    def write_frame(self, frame: "pl.DataFrame") -> None:
        """Append rows in row groups that are small enough to be held a few times over."""
        # An empty table has no slice, but a schema.
        for part in list(frame.iter_slices(_ROW_GROUP)) or [frame]:
            self.write_arrow(part.to_arrow())


def write_table(stream: io.RawIOBase, columns: Mapping[str, np.ndarray]) -> None:
    """Write columns of equal length as one Parquet file."""
    with TableWriter(stream) as writer:
        writer.write(columns)


def _arrow(values: np.ndarray) -> object:
    import pyarrow as pa

    if isinstance(values, np.ma.MaskedArray):
        return pa.array(values.data, mask=np.ma.getmaskarray(values))
    return pa.array(values)


def arrow_type(kind: ColumnType) -> "pa.DataType":
    """How a carried column is stored."""
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "int": pa.int64(),
        "uint": pa.uint64(),
        "float": pa.float64(),
        "bool": pa.bool_(),
    }
    return types[kind]


class _Table:
    """A Parquet file that is open, and where its bytes are fetched from if it is remote."""

    def __init__(self, parquet: "pq.ParquetFile", source: RemoteFile | None = None) -> None:
        self.parquet = parquet
        self._source = source
        groups = range(parquet.metadata.num_row_groups)
        self.sizes = [parquet.metadata.row_group(group).num_rows for group in groups]

    def groups(self, groups: Sequence[int], columns: Sequence[str] | None) -> "Iterator[pa.Table]":
        """Some row groups, in their order; of a remote file up to 64 MiB are fetched while those before are used."""
        wanted = None if columns is None else list(columns)
        if self._source is None:
            yield from (self.parquet.read_row_group(group, columns=wanted) for group in groups)
            return
        chunks = [self._chunks(group, wanted) for group in groups]
        together = list(windows([(part[0][0], part[-1][1]) for part in chunks]))
        needed = [[chunk for index in window for chunk in chunks[index]] for window in together]
        for window, blocks in zip(together, ahead(self._source.load, needed), strict=True):
            self._source.hold(blocks)
            for index in window:
                yield self.parquet.read_row_group(groups[index], columns=wanted)

    def _chunks(self, group: int, columns: Sequence[str] | None) -> list[tuple[int, int]]:
        """First byte of each column of a row group, and the one after its last, ascending."""
        metadata, chunks = self.parquet.metadata.row_group(group), list[tuple[int, int]]()
        for index in range(metadata.num_columns):
            column = metadata.column(index)
            if columns is None or column.path_in_schema.partition(".")[0] in columns:
                start = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
                chunks.append((start, start + column.total_compressed_size))
        return sorted(chunks) or [(0, 0)]


@contextmanager
def _opened(file: StoredFile, *, whole: bool = False) -> Iterator[_Table]:
    """A Parquet file whose content is checked: as a whole where all of it is there, else each page that is read.

    Args:
        file: of a result.
        whole: whether all columns are wanted: then a remote file that fits into memory is one read.

    Raises:
        DamagedResultError: it is missing, or holds other bytes than were written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if not is_local(file.path):
            yield _remote(file, whole=whole)
            return
        _, name = filesystem(file.path)
        if file.path not in _verified:
            file.verify(np.memmap(name, np.uint8, "r") if Path(name).stat().st_size else b"")
            _verified.add(file.path)
        with pa.memory_map(name) as source:
            yield _Table(pq.ParquetFile(source))
    except MissingResultError:
        raise
    except FileNotFoundError:
        raise damaged_file(file, "is missing") from None
    except (pa.ArrowInvalid, pa.ArrowException) as error:
        raise damaged_file(file, f"cannot be read ({error})") from error
    except OSError as error:
        # Arrow reports a page whose checksum does not fit as an OSError without a number.
        if error.errno is not None:
            raise
        raise damaged_file(file, f"cannot be read ({error})") from error


def _remote(file: StoredFile, *, whole: bool) -> _Table:
    """A Parquet file on an object store: all of it where little else would be left out, else the index at its end."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = file.entry.size
    if size <= _SMALL_BYTES or (whole and size <= WINDOW):
        return _Table(pq.ParquetFile(pa.BufferReader(file.content())))
    source = RemoteFile(file)
    source.hold(source.load([(size - _TAIL_BYTES, size)]))
    return _Table(pq.ParquetFile(source, page_checksum_verification=True), source)


def read_table(file: StoredFile, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of a Parquet file as NumPy arrays; null integers read as 0."""
    parts = list(read_tables(file, columns))
    return {name: np.concatenate([part[name] for part in parts]) for name in columns}


def read_tables(file: StoredFile, columns: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """Columns of a Parquet file, row group by row group; null integers read as 0."""
    import pyarrow as pa

    for table in read_arrow(file, columns):
        # A 64-bit id must not pass through float64, which is what NumPy would be given for nulls.
        yield {
            name: (column.fill_null(0) if pa.types.is_integer(column.type) else column).to_numpy()
            for name, column in zip(table.column_names, table.columns, strict=True)
        }


def read_arrow(file: StoredFile, columns: Iterable[str] | None = None) -> "Iterator[pa.Table]":
    """Columns of a Parquet file as Arrow tables, row group by row group.

    Args:
        file: of a result.
        columns: names; None: all.

    Raises:
        DamagedResultError: the file is missing, or holds other bytes than were written.
    """
    wanted = None if columns is None else list(columns)
    with _opened(file, whole=wanted is None) as table:
        for rows in table.groups(range(len(table.sizes)), wanted):
            yield rows if wanted is None else rows.select(wanted)


def read_rows(file: StoredFile, rows: np.ndarray, columns: Sequence[str]) -> "Iterator[pa.Table]":
    """Some rows of a Parquet file, row group by row group; groups without any are not read.

    Args:
        file: of a result.
        rows: (n,) integers, ascending, which rows are wanted; those beyond the last are passed over.
        columns: names.

    Raises:
        DamagedResultError: the file is missing, or holds other bytes than were written.
    """
    with _opened(file) as table:
        starts = np.concatenate([[0], np.cumsum(table.sizes)]).astype(np.int64)
        bounds = np.searchsorted(rows, starts)
        groups = np.flatnonzero(np.diff(bounds)).tolist()
        for group, found in zip(groups, table.groups(groups, columns), strict=True):
            here = rows[bounds[group] : bounds[group + 1]] - starts[group]
            yield found.select(list(columns)).take(here)
