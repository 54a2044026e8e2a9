"""Which records of each shard a kept set keeps, in the order of the source."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from semdedup_assets.execution.chunks import contiguous_chunks
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import items_file
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.shard_reader import SourceChangedError
from semdedup_assets.records import is_unicode, item_ids, positions_by_shard
from semdedup_assets.sources.reading import printable
from semdedup_assets.sources.shard_index import Shard
from semdedup_assets.stages.item_groups import EVERY_SHARD, NO_GROUP, ItemGroups, KeptKeys
from semdedup_assets.stages.keep_masks import REMOVED_BY, mask_files
from semdedup_assets.stages.mask_adjustments import removing_references
from semdedup_assets.storage.overlap import calls_at_once, overlapped
from semdedup_assets.storage.results import MissingResultError, ResultRecord
from semdedup_assets.storage.tables import read_arrow

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class ChosenShard:
    """Some records of a shard.

    Attributes:
        shard: the shard.
        items: record of its items.
        embeddings: record of its embeddings, which were made from the same state of the source.
        kept: (records,) bool, by row, which they are.
    """

    shard: Shard
    items: ResultRecord
    embeddings: ResultRecord
    kept: np.ndarray

    def of_files(self) -> Iterator[tuple[str, int, np.ndarray]]:
        """Path, row of its first record and (records,) bool of each file, in order."""
        first = 0
        for path, rows in self.items.details["files"]:
            yield str(path), first, self.kept[first : first + int(rows)]
            first += int(rows)


class ItemFiles:
    """Which file of the source each item lies in, of all shards: 16 bytes for each file, once it is asked for.

    Args:
        items: record of the items of each shard, by its index.
    """

    def __init__(self, items: Mapping[int, ResultRecord]) -> None:
        self._items = items

    @cached_property
    def _files(self) -> tuple[np.ndarray, list[str]]:
        """(f,) uint64 the id of each file's first record, ascending, and the files' paths."""
        starts, paths = [np.zeros(0, np.uint64)], list[str]()
        for index in sorted(self._items):
            files = self._items[index].details["files"]
            rows = np.cumsum([0, *(int(count) for _, count in files)], dtype=np.int64)[:-1]
            starts.append(item_ids(index, rows))
            paths += [path for path, _ in files]
        return np.concatenate(starts), paths

    def of(self, ids: np.ndarray) -> "tuple[pa.Array, pa.Array]":
        """Where some items lie.

        Args:
            ids: (n,) uint64 of records, or `NO_GROUP`.

        Returns:
            n names of files, escaped where they are not UTF-8, and n rows in these; null where there is no item.
        """
        import pyarrow as pa

        starts, paths = self._files
        missing = ids == NO_GROUP
        if missing.all():
            return pa.nulls(len(ids), pa.string()), pa.nulls(len(ids), pa.int64())
        # A file without records begins where the next one does: the last of them is the one that holds the row.
        file = np.searchsorted(starts, ids, side="right") - 1
        named, inverse = np.unique(file, return_inverse=True)
        names = pa.array([printable(paths[each]) for each in named.tolist()], pa.string())
        rows = (ids - starts[file]).view(np.int64)
        return names.take(pa.array(inverse, mask=missing)), pa.array(rows, mask=missing)


@dataclass(frozen=True, slots=True)
class KeptShard(ChosenShard):
    """Which records of a shard are kept, and what they stand for.

    Attributes:
        removed: (records,) bool; what is neither kept nor removed was skipped, or is held out.
        groups: which kept item each item of all shards belongs to.
        keys: of the kept items.
        files: which files the items of all shards lie in.
        epsilon: of the kept set; None where what chose knows none.
        unlisted: how many items the masks hold, and keep, of a shard whose keys and columns could not be read.
    """

    removed: np.ndarray
    groups: ItemGroups
    keys: KeptKeys
    files: ItemFiles
    epsilon: float | None = None
    unlisted: tuple[int, int] = (0, 0)

    @property
    def paths(self) -> list[str]:
        """Of its files, in order."""
        return [path for path, _, _ in self.of_files()]

    @property
    def unnameable(self) -> dict[str, int]:
        """The files whose names are not UTF-8, each with how many items are kept of it; of those with any."""
        kept = {path: int(keep.sum()) for path, _, keep in self.of_files() if not is_unicode(path)}
        return {path: items for path, items in kept.items() if items}


@dataclass(frozen=True, slots=True)
class ShardRows:
    """Some records of a shard, in its order.

    Attributes:
        rows: (n,) int64, in the shard, ascending.
        files: (n,) int64, the index of a record's file among those of `KeptShard.of_files`.
        file_rows: (n,) int64, in the record's file.
        table: n rows of the items' table: id, key and carried columns.
    """

    rows: np.ndarray
    files: np.ndarray
    file_rows: np.ndarray
    table: "pa.Table"


def kept_rows(kept: KeptShard, columns: Sequence[str] | None = None) -> Iterator[ShardRows]:
    """The kept records of a shard in the source's order, a row group of its items at a time.

    Args:
        kept: which.
        columns: of the items' table; None: all.
    """
    return (rows for rows, _ in _rows(kept, columns, removed=False))


def kept_and_removed_rows(kept: KeptShard) -> Iterator[tuple[ShardRows, ShardRows]]:
    """The kept and the removed records of a shard in the source's order, a row group of its items at a time."""
    return _rows(kept, None, removed=True)


def _rows(kept: KeptShard, columns: Sequence[str] | None, *, removed: bool) -> Iterator[tuple[ShardRows, ShardRows]]:
    starts = np.array([first for _, first, _ in kept.of_files()], np.int64)
    first = 0
    nothing = np.zeros(len(kept.removed), dtype=bool)
    for table in read_arrow(items_file(kept.items), columns):
        found = []
        for chosen in (kept.kept, kept.removed if removed else nothing):
            rows = np.flatnonzero(chosen[first : first + len(table)]) + first
            # A file without records begins where the next one does: the last of them is the one that holds the row.
            files = np.searchsorted(starts, rows, side="right") - 1
            found.append(ShardRows(rows, files, rows - starts[files], table.take(rows - first)))
        yield found[0], found[1]
        first += len(table)


@dataclass(frozen=True, slots=True)
class ShardChunk:
    """Consecutive shards whose files one task writes.

    Attributes:
        start: least index of an item's shard that is the task's: the chunks of a manifest divide all indices, those of
            no shard too, so that each item is looked at by one.
        stop: the least index that is not.
        closed: whether each file of the masks holds whole groups.
        copied: whether the source's files are read again, so that they must be what items and vectors were made from.
    """

    start: int
    stop: int
    closed: bool
    copied: bool

    @property
    def whole(self) -> bool:
        """Whether these are all shards."""
        return (self.start, self.stop) == (0, EVERY_SHARD.stop)

    def shards(self, context: StageContext) -> list[Shard]:
        """The shards of the chunk, in order."""
        return [shard for shard in context.shards if self.start <= shard.index < self.stop]


@dataclass(frozen=True, slots=True)
class KeptChunk:
    """What is kept of the shards of a chunk, of each once it is asked for."""

    shards: list[Shard]
    items: dict[str, ResultRecord]
    embeddings: dict[str, ResultRecord]
    groups: ItemGroups
    keys: KeptKeys
    files: ItemFiles
    epsilon: float | None
    unlisted: dict[int, tuple[int, int]]

    def __iter__(self) -> Iterator[KeptShard]:
        return map(self._of, self.shards)

    def _of(self, shard: Shard) -> KeptShard:
        groups, index = self.groups, shard.index
        return KeptShard(
            shard,
            self.items[shard.name],
            self.embeddings[shard.name],
            groups.kept(index),
            groups.removed(index),
            groups,
            self.keys,
            self.files,
            self.epsilon,
            self.unlisted.get(index, (0, 0)),
        )


def shard_chunks(context: StageContext, *, closed: bool, copied: bool) -> list[ShardChunk]:
    """The chunks of all shards, as many as there are workers; `ShardChunk` has the arguments."""
    records = context.index.require_all("items").values()
    counts = [int(record.details["items"]) for record in records]
    chunks = contiguous_chunks(context.shards, counts, most=context.parallelism)
    bounds = [0, *(chunk[0].index for chunk in chunks[1:]), EVERY_SHARD.stop]
    return [ShardChunk(start, stop, closed, copied) for start, stop in pairwise(bounds)]


def kept_shards(context: StageContext, masks: ResultRecord, chunk: ShardChunk) -> KeptChunk:
    """What is kept of each shard of a chunk; 17 bytes for each of its items, where memory is short in a temporary file.

    Args:
        context: of the pipeline and the selection.
        masks: record of the masks, whose files all say which items are kept, in any order.
        chunk: which shards.

    Raises:
        MissingResultError: items or embeddings are missing, or the masks are of other items than the source has
            now.
        SourceChangedError: a shard's items, its vectors and its files are not of one state of the source.
    """
    shards = chunk.shards(context)
    items = {each.required_shard: record for each, record in context.index.require_all("items").items()}
    wanted = [Partition(shard=shard.name) for shard in shards]
    embeddings = {
        each.required_shard: record for each, record in context.index.require_each("embeddings", wanted).items()
    }
    for shard in shards:
        require_one_state(context, shard, [items[shard.name], embeddings[shard.name]], copied=chunk.copied)
    records = {shard.index: int(items[shard.name].details["items"]) for shard in context.shards}
    unlisted = {shard.index: np.zeros(2, np.int64) for shard in shards if items[shard.name].excluded}
    budget = context.compute.budget // 2
    groups = ItemGroups(records, budget=budget, span=range(chunk.start, chunk.stop))
    for part in _mask_parts(context, masks):
        unknown = groups.add(part.ids, group=part.group, similarity=part.similarity, kept=part.kept, whole=chunk.closed)
        if part.removed_by is not None:
            groups.add_references(part.ids, part.removed_by)
        missing = part.ids[unknown]
        for index, positions in positions_by_shard(missing):
            if index not in unlisted:
                message = f"{masks.location}: made of other items than there are now; {context.remedy('items')} and what follows"
                raise MissingResultError(message)
            unlisted[index] += [len(positions), part.kept[unknown[positions]].sum()]
    if not chunk.closed:
        groups.count_members((part.ids, part.group) for part in _mask_parts(context, masks))
    counts = {index: (int(found), int(staying)) for index, (found, staying) in unlisted.items()}
    files = ItemFiles({shard.index: items[shard.name] for shard in context.shards})
    epsilon = None if "epsilon" not in masks.details else float(masks.details["epsilon"])
    keys = KeptKeys(context, groups, budget=budget)
    return KeptChunk(shards, items, embeddings, groups, keys, files, epsilon, counts)


@dataclass(frozen=True, slots=True)
class _MaskPart:
    """What masks say of some items, as `ItemGroups` takes it."""

    ids: np.ndarray
    kept: np.ndarray
    group: np.ndarray
    similarity: np.ndarray
    removed_by: np.ndarray | None


def _mask_parts(context: StageContext, masks: ResultRecord) -> Iterator[_MaskPart]:
    """What masks say of each item, a file of a range at a time."""
    import pyarrow as pa

    # Those of a baseline know of no reference.
    removing = removing_references(context.pipeline) if "removed_by_reference" in masks.details else ()
    columns = ["id", "kept", "kept_neighbour", "kept_similarity", *([REMOVED_BY.name] if removing else ())]
    files = mask_files(masks)
    if len(files) == 1:
        # A baseline's masks are one file, of many row groups.
        yield from (_mask_part(table, removing) for table in read_arrow(files[0], columns))
        return
    for tables in overlapped(lambda file: list(read_arrow(file, columns)), files, most=calls_at_once(masks.location)):
        yield _mask_part(pa.concat_tables(tables), removing)


def _mask_part(table: "pa.Table", removing: Sequence[str]) -> _MaskPart:
    import pyarrow as pa
    import pyarrow.compute as pc

    ids, is_kept = (table.column(name).to_numpy() for name in ("id", "kept"))
    group = np.where(is_kept, ids, table.column("kept_neighbour").fill_null(int(NO_GROUP)).to_numpy())
    similarity = table.column("kept_similarity").fill_null(float("nan")).to_numpy()
    removed_by = None
    if removing:
        found = pc.index_in(table.column(REMOVED_BY.name), value_set=pa.array(removing, pa.string()))
        removed_by = found.fill_null(-1).to_numpy().astype(np.int16)
    return _MaskPart(ids, is_kept, group, similarity, removed_by)


def require_one_state(context: StageContext, shard: Shard, records: list[ResultRecord], *, copied: bool) -> None:
    """See that a shard's items and vectors go back to the same files; and, where these are copied, to today's."""
    states = {record.inputs["shards"] for record in records} | ({shard.fingerprint} if copied else set())
    if len(states) > 1:
        message = (
            f"{context.pipeline.dataset}, shard {shard.name}: its files changed between the reading of its keys, of its "
            f"vectors and now; observe the shards, then {context.remedy('items', shard.name)}, the same of embeddings, "
            "and what follows"
        )
        raise SourceChangedError(message)
