"""Vectors in Arrow files: mapped into memory locally, read by ranges remotely."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from semdedup_assets.records import ColumnType, Embedded, Skipped, item_ids
from semdedup_assets.storage.files import filesystem, is_local

if TYPE_CHECKING:
    import pyarrow as pa

VectorType = Literal["float16", "float32"]

_OFFSETS = b"cluster_offsets"

# Rows of a record batch of embeddings, whatever the model's batches: what follows reads batch by batch, and the same
# items give the same bytes.
_BATCH_ROWS = 1 << 14


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


def _arrow_type(kind: ColumnType) -> "pa.DataType":
    import pyarrow as pa

    return {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}[kind]


def column_fields(column_types: dict[str, ColumnType]) -> "list[pa.Field]":
    """The carried columns as a table holds them."""
    import pyarrow as pa

    return [pa.field(name, _arrow_type(kind)) for name, kind in column_types.items()]


def _vector_array(vectors: np.ndarray) -> "pa.Array":
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).reshape(-1)), vectors.shape[1])


def _vector_field(dimension: int, dtype: VectorType) -> "pa.Field":
    import pyarrow as pa

    return pa.field("vector", pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), dimension))


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

    def add(self, part: Embedded) -> None:
        """Look at consecutive items."""
        norms = np.sqrt(np.einsum("nd,nd->n", part.vectors, part.vectors, dtype=np.float64))
        finite = np.isfinite(norms)
        self.not_finite += int((~finite).sum())
        self.norm_error = max(self.norm_error, float(np.abs(norms[finite] - 1).max(initial=0.0)))
        self.repeated_rows += int((np.diff(part.rows, prepend=self._last_row) <= 0).sum())
        self._last_row = int(part.rows[-1])


@dataclass
class EmbeddingsWriter:
    """Writes the embeddings of one shard, in record batches of equal size whatever the size of those it is given.

    Attributes:
        shard: index of the shard, from which ids are made.
        dtype: of the stored vectors.
        column_types: carried columns by name.
        dimension: d; None: that of the first batch with an item.
        audit: of what was written so far.
    """

    stream: IO[bytes]
    shard: int
    dtype: VectorType
    column_types: dict[str, ColumnType]
    dimension: int | None
    audit: "VectorAudit" = field(default_factory=lambda: VectorAudit())
    _writer: Any = None
    _waiting: list[Embedded] = field(default_factory=list)

    def write(self, batch: Embedded) -> None:
        """Append a batch; one without an item is passed over."""
        if len(batch.rows) == 0:
            return
        self.dimension = self.dimension or batch.vectors.shape[1]
        start = 0
        while start < len(batch.rows):
            room = _BATCH_ROWS - sum(len(part.rows) for part in self._waiting)
            self._waiting.append(self._part(batch, slice(start, start + room)))
            start += room
            if start <= len(batch.rows):
                self._flush()

    def close(self) -> None:
        """Complete the file; a shard without an item gives a file without a row."""
        self.dimension = self.dimension or 1
        if self._waiting:
            self._flush()
        self._open().close()

    def _part(self, batch: Embedded, rows: slice) -> Embedded:
        columns = {name: batch.columns[name][rows] for name in self.column_types}
        return Embedded(batch.rows[rows], batch.keys[rows], batch.vectors[rows].astype(self.dtype), columns, [])

    def _flush(self) -> None:
        """Write what is waiting as one record batch."""
        import pyarrow as pa

        parts, self._waiting = self._waiting, []
        for part in parts:
            self.audit.add(part)
        arrays = [
            pa.array(item_ids(self.shard, np.concatenate([part.rows for part in parts]))),
            pa.array([key for part in parts for key in part.keys], pa.string()),
            _vector_array(np.concatenate([part.vectors for part in parts])),
            *(
                pa.array([value for part in parts for value in part.columns[name]], _arrow_type(kind))
                for name, kind in self.column_types.items()
            ),
        ]
        self._open().write_batch(pa.record_batch(arrays, schema=self._schema()))

    def _schema(self) -> "pa.Schema":
        import pyarrow as pa

        return pa.schema(
            [
                pa.field("id", pa.uint64()),
                pa.field("key", pa.string()),
                _vector_field(self.dimension or 1, self.dtype),
                *column_fields(self.column_types),
            ]
        )

    def _open(self) -> Any:
        import pyarrow as pa

        if self._writer is None:
            self._writer = pa.ipc.new_file(self.stream, self._schema())
        return self._writer


def write_skipped(stream: IO[bytes], skipped: Iterable[Skipped], *, shard: int) -> None:
    """Write the broken items of a shard as Parquet: id, key, reason."""
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


def _reader(path: str) -> tuple["pa.RecordBatchFileReader", Any]:
    import pyarrow as pa

    fs, name = filesystem(path)
    source = pa.memory_map(name) if is_local(path) else fs.open(name, "rb")
    return pa.ipc.open_file(source), source


def _table(batch: "pa.RecordBatch") -> VectorTable:
    lists = batch.column("vector")
    flat = lists.flatten().to_numpy(zero_copy_only=True)
    vectors = flat.reshape(len(batch), lists.type.list_size)
    return VectorTable(batch.column("id").to_numpy(), vectors, batch)


def read_vectors(path: str) -> Iterator[VectorTable]:
    """The rows of a vector file, batch by batch, in its order."""
    reader, source = _reader(path)
    with source:
        for index in range(reader.num_record_batches):
            yield _table(reader.get_batch(index))


def read_columns(path: str, columns: Iterable[str] | None = None) -> Iterator["pa.RecordBatch"]:
    """Some columns, batch by batch; of a remote file, only their bytes are fetched.

    Args:
        path: a vector file.
        columns: names; None: all but the vectors.
    """
    import pyarrow as pa

    fs, name = filesystem(path)
    source = pa.memory_map(name) if is_local(path) else fs.open(name, "rb")
    with source:
        names = pa.ipc.open_file(source).schema.names
        wanted = {column for column in names if column != "vector"} if columns is None else set(columns)
        kept = [index for index, column in enumerate(names) if column in wanted]
        reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=kept))
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)


def read_ids(path: str) -> Iterator[np.ndarray]:
    """The ids of a vector file, batch by batch."""
    return (batch.column("id").to_numpy() for batch in read_columns(path, ["id"]))


def write_sample(stream: IO[bytes], ids: np.ndarray, vectors: np.ndarray) -> None:
    """Write sampled vectors, (n,) uint64 ids and (n, d) floats, as one Arrow file."""
    import pyarrow as pa

    batch = pa.record_batch([pa.array(ids), _vector_array(vectors)], names=["id", "vector"])
    with pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)


def write_assignments(
    stream: IO[bytes], batches: Iterable["pa.RecordBatch"], *, schema: "pa.Schema", offsets: np.ndarray
) -> None:
    """Write a shard's rows in the order of their clusters, one record batch for each bucket.

    Args:
        stream: where to.
        batches: one for each bucket in turn, also where it is empty.
        schema: of the batches, from `assignment_schema`.
        offsets: (k + 1,) int64, where each cluster starts among the shard's rows.
    """
    import pyarrow as pa

    stored = schema.with_metadata({_OFFSETS: offsets.astype("<i8").tobytes()})
    with pa.ipc.new_file(stream, stored) as writer:
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(stored.metadata))


def assignment_schema(dimension: int, dtype: VectorType, *, keep_column: bool) -> "pa.Schema":
    """Columns of an assignments file: id, centroid_similarity, keep_value where items are ordered by one, vector."""
    import pyarrow as pa

    fields = [pa.field("id", pa.uint64()), pa.field("centroid_similarity", pa.float64())]
    if keep_column:
        fields.append(pa.field("keep_value", pa.float64()))
    return pa.schema([*fields, _vector_field(dimension, dtype)])


def assignment_batch(
    schema: "pa.Schema",
    ids: np.ndarray,
    centroid_similarity: np.ndarray,
    keep_value: np.ndarray | None,
    vectors: np.ndarray,
) -> "pa.RecordBatch":
    """Rows of an assignments file."""
    import pyarrow as pa

    arrays = [pa.array(ids), pa.array(centroid_similarity)]
    if keep_value is not None:
        arrays.append(pa.array(keep_value))
    return pa.record_batch([*arrays, _vector_array(vectors)], schema=schema)


@dataclass(frozen=True, slots=True)
class BucketSlice:
    """What one shard holds of one bucket.

    Attributes:
        table: the rows, in the order of their clusters.
        offsets: (clusters + 1,) int64, where each cluster of the bucket starts among these rows.
    """

    table: VectorTable
    offsets: np.ndarray


def read_bucket(path: str, *, bucket: int, clusters: range) -> BucketSlice:
    """A shard's rows of one bucket: one contiguous read.

    Args:
        path: an assignments file.
        bucket: index of the bucket.
        clusters: the clusters that the bucket holds.
    """
    reader, source = _reader(path)
    with source:
        offsets = np.frombuffer(reader.schema.metadata[_OFFSETS], dtype="<i8")
        batch = reader.get_batch(bucket)
    within = offsets[clusters.start : clusters.stop + 1]
    return BucketSlice(_table(batch), within - within[0])


def clusters_of_rows(offsets: np.ndarray) -> np.ndarray:
    """(n,) int32: the cluster of each row that is sorted by cluster, from (k + 1,) offsets."""
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))
