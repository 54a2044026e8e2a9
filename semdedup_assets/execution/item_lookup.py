"""Find keys and columns of items by their ids: for whoever names items to a person."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.records import id_rows, id_shards, positions_by_shard
from semdedup_assets.storage.results import ResultRecord, StoredFile, fingerprint
from semdedup_assets.storage.tables import read_rows

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

ITEMS = "items.parquet"
"""The table of a shard's items, in the record of the stage `items`: one row for each record of the source, in order."""


def items_file(record: ResultRecord) -> StoredFile:
    """The table of a shard's items."""
    return record.file(ITEMS)


def find_items(context: StageContext, ids: Iterable[int], columns: Sequence[str] = ()) -> dict[int, dict[str, Any]]:
    """Keys and columns of some items, by id; of those whose shard is there and holds them.

    Args:
        context: of the pipeline.
        ids: of the items.
        columns: carried columns that are wanted beside `key`.
    """
    wanted = np.unique(np.fromiter(ids, np.uint64))
    tables = read_items(context, wanted, ["id", "key", *columns])
    return {int(row["id"]): row for table in tables for row in table.to_pylist()}


def read_items(context: StageContext, ids: np.ndarray, columns: Sequence[str]) -> "Iterator[pa.Table]":
    """Columns of some items, a row group at a time; of those whose shard is there and holds them.

    Args:
        context: of the pipeline.
        ids: (n,) uint64, ascending and distinct.
        columns: of the items' tables.
    """
    names = {shard.index: shard.name for shard in context.shard_index.shards}
    for shard, positions in positions_by_shard(ids):
        record = context.index.record("items", Partition(shard=names[shard])) if shard in names else None
        if record is not None:
            yield from read_rows(items_file(record), id_rows(ids[positions]), columns)


def item_texts(context: StageContext, ids: np.ndarray, columns: Sequence[str] = ("key",)) -> "pl.DataFrame":
    """Text columns of some items; of those that the source has.

    Args:
        context: of the pipeline.
        ids: (n,) uint64, ascending and distinct.
        columns: of the items' tables, each of text.

    Returns:
        id (uint64), and each of the columns.
    """
    import polars as pl

    found = [pl.DataFrame(table) for table in read_items(context, ids, ["id", *columns])]
    return pl.concat([pl.DataFrame(schema={"id": pl.UInt64, **dict.fromkeys(columns, pl.String)}), *found])


def item_keys(context: StageContext, ids: Iterable[int]) -> dict[int, str]:
    """The source's own names of some items, by id; one that is not there now is named by its shard and row."""
    wanted = list(ids)
    array = np.array(wanted, dtype=np.uint64)
    positions = zip(wanted, id_shards(array).tolist(), id_rows(array).tolist(), strict=True)
    names = {item: f"shard {shard}, row {row}" for item, shard, row in positions}
    return names | {item: str(row["key"]) for item, row in find_items(context, wanted).items()}


def columns_version(record: ResultRecord, columns: Iterable[str]) -> str:
    """One version for some columns of a shard's items: what reads no others does not depend on them.

    Args:
        record: of the items.
        columns: names; those that the items do not have are passed over.
    """
    versions = record.details["column_versions"]
    return fingerprint({name: versions[name] for name in columns if name in versions})
