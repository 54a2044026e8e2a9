"""The Dagster component: a pipeline's settings in a `defs.yaml` become its definitions."""

import dagster as dg
from pydantic import BaseModel

from semdedup_assets.assets.pipeline import pipeline_definitions
from semdedup_assets.settings import Pipeline


class SemDedupPipeline(dg.Component):
    """One dataset deduplicated with one embedding model (SemDeDup, arXiv 2303.09540)."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    @classmethod
    def get_model_cls(cls) -> type[Pipeline]:
        """The schema of `attributes`."""
        return Pipeline

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> "SemDedupPipeline":
        """The pipeline that `attributes` describe, with `{{ env.NAME }}` filled in."""
        if attributes is None:
            message = f"{context.path}: no attributes; give at least dataset, source and encoder"
            raise ValueError(message)
        filled = context.resolution_context.resolve_value(attributes.model_dump())
        return cls(Pipeline.model_validate(filled))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """All assets of the pipeline."""
        return pipeline_definitions(self.pipeline)
