"""The removed items of a kept set in the order of the source, each with the kept item that stands for it."""

from typing import TYPE_CHECKING

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.stages.item_groups import EVERY_SHARD
from semdedup_assets.stages.kept_rows import ShardChunk, kept_and_removed_rows, kept_shards
from semdedup_assets.stages.manifest_formats import removed_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa


def removed_rows(context: StageContext, partition: Partition) -> "Iterator[pa.Table]":
    """The removed items of a kept set as the manifest format `removed` has them, a row group of a shard's items at a time.

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
