"""What starts runs: automation conditions as files arrive, a schedule, and jobs to start by hand."""

from typing import TYPE_CHECKING

import dagster as dg

from semdedup_assets.assets.conditions import ON_THE_WAY
from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.refresh import ORDER, refresh

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition


def automation_definitions(declaration: Declaration, definitions: dg.Definitions) -> dg.Definitions:
    """The sensor, schedule and jobs of a pipeline.

    Args:
        declaration: the pipeline.
        definitions: its assets.
    """
    job = _refresh_job(declaration, definitions)
    schedules = [_schedule(declaration, job)] if declaration.pipeline.refresh.schedule else []
    return dg.Definitions(
        jobs=[job, _refit_job(declaration)], schedules=schedules, sensors=[_automation_sensor(declaration)]
    )


def _automation_sensor(declaration: Declaration) -> dg.AutomationConditionSensorDefinition:
    running = declaration.pipeline.refresh.automatic
    return dg.AutomationConditionSensorDefinition(
        f"{declaration.group}__automation",
        target=dg.AssetSelection.assets(*(declaration.key(asset) for asset in ORDER)),
        default_status=dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=declaration.pipeline.refresh.interval_seconds,
        # One of the conditions is our own, which the daemon does not know.
        use_user_code_server=True,
        description="Makes what is missing or whose inputs have changed, asset by asset, as files arrive.",
    )


def _refresh_job(declaration: Declaration, definitions: dg.Definitions) -> dg.JobDefinition:
    @dg.op(name=f"{declaration.refresh_job}_all", pool="gpu")
    def refresh_all(context: dg.OpExecutionContext) -> None:
        for run in refresh(declaration.pipeline, definitions, context.instance, again=True):
            made = f"{len(run.partitions)} partitions made" if run.partitions else "up to date"
            context.log.info(f"{run.asset}: {made}")

    @dg.job(
        name=declaration.refresh_job,
        description=(
            "Looks through the source, then makes whatever is missing, stale or failed, asset by asset, in one run; "
            "shards that had been left out are tried again. Each asset's part is also listed as a run of its own."
        ),
        executor_def=dg.in_process_executor,
    )
    def refresh_job() -> None:
        refresh_all()

    return refresh_job


def _refit_job(declaration: Declaration) -> "UnresolvedAssetJobDefinition":
    sample = declaration.key("training_sample")
    return dg.define_asset_job(
        f"{declaration.group}__refit",
        selection=dg.AssetSelection.assets(sample),
        config={"ops": {sample.to_python_identifier(): {"config": {"refit": True}}}},
        description=(
            "Draws a new training sample from today's embeddings: centroids, and all that follows, are then made anew "
            "by the automation, by the refresh, or by hand."
        ),
    )


def _schedule(declaration: Declaration, job: dg.JobDefinition) -> dg.ScheduleDefinition:
    def requests(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        busy = _under_way(declaration, context.instance)
        return dg.SkipReason(f"run {busy} of the pipeline is under way") if busy else dg.RunRequest()

    return dg.ScheduleDefinition(
        name=f"{declaration.group}__schedule",
        cron_schedule=str(declaration.pipeline.refresh.schedule),
        job=job,
        execution_fn=requests,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Refreshes the pipeline; passes a tick over while a run of it is under way.",
    )


def _under_way(declaration: Declaration, instance: dg.DagsterInstance) -> str | None:
    """A run that makes something of the pipeline."""
    keys = {declaration.key(asset) for asset in ORDER}
    for run in instance.get_runs(dg.RunsFilter(statuses=ON_THE_WAY), limit=1000):
        if run.job_name == declaration.refresh_job or keys & (run.asset_selection or set()):
            return run.run_id
    return None
