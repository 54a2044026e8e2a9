"""Perceptual hashes of the images of a shard."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from semdedup_assets.baselines.choices import has_images
from semdedup_assets.baselines.fingerprints import image_phash, require_library
from semdedup_assets.encoders.decoding import MAX_PIXELS, UndecodableImageError
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
from semdedup_assets.storage.tables import write_table

HASHES = "hashes.parquet"
"""The table of a shard's hashes, in its record."""


def _worker(context: StageContext) -> Worker:
    require_library("image")
    return lambda partition: hash_shard(context, partition, context.shard(partition.required_shard))


def hash_shard(
    context: StageContext, partition: Partition, shard: Shard, *, excluded: str | None = None
) -> ResultRecord:
    """Write the perceptual hash of each image of a shard that can be decoded.

    Args:
        context: of the pipeline.
        partition: a shard.
        shard: its files; none where it is excluded.
        excluded: why it could not be read.
    """
    reader = ShardReader(context, shard, context.pipeline.source.read)
    inputs = {"shards": context.shard(partition.required_shard).fingerprint}
    rows, hashes = list[int](), list[int]()
    with context.writing("perceptual_hashes", partition, inputs=inputs) as result:
        with Progress(f"perceptual_hashes {shard.name}", total=None, unit="images") as progress:
            for row, found in usage.each("hash", _hashes(context, reader)):
                if found is not None:
                    rows.append(row)
                    hashes.append(found)
                progress.advance(1)
        with result.open(HASHES) as stream:
            ids = item_ids(shard.index, np.array(rows, np.int64))
            write_table(stream, {"id": ids, "hash": np.array(hashes, np.uint64)})
        result.details = {"items": len(rows), "records": reader.rows, "cut_files": reader.cut_files}
        if excluded is not None:
            result.details["excluded"] = excluded
    return result.committed


def _hashes(context: StageContext, reader: "ShardReader[Any]") -> Iterator[tuple[int, int | None]]:
    """Row and hash of each image, found by threads some images ahead; None where it cannot be decoded."""
    max_pixels, threads = _max_pixels(context), context.compute.worker_count

    def hashed(encoded: bytes) -> int | None:
        try:
            return image_phash(encoded, max_pixels=max_pixels)
        except UndecodableImageError:
            return None  # The embeddings list it with the reason.

    ahead = deque[tuple[int, Future[int | None]]]()
    with ThreadPoolExecutor(threads) as pool:
        for row, record in enumerate(reader):
            if isinstance(record, Record) and isinstance(record.payload, bytes):
                ahead.append((row, pool.submit(hashed, record.payload)))
            if len(ahead) > 2 * threads:
                first, found = ahead.popleft()
                yield first, found.result()
        for first, found in ahead:
            yield first, found.result()


def _max_pixels(context: StageContext) -> int:
    return int(getattr(context.pipeline.encoder, "max_pixels", MAX_PIXELS))


def _exclude(context: StageContext, partition: Partition, reason: str) -> ResultRecord:
    """Record a shard that cannot be read as one without images, and why."""
    shard = context.shard(partition.required_shard)
    return hash_shard(context, partition, Shard(shard.index, ()), excluded=reason)


STAGE = Stage(
    name="perceptual_hashes",
    step=ANALYSE,
    description="Perceptual hashes (pHash, 64 bits) of images, by `imagehash`: pictures that look alike differ in few "
    "bits. For the baseline that keeps one of them.",
    dimensions=("shard",),
    inputs=("shards",),
    settings=lambda context: {
        "source": context.pipeline.source.payload_settings(),
        "max_pixels": _max_pixels(context),
    },
    location=lambda layout, partition, _: layout.of_baseline("perceptual", "hashes", partition.required_shard),
    worker=_worker,
    exclude=_exclude,
    accepts=accepts_cut_files,
    kinds=frozenset({"parquet"}),
    columns=lambda _: (ID, Column("hash", "uint64", "Perceptual hash.")),
    applies=has_images,
    on_demand=True,
    pool="cpu",
    unit="shards",
)
