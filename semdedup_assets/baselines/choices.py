"""What a baseline keeps: masks of the same columns as the method's, of all items that have a vector."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from semdedup_assets.algorithm.sampling import CHECKSUM_MODULUS, id_checksum
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Column
from semdedup_assets.kept_sets import Selection
from semdedup_assets.settings import Pipeline
from semdedup_assets.stages.embeddings import ID, VECTORS
from semdedup_assets.storage.results import MissingResultError, ResultRecord, ResultWriter
from semdedup_assets.storage.tables import TableWriter
from semdedup_assets.storage.vectors import read_ids

MASKS = "masks.parquet"
"""The table of a baseline's masks, in the record."""

_ROW_GROUP = 1 << 18

COLUMNS = (
    ID,
    Column("kept", "bool", "Whether the item stays."),
    Column("kept_neighbour", "uint64", "The kept item of its group; null where the item is kept, or has no group."),
    Column("kept_similarity", "float32", "Null: a baseline knows no cosine similarity."),
)


@dataclass(frozen=True, slots=True)
class EmbeddedShard:
    """The items of a shard that have a vector.

    Attributes:
        partition: the shard.
        record: of its embeddings.
        ids: (n,) uint64, ascending.
    """

    partition: Partition
    record: ResultRecord
    ids: np.ndarray

    def require_same_source(self, context: StageContext, stage: str) -> ResultRecord:
        """The record of another stage of this shard, made from the same files.

        Raises:
            MissingResultError: it is missing, or its files were other ones; names what to materialise.
        """
        record = context.index.require(stage, self.partition)
        if record.inputs["shards"] != self.record.inputs["shards"]:
            message = (
                f"{record.location}: made of other files than the shard's vectors; "
                f"{context.remedy(stage, self.partition)}, and its embeddings"
            )
            raise MissingResultError(message)
        return record


def embedded_shards(context: StageContext) -> Iterator[EmbeddedShard]:
    """The shards in the order of their ids."""
    for partition, record in context.index.require_all("embeddings").items():
        parts = [np.zeros(0, np.uint64), *read_ids(record.file(VECTORS))]
        yield EmbeddedShard(partition, record, np.concatenate(parts))


def write_groups(result: ResultWriter, ids: np.ndarray, first: np.ndarray) -> dict[str, Any]:
    """Write masks that keep the first item of each group.

    Args:
        result: of the baseline's masks.
        ids: (n,) uint64, ascending.
        first: (n,) int64, position of the first item of each one's group.

    Returns:
        What the masks' details say: items, kept, removed, kept_fraction, groups, largest_group, id_checksum.
    """
    kept = first == np.arange(len(ids))
    sizes = np.bincount(first, minlength=1) if len(ids) else np.zeros(1, np.int64)
    details = write_masks(result, ids, kept, np.ma.masked_array(ids[first], mask=kept))
    return {**details, "groups_of_several": int((sizes > 1).sum()), "largest_group": int(sizes.max())}


def write_masks(
    result: ResultWriter, ids: np.ndarray, kept: np.ndarray, neighbour: "np.ma.MaskedArray[Any, Any]"
) -> dict[str, Any]:
    """Write masks.

    Args:
        result: of the baseline's masks.
        ids: (n,) uint64.
        kept: (n,) bool.
        neighbour: (n,) uint64, the kept item for which each was removed; masked where there is none.
    """
    with result.open(MASKS) as stream, TableWriter(stream) as table:
        for start in range(0, max(1, len(ids)), _ROW_GROUP):
            part = slice(start, start + _ROW_GROUP)
            unknown = np.ma.masked_array(np.zeros(len(ids[part]), np.float32), mask=True)
            table.write(
                {
                    "id": ids[part],
                    "kept": kept[part],
                    "kept_neighbour": neighbour[part],
                    "kept_similarity": unknown,
                }
            )
    return {
        "items": len(ids),
        "kept": int(kept.sum()),
        "removed": len(ids) - int(kept.sum()),
        "kept_fraction": float(kept.mean()) if len(ids) else None,
        "id_checksum": id_checksum(ids) % CHECKSUM_MODULUS,
    }


def items_version(_: StageContext, name: str, record: ResultRecord) -> str:
    """Of embeddings only which items there are counts; of other inputs everything."""
    details = record.details
    return f"{details['items']}-{details['id_checksum']}" if name == "embeddings" else record.version


def has_content(pipeline: Pipeline, _: Selection) -> bool:
    """Whether there is more to an item than a ready vector."""
    return pipeline.source.content != "vector"


def has_texts(pipeline: Pipeline, _: Selection) -> bool:
    """Whether items are texts."""
    return pipeline.source.content == "text"


def has_images(pipeline: Pipeline, _: Selection) -> bool:
    """Whether items are images."""
    return pipeline.source.content == "image"
