"""Which kept item each item belongs to, and how many belong to it."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import read_items
from semdedup_assets.records import id_rows, id_shards, item_ids
from semdedup_assets.storage.scratch import scratch_array

if TYPE_CHECKING:
    import pyarrow as pa

NO_GROUP = np.uint64(2**64 - 1)
"""In place of a kept item's id where there is none: the shard of an id has at most 31 bits."""

_ROW = np.dtype([("group", np.uint64), ("similarity", np.float32), ("size", np.uint32)])
_BLOCK = 1 << 20
_KEY_BYTES = 512  # of a key in memory, held twice, and its id: more than paths and URLs usually take


class ItemGroups:
    """The groups of a kept set: each a kept item and the removed ones that it stands for.

    16 bytes for each record of the source, beyond the budget in a temporary file.

    Args:
        records: how many each shard has, by its index; items of other shards belong to no group.
        budget: bytes that may be held in memory.
    """

    def __init__(self, records: Mapping[int, int], *, budget: int) -> None:
        self._first = np.zeros(max(records, default=0) + 1, np.int64)
        self._count = np.zeros_like(self._first)
        total = 0
        for shard, count in records.items():
            self._first[shard], self._count[shard] = total, count
            total += count
        self._table = scratch_array((total, 1), _ROW, budget=budget)[:, 0]
        for start in range(0, total, _BLOCK):
            self._table[start : start + _BLOCK] = (NO_GROUP, np.nan, 0)

    def add(self, ids: np.ndarray, *, group: np.ndarray, similarity: np.ndarray) -> None:
        """Note what some items belong to; each item once.

        Args:
            ids: (n,) uint64.
            group: (n,) uint64, the id of the kept item, an item's own where it is kept; `NO_GROUP` where there is none.
            similarity: (n,) float32 to the kept item, NaN where it is not known.
        """
        positions, kept = self._positions(ids), self._positions(group)
        # An item of a shard whose keys could not be read is in no manifest: there it stands for nothing.
        grouped = (positions >= 0) & (kept >= 0)
        self._table["group"][positions[grouped]] = group[grouped]
        self._table["similarity"][positions[grouped]] = similarity[grouped]
        sizes, counts = np.unique(kept[grouped], return_counts=True)
        self._table["size"][sizes] += counts.astype(np.uint32)

    def _positions(self, ids: np.ndarray) -> np.ndarray:
        """(n,) int64 rows of the table; -1 of items that are in no manifest."""
        shards, rows = id_shards(ids), id_rows(ids)
        shards = np.where((shards >= 0) & (shards < len(self._first)), shards, len(self._first))
        # One shard more, without records, for what is none of them.
        count, first = np.append(self._count, 0)[shards], np.append(self._first, 0)[shards]
        return np.where(rows < count, first + rows, -1)

    def of(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What some items belong to.

        Args:
            ids: (n,) uint64, of shards whose records are known.

        Returns:
            group: (n,) uint64, `NO_GROUP` where there is none;
            similarity: (n,) float32, NaN where it is not known;
            size: (n,) uint32, how many items the group has, the kept one counted; 0 where there is none.
        """
        rows = self._table[self._positions(ids)]
        group, size = rows["group"], np.zeros(len(ids), np.uint32)
        grouped = group != NO_GROUP
        size[grouped] = self._table["size"][self._positions(group[grouped])]
        return group, rows["similarity"], size


class KeptKeys:
    """The keys of the kept items that removed ones belong to: of so many shards at a time as memory holds.

    Args:
        context: of the pipeline.
        groups: of the kept set.
        removed: (records,) bool of each shard, by its index: of the items whose kept ones are asked for.
        budget: bytes that the keys may take; a key of many kilobytes takes more than is reckoned with.
    """

    def __init__(
        self, context: StageContext, groups: ItemGroups, removed: Mapping[int, np.ndarray], *, budget: int
    ) -> None:
        self._context, self._groups, self._removed, self._budget = context, groups, removed, budget
        self._shards: set[int] = set()
        self._ids, self._keys = np.empty(0, np.uint64), None

    def of(self, shard: int, group: np.ndarray) -> "pa.Array":
        """The keys of kept items.

        Args:
            shard: index of the shard whose removed items belong to them.
            group: (n,) uint64 ids of kept items.

        Returns:
            n strings; null where there is no such item.
        """
        import pyarrow as pa

        if shard not in self._shards:
            self._read(shard)
        if self._keys is None:
            return pa.nulls(len(group), pa.string())
        found = np.minimum(np.searchsorted(self._ids, group), len(self._ids) - 1)
        return self._keys.take(pa.array(found, mask=self._ids[found] != group)).cast(pa.string())

    def _read(self, shard: int) -> None:
        """Read what a shard needs, and the next ones as far as memory holds it: each time all keys are gone through."""
        import pyarrow as pa

        self._shards, self._keys = set(), None
        needed = list(self._needed_from(shard))
        tables = list(read_items(self._context, np.unique(np.concatenate(needed)), ["id", "key"]))
        if tables:
            found = pa.concat_tables(tables)
            self._ids = found.column("id").to_numpy()
            # A plain string array has at most 2 GiB.
            self._keys = found.column("key").cast(pa.large_string()).combine_chunks()

    def _needed_from(self, shard: int) -> Iterator[np.ndarray]:
        most = self._budget // _KEY_BYTES
        for index in [shard, *(each for each in self._removed if each > shard)]:
            count = int(self._removed[index].sum())
            if self._shards and count > most:
                return
            most -= count
            self._shards.add(index)
            group, _, _ = self._groups.of(item_ids(index, np.flatnonzero(self._removed[index])))
            yield np.unique(group[group != NO_GROUP])
