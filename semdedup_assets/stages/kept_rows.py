"""Which records of each shard a kept set keeps, in the order of the source."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import items_file
from semdedup_assets.execution.shard_reader import SourceChangedError
from semdedup_assets.records import id_rows, is_unicode, positions_by_shard
from semdedup_assets.sources.shard_index import Shard
from semdedup_assets.stages.item_groups import NO_GROUP, ItemGroups, KeptKeys
from semdedup_assets.stages.keep_masks import mask_files
from semdedup_assets.storage.results import MissingResultError, ResultRecord
from semdedup_assets.storage.tables import read_arrow

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class KeptShard:
    """Which records of a shard are kept, and what they stand for.

    Attributes:
        shard: the shard.
        items: record of its items.
        embeddings: record of its embeddings, which were made from the same state of the source.
        kept: (records,) bool, by row.
        removed: (records,) bool; what is neither kept nor removed was skipped.
        groups: which kept item each item of all shards belongs to.
        keys: of the kept items.
        unlisted: how many items the masks hold, and keep, of a shard whose keys and columns could not be read.
    """

    shard: Shard
    items: ResultRecord
    embeddings: ResultRecord
    kept: np.ndarray
    removed: np.ndarray
    groups: ItemGroups
    keys: KeptKeys
    unlisted: tuple[int, int] = (0, 0)

    def of_files(self) -> Iterator[tuple[str, int, np.ndarray]]:
        """Path, row of its first record and (records,) bool of each file, in order."""
        first = 0
        for path, rows in self.items.details["files"]:
            yield str(path), first, self.kept[first : first + int(rows)]
            first += int(rows)

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


def kept_rows(kept: KeptShard) -> Iterator[ShardRows]:
    """The kept records of a shard in the source's order, a row group of its items at a time."""
    return _rows(kept, kept.kept, columns=None)


def removed_rows(kept: KeptShard) -> Iterator[ShardRows]:
    """The removed records of a shard in the source's order, without carried columns."""
    return _rows(kept, kept.removed, columns=("id", "key"))


def _rows(kept: KeptShard, chosen: np.ndarray, *, columns: Sequence[str] | None) -> Iterator[ShardRows]:
    starts = np.array([first for _, first, _ in kept.of_files()], np.int64)
    first = 0
    for table in read_arrow(items_file(kept.items), columns):
        rows = np.flatnonzero(chosen[first : first + len(table)]) + first
        # A file without records begins where the next one does: the last of them is the one that holds the row.
        files = np.searchsorted(starts, rows, side="right") - 1
        yield ShardRows(rows, files, rows - starts[files], table.take(rows - first))
        first += len(table)


def kept_shards(context: StageContext, masks: ResultRecord, *, copied: bool) -> dict[str, KeptShard]:
    """What is kept of each shard, by its name; 18 bytes an item, most of them in a temporary file where memory is short.

    Args:
        context: of the pipeline and the selection.
        masks: record of the masks, whose files all say which items are kept, in any order.
        copied: whether the source's files are read again, so that they must be what items and vectors were made from.

    Raises:
        MissingResultError: items or embeddings are missing, or the masks are of other items than the source has
            now.
        SourceChangedError: a shard's items, its vectors and its files are not of one state of the source.
    """
    shards = context.shards
    items, embeddings = _by_shard(context, "items"), _by_shard(context, "embeddings")
    for shard in shards:
        _require_one_state(context, shard, [items[shard.name], embeddings[shard.name]], copied=copied)
    records = {shard.index: int(items[shard.name].details["items"]) for shard in shards}
    kept, removed = ({shard: np.zeros(count, dtype=bool) for shard, count in records.items()} for _ in range(2))
    unlisted = {shard.index: np.zeros(2, np.int64) for shard in shards if items[shard.name].excluded}
    budget = context.compute.budget // 2
    groups = ItemGroups(records, budget=budget)
    for ids, is_kept, group, similarity in _mask_parts(masks):
        rows = id_rows(ids)
        for index, positions in positions_by_shard(ids):
            if index in unlisted:
                unlisted[index] += [len(positions), is_kept[positions].sum()]
            elif index not in records or int(rows[positions].max()) >= records[index]:
                message = f"{masks.location}: made of other items than there are now; {context.remedy('items')} and what follows"
                raise MissingResultError(message)
            else:
                kept[index][rows[positions]] = is_kept[positions]
                removed[index][rows[positions]] = ~is_kept[positions]
        groups.add(ids, group=group, similarity=similarity)
    keys = KeptKeys(context, groups, removed, budget=budget)
    counts = {index: (int(found), int(staying)) for index, (found, staying) in unlisted.items()}
    return {
        shard.name: KeptShard(
            shard,
            items[shard.name],
            embeddings[shard.name],
            kept[shard.index],
            removed[shard.index],
            groups,
            keys,
            counts.get(shard.index, (0, 0)),
        )
        for shard in shards
    }


def _mask_parts(masks: ResultRecord) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Id, whether it is kept, id of the group and similarity to its kept item, of each item of the masks."""
    for file in mask_files(masks):
        for table in read_arrow(file, ["id", "kept", "kept_neighbour", "kept_similarity"]):
            ids, is_kept, neighbour = (table.column(index) for index in range(3))
            ids, is_kept = ids.to_numpy(), is_kept.to_numpy()
            known, neighbour = neighbour.is_valid().to_numpy(), neighbour.fill_null(0).to_numpy()
            group = np.where(is_kept, ids, np.where(known, neighbour, NO_GROUP))
            yield ids, is_kept, group, table.column("kept_similarity").fill_null(float("nan")).to_numpy()


def _by_shard(context: StageContext, stage: str) -> dict[str, ResultRecord]:
    return {each.required_shard: record for each, record in context.index.require_all(stage).items()}


def _require_one_state(context: StageContext, shard: Shard, records: list[ResultRecord], *, copied: bool) -> None:
    """See that a shard's items and vectors go back to the same files; and, where these are copied, to today's."""
    states = {record.inputs["shards"] for record in records} | ({shard.fingerprint} if copied else set())
    if len(states) > 1:
        message = (
            f"{context.pipeline.dataset}, shard {shard.name}: its files changed between the reading of its keys, of its "
            f"vectors and now; observe the shards, then {context.remedy('items', shard.name)}, the same of embeddings, "
            "and what follows"
        )
        raise SourceChangedError(message)
