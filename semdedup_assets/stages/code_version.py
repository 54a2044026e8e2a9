"""The settings that determine a stage's result, as one short hash."""

from semdedup_assets.settings import Pipeline
from semdedup_assets.storage.results import fingerprint


def code_version(pipeline: Pipeline, stage: str) -> str:
    """Hash of `Pipeline.determining`: another one marks the stage's earlier results as stale."""
    return fingerprint(pipeline.determining(stage))[:16]
