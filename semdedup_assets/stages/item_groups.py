"""Which kept item each item belongs to, and how many belong to it."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import items_file
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.records import id_rows
from semdedup_assets.storage.overlap import calls_at_once, overlapped
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.scratch import ScratchBytes, scratch_array
from semdedup_assets.storage.tables import read_arrow, read_rows

if TYPE_CHECKING:
    import pyarrow as pa

NO_GROUP = np.uint64(2**64 - 1)
"""In place of a kept item's id where there is none: the shard of an id has at most 31 bits."""

EVERY_SHARD = range(1 << 31)

_SKIPPED = np.uint64(2**64 - 2)  # in place of the group of a record that is neither kept nor removed
_ROW = np.dtype([("group", np.uint64), ("similarity", np.float32), ("size", np.uint32)])
_BLOCK = 1 << 20
# Fibonacci hashing: the upper bits of a product with 2**64 / golden ratio.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SLOTS_PER_HEAD = 16
_MOST_SLOTS = 28  # bits


class ItemGroups:
    """The groups that the items of some shards belong to: each group is a kept item and the removed ones it stands for.

    17 bytes for each record of these shards, beyond the budget in temporary files.

    Args:
        records: how many each shard of the source has, by its index; items of other shards belong to no group.
        budget: bytes that may be held in memory.
        span: indices of the shards whose items are asked for.
    """

    def __init__(self, records: Mapping[int, int], *, budget: int, span: range = EVERY_SHARD) -> None:
        # One shard more, without records, for what is none of them.
        self._count = np.zeros(max(records, default=0) + 2, np.int64)
        self._first = np.zeros_like(self._count)
        self._shards, total = [index for index in records if index in span], 0
        for index, count in records.items():
            self._count[index] = count
            if index in span:
                self._first[index] = total
                total += count
        self._start, self._length = np.uint64(span.start << 32), np.uint64(len(span) << 32)
        self._budget, self._alone = budget, len(self._shards) == len(records)
        self._table = scratch_array((total, 1), _ROW, budget=budget)[:, 0]
        self._kept = scratch_array((total, 1), np.dtype(bool), budget=budget - self._table.nbytes)[:, 0]
        self._removed_by: np.ndarray | None = None
        for start in range(0, total, _BLOCK):
            self._table[start : start + _BLOCK] = (_SKIPPED, np.nan, 0)
            self._kept[start : start + _BLOCK] = False

    def add(
        self,
        ids: np.ndarray,
        *,
        group: np.ndarray,
        similarity: np.ndarray,
        kept: np.ndarray | None = None,
        whole: bool = False,
    ) -> np.ndarray:
        """Note what some items belong to; each item once, those of other shards too: they count in their groups.

        Args:
            ids: (n,) uint64.
            group: (n,) uint64, the id of the kept item, an item's own where it is kept; `NO_GROUP` where there is none.
            similarity: (n,) float32 to the kept item, NaN where it is not known.
            kept: (n,) bool; None: those that are their own group are kept.
            whole: whether all members of these items' groups are among them; where they are not, `count_members` must
                be called afterwards with all items once more.

        Returns:
            (m,) int64 which of them are of the span, and not among the records.
        """
        own = np.flatnonzero(self._is_own(ids))
        positions = self._positions(ids[own])
        missing = own[positions < 0]
        if len(missing):
            own, positions = own[positions >= 0], positions[positions >= 0]
        heads = group[own]
        # An item of a shard whose keys could not be read is in no manifest: there it stands for nothing.
        heads[~self._listed(heads)] = NO_GROUP
        self._table["group"][positions] = heads
        self._kept[positions] = heads == ids[own] if kept is None else kept[own]
        self._table["similarity"][positions] = np.where(heads == NO_GROUP, np.float32(np.nan), similarity[own])
        self._count_own(ids, group)
        if whole and not self._alone:
            foreign = ~self._is_own(heads) & (heads != NO_GROUP)
            found, inverse = np.unique(heads[foreign], return_inverse=True)
            counts = _Members(found)
            self._count_listed(counts, ids, group)
            self._table["size"][positions[foreign]] = counts.counts[inverse]
        return missing

    def count_members(self, parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        """Count the members of groups whose kept items lie in other shards.

        Args:
            parts: (n,) uint64 ids and (n,) uint64 groups, as they were given to `add`, of all items.
        """
        if self._alone:
            return
        heads = self.heads(budget=self._budget)
        counts = _Members(heads[~self._is_own(heads)])
        for ids, group in parts:
            self._count_listed(counts, ids, group)
        for start in range(0, len(self._table), _BLOCK):
            rows = self._table[start : start + _BLOCK]
            foreign = ~self._is_own(rows["group"]) & (rows["group"] < _SKIPPED)
            rows["size"][foreign] = counts.of(rows["group"][foreign])

    def add_references(self, ids: np.ndarray, removed_by: np.ndarray) -> None:
        """Note which reference removes some items; 2 bytes more for each record, once any does.

        Args:
            ids: (n,) uint64.
            removed_by: (n,) int16, -1 where none does.
        """
        gone = np.flatnonzero(self._is_own(ids) & (removed_by >= 0))
        if self._removed_by is None and len(gone):
            self._removed_by = scratch_array(
                (len(self._table), 1), np.dtype(np.int16), budget=self._budget - self._table.nbytes
            )[:, 0]
            for start in range(0, len(self._table), _BLOCK):
                self._removed_by[start : start + _BLOCK] = -1
        if self._removed_by is not None:
            positions = self._positions(ids[gone])
            self._removed_by[positions[positions >= 0]] = removed_by[gone][positions >= 0]

    def _count_own(self, ids: np.ndarray, group: np.ndarray) -> None:
        members = np.flatnonzero(self._is_own(group))
        positions = self._positions(group[members])
        counted = (positions >= 0) & self._listed(ids[members])
        np.add.at(self._table["size"], positions[counted], np.uint32(1))

    def _count_listed(self, counts: "_Members", ids: np.ndarray, group: np.ndarray) -> None:
        near = counts.candidates(group)
        counts.add(group[near[self._listed(ids[near])]])

    def _is_own(self, ids: np.ndarray) -> np.ndarray:
        """(n,) bool: which lie in the span; one comparison, for what is smaller wraps around."""
        own: np.ndarray = ids - self._start < self._length
        return own

    def _listed(self, ids: np.ndarray) -> np.ndarray:
        """(n,) bool: which are records of the source."""
        listed: np.ndarray = id_rows(ids) < self._count[self._shard_of(ids)]
        return listed

    def _shard_of(self, ids: np.ndarray) -> np.ndarray:
        shards: np.ndarray = np.minimum(ids >> np.uint64(32), np.uint64(len(self._count) - 1)).view(np.int64)
        return shards

    def _positions(self, ids: np.ndarray) -> np.ndarray:
        """(n,) int64 rows of the table of items of the span; -1 of those that are no records."""
        shards, rows = self._shard_of(ids), id_rows(ids)
        return np.where(rows < self._count[shards], self._first[shards] + rows, -1)

    def kept(self, shard: int) -> np.ndarray:
        """(records,) bool: which records of a shard of the span are kept."""
        first = int(self._first[shard])
        return self._kept[first : first + int(self._count[shard])]

    def removed(self, shard: int) -> np.ndarray:
        """(records,) bool: which records of a shard of the span are removed; the others were skipped."""
        removed: np.ndarray = ~self.kept(shard) & (self._of_shard(shard)["group"] != _SKIPPED)
        return removed

    def _of_shard(self, shard: int) -> np.ndarray:
        return self._table[self._first[shard] : self._first[shard] + self._count[shard]]

    def heads(self, *, budget: int) -> np.ndarray:
        """(h,) uint64, ascending: the kept items that removed ones of the span belong to.

        Args:
            budget: bytes that may be held in memory.
        """
        heads, count = scratch_array((len(self._table), 1), np.dtype(np.uint64), budget=budget)[:, 0], 0
        for shard in self._shards:
            group = self._of_shard(shard)["group"][self.removed(shard)]
            group = group[group != NO_GROUP]
            heads[count : count + len(group)] = group
            count += len(group)
        heads = heads[:count]
        heads.sort()
        return _distinct(heads)

    def of(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What some items belong to.

        Args:
            ids: (n,) uint64, records of shards of the span.

        Returns:
            group: (n,) uint64, `NO_GROUP` where there is none;
            similarity: (n,) float32, NaN where it is not known;
            size: (n,) uint32, how many items the group has, the kept one counted; 0 where there is none.
        """
        rows = self._table[self._positions(ids)]
        group, size = np.where(rows["group"] == _SKIPPED, NO_GROUP, rows["group"]), rows["size"].copy()
        own = self._is_own(group)
        size[own] = self._table["size"][self._positions(group[own])]
        size[group == NO_GROUP] = 0
        return group, rows["similarity"], size

    def removed_by(self, ids: np.ndarray) -> np.ndarray:
        """(n,) int16: which reference removes each of (n,) uint64 records of shards of the span; -1 where none does."""
        if self._removed_by is None:
            return np.full(len(ids), -1, np.int16)
        found: np.ndarray = self._removed_by[self._positions(ids)]
        return found


def _distinct(values: np.ndarray) -> np.ndarray:
    """(m,) the distinct ones of (n,) ascending values, in their place."""
    count, last = 0, None
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        new = np.append(last is None or block[0] != last, block[1:] != block[:-1])
        last, found = block[-1], block[new]
        values[count : count + len(found)] = found
        count += len(found)
    return values[:count]


class _Members:
    """Counts how often each of some ids is named.

    Attributes:
        counts: (h,) uint32.
    """

    def __init__(self, ids: np.ndarray) -> None:
        """Of (h,) uint64 ids, ascending and distinct."""
        self.counts = np.zeros(len(ids), np.uint32)
        self._ids = ids
        bits = min(_MOST_SLOTS, max(1, int(len(ids) * _SLOTS_PER_HEAD).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._slots = np.zeros(1 << bits, dtype=bool)
        for start in range(0, len(ids), _BLOCK):
            self._slots[self._slot(ids[start : start + _BLOCK])] = True

    def _slot(self, ids: np.ndarray) -> np.ndarray:
        return ((ids * _GOLDEN) >> self._shift).view(np.int64)

    def candidates(self, named: np.ndarray) -> np.ndarray:
        """(m,) int64 which of (n,) uint64 ids may be counted: most others are passed over at the price of one look."""
        return np.flatnonzero(self._slots[self._slot(named)])

    def add(self, named: np.ndarray) -> None:
        """Count (n,) uint64 ids, each as often as it stands there."""
        if len(self._ids):
            found = np.minimum(np.searchsorted(self._ids, named), len(self._ids) - 1)
            np.add.at(self.counts, found[self._ids[found] == named], np.uint32(1))

    def of(self, ids: np.ndarray) -> np.ndarray:
        """(n,) uint32 counts of (n,) uint64 ids, which are among those that are counted."""
        return self.counts[np.searchsorted(self._ids, ids)]


class KeptKeys:
    """The keys of the kept items that removed ones belong to: all items' keys are gone through once.

    Beyond the budget they lie in temporary files, of which what is asked for is mapped.

    Args:
        context: of the pipeline.
        groups: of the kept set.
        budget: bytes that may stay in memory.
    """

    def __init__(self, context: StageContext, groups: ItemGroups, *, budget: int) -> None:
        self._context, self._groups, self._budget = context, groups, budget
        self._found: tuple[np.ndarray, pa.Array] | None = None
        self._lock = Lock()

    def of(self, group: np.ndarray) -> "pa.Array":
        """The keys of kept items that removed items of the groups' span belong to.

        Args:
            group: (n,) uint64 ids.

        Returns:
            n strings; null where there is no such item.
        """
        import pyarrow as pa

        with self._lock:
            if self._found is None:
                self._found = self._read()
        ids, keys = self._found
        if len(ids) == 0:
            return pa.nulls(len(group), pa.string())
        found = np.minimum(np.searchsorted(ids, group), len(ids) - 1)
        return keys.take(pa.array(found, mask=ids[found] != group)).cast(pa.string())

    def _read(self) -> "tuple[np.ndarray, pa.Array]":
        """(h,) uint64 ids, ascending, and their keys."""
        import pyarrow as pa

        # Keys take most; ids and offsets 8 bytes each.
        ids, offsets = ScratchBytes(budget=self._budget // 8), ScratchBytes(budget=self._budget // 8)
        keys, size = ScratchBytes(budget=self._budget // 2), 0
        offsets.append(np.zeros(1, np.int64))
        for table in self._tables(self._groups.heads(budget=self._budget // 4)):
            # A plain string array has at most 2 GiB.
            found = table.column("key").cast(pa.large_string()).combine_chunks()
            ids.append(table.column("id").to_numpy())
            _, starts, content = found.buffers()
            bounds = np.frombuffer(starts, np.int64)[found.offset : found.offset + len(found) + 1]
            offsets.append(bounds[1:] - bounds[0] + size)
            if bounds[-1] > bounds[0]:
                keys.append(memoryview(content)[bounds[0] : bounds[-1]])
            size += int(bounds[-1] - bounds[0])
        found_ids = ids.array(np.dtype(np.uint64))
        buffers = [
            pa.py_buffer(part.array(dtype))
            for part, dtype in ((offsets, np.dtype(np.int64)), (keys, np.dtype(np.uint8)))
        ]
        return found_ids, pa.LargeStringArray.from_buffers(len(found_ids), *buffers)

    def _tables(self, ids: np.ndarray) -> "Iterator[pa.Table]":
        """Id and key of (n,) uint64 ascending ids, of those that are there."""
        context = self._context
        shards = {shard.index: Partition(shard=shard.name) for shard in context.shards}
        bounds = np.searchsorted(ids, np.array([*shards, max(shards) + 1], np.uint64) << np.uint64(32))
        records = {index: context.index.record("items", partition) for index, partition in shards.items()}
        wanted = [
            (record, ids[start:stop])
            for record, start, stop in zip(records.values(), bounds[:-1], bounds[1:], strict=True)
            if record is not None and start < stop
        ]
        # Where a table has nothing else, all of it is one read of an object store; some columns are two.
        whole = not context.pipeline.source.column_types
        read = partial(_keys_of, whole=whole)
        for tables in overlapped(read, wanted, most=calls_at_once(context.pipeline.store)):
            yield from tables


def _keys_of(wanted: tuple[ResultRecord, np.ndarray], *, whole: bool) -> "list[pa.Table]":
    """Id and key of (n,) uint64 ascending ids of a shard, of those that are there."""
    record, ids = wanted
    if not whole:
        return list(read_rows(items_file(record), id_rows(ids), ["id", "key"]))
    rows, first, found = id_rows(ids), 0, []
    for table in read_arrow(items_file(record)):
        start, stop = np.searchsorted(rows, [first, first + len(table)])
        found.append(table.take(rows[start:stop] - first))
        first += len(table)
    return found
