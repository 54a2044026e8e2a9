"""Keep items at random, as many or of as much size as a kept set has: what the baselines of random choices share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from semdedup_assets.analysis_settings import SameSize
from semdedup_assets.baselines.choices import COLUMNS, embedded_shards, write_masks
from semdedup_assets.checks.manifests import ManifestStage
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import ANALYSE, Stage, Worker
from semdedup_assets.kept_sets import Selection
from semdedup_assets.records import id_rows
from semdedup_assets.settings import Pipeline
from semdedup_assets.stages.embeddings import CONTENTS, stored_contents
from semdedup_assets.stages.keep_masks import mask_files
from semdedup_assets.stages.manifests import manifest_stage
from semdedup_assets.storage.results import MissingResultError, ResultRecord, ResultWriter
from semdedup_assets.storage.tables import read_tables


@dataclass(frozen=True, slots=True)
class RandomBaseline:
    """A baseline that keeps items at random.

    Attributes:
        name: of the baseline; its stages are `<name>_masks` and `<name>_manifests`.
        same: what it keeps as much of as the kept set does, in a pipeline.
    """

    name: str
    same: Callable[[Pipeline], SameSize]

    @property
    def masks(self) -> str:
        """The stage that decides which items are kept."""
        return f"{self.name}_masks"

    @property
    def manifests(self) -> ManifestStage:
        """The stage that writes them down."""
        return ManifestStage(f"{self.name}_manifests", masks=self.masks)


def _as_set(pipeline: Pipeline) -> SameSize:
    return pipeline.analyses.random_pruning.same


def _content_size(pipeline: Pipeline) -> SameSize:
    return "words" if pipeline.source.content == "text" else "bytes"


RANDOM = RandomBaseline("random", _as_set)
"""As `analyses.random_pruning.same` says, by default as many items."""

SIZED_RANDOM = RandomBaseline("sized_random", _content_size)
"""As many words of texts, or bytes of images: beside `RANDOM`, where that goes by items."""


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


def sized_mask(context: StageContext, masks: ResultRecord, *, same: SameSize) -> SizedMask:
    """The masks of a kept set in the order of ids, with sizes: 25 bytes an item.

    Args:
        context: of the pipeline.
        masks: record of any masks.
        same: what the sizes count.

    Raises:
        MissingResultError: an item of the masks has no vector any more.
    """
    parts = [part for file in mask_files(masks) for part in read_tables(file, ["id", "kept"])]
    ids = np.concatenate([np.zeros(0, np.uint64), *(part["id"] for part in parts)])
    order = np.argsort(ids)
    ids, kept = ids[order], np.concatenate([np.zeros(0, bool), *(part["kept"] for part in parts)])[order]
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


def write_random_masks(
    context: StageContext, partition: Partition, baseline: RandomBaseline, result: ResultWriter, *, seed: int
) -> None:
    """Keep as many items, words or bytes as a kept set, at random.

    Args:
        context: of the pipeline and the selection.
        partition: a kept set.
        baseline: says what is equal.
        result: takes the masks and their details.
        seed: of the choice.

    Raises:
        MissingResultError: masks are missing, or made from other inputs than there are now.
    """
    from semdedup_assets.algorithm.random_choice import random_choice

    same = baseline.same(context.pipeline)
    mask = sized_mask(context, context.index.require_consistent("keep_masks", partition)[partition], same=same)
    with usage.phase("choose"):
        chosen = random_choice(mask.ids, kept=mask.kept, sizes=mask.sizes, seed=seed)
    with usage.phase("write"):
        nobody = np.ma.masked_array(np.zeros(len(mask.ids), np.uint64), mask=True)
        result.details = write_masks(result, mask.ids, chosen, nobody)
    result.details["same"] = same
    result.details["size"] = int(mask.sizes[chosen].sum())
    result.details["wanted_size"] = int(mask.sizes[mask.kept].sum())
    result.details["made_with"] = {
        "baseline": baseline.name,
        "same": same,
        "seed": seed,
        "as_much_as": partition.kept_set(context.selection).label,
    }


def random_masks_worker(context: StageContext, baseline: RandomBaseline) -> Worker:
    """What makes the masks of a baseline's kept sets, by the first of the seeds."""

    def mask_random(partition: Partition) -> ResultRecord:
        with context.writing(baseline.masks, partition) as result:
            seed = context.pipeline.analyses.random_pruning.seeds[0]
            write_random_masks(context, partition, baseline, result, seed=seed)
        return result.committed

    return mask_random


def sizes_of(baseline: RandomBaseline) -> Callable[[Pipeline, Selection], tuple[str, ...]]:
    """The embeddings, where a baseline goes by sizes, which lie beside them."""
    return lambda pipeline, _: () if baseline.same(pipeline) == "items" else ("embeddings",)


def sizes_version(_: StageContext, name: str, record: ResultRecord) -> str:
    """Of the embeddings only the sizes count."""
    return record.files[CONTENTS].checksum if name == "embeddings" else record.version


def random_masks_stage(
    baseline: RandomBaseline, worker: Callable[[StageContext], Worker], *, description: str
) -> Stage:
    """The stage that makes a baseline's masks.

    Args:
        baseline: which.
        worker: a function of the module whose `STAGE` this becomes.
        description: of what is kept.
    """

    def settings(context: StageContext) -> Mapping[str, Any]:
        seed = context.pipeline.analyses.random_pruning.seeds[0]
        return {"same": baseline.same(context.pipeline), "seed": seed}

    return Stage(
        name=baseline.masks,
        step=ANALYSE,
        description=description,
        dimensions=("epsilon", "k"),
        inputs=("keep_masks",),
        optional_inputs=sizes_of(baseline),
        input_version=sizes_version,
        settings=settings,
        location=lambda layout, partition, selection: layout.of_kept_set(
            partition.kept_set(selection), "baselines", baseline.name, "masks"
        ),
        worker=worker,
        kinds=frozenset({"numpy", "parquet"}),
        columns=lambda _: COLUMNS,
        selected=True,
        on_demand=True,
        pool="cpu",
        unit="kept sets",
    )


def random_manifests_stage(
    baseline: RandomBaseline, worker: Callable[[StageContext], Worker], *, description: str
) -> Stage:
    """The stage that makes a baseline's manifests; `random_masks_stage` has the arguments."""
    return replace(
        manifest_stage(baseline.manifests, worker),
        step=ANALYSE,
        description=description,
        location=lambda layout, partition, selection: layout.of_kept_set(
            partition.kept_set(selection), "baselines", baseline.name, "manifests"
        ),
        on_demand=True,
    )


def sized_random_applies(pipeline: Pipeline, _: Selection) -> bool:
    """Whether a choice of equal size is another one than that of `RANDOM`."""
    return pipeline.source.content != "vector" and pipeline.analyses.random_pruning.same == "items"
