"""The removed items of a kept set in the order of the source, each with the kept item that stands for it."""

from typing import TYPE_CHECKING

import numpy as np

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.sources.reading import printable
from semdedup_assets.stages.item_groups import EVERY_SHARD
from semdedup_assets.stages.kept_rows import KeptShard, ShardChunk, ShardRows, kept_and_removed_rows, kept_shards

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

COLUMNS = ("key", "file", "row", "kept_key", "similarity", "by_chain")
"""Of the tables: key, file and row in the file of what was removed; key of the kept item; cosine similarity of the two;
whether that is not within epsilon, so that the item was removed by a chain of others (SemDeDup, Alg. A7)."""


def removed_rows(context: StageContext, partition: Partition) -> "Iterator[pa.Table]":
    """The removed items of a kept set, a row group of a shard's items at a time.

    Args:
        context: of the pipeline and the selection.
        partition: a kept set, whose masks are there.

    Raises:
        MissingResultError: items, embeddings or masks are missing.
    """
    masks = context.index.require("keep_masks", partition)
    epsilon = float(masks.details["epsilon"])
    for kept in kept_shards(context, masks, ShardChunk(0, EVERY_SHARD.stop, closed=False, copied=False)):
        for _, removed in kept_and_removed_rows(kept):
            yield _table(kept, removed, epsilon=epsilon)


def _table(kept: KeptShard, rows: ShardRows, *, epsilon: float) -> "pa.Table":
    import pyarrow as pa

    group, similarity, _ = kept.groups.of(rows.table.column("id").to_numpy())
    unknown = np.isnan(similarity)
    # A share of float32, held against epsilon as the masks do.
    far = similarity.astype(np.float64) <= 1.0 - epsilon
    names = pa.array([printable(path) for path in kept.paths], pa.string())
    columns = (
        rows.table.column("key"),
        names.take(pa.array(rows.files)),
        pa.array(rows.file_rows),
        kept.keys.of(group),
        pa.array(similarity, mask=unknown),
        pa.array(far, mask=unknown),
    )
    return pa.table(columns, names=list(COLUMNS))
