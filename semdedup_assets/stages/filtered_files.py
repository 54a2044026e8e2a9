"""The source's own files with the kept rows only: for programs that read the source as it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from semdedup_assets.encoders import Precomputed
from semdedup_assets.encoders.unit_norm import check_unit_rows, normalise_rows
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.shard_reader import require_unchanged
from semdedup_assets.records import Record, content_hash, item_ids
from semdedup_assets.sources import JsonLines, Parquet, Vectors, WebDataset
from semdedup_assets.sources.filtering import (
    OtherRowsError,
    SeenRows,
    SeenVectors,
    relative_name,
    require_distinct,
    write_array_rows,
    write_lines,
    write_samples,
    write_table_rows,
)
from semdedup_assets.sources.reading import TruncatedFile, printable
from semdedup_assets.sources.vectors import is_array
from semdedup_assets.stages.embeddings import VECTORS
from semdedup_assets.stages.kept_rows import ChosenShard
from semdedup_assets.stages.manifest_rows import FILTERED, CountingFolder
from semdedup_assets.stages.source_copies import (
    changed_source,
    embedded_contents,
    kept_records_of_files,
    other_record,
)
from semdedup_assets.storage.files import FileStat, file_stat
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.vectors import read_vectors

if TYPE_CHECKING:
    import pyarrow as pa

# What is stored is rounded to float16, whose steps are 5e-4 near 1.
_ROUNDING = 1e-3
_IMAGE_BYTES = 16 << 20


def write_filtered(context: StageContext, kept: ChosenShard, result: CountingFolder) -> dict[str, int]:
    """`filtered/…`: each file of a shard with the kept rows only, under its own name, of its own form, schema and types.

    A file of which nothing is kept has no rows. Tables that belong to arrays are cut to the same rows.

    Args:
        context: of the pipeline, whose source is none of single images.
        kept: which rows.
        result: takes the files.

    Returns:
        How many of the rows have their image in the table, which lies beside it in the source; how many samples of
        tars have another key.

    Raises:
        SourceChangedError: a file, or what a row holds, is not what was embedded; names file and row.
        DamagedFileError: a file cannot be read up to its last kept row; names it, the row and the columns.
        ValueError: an archive holds an array that cannot be cut to some of its rows; names both.
    """
    source = context.pipeline.source
    if isinstance(source, Parquet):
        return _write_tables(source, kept, result)
    if isinstance(source, WebDataset):
        return _write_tars(source, kept, result)
    if isinstance(source, JsonLines):
        _write_lines(source, kept, result)
    if isinstance(source, Vectors):
        _write_vectors(context, source, kept, result)
    return {}


def require_distinct_names(context: StageContext) -> None:
    """See that no file of `filtered/` would replace another, of whatever shard.

    Raises:
        ValueError: two files of the source would have one name; names both.
    """
    source, files = context.pipeline.source, [file.path for shard in context.shards for file in shard.files]
    if not isinstance(source, Vectors):
        require_distinct((path, relative_name(path, source.path)) for path in files)
    else:
        tables = source.metadata_of(files)
        arrays = [(path, _vector_name(source, path, tables.get(path))) for path in files]
        beside = [(table.path, _metadata_name(source, path, table)) for path, table in tables.items()]
        require_distinct([*arrays, *beside])


def _vector_name(source: Vectors, path: str, table: FileStat | None) -> str:
    return relative_name(path, source.path, None if table is None else (table.path, source.metadata or ""))


def _metadata_name(source: Vectors, path: str, table: FileStat) -> str:
    return relative_name(table.path, source.metadata or "", (path, source.path))


def _write_tables(source: Parquet, kept: ChosenShard, result: CountingFolder) -> dict[str, int]:
    files = {file.path: file for file in kept.shard.files}
    payloads = _Payloads(source, embedded_contents(kept))
    for path, first, keep in kept.of_files():
        with _unchanged(files[path], keep), result.open(f"{FILTERED}/{relative_name(path, source.path)}") as stream:
            write_table_rows(path, keep, stream, seen=payloads.of_file(path, first, keep))
    return {"images_put_into_tables": payloads.beside}


def _write_lines(source: JsonLines, kept: ChosenShard, result: CountingFolder) -> None:
    for file, keep, lines in kept_records_of_files(kept, source.whole_lines, source.texts_in):
        with _unchanged(file, keep), result.open(f"{FILTERED}/{relative_name(file.path, source.path)}") as stream:
            write_lines(file.path, lines, stream)


def _write_tars(source: WebDataset, kept: ChosenShard, result: CountingFolder) -> dict[str, int]:
    renamed = 0
    # Which of a sample's images is embedded is the source's to know: it is among them.
    records = kept_records_of_files(kept, source.sample_files, lambda sample: sample[1].values())
    for file, keep, samples in records:
        with _unchanged(file, keep), result.open(f"{FILTERED}/{relative_name(file.path, source.path)}") as stream:
            renamed += write_samples(file.path, samples, stream)
    return {"filtered_renamed_samples": renamed}


def _write_vectors(context: StageContext, source: Vectors, kept: ChosenShard, result: CountingFolder) -> None:
    files = {file.path: file for file in kept.shard.files}
    encoder, tables = context.pipeline.encoder, source.metadata_of(files)
    # The estimate's trial run has made-up embeddings, of which nothing can be told.
    vectors = _Vectors(kept, _StoredVectors(kept.embeddings), encoder) if isinstance(encoder, Precomputed) else None
    for path, first, keep in kept.of_files():
        table = tables.get(path)
        name = _vector_name(source, path, table)
        seen = None if vectors is None else vectors.of_file(path, first, keep)
        with _unchanged(files[path], keep), result.open(f"{FILTERED}/{name}") as stream:
            if is_array(path):
                write_array_rows(path, keep, stream, most_mib=source.max_item_mib, seen=seen)
            else:
                write_table_rows(path, keep, stream, seen=None if seen is None else _in_tables(source, path, seen))
        if table is not None:
            _write_metadata(source, files[path], table, keep, result)


def _write_metadata(
    source: Vectors, array: FileStat, table: FileStat, keep: np.ndarray, result: CountingFolder
) -> None:
    """Write the kept rows of the table that belongs to an array, whose stamp covers it."""
    name = f"{FILTERED}/{_metadata_name(source, array.path, table)}"
    result.beside.add(name)

    def check() -> None:
        found = file_stat(table.path)
        if found is None or not array.stamp.endswith(f" metadata:{found.size}:{found.stamp}"):
            raise changed_source(table.path, "it is not the file that was observed")

    with _faults_named(table.path, check), result.open(name) as stream:
        write_table_rows(table.path, keep, stream)
    check()


class DamagedFileError(ValueError):
    """A file that shows no change cannot be read as a whole; names it, where, and the remedy."""


@contextmanager
def _unchanged(file: FileStat, keep: np.ndarray) -> Iterator[None]:
    """See that what a file gives is what was embedded.

    A file whose head or footer cannot be read gave no row, and its shard was accepted without it: nothing is written.
    """
    try:
        with _faults_named(file.path, lambda: require_unchanged(file)):
            yield
    except DamagedFileError:
        if len(keep):
            raise
    # Afterwards: a file that was changed before or while it was read shows it now.
    require_unchanged(file)


@contextmanager
def _faults_named(path: str, check: Callable[[], None]) -> Iterator[None]:
    """Tell a file that was changed from one that is damaged, perhaps always was where no item needed it.

    Args:
        path: of the file.
        check: raises where the file shows a change.
    """
    try:
        yield
    except (OtherRowsError, FileNotFoundError) as error:
        raise changed_source(path, str(error)) from error
    except TruncatedFile as error:
        check()
        message = (
            f"{printable(path)}: damaged: {error}; what was embedded of it may not need this part, but a copy of its rows "
            "does: replace the file by a whole one, or leave out `filtered` among the manifests"
        )
        raise DamagedFileError(message) from error


@dataclass
class _Payloads:
    """Holds images or texts of tables against the hashes of what was embedded.

    Attributes:
        source: that reads the tables.
        hashes: (records,) uint64 of the shard.
        beside: images that lie beside their tables, and become part of them: no path leads from a manifest to the source.
    """

    source: Parquet
    hashes: np.ndarray
    beside: int = 0

    def of_file(self, path: str, first: int, keep: np.ndarray) -> SeenRows:
        """Looks at the kept rows of a file, batch by batch; of images beside the table about 16 MiB are held at once.

        Args:
            path: of the file.
            first: row in the shard of its first record.
            keep: (rows,) bool, which are kept.
        """
        rows = iter(np.flatnonzero(keep).tolist())

        def look(batch: "pa.RecordBatch") -> Iterator["pa.RecordBatch"]:
            beside = self.source.images_beside(batch, path)
            start, images, size = 0, list[bytes | None](), 0
            for record, row in zip(self.source.records_in(batch, path), rows, strict=False):
                payload = record.payload if isinstance(record, Record) else None
                if not isinstance(payload, bytes | str) or content_hash(payload) != int(self.hashes[first + row]):
                    raise other_record(path, row)
                images.append(payload if isinstance(payload, bytes) and beside[start + len(images)] else None)
                size += len(images[-1] or b"")
                if size >= _IMAGE_BYTES:
                    yield self.source.with_images(batch.slice(start, len(images)), images, path)
                    start, images, size = start + len(images), [], 0
            rest = batch.slice(start)
            yield self.source.with_images(rest, images, path) if beside[start:].any() else rest
            self.beside += int(beside.sum())

        return look


@dataclass(frozen=True)
class _Vectors:
    """Holds vectors of a shard against the embeddings that were made of them.

    Attributes:
        kept: the shard.
        stored: its embeddings.
        encoder: that checked and normalised them.
    """

    kept: ChosenShard
    stored: "_StoredVectors"
    encoder: Precomputed

    def of_file(self, path: str, first: int, keep: np.ndarray) -> SeenVectors:
        """Looks at the kept vectors of a file, (m, d) at a time; arguments as of `_Payloads.of_file`."""
        left = np.flatnonzero(keep)

        def look(vectors: np.ndarray) -> None:
            nonlocal left
            here, left = left[: len(vectors)], left[len(vectors) :]
            expected = self.stored.take(item_ids(self.kept.shard.index, first + here))
            unit = (normalise_rows if self.encoder.normalise else check_unit_rows)(vectors).vectors
            other = _far(unit, expected)
            if len(other):
                raise other_record(path, int(here[other[0]]))

        return look


def _in_tables(source: Vectors, path: str, look: SeenVectors) -> SeenRows:
    """Looks at the vectors that rows of a table hold."""

    def look_at(batch: "pa.RecordBatch") -> Iterator["pa.RecordBatch"]:
        look(source.vectors_in(batch, path))
        yield batch

    return look_at


def _far(vectors: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """(m,) int64 which of (n, d) unit rows are not the stored ones, as far as these are exact."""
    if vectors.shape != stored.shape:
        return np.arange(1)
    return np.flatnonzero(np.abs(vectors - stored.astype(np.float32)).max(axis=1, initial=0.0) > _ROUNDING)


class _StoredVectors:
    """The embeddings of a shard, of which some are asked for in their order.

    Args:
        record: of the embeddings.
    """

    def __init__(self, record: ResultRecord) -> None:
        self._tables = read_vectors(record.file(VECTORS))
        self._ids, self._vectors = np.zeros(0, np.uint64), np.zeros((0, 0), np.float16)

    def take(self, ids: np.ndarray) -> np.ndarray:
        """(m, d) the vectors of (m,) uint64 ids, ascending, after those that were asked for before."""
        parts = [self._vectors[:0]]
        while len(ids):
            while len(self._ids) == 0 or self._ids[-1] < ids[0]:
                table = next(self._tables)
                self._ids, self._vectors = table.ids, table.vectors
            stop = int(np.searchsorted(ids, self._ids[-1], side="right"))
            parts.append(self._vectors[np.searchsorted(self._ids, ids[:stop])])
            ids = ids[stop:]
        return np.concatenate(parts[1:] or parts)
