"""What is under way, or was last, of a pipeline: what would make the same at the same time waits for it."""

from collections.abc import Iterator, Sequence, Set
from datetime import datetime, timedelta, timezone

import dagster as dg

from semdedup_assets.assets.lost_runs import loss_of

_CREATED = dg.DagsterRunStatus.NOT_STARTED
_UNFINISHED = (
    dg.DagsterRunStatus.QUEUED,
    _CREATED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)
FINISHED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
"""Of runs that have ended."""

_MOST_RUNS, _MOST_BACKFILLS = 1000, 100
# What creates a run queues, launches or executes it at once: one that is only created for so long belongs to nobody.
_LONGEST_CREATED = timedelta(minutes=10)


def unfinished_run(
    instance: dg.DagsterInstance,
    job: str,
    assets: Set[dg.AssetKey],
    repository: dg.RepositoryDefinition | None = None,
) -> str | None:
    """Id of a run that has not ended, of a job or of any that makes some assets; None where there is none.

    A run whose process is gone has ended, and one that nobody has launched for minutes never will.

    Args:
        instance: knows the runs.
        job: name.
        assets: keys.
        repository: knows what jobs make of which somebody launches all; None: they do not count.
    """
    for record in _runs(instance, job, assets, _UNFINISHED, repository):
        run = record.dagster_run
        ours = run.job_name == job or assets >= _made_by(run, repository)
        if not _was_abandoned(record) and loss_of(instance, run, ours=ours) is None:
            return run.run_id
    return None


def _was_abandoned(record: dg.RunRecord) -> bool:
    """Whether who created a run ended before it was launched."""
    age = datetime.now(timezone.utc) - record.create_timestamp
    return record.dagster_run.status == _CREATED and age > _LONGEST_CREATED


def finished_runs(
    instance: dg.DagsterInstance,
    job: str,
    assets: Set[dg.AssetKey],
    repository: dg.RepositoryDefinition | None = None,
) -> list[dg.RunRecord]:
    """The latest runs of a job, or of any that makes some assets, that have ended; the last one first.

    Args:
        instance: knows the runs.
        job: name.
        assets: keys.
        repository: as of `unfinished_run`.
    """
    return sorted(
        _runs(instance, job, assets, FINISHED, repository), key=lambda record: record.end_time or 0, reverse=True
    )


def _runs(
    instance: dg.DagsterInstance,
    job: str,
    assets: Set[dg.AssetKey],
    statuses: Sequence[dg.DagsterRunStatus],
    repository: dg.RepositoryDefinition | None,
) -> Iterator[dg.RunRecord]:
    for record in instance.get_run_records(dg.RunsFilter(statuses=list(statuses)), limit=_MOST_RUNS):
        run = record.dagster_run
        if run.job_name == job or assets & _made_by(run, repository):
            yield record


def _made_by(run: dg.DagsterRun, repository: dg.RepositoryDefinition | None) -> Set[dg.AssetKey]:
    """The assets that a run makes: of a job of assets, launched as a whole, the run itself names none."""
    is_whole = run.asset_selection is None and run.asset_check_selection is None
    if is_whole and repository is not None and repository.has_job(run.job_name):
        return repository.get_job(run.job_name).asset_layer.asset_graph.executable_asset_keys
    return run.asset_selection or set()


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
