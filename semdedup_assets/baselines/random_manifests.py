"""Manifests of the baseline that keeps items at random."""

from semdedup_assets.baselines.random_choices import RANDOM, random_manifests_stage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import Worker
from semdedup_assets.stages.manifests import ManifestWorker


def _worker(context: StageContext) -> Worker:
    return ManifestWorker(context, RANDOM.manifests)


STAGE = random_manifests_stage(
    RANDOM,
    _worker,
    description="A manifest, in the same form as the method's, of items kept at random: as much as the kept set has.",
)
