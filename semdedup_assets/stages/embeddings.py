"""Embed the items of a shard."""

from collections.abc import Iterator
from typing import Any

from semdedup_assets.algorithm.sampling import CHECKSUM_MODULUS, id_checksum
from semdedup_assets.checks.embeddings import CHECKS
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import Progress
from semdedup_assets.execution.stage import Column, Stage, Worker
from semdedup_assets.records import Invalid, Skipped, VectorBatch, item_ids
from semdedup_assets.sources.shard_index import Shard
from semdedup_assets.storage.results import ResultRecord, ResultWriter
from semdedup_assets.storage.vectors import EmbeddingsWriter, write_skipped

VECTORS, SKIPPED = "vectors.arrow", "skipped.parquet"
"""The files of a shard's embeddings, in its record."""

_LISTED = 20


def _worker(context: StageContext) -> Worker:
    model: Any = context.pipeline.encoder.load(context.compute)
    return lambda partition: embed_shard(context, partition, model=model)


def embed_shard(context: StageContext, partition: Partition, *, model: Any) -> ResultRecord:
    """Embed a shard (SemDeDup, section 3): ids and unit vectors, with the skipped items beside them.

    Args:
        context: of the pipeline.
        partition: a shard.
        model: what the pipeline's encoder loaded.
    """
    shard = context.shard(partition.required_shard)
    with context.writing("embeddings", partition, inputs={"shards": shard.fingerprint}) as result:
        result.details = _write(context, shard, _ShardRecords(context, shard), model, result)
    return result.committed


def _exclude(context: StageContext, partition: Partition, reason: str) -> ResultRecord:
    """Record a shard that cannot be embedded as one without items, and why."""
    shard = context.shard(partition.required_shard)
    with context.writing("embeddings", partition, inputs={"shards": shard.fingerprint}) as result:
        result.details = {**_write(context, shard, None, None, result), "excluded": reason}
    return result.committed


class _ShardRecords:
    """The records of a shard's files one after the other.

    Attributes:
        count: how many there were so far.
        expected_missing: how many of them have no payload by the source's own account.
    """

    def __init__(self, context: StageContext, shard: Shard) -> None:
        self._source = context.pipeline.source
        self._files = [file.path for file in shard.files]
        self.count = self.expected_missing = 0

    def __iter__(self) -> Iterator[Any]:
        for path in self._files:
            for record in self._source.read(path):
                self.count += len(record.keys) if isinstance(record, VectorBatch) else 1
                self.expected_missing += isinstance(record, Invalid) and record.expected
                yield record


def _write(
    context: StageContext, shard: Shard, records: _ShardRecords | None, model: Any, result: ResultWriter
) -> dict[str, Any]:
    """Write what a model makes of records; without records, files without a row."""
    skipped, items, checksum = list[Skipped](), 0, 0
    writer: EmbeddingsWriter | None = None
    with (
        Progress(f"embeddings {shard.name}", total=None, unit="items") as progress,
        result.open(VECTORS, ranges=lambda: writer.ranges if writer else "") as stream,
    ):
        writer = EmbeddingsWriter(stream, shard.index, context.pipeline.vectors)
        for batch in usage.each("embed", model.embed(records) if records is not None else ()):
            with usage.phase("write"):
                writer.write(batch)
            skipped += batch.skipped
            items += len(batch.rows)
            checksum = (checksum + id_checksum(item_ids(shard.index, batch.rows))) % CHECKSUM_MODULUS
            progress.advance(len(batch.rows))
        # Asked only now: that of ready embeddings is known once this shard's first is read.
        writer.dimension = writer.dimension or getattr(model, "dimension", None)
        writer.close()
    # The keys in it are those of the settings under which it was embedded: they do not count for the version.
    result.unversioned.add(SKIPPED)
    with result.open(SKIPPED) as stream:
        write_skipped(stream, skipped, shard=shard.index)
    return {
        "items": items,
        "records": records.count if records is not None else 0,
        "skipped": len(skipped),
        "expected_missing": records.expected_missing if records is not None else 0,
        "skipped_examples": [[item.key, item.reason] for item in skipped[:_LISTED]],
        "dimension": writer.dimension,
        "not_finite": writer.audit.not_finite,
        "norm_error": writer.audit.norm_error,
        "repeated_ids": writer.audit.repeated_rows,
        "id_checksum": checksum,
    }


ID = Column("id", "uint64", "Identity: shard (32 bits) and row in the shard (32 bits).")
VECTOR = Column("vector", "fixed_size_list<float16>", "Embedding of unit norm.")

STAGE = Stage(
    name="embeddings",
    step="1-embed",
    description="One unit vector (n × d, float16) for each item of a shard, by a pre-trained model (SemDeDup, section "
    "3). Items that cannot be embedded are listed with their reasons beside it.",
    dimensions=("shard",),
    inputs=("shards",),
    settings=lambda context: {
        "source": context.pipeline.source.payload_settings(),
        "encoder": context.pipeline.encoder.identity(),
        "vectors": context.pipeline.vectors,
    },
    location=lambda layout, partition, _: layout.embeddings(partition.required_shard),
    worker=_worker,
    exclude=_exclude,
    kinds=frozenset({"torch", "arrow"}),
    columns=lambda _: (ID, VECTOR),
    checks=CHECKS,
    unit="shards",
)
