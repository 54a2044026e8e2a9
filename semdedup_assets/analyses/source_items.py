"""Read the contents of some items from their source again, and see that they are those that were embedded."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import Progress
from semdedup_assets.execution.shard_reader import change_of
from semdedup_assets.records import Record, content_hash, id_rows, id_shards, positions_by_shard
from semdedup_assets.sources import Source, Vectors
from semdedup_assets.sources.reading import ReadLimitError, ReadMeter
from semdedup_assets.sources.shard_index import Shard
from semdedup_assets.stages.embeddings import content_hashes
from semdedup_assets.storage.files import FileStat
from semdedup_assets.storage.overlap import calls_at_once, overlapped
from semdedup_assets.storage.results import ResultRecord

NOT_READ = "not read"
"""How the reason begins for which an item lies beyond a limit."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Why an item's content cannot be had."""

    reason: str


@dataclass
class ImageReader:
    """Reads the encoded images of some items, file by file, of each as little as its format allows.

    Attributes:
        context: of the pipeline.
        keys: the items' own names, by id; where the limit is reached, the first ones are read.
        limit: how much is read at most.
    """

    context: StageContext
    keys: Mapping[int, str]
    limit: "ReadLimit"
    _opened: set[str] = field(default_factory=set)

    @property
    def files_read(self) -> int:
        """How many files were read so far."""
        return len(self._opened)

    def __iter__(self) -> Iterator[tuple[int, bytes | Unavailable]]:
        """Each item whose shard is there once, in the order of the files: its image, or why that cannot be had."""
        source, wanted = self.context.pipeline.source, _wanted_files(self.context, list(self.keys))
        # Of a folder each image is a file, and of a store each costs several requests.
        at_once = calls_at_once(source.path) if source.kind == "folder" else 1
        read: Iterable[Iterable[tuple[int, bytes | Unavailable]]]
        read = overlapped(self._read_all, wanted, most=at_once) if at_once > 1 else map(self._read, wanted)
        with Progress(self.limit.setting.rpartition(".")[0], total=len(wanted), unit="files") as progress:
            for found in read:
                yield from found
                progress.advance()

    def _read_all(self, file: "WantedFile") -> list[tuple[int, bytes | Unavailable]]:
        return list(self._read(file))

    def _read(self, file: "WantedFile") -> Iterator[tuple[int, bytes | Unavailable]]:
        if (problem := self.limit.reached or _change(file)) is not None:
            yield from _none_of(file.items.values(), problem)
            return
        self._opened.add(file.path)
        for item, payload in read_wanted(self.context.pipeline.source, file, self.keys, self.limit):
            yield item, Unavailable(other_item(file.path)) if isinstance(payload, str) else payload


class ReadLimit:
    """How many MiB of a source are read at most.

    Attributes:
        setting: name of the setting that says so.
        meter: counts what is read.
    """

    def __init__(self, mib: int, setting: str) -> None:
        self.setting, self.meter = setting, ReadMeter(mib << 20)

    @classmethod
    def of_galleries(cls, context: StageContext) -> "ReadLimit":
        """The limit of a page, by `galleries.mib`."""
        return cls(context.pipeline.galleries.mib, "galleries.mib")

    @property
    def reason(self) -> str:
        """Why an item is not read that lies beyond the limit."""
        return f"{NOT_READ}: {self.meter.most >> 20:,} MiB of the source were read before it (`{self.setting}`)"

    @property
    def reached(self) -> str | None:
        """The reason, once no more may be read."""
        return self.reason if self.meter.is_spent else None


def read_wanted(
    source: Source, file: "WantedFile", keys: Mapping[int, str], limit: ReadLimit
) -> "Iterator[tuple[int, bytes | str | Unavailable]]":
    """The contents of the items that are wanted of a file, once each, or why one cannot be had.

    Args:
        source: that the file is of; one of images or texts.
        file: is read up to the last item wanted of it.
        keys: the items' own names, by id.
        limit: how much is read at most.
    """
    if isinstance(source, Vectors):
        yield from _none_of(file.items.values(), "the source holds vectors")
        return
    waiting = dict(file.items)
    try:
        for row, record in source.read_rows(file.path, file.items.keys(), limit.meter):
            item = waiting.pop(row)
            yield item, _payload(record, file, row, key=keys[item])
    except ReadLimitError:
        yield from _none_of(waiting.values(), limit.reason)
        return
    except (OSError, ValueError) as error:
        yield from _none_of(waiting.values(), f"{file.path} cannot be read ({error})")
        return
    yield from _none_of(waiting.values(), f"{_changed(file.path)}: it ends before this item")


def file_hashes(context: StageContext, ids: np.ndarray) -> np.ndarray:
    """What identifies the source file that each item lies in.

    Args:
        context: of the pipeline.
        ids: (n,) uint64.

    Returns:
        (n,) uint64, a hash of the file's path; 0 where the source no longer has the item.
    """
    found, shards = np.zeros(len(ids), np.uint64), {shard.index: shard for shard in context.shard_index.shards}
    for index, positions in positions_by_shard(ids):
        if index in shards:
            files = _ShardFiles.of(context, shards[index])
            hashes = np.array([*map(content_hash, files.paths), 0], np.uint64)
            inside = np.searchsorted(files.starts, id_rows(ids[positions]), side="right") - 1
            found[positions] = hashes[np.minimum(inside, len(files.paths))]
    return found


def _none_of(items: Iterable[int], reason: str) -> Iterator[tuple[int, Unavailable]]:
    for item in items:
        yield item, Unavailable(reason)


def other_item(path: str) -> str:
    """Why an item's content cannot be had where another one stands in its row."""
    return f"{_changed(path)}: it holds another item here"


def _payload(record: object, file: "WantedFile", row: int, *, key: str) -> bytes | str | Unavailable:
    if not isinstance(record, Record) or record.key != key or not isinstance(record.payload, bytes | str):
        return Unavailable(other_item(file.path))
    if content_hash(record.payload) != file.hashes[row]:
        return Unavailable(f"{_changed(file.path)}: the item holds other content")
    return record.payload


@dataclass
class WantedFile:
    """A source file of which some items are wanted.

    Attributes:
        path: of the file.
        stat: as it is in the shard index; None where it is not there.
        is_current: whether keys and vectors of its shard were read from the files as the shard index has them.
        items: ids by row in the file.
        hashes: of the content of each of these rows, as it was embedded.
    """

    path: str
    stat: FileStat | None
    is_current: bool
    items: dict[int, int] = field(default_factory=dict)
    hashes: dict[int, int] = field(default_factory=dict)


def _wanted_files(context: StageContext, ids: Sequence[int]) -> list[WantedFile]:
    """The files that hold the items, in the order of the first item of each."""
    array = np.array(ids, dtype=np.uint64)
    shards = {shard.index: _ShardFiles.of(context, shard) for shard in context.shard_index.shards}
    files: dict[str, WantedFile] = {}
    for item, shard, row in zip(ids, id_shards(array).tolist(), id_rows(array).tolist(), strict=True):
        located = shards[shard].locate(row) if shard in shards else None
        if located is not None:
            path, row_in_file = located
            file = files.setdefault(path, shards[shard].wanted(path))
            file.items[row_in_file] = item
            file.hashes[row_in_file] = shards[shard].content_hash(row)
    return list(files.values())


@dataclass(frozen=True)
class _ShardFiles:
    """Where the rows of a shard lie in its files, as its items were read.

    Attributes:
        shard: as the shard index has it now.
        paths: of the files that were read.
        starts: (files + 1,) the first row of each file, and the number of all rows.
        is_current: whether these are the files that there are now, also of the embeddings.
        embeddings: record of the embeddings; None where there are none.
    """

    shard: Shard
    paths: list[str]
    starts: np.ndarray
    is_current: bool
    embeddings: ResultRecord | None

    @classmethod
    def of(cls, context: StageContext, shard: Shard) -> "_ShardFiles":
        partition = Partition(shard=shard.name)
        items, embeddings = (context.index.record(stage, partition) for stage in ("items", "embeddings"))
        listed = items.details["files"] if items is not None else []
        is_current = all(
            record is not None and record.inputs["shards"] == shard.fingerprint for record in (items, embeddings)
        )
        starts = np.cumsum([0, *(rows for _, rows in listed)])
        return cls(shard, [path for path, _ in listed], starts, is_current, embeddings)

    @cached_property
    def _content_hashes(self) -> np.ndarray:
        return content_hashes(self.embeddings) if self.embeddings is not None else np.zeros(0, np.uint64)

    def content_hash(self, row: int) -> int:
        """Of the content of a row when it was embedded; 0 where it had none."""
        return int(self._content_hashes[row]) if row < len(self._content_hashes) else 0

    def locate(self, row: int) -> tuple[str, int] | None:
        """The file that holds a row of the shard, and the row in that file; None beyond the last."""
        index = int(np.searchsorted(self.starts, row, side="right")) - 1
        return (self.paths[index], row - int(self.starts[index])) if index < len(self.paths) else None

    def wanted(self, path: str) -> WantedFile:
        """One of its files, of which nothing is wanted yet."""
        stat = next((file for file in self.shard.files if file.path == path), None)
        return WantedFile(path, stat, self.is_current)


def _change(file: WantedFile) -> str | None:
    """Why a file no longer holds what was embedded; None where nothing shows that."""
    if not file.is_current or file.stat is None:
        return _changed(file.path)
    try:
        return change_of(file.stat)
    except OSError as error:
        return f"{file.path} cannot be read ({error})"


def _changed(path: str) -> str:
    return f"{path} changed since it was embedded"
