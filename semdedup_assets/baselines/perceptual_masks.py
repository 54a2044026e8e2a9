"""Keep one image of each group whose perceptual hashes are near each other."""

import numpy as np

from semdedup_assets.baselines.choices import (
    COLUMNS,
    EmbeddedShard,
    embedded_shards,
    has_images,
    items_version,
    write_groups,
)
from semdedup_assets.baselines.perceptual_hashes import HASHES
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import ANALYSE, Stage, Worker
from semdedup_assets.storage.results import MissingResultError, ResultRecord
from semdedup_assets.storage.tables import read_table


def _worker(context: StageContext) -> Worker:
    return lambda partition: mask_perceptual(context, partition)


def mask_perceptual(context: StageContext, partition: Partition) -> ResultRecord:
    """Keep the first image, by id, of each connected component of pairs whose hashes differ in few bits.

    No such pair is missed. Memory holds about 80 bytes an image.

    Args:
        context: of the pipeline.
        partition: the only one.

    Raises:
        MissingResultError: hashes or embeddings are missing, or are of other items; names what to materialise.
    """
    from semdedup_assets.algorithm.near_duplicates import near_hashes

    distance = context.pipeline.analyses.fingerprints.hamming
    with context.writing("perceptual_masks", partition) as result:
        shards = list(embedded_shards(context))
        ids = np.concatenate([np.zeros(0, np.uint64), *(shard.ids for shard in shards)])
        hashes = np.concatenate([np.zeros(0, np.uint64), *(_hashes_of(context, shard) for shard in shards)])
        with usage.phase("compare"):
            first = near_hashes(hashes, distance=distance, budget=context.compute.budget)
        with usage.phase("write"):
            result.details = write_groups(result, ids, first)
        result.details["made_with"] = {"baseline": "perceptual", "hamming": distance}
    return result.committed


def _hashes_of(context: StageContext, shard: EmbeddedShard) -> np.ndarray:
    """(n,) uint64, of the items that have a vector."""
    record = shard.require_same_source(context, "perceptual_hashes")
    stored = read_table(record.file(HASHES), ["id", "hash"])
    here = np.isin(stored["id"], shard.ids)
    if int(here.sum()) != len(shard.ids):
        message = (
            f"{record.location}: has hashes of {int(here.sum()):,} of {len(shard.ids):,} items with a vector; "
            f"{context.remedy('perceptual_hashes', shard.partition)}"
        )
        raise MissingResultError(message)
    return stored["hash"][here]


STAGE = Stage(
    name="perceptual_masks",
    step=ANALYSE,
    description="A baseline: images whose perceptual hashes differ in at most `analyses.fingerprints.hamming` bits are "
    "connected; of each connected group the first is kept.",
    dimensions=(),
    inputs=("perceptual_hashes", "embeddings"),
    input_version=items_version,
    settings=lambda context: {"hamming": context.pipeline.analyses.fingerprints.hamming},
    location=lambda layout, _, __: layout.of_baseline("perceptual", "masks"),
    worker=_worker,
    kinds=frozenset({"numpy", "parquet"}),
    columns=lambda _: COLUMNS,
    applies=has_images,
    on_demand=True,
    pool="cpu",
)
