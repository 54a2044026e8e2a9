"""Manifests of the baseline that keeps items of equal size at random."""

from dataclasses import replace

from semdedup_assets.baselines.random_choices import SIZED_RANDOM, random_manifests_stage, sized_random_applies
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import Worker
from semdedup_assets.stages.manifests import ManifestWorker


def _worker(context: StageContext) -> Worker:
    return ManifestWorker(context, SIZED_RANDOM.manifests)


STAGE = replace(
    random_manifests_stage(
        SIZED_RANDOM,
        _worker,
        description="A manifest, in the same form as the method's, of items kept at random: as many words of texts, or "
        "bytes of images, as the kept set has.",
    ),
    applies=sized_random_applies,
)
