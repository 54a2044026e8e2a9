"""When a partition is made without anybody asking: the automation condition of all assets."""

from collections.abc import Set
from datetime import datetime
from typing import Any

import dagster as dg

from semdedup_assets.assets.builder import AssetBuilder
from semdedup_assets.assets.lost_runs import loss_of
from semdedup_assets.execution.pipeline_stages import StageAsset
from semdedup_assets.execution.result_index import ResultIndex

# A partition whose run failed is tried again this often.
_RETRY = "0 * * * *"

# Of runs that may still make something.
_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_MOST_RUNS, _MOST_BACKFILLS = 1000, 100


def refresh_condition(builder: AssetBuilder, asset: StageAsset) -> dg.AutomationCondition[Any]:
    """True for the partitions that are missing or whose inputs have changed, once all before them is up to date.

    Unlike `eager()` it follows versions, not events: the same bytes again start nothing, and new data never draw a new
    training sample. While the pipeline's refresh job is running, this waits.
    """
    condition = dg.AutomationCondition
    # What was missing before the first look would otherwise never be new.
    wanted: dg.AutomationCondition[Any] = condition.newly_missing() | (
        condition.missing() & condition.initial_evaluation()
    )
    wanted = wanted | condition.code_version_changed()
    wanted = wanted | (condition.execution_failed() & condition.cron_tick_passed(_RETRY))
    if not asset.stage.frozen:
        wanted = wanted | condition.any_deps_match(condition.data_version_changed())
    return (
        wanted.since(condition.newly_requested() | condition.newly_updated()).with_label("missing, changed or failed")
        & ~condition.any_deps_missing()
        & ~condition.in_progress()
        & condition.all_deps_blocking_checks_passed()
        & InputsAtRest(builder.refresh_job)
        & InputsUpToDate(builder, asset)
    )


class InputsUpToDate(dg.AutomationCondition[dg.AssetKey]):
    """False while anything that an asset depends on, however indirectly, has still to be made, by the store's records.

    A changed shard changes what manifests are made from immediately, and masks only after assignments and scores.
    """

    def __init__(self, builder: AssetBuilder, asset: StageAsset) -> None:
        self._builder = builder
        self._asset = asset

    @property
    def name(self) -> str:
        """As the UI shows it."""
        return "inputs_up_to_date"

    @property
    def description(self) -> str:
        """As the UI shows it."""
        return "Everything before this asset is up to date"

    def evaluate(self, context: Any) -> dg.AutomationResult[dg.AssetKey]:
        """All candidates, or none."""
        # Records are read only where something is wanted and could be made.
        ready = not context.candidate_subset.is_empty and self._store_at(context.evaluation_time).inputs_are_current(
            self._asset.stage.name
        )
        return dg.AutomationResult(context, context.candidate_subset if ready else context.get_empty_subset())

    def _store_at(self, moment: datetime) -> ResultIndex:
        """What the store holds at a tick: listed for the first asset that asks, and the same for all."""
        return self._builder.context_at(moment).with_selection(self._asset.selection).index


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
        return "No run or backfill is making an input, and no refresh of the pipeline is running"

    def evaluate(self, context: Any) -> dg.AutomationResult[dg.AssetKey]:
        """All candidates, or none."""
        if context.candidate_subset.is_empty:
            return dg.AutomationResult(context, context.candidate_subset)
        parents = context.asset_graph.get(context.key).parent_keys
        instance = context.asset_graph_view.instance
        busy = unfinished_run(instance, self._refresh_job, parents) or parents & _backfilled(instance)
        return dg.AutomationResult(context, context.get_empty_subset() if busy else context.candidate_subset)


def unfinished_run(instance: dg.DagsterInstance, job: str, assets: Set[dg.AssetKey]) -> str | None:
    """Id of a run that has not ended, of a job or of any that makes some assets; None where there is none.

    A run whose process is gone has ended.

    Args:
        instance: knows the runs.
        job: name.
        assets: keys.
    """
    for run in instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED), limit=_MOST_RUNS):
        if (run.job_name == job or assets & (run.asset_selection or set())) and loss_of(run) is None:
            return run.run_id
    return None


def _backfilled(instance: dg.DagsterInstance) -> set[dg.AssetKey]:
    """The assets of backfills that are being launched; of the latest ones, for those that ended stay listed."""
    latest = instance.get_backfills(limit=_MOST_BACKFILLS)
    active = [each for each in latest if each.status.value in ("REQUESTED", "CANCELING")]
    return {key for each in active for key in each.asset_selection or ()}
