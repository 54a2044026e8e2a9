"""How many items a source has, by reading little of it, and some of them to calibrate with."""

import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from semdedup_assets.records import Broken, Record, VectorBatch
from semdedup_assets.sources import Folder, TruncatedFile
from semdedup_assets.sources.catalogue import Shard
from semdedup_assets.sources.parquet import PARQUET
from semdedup_assets.sources.reading import file_name
from semdedup_assets.sources.tables import parquet_file
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.files import FileStat, open_file
from semdedup_assets.storage.results import MissingResultError

# What is read of one file, and of how many; of images in folders, each of which is a file, of more.
_HEAD_BYTES = 8 << 20
_FILES, _IMAGES = 8, 256
# Records that are held for the calibration, from each file.
_RECORDS = 4096

Item = Record | VectorBatch


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that was looked into.

    Attributes:
        path: where.
        items: how many it has.
        exact: whether they were counted; else they were extrapolated from its beginning.
        begin: items of its beginning, in order.
    """

    path: str
    items: float
    exact: bool
    begin: list[Item] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ItemCount:
    """How many items a source has.

    Attributes:
        by_shard: items by the shard's name.
        counted: how that is known, in words.
        exact: whether all were counted.
        files: those that were looked into, at least one.
    """

    by_shard: dict[str, int]
    counted: str
    exact: bool
    files: list[SourceFile]

    @property
    def items(self) -> int:
        """Of all shards."""
        return sum(self.by_shard.values())


def count_items(work: Work) -> ItemCount:
    """Count a source's items: those of embedded shards by their recipes, the others by some of their files.

    Args:
        work: the pipeline at work.

    Returns:
        Items by shard: exact, or extrapolated by the sizes of files.

    Raises:
        MissingResultError: the source has not been observed yet.
        ValueError: a file does not hold what the settings say.
        OSError: a file cannot be opened; names it.
    """
    shards = work.shards()
    known = {shard.name: count for shard in shards if (count := _embedded(work, shard)) is not None}
    unknown = [file for shard in shards if shard.name not in known for file in shard.files]
    everything = [file for shard in shards for file in shard.files]
    most = _IMAGES if isinstance(work.pipeline.source, Folder) else _FILES
    looked_into = [_look_into(work, file) for file in _spread(unknown or everything, most)]
    found = dict(known)
    sizes = {file.path: file.size for file in everything}
    rate = sum(file.items for file in looked_into) / max(1, sum(sizes[file.path] for file in looked_into))
    counts = {file.path: file.items for file in looked_into}
    for shard in shards:
        if shard.name not in known:
            found[shard.name] = round(sum(counts.get(file.path, _of_size(work, file, rate)) for file in shard.files))
    exact = all(file.exact for file in looked_into) and (
        len(looked_into) >= len(unknown) or isinstance(work.pipeline.source, Folder)
    )
    exact = exact or not unknown
    return ItemCount(found, _in_words(known, looked_into, unknown, exact=exact), exact, looked_into)


def _embedded(work: Work, shard: Shard) -> int | None:
    """Items of a shard that is embedded as its files are now."""
    try:
        recipe = work.embeddings(shard.name)
    except MissingResultError:
        return None
    return int(recipe.details["items"]) if recipe.made_from.get("shards") == shard.fingerprint else None


def _of_size(work: Work, file: FileStat, items_per_byte: float) -> float:
    return 1 if isinstance(work.pipeline.source, Folder) else file.size * items_per_byte


def _in_words(known: dict[str, int], files: Sequence[SourceFile], unknown: Sequence[FileStat], *, exact: bool) -> str:
    embedded = f"{len(known)} embedded shards by their recipes" if known else ""
    if not unknown:
        return f"exact: {embedded}"
    kind = "exact" if exact else "extrapolated by size"
    others = f"{kind}: {len(files)} of {len(unknown)} files of shards that are not embedded were looked into"
    return f"{embedded}; {others}" if embedded else others


def _spread(files: Sequence[FileStat], most: int) -> list[FileStat]:
    """Files at even distances, the first and the last among them."""
    places = np.unique(np.linspace(0, len(files) - 1, min(most, len(files))).round().astype(int))
    return [files[place] for place in places]


def _look_into(work: Work, file: FileStat) -> SourceFile:
    """Count a file's items where its format tells, or where it is small; else by its beginning."""
    stated = _stated(work, file.path)
    if stated is not None:
        with closing(_items(work, file.path)) as items:
            return SourceFile(file.path, stated, exact=True, begin=list(_bounded(items)))
    if file.size <= _HEAD_BYTES:
        begin = list(_items(work, file.path))
        return SourceFile(file.path, count_rows(begin), exact=True, begin=begin[:_RECORDS])
    begin = _head(work, file.path)
    return SourceFile(file.path, count_rows(begin) * file.size / _HEAD_BYTES, exact=False, begin=begin[:_RECORDS])


def _stated(work: Work, path: str) -> int | None:
    """How many items a file says it has; None where only reading tells."""
    if isinstance(work.pipeline.source, Folder):
        return 1
    name = path.lower()
    try:
        if name.endswith(".npy"):
            with open_file(path) as stream:
                return _npy_rows(stream)
        if name.endswith(PARQUET):
            with parquet_file(path) as table:
                return int(table.metadata.num_rows)
    except TruncatedFile:
        return 0
    return None


def _npy_rows(stream: Any) -> int:
    form = np.lib.format
    try:
        read = form.read_array_header_1_0 if form.read_magic(stream) == (1, 0) else form.read_array_header_2_0
        return int(read(stream)[0][0])
    except (ValueError, EOFError, IndexError):
        # Damaged, or no table of vectors: reading it says what is wrong, or lists it as broken.
        return 0


def _items(work: Work, path: str) -> Generator[Item, None, None]:
    """The items of a file that are not broken."""
    return (record for record in work.pipeline.source.read(path) if not isinstance(record, Broken))


def _bounded(items: Iterator[Item]) -> Iterator[Item]:
    """Items until they are enough to calibrate with."""
    held = 0
    for item in islice(items, _RECORDS):
        yield item
        held += item.vectors.nbytes if isinstance(item, VectorBatch) else len(item.payload)
        if held >= _HEAD_BYTES:
            return


def count_rows(items: Sequence[Item]) -> int:
    """Items in a list of records or batches of vectors."""
    return sum(len(item.keys) if isinstance(item, VectorBatch) else 1 for item in items)


def _head(work: Work, path: str) -> list[Item]:
    """The items in the first bytes of a large file: a copy of these is read as the cut-off file that it is."""
    with tempfile.TemporaryDirectory() as folder, open_file(path) as stream:
        copy = Path(folder) / file_name(path)
        copy.write_bytes(stream.read(_HEAD_BYTES))
        return list(_items(work, str(copy)))
