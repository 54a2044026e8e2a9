"""The items of a kept set with their clusters, groups and values, in the order of ids: what a screen counts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import items_file
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.stages.duplicate_scores import scores_files
from semdedup_assets.stages.keep_masks import mask_files
from semdedup_assets.storage.results import MissingResultError, StoredFile
from semdedup_assets.storage.tables import read_arrow, read_table

NOBODY = -1
"""In place of the position of a kept item where none stands for a removed one."""


@dataclass(frozen=True, slots=True)
class ScreenedItems:
    """The items of a kept set: (n,) each, 25 bytes an item.

    Attributes:
        ids: uint64, ascending.
        kept: bool.
        cluster: int32.
        head: int64, position of the kept item that stands for each, its own where it is kept; `NOBODY` where none does.
        similarity: float32 to that item, NaN where it is kept or not known.
    """

    ids: np.ndarray
    kept: np.ndarray
    cluster: np.ndarray
    head: np.ndarray
    similarity: np.ndarray

    @classmethod
    def of(cls, context: StageContext, partition: Partition) -> "ScreenedItems":
        """Read masks and scores of a kept set.

        Raises:
            MissingResultError: they are missing, or made from other inputs than there are now.
        """
        masks = context.index.require_consistent("keep_masks", partition)[partition]
        scores = scores_files(context, partition.required_clustering)
        parts = [_of_range(*files) for files in zip(scores, mask_files(masks), strict=True)]
        ids, kept, cluster, head, stands, similarity = (np.concatenate(each) for each in zip(*parts, strict=True))
        order = np.argsort(ids)
        ids, kept = ids[order], kept[order]
        positions = np.where(stands[order], np.searchsorted(ids, head[order]), NOBODY)
        positions = np.where(kept, np.arange(len(ids)), positions)
        return cls(ids, kept, cluster[order], positions, similarity[order])

    @property
    def groups(self) -> np.ndarray:
        """(n,) int64: a number for each kept item with those that it stands for; others are alone."""
        return np.where(self.head == NOBODY, np.arange(len(self.ids)), self.head)

    @property
    def pairs(self) -> np.ndarray:
        """(m,) int64: positions of the removed items that a kept one stands for."""
        return np.flatnonzero(~self.kept & (self.head != NOBODY))

    def values(self, context: StageContext, column: str) -> "np.ma.MaskedArray[Any, Any]":
        """(n,) uint64: what identifies the value of a carried column of each item; masked where it has none.

        Args:
            context: of the pipeline.
            column: its name; of strings, whole numbers or bools.

        Raises:
            MissingResultError: a shard's items have not been made.
        """
        found = np.ma.masked_all(len(self.ids), np.uint64)
        for ids, values, there in _column(context, column):
            at = np.minimum(np.searchsorted(self.ids, ids), max(0, len(self.ids) - 1))
            own = there & (self.ids[at] == ids) if len(self.ids) else np.zeros(len(ids), bool)
            found[at[own]] = values[own]
        return found


def _of_range(scores: StoredFile, masks: StoredFile) -> tuple[np.ndarray, ...]:
    """Id, kept, cluster, id of the kept item, whether there is one, and similarity of the items of a range."""
    scored = read_table(scores, ["id", "cluster"])
    columns = ["id", "kept", "kept_neighbour", "kept_similarity"]
    masked = read_table(masks, columns)
    if not np.array_equal(scored["id"], masked["id"]):
        message = f"{masks.path}: made of other scores than there are now; materialise keep_masks again"
        raise MissingResultError(message)
    # Null reads as 0, which is an item's id too.
    stands = np.concatenate(
        [np.zeros(0, bool), *(part.column(0).is_valid().to_numpy() for part in read_arrow(masks, ["kept_neighbour"]))]
    )
    cluster, kept = scored["cluster"].astype(np.int32), masked["kept"].astype(bool)
    return masked["id"], kept, cluster, masked["kept_neighbour"], stands, masked["kept_similarity"]


def _column(context: StageContext, column: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Ids, hashes of values, and whether there is one, of the items of each shard, a row group at a time."""
    import polars as pl

    for record in context.index.require_all("items").values():
        if record.excluded is not None:
            continue
        for table in read_arrow(items_file(record), ["id", column]):
            frame = pl.DataFrame(table)
            values = frame[column]
            yield frame["id"].to_numpy(), values.hash(seed=0).to_numpy(), values.is_not_null().to_numpy()
