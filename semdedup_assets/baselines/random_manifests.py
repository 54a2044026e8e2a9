"""Manifests of the baseline that keeps items at random."""

from dataclasses import replace

from semdedup_assets.checks.manifests import ManifestStage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import ANALYSE, Worker
from semdedup_assets.stages.manifests import ManifestWorker, manifest_stage

MANIFESTS = ManifestStage("random_manifests", masks="random_masks")


def _worker(context: StageContext) -> Worker:
    return ManifestWorker(context, MANIFESTS)


STAGE = replace(
    manifest_stage(MANIFESTS, _worker),
    step=ANALYSE,
    description="A manifest, in the same form as the method's, of items kept at random: as much as the kept set has.",
    location=lambda layout, partition, selection: layout.of_kept_set(
        partition.kept_set(selection), "baselines", "random", "manifests"
    ),
    on_demand=True,
)
