"""Manifests of the baseline that keeps every item."""

from dataclasses import replace

from semdedup_assets.checks.manifests import ManifestStage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import ANALYSE, Worker
from semdedup_assets.stages.manifests import ManifestWorker, manifest_stage

MANIFESTS = ManifestStage("everything_manifests", masks="everything_masks")


def _worker(context: StageContext) -> Worker:
    return ManifestWorker(context, MANIFESTS)


STAGE = replace(
    manifest_stage(MANIFESTS, _worker),
    step=ANALYSE,
    description="A manifest, in the same form as the method's, of every item that has a vector.",
    dimensions=(),
    location=lambda layout, _, __: layout.of_baseline("everything", "manifests"),
    selected=False,
    on_demand=True,
)
