"""Which items are held out for evaluation: by hashes of their keys and of a column's values, so that no order matters."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import xxhash

from semdedup_assets.records import ColumnValue, Invalid, Record, VectorBatch, content_bytes
from semdedup_assets.settings import Pipeline
from semdedup_assets.sources import Source
from semdedup_assets.training_settings import HeldOut

HELD_OUT = "held out for evaluation"
"""The reason that is listed for a held-out item."""

Split = Literal["random", "groups"]
"""What an item is held out by: a hash of its key, or of its group's value."""

_HASHES = 1 << 64


@dataclass(frozen=True, slots=True)
class HeldOutRecord:
    """A record that is read, but not embedded.

    Attributes:
        record: as the source has it.
    """

    record: Record


@dataclass(frozen=True, slots=True)
class HoldOut:
    """Decides of each item by itself whether it is held out.

    Attributes:
        settings: shares, the groups' column, and the seed.
    """

    settings: HeldOut

    @property
    def column(self) -> str | None:
        """The column whose values are groups; None where no groups are held out."""
        return self.settings.groups.column if self.settings.groups else None

    def split(self, key: str, value: ColumnValue = None) -> Split | None:
        """What an item is held out by; None where it stays. Items of a held-out group are none of the random split.

        Args:
            key: the item's own name.
            value: of the groups' column; an item without one is in no group.
        """
        groups = self.settings.groups
        if groups is not None and value is not None and self._hash("group", str(value)) < groups.share * _HASHES:
            return "groups"
        return "random" if self._hash("key", key) < self.settings.share * _HASHES else None

    def rank(self, key: str) -> int:
        """Where an item stands in a random order of all: 64 bits that do not depend on what it is held out by."""
        return self._hash("rank", key)

    def _hash(self, use: str, text: str) -> int:
        return int(xxhash.xxh3_64_intdigest(content_bytes(f"{self.settings.seed} {use} {text}")))


@dataclass(frozen=True, slots=True)
class HoldOutReader:
    """Reads a source, and marks the records that are held out; invalid ones stay what they are.

    Attributes:
        source: that the files are of.
        hold_out: decides.
    """

    source: Source
    hold_out: HoldOut

    def read(self, path: str) -> Iterator[Record | Invalid | VectorBatch | HeldOutRecord]:
        """The records of a file, in its order.

        Raises:
            ValueError: keys and columns were not read from the same records; names the file.
            TruncatedFile: the file ends early.
        """
        for record, value in self._with_values(path):
            held = isinstance(record, Record) and self.hold_out.split(record.key, value)
            yield HeldOutRecord(record) if held else record

    def _with_values(self, path: str) -> Iterator[tuple[Any, ColumnValue]]:
        """Each record with its value of the groups' column, for which the file is read a second time alongside."""
        column = self.hold_out.column
        if column is None:
            yield from ((record, None) for record in self.source.read(path))
            return
        items, records = self.source.read_items(path), cast("Iterator[Record | Invalid]", self.source.read(path))
        for record in records:  # Of ready vectors nothing is held out.
            item = next(items, None)
            if item is None or item.key != record.key:
                found = "nothing" if item is None else repr(item.key)
                message = f"{path}: its columns belong to {found} where {record.key!r} is; it changed while it was read"
                raise ValueError(message)
            yield record, item.columns[column]


def hold_out(pipeline: Pipeline) -> HoldOut | None:
    """What a pipeline holds out; None: nothing."""
    return None if pipeline.held_out is None else HoldOut(pipeline.held_out)


def hold_out_settings(pipeline: Pipeline) -> dict[str, Any]:
    """What decides which items are held out: shares, seed, and what keys and the groups' values are; empty: nothing is."""
    if pipeline.held_out is None:
        return {}
    items = pipeline.source.item_settings()
    columns = items.pop("columns", {})
    column = pipeline.held_out.groups.column if pipeline.held_out.groups else None
    # A column that comes by itself has no setting of its own.
    value = {"values": columns.get(column)} if column is not None else {}
    chosen = pipeline.held_out.model_dump(mode="json", include={"share", "groups", "seed"})
    return {"held_out": {**chosen, "items": items, **value}}


def remaining_share(pipeline: Pipeline) -> float:
    """The share of items that is expected to stay."""
    if pipeline.held_out is None:
        return 1.0
    groups = pipeline.held_out.groups
    return (1 - pipeline.held_out.share) * (1 - (groups.share if groups else 0))
