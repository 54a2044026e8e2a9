"""Count what is removed by value of a column: a whole language or source must not vanish unseen."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from semdedup_assets.checks.removed_by_value import CHECKS, COUNTS
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import columns_version, items_file
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Column, Rows, Shown, Stage, Worker
from semdedup_assets.records import id_rows, positions_by_shard
from semdedup_assets.stages.keep_masks import mask_files
from semdedup_assets.storage.results import MissingResultError, ResultRecord
from semdedup_assets.storage.tables import TableWriter, read_arrow, read_tables

if TYPE_CHECKING:
    import polars as pl

_SHOWN, _LONGEST = 10, 200
# Counts of parts are added up once they are so many: of a column without repeated values all of them stay.
_PENDING = 1 << 20
_REMOVED, _KEPT = 1, 2


def _worker(context: StageContext) -> Worker:
    return lambda partition: count_removed(context, partition)


def count_removed(context: StageContext, partition: Partition) -> ResultRecord:
    """Write the table of `removed_by_value`; memory holds a byte an item and the distinct values.

    Args:
        context: of the pipeline and the selection, whose `limit` names the columns.
        partition: a kept set.

    Raises:
        MissingResultError: masks or items are missing, or the masks are of other items than there are now.
    """
    import polars as pl

    columns = _columns(context)
    with context.writing("removed_by_value", partition) as result:
        masks = context.index.require_consistent("keep_masks", partition)[partition]
        with usage.phase("count"):
            states, counts = _MaskedItems(context, masks), {column: _Counts(column) for column in columns}
            for table in states.tables(columns):
                for count in counts.values():
                    count.add(table)
            table = pl.concat([count.table() for count in counts.values()])
        with result.open(COUNTS) as stream, TableWriter(stream) as writer:
            writer.write_frame(table)
        most = [row for count in counts.values() for row in count.table().head(_SHOWN).to_dicts()]
        result.details = {
            "items": states.listed,
            "without_columns": states.unlisted,
            "values": {column: int((table["column"] == column).sum()) for column in columns},
            "most_removed": [{**row, "value": _brief(row["value"])} for row in most],
        }
    return result.committed


def _columns(context: StageContext) -> list[str]:
    return sorted(limit.column for limit in context.selection.limits)


def _brief(value: str | None) -> str | None:
    return value if value is None or len(value) <= _LONGEST else f"{value[:_LONGEST]}…"


class _MaskedItems:
    """Whether each item of each shard is kept, removed or, since it was not embedded, neither: a byte an item."""

    def __init__(self, context: StageContext, masks: ResultRecord) -> None:
        found = context.index.require_all("items")
        indices = {shard.name: shard.index for shard in context.shards}
        self._items = {
            indices[partition.required_shard]: record for partition, record in found.items() if record.excluded is None
        }
        self._states = {
            shard: np.zeros(int(record.details["items"]), np.uint8) for shard, record in self._items.items()
        }
        self.listed = self.unlisted = 0
        for part in (part for file in mask_files(masks) for part in read_tables(file, ["id", "kept"])):
            rows, states = id_rows(part["id"]), np.where(part["kept"], _KEPT, _REMOVED)
            for shard, positions in positions_by_shard(part["id"]):
                if shard not in self._items:
                    self.unlisted += len(positions)
                    continue
                if int(rows[positions].max()) >= len(self._states[shard]):
                    message = (
                        f"{masks.location}: made of other items than there are now; {context.remedy('items')} and what "
                        "follows"
                    )
                    raise MissingResultError(message)
                self._states[shard][rows[positions]] = states[positions]
                self.listed += len(positions)

    def tables(self, columns: Sequence[str]) -> "Iterator[pl.DataFrame]":
        """Columns of the masked items with `removed`, a row group at a time."""
        import polars as pl

        for shard, record in sorted(self._items.items()):
            first = 0
            for table in read_arrow(items_file(record), columns):
                state = self._states[shard][first : first + len(table)]
                first += len(table)
                yield (
                    pl.DataFrame(table).with_columns(removed=pl.Series(state == _REMOVED)).filter(pl.Series(state > 0))
                )


class _Counts:
    """Items, and how many of them are removed, by value of one column."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._parts: list[pl.DataFrame] = []
        self._added_up = 0

    def add(self, table: "pl.DataFrame") -> None:
        """Count the items of a table."""
        import polars as pl

        value = pl.col(self._column).cast(pl.String).alias("value")
        removed = pl.col("removed").cast(pl.Int64)
        part = (
            table.select(value, removed)
            .group_by("value")
            .agg(items=pl.len().cast(pl.Int64), removed=pl.col("removed").sum())
        )
        self._parts.append(part)
        if sum(map(len, self._parts)) > 2 * self._added_up + _PENDING:
            self._parts = [_added(pl.concat(self._parts))]
            self._added_up = len(self._parts[0])

    def table(self) -> "pl.DataFrame":
        """column, value, items, removed, share; those of which most is removed first."""
        import polars as pl

        schema = {"value": pl.String, "items": pl.Int64, "removed": pl.Int64}
        return (
            _added(pl.concat([pl.DataFrame(schema=schema), *self._parts]))
            .with_columns(share=pl.col("removed") / pl.col("items"))
            .sort(["share", "items", "value"], descending=[True, True, False], nulls_last=True)
            .select(pl.lit(self._column).alias("column"), "value", "items", "removed", "share")
        )


def _added(counts: "pl.DataFrame") -> "pl.DataFrame":
    return counts.group_by("value").sum()


def _shown(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    """The values of which most is removed."""
    rows = [
        {
            "column": row["column"],
            "value": "(none)" if row["value"] is None else row["value"],
            "items": row["items"],
            "removed": row["removed"],
            "share removed": f"{row['share']:.2%}",
        }
        for row in record.details["most_removed"]
    ]
    return {"most_removed": Rows(rows)} if rows else {}


def _input_version(context: StageContext, name: str, record: ResultRecord) -> str:
    return record.version if name != "items" else columns_version(record, _columns(context))


STAGE = Stage(
    name="removed_by_value",
    step="4-select",
    description="How many items are removed, and which share, by value of each column that `selection.limit` names; null is "
    "a value of its own. A check names the values of which more is removed than their limit.",
    dimensions=("epsilon", "k"),
    inputs=("keep_masks", "items"),
    input_version=_input_version,
    # The limits themselves belong to the check: another one makes nothing again.
    settings=lambda context: {"columns": _columns(context)},
    location=lambda layout, partition, selection: layout.of_kept_set(partition.kept_set(selection), "removed_by_value"),
    worker=_worker,
    kinds=frozenset({"polars", "parquet"}),
    columns=lambda _: (
        Column("column", "string", "Name of the column."),
        Column("value", "string", "One of its values as text; null for items without one."),
        Column("items", "int64", "Embedded items that have it."),
        Column("removed", "int64", "How many of them are removed."),
        Column("share", "float64", "Removed by items."),
    ),
    checks=CHECKS,
    shown=_shown,
    selected=True,
    applies=lambda _, selection: bool(selection.limits),
    pool="cpu",
    unit="kept sets",
)
