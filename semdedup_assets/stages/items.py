"""Read keys and carried columns of a source's items, without what a model sees."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from semdedup_assets.checks.items import CHECKS
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import ITEMS, items_file
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.shard_reader import ShardReader, accepts_cut_files
from semdedup_assets.execution.stage import Column, Stage, Worker
from semdedup_assets.records import Item, item_ids
from semdedup_assets.settings import Pipeline
from semdedup_assets.sources.shard_index import Shard
from semdedup_assets.stages.embeddings import ID
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.tables import TableWriter, arrow_type, read_arrow

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS, _CHARACTERS = 1 << 16, 64 << 20
"""Rows, and characters after which fewer suffice, of a row group: whoever wants one item reads one group, and the same
items give the same bytes."""

_LISTED = 20


def _worker(context: StageContext) -> Worker:
    return lambda partition: read_shard_items(context, partition)


def read_shard_items(context: StageContext, partition: Partition) -> ResultRecord:
    """Write a shard's ids, keys and carried columns: one row for each record of its files, in their order.

    Records that cannot be embedded have a row too, so that the row of an item is its row among all records.
    """
    shard = context.shard(partition.required_shard)
    return _write(context, partition, shard, inputs={"shards": shard.fingerprint})


def _exclude(context: StageContext, partition: Partition, reason: str) -> ResultRecord:
    """Record a shard that cannot be read as one without items, and why."""
    shard = context.shard(partition.required_shard)
    inputs = {"shards": shard.fingerprint}
    return _write(context, partition, Shard(shard.index, ()), inputs=inputs, excluded=reason)


def _write(
    context: StageContext, partition: Partition, shard: Shard, *, inputs: dict[str, str], excluded: str | None = None
) -> ResultRecord:
    columns = context.pipeline.source.column_types
    reader, counts = ShardReader(context, shard, context.pipeline.source.read_items), _ItemCounts(columns)
    with context.writing("items", partition, inputs=inputs) as result:
        with result.open(ITEMS) as stream, TableWriter(stream) as table:
            for batch in _batches(reader, shard.index, counts):
                table.write_arrow(batch)
        result.details = {
            **counts.details(),
            "files": reader.rows_by_file,
            "cut_files": reader.cut_files,
            "passed_over": dict(reader.passed_over),
        }
        if excluded is not None:
            result.details["excluded"] = excluded
    return result.committed


class _ItemCounts:
    """What is counted of a shard's items, and a version of each column."""

    def __init__(self, column_types: Mapping[str, Any]) -> None:
        self.column_types = column_types
        self.items, self.invalid, self.without_key = 0, 0, 0
        self._keys, self._present, self._examples = Counter[str](), Counter[str](), list[list[str]]()
        self._hashes = {name: xxhash.xxh3_128() for name in ["key", *column_types]}

    def add(self, items: Sequence[Item], batch: "pa.RecordBatch") -> None:
        import pyarrow as pa

        self.items += len(items)
        self._keys.update(item.key for item in items)
        for item in items:
            self.invalid += len(item.invalid_values)
            self.without_key += any(reason.startswith("key ") for reason in item.invalid_values)
            self._examples += [[item.key, reason] for reason in item.invalid_values[: _LISTED - len(self._examples)]]
        for name in self.column_types:
            self._present[name] += len(batch) - batch.column(name).null_count
        for name, hashed in self._hashes.items():
            column = pa.record_batch([batch.column(name)], names=[name])
            hashed.update(memoryview(column.serialize()))

    def details(self) -> dict[str, Any]:
        repeated = [key for key, count in self._keys.items() if count > 1]
        return {
            "items": self.items,
            "present": dict(self._present),
            "without_key": self.without_key,
            "invalid_values": self.invalid,
            "invalid_value_examples": self._examples,
            "repeated_keys": len(repeated),
            "repeated_key_examples": repeated[:_LISTED],
            "column_versions": {name: hashed.hexdigest() for name, hashed in self._hashes.items()},
        }


def _batches(items: Iterable[Item], shard: int, counts: _ItemCounts) -> "Iterator[pa.RecordBatch]":
    """Record batches of one size; a shard without items gives one without rows."""
    import pyarrow as pa

    fields = [pa.field("id", pa.uint64()), pa.field("key", pa.string())]
    schema = pa.schema([*fields, *(pa.field(name, arrow_type(kind)) for name, kind in counts.column_types.items())])
    source, first = iter(items), 0
    while part := _row_group(source):
        columns = [[item.columns.get(name) for item in part] for name in counts.column_types]
        ids = item_ids(shard, np.arange(first, first + len(part)))
        arrays = [ids, [item.key for item in part], *columns]
        batch = pa.record_batch(
            [pa.array(values, field.type) for values, field in zip(arrays, schema, strict=True)], schema=schema
        )
        counts.add(part, batch)
        yield batch
        first += len(part)
    if first == 0:
        yield pa.RecordBatch.from_pylist([], schema=schema)


def _row_group(items: Iterator[Item]) -> list[Item]:
    """The next items, so many that long texts do not fill the memory."""
    part, characters = list[Item](), 0
    for item in items:
        part.append(item)
        characters += sum(len(value) for value in item.columns.values() if isinstance(value, str))
        if len(part) == _ROWS or characters >= _CHARACTERS:
            break
    return part


def item_values(
    record: ResultRecord, column: str, *, ranked: Sequence[str] | None = None
) -> "np.ndarray | np.ma.MaskedArray[Any, Any]":
    """(n,) a carried column of a shard by row, as numbers or bools; nulls are masked.

    Args:
        record: of the shard's items.
        column: its name; of text only with `ranked`.
        ranked: values of a text column: each item has the index of its own among them, or their number.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    values = pa.chunked_array(
        [table.column(column).combine_chunks() for table in read_arrow(items_file(record), [column])]
    )
    missing = values.is_null().to_numpy()
    if ranked is not None:
        values = pc.fill_null(pc.index_in(values, value_set=pa.array(ranked, pa.string())), len(ranked))
    if missing.any():
        empty = False if pa.types.is_boolean(values.type) else 0
        return np.ma.masked_array(values.fill_null(empty).to_numpy(), mask=missing)
    found: np.ndarray = values.to_numpy()
    return found


def item_columns(pipeline: Pipeline) -> tuple[Column, ...]:
    """What a table of items tells of each, of those of a shard and of those that are kept."""
    carried = (Column(name, kind, "Carried from the source.") for name, kind in pipeline.source.column_types.items())
    return (ID, Column("key", "string", "The item's own name, never cut."), *carried)


STAGE = Stage(
    name="items",
    step="1-embed",
    description="Id, key and carried columns of each item of a shard, one row for each record of the source, "
    "also where it cannot be embedded. Apart from the vectors, so that another column embeds nothing again.",
    dimensions=("shard",),
    inputs=("shards",),
    settings=lambda context: context.pipeline.source.item_settings(),
    location=lambda layout, partition, _: layout.items(partition.required_shard),
    worker=_worker,
    exclude=_exclude,
    accepts=accepts_cut_files,
    kinds=frozenset({"arrow", "parquet"}),
    columns=item_columns,
    checks=CHECKS,
    pool="cpu",
    unit="shards",
)
