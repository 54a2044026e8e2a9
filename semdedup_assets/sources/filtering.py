"""Some rows of a source's own files, as files of the same form: every column, type, line and name."""

import io
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import IO, TYPE_CHECKING, Any
from zipfile import ZipFile, ZipInfo

import numpy as np

from semdedup_assets.sources.jsonl import file_form
from semdedup_assets.sources.packing import packed, packing_of
from semdedup_assets.sources.paths import is_http, unquoted
from semdedup_assets.sources.reading import TruncatedFile, fixed_roots, opened, printable
from semdedup_assets.sources.tables import ParquetTable, damaged_columns, leaf_paths, parquet_table, row_batches
from semdedup_assets.sources.vectors import VectorArray, array_header, only_array, opened_array
from semdedup_assets.storage.files import filesystem

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_GROUP_BYTES = 64 << 20
_CHUNK_BYTES = 16 << 20
_BLOCK_BYTES = 1 << 20
# What a column of a batch takes beside its values: few rows of very many batches are not free.
_COLUMN_BYTES = 1 << 10

SeenRows = Callable[["pa.RecordBatch"], Iterable["pa.RecordBatch"]]
"""Looks at the chosen rows of a table, batch by batch, and gives what is written; raises where they are not as expected."""

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
        both = zip(root.split("/"), _root(*beside).split("/"), strict=False)
        root = "/".join(part for part, _ in takewhile(lambda pair: pair[0] == pair[1], both))
    below = name[len(root) :] if _is_below(name, root) else name
    # A store's keys may hold `..`, which would lead out of the folder.
    parts = (part.replace(".", "%2E") if part in (".", "..") else part for part in below.split("/") if part)
    return printable("/".join(parts))


def require_distinct(names: Iterable[tuple[str, str]]) -> None:
    """See that each of some files has a name of its own.

    Args:
        names: of each file its path, and its name below the folder that is written.

    Raises:
        ValueError: two have the same, as `s3://a//x.parquet` and `s3://a/x.parquet`; names both.
    """
    paths = dict[str, str]()
    for path, name in names:
        other = paths.setdefault(name, path)
        if other != path:
            message = (
                f"{printable(other)} and {printable(path)} would both be written as {name!r}; rename one of them, or leave "
                "out `filtered` among the manifests"
            )
            raise ValueError(message)


_WEB = re.compile(r"https?:/*", re.IGNORECASE)


def _name(path: str) -> str:
    """A path as its file system writes it, and as a local copy of it is called; a web server's with its query."""
    return _as_name(filesystem(path)[1], path)


def _as_name(name: str, path: str) -> str:
    if not is_http(path):
        return name
    below, separator, query = _WEB.sub("", name, count=1).partition("?")
    return f"{unquoted(below)}{separator}{query}"


def _root(path: str, setting: str) -> str:
    name = _name(path)
    roots = (_as_name(root, setting) for root in fixed_roots(setting))
    return next((root for root in roots if _is_below(name, root)), name.rpartition("/")[0])


def _is_below(name: str, root: str) -> bool:
    """Whether a name lies in a folder; every name lies in that without one, such as the buckets of `s3://{a,b}/`."""
    return not root or name.startswith(f"{root.rstrip('/')}/")


def write_table_rows(path: str, keep: np.ndarray, to: Any, *, seen: SeenRows | None = None) -> None:
    """Write some rows of a Parquet file, with all columns, as a Parquet file of the same schema and compression.

    Rows are held a batch at a time, and those of a row group that is written: at most about 64 MiB of them.

    Args:
        path: of the file.
        keep: (rows,) bool, which of the first rows.
        to: binary stream that takes the file.
        seen: looks at them, and gives what is written of them.

    Raises:
        OtherRowsError: the file has fewer rows.
        TruncatedFile: a column is damaged at or before the last of these rows; names file, row and columns.
        ValueError: Arrow has no way to choose rows of a type, or to put an image into it; names the file.
        OSError: it cannot be opened; names it.
    """
    with ExitStack() as stack:
        opened_table = stack.enter_context(parquet_table(path))
        table = replace(opened_table, file=opened_table.reopened(old_times="us"))
        writer = stack.enter_context(_table_writer(table, to))
        if table.rows < len(keep):
            message = f"it has {table.rows:,} rows, and {len(keep):,} were read before"
            raise OtherRowsError(message)
        waiting = _Waiting(writer, most_rows=_group_rows(table))
        with _named_faults(table):
            for chosen in _chosen_rows(table, keep):
                for batch in (chosen,) if seen is None else seen(chosen):
                    waiting.add(batch)
            waiting.write()


@contextmanager
def _named_faults(table: ParquetTable) -> Iterator[None]:
    """Name the columns that are damaged, and the file of a type that cannot be written."""
    import pyarrow as pa

    try:
        yield
    except TruncatedFile as error:
        columns = ", ".join(map(repr, damaged_columns(table)))
        message = f"{error} (damaged columns: {columns})" if columns else str(error)
        raise TruncatedFile(message) from error
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        message = (
            f"{table.path}: {error}; leave out `filtered` among the manifests, or store the column as another type"
        )
        raise ValueError(message) from error


@dataclass
class _Waiting:
    """Rows that become a row group as soon as they are enough.

    Attributes:
        writer: of the file.
        most_rows: of a row group; one ends after the batch that has the last of them.
        batches: not yet written.
        rows: of these.
        size: bytes that they take, each batch with what it takes beside its values.
    """

    writer: "pq.ParquetWriter"
    most_rows: int
    batches: "list[pa.RecordBatch]" = field(default_factory=list)
    rows: int = 0
    size: int = 0

    def add(self, batch: "pa.RecordBatch") -> None:
        """Take some rows, and write the row group where they complete it."""
        self.batches.append(batch)
        self.rows += len(batch)
        self.size += batch.nbytes + _COLUMN_BYTES * batch.num_columns
        if self.rows >= self.most_rows or self.size >= _GROUP_BYTES:
            self.write()

    def write(self) -> None:
        """Write what is there."""
        import pyarrow as pa

        if self.batches:
            rows = pa.Table.from_batches(self.batches)
            self.writer.write_table(rows, row_group_size=len(rows))
        self.batches, self.rows, self.size = [], 0, 0


def _chosen_rows(table: ParquetTable, keep: np.ndarray) -> "Iterator[pa.RecordBatch]":
    """The chosen rows, batch by batch; nothing is read behind the last of them."""
    last, first = int(np.flatnonzero(keep)[-1]) if keep.any() else -1, 0
    batches = row_batches(table)
    while first <= last:
        batch = next(batches)
        part = keep[first : first + len(batch)]
        batch, first = batch.slice(0, len(part)), first + len(batch)
        if part.any():
            yield batch if part.all() else _filtered(batch, part)


def _filtered(batch: "pa.RecordBatch", keep: np.ndarray) -> "pa.RecordBatch":
    """The chosen rows of a batch; those of types that Arrow does not filter, such as string views, by their runs."""
    import pyarrow as pa

    try:
        return batch.filter(pa.array(keep))
    except pa.ArrowNotImplementedError:
        edges = np.flatnonzero(np.diff(keep, prepend=False, append=False)).reshape(-1, 2).tolist()
        return pa.concat_batches([batch.slice(start, stop - start) for start, stop in edges])


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


def write_lines(path: str, lines: Iterable[bytes], to: Any) -> None:
    """Write some lines of a file of JSON lines as a file of the same compression and encoding, with its byte order mark.

    Args:
        path: of the file.
        lines: as `JsonLines.whole_lines` gives them.
        to: binary stream that takes the file.

    Raises:
        TruncatedFile: the file holds something else; names it.
        OSError: it cannot be opened; names it.
    """
    form = file_form(path)
    mark = form.mark  # which is no line: a file without any has none
    with packed(to, form.packing) as stream:
        for block in _blocks(lines):
            stream.write(mark + (block if form.encoding == "utf-8" else block.decode().encode(form.encoding)))
            mark = b""


def _blocks(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in fewer pieces."""
    waiting, size = list[bytes](), 0
    for line in lines:
        waiting.append(line)
        size += len(line)
        if size >= _BLOCK_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


def write_samples(path: str, samples: Iterable[tuple[str, dict[str, bytes]]], to: Any) -> int:
    """Write some samples of a tar as a tar of the same compression, under the names that its members have.

    Where samples of one key come to lie next to each other, which readers would take for one, the later one's key gets
    its number.

    Args:
        path: of the tar.
        samples: as `WebDataset.sample_files` gives them.
        to: binary stream that takes the tar.

    Returns:
        How many keys were changed.

    Raises:
        OSError: it cannot be opened; names it.
    """
    with opened(path) as stream:
        packing = packing_of(stream.peek(6))  # type: ignore[attr-defined]
    last, renamed = None, 0
    with packed(to, packing) as stream, tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for number, (key, files) in enumerate(samples):
            new = f"{key}-{number}" if key == last else key
            renamed += new != key
            for name, content in files.items():
                member = tarfile.TarInfo(f"{new}{name.removeprefix(key)}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            last = new
    return renamed


_MAGIC = np.lib.format.MAGIC_PREFIX
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
    try:
        np.lib.format.write_array_header_1_0(to, described)
    except ValueError:
        # Of more than 64 KiB.
        np.lib.format.write_array_header_2_0(to, described)


def _header_beside(stream: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """What `array_header` tells of a member of an archive; of one that is no array, no shape.

    Raises:
        ValueError: an array whose rows cannot be told: whether it belongs to the vectors is not known.
    """
    if stream.read(len(_MAGIC)) != _MAGIC:
        return (), False, np.dtype(np.uint8)
    stream.seek(0)
    try:
        shape, by_column, dtype = array_header(stream)
        if dtype.names and not all(map(str.isascii, dtype.names)):
            message = "its fields have names that are not ASCII"
            raise ValueError(message)
    except ValueError as error:
        message = f"{name} cannot be cut to the rows of the vectors ({error}); save it in a file of its own"
        raise ValueError(message) from error
    return shape, by_column, dtype


def _write_beside(stream: IO[bytes], keep: np.ndarray, to: Any, *, name: str) -> None:
    """Write a member of an archive: an array of as many rows with the chosen ones only, anything else as it is."""
    shape, by_column, dtype = _header_beside(stream, name)
    if not shape or shape[0] != len(keep):
        stream.seek(0)
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
