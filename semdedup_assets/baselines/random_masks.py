"""Keep items at random, as many or of as much size as a kept set has."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from semdedup_assets.baselines.choices import COLUMNS, embedded_shards, write_masks
from semdedup_assets.checks.counting import inputs_up_to_date
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import ANALYSE, Stage, Worker
from semdedup_assets.kept_sets import Selection
from semdedup_assets.records import id_rows
from semdedup_assets.settings import Pipeline
from semdedup_assets.stages.embeddings import CONTENTS, stored_contents
from semdedup_assets.stages.keep_masks import mask_files
from semdedup_assets.storage.results import MissingResultError, ResultRecord
from semdedup_assets.storage.tables import read_tables


@dataclass(frozen=True, slots=True)
class SizedMask:
    """What a kept set keeps, and how large each item is.

    Attributes:
        ids: (n,) uint64, ascending.
        kept: (n,) bool.
        sizes: (n,) int64: ones, words or bytes.
    """

    ids: np.ndarray
    kept: np.ndarray
    sizes: np.ndarray


def sized_mask(context: StageContext, masks: ResultRecord) -> SizedMask:
    """The masks of a kept set in the order of ids, with the sizes that random pruning goes by: 25 bytes an item.

    Args:
        context: of the pipeline.
        masks: record of any masks.

    Raises:
        MissingResultError: an item of the masks has no vector any more.
    """
    parts = [part for file in mask_files(masks) for part in read_tables(file, ["id", "kept"])]
    ids = np.concatenate([np.zeros(0, np.uint64), *(part["id"] for part in parts)])
    order = np.argsort(ids)
    ids, kept = ids[order], np.concatenate([np.zeros(0, bool), *(part["kept"] for part in parts)])[order]
    same = context.pipeline.analyses.random_pruning.same
    if same == "items":
        return SizedMask(ids, kept, np.ones(len(ids), np.int64))
    sizes, embedded = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    for shard in embedded_shards(context):
        sizes.append(stored_contents(shard.record).sizes[same][id_rows(shard.ids)])
        embedded.append(shard.ids)
    if not np.array_equal(np.concatenate(embedded), ids):
        message = f"{masks.location}: made of other items than have vectors now; {context.remedy('keep_masks')} again"
        raise MissingResultError(message)
    return SizedMask(ids, kept, np.concatenate(sizes))


def _worker(context: StageContext) -> Worker:
    return lambda partition: mask_random(context, partition)


def mask_random(context: StageContext, partition: Partition) -> ResultRecord:
    """Keep as many items, words or bytes as a kept set, at random by the first of the seeds.

    Args:
        context: of the pipeline and the selection.
        partition: a kept set.

    Raises:
        MissingResultError: masks are missing, or made from other inputs than there are now.
    """
    from semdedup_assets.algorithm.random_choice import random_choice

    settings = context.pipeline.analyses.random_pruning
    with context.writing("random_masks", partition) as result:
        mask = sized_mask(context, context.index.require_consistent("keep_masks", partition)[partition])
        with usage.phase("choose"):
            chosen = random_choice(mask.ids, kept=mask.kept, sizes=mask.sizes, seed=settings.seeds[0])
        with usage.phase("write"):
            nobody = np.ma.masked_array(np.zeros(len(mask.ids), np.uint64), mask=True)
            result.details = write_masks(result, mask.ids, chosen, nobody)
        result.details["same"] = settings.same
        result.details["size"] = int(mask.sizes[chosen].sum())
        result.details["wanted_size"] = int(mask.sizes[mask.kept].sum())
        result.details["made_with"] = {
            "baseline": "random",
            **_settings(context),
            "as_much_as": partition.kept_set(context.selection).label,
        }
    return result.committed


def _settings(context: StageContext) -> dict[str, Any]:
    settings = context.pipeline.analyses.random_pruning
    return {"same": settings.same, "seed": settings.seeds[0]}


def with_sizes(pipeline: Pipeline, _: Selection) -> tuple[str, ...]:
    """The embeddings, where random pruning goes by sizes, which lie beside them."""
    return () if pipeline.analyses.random_pruning.same == "items" else ("embeddings",)


def sizes_version(_: StageContext, name: str, record: ResultRecord) -> str:
    """Of the embeddings only the sizes count."""
    return record.files[CONTENTS].checksum if name == "embeddings" else record.version


STAGE = Stage(
    name="random_masks",
    step=ANALYSE,
    description="A baseline: items are kept at random, as many as the kept set has (SemDeDup, section 5), or as many "
    "words or bytes (`analyses.random_pruning`). What a method must be better than.",
    dimensions=("epsilon", "k"),
    inputs=("keep_masks",),
    optional_inputs=with_sizes,
    input_version=sizes_version,
    settings=_settings,
    location=lambda layout, partition, selection: layout.of_kept_set(
        partition.kept_set(selection), "baselines", "random", "masks"
    ),
    worker=_worker,
    kinds=frozenset({"numpy", "parquet"}),
    columns=lambda _: COLUMNS,
    checks=(inputs_up_to_date("random_masks"),),
    selected=True,
    on_demand=True,
    pool=None,
    unit="kept sets",
)
