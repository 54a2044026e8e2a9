"""Read some items again, to be looked at: names and texts from the embeddings, images from the source."""

import glob
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from semdedup_assets.encoders.decoding import UndecodableImageError, rgb_image
from semdedup_assets.figures.gallery import Exhibit
from semdedup_assets.records import Record, id_rows, id_shards
from semdedup_assets.sources.catalogue import Shard
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.files import FileStat, exists, list_files
from semdedup_assets.storage.results import Recipe
from semdedup_assets.storage.vectors import read_columns

_SIDE, _QUALITY = 160, 88
_TEXT = 4000


@dataclass
class Exhibits:
    """Items to be looked at.

    Attributes:
        by_id: one for every item that was asked for.
        files_read: source files that were read.
    """

    by_id: dict[int, Exhibit] = field(default_factory=dict)
    files_read: int = 0

    def say_absent(self, items: Sequence[int], reason: str) -> None:
        """Say why items cannot be seen."""
        for item in items:
            self.by_id[item] = replace(self.by_id[item], image=None, absent=reason)


def read_exhibits(work: Work, embeddings: Mapping[str, Recipe], ids: Sequence[int]) -> Exhibits:
    """Fetch what there is to see of some items.

    Texts come from the embeddings, where each is carried. Images come from at most `galleries.files` source files,
    each read up to the last image wanted of it and kept as a thumbnail. What cannot be had is said in its place.

    Args:
        work: the pipeline at work.
        embeddings: recipe of every shard's embeddings.
        ids: of the items; where the limit is reached, the first ones are read.
    """
    wanted = list(dict.fromkeys(ids))
    by_shard: dict[int, list[int]] = {}
    for item, shard in zip(wanted, id_shards(np.array(wanted, dtype=np.uint64)).tolist(), strict=True):
        by_shard.setdefault(shard, []).append(item)
    found = Exhibits()
    shards = {shard.index: shard for shard in work.shards()}
    for place, (index, items) in enumerate(by_shard.items()):
        within = place < work.pipeline.galleries.files
        found.by_id |= _carried(work, shards[index].name, items, texts=within)
    if work.pipeline.source.content == "image":
        _read_images(work, _by_file(shards, embeddings, wanted), found)
    return found


def item_keys(work: Work, ids: Sequence[int]) -> dict[int, str]:
    """The source's own names of some items, by id.

    Args:
        work: the pipeline at work.
        ids: of the items; one that is not among the embeddings of now is named by its shard and row.
    """
    array = np.array(ids, dtype=np.uint64)
    names, by_shard = dict[int, str](), dict[int, list[int]]()
    for item, shard, row in zip(ids, id_shards(array).tolist(), id_rows(array).tolist(), strict=True):
        names[item] = f"shard {shard}, row {row}"
        by_shard.setdefault(shard, []).append(item)
    for shard in (shard for shard in work.shards() if shard.index in by_shard):
        if exists(work.layout.embeddings(shard.name)):
            found = _carried(work, shard.name, by_shard[shard.index], texts=False)
            names |= {item: exhibit.key for item, exhibit in found.items()}
    return names


def _carried(work: Work, shard: str, items: list[int], *, texts: bool) -> dict[int, Exhibit]:
    """What the embeddings of a shard say of items."""
    has_texts = work.pipeline.source.content == "text"
    columns = ["caption"] if "caption" in work.pipeline.source.column_types and not has_texts else []
    columns += ["text"] if has_texts and texts else []
    ids, found = np.array(items, dtype=np.uint64), dict[int, Exhibit]()
    for batch in read_columns(work.layout.embeddings(shard), ["id", "key", *columns]):
        rows = np.flatnonzero(np.isin(batch.column("id").to_numpy(), ids))
        chosen = {name: batch.column(name).take(rows).to_pylist() for name in ["id", "key", *columns]}
        for row, item in enumerate(chosen["id"]):
            found[item] = Exhibit(
                chosen["key"][row],
                caption=_line(chosen["caption"][row]) if "caption" in chosen else None,
                text=_begin(chosen["text"][row]) if "text" in chosen else None,
                absent=None if texts or not has_texts else _beyond(work, "shards"),
            )
    return found


def _line(caption: object) -> str | None:
    return " ".join(str(caption).split())[:200] if caption is not None else None


def _begin(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}… ({len(text) - _TEXT:,} characters more)"


def _beyond(work: Work, what: str) -> str:
    return f"not read: lies beyond the {work.pipeline.galleries.files} {what} that are read (`galleries.files`)"


@dataclass
class _WantedFile:
    """Items of one source file: which record each is, and what is known against reading it."""

    path: str
    stat: FileStat | None
    embedded: bool
    records: dict[int, int] = field(default_factory=dict)


def _by_file(shards: Mapping[int, Shard], embeddings: Mapping[str, Recipe], ids: list[int]) -> list[_WantedFile]:
    """The files that hold the items, in the order of the first item of each."""
    array = np.array(ids, dtype=np.uint64)
    files: dict[tuple[int, int], _WantedFile] = {}
    for item, index, row in zip(ids, id_shards(array).tolist(), id_rows(array).tolist(), strict=True):
        shard = shards[index]
        recipe = embeddings[shard.name]
        listed = recipe.details["files"]
        starts = np.cumsum([0, *(records for _, records in listed)])
        at = int(np.searchsorted(starts, row, side="right")) - 1
        if (index, at) not in files:
            path = str(listed[at][0])
            stat = next((file for file in shard.files if file.path == path), None)
            files[index, at] = _WantedFile(path, stat, recipe.made_from["shards"] == shard.fingerprint)
        files[index, at].records[row - int(starts[at])] = item
    return list(files.values())


def _read_images(work: Work, files: list[_WantedFile], found: Exhibits) -> None:
    most = work.pipeline.galleries.files
    with work.progress("galleries", total=min(most, len(files)), unit="files") as progress:
        for file in files[:most]:
            problem = _changed(file)
            if problem:
                found.say_absent(list(file.records.values()), problem)
            else:
                _read_file(work, file, found)
            progress.advance(1)
    for file in files[most:]:
        found.say_absent(list(file.records.values()), _beyond(work, "files"))


def _changed(file: _WantedFile) -> str | None:
    """Why a file no longer holds what was embedded; None where nothing says so."""
    changed = f"{file.path} changed since it was embedded"
    try:
        now = list_files(_literal(file.path))
    except OSError as error:
        return f"{file.path} cannot be read ({error})"
    if not now:
        return f"{file.path} is no longer there"
    if not file.embedded or file.stat is None:
        return changed
    # A stamp may also cover what lies beside the file; its own comes first.
    same = now[0].size == file.stat.size and file.stat.stamp.startswith(now[0].stamp)
    return None if same else changed


def _literal(path: str) -> str:
    protocol, separator, name = path.rpartition("://")
    return f"{protocol}{separator}{glob.escape(name)}"


def _read_file(work: Work, file: _WantedFile, found: Exhibits) -> None:
    found.files_read += 1
    waiting = dict(file.records)
    try:
        for row, record in _records(work, file):
            item = waiting.pop(row)
            found.by_id[item] = _with_image(found.by_id[item], record, file.path)
    except (OSError, ValueError) as error:
        found.say_absent(list(waiting.values()), f"{file.path} cannot be read ({error})")
        return
    found.say_absent(list(waiting.values()), f"{file.path} changed since it was embedded: it ends before this item")


def _records(work: Work, file: _WantedFile) -> Iterator[tuple[int, object]]:
    """The wanted records of a file with their rows in it; what comes after the last of them is not read."""
    last = max(file.records)
    for row, record in enumerate(work.pipeline.source.read(file.path)):
        if row in file.records:
            yield row, record
        if row == last:
            return


def _with_image(exhibit: Exhibit, record: object, path: str) -> Exhibit:
    if not isinstance(record, Record) or record.key != exhibit.key or not isinstance(record.payload, bytes):
        return replace(exhibit, absent=f"{path} changed since it was embedded: it holds another item here")
    try:
        return replace(exhibit, image=_jpeg(record.payload))
    except UndecodableImageError as error:
        return replace(exhibit, absent=str(error))


def _jpeg(payload: bytes) -> bytes:
    image = rgb_image(payload, shortest_side=None)
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
