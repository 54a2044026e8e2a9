"""Make what is missing or stale, in order, and nothing else, with Dagster as the one that learns of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import dagster as dg

from semdedup_assets.assets.builder import AssetBuilder
from semdedup_assets.assets.checks import check_event, failing_runs, freshness
from semdedup_assets.assets.events import EventSink, PartitionEvents, adopt
from semdedup_assets.assets.source import observe_source
from semdedup_assets.execution import progress
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.evaluated_checks import Evaluated, log_problems
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.pipeline_stages import StageAsset
from semdedup_assets.execution.refresh import RefreshListener, RefreshPlan, StageRun
from semdedup_assets.execution.refresh import refresh as refresh_store
from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets.storage.results import MissingResultError, ResultRecord


def refresh(
    pipeline: Pipeline,
    instance: dg.DagsterInstance,
    *,
    again: bool = False,
    graph: StageGraph = GRAPH,
    sink: EventSink | None = None,
) -> Iterator[StageRun]:
    """Observe the source, then make what is missing or stale, asset by asset, in this process.

    The store's records decide what is stale. What is up to date and unknown to Dagster is reported to it, not made.

    Args:
        pipeline: its settings.
        instance: what remembers the assets.
        again: whether shards that were excluded are tried once more.
        graph: the stages.
        sink: takes the events; None: the instance, outside any run.

    Yields:
        Each asset in turn with the partitions that were made, none where all were up to date.

    Raises:
        dagster.Failure: a blocking check of an asset fails.
        Exception: what a stage raised; what was finished before stays.
    """
    builder = AssetBuilder(pipeline, graph)
    reporter = _Reporter(builder, instance, sink or instance.report_runless_asset_event)
    with failing_runs():
        yield from refresh_store(RefreshPlan(builder, excluded=again), reporter)


@dataclass
class _Reporter(RefreshListener):
    """Reports to Dagster what a refresh finds and makes.

    Attributes:
        builder: of the pipeline.
        instance: what remembers the assets.
        sink: takes the events.
    """

    builder: AssetBuilder
    instance: dg.DagsterInstance
    sink: EventSink
    _events: PartitionEvents | None = None

    def observe(self, context: StageContext) -> None:
        """Bring shard index and Dagster's partitions up to date."""
        observe_source(self.builder, self.instance)

    def passed_over(self, asset: StageAsset, context: StageContext) -> None:
        """What the store holds of it, and Dagster does not know, is reported."""
        adopt(self._of(asset, context), self.sink, _current(context, asset.stage.name))

    def up_to_date(self, asset: StageAsset, context: StageContext, partitions: Sequence[Partition]) -> int:
        """What Dagster does not know is reported, and how much is next."""
        if missing := len(context.index.partitions(asset.stage.name)) - len(partitions):
            progress.log(f"{progress.in_part(str(asset))}: {missing:,} partitions to make")
        self._events = self._of(asset, context)
        return adopt(self._events, self.sink, context.index.results(asset.stage.name, partitions))

    def made(self, asset: StageAsset, context: StageContext, partition: Partition, record: ResultRecord) -> None:
        """The partition's event, with the inputs as Dagster knows them."""
        events = self._events or self._of(asset, context)
        self.sink(events.event(partition, record))

    def checked(self, asset: StageAsset, context: StageContext, evaluated: Sequence[Evaluated]) -> None:
        """An event for each check, and a line for each failing partition."""
        log_problems(evaluated)
        for each in evaluated:
            self.sink(check_event(self.builder, asset, context, each))
        self.sink(freshness(self.builder, asset, context))

    def _of(self, asset: StageAsset, context: StageContext) -> PartitionEvents:
        return PartitionEvents(self.builder, asset, context, self.instance)


def _current(context: StageContext, stage: str) -> dict[Partition, ResultRecord]:
    """The partitions of a stage that are up to date, with their records; of none where an input is missing."""
    index = context.index
    if not index.records(stage):
        return {}
    try:
        stale = set(index.stale(stage))
    except MissingResultError:
        return {}
    return index.results(stage, (each for each in index.partitions(stage) if each not in stale))
