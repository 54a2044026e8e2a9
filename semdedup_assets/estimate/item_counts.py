"""How many items a source has, by reading little of it; what was read serves to time the encoder."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.held_out import remaining_share
from semdedup_assets.records import Invalid, Record, VectorBatch
from semdedup_assets.sources import Folder, TruncatedFile
from semdedup_assets.sources.reading import file_name
from semdedup_assets.sources.stated_rows import stated_rows
from semdedup_assets.storage.files import FileStat, open_file

# What is read of one file, and of how many; of images in folders, each of which is a file, of more.
_HEAD_BYTES, _HEAD_RECORDS = 8 << 20, 4096
_FILES, _IMAGES = 8, 256

T = TypeVar("T")

Payload = Record | VectorBatch
"""What an encoder embeds."""


@dataclass(frozen=True, slots=True)
class FileHead:
    """What was read of a file: its first valid records, seconds an item, and how many items the whole file has."""

    file: FileStat
    items: float
    exact: bool
    item_seconds: float
    records: list[Payload] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ItemCount:
    """Items by the shard's name; in words how they were counted, whether exactly; and the files that were read."""

    by_shard: dict[str, int]
    counted: str
    exact: bool
    heads: list[FileHead]

    @property
    def items(self) -> int:
        """Of all shards."""
        return sum(self.by_shard.values())


def count_items(context: StageContext) -> ItemCount:
    """Count the items to embed: those of embedded shards by their records, the others by the heads of some files.

    Raises:
        MissingResultError: the source has not been observed yet.
        ValueError: a file does not hold what the settings say.
        OSError: a file cannot be opened; names it.
    """
    folder, shards = isinstance(context.pipeline.source, Folder), {shard.name: shard for shard in context.shards}
    found = {
        partition.required_shard: int(record.details["items"])
        for partition, record in context.index.records("embeddings").items()
        if record.inputs.get("shards") == shards[partition.required_shard].fingerprint
    }
    known = [f"{len(found)} embedded shards by their records"] if found else []
    unknown = [file for shard in context.shards if shard.name not in found for file in shard.files]
    files = unknown or [file for shard in context.shards for file in shard.files]
    heads = [_head(context, file) for file in spread(files, _IMAGES if folder else _FILES)]
    if not unknown:
        return ItemCount(found, f"exact: {known[0]}", exact=True, heads=heads)
    counted = {head.file.path: head.items for head in heads}
    remaining = remaining_share(context.pipeline)
    per_byte = sum(counted.values()) / max(1, sum(head.file.size for head in heads))
    for name in shards.keys() - found.keys():
        items = (counted.get(file.path, 1 if folder else file.size * per_byte) for file in shards[name].files)
        found[name] = round(sum(items) * remaining)
    exact = all(head.exact for head in heads) and (folder or len(heads) == len(unknown)) and remaining == 1
    kind = "exact" if exact else "extrapolated by size" if remaining == 1 else "extrapolated, without held-out items"
    others = f"{kind}: {len(heads)} of {len(unknown)} files of shards that are not embedded were looked into"
    return ItemCount(found, "; ".join([*known, others]), exact, heads)


def spread(values: Sequence[T], most: int) -> list[T]:
    """At most so many values at even distances, the first and the last among them."""
    last, count = len(values) - 1, min(most, len(values))
    return [values[round(index * last / max(1, count - 1))] for index in range(count)]


def row_count(records: Sequence[Payload]) -> int:
    """Items in a list of records or batches of vectors."""
    return sum(len(each.keys) if isinstance(each, VectorBatch) else 1 for each in records)


def _head(context: StageContext, file: FileStat) -> FileHead:
    """Count a file's items where its format states them, or where it is small; else by its head."""
    stated, started = _stated_items(context, file.path), time.perf_counter()
    whole = stated is not None or file.size <= _HEAD_BYTES
    records, size = list[Payload](), 0
    with tempfile.TemporaryDirectory() as folder:
        path = file.path
        if not whole:
            # A copy of the head is read as the cut-off file that it is.
            path = str(Path(folder) / file_name(path))
            with open_file(file.path) as stream:
                Path(path).write_bytes(stream.read(_HEAD_BYTES))
        # What is cut off ends with an error after the records before.
        with suppress(TruncatedFile):
            for index, record in enumerate(context.pipeline.source.read(path)):
                if stated is not None and (size >= _HEAD_BYTES or index >= _HEAD_RECORDS):
                    break
                if not isinstance(record, Invalid):
                    size += record.vectors.nbytes if isinstance(record, VectorBatch) else len(record.payload)
                    records.append(record)
    count = row_count(records)
    items = float(count if stated is None else stated) if whole else count * file.size / _HEAD_BYTES
    return FileHead(file, items, whole, (time.perf_counter() - started) / max(1, count), records[:_HEAD_RECORDS])


def _stated_items(context: StageContext, path: str) -> int | None:
    """How many items a file says it has; None where only reading tells."""
    return 1 if isinstance(context.pipeline.source, Folder) else stated_rows(path)
