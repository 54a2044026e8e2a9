"""When a partition is made without anybody asking: the automation condition of all assets."""

from typing import Any

import dagster as dg

from semdedup_assets.settings import Pipeline

# A partition whose run failed is tried again this often.
_RETRY = "0 * * * *"

# Of runs that may still make something.
ON_THE_WAY = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_MOST_RUNS = 1000


def refresh_condition(pipeline: Pipeline, asset: str, *, refresh_job: str) -> dg.AutomationCondition[Any]:
    """True for the partitions that are missing or whose inputs have changed, once all before them is up to date.

    Unlike `eager()` it follows versions, not events: the same bytes again start nothing, and new data never draw a new
    training sample.

    Args:
        pipeline: its settings.
        asset: name of the asset.
        refresh_job: name of the pipeline's job that does the same in one run; while it is at work, this waits.
    """
    condition = dg.AutomationCondition
    # What was missing before the first look would otherwise never be new.
    wanted: dg.AutomationCondition[Any] = condition.newly_missing() | (
        condition.missing() & condition.initial_evaluation()
    )
    wanted = wanted | condition.code_version_changed()
    wanted = wanted | (condition.execution_failed() & condition.cron_tick_passed(_RETRY))
    if asset != "training_sample":
        wanted = wanted | condition.any_deps_match(condition.data_version_changed())
    return (
        wanted.since(condition.newly_requested() | condition.newly_updated()).with_label("missing, changed or failed")
        & ~condition.any_deps_missing()
        & ~condition.in_progress()
        & condition.all_deps_blocking_checks_passed()
        & InputsAtRest(refresh_job)
        & InputsUpToDate(pipeline, asset)
    )


class InputsUpToDate(dg.AutomationCondition[dg.AssetKey]):
    """False while anything that an asset hangs on, however indirectly, has still to be made, as the store tells.

    A changed shard changes what manifests are made from at once, and masks only after assignments and scores.
    """

    def __init__(self, pipeline: Pipeline, asset: str) -> None:
        self._pipeline = pipeline
        self._asset = asset

    @property
    def name(self) -> str:
        """As the UI shows it."""
        return "inputs_up_to_date"

    @property
    def description(self) -> str:
        """As the UI shows it."""
        return "All that comes before was made from what there is now"

    def evaluate(self, context: Any) -> dg.AutomationResult[dg.AssetKey]:
        """All candidates, or none."""
        from semdedup_assets.stages.outdated import is_ready
        from semdedup_assets.stages.work import Work

        # Recipes are read only where something is wanted and could be made.
        ready = not context.candidate_subset.is_empty and is_ready(Work(self._pipeline), self._asset)
        return dg.AutomationResult(context, context.candidate_subset if ready else context.get_empty_subset())


class InputsAtRest(dg.AutomationCondition[dg.AssetKey]):
    """False while a run or backfill makes an input, whichever of its partitions.

    Each partition is recorded as it is done: without this, every shard of a long embedding run would be followed by a
    run of its own, for each k.
    """

    def __init__(self, refresh_job: str) -> None:
        self._refresh_job = refresh_job

    @property
    def name(self) -> str:
        """As the UI shows it."""
        return "inputs_at_rest"

    @property
    def description(self) -> str:
        """As the UI shows it."""
        return "No run or backfill is making an input, and no refresh of the pipeline is at work"

    def evaluate(self, context: Any) -> dg.AutomationResult[dg.AssetKey]:
        """All candidates, or none."""
        if context.candidate_subset.is_empty:
            return dg.AutomationResult(context, context.candidate_subset)
        parents = context.asset_graph.get(context.key).parent_keys
        busy = self._busy(context.asset_graph_view.instance, parents)
        return dg.AutomationResult(context, context.get_empty_subset() if busy else context.candidate_subset)

    def _busy(self, instance: dg.DagsterInstance, parents: set[dg.AssetKey]) -> bool:
        for run in instance.get_runs(dg.RunsFilter(statuses=ON_THE_WAY), limit=_MOST_RUNS):
            if run.job_name == self._refresh_job or parents & (run.asset_selection or set()):
                return True
        return any(parents & keys for keys in _backfilled(instance))


def _backfilled(instance: dg.DagsterInstance) -> list[set[dg.AssetKey]]:
    """The assets of each backfill that is under way."""
    from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus

    under_way = BulkActionsFilter(statuses=[BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING])
    return [set(backfill.asset_selection or ()) for backfill in instance.get_backfills(filters=under_way, limit=100)]
