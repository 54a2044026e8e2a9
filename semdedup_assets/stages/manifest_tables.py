"""The tables of kept and of removed items: what a manifest says of each, and which kept item stands for which."""

from typing import TYPE_CHECKING, get_args

import numpy as np

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Column
from semdedup_assets.records import ColumnType
from semdedup_assets.settings import Pipeline
from semdedup_assets.sources.reading import printable
from semdedup_assets.stages.embeddings import ID
from semdedup_assets.stages.item_groups import EVERY_SHARD, NO_GROUP
from semdedup_assets.stages.keep_masks import REMOVED_BY
from semdedup_assets.stages.kept_rows import KeptShard, ShardChunk, ShardRows, kept_and_removed_rows, kept_shards
from semdedup_assets.stages.mask_adjustments import removing_references
from semdedup_assets.storage.tables import arrow_type

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

_LOCATED = (
    ID,
    Column("shard", "string", "The shard's name."),
    Column("row", "int64", "Row of the record in its shard, counted from 0."),
    Column("file", "string", "The source's file; of a name that is not UTF-8 an escaped one."),
    Column("file_row", "int64", "Row of the record in its file, counted from 0."),
    Column("key", "string", "The item's own name, never cut."),
)


def _grouped(pipeline: Pipeline) -> tuple[Column, ...]:
    weight = Column("weight", "float64", "What the item counts in training, by the setting `manifest_weight`.")
    return (
        Column(
            "group", "uint64", "Id of the kept item that stands for this one; a kept item's own. Null where none does."
        ),
        Column("group_size", "uint32", "How many items that one stands for, itself counted; null where `group` is."),
        *(() if pipeline.manifest_weight is None else (weight,)),
    )


def kept_columns(pipeline: Pipeline) -> tuple[Column, ...]:
    """What is said of each kept item, the same for all shards: where it lies, its group, and the carried columns."""
    carried = (Column(name, kind, "Carried from the source.") for name, kind in pipeline.source.column_types.items())
    return (*_LOCATED, *_grouped(pipeline), *carried)


def removed_columns(pipeline: Pipeline) -> tuple[Column, ...]:
    """What is said of each removed item, the same for all shards: where it lies, and what stands for it."""
    return (
        *_LOCATED,
        *_grouped(pipeline),
        Column("kept_key", "string", "The own name of the group's kept item; null where there is none."),
        Column("kept_file", "string", "The file that one lies in."),
        Column("kept_file_row", "int64", "Its row there."),
        Column("similarity", "float32", "Cosine similarity to it; null where it is not known."),
        Column(
            "is_orphan",
            "bool",
            "Whether no kept item stands for this one: the nearest is not within epsilon, or the whole cluster is removed. "
            "Null where that is not known.",
        ),
        *((REMOVED_BY,) if removing_references(pipeline) else ()),
    )


def _table(columns: tuple[Column, ...], found: dict[str, "pa.Array"], rows: ShardRows) -> "pa.Table":
    """A table of some columns: those that were found, and the others as the items have them."""
    import pyarrow as pa

    # What is carried has a type of the settings, whose `float` is not Arrow's.
    types = [arrow_type(each.type) if each.type in get_args(ColumnType) else each.type for each in columns]  # type: ignore[arg-type]
    schema = pa.schema([(each.name, kind) for each, kind in zip(columns, types, strict=True)])
    arrays = [found[name] if name in found else rows.table.column(name) for name in schema.names]
    return pa.table(arrays, schema=schema)


def kept_table(context: StageContext, kept: KeptShard, rows: ShardRows) -> "pa.Table":
    """Some kept items of a shard, with `kept_columns`."""
    group, _, size = kept.groups.of(rows.table.column("id").to_numpy())
    found = {**_locations(kept, rows), **_group_columns(context.pipeline, group, size, kept=True)}
    return _table(kept_columns(context.pipeline), found, rows)


def removed_table(context: StageContext, kept: KeptShard, rows: ShardRows) -> "pa.Table":
    """Some removed items of a shard, with `removed_columns`."""
    import pyarrow as pa

    from semdedup_assets.algorithm.selection import Selection, orphans

    ids = rows.table.column("id").to_numpy()
    group, similarity, size = kept.groups.of(ids)
    kept_file, kept_file_row = kept.files.of(group)
    removed_by, unknown = kept.groups.removed_by(ids), np.isnan(similarity)
    # Without an epsilon nothing is within it, and nothing beyond.
    undecided = (unknown & (group != NO_GROUP)) | (kept.epsilon is None)
    neighbour = np.where(group == NO_GROUP, -1, 0)
    removed = Selection(np.zeros(len(ids), bool), neighbour, similarity)
    names = pa.array(removing_references(context.pipeline), pa.string())
    found = {
        **_locations(kept, rows),
        **_group_columns(context.pipeline, group, size, kept=False),
        "kept_key": kept.keys.of(group),
        "kept_file": kept_file,
        "kept_file_row": kept_file_row,
        "similarity": pa.array(similarity, mask=unknown),
        "is_orphan": pa.array(orphans(removed, kept.epsilon or 0.0, gone=removed_by >= 0), mask=undecided),
        REMOVED_BY.name: names.take(pa.array(removed_by, mask=removed_by < 0)),
    }
    return _table(removed_columns(context.pipeline), found, rows)


def removed_rows(context: StageContext, partition: Partition) -> "Iterator[pa.Table]":
    """The removed items of a kept set in the order of the source, a row group of a shard's items at a time.

    Args:
        context: of the pipeline and the selection.
        partition: a kept set, whose masks are there.

    Raises:
        MissingResultError: items, embeddings or masks are missing.
        SourceChangedError: a shard's items and its vectors are not of one state of the source.
    """
    masks = context.index.require("keep_masks", partition)
    for kept in kept_shards(context, masks, ShardChunk(0, EVERY_SHARD.stop, closed=False, copied=False)):
        for _, removed in kept_and_removed_rows(kept):
            yield removed_table(context, kept, removed)


def _locations(kept: KeptShard, rows: ShardRows) -> dict[str, "pa.Array"]:
    """Where some records lie."""
    import pyarrow as pa

    # A string column holds no file name that is not UTF-8: it is escaped as in its items' keys.
    names = pa.array([printable(path) for path in kept.paths], pa.string())
    return {
        "shard": pa.array([kept.shard.name] * len(rows.rows), pa.string()),
        "row": pa.array(rows.rows),
        "file": names.take(pa.array(rows.files)),
        "file_row": pa.array(rows.file_rows),
    }


def _group_columns(pipeline: Pipeline, group: np.ndarray, size: np.ndarray, *, kept: bool) -> dict[str, "pa.Array"]:
    """Group, its size and what an item weighs; null where it belongs to none."""
    import pyarrow as pa

    missing = group == NO_GROUP
    if pipeline.manifest_weight == "inverse_group_size":
        weight = 1.0 / np.maximum(size, 1)
    else:
        weight = size.astype(np.float64) if kept else np.zeros(len(size))
    columns = {"group": group, "group_size": size, "weight": weight}
    return {name: pa.array(values, mask=missing) for name, values in columns.items()}
