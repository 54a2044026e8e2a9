"""Some rows of a source's own tables and arrays, as files of the same form: every column, type and piece of metadata."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from os.path import commonpath
from typing import IO, TYPE_CHECKING, Any
from zipfile import ZipFile, ZipInfo

import numpy as np

from semdedup_assets.sources.paths import is_http, unquoted
from semdedup_assets.sources.reading import fixed_roots, opened, printable
from semdedup_assets.sources.tables import ParquetTable, leaf_paths, parquet_table, row_batches
from semdedup_assets.sources.vectors import VectorArray, array_header, only_array, opened_array
from semdedup_assets.storage.files import filesystem

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_GROUP_BYTES = 64 << 20
_CHUNK_BYTES = 16 << 20

SeenRows = Callable[["pa.RecordBatch"], None]
"""Looks at the chosen rows of a table, batch by batch, before they are written; raises where they are not as expected."""

SeenVectors = Callable[[np.ndarray], None]
"""Looks at the chosen rows of an array, (m, d), before they are written; raises where they are not as expected."""


class OtherRowsError(ValueError):
    """A file has fewer rows than are expected."""


def relative_name(path: str, setting: str, beside: tuple[str, str] | None = None) -> str:
    """The name of a source's file below the folder that its setting names, with the folders between.

    Args:
        path: of the file.
        setting: the path, folder or glob in the settings that it was found by.
        beside: path and setting of a file of another folder that belongs to it: then both names begin in the folder that
            holds both folders, as in `img_emb/0.npy` and `metadata/0.parquet`.
    """
    name, root = _name(path), _root(path, setting)
    if beside is not None:
        other = _root(*beside)
        root = commonpath([root, other]) if root.startswith("/") == other.startswith("/") else ""
    below = name[len(root) :] if not root or name.startswith(f"{root.rstrip('/')}/") else name
    return printable("/".join(part for part in below.split("/") if part))


def _name(path: str) -> str:
    """A path as its file system writes it, and as a local copy of it is called."""
    name = filesystem(path)[1]
    return unquoted(name).partition("?")[0] if is_http(path) else name


def _root(path: str, setting: str) -> str:
    name = _name(path)
    roots = (unquoted(root) if is_http(path) else root for root in fixed_roots(setting))
    return next((root for root in roots if name.startswith(f"{root.rstrip('/')}/")), name.rpartition("/")[0])


def write_table_rows(path: str, keep: np.ndarray, to: Any, *, seen: SeenRows | None = None) -> None:
    """Write some rows of a Parquet file, with all columns, as a Parquet file of the same schema and compression.

    Rows are held a batch at a time, and those of a row group that is written: at most about 64 MiB of them.

    Args:
        path: of the file.
        keep: (rows,) bool, which of the first rows.
        to: binary stream that takes the file.
        seen: looks at them.

    Raises:
        OtherRowsError: the file has fewer rows.
        TruncatedFile: a column is damaged at or before the last of these rows; names file and row.
        OSError: it cannot be opened; names it.
    """
    import pyarrow as pa

    with ExitStack() as stack:
        opened_table = stack.enter_context(parquet_table(path))
        table = replace(opened_table, file=opened_table.reopened(old_times="us"))
        writer = stack.enter_context(_table_writer(table, to))
        if table.rows < len(keep):
            message = f"it has {table.rows:,} rows, and {len(keep):,} were read before"
            raise OtherRowsError(message)
        most_rows, waiting = _group_rows(table), list[pa.RecordBatch]()
        for chosen in _chosen_rows(table, keep):
            if seen is not None:
                seen(chosen)
            waiting.append(chosen)
            if sum(map(len, waiting)) >= most_rows or sum(part.nbytes for part in waiting) >= _GROUP_BYTES:
                _write_group(writer, waiting)
        _write_group(writer, waiting)


def _chosen_rows(table: ParquetTable, keep: np.ndarray) -> "Iterator[pa.RecordBatch]":
    """The chosen rows, batch by batch; nothing is read behind the last of them."""
    import pyarrow as pa

    last, first = int(np.flatnonzero(keep)[-1]) if keep.any() else -1, 0
    batches = row_batches(table)
    while first <= last:
        batch = next(batches)
        part = keep[first : first + len(batch)]
        batch, first = batch.slice(0, len(part)), first + len(batch)
        if part.any():
            yield batch if part.all() else batch.filter(pa.array(part))


def _write_group(writer: "pq.ParquetWriter", waiting: "list[pa.RecordBatch]") -> None:
    import pyarrow as pa

    if waiting:
        rows = pa.Table.from_batches(waiting)
        writer.write_table(rows, row_group_size=len(rows))
        waiting.clear()


def _group_rows(table: ParquetTable) -> int:
    """Rows of the largest row group: those that are written have no more."""
    metadata = table.file.metadata
    return max((metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)), default=1)


def _table_writer(table: ParquetTable, to: Any) -> "pq.ParquetWriter":
    """A writer whose files are read as this one is: Arrow's types only where it stores them, times as they lie there."""
    import pyarrow.parquet as pq

    metadata, paths = table.file.metadata, leaf_paths(table.file)
    stores_schema = b"ARROW:schema" in (metadata.metadata or {})
    columns = [] if metadata.num_row_groups == 0 else [metadata.row_group(0).column(at) for at in range(len(paths))]
    codecs = {column.path_in_schema: _CODECS.get(column.compression, column.compression) for column in columns}
    writer = pq.ParquetWriter(
        to,
        table.schema,
        compression=codecs or "snappy",
        use_deprecated_int96_timestamps=any(column.physical_type == "INT96" for column in columns),
        use_compliant_nested_type=not any(".list.item" in path for path in paths),
        sorting_columns=None if not columns else (metadata.row_group(0).sorting_columns or None),
        store_schema=stores_schema,
        write_page_checksum=True,
    )
    if not stores_schema and metadata.metadata:
        # Arrow writes none of the others either where it does not store its schema.
        writer.add_key_value_metadata(metadata.metadata)
    return writer


_CODECS = {"UNCOMPRESSED": "NONE"}


def write_array_rows(path: str, keep: np.ndarray, to: Any, *, most_mib: int, seen: SeenVectors | None = None) -> None:
    """Write some rows of an `.npy` file, or of the arrays in an `.npz` file, as a file of the same kind and type.

    In an `.npz` file, other arrays of as many rows are cut to the same rows, and everything else is copied.

    Args:
        path: of the file.
        keep: (rows,) bool, which of the first rows.
        to: binary stream that takes the file.
        most_mib: MiB of a vector.
        seen: looks at the vectors.

    Raises:
        OtherRowsError: the array has fewer rows.
        ValueError: another array of as many rows cannot be cut to some of them; names file and array.
        TruncatedFile: the file is damaged; names it.
        OSError: it cannot be opened; names it.
    """
    if path.lower().endswith(".npy"):
        with opened_array(path, most_mib) as array:
            _write_vectors(array, keep, to, seen)
        return
    with ExitStack() as stack:
        archive = stack.enter_context(ZipFile(stack.enter_context(opened(path, seekable=True))))
        packed = stack.enter_context(ZipFile(to, "w"))
        vectors = only_array(archive, path)
        for info in archive.infolist():
            with packed.open(_same_entry(info), "w", force_zip64=True) as member:
                if info.filename == vectors:
                    with opened_array(path, most_mib) as array:
                        _write_vectors(array, keep, member, seen)
                else:
                    with archive.open(info) as stream:
                        _write_beside(stream, keep, member, name=f"{path}: array {info.filename!r}")


def _same_entry(info: ZipInfo) -> ZipInfo:
    entry = ZipInfo(info.filename, info.date_time)
    entry.compress_type = info.compress_type
    return entry


def _write_vectors(array: VectorArray, keep: np.ndarray, to: Any, seen: SeenVectors | None) -> None:
    if array.rows_there < len(keep):
        message = f"it has {array.rows_there:,} rows, and {len(keep):,} were read before"
        raise OtherRowsError(message)
    _write_header(to, (int(keep.sum()), array.width), array.dtype)
    wanted = np.flatnonzero(keep)
    for start in range(0, int(wanted[-1]) + 1 if len(wanted) else 0, array.batch_rows):
        part = keep[start : start + array.batch_rows]
        vectors, damage = array.next_rows(len(part))
        if part[len(vectors) :].any():
            message = f"it is {damage}"
            raise OtherRowsError(message)
        chosen = vectors[part[: len(vectors)]]
        if len(chosen):
            if seen is not None:
                seen(chosen)
            to.write(chosen.astype(array.dtype).tobytes())


def _write_header(to: Any, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(to, described)


def _write_beside(stream: IO[bytes], keep: np.ndarray, to: Any, *, name: str) -> None:
    """Write a member of an archive: an array of as many rows with the chosen ones only, anything else as it is."""
    start = stream.tell()
    try:
        shape, by_column, dtype = array_header(stream)
    except ValueError:
        shape = ()
    if not shape or shape[0] != len(keep):
        stream.seek(start)
        for block in iter(lambda: stream.read(_CHUNK_BYTES), b""):
            to.write(block)
        return
    if dtype.hasobject or (by_column and len(shape) > 1):
        kind = "Python objects" if dtype.hasobject else "numbers column by column"
        message = f"{name} has as many rows as there are vectors, and holds {kind}, of which no rows can be read apart; save it in a file of its own"
        raise ValueError(message)
    _write_header(to, (int(keep.sum()), *shape[1:]), dtype)
    row_bytes = max(1, dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64)))
    rows = max(1, _CHUNK_BYTES // row_bytes)
    for first in range(0, len(keep), rows):
        part = keep[first : first + rows]
        content = stream.read(len(part) * row_bytes)
        if len(content) < len(part) * row_bytes:
            message = f"{name} ends before its last row"
            raise OtherRowsError(message)
        found = np.frombuffer(content, np.uint8).reshape(len(part), row_bytes)
        to.write(found[part].tobytes())
