"""MinHash signatures of the texts of a shard."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from semdedup_assets.baselines.choices import has_texts
from semdedup_assets.baselines.fingerprints import require_library, text_minhash
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import Progress
from semdedup_assets.execution.shard_reader import ShardReader, accepts_cut_files
from semdedup_assets.execution.stage import ANALYSE, Column, Stage, Worker
from semdedup_assets.records import Record, item_ids
from semdedup_assets.sources.shard_index import Shard
from semdedup_assets.stages.embeddings import ID
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.vectors import PartWriter, sample_batch, sample_schema

SIGNATURES = "signatures.arrow"
"""The file of a shard's signatures, in its record."""

_TEXTS = 4096


def _worker(context: StageContext) -> Worker:
    require_library("text")
    return lambda partition: sign_shard(context, partition, context.shard(partition.required_shard))


def sign_shard(
    context: StageContext, partition: Partition, shard: Shard, *, excluded: str | None = None
) -> ResultRecord:
    """Write the signature of each text of a shard (Lee et al. 2021, NearDup), also of those that have no vector.

    Args:
        context: of the pipeline.
        partition: a shard.
        shard: its files; none where it is excluded.
        excluded: why it could not be read.
    """
    settings, written = context.pipeline.analyses.fingerprints, 0
    reader = ShardReader(context, shard, context.pipeline.source.read)
    inputs = {"shards": context.shard(partition.required_shard).fingerprint}
    ranges = ""
    with context.writing("text_signatures", partition, inputs=inputs) as result:
        with (
            Progress(f"text_signatures {shard.name}", total=None, unit="texts") as progress,
            result.open(SIGNATURES, ranges=lambda: ranges) as stream,
        ):
            schema = sample_schema(settings.permutations, "uint32")
            writer = PartWriter(stream, schema)
            for rows, texts in _texts(reader):
                with usage.phase("sign"):
                    signatures = text_minhash(texts, settings)
                writer.write(sample_batch(schema, item_ids(shard.index, rows), signatures))
                written += len(rows)
                progress.advance(len(rows))
            ranges = writer.close()
        result.details = {"items": written, "records": reader.rows, "cut_files": reader.cut_files}
        if excluded is not None:
            result.details["excluded"] = excluded
    return result.committed


def _texts(reader: "ShardReader[Any]") -> Iterator[tuple[np.ndarray, list[str]]]:
    """Some thousand texts at a time, with their rows among all records."""
    found = (
        (row, record.payload)
        for row, record in enumerate(reader)
        if isinstance(record, Record) and isinstance(record.payload, str)
    )
    while part := list(islice(found, _TEXTS)):
        yield np.array([row for row, _ in part], np.int64), [text for _, text in part]


def _exclude(context: StageContext, partition: Partition, reason: str) -> ResultRecord:
    """Record a shard that cannot be read as one without texts, and why."""
    shard = context.shard(partition.required_shard)
    return sign_shard(context, partition, Shard(shard.index, ()), excluded=reason)


def _settings(context: StageContext) -> dict[str, Any]:
    fingerprints = context.pipeline.analyses.fingerprints
    return {
        "source": context.pipeline.source.payload_settings(),
        "ngram_words": fingerprints.ngram_words,
        "permutations": fingerprints.permutations,
        "seed": fingerprints.seed,
    }


STAGE = Stage(
    name="text_signatures",
    step=ANALYSE,
    description="MinHash signatures of texts over n-grams of words, by `rensa`: equal in about the share of entries "
    "that is the Jaccard similarity of two texts' n-grams. For the baseline NearDup (Lee et al. 2021).",
    dimensions=("shard",),
    inputs=("shards",),
    settings=_settings,
    location=lambda layout, partition, _: layout.of_baseline("near_duplicates", "signatures", partition.required_shard),
    worker=_worker,
    exclude=_exclude,
    accepts=accepts_cut_files,
    kinds=frozenset({"arrow"}),
    columns=lambda _: (ID, Column("vector", "fixed_size_list<uint32>", "MinHash signature.")),
    applies=has_texts,
    on_demand=True,
    pool="cpu",
    unit="shards",
)
