"""What is under way, or was last, of a pipeline: what would make the same at the same time waits for it."""

from collections.abc import Iterator, Sequence, Set

import dagster as dg

from semdedup_assets.assets.lost_runs import loss_of

_UNFINISHED = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)
FINISHED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
"""Of runs that have ended."""

_MOST_RUNS, _MOST_BACKFILLS = 1000, 100


def unfinished_run(instance: dg.DagsterInstance, job: str, assets: Set[dg.AssetKey]) -> str | None:
    """Id of a run that has not ended, of a job or of any that makes some assets; None where there is none.

    A run whose process is gone has ended.

    Args:
        instance: knows the runs.
        job: name.
        assets: keys.
    """
    runs = _runs(instance, job, assets, _UNFINISHED)
    return next((record.dagster_run.run_id for record in runs if loss_of(record.dagster_run) is None), None)


def finished_runs(instance: dg.DagsterInstance, job: str, assets: Set[dg.AssetKey]) -> list[dg.RunRecord]:
    """The latest runs of a job, or of any that makes some assets, that have ended; the last one first.

    Args:
        instance: knows the runs.
        job: name.
        assets: keys.
    """
    return sorted(_runs(instance, job, assets, FINISHED), key=lambda record: record.end_time or 0, reverse=True)


def _runs(
    instance: dg.DagsterInstance, job: str, assets: Set[dg.AssetKey], statuses: Sequence[dg.DagsterRunStatus]
) -> Iterator[dg.RunRecord]:
    for record in instance.get_run_records(dg.RunsFilter(statuses=list(statuses)), limit=_MOST_RUNS):
        run = record.dagster_run
        if run.job_name == job or assets & (run.asset_selection or set()):
            yield record


def unfinished_backfill(instance: dg.DagsterInstance, assets: Set[dg.AssetKey]) -> str | None:
    """Id of a backfill that still launches runs of some assets; None where there is none.

    The latest are looked through, for those that ended stay listed.

    Args:
        instance: knows the backfills.
        assets: keys.
    """
    for each in instance.get_backfills(limit=_MOST_BACKFILLS):
        if each.status.value in ("REQUESTED", "CANCELING") and assets & set(each.asset_selection or ()):
            return each.backfill_id
    return None
