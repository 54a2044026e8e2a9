"""Keep every item that has a vector: what training without deduplication reads."""

import numpy as np

from semdedup_assets.baselines.choices import COLUMNS, embedded_shards, items_version, write_masks
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import ANALYSE, Stage, Worker
from semdedup_assets.storage.results import ResultRecord


def _worker(context: StageContext) -> Worker:
    return lambda partition: mask_nothing(context, partition)


def mask_nothing(context: StageContext, partition: Partition) -> ResultRecord:
    """Keep all items; memory holds 17 bytes of each.

    Args:
        context: of the pipeline.
        partition: the only one.

    Raises:
        MissingResultError: embeddings are missing.
    """
    with context.writing("everything_masks", partition) as result:
        ids = np.concatenate([np.zeros(0, np.uint64), *(shard.ids for shard in embedded_shards(context))])
        nobody = np.ma.masked_array(np.zeros(len(ids), np.uint64), mask=True)
        with usage.phase("write"):
            result.details = write_masks(result, ids, np.ones(len(ids), bool), nobody)
        result.details["made_with"] = {"baseline": "everything"}
    return result.committed


STAGE = Stage(
    name="everything_masks",
    step=ANALYSE,
    description="A baseline: every item that has a vector is kept. What a model trained on a kept set is held against.",
    dimensions=(),
    inputs=("embeddings",),
    input_version=items_version,
    settings=lambda _: {},
    location=lambda layout, _, __: layout.of_baseline("everything", "masks"),
    worker=_worker,
    kinds=frozenset({"numpy", "parquet"}),
    columns=lambda _: COLUMNS,
    on_demand=True,
    pool="cpu",
)
