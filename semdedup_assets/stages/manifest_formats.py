"""The formats of a manifest, each for its reader."""

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.records import Broken, Record, id_rows
from semdedup_assets.sources import Folder, JsonLines, WebDataset
from semdedup_assets.sources.catalogue import Shard
from semdedup_assets.sources.reading import TruncatedFile
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.files import join
from semdedup_assets.storage.results import ResultWriter
from semdedup_assets.storage.vectors import column_fields, read_columns

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class KeptShard:
    """Which records of a shard are kept.

    Attributes:
        shard: the shard.
        files: path and number of records of each of its files, in order.
        kept: (records,) bool, by row.
    """

    shard: Shard
    files: list[list[Any]]
    kept: np.ndarray

    def of_files(self) -> Iterator[tuple[str, np.ndarray]]:
        """Path and (records,) bool of each file."""
        start = 0
        for path, rows in self.files:
            yield path, self.kept[start : start + rows]
            start += rows


# The CSV loader would read an empty title as the word "nan".
_NO_CAPTION = " "

Writer = Callable[[Work, list[KeptShard], str, ResultWriter], None]


def kept_batches(work: Work, kept: KeptShard) -> Iterator["pa.RecordBatch"]:
    """The kept items of a shard: id, shard, row, file, file_row, key and the carried columns, in the source's order."""
    import pyarrow as pa

    starts = np.concatenate([[0], np.cumsum([rows for _, rows in kept.files])]).astype(np.int64)
    names = pa.array([path for path, _ in kept.files], pa.string())
    schema = _schema(work)
    for batch in read_columns(work.layout.embeddings(kept.shard.name)):
        rows = id_rows(batch.column("id").to_numpy())
        mask = kept.kept[rows]
        rows, chosen = rows[mask], batch.filter(pa.array(mask))
        file = np.searchsorted(starts, rows, side="right") - 1
        places = {
            "shard": pa.array([kept.shard.name] * len(rows), pa.string()),
            "row": pa.array(rows),
            "file": names.take(pa.array(file)),
            "file_row": pa.array(rows - starts[file]),
        }
        arrays = [places[name] if name in places else chosen.column(name) for name in schema.names]
        yield pa.record_batch(arrays, schema=schema)


def _schema(work: Work) -> "pa.Schema":
    """The same for all shards, also for one of which nothing is kept."""
    import pyarrow as pa

    places = {"id": pa.uint64(), "shard": pa.string(), "row": pa.int64(), "file": pa.string(), "file_row": pa.int64()}
    return pa.schema(
        [*pa.schema(places), pa.field("key", pa.string()), *column_fields(work.pipeline.source.column_types)]
    )


def _parquet(work: Work, shards: list[KeptShard], folder: str, result: ResultWriter) -> None:
    """`parquet/<shard>.parquet`: identity, key and carried columns of each kept item."""
    import pyarrow.parquet as pq

    for kept in shards:
        with (
            result.open(join(folder, "parquet", f"{kept.shard.name}.parquet")) as stream,
            pq.ParquetWriter(stream, _schema(work), compression="zstd") as writer,
        ):
            for batch in kept_batches(work, kept):
                writer.write_batch(batch)


def _keep_lists(work: Work, shards: list[KeptShard], folder: str, result: ResultWriter) -> None:
    """`keep_lists/<shard>.tsv`: file, row in the file and key of each kept item; tabs in keys are escaped as in JSON."""
    for kept in shards:
        with result.open(join(folder, "keep_lists", f"{kept.shard.name}.tsv")) as stream:
            for batch in kept_batches(work, kept):
                columns = [batch.column(name).to_pylist() for name in ("file", "file_row", "key")]
                lines = (f"{file}\t{row}\t{_escaped(key)}\n" for file, row, key in zip(*columns, strict=True))
                stream.write("".join(lines).encode())


def _escaped(key: str) -> str:
    return key if key.isprintable() else json.dumps(key, ensure_ascii=False)[1:-1]


def _csv(work: Work, shards: list[KeptShard], folder: str, result: ResultWriter) -> None:
    """`open_clip.csv`: path and caption of each kept image, separated by a tab, as OpenCLIP's CSV loader reads it."""
    with result.open(join(folder, "open_clip.csv")) as stream:
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter="\t", lineterminator="\n")
        writer.writerow(["filepath", "title"])
        for kept in shards:
            for batch in kept_batches(work, kept):
                paths, captions = batch.column("file").to_pylist(), batch.column("caption").to_pylist()
                writer.writerows((path, caption or _NO_CAPTION) for path, caption in zip(paths, captions, strict=True))
                stream.write(text.getvalue().encode())
                text.seek(0)
                text.truncate()
        stream.write(text.getvalue().encode())


def _jsonl(work: Work, shards: list[KeptShard], folder: str, result: ResultWriter) -> None:
    """`jsonl/<shard>.jsonl.gz`: the source's own lines of the kept items, byte for byte."""
    source = work.pipeline.source
    if not isinstance(source, JsonLines):
        return
    for kept in shards:
        with (
            result.open(join(folder, "jsonl", f"{kept.shard.name}.jsonl.gz")) as stream,
            gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=6, mtime=0, filename="") as packed,
        ):
            for path, keep in kept.of_files():
                # A line in which the file is cut off is a broken record: there is nothing to copy.
                for line in _until_cut(source.lines(path), keep):
                    packed.write(line + b"\n")


def _until_cut(records: Iterator[Any], keep: np.ndarray) -> Iterator[Any]:
    """The kept ones of a file's records; where the file is cut off, those before."""
    try:
        yield from (record for record, wanted in zip(records, keep, strict=False) if wanted)
    except TruncatedFile:
        return


def _webdataset(work: Work, shards: list[KeptShard], folder: str, result: ResultWriter) -> None:
    """`webdataset/<shard>.tar`: the kept samples, with all files they have in the source."""
    for kept in shards:
        with (
            result.open(join(folder, "webdataset", f"{kept.shard.name}.tar")) as stream,
            tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        ):
            for path, keep in kept.of_files():
                for key, members in _until_cut(_samples(work, path), keep):
                    _add(tar, key, members)


def _samples(work: Work, path: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    source = work.pipeline.source
    if isinstance(source, WebDataset):
        return source.samples(path)
    return (_as_sample(record, path) for record in source.read(path)) if isinstance(source, Folder) else iter(())


def _as_sample(record: Record | Broken, path: str) -> tuple[str, dict[str, bytes]]:
    """A folder's image as a sample, its suffix a part of the key: `cat.png` is another item than `cat.jpg`."""
    head, slash, name = record.key.rpartition("/")
    # A dot would end the key.
    key = f"{head}{slash}{name.replace('.', '_')}"
    if isinstance(record, Broken) or not isinstance(record.payload, bytes):
        return key, {}
    members = {path.rpartition(".")[2].lower(): record.payload}
    caption = record.columns.get("caption")
    return key, {**members, "txt": str(caption).encode()} if caption is not None else members


def _add(tar: tarfile.TarFile, key: str, members: dict[str, bytes]) -> None:
    for suffix, content in members.items():
        member = tarfile.TarInfo(f"{key}.{suffix}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


WRITERS: dict[str, Writer] = {
    "parquet": _parquet,
    "keep_lists": _keep_lists,
    "csv": _csv,
    "jsonl": _jsonl,
    "webdataset": _webdataset,
}
"""A format's name and what writes it."""
