"""Manifests of the baseline that removes byte-equal copies."""

from dataclasses import replace

from semdedup_assets.baselines.choices import has_content
from semdedup_assets.checks.manifests import ManifestStage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import ANALYSE, Worker
from semdedup_assets.stages.manifests import ManifestWorker, manifest_stage

MANIFESTS = ManifestStage("exact_manifests", masks="exact_masks")


def _worker(context: StageContext) -> Worker:
    return ManifestWorker(context, MANIFESTS)


STAGE = replace(
    manifest_stage(MANIFESTS, _worker),
    step=ANALYSE,
    description="A manifest, in the same form as the method's, of the baseline that removes byte-equal copies.",
    dimensions=(),
    location=lambda layout, _, __: layout.of_baseline("exact", "manifests"),
    applies=has_content,
    selected=False,
    on_demand=True,
)
