"""Manifests of the baseline that removes images of near perceptual hashes."""

from dataclasses import replace

from semdedup_assets.baselines.choices import has_images
from semdedup_assets.checks.manifests import ManifestStage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import ANALYSE, Worker
from semdedup_assets.stages.manifests import ManifestWorker, manifest_stage

MANIFESTS = ManifestStage("perceptual_manifests", masks="perceptual_masks")


def _worker(context: StageContext) -> Worker:
    return ManifestWorker(context, MANIFESTS)


STAGE = replace(
    manifest_stage(MANIFESTS, _worker),
    step=ANALYSE,
    description="A manifest, in the same form as the method's, of the baseline that removes images of near perceptual hashes.",
    dimensions=(),
    location=lambda layout, _, __: layout.of_baseline("perceptual", "manifests"),
    applies=has_images,
    selected=False,
    on_demand=True,
)
