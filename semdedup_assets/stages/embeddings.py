"""Embed the items of a shard."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
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
from semdedup_assets.execution.held_out import (
    HELD_OUT,
    HeldOutRecord,
    HoldOut,
    HoldOutReader,
    hold_out,
    hold_out_settings,
)
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import Progress
from semdedup_assets.execution.shard_reader import ShardReader, accepts_cut_files
from semdedup_assets.execution.stage import Column, Stage, Worker
from semdedup_assets.records import Invalid, Record, Skipped, VectorBatch, content_bytes, content_hash, item_ids
from semdedup_assets.settings import Pipeline
from semdedup_assets.sources import Source
from semdedup_assets.sources.shard_index import Shard
from semdedup_assets.storage.results import MissingResultError, ResultRecord, ResultWriter
from semdedup_assets.storage.tables import read_table, write_table
from semdedup_assets.storage.vectors import EmbeddingsWriter, write_skipped

VECTORS, SKIPPED, CONTENTS = "vectors.arrow", "skipped.parquet", "contents.parquet"
"""The files of a shard's embeddings, in its record."""

KEYS, FILES = "keys.parquet", "files.parquet"
"""Row and key of each item, path and number of records of each file: where no other result has them."""

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
        pipeline = context.pipeline
        embedder = ShardEmbedder(context, model, pipeline.source, hold_out=hold_out(pipeline))
        result.details = embedder.write(shard, result)
    return result.committed


def _exclude(context: StageContext, partition: Partition, reason: str) -> ResultRecord:
    """Record a shard that cannot be embedded as one without items, and why."""
    shard = context.shard(partition.required_shard)
    with context.writing("embeddings", partition, inputs={"shards": shard.fingerprint}) as result:
        nothing = ShardEmbedder(context, None, context.pipeline.source).write(Shard(shard.index, ()), result)
        result.details = {**nothing, "excluded": reason}
    return result.committed


class _Contents:
    """Passes records on, and remembers what they hold; of ready embeddings nothing. Held-out ones become invalid ones.

    Attributes:
        hashes: content hash of each record, 0 for one without content.
        seconds: a second hash, independent of the first, 0 for one without content.
        sizes: bytes of each record (of a text, in UTF-8), 0 for one without content.
        words: of each text, between white space; 0 for any other record.
        expected_missing: how many of them have no content by the source's own account.
        held_out: how many of them are held out; what these hold is remembered too, for whoever reads them again.
    """

    def __init__(self, records: Iterable[Record | Invalid | VectorBatch | HeldOutRecord]) -> None:
        self.hashes, self.seconds, self.sizes, self.words = array("Q"), array("Q"), array("Q"), array("Q")
        self.expected_missing, self.held_out = 0, 0
        self._records = records

    def __iter__(self) -> Iterator[Any]:
        for each in self._records:
            if isinstance(each, HeldOutRecord):
                self._note(each.record)
                self.held_out += 1
                yield Invalid(each.record.key, HELD_OUT, expected=True)
            else:
                self._note(each)
                yield each

    def _note(self, record: Record | Invalid | VectorBatch) -> None:
        if isinstance(record, Record) and isinstance(record.payload, bytes | str):
            self._add(record.payload)
        elif isinstance(record, Invalid):
            for numbers in (self.hashes, self.seconds, self.sizes, self.words):
                numbers.append(0)
            self.expected_missing += record.expected

    def _add(self, payload: bytes | str) -> None:
        content = content_bytes(payload)
        self.hashes.append(content_hash(content))
        self.seconds.append(xxhash.xxh3_128_intdigest(content) >> 64)
        self.sizes.append(len(content))
        self.words.append(len(payload.split()) if isinstance(payload, str) else 0)

    def columns(self) -> dict[str, np.ndarray]:
        """(records,) uint64 each: hash, second_hash, bytes, words."""
        columns = {"hash": self.hashes, "second_hash": self.seconds, "bytes": self.sizes, "words": self.words}
        return {name: np.array(numbers, np.uint64) for name, numbers in columns.items()}


@dataclass(frozen=True, slots=True)
class StoredContents:
    """What the records of a shard hold, by row; zeros where a record has no content.

    Attributes:
        hashes: (records, 2) uint64; two independent hashes: contents that differ have no pair in common.
        sizes: (records,) int64 each: `bytes` (of a text, in UTF-8) and `words` (of a text, between white space).
    """

    hashes: np.ndarray
    sizes: dict[str, np.ndarray]


def stored_contents(record: ResultRecord) -> StoredContents:
    """What the records of a shard hold.

    Args:
        record: of the shard's embeddings, of images or texts.

    Raises:
        MissingResultError: an earlier version of this software embedded the shard; names it and the remedy.
    """
    try:
        columns = read_table(record.file(CONTENTS), ["hash", "second_hash", "bytes", "words"])
    except KeyError as error:
        message = (
            f"{record.location}: was embedded by an earlier version, which noted neither sizes nor second hashes; "
            "materialise these embeddings with `again`"
        )
        raise MissingResultError(message) from error
    sizes = {name: columns[name].astype(np.int64) for name in ("bytes", "words")}
    return StoredContents(np.stack([columns["hash"], columns["second_hash"]], axis=1), sizes)


def content_hashes(record: ResultRecord) -> np.ndarray:
    """(records,) uint64: the content hash of each record of a shard, by row; 0 where it has no content.

    Args:
        record: of the shard's embeddings, of images or texts.
    """
    return read_table(record.file(CONTENTS), ["hash"])["hash"]


@dataclass(frozen=True)
class ShardEmbedder:
    """Embeds the files of shards, whichever source they are of, and writes what a model makes of them.

    Attributes:
        context: of the pipeline.
        model: what the pipeline's encoder loaded.
        source: that reads the files.
        prefix: of the names of the files that are written.
        with_keys: whether keys of items and names of files are written too: of the pipeline's own source both are in
            `items`.
        hold_out: which items are held out: they are listed, and not embedded; None: none of this source.
    """

    context: StageContext
    model: Any
    source: Source
    prefix: str = ""
    with_keys: bool = False
    hold_out: HoldOut | None = None

    def write(self, shard: Shard, result: ResultWriter) -> dict[str, Any]:
        """Write vectors, skipped items and content hashes; without files nothing is asked of the model.

        Args:
            shard: whose files are read; its index gives the ids.
            result: takes the files.

        Returns:
            What is counted, for the result's record.
        """
        read = self.source.read if self.hold_out is None else HoldOutReader(self.source, self.hold_out).read
        reader = ShardReader(self.context, shard, read)
        records, model = _Contents(reader), _sharing(self.context, self.model)
        skipped, checksum = list[Skipped](), 0
        rows, vectors, keys = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)], list[str]()
        writer: EmbeddingsWriter | None = None
        with (
            Progress(f"embeddings {self.prefix}{shard.name}", total=None, unit="items") as progress,
            result.open(f"{self.prefix}{VECTORS}", ranges=lambda: writer.ranges if writer else "") as stream,
        ):
            writer = EmbeddingsWriter(stream, shard.index, self.context.pipeline.vectors)
            for batch in usage.each("embed", model.embed(records) if shard.files else ()):
                with usage.phase("write"):
                    writer.write(batch)
                skipped += batch.skipped
                rows.append(batch.rows)
                keys += batch.keys if self.with_keys else ()
                checksum = (checksum + id_checksum(item_ids(shard.index, batch.rows))) % CHECKSUM_MODULUS
                if self.source.content != "vector":
                    vectors.append(row_hashes(batch.vectors))
                progress.advance(len(batch.rows))
            # Asked only now: that of ready embeddings is known once this shard's first is read.
            writer.dimension = writer.dimension or getattr(model, "dimension", None)
            writer.close()
        contents, items = records.columns(), sum(map(len, rows))
        self._write_beside(result, skipped, contents, shard.index)
        if self.with_keys:
            self._write_keys(result, np.concatenate(rows), keys, reader.rows_by_file)
        return {
            "items": items,
            **_embedded(model, items),
            "records": reader.rows,
            "skipped": len(skipped) - records.held_out,
            **({} if self.hold_out is None else {"held_out": records.held_out}),
            "expected_missing": records.expected_missing,
            "skipped_examples": list(islice(_reasons(skipped), _LISTED)),
            "cut_files": reader.cut_files,
            "shared_vectors": _shared(shard, np.concatenate(rows), np.concatenate(vectors), contents["hash"]),
            "dimension": writer.dimension,
            "not_finite": writer.audit.not_finite,
            "norm_error": writer.audit.norm_error,
            "repeated_ids": writer.audit.repeated_rows,
            "id_checksum": checksum,
        }

    def _write_beside(
        self, result: ResultWriter, skipped: list[Skipped], contents: dict[str, np.ndarray], shard: int
    ) -> None:
        # Keys are those of the settings under which it was embedded, contents change where vectors do not: neither
        # counts for the version.
        result.unversioned |= {f"{self.prefix}{SKIPPED}", f"{self.prefix}{CONTENTS}"}
        with result.open(f"{self.prefix}{SKIPPED}") as stream:
            write_skipped(stream, skipped, shard=shard)
        with result.open(f"{self.prefix}{CONTENTS}") as stream:
            write_table(stream, contents)

    def _write_keys(self, result: ResultWriter, rows: np.ndarray, keys: list[str], files: list[list[Any]]) -> None:
        with result.open(f"{self.prefix}{KEYS}") as stream:
            write_table(stream, {"row": rows, "key": np.array(keys, dtype=object)})
        with result.open(f"{self.prefix}{FILES}") as stream:
            paths, counts = ([file[at] for file in files] for at in (0, 1))
            write_table(stream, {"path": np.array(paths, dtype=object), "records": np.array(counts, dtype=np.int64)})


def _reasons(skipped: Iterable[Skipped]) -> Iterator[list[str]]:
    """Key and reason of the items that could not be embedded; held-out ones are none of these."""
    return ([item.key, item.reason] for item in skipped if item.reason != HELD_OUT)


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
    # The estimate's trial run has made-up vectors, of contents that it need not read.
    if not len(vectors) or not len(contents):
        return []
    ids = item_ids(shard.index, rows)
    found = shared_vectors(vectors, contents[rows], most=_LISTED)
    return [{**asdict(each), "example": int(ids[each.example])} for each in found]


def model_settings(pipeline: Pipeline) -> dict[str, Any]:
    """What determines the vectors of given payloads."""
    determining = {"encoder": pipeline.encoder.identity(), "vectors": pipeline.vectors}
    # Whether equal input is embedded once changes no vector, just as the batch size does not.
    return determining | ({"embed_once": "normalised"} if pipeline.embed_once == "normalised" else {})


def _settings(context: StageContext) -> dict[str, Any]:
    pipeline = context.pipeline
    source = {"source": pipeline.source.payload_settings()}
    return {**source, **model_settings(pipeline), **hold_out_settings(pipeline)}


ID = Column("id", "uint64", "Identity: shard (32 bits) and row in the shard (32 bits).")
VECTOR = Column("vector", "fixed_size_list<float16>", "Embedding of unit norm.")

STAGE = Stage(
    name="embeddings",
    step="1-embed",
    description="One unit vector (n × d, float16) for each item of a shard, by a pre-trained model (SemDeDup, section "
    "3). Items that cannot be embedded, or are held out, are listed with their reasons beside it.",
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
