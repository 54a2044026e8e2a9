"""What starts runs: jobs to start by hand, a schedule, and a sensor that refreshes what is stale."""

from typing import TYPE_CHECKING

import dagster as dg
from sqlalchemy.exc import SQLAlchemyError

from semdedup_assets.assets.automation import STATE_TAG, automation_sensor, state_of
from semdedup_assets.assets.builder import STEP_TAG, AssetBuilder
from semdedup_assets.assets.console import console_logger
from semdedup_assets.assets.lost_runs import alive, loss_of
from semdedup_assets.assets.refresh import refresh
from semdedup_assets.assets.under_way import unfinished_run
from semdedup_assets.execution.progress import reporting_to

DATASET_TAG, MODEL_TAG, MADE_TAG = "semdedup/dataset", "semdedup/model", "semdedup/made"

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition


def job_definitions(builder: AssetBuilder) -> dg.Definitions:
    """The jobs, the schedule and the sensor of a pipeline."""
    job = _refresh_job(builder)
    schedules = [_schedule(builder, job)] if builder.pipeline.refresh.schedule else []
    return dg.Definitions(jobs=[job, _refit_job(builder)], schedules=schedules, sensors=[automation_sensor(builder)])


def _refresh_job(builder: AssetBuilder) -> dg.JobDefinition:
    allowing = dg.Field(
        bool, default_value=False, description="Take all files of the source that are missing for deleted, this once."
    )

    # Whatever has this tag notes the process of its run.
    tags = {STEP_TAG: "refresh"}

    @dg.op(name=f"{builder.refresh_job}_all", pool="gpu", config_schema={"allow_vanished": allowing}, tags=tags)
    def refresh_all(context: dg.OpExecutionContext) -> None:
        with reporting_to(context.log.info), alive(context.instance, context.run.run_id):
            _require_only(context, builder)
            if STATE_TAG not in context.run.tags:
                # So that the automation does not at once repeat what fails here.
                _tag(context, STATE_TAG, state_of(builder, builder.context(builder.assets[0])))
            pipeline = builder.pipeline
            if context.op_config["allow_vanished"]:
                settings = pipeline.refresh.model_copy(update={"max_vanished": 1.0})
                pipeline = pipeline.model_copy(update={"refresh": settings})
            runs = refresh(pipeline, context.instance, again=True, graph=builder.graph, sink=context.log_event)
            counts: dict[str, int] = {}
            for run in runs:
                made = f"{len(run.partitions)} partitions made" if run.partitions else "up to date"
                known = f", {run.adopted} found in the store" if run.adopted else ""
                context.log.info(f"{run.asset}: {made}{known}")
                if run.partitions:
                    counts[run.asset] = counts.get(run.asset, 0) + len(run.partitions)
                    _tag(context, MADE_TAG, ", ".join(f"{asset} {count}" for asset, count in counts.items()))
            if not counts:
                _tag(context, MADE_TAG, "nothing")

    @dg.job(
        name=builder.refresh_job,
        description=(
            "Looks through the source, then makes whatever is missing, stale or failed, asset by asset, in this one run; "
            "excluded shards are tried again. What the store holds already is made known to Dagster, not made again."
        ),
        tags={DATASET_TAG: builder.pipeline.dataset, MODEL_TAG: builder.pipeline.model_name},
        executor_def=dg.in_process_executor,
        logger_defs={"console": console_logger},
        # Dagster uses a logger only where the configuration of the run names it.
        config={"loggers": {"console": {}}},
    )
    def refresh_job() -> None:
        refresh_all()

    return refresh_job


def _tag(context: dg.OpExecutionContext, tag: str, value: str) -> None:
    """Tag a run with what a person looks for in a list of runs; a busy database must not end it."""
    try:
        context.instance.add_run_tags(context.run.run_id, {tag: value})
    except SQLAlchemyError as error:
        context.log.warning(f"the run could not be tagged with {tag}: {error}")


def _require_only(context: dg.OpExecutionContext, builder: AssetBuilder) -> None:
    """End at once where an earlier refresh of the pipeline is under way: both would make the same.

    Raises:
        dagster.Failure: there is one; names it.
    """
    this = context.instance.get_run_record_by_id(context.run.run_id)
    started = dg.RunsFilter(job_name=builder.refresh_job, statuses=[dg.DagsterRunStatus.STARTED])
    for record in context.instance.get_run_records(started):
        run = record.dagster_run
        earlier = this is not None and (record.start_time or 0, run.run_id) < (this.start_time or 0, context.run.run_id)
        if earlier and loss_of(context.instance, run, ours=True) is None:
            message = (
                f"refresh {run.run_id} of {builder.group} is under way and makes whatever is missing: this one ends, with "
                "nothing done; wait for it, or end it"
            )
            raise dg.Failure(message, allow_retries=False)


def _refit_job(builder: AssetBuilder) -> "UnresolvedAssetJobDefinition":
    sample = next(asset for asset in builder.assets if asset.stage.frozen)
    key = builder.key(sample)
    return dg.define_asset_job(
        f"{builder.group}__refit",
        selection=dg.AssetSelection.assets(key),
        config={"ops": {key.to_python_identifier(): {"config": {"refit": True}}}},
        description=(
            "Draws a new training sample from today's embeddings: centroids, and all that follows, are then made again "
            "by the automation, by the refresh, or by hand."
        ),
    )


def _schedule(builder: AssetBuilder, job: dg.JobDefinition) -> dg.ScheduleDefinition:
    def requests(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        # Trainings and analyses on demand, which may take days, hold no refresh back.
        run = unfinished_run(context.instance, builder.refresh_job, builder.automatic_keys, context.repository_def)
        return dg.SkipReason(f"run {run} of the pipeline is under way") if run else dg.RunRequest()

    return dg.ScheduleDefinition(
        name=f"{builder.group}__schedule",
        cron_schedule=str(builder.pipeline.refresh.schedule),
        job=job,
        execution_fn=requests,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Refreshes the pipeline; passes a tick over while a run of it is under way.",
    )
