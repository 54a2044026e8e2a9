"""What shows without a run whether a pipeline's assets are up to date: a sensor that evaluates that check of each.

Dagster marks no partitioned asset as a whole as stale, whichever of its partitions are.
"""

import time
from collections.abc import Iterator, Mapping, Sequence

import dagster as dg

from semdedup_assets.assets.builder import AssetBuilder
from semdedup_assets.assets.checks import freshness
from semdedup_assets.assets.looks import Look, Looks
from semdedup_assets.assets.lost_runs import end_lost_runs
from semdedup_assets.assets.own_runs import own_runs
from semdedup_assets.assets.under_way import unfinished_run
from semdedup_assets.checks.up_to_date import NAME
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.pipeline_stages import StageAsset
from semdedup_assets.storage.results import MissingResultError


def _known(
    instance: dg.DagsterInstance, assets: Sequence[dg.AssetKey]
) -> Mapping[dg.AssetKey, dg.AssetCheckEvaluation]:
    """The last evaluation of each asset's check that has one."""
    keys = [dg.AssetCheckKey(asset, NAME) for asset in assets]
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    events = {key.asset_key: record.event for key, record in records.items()}
    return {
        key: event.dagster_event.asset_check_evaluation_data
        for key, event in events.items()
        if event is not None
        and event.dagster_event is not None
        and event.dagster_event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION
    }


def _changed(
    builder: AssetBuilder, first: StageContext, known: Mapping[dg.AssetKey, dg.AssetCheckEvaluation]
) -> Iterator[dg.AssetCheckEvaluation]:
    for asset in builder.assets:
        last, found = known.get(builder.key(asset)), _evaluated(builder, asset, first)
        # Of what nobody asked for there is nothing to say.
        is_new = last is not None or found.metadata["partitions"] != dg.MetadataValue.int(0)
        if is_new and (last is None or _answer(last) != _answer(found)):
            yield found


def _evaluated(builder: AssetBuilder, asset: StageAsset, first: StageContext) -> dg.AssetCheckEvaluation:
    return freshness(builder, asset, first.with_selection(asset.selection))


def _answer(evaluation: dg.AssetCheckEvaluation) -> tuple[object, ...]:
    return evaluation.passed, evaluation.description, dict(evaluation.metadata)


def _summary(changed: Sequence[dg.AssetCheckEvaluation]) -> str:
    """What a look has found, as the list of the sensor's ticks shows it."""
    if not changed:
        return "all is as it was when it was last looked at"
    stale = sum(not each.passed for each in changed)
    return f"of {len(changed)} assets it has changed whether they are up to date: {stale} are not"


def freshness_sensor(builder: AssetBuilder) -> dg.SensorDefinition:
    """The sensor that shows what is stale or missing; it starts nothing."""
    looks = Looks(builder)

    @dg.sensor(
        name=f"{builder.group}__{NAME}",
        minimum_interval_seconds=builder.pipeline.refresh.interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Evaluates the check `{NAME}` of each asset when settings, files or results have changed; starts no "
        f"run. What it reports as stale or missing, the job `{builder.refresh_job}` makes. Marks runs as failed whose "
        "process is gone.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        since, last = time.time(), Look.parse(context.cursor)
        for run_id in end_lost_runs(context.instance, own_runs(context.repository_def)):
            context.log.info(f"run {run_id} was lost, and is marked as ended")
        keys = {builder.key(asset) for asset in builder.assets}
        if unheard := looks.unheard(last):
            return unheard
        run = unfinished_run(context.instance, builder.refresh_job, keys, context.repository_def)
        with looks.begin(context.instance, last, since, busy=run is not None) as begun:
            if begun is None:
                return dg.SkipReason(
                    "nothing has changed since all was last looked at, or it is too soon to look again"
                )
            first = builder.context(builder.assets[0])
            try:
                _ = first.shards
            except MissingResultError as error:
                return dg.SkipReason(str(error))
            changed = list(_changed(builder, first, _known(context.instance, list(keys))))
            found = _summary(changed)
            return looks.end(
                begun,
                first.index.cache.folders,
                found,
                lambda cursor: dg.SensorResult(asset_events=changed, cursor=cursor, skip_reason=found),
            )

    return sensor
