"""Manifests of other random draws than that of the first seed, for training each seed on a choice of its own."""

import tempfile
from typing import Literal

from semdedup_assets.baselines.random_choices import RANDOM, SIZED_RANDOM, write_random_masks
from semdedup_assets.checks.counting import common_version
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.stages.manifests import write_manifest
from semdedup_assets.storage.files import join
from semdedup_assets.storage.results import ResultRecord, ResultWriter

RandomManifests = Literal["random_manifests", "sized_random_manifests"]
"""The stages whose draws can be made again by another seed."""


def write_random_manifest(
    context: StageContext, partition: Partition, *, stage: RandomManifests, seed: int, folder: str
) -> int:
    """Write the manifest that a stage would write if a seed were the first of `analyses.random_pruning.seeds`.

    A spread over seeds that all train on one choice would leave out how much depends on the choice. The files are those of
    the stage, byte by byte; they belong to no record, and whoever asked for them removes them.

    Args:
        context: of the pipeline and the selection.
        partition: a kept set.
        stage: whose manifest.
        seed: of the choice.
        folder: local, empty or missing.

    Returns:
        How many items it lists.

    Raises:
        MissingResultError: masks, items or vectors are missing, or made from other inputs than there are now.
        SourceChangedError: items, vectors and the source's files are not of one state.
    """
    baseline = next(each for each in (RANDOM, SIZED_RANDOM) if each.manifests.name == stage)
    made_from = context.index.input_versions(baseline.masks, partition)
    items = common_version(context.index.require_all("items"))
    with tempfile.TemporaryDirectory(prefix="semdedup-") as scratch:
        writer = ResultWriter(join(scratch, "masks"))
        write_random_masks(context, partition, baseline, writer, seed=seed)
        masks = ResultRecord(writer.location, writer.version, "", made_from, writer.files, writer.details)
        inputs = {baseline.masks: masks.version, "items": items}
        details = write_manifest(context, partition, masks, folder, inputs=inputs)
    return int(details["kept"])
