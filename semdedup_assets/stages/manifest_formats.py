"""The formats of a manifest, each for its reader."""

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import items_file
from semdedup_assets.records import Invalid, Record
from semdedup_assets.sources import Folder, JsonLines, WebDataset
from semdedup_assets.sources.reading import TruncatedFile
from semdedup_assets.sources.shard_index import Shard
from semdedup_assets.storage.results import ResultRecord, ResultWriter
from semdedup_assets.storage.tables import TableWriter, arrow_type, read_arrow

if TYPE_CHECKING:
    import pyarrow as pa

# The CSV loader would read an empty title as the word "nan".
_NO_CAPTION = " "

Writer = Callable[[StageContext, "KeptShard", ResultWriter], None]


@dataclass(frozen=True, slots=True)
class KeptShard:
    """Which records of a shard are kept.

    Attributes:
        shard: the shard.
        items: record of its items.
        kept: (records,) bool, by row.
        unlisted: how many items the masks hold, and keep, of a shard whose keys and columns could not be read.
    """

    shard: Shard
    items: ResultRecord
    kept: np.ndarray
    unlisted: tuple[int, int] = (0, 0)

    @property
    def files(self) -> list[tuple[str, int]]:
        """Path and number of records of each of its files, in order."""
        return [(str(path), int(rows)) for path, rows in self.items.details["files"]]

    def of_files(self) -> Iterator[tuple[str, np.ndarray]]:
        """Path and (records,) bool of each file."""
        start = 0
        for path, rows in self.files:
            yield path, self.kept[start : start + rows]
            start += rows


def kept_batches(context: StageContext, kept: KeptShard) -> Iterator["pa.Table"]:
    """The kept items of a shard: id, shard, row, file, file_row, key and the carried columns, in the source's order."""
    import pyarrow as pa

    starts = np.concatenate([[0], np.cumsum([rows for _, rows in kept.files])]).astype(np.int64)
    names = pa.array([path for path, _ in kept.files], pa.string())
    schema, first = _schema(context), 0
    for table in read_arrow(items_file(kept.items)):
        rows = np.flatnonzero(kept.kept[first : first + len(table)]) + first
        chosen = table.take(rows - first)
        file = np.searchsorted(starts, rows, side="right") - 1
        located = {
            "shard": pa.array([kept.shard.name] * len(rows), pa.string()),
            "row": pa.array(rows),
            "file": names.take(pa.array(file)),
            "file_row": pa.array(rows - starts[file]),
        }
        arrays = [located[name] if name in located else chosen.column(name) for name in schema.names]
        yield pa.table(arrays, schema=schema)
        first += len(table)


def _schema(context: StageContext) -> "pa.Schema":
    """The same for all shards, also for one of which nothing is kept."""
    import pyarrow as pa

    located = {"id": pa.uint64(), "shard": pa.string(), "row": pa.int64(), "file": pa.string(), "file_row": pa.int64()}
    carried = [pa.field(name, arrow_type(kind)) for name, kind in context.pipeline.source.column_types.items()]
    return pa.schema([*pa.schema(located), pa.field("key", pa.string()), *carried])


def _parquet(context: StageContext, kept: KeptShard, result: ResultWriter) -> None:
    """`parquet/<shard>.parquet`: identity, key and carried columns of each kept item."""
    with result.open(f"parquet/{kept.shard.name}.parquet") as stream, TableWriter(stream) as writer:
        for table in kept_batches(context, kept):
            writer.write_arrow(table)


def _keep_lists(context: StageContext, kept: KeptShard, result: ResultWriter) -> None:
    """`keep_lists/<shard>.tsv`: file, row in the file and key of each kept item; tabs in keys are escaped as in JSON."""
    with result.open(f"keep_lists/{kept.shard.name}.tsv") as stream:
        for batch in kept_batches(context, kept):
            columns = [batch.column(name).to_pylist() for name in ("file", "file_row", "key")]
            lines = (f"{file}\t{row}\t{_escaped(key)}\n" for file, row, key in zip(*columns, strict=True))
            stream.write("".join(lines).encode())


def _escaped(key: str) -> str:
    return key if key.isprintable() else json.dumps(key, ensure_ascii=False)[1:-1]


def write_csv(context: StageContext, shards: Sequence[KeptShard], result: ResultWriter) -> None:
    """`open_clip.csv`: path and caption of each kept image, separated by a tab, as OpenCLIP's CSV loader reads it."""
    with result.open("open_clip.csv") as stream:
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter="\t", lineterminator="\n")
        writer.writerow(["filepath", "title"])
        for kept in shards:
            for batch in kept_batches(context, kept):
                paths, captions = batch.column("file").to_pylist(), batch.column("caption").to_pylist()
                writer.writerows((path, caption or _NO_CAPTION) for path, caption in zip(paths, captions, strict=True))
                stream.write(text.getvalue().encode())
                text.seek(0)
                text.truncate()
        stream.write(text.getvalue().encode())


def _jsonl(context: StageContext, kept: KeptShard, result: ResultWriter) -> None:
    """`jsonl/<shard>.jsonl.gz`: the source's own lines of the kept items, byte for byte."""
    source = context.pipeline.source
    if not isinstance(source, JsonLines):
        return
    with (
        result.open(f"jsonl/{kept.shard.name}.jsonl.gz") as stream,
        gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=6, mtime=0, filename="") as packed,
    ):
        for path, keep in kept.of_files():
            # A line in which the file is cut off is an invalid record: there is nothing to copy.
            for line in _until_cut(source.lines(path), keep):
                packed.write(line + b"\n")


def _until_cut(records: Iterator[Any], keep: np.ndarray) -> Iterator[Any]:
    """The kept ones of a file's records; where the file is cut off, those before."""
    try:
        yield from (record for record, wanted in zip(records, keep, strict=False) if wanted)
    except TruncatedFile:
        return


def _webdataset(context: StageContext, kept: KeptShard, result: ResultWriter) -> None:
    """`webdataset/<shard>.tar`: the kept samples, with all files they have in the source."""
    with (
        result.open(f"webdataset/{kept.shard.name}.tar") as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path, keep in kept.of_files():
            for key, members in _until_cut(_samples(context, path), keep):
                for suffix, content in members.items():
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def _samples(context: StageContext, path: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    source = context.pipeline.source
    if isinstance(source, WebDataset):
        return source.samples(path)
    if isinstance(source, Folder):
        captions = (item.columns.get("caption") for item in source.read_items(path))
        return (_as_sample(record, path, caption) for record, caption in zip(source.read(path), captions, strict=True))
    return iter(())


def _as_sample(record: Record | Invalid, path: str, caption: object) -> tuple[str, dict[str, bytes]]:
    """A folder's image as a sample, its suffix a part of the key: `cat.png` is another item than `cat.jpg`."""
    head, slash, name = record.key.rpartition("/")
    # A dot would end the key.
    key = f"{head}{slash}{name.replace('.', '_')}"
    if isinstance(record, Invalid) or not isinstance(record.payload, bytes):
        return key, {}
    members = {path.rpartition(".")[2].lower(): record.payload}
    return key, {**members, "txt": str(caption).encode()} if caption is not None else members


SHARD_FORMATS: dict[str, Writer] = {
    "parquet": _parquet,
    "keep_lists": _keep_lists,
    "jsonl": _jsonl,
    "webdataset": _webdataset,
}
"""The formats with a file for each shard, and what writes it."""
