"""Find keys and columns of items by their ids: for whoever names items to a person."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.records import id_rows, id_shards
from semdedup_assets.storage.results import ResultRecord, StoredFile, fingerprint
from semdedup_assets.storage.tables import read_rows

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
    found: dict[int, dict[str, Any]] = {}
    for shard in context.shard_index.shards:
        here = wanted[id_shards(wanted) == shard.index]
        record = context.index.record("items", Partition(shard=shard.name)) if len(here) else None
        if record is None:
            continue
        rows = id_rows(here)
        for first, table in read_rows(items_file(record), rows, ["id", "key", *columns]):
            chosen = table.take(rows[(rows >= first) & (rows < first + len(table))] - first).to_pylist()
            found |= {int(row["id"]): row for row in chosen}
    return found


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
