"""Held-out texts, some of which are read from their source again, as what they were when the shards were read."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.held_out import HELD_OUT, HoldOut, Split
from semdedup_assets.execution.item_lookup import read_items
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import Progress
from semdedup_assets.records import ColumnValue, Record, id_rows, positions_by_shard
from semdedup_assets.sources.shard_index import Shard
from semdedup_assets.stages.embeddings import SKIPPED
from semdedup_assets.stages.kept_rows import ChosenShard, require_one_state
from semdedup_assets.stages.source_copies import kept_records
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.tables import read_arrow

SPLITS: tuple[Split, ...] = ("random", "groups")


@dataclass(frozen=True, slots=True)
class HeldOutText:
    """A held-out item.

    Attributes:
        id: shard (32 bits) and row in the shard (32 bits).
        record: its key and text.
        split: what it is held out by.
    """

    id: int
    record: Record
    split: Split


@dataclass
class HeldOutChoice:
    """The held-out items of a pipeline that are evaluated: of each split the first ones in a random order.

    Attributes:
        context: of the pipeline.
        hold_out: what is held out, and how many of each split are evaluated at most.
        counts: of all held-out items, by split.
        unreadable: held-out items of shards whose columns, or places in their files, are not known.
    """

    context: StageContext
    hold_out: HoldOut
    counts: dict[Split, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    unreadable: int = 0

    def texts(self) -> Iterator[HeldOutText]:
        """The chosen items, by id; only the files that hold one are read.

        Raises:
            MissingResultError: items or embeddings are missing, or of other settings; names what to materialise.
            SourceChangedError: a file, or what it holds, is not what was there when the shards were read.
        """
        items = self.context.index.require_consistent("items")
        embeddings = self.context.index.require_consistent("embeddings")
        chosen = self._chosen(items, embeddings)
        ids = np.array(sorted(chosen), np.uint64)
        shards = {shard.index: shard for shard in self.context.shards}
        with Progress("held_out_sets, texts", total=len(ids), unit="texts") as progress:
            for index, positions in positions_by_shard(ids):
                partition = Partition(shard=shards[index].name)
                found = self._read(shards[index], items[partition], embeddings[partition], ids[positions])
                for item, record in zip(ids[positions].tolist(), found, strict=True):
                    yield HeldOutText(item, record, chosen[item])
                    progress.advance()

    def _chosen(
        self, items: dict[Partition, ResultRecord], embeddings: dict[Partition, ResultRecord]
    ) -> dict[int, Split]:
        """The split of each chosen item, by id; so many are held at a time, and those of one shard."""
        best: dict[Split, list[tuple[int, int]]] = {split: [] for split in SPLITS}
        for partition, record in embeddings.items():
            held = dict(_held_out(record))
            if items[partition].excluded:
                self.unreadable += len(held)
                continue
            ranked: dict[Split, list[tuple[int, int]]] = {split: [] for split in SPLITS}
            for item, value in self._values(held):
                split = self.hold_out.split(held[item], value)
                if split is not None:
                    ranked[split].append((self.hold_out.rank(held[item]), item))
            for split, found in ranked.items():
                self.counts[split] += len(found)
                best[split] = heapq.nsmallest(self.hold_out.settings.evaluated, best[split] + found)
        return {item: split for split, found in best.items() for _, item in found}

    def _values(self, held: dict[int, str]) -> Iterator[tuple[int, ColumnValue]]:
        """The held-out items of a shard with their values of the groups' column."""
        column = self.hold_out.column
        if column is None:
            yield from dict.fromkeys(held).items()
            return
        ids = np.array(sorted(held), np.uint64)
        for table in read_items(self.context, ids, ["id", column]):
            yield from zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True)

    def _read(self, shard: Shard, items: ResultRecord, embeddings: ResultRecord, ids: np.ndarray) -> Iterator[Record]:
        """The records of some items of a shard."""
        require_one_state(self.context, shard, [items, embeddings], copied=True)
        wanted = np.zeros(int(items.details["items"]), dtype=bool)
        wanted[id_rows(ids)] = True
        chosen = ChosenShard(shard, items, embeddings, wanted)
        for record in kept_records(chosen, self.context.pipeline.source.read, _contents):
            if isinstance(record, Record):  # The others have no content, and were refused.
                yield record


def _held_out(record: ResultRecord) -> Iterator[tuple[int, str]]:
    """Id and key of the held-out items of a shard."""
    import pyarrow.compute as pc

    for table in read_arrow(record.file(SKIPPED), ["id", "key", "reason"]):
        held = table.filter(pc.equal(table["reason"], HELD_OUT))
        yield from zip(held["id"].to_pylist(), held["key"].to_pylist(), strict=True)


def _contents(record: object) -> list[bytes | str]:
    if isinstance(record, Record) and isinstance(record.payload, bytes | str):
        return [record.payload]
    return []
