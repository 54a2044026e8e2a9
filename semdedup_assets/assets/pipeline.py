"""All definitions of one pipeline."""

import dagster as dg

from semdedup_assets.assets.builder import AssetBuilder
from semdedup_assets.assets.checks import lone_checks
from semdedup_assets.assets.factory import stage_asset
from semdedup_assets.assets.freshness import freshness_sensor
from semdedup_assets.assets.jobs import job_definitions
from semdedup_assets.assets.source import source_definitions
from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH


def pipeline_definitions(pipeline: Pipeline, graph: StageGraph = GRAPH, *, with_source: bool = True) -> dg.Definitions:
    """The assets of one dataset and one embedding model, from source files to training manifests.

    Args:
        pipeline: its settings.
        graph: its stages.
        with_source: whether the dataset's shards are among them; another pipeline's definitions may have them.
    """
    builder = AssetBuilder(pipeline, graph)
    assets = [stage_asset(builder, asset) for asset in builder.assets]
    return dg.Definitions.merge(
        source_definitions(builder) if with_source else dg.Definitions(),
        dg.Definitions(
            assets=assets,
            asset_checks=lone_checks(builder),
            sensors=[freshness_sensor(builder)],
            executor=_executor(pipeline),
        ),
        job_definitions(builder),
    )


def _executor(pipeline: Pipeline) -> dg.ExecutorDefinition | None:
    """What makes the steps of a run; None for Dagster's own choice.

    The process of a run is the driver of a cluster's workers, which end with it. A process for each step would go on
    after the run's was killed.
    """
    return dg.in_process_executor if pipeline.compute.engine == "ray" else None
