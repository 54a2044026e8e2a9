"""Embed the items of a shard."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xxhash

from semdedup_assets.algorithm.sampling import CHECKSUM_MODULUS, id_checksum
from semdedup_assets.algorithm.shared_vectors import row_hashes, shared_vectors
from semdedup_assets.checks.embeddings import CHECKS
from semdedup_assets.encoders.decoding import MAX_PIXELS
from semdedup_assets.encoders.embed_once import EmbedOnce
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import Progress
from semdedup_assets.execution.shard_reader import ShardReader, accepts_cut_files
from semdedup_assets.execution.stage import Column, Stage, Worker
from semdedup_assets.records import Invalid, Record, Skipped, VectorBatch, content_bytes, content_hash, item_ids
from semdedup_assets.sources.shard_index import Shard
from semdedup_assets.storage.results import MissingResultError, ResultRecord, ResultWriter
from semdedup_assets.storage.tables import read_table, write_table
from semdedup_assets.storage.vectors import EmbeddingsWriter, write_skipped

VECTORS, SKIPPED, CONTENTS = "vectors.arrow", "skipped.parquet", "contents.parquet"
"""The files of a shard's embeddings, in its record."""

_LISTED = 20


def _worker(context: StageContext) -> Worker:
    model: Any = context.pipeline.encoder.load(context.compute)
    return lambda partition: embed_shard(context, partition, model=model)


def _sharing(context: StageContext, model: Any) -> Any:
    """A model that embeds each content of a shard once, where that is wanted."""
    pipeline = context.pipeline
    if pipeline.embed_once == "never" or pipeline.source.content == "vector":
        return model
    max_pixels = getattr(pipeline.encoder, "max_pixels", MAX_PIXELS)
    return EmbedOnce(model, pipeline.embed_once, np.dtype(pipeline.vectors), context.compute, max_pixels)


def embed_shard(context: StageContext, partition: Partition, *, model: Any) -> ResultRecord:
    """Embed a shard (SemDeDup, section 3): ids and unit vectors, with the skipped items beside them.

    Args:
        context: of the pipeline.
        partition: a shard.
        model: what the pipeline's encoder loaded.
    """
    shard = context.shard(partition.required_shard)
    with context.writing("embeddings", partition, inputs={"shards": shard.fingerprint}) as result:
        result.details = _write(context, shard, model, result)
    return result.committed


def _exclude(context: StageContext, partition: Partition, reason: str) -> ResultRecord:
    """Record a shard that cannot be embedded as one without items, and why."""
    shard = context.shard(partition.required_shard)
    with context.writing("embeddings", partition, inputs={"shards": shard.fingerprint}) as result:
        result.details = {**_write(context, Shard(shard.index, ()), None, result), "excluded": reason}
    return result.committed


class _Contents:
    """Passes records on, and remembers what they hold; of ready embeddings nothing.

    Attributes:
        hashes: content hash of each record, 0 for one without content.
        seconds: a second hash, independent of the first, 0 for one without content.
        sizes: bytes of each record (of a text, in UTF-8), 0 for one without content.
        expected_missing: how many of them have no content by the source's own account.
    """

    def __init__(self, records: Iterable[Record | Invalid | VectorBatch]) -> None:
        self.hashes, self.seconds, self.sizes = array("Q"), array("Q"), array("Q")
        self.expected_missing = 0
        self._records = records

    def __iter__(self) -> Iterator[Any]:
        for record in self._records:
            if isinstance(record, Record) and isinstance(record.payload, bytes | str):
                self._add(content_bytes(record.payload))
            elif isinstance(record, Invalid):
                for numbers in (self.hashes, self.seconds, self.sizes):
                    numbers.append(0)
                self.expected_missing += record.expected
            yield record

    def _add(self, content: bytes) -> None:
        self.hashes.append(content_hash(content))
        self.seconds.append(xxhash.xxh3_128_intdigest(content) >> 64)
        self.sizes.append(len(content))

    def columns(self) -> dict[str, np.ndarray]:
        """(records,) uint64 each: hash, second_hash, bytes."""
        columns = {"hash": self.hashes, "second_hash": self.seconds, "bytes": self.sizes}
        return {name: np.array(numbers, np.uint64) for name, numbers in columns.items()}


@dataclass(frozen=True, slots=True)
class StoredContents:
    """What the records of a shard hold, by row; zeros where a record has no content.

    Attributes:
        hashes: (records, 2) uint64; two independent hashes: contents that differ have no pair in common.
        sizes: (records,) int64, bytes; of a text, in UTF-8.
    """

    hashes: np.ndarray
    sizes: np.ndarray


def stored_contents(record: ResultRecord) -> StoredContents:
    """What the records of a shard hold.

    Args:
        record: of the shard's embeddings, of images or texts.

    Raises:
        MissingResultError: an earlier version of this software embedded the shard; names it and the remedy.
    """
    try:
        columns = read_table(record.file(CONTENTS), ["hash", "second_hash", "bytes"])
    except KeyError as error:
        message = (
            f"{record.location}: was embedded by an earlier version, which noted neither sizes nor second hashes; "
            "materialise these embeddings with `again`"
        )
        raise MissingResultError(message) from error
    return StoredContents(
        np.stack([columns["hash"], columns["second_hash"]], axis=1), columns["bytes"].astype(np.int64)
    )


def content_hashes(record: ResultRecord) -> np.ndarray:
    """(records,) uint64: the content hash of each record of a shard, by row; 0 where it has no content.

    Args:
        record: of the shard's embeddings, of images or texts.
    """
    return read_table(record.file(CONTENTS), ["hash"])["hash"]


def _write(context: StageContext, shard: Shard, model: Any, result: ResultWriter) -> dict[str, Any]:
    """Write what a model makes of a shard's records; without files nothing is asked of it, and no row is written."""
    reader = ShardReader(context, shard, context.pipeline.source.read)
    records, model = _Contents(reader), _sharing(context, model)
    skipped, checksum = list[Skipped](), 0
    rows, vectors = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    writer: EmbeddingsWriter | None = None
    with (
        Progress(f"embeddings {shard.name}", total=None, unit="items") as progress,
        result.open(VECTORS, ranges=lambda: writer.ranges if writer else "") as stream,
    ):
        writer = EmbeddingsWriter(stream, shard.index, context.pipeline.vectors)
        for batch in usage.each("embed", model.embed(records) if shard.files else ()):
            with usage.phase("write"):
                writer.write(batch)
            skipped += batch.skipped
            rows.append(batch.rows)
            checksum = (checksum + id_checksum(item_ids(shard.index, batch.rows))) % CHECKSUM_MODULUS
            if context.pipeline.source.content != "vector":
                vectors.append(row_hashes(batch.vectors))
            progress.advance(len(batch.rows))
        # Asked only now: that of ready embeddings is known once this shard's first is read.
        writer.dimension = writer.dimension or getattr(model, "dimension", None)
        writer.close()
    # Keys are those of the settings under which it was embedded, contents change where vectors do not: neither counts
    # for the version.
    result.unversioned |= {SKIPPED, CONTENTS}
    with result.open(SKIPPED) as stream:
        write_skipped(stream, skipped, shard=shard.index)
    contents, items = records.columns(), sum(map(len, rows))
    with result.open(CONTENTS) as stream:
        write_table(stream, contents)
    return {
        "items": items,
        **_embedded(model, items),
        "records": reader.rows,
        "skipped": len(skipped),
        "expected_missing": records.expected_missing,
        "skipped_examples": [[item.key, item.reason] for item in skipped[:_LISTED]],
        "cut_files": reader.cut_files,
        "shared_vectors": _shared(shard, np.concatenate(rows), np.concatenate(vectors), contents["hash"]),
        "dimension": writer.dimension,
        "not_finite": writer.audit.not_finite,
        "norm_error": writer.audit.norm_error,
        "repeated_ids": writer.audit.repeated_rows,
        "id_checksum": checksum,
    }


def _embedded(model: Any, items: int) -> dict[str, Any]:
    """How many items went through the model, and how many share a vector with one of them."""
    if not isinstance(model, EmbedOnce):
        return {}
    return {
        "embedded": items - model.shared,
        "shared": model.shared,
        "shared_fraction": model.shared / items if items else None,
    }


def _shared(shard: Shard, rows: np.ndarray, vectors: np.ndarray, contents: np.ndarray) -> list[dict[str, Any]]:
    """The vectors that items of different content share, each with an id of such an item as its example."""
    if not len(vectors):
        return []
    ids = item_ids(shard.index, rows)
    found = shared_vectors(vectors, contents[rows], most=_LISTED)
    return [{**asdict(each), "example": int(ids[each.example])} for each in found]


def _settings(context: StageContext) -> dict[str, Any]:
    pipeline = context.pipeline
    determining = {
        "source": pipeline.source.payload_settings(),
        "encoder": pipeline.encoder.identity(),
        "vectors": pipeline.vectors,
    }
    # Whether equal input is embedded once changes no vector, just as the batch size does not.
    return determining | ({"embed_once": "normalised"} if pipeline.embed_once == "normalised" else {})


ID = Column("id", "uint64", "Identity: shard (32 bits) and row in the shard (32 bits).")
VECTOR = Column("vector", "fixed_size_list<float16>", "Embedding of unit norm.")

STAGE = Stage(
    name="embeddings",
    step="1-embed",
    description="One unit vector (n × d, float16) for each item of a shard, by a pre-trained model (SemDeDup, section "
    "3). Items that cannot be embedded are listed with their reasons beside it.",
    dimensions=("shard",),
    inputs=("shards",),
    settings=_settings,
    location=lambda layout, partition, _: layout.embeddings(partition.required_shard),
    worker=_worker,
    exclude=_exclude,
    accepts=accepts_cut_files,
    kinds=frozenset({"torch", "arrow"}),
    columns=lambda _: (ID, VECTOR),
    checks=CHECKS,
    unit="shards",
)
