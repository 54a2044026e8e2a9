"""The formats of a manifest, each for its reader."""

import codecs
import csv
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from semdedup_assets.execution.context import StageContext
from semdedup_assets.records import Invalid, Record, is_unicode
from semdedup_assets.sources import Folder, JsonLines, WebDataset
from semdedup_assets.sources.packing import packed
from semdedup_assets.stages.filtered_files import write_filtered
from semdedup_assets.stages.kept_rows import KeptShard, ShardRows, kept_and_removed_rows, kept_rows
from semdedup_assets.stages.manifest_names import MOST_CAPTION, SampleKeys, caption_cell, escaped, sample_suffixes
from semdedup_assets.stages.manifest_rows import CountingFolder, has_header
from semdedup_assets.stages.manifest_tables import kept_table, removed_table
from semdedup_assets.stages.source_copies import kept_records
from semdedup_assets.storage.results import ResultWriter
from semdedup_assets.storage.tables import TableWriter

_TAR_BUFFER = 1 << 20
# How half a surrogate pair begins, as an escape or in bytes: Python's JSON reads it, and others refuse the whole file.
_MAYBE_SURROGATE = (b"\\ud", b"\\uD", b"\xed")
_SURROGATE = re.compile("[\ud800-\udfff]")

Counts = dict[str, int]
"""What a format changed, or counted as it was written, by name."""

Writer = Callable[[StageContext, KeptShard, CountingFolder], Counts]
"""Writes the files of a format that reads the source again."""

TakeRows = Callable[[ShardRows, ShardRows], None]
"""Writes some kept, and some removed, records."""

ItemFormat = Callable[[StageContext, KeptShard, ResultWriter], AbstractContextManager[TakeRows]]
"""Opens the files of a format that is made of a shard's items."""


@contextmanager
def _parquet(context: StageContext, kept: KeptShard, result: ResultWriter) -> Iterator[TakeRows]:
    """`parquet/<shard>.parquet`: the kept items."""
    with result.open(f"parquet/{kept.shard.name}.parquet") as stream, TableWriter(stream) as writer:
        yield lambda stay, _: writer.write_arrow(kept_table(context, kept, stay))


@contextmanager
def _removed(context: StageContext, kept: KeptShard, result: ResultWriter) -> Iterator[TakeRows]:
    """`removed/<shard>.parquet`: the removed items, each with the kept one that stands for it."""
    with result.open(f"removed/{kept.shard.name}.parquet") as stream, TableWriter(stream) as writer:
        yield lambda _, go: writer.write_arrow(removed_table(context, kept, go))


@contextmanager
def _keep_lists(_: StageContext, kept: KeptShard, result: ResultWriter) -> Iterator[TakeRows]:
    """`keep_lists/<shard>.tsv`: file, row in the file and key of each kept item, escaped by `escaped`."""
    names = [escaped(path) for path in kept.paths]
    with result.open(f"keep_lists/{kept.shard.name}.tsv") as stream:

        def write(stay: ShardRows, _: ShardRows) -> None:
            columns = stay.files.tolist(), stay.file_rows.tolist(), stay.table.column("key").to_pylist()
            lines = (f"{names[file]}\t{row}\t{escaped(key)}\n" for file, row, key in zip(*columns, strict=True))
            stream.write("".join(lines).encode())

        yield write


ITEM_FORMATS: dict[str, ItemFormat] = {"parquet": _parquet, "removed": _removed, "keep_lists": _keep_lists}
"""The formats that are made of a shard's items alone."""


def write_shard(context: StageContext, kept: KeptShard, result: CountingFolder) -> Counts:
    """Write what one shard gives to the formats with files for each shard; `ITEM_FORMATS` read its items once."""
    found: Counts = {}
    formats = [ITEM_FORMATS[name] for name in context.pipeline.manifests if name in ITEM_FORMATS]
    with ExitStack() as files:
        takers = [files.enter_context(each(context, kept, result)) for each in formats]
        for stay, go in kept_and_removed_rows(kept) if takers else ():
            for take in takers:
                take(stay, go)
    for name in context.pipeline.manifests:
        if name in SOURCE_FORMATS:
            found |= SOURCE_FORMATS[name](context, kept, result)
    return found


def write_csv(shards: Iterable[KeptShard], result: ResultWriter, name: str) -> Counts:
    """`open_clip.csv`: path and caption of each kept image, separated by a tab, as OpenCLIP's CSV loader reads it.

    Images whose file name is not UTF-8 are left out: the loader would read none of the file.

    Args:
        shards: whose images it names.
        result: takes the file.
        name: of the file, or of a part of it.
    """
    shortened = 0
    with result.open(name) as stream:
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter="\t", lineterminator="\n")
        # Python before 3.11.9 and 3.12.3 leaves a lone carriage return unquoted, which ends a row for a reader.
        quoting = csv.writer(text, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_ALL)
        if has_header(name):
            writer.writerow(["filepath", "title"])
        for kept in shards:
            paths = kept.paths
            for part in kept_rows(kept, ["caption"]):
                for file, caption in zip(part.files.tolist(), part.table.column("caption").to_pylist(), strict=True):
                    path = paths[file]
                    if is_unicode(path):
                        cell = caption_cell(None if caption is None else str(caption))
                        shortened += len(str(caption)) > MOST_CAPTION <= len(cell)
                        (quoting if "\r" in path else writer).writerow((path, cell))
                stream.write(text.getvalue().encode())
                text.seek(0)
                text.truncate()
        stream.write(text.getvalue().encode())
    return {"shortened_captions": shortened}


def _jsonl(context: StageContext, kept: KeptShard, result: ResultWriter) -> Counts:
    """`jsonl/<shard>.jsonl.gz`: the source's own lines of the kept items, each a line to every reader."""
    source, repaired = context.pipeline.source, 0
    if not isinstance(source, JsonLines):
        return {}
    with result.open(f"jsonl/{kept.shard.name}.jsonl.gz") as stream, packed(stream, "gzip") as lines:
        for line in kept_records(kept, source.lines, source.texts_in):
            written = _line(line)
            repaired += "\ufffd".encode() in written and "\ufffd".encode() not in line
            lines.write(written + b"\n")
    return {"repaired_lines": repaired}


def _line(line: bytes) -> bytes:
    """A line of JSON that every reader takes for one line of JSON.

    It loses a byte order mark, which readers know at a file's head only, and carriage returns, which JSON has between
    values only and which end a line for some readers. Halves of surrogate pairs become U+FFFD.
    """
    plain = line.removeprefix(codecs.BOM_UTF8).strip().replace(b"\r", b" ")
    if not any(sign in plain for sign in _MAYBE_SURROGATE):
        return plain
    document = json.dumps(json.loads(plain), ensure_ascii=False)
    return _SURROGATE.sub("\ufffd", document).encode() if _SURROGATE.search(document) else plain


def _webdataset(context: StageContext, kept: KeptShard, result: ResultWriter) -> Counts:
    """`webdataset/<shard>.tar`: the kept samples, with all files they have in the source.

    `samples/<shard>.tsv` beside it: key in the tar, file, row in the file and key in the source of each sample.
    """
    keys = SampleKeys()
    with (
        result.open(f"samples/{kept.shard.name}.tsv") as listed,
        result.open(f"webdataset/{kept.shard.name}.tar") as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_TAR_BUFFER) as tar,
    ):
        for (row, path, file_row, name, caption), record in zip(_items(kept), _samples(context, kept), strict=True):
            key = keys.add(name, row)
            members = _members(record, path, caption)
            for suffix, content in zip(sample_suffixes(list(members)), members.values(), strict=True):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            listed.write(f"{escaped(key)}\t{escaped(path)}\t{file_row}\t{escaped(name)}\n".encode())
    return {"renamed_samples": keys.renamed}


def _items(kept: KeptShard) -> Iterator[tuple[int, str, int, str, str | None]]:
    """Row, path, row in the file, key and caption of each kept item."""
    paths = kept.paths
    for part in kept_rows(kept, ["key", "caption"]):
        columns = [part.table.column(name).to_pylist() for name in ("key", "caption")]
        names = [paths[file] for file in part.files]
        yield from zip(part.rows.tolist(), names, part.file_rows.tolist(), *columns, strict=True)


def _samples(context: StageContext, kept: KeptShard) -> Iterator[Any]:
    """What the source has of each kept item: an image, or all files of a sample by their suffixes."""
    source = context.pipeline.source
    if isinstance(source, WebDataset):
        # Which of a sample's images is embedded is the source's to know: it is among them.
        return (members for _, members in kept_records(kept, source.samples, lambda sample: sample[1].values()))
    if isinstance(source, Folder):
        return kept_records(kept, source.read, _image)
    return iter(())


def _image(record: Record | Invalid) -> Iterable[bytes]:
    return [record.payload] if isinstance(record, Record) and isinstance(record.payload, bytes) else []


def _members(record: dict[str, bytes] | Record, path: str, caption: object) -> dict[str, bytes]:
    """The files of a sample by their suffixes; a folder's image comes with the caption that its item has."""
    if isinstance(record, dict):
        return record
    members = {path.rpartition(".")[2].lower(): b"".join(_image(record))}
    return members if caption is None else {**members, "txt": str(caption).encode()}


SOURCE_FORMATS: dict[str, Writer] = {"jsonl": _jsonl, "webdataset": _webdataset, "filtered": write_filtered}
"""The formats that copy records of the source, which is read again for that."""

COPIES = frozenset(SOURCE_FORMATS)
