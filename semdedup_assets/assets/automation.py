"""Refreshes by themselves: each look asks the store what is missing or stale, and requests one run that makes it all.

A run for each stage would wait for a look, a place in the queue and the start of a process, stage after stage.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import dagster as dg

from semdedup_assets.assets.builder import AssetBuilder
from semdedup_assets.assets.looks import Look, Looks
from semdedup_assets.assets.source import changes_or_reason
from semdedup_assets.assets.under_way import FINISHED, finished_runs, unfinished_backfill, unfinished_run
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.pipeline_stages import StageAsset
from semdedup_assets.execution.reference_files import observe_references, observed_references
from semdedup_assets.storage.results import MissingResultError, fingerprint

REASON_TAG = "semdedup/reason"
# Dagster shows no tags of this prefix, which would hide the others.
STATE_TAG, STALE_TAG = ".dagster/semdedup_state", ".dagster/semdedup_stale"

UP_TO_DATE = "everything is up to date"
"""What a look says that finds nothing to be made."""

_RETRY = timedelta(hours=1)
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be made of a pipeline.

    Attributes:
        partitions: that are missing or stale though their inputs are there; what follows them is made in its turn.
        state: hash of the files and settings that it would be made from.
    """

    partitions: dict[StageAsset, list[Partition]]
    state: str

    @property
    def stale(self) -> str:
        """Hash of what is missing or stale."""
        return fingerprint({str(asset): list(map(str, found)) for asset, found in self.partitions.items()})

    @property
    def tags(self) -> dict[str, str]:
        """What a run that is requested for it is tagged with."""
        return {REASON_TAG: str(self), STATE_TAG: self.state, STALE_TAG: self.stale}

    def __str__(self) -> str:
        more = f"; and {len(self.partitions) - _NAMED} more assets" if len(self.partitions) > _NAMED else ""
        first = list(self.partitions.items())[:_NAMED]
        return "; ".join(f"{asset}: {_named(found)}" for asset, found in first) + more


def _named(partitions: list[Partition]) -> str:
    named = ", ".join(str(each) for each in partitions[:_NAMED] if str(each))
    more = ", …" if len(partitions) > _NAMED else ""
    return f"{len(partitions)} missing or stale{f' ({named}{more})' if named else ''}"


def find_wanted(builder: AssetBuilder, first: StageContext) -> Wanted:
    """What refreshes would make, by the store's records.

    Args:
        builder: of the pipeline.
        first: context of its first asset, which knows the store as it is now.
    """
    found = {}
    for asset in builder.automatic:
        stale = _stale(first.with_selection(asset.selection), asset)
        if stale:
            found[asset] = stale
    return Wanted(found, state_of(builder, first))


def _stale(context: StageContext, asset: StageAsset) -> list[Partition]:
    try:
        return context.index.stale(asset.stage.name)
    except MissingResultError:
        return []  # What it is made from is among what is wanted.


def state_of(builder: AssetBuilder, first: StageContext) -> str:
    """Hash of all that a person may change where a refresh fails: files, settings, and how it is computed.

    Args:
        builder: of the pipeline.
        first: context of its first asset.
    """
    versions = {
        str(asset): builder.code_version(asset, first.with_selection(asset.selection)) for asset in builder.automatic
    }
    settings = builder.pipeline.model_dump(mode="json")
    shards = {shard.name: shard.fingerprint for shard in first.shard_index.shards}
    return fingerprint([versions, settings, shards, observed_references(first)])


def held_back(
    builder: AssetBuilder,
    instance: dg.DagsterInstance,
    found: Wanted,
    now: datetime,
    repository: dg.RepositoryDefinition | None = None,
) -> str | None:
    """Why what is wanted is not tried now, in words: the last run of the same failed; None where it is tried.

    Args:
        builder: of the pipeline.
        instance: knows the runs.
        found: what is wanted.
        now: with its time zone.
        repository: knows what jobs make; None: of jobs of others nothing is known.
    """
    last = next(
        (
            record
            for record in finished_runs(instance, builder.refresh_job, builder.automatic_keys, repository)
            if STATE_TAG in record.dagster_run.tags or record.dagster_run.is_success
        ),
        None,
    )
    if last is None or last.dagster_run.tags.get(STATE_TAG) != found.state:
        return None
    run, again = last.dagster_run, _again(last)
    if now >= again or (run.is_success and run.tags.get(STALE_TAG) != found.stale):
        return None
    ended = {dg.DagsterRunStatus.SUCCESS: "made nothing of it", dg.DagsterRunStatus.CANCELED: "was ended by hand"}
    return (
        f"run {run.run_id} {ended.get(run.status, 'failed')}; the next is at {again:%H:%M} UTC, or when files or settings change, "
        f"or when you launch {builder.refresh_job}; {found}"
    )


def _last_refresh(builder: AssetBuilder, instance: dg.DagsterInstance, now: datetime) -> tuple[str, bool] | None:
    """The refresh that ended last, and whether the same may be tried again: a trace, as results are."""
    chosen = dg.RunsFilter(job_name=builder.refresh_job, statuses=list(FINISHED))
    records = instance.get_run_records(chosen, limit=1)
    return (records[0].dagster_run.run_id, now >= _again(records[0])) if records else None


def _again(run: dg.RunRecord) -> datetime:
    """When what a run did not make is tried again."""
    return datetime.fromtimestamp(run.end_time or 0, timezone.utc) + _RETRY


def automation_sensor(builder: AssetBuilder) -> dg.SensorDefinition:
    """The sensor that makes what is missing or stale without anybody asking."""
    looks, running = Looks(builder), builder.pipeline.refresh.automatic

    @dg.sensor(
        name=f"{builder.group}__automation",
        job_name=builder.refresh_job,
        minimum_interval_seconds=builder.pipeline.refresh.interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED,
        description="Looks through the source and, where something has changed, the store, and launches one refresh of all "
        "that is missing or stale. Each look says what it found, or why nothing is made now.",
    )
    def automation(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        instance, now = context.instance, datetime.now(timezone.utc)
        if run := unfinished_run(instance, builder.refresh_job, builder.automatic_keys, context.repository_def):
            return dg.SkipReason(f"run {run} of the pipeline is under way")
        if backfill := unfinished_backfill(instance, builder.automatic_keys):
            return dg.SkipReason(f"backfill {backfill} of the pipeline is under way")
        last = Look.parse(context.cursor)
        if unheard := looks.unheard(last):
            return unheard
        changes = changes_or_reason(builder, instance)
        if isinstance(changes, str):
            return dg.SkipReason(changes)
        events, first = list(changes.observations(builder)), builder.context(builder.assets[0])
        observe_references(first)
        # The events of this look come after it: the next one sees them as a change.
        further = [changes.shards, observed_references(first), _last_refresh(builder, instance, now)]
        with looks.begin(instance, last, now.timestamp(), further=further) as begun:
            if begun is None:
                reason = f"nothing has changed since the last look: {last.found}" if last else "a look is under way"
                return dg.SensorResult(asset_events=events, skip_reason=reason)
            found = find_wanted(builder, first)
            held: str | None = UP_TO_DATE
            if found.partitions:
                held = held_back(builder, instance, found, now, context.repository_def)
            return looks.end(
                begun,
                first.index.cache.folders,
                held or f"a refresh was launched: {found}",
                lambda cursor: dg.SensorResult(
                    run_requests=None if held else [dg.RunRequest(tags=found.tags)],
                    skip_reason=held,
                    cursor=cursor,
                    asset_events=events,
                ),
            )

    return automation
