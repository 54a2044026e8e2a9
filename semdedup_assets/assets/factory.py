"""The one place where a stage becomes an asset."""

from collections.abc import Iterable, Iterator

import dagster as dg

from semdedup_assets.assets.builder import STEP_TAG, AssetBuilder
from semdedup_assets.assets.checks import check_result, check_specs, evaluated_checks, failing_runs
from semdedup_assets.assets.events import PartitionEvents
from semdedup_assets.assets.lost_runs import alive
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.engines.ray import end_resting
from semdedup_assets.execution.evaluated_checks import raise_failures
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.pipeline_stages import StageAsset
from semdedup_assets.execution.progress import reporting_to
from semdedup_assets.execution.runner import run_partitions
from semdedup_assets.execution.stage import Stage
from semdedup_assets.settings import Pipeline
from semdedup_assets.storage.results import MissingResultError

_NAMED = 3


def stage_asset(builder: AssetBuilder, asset: StageAsset) -> dg.AssetsDefinition:
    """The asset of a stage, of one selection where each has its own."""
    stage, run_config = asset.stage, builder.run_config(asset)
    partitions_def = builder.partitions_def(stage)

    @dg.asset(
        key=builder.key(asset),
        group_name=builder.group_of(asset),
        owners=list(builder.pipeline.owners),
        code_version=builder.code_version(asset),
        description=stage.description,
        kinds=set(stage.kinds),
        tags={STEP_TAG: stage.step},
        metadata=builder.metadata(asset),
        partitions_def=partitions_def,
        deps=builder.deps(asset),
        backfill_policy=_backfill_policy(builder.pipeline) if partitions_def is not None else None,
        check_specs=check_specs(builder, asset),
        pool=stage.pool,
    )
    def materialise(
        context: dg.AssetExecutionContext,
        config: run_config,  # type: ignore[valid-type]
    ) -> Iterator[dg.MaterializeResult[None]]:
        again = config.refit if stage.frozen else config.again  # type: ignore[attr-defined]
        with reporting_to(context.log.info), alive(context.instance, context.run.run_id):
            stage_context = builder.context(asset, builder.compute_of(config))
            try:
                made = _made(context, builder, asset, stage_context, again=again)
            finally:
                end_resting()
            checks = evaluated_checks(builder, asset, stage_context)
            as_one = len(made) == 1 and not builder.selected_through(asset)
            yield from _ended(context, made, [check_result(builder, asset, check) for check in checks], as_one=as_one)
            with failing_runs():
                raise_failures(checks)

    return materialise


def _backfill_policy(pipeline: Pipeline) -> dg.BackfillPolicy:
    """How many runs make many partitions: one, for a run loads a model once, or what the settings say."""
    partitions = pipeline.refresh.partitions_per_run
    return dg.BackfillPolicy.single_run() if partitions is None else dg.BackfillPolicy.multi_run(partitions)


def _made(
    context: dg.AssetExecutionContext,
    builder: AssetBuilder,
    asset: StageAsset,
    stage_context: StageContext,
    *,
    again: bool,
) -> list[dg.AssetMaterialization]:
    """Make what is not up to date of the run's partitions, and log each as it is done; returns the events.

    Raises:
        dagster.Failure: what some of them are made from is not there; the others are made.
    """
    stage, index = asset.stage, stage_context.index
    events = PartitionEvents(builder, asset, stage_context, context.instance)
    partitions = _partitions(context, asset)
    index.records(stage.name)  # All records are read together.
    wanted = {each for each in partitions if again or not _is_current(stage_context, stage.name, each)}
    fresh = index.results(stage.name, (each for each in partitions if each not in wanted))
    if stage.settle is not None:
        stage.settle(stage_context, fresh)
    logged = [events.event(partition, record, reused=True) for partition, record in fresh.items()]
    to_make = [each for each in partitions if each in wanted]
    lacking = _lacking(stage_context, stage, to_make)
    ready = [each for each in to_make if each not in lacking]
    for partition, record in run_partitions(stage_context, stage, ready, again=again):
        logged.append(events.event(partition, record))
        # A single event describes a run of one partition; of many, each is seen as it ends.
        if len(partitions) > 1:
            context.log_event(logged[-1])
    index.collect()
    if lacking:
        raise _missing_inputs(builder, asset, lacking)
    return logged


def _lacking(context: StageContext, stage: Stage, partitions: Iterable[Partition]) -> dict[Partition, str]:
    """The partitions whose inputs are not there, each with what is missing: seen before models and workers are loaded."""
    found = {}
    for partition in partitions:
        try:
            for stored in context.index.stored(stage.name, partition):
                context.index.input_versions(stage.name, stored)
        except MissingResultError as error:
            found[partition] = str(error)
    return found


def _missing_inputs(builder: AssetBuilder, asset: StageAsset, lacking: dict[Partition, str]) -> dg.Failure:
    reasons = list(dict.fromkeys(lacking.values()))
    more = f"; and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
    message = (
        f"{asset}: {len(lacking)} partitions cannot be made yet: {'; '.join(reasons[:_NAMED])}{more}; or launch "
        f"{builder.refresh_job}, which makes everything in order"
    )
    return dg.Failure(message, allow_retries=False)


def _is_current(context: StageContext, stage: str, partition: Partition) -> bool:
    try:
        return context.index.is_current(stage, partition)
    except MissingResultError:
        return False  # Making it says what is missing.


def _partitions(context: dg.AssetExecutionContext, asset: StageAsset) -> list[Partition]:
    """The partitions of the run.

    Raises:
        dagster.Failure: a reversed range, which holds none.
    """
    dimensions = asset.stage.dimensions
    if not dimensions:
        return [Partition()]
    keys = [str(key) for key in context.partition_keys]
    if not keys:
        message = "the range of partitions holds none: its end comes before its start"
        raise dg.Failure(message, allow_retries=False)
    return [Partition.parse(key, dimensions) for key in keys]


def _ended(
    context: dg.AssetExecutionContext,
    events: list[dg.AssetMaterialization],
    checks: list[dg.AssetCheckResult],
    *,
    as_one: bool,
) -> Iterator[dg.MaterializeResult[None]]:
    """End the step: without a result, the steps that follow would be skipped.

    Dagster records the result for every partition of the run. Of a run of one partition it is the only event, unless its
    dependencies say more than Dagster knows; of many, each partition's own is logged once more, for the last one counts.
    """
    if as_one:
        (event,) = events
        version = dg.DataVersion(str((event.tags or {})["dagster/data_version"]))
        yield dg.MaterializeResult(metadata=event.metadata, data_version=version, check_results=checks)
        return
    yield dg.MaterializeResult(check_results=checks)
    for event in events:
        context.log_event(event)
