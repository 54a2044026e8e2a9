"""Manifests of the baseline that removes near-duplicate texts (Lee et al. 2021, NearDup)."""

from dataclasses import replace

from semdedup_assets.baselines.choices import has_texts
from semdedup_assets.checks.manifests import ManifestStage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import ANALYSE, Worker
from semdedup_assets.stages.manifests import ManifestWorker, manifest_stage

MANIFESTS = ManifestStage("near_duplicate_manifests", masks="near_duplicate_masks")


def _worker(context: StageContext) -> Worker:
    return ManifestWorker(context, MANIFESTS)


STAGE = replace(
    manifest_stage(MANIFESTS, _worker),
    step=ANALYSE,
    description="A manifest, in the same form as the method's, of the baseline that removes near-duplicate texts (Lee et al. 2021, NearDup).",
    dimensions=(),
    location=lambda layout, _, __: layout.of_baseline("near_duplicates", "manifests"),
    applies=has_texts,
    selected=False,
    on_demand=True,
)
