"""Read some items again to look at them: keys, captions and texts from the items' tables, images from the source."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from semdedup_assets.encoders.decoding import UndecodableImageError, rgb_image
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import find_items, item_keys
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import Progress
from semdedup_assets.execution.shard_reader import change_of
from semdedup_assets.records import Record, content_hash, id_rows, id_shards
from semdedup_assets.rendering.gallery import ItemCard
from semdedup_assets.sources import Source
from semdedup_assets.sources.shard_index import Shard
from semdedup_assets.stages.embeddings import content_hashes
from semdedup_assets.storage.files import FileStat
from semdedup_assets.storage.results import ResultRecord

# Of a thumbnail: pixels of its longer side, and JPEG quality.
_SIDE, _QUALITY = 160, 88
_MAX_TEXT, _MAX_CAPTION = 4000, 200


@dataclass
class ItemCards:
    """What there is to see of some items.

    Attributes:
        by_id: one card for every item that was asked for.
        files_read: source files that were read.
    """

    by_id: dict[int, ItemCard] = field(default_factory=dict)
    files_read: int = 0

    def set_unavailable(self, items: Sequence[int], reason: str) -> None:
        """Note why items cannot be seen."""
        for item in items:
            self.by_id[item] = replace(self.by_id[item], image=None, unavailable=reason)


def read_cards(context: StageContext, ids: Sequence[int]) -> ItemCards:
    """Fetch what there is to see of some items.

    Texts come from the items' tables of at most `galleries.files` shards. Images come from at most so many source
    files, each read up to the last image wanted of it and kept as a thumbnail. Where one cannot be had, its card says
    why.

    Args:
        context: of the pipeline.
        ids: of the items; where the limit is reached, the first ones are read.
    """
    wanted = list(dict.fromkeys(ids))
    found = ItemCards(_cards(context, wanted))
    if context.pipeline.source.content == "image":
        _read_images(context, _wanted_files(context, wanted), found)
    return found


def _cards(context: StageContext, ids: list[int]) -> dict[int, ItemCard]:
    """Cards with keys, captions and texts, in the order of the ids."""
    source, limit = context.pipeline.source, context.pipeline.galleries.files
    shard_of = dict(zip(ids, id_shards(np.array(ids, dtype=np.uint64)).tolist(), strict=True))
    first_shards = set(list(dict.fromkeys(shard_of.values()))[:limit])
    beyond = [item for item in ids if source.content == "text" and shard_of[item] not in first_shards]
    column = "text" if source.content == "text" else "caption"
    columns = [column] if column in source.column_types else []
    rows = find_items(context, set(ids) - set(beyond), columns)
    cards = {
        item: ItemCard(str(row["key"]), caption=_line(row.get("caption")), text=_head(row.get("text")))
        for item, row in rows.items()
    }
    reason = _beyond(limit, "shards")
    cards |= {item: ItemCard(str(row["key"]), unavailable=reason) for item, row in find_items(context, beyond).items()}
    names = item_keys(context, [item for item in ids if item not in cards])
    cards |= {item: ItemCard(name, unavailable="the source no longer has it") for item, name in names.items()}
    return {item: cards[item] for item in ids}


def _line(caption: str | None) -> str | None:
    return None if caption is None else " ".join(caption.split())[:_MAX_CAPTION]


def _head(text: str | None) -> str | None:
    if text is None or len(text) <= _MAX_TEXT:
        return text
    return f"{text[:_MAX_TEXT]}… ({len(text) - _MAX_TEXT:,} characters more)"


def _beyond(limit: int, what: str) -> str:
    return f"not read: lies beyond the {limit} {what} that are read (`galleries.files`)"


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


def _read_images(context: StageContext, files: list[WantedFile], found: ItemCards) -> None:
    most = context.pipeline.galleries.files
    sound = []
    for file in files[:most]:
        problem = _change(file)
        if problem is None:
            sound.append(file)
        else:
            found.set_unavailable(list(file.items.values()), problem)
    read_payloads(context.pipeline.source, sound, found)
    set_beyond(files[most:], found, most=most)


def read_payloads(source: Source, files: Sequence[WantedFile], found: ItemCards) -> None:
    """Read images or texts of some items, each file up to the last one wanted of it, into their cards.

    Args:
        source: that the files are of.
        files: each with the items that are wanted of it.
        found: has a card for each of them.
    """
    with Progress("galleries", total=len(files), unit="files") as progress:
        for file in files:
            _read_file(source, file, found)
            progress.advance()


def set_beyond(files: Sequence[WantedFile], found: ItemCards, *, most: int) -> None:
    """Note of the items of some files that these are not read, for so many others are."""
    for file in files:
        found.set_unavailable(list(file.items.values()), _beyond(most, "files"))


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


def _read_file(source: Source, file: WantedFile, found: ItemCards) -> None:
    found.files_read += 1
    waiting = dict(file.items)
    try:
        for row, record in _records(source, file):
            item = waiting.pop(row)
            found.by_id[item] = _with_payload(found.by_id[item], record, file, row)
    except (OSError, ValueError) as error:
        found.set_unavailable(list(waiting.values()), f"{file.path} cannot be read ({error})")
        return
    found.set_unavailable(list(waiting.values()), f"{_changed(file.path)}: it ends before this item")


def _records(source: Source, file: WantedFile) -> Iterator[tuple[int, object]]:
    """The wanted records of a file with their rows in it; what comes after the last of them is not read."""
    last = max(file.items)
    for row, record in enumerate(source.read(file.path)):
        if row in file.items:
            yield row, record
        if row == last:
            return


def _with_payload(card: ItemCard, record: object, file: WantedFile, row: int) -> ItemCard:
    if not isinstance(record, Record) or record.key != card.key or not isinstance(record.payload, bytes | str):
        return replace(card, unavailable=f"{_changed(file.path)}: it holds another item here")
    if content_hash(record.payload) != file.hashes[row]:
        return replace(card, unavailable=f"{_changed(file.path)}: the item holds other content")
    if isinstance(record.payload, str):
        return replace(card, text=_head(record.payload))
    try:
        return replace(card, image=_jpeg(record.payload))
    except UndecodableImageError as error:
        return replace(card, unavailable=str(error))


def _jpeg(payload: bytes) -> bytes:
    image = rgb_image(payload, shortest_side=None)
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
