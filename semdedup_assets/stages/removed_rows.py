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

COLUMNS = ("key", "file", "row", "kept_key", "similarity", "by_chain")
"""Of the tables: key, file and row in the file of what was removed; key of the kept item; cosine similarity of the two;
whether that is not within epsilon, so that the item was removed by a chain of others (SemDeDup, Alg. A7)."""

# The same in the manifest format `removed`.
_OF_FORMAT = ["key", "file", "file_row", "kept_key", "similarity", "is_orphan"]


def removed_rows(context: StageContext, partition: Partition) -> "Iterator[pa.Table]":
    """The removed items of a kept set, a row group of a shard's items at a time.

    Args:
        context: of the pipeline and the selection.
        partition: a kept set, whose masks are there.

    Raises:
        MissingResultError: items, embeddings or masks are missing.
    """
    masks = context.index.require("keep_masks", partition)
    for kept in kept_shards(context, masks, ShardChunk(0, EVERY_SHARD.stop, closed=False, copied=False)):
        for _, removed in kept_and_removed_rows(kept):
            yield removed_table(context, kept, removed).select(_OF_FORMAT).rename_columns(list(COLUMNS))
