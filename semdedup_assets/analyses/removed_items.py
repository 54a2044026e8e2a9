"""List what was removed, and which kept item each removed one duplicates."""

from typing import Any

from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import columns_version
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import ANALYSE, Link, Shown, Stage, Worker
from semdedup_assets.stages.manifest_tables import removed_columns, removed_rows
from semdedup_assets.storage.results import ResultRecord, fingerprint
from semdedup_assets.storage.tables import TableWriter

REMOVED = "removed.parquet"
"""The table, in the record of a kept set's removed items."""


def _worker(context: StageContext) -> Worker:
    return lambda partition: write_removed_items(context, partition)


def write_removed_items(context: StageContext, partition: Partition) -> ResultRecord:
    """Write the table of `removed_items` (SemDeDup, Alg. A7: what the masks remove); one row group of it is held.

    Args:
        context: of the pipeline and the selection.
        partition: a kept set.

    Raises:
        MissingResultError: masks or items are missing, or the masks are made from other inputs than there are now.
        SourceChangedError: a shard's items and its vectors are not of one state of the source.
    """
    import pyarrow.compute as pc

    context.index.require_consistent("keep_masks", partition)
    removed = int(context.index.require("keep_masks", partition).details["removed"])
    items = orphans = 0
    with context.writing("removed_items", partition) as result:
        with usage.phase("write"), result.open(REMOVED) as stream, TableWriter(stream) as writer:
            for table in removed_rows(context, partition):
                writer.write_arrow(table)
                items += len(table)
                orphans += pc.sum(table.column("is_orphan")).as_py() or 0
        # Of shards whose keys could not be read no item can be named.
        result.details = {"items": items, "orphans": orphans, "unlisted": removed - items}
    return result.committed


def _shown(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    return {"table": Link(record.file(REMOVED).path)}


def _settings(context: StageContext) -> dict[str, Any]:
    return {"weight": context.pipeline.manifest_weight}


def _input_version(_: StageContext, name: str, record: ResultRecord) -> str:
    """Of items their keys and where they lie: no other column."""
    if name != "items":
        return record.version
    return fingerprint([columns_version(record, ("key",)), record.details["files"]])


STAGE = Stage(
    name="removed_items",
    step=ANALYSE,
    description="Each removed item with the kept item that stands for it (SemDeDup, Alg. A7), in the order of the source: "
    "what a manifest's format `removed` holds, as one table, of every kept set that it is asked for.",
    dimensions=("epsilon", "k"),
    inputs=("keep_masks", "items"),
    input_version=_input_version,
    settings=_settings,
    location=lambda layout, partition, selection: layout.of_kept_set(partition.kept_set(selection), "removed_items"),
    worker=_worker,
    version=2,
    kinds=frozenset({"parquet"}),
    columns=removed_columns,
    shown=_shown,
    selected=True,
    on_demand=True,
    pool="cpu",
    unit="kept sets",
)
