"""Vectors in Arrow files that are read in parts: mapped into memory locally, by ranged reads remotely."""

from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xxhash

from semdedup_assets.records import Embedded, Skipped, item_ids
from semdedup_assets.storage.files import filesystem, is_local
from semdedup_assets.storage.overlap import ahead
from semdedup_assets.storage.remote_parts import WINDOW, FilePart, RemoteFile, fetch, windows
from semdedup_assets.storage.results import HashingStream, MissingResultError, StoredFile, damaged_file

if TYPE_CHECKING:
    import pyarrow as pa

VectorType = Literal["float16", "float32"]
RowType = Literal[VectorType, "uint32"]
"""Of embeddings, and of MinHash signatures."""

# Rows of a record batch of embeddings, whatever the model's batches: what follows reads batch by batch, and the same
# items give the same bytes.
_BATCH_ROWS = 1 << 14

_MAGIC = b"ARROW1"
_READ_MESSAGES = 2

# What stands before the first column of a part, the file's schema included.
_HEAD_BYTES = 4096
# Pieces of 64 MiB of one large part that are fetched at once.
_PIECES = 8

# Parts that this process has held against their checksums: names of files are never used again.
_verified: set[tuple[str, int]] = set()


@dataclass(frozen=True)
class ByteRanges:
    """Where the record batches of a file lie, noted while they are written: a reader needs neither footer nor schema.

    Attributes:
        schema: of all batches.
        bounds: (n + 1,) int64; batch i lies in the bytes `[bounds[i], bounds[i + 1])`.
        checksums: (n,) uint64, XXH3 of these bytes.
    """

    schema: "pa.Schema"
    bounds: np.ndarray
    checksums: np.ndarray

    def to_text(self) -> str:
        """As a record holds it."""
        numbers = self.bounds.astype("<i8").tobytes(), self.checksums.astype("<u8").tobytes()
        return ".".join(b64encode(part).decode() for part in (self.schema.serialize().to_pybytes(), *numbers))

    @classmethod
    def from_text(cls, text: str) -> "ByteRanges":
        """Read what a record holds."""
        import pyarrow as pa

        schema, bounds, checksums = (b64decode(part) for part in text.split("."))
        return cls(
            pa.ipc.read_schema(pa.py_buffer(schema)), np.frombuffer(bounds, "<i8"), np.frombuffer(checksums, "<u8")
        )


# As many as shards are read in turn, range after range: fewer would be parsed again for each range.
_ranges = lru_cache(maxsize=1 << 13)(ByteRanges.from_text)


class PartWriter:
    """Writes an Arrow file whose record batches are read one by one."""

    def __init__(self, stream: HashingStream, schema: "pa.Schema") -> None:
        import pyarrow as pa

        self._stream = stream
        self._schema = schema
        self._writer = pa.ipc.new_file(stream, schema)
        self._bounds, self._checksums = [0], list[int]()

    def write(self, batch: "pa.RecordBatch") -> None:
        """Append a part."""
        self._stream.start_part()
        self._writer.write_batch(batch)
        self._checksums.append(self._stream.end_part())
        self._bounds.append(self._stream.tell())

    def close(self) -> str:
        """Complete the file; returns where its parts lie, as a record holds it."""
        self._writer.close()
        return ByteRanges(self._schema, np.array(self._bounds), np.array(self._checksums, np.uint64)).to_text()


@dataclass(frozen=True, slots=True)
class VectorTable:
    """Rows of a vector file.

    Attributes:
        ids: (n,) uint64.
        vectors: (n, d) float16 or float32, unit norm up to rounding; a view of the file where it is mapped.
        columns: any further column as an Arrow array.
    """

    ids: np.ndarray
    vectors: np.ndarray
    columns: "pa.RecordBatch"

    def column(self, name: str) -> np.ndarray:
        """(n,) one of the further columns."""
        values: np.ndarray = self.columns.column(name).to_numpy(zero_copy_only=False)
        return values


def _vector_array(vectors: np.ndarray) -> "pa.Array":
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).reshape(-1)), vectors.shape[1])


def _vector_field(dimension: int, dtype: RowType) -> "pa.Field":
    import pyarrow as pa

    return pa.field("vector", pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), dimension))


def sample_schema(dimension: int, dtype: RowType) -> "pa.Schema":
    """Columns of embeddings, samples and signatures: id, vector."""
    import pyarrow as pa

    return pa.schema([pa.field("id", pa.uint64()), _vector_field(dimension, dtype)])


def sample_batch(schema: "pa.Schema", ids: np.ndarray, vectors: np.ndarray) -> "pa.RecordBatch":
    """Rows of embeddings or of a sample."""
    import pyarrow as pa

    return pa.record_batch([pa.array(ids), _vector_array(vectors)], schema=schema)


def assignment_schema(dimension: int, dtype: VectorType) -> "pa.Schema":
    """Columns of an assignments file: id, cluster, centroid_similarity, vector."""
    import pyarrow as pa

    columns = [("id", pa.uint64()), ("cluster", pa.int32()), ("centroid_similarity", pa.float64())]
    return pa.schema([*(pa.field(*column) for column in columns), _vector_field(dimension, dtype)])


def assignment_batch(
    schema: "pa.Schema", ids: np.ndarray, cluster: np.ndarray, centroid_similarity: np.ndarray, vectors: np.ndarray
) -> "pa.RecordBatch":
    """Rows of an assignments file."""
    import pyarrow as pa

    arrays = [pa.array(ids), pa.array(cluster), pa.array(centroid_similarity), _vector_array(vectors)]
    return pa.record_batch(arrays, schema=schema)


def visitor_schema(dimension: int, dtype: VectorType) -> "pa.Schema":
    """Columns of a boundary file: id, cluster, centroid_similarity, visited clusters, vector."""
    import pyarrow as pa

    columns = [
        ("id", pa.uint64()),
        ("cluster", pa.int32()),
        ("centroid_similarity", pa.float64()),
        ("visited", pa.list_(pa.int32())),
    ]
    return pa.schema([*(pa.field(*column) for column in columns), _vector_field(dimension, dtype)])


def visitor_batch(
    schema: "pa.Schema", columns: Mapping[str, np.ndarray], visited: tuple[np.ndarray, np.ndarray], vectors: np.ndarray
) -> "pa.RecordBatch":
    """Rows of a boundary file.

    Args:
        schema: of the file.
        columns: (n,) id, cluster and centroid_similarity.
        visited: (n + 1,) offsets of each row's clusters, and (m,) these clusters.
        vectors: (n, d).
    """
    import pyarrow as pa

    offsets, clusters = visited
    lists = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(clusters.astype(np.int32)))
    arrays = [pa.array(columns[name]) for name in ("id", "cluster", "centroid_similarity")]
    return pa.record_batch([*arrays, lists, _vector_array(vectors)], schema=schema)


def visits_of(table: "VectorTable") -> tuple[np.ndarray, np.ndarray]:
    """(m,) int64 rows of a boundary file's part, ascending, and (m,) int32 the clusters that each visits."""
    lists = table.columns.column("visited")
    offsets = lists.offsets.to_numpy()
    rows = np.repeat(np.arange(len(lists), dtype=np.int64), np.diff(offsets))
    return rows, lists.flatten().to_numpy()


@dataclass
class VectorAudit:
    """What is wrong with the vectors of a shard, as they are stored: nothing, if all went well.

    Attributes:
        not_finite: vectors with a NaN or an infinity.
        norm_error: greatest distance of a finite vector's norm from 1.
        repeated_rows: items whose row does not come after the one before it, so that ids might repeat.
    """

    not_finite: int = 0
    norm_error: float = 0.0
    repeated_rows: int = 0
    _last_row: int = -1

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Look at consecutive items: (n,) rows in the shard, (n, d) vectors."""
        norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
        finite = np.isfinite(norms)
        self.not_finite += int((~finite).sum())
        self.norm_error = max(self.norm_error, float(np.abs(norms[finite] - 1).max(initial=0.0)))
        self.repeated_rows += int((np.diff(rows, prepend=self._last_row) <= 0).sum())
        self._last_row = int(rows[-1])


@dataclass
class EmbeddingsWriter:
    """Writes the embeddings of one shard, in record batches of equal size whatever the size of those it is given.

    Attributes:
        shard: index of the shard, from which ids are made.
        dtype: of the stored vectors.
        dimension: d; None: that of the first batch with an item.
        audit: of what was written so far.
        ranges: where the batches lie, once the file is complete.
    """

    stream: HashingStream
    shard: int
    dtype: VectorType
    dimension: int | None = None
    audit: VectorAudit = field(default_factory=VectorAudit)
    ranges: str = ""
    _writer: PartWriter | None = None
    _waiting: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def write(self, batch: Embedded) -> None:
        """Append a batch; one without an item is passed over."""
        if len(batch.rows) == 0:
            return
        self.dimension = self.dimension or int(batch.vectors.shape[1])
        start = 0
        while start < len(batch.rows):
            room = _BATCH_ROWS - sum(len(rows) for rows, _ in self._waiting)
            part = slice(start, start + room)
            self._waiting.append((batch.rows[part], batch.vectors[part].astype(self.dtype)))
            start += room
            if start <= len(batch.rows):
                self._flush()

    def close(self) -> None:
        """Complete the file; a shard without an item gives a file without a row."""
        self.dimension = self.dimension or 1
        if self._waiting:
            self._flush()
        self.ranges = self._open().close()

    def _flush(self) -> None:
        """Write what is waiting as one record batch."""
        parts, self._waiting = self._waiting, []
        rows, vectors = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        self.audit.add(rows, vectors)
        schema = sample_schema(self.dimension or 1, self.dtype)
        self._open().write(sample_batch(schema, item_ids(self.shard, rows), vectors))

    def _open(self) -> PartWriter:
        if self._writer is None:
            self._writer = PartWriter(self.stream, sample_schema(self.dimension or 1, self.dtype))
        return self._writer


def write_skipped(stream: HashingStream, skipped: Iterable[Skipped], *, shard: int) -> None:
    """Write the invalid items of a shard as Parquet: id, key, reason."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    items = list(skipped)
    rows = np.array([item.row for item in items], dtype=np.int64)
    table = pa.table(
        {
            "id": pa.array(item_ids(shard, rows)),
            "key": pa.array([item.key for item in items], pa.string()),
            "reason": pa.array([item.reason for item in items], pa.string()),
        }
    )
    pq.write_table(table, stream)


def part_count(file: StoredFile) -> int:
    """Parts of a vector file."""
    return len(_ranges(file.entry.ranges).checksums)


def read_vectors(file: StoredFile) -> Iterator[VectorTable]:
    """The rows of a vector file, part by part, in its order.

    Of a remote file neighbouring parts are one read of up to 64 MiB, the next of which is under way while one is used.

    Raises:
        DamagedResultError: the file is missing, or holds other bytes than were written.
    """
    if is_local(file.path):
        return (read_part(file, index) for index in range(part_count(file)))
    return _read_windows(file)


def _read_windows(file: StoredFile) -> Iterator[VectorTable]:
    bounds = _bounds(file)
    wanted = list(windows(bounds))
    contents = ahead(lambda window: _fetched(file, bounds[window.start][0], bounds[window.stop - 1][1]), wanted)
    for window, content in zip(wanted, contents, strict=True):
        first = bounds[window.start][0]
        for index in window:
            start, stop = bounds[index]
            yield _checked_table(file, index, content.slice(start - first, stop - start))


def read_part(file: StoredFile, index: int) -> VectorTable:
    """The rows of one part: one contiguous read.

    Raises:
        DamagedResultError: the file is missing, or holds other bytes than were written.
    """
    (table,) = read_parts([file], index)
    return table


def read_parts(files: Sequence[StoredFile], index: int) -> list[VectorTable]:
    """The rows that the same part of many files holds: mapped locally, else by one read each, many at once.

    Remotely all these parts are in memory together.

    Raises:
        DamagedResultError: a file is missing, or holds other bytes than were written.
    """
    if not files:
        return []
    bounds = [tuple(_ranges(file.entry.ranges).bounds[index : index + 2].tolist()) for file in files]
    contents = _contents(files, bounds)
    return [_checked_table(file, index, content) for file, content in zip(files, contents, strict=True)]


def _contents(files: Sequence[StoredFile], bounds: Sequence[tuple[int, int]]) -> Iterator["pa.Buffer"]:
    """Bytes of one or more files; local ones are mapped one after the other."""
    if is_local(files[0].path):
        return (_mapped(file, *each) for file, each in zip(files, bounds, strict=True))
    if len(files) == 1:
        return iter([_fetched(files[0], *bounds[0])])
    return _buffers([FilePart(file, *each) for file, each in zip(files, bounds, strict=True)])


def _buffers(parts: Sequence[FilePart]) -> Iterator["pa.Buffer"]:
    import pyarrow as pa

    return (pa.py_buffer(content) for content in fetch(parts))


def _fetched(file: StoredFile, start: int, stop: int) -> "pa.Buffer":
    """Bytes of a remote file; what no single answer should hold in pieces, some at once."""
    import pyarrow as pa

    if stop - start <= 2 * WINDOW:
        return next(_buffers([FilePart(file, start, stop)]))
    whole = np.empty(stop - start, np.uint8)
    pieces = [FilePart(file, each, min(each + WINDOW, stop)) for each in range(start, stop, WINDOW)]
    for first in range(0, len(pieces), _PIECES):
        some = pieces[first : first + _PIECES]
        for piece, content in zip(some, fetch(some), strict=True):
            whole[piece.start - start : piece.stop - start] = np.frombuffer(content, np.uint8)
    return pa.py_buffer(whole)


def _checked_table(file: StoredFile, index: int, content: "pa.Buffer") -> VectorTable:
    """The rows of a part, whose bytes are held against their checksum: each time they were fetched, once where mapped."""
    ranges = _ranges(file.entry.ranges)
    if (file.path, index) not in _verified:
        if xxhash.xxh3_64_intdigest(memoryview(content)) != int(ranges.checksums[index]):
            raise damaged_file(file, f"holds other bytes than were written (from byte {int(ranges.bounds[index]):,})")
        if is_local(file.path):
            _verified.add((file.path, index))
    batch = _batch(content, ranges.schema)
    lists = batch.column("vector")
    vectors = lists.flatten().to_numpy(zero_copy_only=True).reshape(len(batch), lists.type.list_size)
    return VectorTable(batch.column("id").to_numpy(), vectors, batch)


def _mapped(file: StoredFile, start: int, stop: int) -> "pa.Buffer":
    """A part of a local file."""
    import pyarrow as pa

    _, name = filesystem(file.path)
    try:
        # Reading a mapped file beyond its end would end the process.
        size = Path(name).stat().st_size
        if size != file.entry.size:
            raise damaged_file(file, f"has {size:,} bytes where {file.entry.size:,} were written")
        with pa.memory_map(name) as source:
            source.seek(start)
            return source.read_buffer(stop - start)
    except MissingResultError:
        raise
    except FileNotFoundError:
        raise damaged_file(file, "is missing") from None


def _batch(content: Any, schema: "pa.Schema") -> "pa.RecordBatch":
    """The record batch of a part; before the first one stand Arrow's magic bytes and the schema."""
    import pyarrow as pa

    if content.slice(0, len(_MAGIC)).to_pybytes() == _MAGIC:
        content = content.slice(8)
    messages = pa.ipc.MessageReader.open_stream(content)
    for _ in range(_READ_MESSAGES):
        read = messages.read_next_message()
        if read.type == "record batch":
            return pa.ipc.read_record_batch(read, schema)
    message = "a part without a record batch"
    raise pa.ArrowInvalid(message)


def read_ids(file: StoredFile) -> Iterator[np.ndarray]:
    """The ids of a vector file, part by part; of a remote file, only their bytes are fetched, those of all parts at once.

    Those are not held against the checksums, which count the vectors too: whoever goes on to read the vectors does it.

    Raises:
        DamagedResultError: the file is missing, or is not what was written.
    """
    if is_local(file.path):
        for table in read_vectors(file):
            yield table.ids
        return
    import pyarrow as pa

    ranges, source = _ranges(file.entry.ranges), RemoteFile(file)
    row_bytes = 8 + _vector_bytes(ranges.schema)
    parts = [(start, min(stop, start + _HEAD_BYTES + 8 * (stop - start) // row_bytes)) for start, stop in _bounds(file)]
    try:
        # Behind the last part stands only the index of all, without which Arrow opens no file.
        source.hold(source.load([*parts, (int(ranges.bounds[-1]), file.entry.size)]))
        reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=[0]))
        for index in range(len(parts)):
            yield reader.get_batch(index).column("id").to_numpy()
    except MissingResultError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        # Of a store that cannot be reached, errors have numbers or classes of their own.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise damaged_file(file, f"cannot be read ({error})") from error


def _bounds(file: StoredFile) -> list[tuple[int, int]]:
    return list(pairwise(_ranges(file.entry.ranges).bounds.tolist()))


def _vector_bytes(schema: "pa.Schema") -> int:
    kind = schema.field("vector").type
    return int(kind.list_size * kind.value_type.bit_width // 8)


def clusters_of_rows(offsets: np.ndarray) -> np.ndarray:
    """(n,) int32: the cluster of each row that is sorted by cluster, from (k + 1,) offsets."""
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))
