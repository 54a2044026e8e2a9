"""List what was removed, and which kept item each removed one duplicates."""

from typing import TYPE_CHECKING

from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import columns_version, item_texts
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import ANALYSE, Column, Link, Shown, Stage, Worker
from semdedup_assets.stages.keep_masks import REMOVED_BY, mask_files
from semdedup_assets.stages.mask_adjustments import removing_references
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.tables import TableWriter, read_arrow

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

REMOVED = "removed.parquet"
"""The table, in the record of a kept set's removed items."""


def _worker(context: StageContext) -> Worker:
    return lambda partition: write_removed_items(context, partition)


def write_removed_items(context: StageContext, partition: Partition) -> ResultRecord:
    """Write the table of `removed_items` (SemDeDup, Alg. A7: what the masks remove).

    Args:
        context: of the pipeline and the selection.
        partition: a kept set.

    Raises:
        MissingResultError: masks or items are missing, or the masks are made from other inputs than there are now.
    """
    with context.writing("removed_items", partition) as result:
        context.index.require_consistent("keep_masks", partition)
        with usage.phase("join"):
            table = removed_items(context, partition)
        with usage.phase("write"), result.open(REMOVED) as stream, TableWriter(stream) as writer:
            writer.write_frame(table)
        result.details = {
            "items": len(table),
            "orphans": int(table["is_orphan"].sum()),
            "without_key": int(table["key"].null_count()),
        }
    return result.committed


def removed_items(context: StageContext, partition: Partition) -> "pl.DataFrame":
    """The removed items of a kept set, by falling similarity to the kept item that each duplicates.

    Masks and items are read row group by row group: memory holds the removed items with their keys, and neither the
    kept items nor the keys of others.

    Args:
        context: of the pipeline and the selection.
        partition: a kept set.

    Returns:
        id, key, kept_id, kept_key, similarity, is_orphan, and `removed_by` where references remove; the keys are null
        where the source no longer has the item.

    Raises:
        MissingResultError: the masks or a shard's items have not been made.
    """
    import polars as pl

    masks = context.index.require("keep_masks", partition)
    removed = pl.concat(_removed(masks))
    ids = pl.concat([removed["id"], removed["kept_id"].rename("id")]).drop_nulls().unique().sort()
    context.index.require_all("items")
    keys = item_texts(context, ids.to_numpy())
    far = pl.col("similarity").cast(pl.Float64) <= 1.0 - float(masks.details["epsilon"])
    # Without a similarity the whole cluster is removed, or a reference removes the item.
    orphan = far.fill_null(pl.col("removed_by").is_null()) if "removed_by" in removed.columns else far
    return (
        removed.join(keys, on="id", how="left")
        .join(keys.rename({"id": "kept_id", "key": "kept_key"}), on="kept_id", how="left")
        .sort("similarity", "id", descending=[True, False], nulls_last=True)
        .select("id", "key", "kept_id", "kept_key", "similarity", *removed.columns[3:], is_orphan=orphan)
    )


def _removed(masks: ResultRecord) -> "Iterator[pl.DataFrame]":
    """The removed rows of each row group of the masks."""
    import polars as pl

    for file in mask_files(masks):
        for table in read_arrow(file):
            rows = pl.DataFrame(table).filter(~pl.col("kept")).drop("kept")
            yield rows.rename({"kept_neighbour": "kept_id", "kept_similarity": "similarity"})


def _shown(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    return {"table": Link(record.file(REMOVED).path)}


def _input_version(_: StageContext, name: str, record: ResultRecord) -> str:
    return record.version if name != "items" else columns_version(record, ("key",))


STAGE = Stage(
    name="removed_items",
    step=ANALYSE,
    description="Each removed item with the kept item that it duplicates, by falling similarity (SemDeDup, Alg. A7): a "
    "table to look through or to join with other data. Made on demand: a training job needs the manifests only.",
    dimensions=("epsilon", "k"),
    inputs=("keep_masks", "items"),
    input_version=_input_version,
    settings=lambda _: {},
    location=lambda layout, partition, selection: layout.of_kept_set(partition.kept_set(selection), "removed_items"),
    worker=_worker,
    kinds=frozenset({"polars", "parquet"}),
    columns=lambda pipeline: (
        Column("id", "uint64", "The removed item: shard (32 bits) and row in the shard (32 bits)."),
        Column("key", "string", "Its own name; null where the source no longer has it."),
        Column("kept_id", "uint64", "The most similar kept item of its cluster."),
        Column("kept_key", "string", "That item's own name; null where the source no longer has it."),
        Column("similarity", "float32", "Cosine similarity of the two."),
        *((REMOVED_BY,) if removing_references(pipeline) else ()),
        Column("is_orphan", "bool", "Whether the kept item is not within epsilon of the removed one."),
    ),
    shown=_shown,
    selected=True,
    on_demand=True,
    pool="cpu",
    unit="kept sets",
)
