"""Make what is missing or stale, in order, and nothing else: what the UI's choices do, as one call."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import dagster as dg

from semdedup_assets.assets.builder import AssetBuilder, StageAsset
from semdedup_assets.assets.checks import report_checks
from semdedup_assets.assets.events import EventSink, PartitionEvents, adopt
from semdedup_assets.assets.source import observe_source
from semdedup_assets.execution import progress
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.engines.ray import end_resting
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.reference_files import observe_references
from semdedup_assets.execution.runner import run_partitions
from semdedup_assets.execution.shard_reader import SourceChangedError
from semdedup_assets.execution.stage import Stage, StageGraph
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets.storage.leftovers import remove_leftovers
from semdedup_assets.storage.results import DamagedResultError, MissingResultError, ResultRecord

# Each round makes what the one before found damaged or changed; more than a few, and it is the disk or the source.
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class StageRun:
    """One asset's part of a refresh.

    Attributes:
        asset: its name: the stage's, below the selection's where that has one.
        partitions: that were made.
        adopted: how many more were found in the store, up to date, and made known to Dagster.
    """

    asset: str
    partitions: tuple[Partition, ...]
    adopted: int = 0


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
    swept = remove_leftovers(builder.context(builder.assets[0]).layout.folder)
    if swept:
        progress.log(f"{swept} files that ended processes had left were removed")
    try:
        for _ in range(_ROUNDS):
            observe_source(builder, instance)
            observe_references(builder.context(builder.assets[0]))
            try:
                yield from _round(builder, instance, again=again, sink=sink or instance.report_runless_asset_event)
            except (DamagedResultError, SourceChangedError) as error:
                # The record of what is damaged was set aside, the source is observed again: another round mends either.
                progress.log(str(error))
                last = error
            else:
                return
        raise last
    finally:
        end_resting()


def _round(builder: AssetBuilder, instance: dg.DagsterInstance, *, again: bool, sink: EventSink) -> Iterator[StageRun]:
    selections = tuple(builder.pipeline.named_selections.values())
    first = replace(builder.context(builder.assets[0]), together=selections)
    together: dict[StageAsset, set[Partition]] = {}
    for asset in builder.assets:
        context = first.with_selection(asset.selection)
        if asset.stage.together and asset not in together:
            together |= _stale_together(builder, first, asset.stage)
        events = PartitionEvents(builder, asset, context, instance)
        if not builder.is_automatic(asset):
            adopt(events, sink, _current(context, asset.stage.name))
            continue
        yield from _refreshed(events, sink, again=again, planned=together.get(asset, set()))
        report_checks(builder, asset, context, sink)


def _stale_together(builder: AssetBuilder, first: StageContext, stage: Stage) -> dict[StageAsset, set[Partition]]:
    """What is stale of a stage in each selection, before the first of them makes parts of the others' with its own."""
    alike = [asset for asset in builder.automatic if asset.stage.name == stage.name]
    return {asset: set(first.with_selection(asset.selection).index.stale(stage.name)) for asset in alike}


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


def _refreshed(events: PartitionEvents, sink: EventSink, *, again: bool, planned: set[Partition]) -> Iterator[StageRun]:
    """Bring one asset up to date; what was made is reported also where a damaged input ends it.

    Args:
        events: of the asset.
        sink: takes them.
        again: whether what was excluded is tried once more.
        planned: partitions that were stale when the round began, and may have been made with another selection's since.
    """
    asset, context = events.asset, events.context
    stage, index = asset.stage, context.index
    everything = index.partitions(stage.name)
    wanted = set(index.stale(stage.name)) | planned
    if again:
        wanted |= {partition for partition in index.excluded(stage.name) if partition in everything}
    fresh = index.results(stage.name, (each for each in everything if each not in wanted))
    adopted, made = adopt(events, sink, fresh), set[Partition]()
    try:
        for partition, record in run_partitions(context, stage, [each for each in everything if each in wanted]):
            sink(events.event(partition, record))
            made.add(partition)
        index.collect()
    except (DamagedResultError, SourceChangedError):
        yield StageRun(str(asset), tuple(each for each in everything if each in made), adopted)
        raise
    yield StageRun(str(asset), tuple(each for each in everything if each in made), adopted)
