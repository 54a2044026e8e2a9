"""The observed source: which shards there are, and when one has changed."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dagster as dg
from sqlalchemy.exc import IntegrityError

from semdedup_assets.assets.builder import STEP_TAG, AssetBuilder, dagster_name
from semdedup_assets.assets.lost_runs import alive, end_lost_runs
from semdedup_assets.assets.metadata import markdown_text
from semdedup_assets.assets.own_runs import own_runs
from semdedup_assets.execution.shard_setting import unfollowed_shard_setting
from semdedup_assets.execution.source_index import files_of, index_and_listing
from semdedup_assets.sources.shard_index import VanishedFilesError
from semdedup_assets.storage.files import Listing
from semdedup_assets.storage.results import fingerprint

_STEP = "1-embed"
_FILES_CHECK = "source_has_files"
_VERSION = "dagster/data_version"
_ATTEMPTS = 5
_REASONS = 20  # for passing names over, that are listed
_SHARDS = (
    "The source files, joined to shards: one partition a shard, which a file never leaves. Observing lists the files, "
    "registers new shards, and notes which shards have changed (by size and time, or ETag). To make everything, launch the "
    "pipeline's job `…__refresh`: one run, a model loaded once; *Materialize all* makes a run for each few assets."
)
_SHARD_INDEX = (
    "The list of all shards. Its version changes when a shard comes or vanishes. What is made of all shards depends on it "
    "for the sake of those that vanish: a missing partition has no version left that could change, and its items "
    "would stay in the manifests."
)


@dataclass(frozen=True, slots=True)
class SourceChanges:
    """What is new in a source since it was last observed.

    Attributes:
        shards: fingerprint of each shard that is new or has changed.
        shard_index: version of the set of shards, where one came or vanished.
        listing: the files, and what was passed over.
        unfollowed: why known shards are not as a setting says; None where they are.
    """

    shards: dict[str, str]
    shard_index: str | None
    listing: Listing
    unfollowed: str | None = None

    def observations(self, builder: AssetBuilder) -> Iterator[dg.AssetObservation]:
        """The same as events for Dagster."""
        for shard, version in self.shards.items():
            yield dg.AssetObservation(builder.source_key("shards"), partition=shard, tags=_version_tag(version))
        if self.shard_index:
            yield dg.AssetObservation(
                builder.source_key("shard_index"),
                tags=_version_tag(self.shard_index),
                metadata=_listing_metadata(self.listing),
            )

    def __str__(self) -> str:
        shards = ", ".join(sorted(self.shards)[:5]) + (", …" if len(self.shards) > 5 else "")
        passed_over = Counter(self.listing.passed_over)
        reasons = ", ".join(f"{count:,} × {reason}" for reason, count in passed_over.most_common(_REASONS))
        return (
            f"{len(self.shards)} shards new or changed{f': {shards}' if shards else ''}; "
            f"{len(self.listing.files):,} files{f', passed over: {reasons}' if reasons else ''}"
            f"{f'; {self.unfollowed}' if self.unfollowed else ''}"
        )


def _version_tag(version: str) -> dict[str, str]:
    return {_VERSION: version}


def source_changes(builder: AssetBuilder, instance: dg.DagsterInstance) -> SourceChanges:
    """List the files, keep Dagster's partitions in step with the shard index, and find what is new.

    Raises:
        FileNotFoundError: the source has no file.
        VanishedFilesError: more files are missing than `refresh.max_vanished` allows. Nothing was changed, but for the
            check of the files.
    """
    with _files_checked(builder, instance):
        index, listing = index_and_listing(builder.context(builder.assets[0]))
    shards = {shard.name: shard.fingerprint for shard in index.shards}
    _register(instance, f"{builder.pipeline.dataset}/shard", list(shards))
    observed = instance.event_log_storage.get_latest_tags_by_partition(
        builder.source_key("shards"), dg.DagsterEventType.ASSET_OBSERVATION, [_VERSION]
    )
    version = fingerprint(sorted(shards))
    return SourceChanges(
        {shard: each for shard, each in shards.items() if observed.get(shard, {}).get(_VERSION) != each},
        None if _latest_version(builder.source_key("shard_index"), instance) == version else version,
        listing,
        unfollowed_shard_setting(builder.pipeline, index),
    )


def changes_or_reason(builder: AssetBuilder, instance: dg.DagsterInstance) -> SourceChanges | str:
    """What is new in a source, or in words why a sensor cannot look through it now: the next look may."""
    try:
        return source_changes(builder, instance)
    except FileNotFoundError as error:
        return f"the source has no file that can be listed from here: {error}"
    except (OSError, ValueError, VanishedFilesError) as error:
        return str(error)


def _register(instance: dg.DagsterInstance, name: str, shards: list[str]) -> None:
    """Make a dynamic partition of each shard, and of nothing else."""
    for attempt in range(_ATTEMPTS):
        registered = set(instance.get_dynamic_partitions(name))
        try:
            instance.add_dynamic_partitions(name, [shard for shard in shards if shard not in registered])
        except IntegrityError:
            # The sensor, or another refresh, has registered one of them meanwhile.
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            break
    for vanished in registered - set(shards):
        instance.delete_dynamic_partition(name, vanished)


def _latest_version(key: dg.AssetKey, instance: dg.DagsterInstance) -> str | None:
    records = instance.fetch_observations(key, limit=1).records
    event = records[0].event_log_entry.asset_observation if records else None
    return event.tags.get(_VERSION) if event else None


@contextmanager
def _files_checked(builder: AssetBuilder, instance: dg.DagsterInstance) -> Iterator[None]:
    """Have the check of the files fail with what is raised here, and pass again once nothing is: whoever looks finds it."""
    key = dg.AssetCheckKey(builder.source_key("shard_index"), _FILES_CHECK)
    record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key]).get(key)
    # One that a run has only planned has no result.
    found = record.evaluation if record is not None else None
    known = found if isinstance(found, dg.AssetCheckEvaluation) else None

    def evaluated(problem: str | None) -> None:
        evaluation = dg.AssetCheckEvaluation(
            asset_key=key.asset_key, check_name=key.name, passed=problem is None, metadata={}, description=problem
        )
        instance.report_runless_asset_event(evaluation)

    try:
        yield
    except Exception as error:
        # Each store's library has its own exceptions. One may name any file, and Dagster renders it as Markdown.
        problem = markdown_text(str(error))
        if known is None or known.passed or known.description != problem:
            evaluated(problem)
        raise
    if known is not None and not known.passed:
        evaluated(None)


def observe_source(builder: AssetBuilder, instance: dg.DagsterInstance) -> SourceChanges:
    """Observe the source outside a run of its own; raises what `source_changes` does."""
    changes = source_changes(builder, instance)
    for observation in changes.observations(builder):
        instance.report_runless_asset_event(observation)
    return changes


_made: dict[str, dg.Definitions] = {}


def source_definitions(builder: AssetBuilder) -> dg.Definitions:
    """The observed source of a dataset, its check, and the sensor that watches it.

    Pipelines of several models on one dataset share them: the same objects, which Dagster accepts more than once.
    """
    pipeline = builder.pipeline
    # What a model reads of an item (a column, a text) is its own affair: the files are the same.
    interval, most = pipeline.refresh.interval_seconds, pipeline.refresh.max_vanished
    key = repr((pipeline.dataset, pipeline.store, files_of(pipeline), pipeline.shards, interval, most, pipeline.owners))
    if key not in _made:
        assets = [_owned(builder, asset) for asset in (_shards(builder), _shard_index(builder))]
        checks = [_files_check(builder), _shard_setting_check(builder)]
        _made[key] = dg.Definitions(assets=assets, asset_checks=checks, sensors=[_files_sensor(builder)])
    return _made[key]


def _owned(builder: AssetBuilder, source: dg.SourceAsset) -> dg.AssetsDefinition:
    """An observed source as Dagster's other assets are: with owners, and within reach of `post_processing`."""
    owners = list(builder.pipeline.owners)
    asset = dg.Definitions(assets=[source]).resolve_assets_def(source.key)
    return asset.map_asset_specs(lambda spec: spec.replace_attributes(owners=owners))


def _shards(builder: AssetBuilder) -> dg.SourceAsset:
    @dg.observable_source_asset(
        key=builder.source_key("shards"),
        group_name=builder.group,
        description=_SHARDS,
        partitions_def=builder.shard,
        tags={STEP_TAG: _STEP, "dagster/kind/file": ""},
        metadata={"source": dg.MetadataValue.json(files_of(builder.pipeline))},
    )
    def shards(context: dg.AssetExecutionContext) -> dg.DataVersionsByPartition:
        with alive(context.instance, context.run.run_id):
            changes = source_changes(builder, context.instance)
        context.log.info(str(changes))
        for observation in SourceChanges({}, changes.shard_index, changes.listing).observations(builder):
            context.instance.report_runless_asset_event(observation)
        return dg.DataVersionsByPartition(dict(changes.shards))

    return shards


def _shard_index(builder: AssetBuilder) -> dg.SourceAsset:
    path = builder.context(builder.assets[0]).layout.shard_index

    @dg.observable_source_asset(
        key=builder.source_key("shard_index"),
        group_name=builder.group,
        description=_SHARD_INDEX,
        tags={STEP_TAG: _STEP, "dagster/kind/json": ""},
        metadata={"dagster/uri": path, "dagster/storage_kind": "json"},
    )
    def shard_index(context: dg.AssetExecutionContext) -> dg.DataVersion:
        with alive(context.instance, context.run.run_id):
            changes = observe_source(builder, context.instance)
        context.log.info(str(changes))
        return dg.DataVersion(_latest_version(builder.source_key("shard_index"), context.instance) or "")

    return shard_index


def _files_check(builder: AssetBuilder) -> dg.AssetChecksDefinition:
    """The check whether the source's files are there: a code location loads without them."""

    @dg.asset_check(
        asset=builder.source_key("shard_index"),
        name=_FILES_CHECK,
        description="The source has files that can be listed from here, and no more of those that it had are missing than "
        "`refresh.max_vanished` allows.",
        op_tags={STEP_TAG: _STEP},
    )
    def source_has_files(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        most = builder.pipeline.refresh.max_vanished
        try:
            with alive(context.instance, context.run.run_id):
                known, listing = builder.context(builder.assets[0]).shard_index, builder.pipeline.source.listing()
                known.require_present(listing.files, max_vanished=most)
        except (OSError, ValueError, VanishedFilesError) as error:
            return dg.AssetCheckResult(passed=False, description=markdown_text(str(error)))
        return dg.AssetCheckResult(passed=True, metadata=_listing_metadata(listing))

    return source_has_files


def _shard_setting_check(builder: AssetBuilder) -> dg.AssetChecksDefinition:
    """The check whether a changed setting waits for new files, which a person may not expect."""

    @dg.asset_check(
        asset=builder.source_key("shard_index"),
        name="shards_follow_settings",
        description="The shards were made with today's `shards.files_per_shard`: it counts for new files only.",
        op_tags={STEP_TAG: _STEP},
    )
    def shards_follow_settings(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        with alive(context.instance, context.run.run_id):
            unfollowed = unfollowed_shard_setting(builder.pipeline, builder.context(builder.assets[0]).shard_index)
        return dg.AssetCheckResult(
            passed=unfollowed is None, severity=dg.AssetCheckSeverity.WARN, description=markdown_text(unfollowed or "")
        )

    return shards_follow_settings


def _listing_metadata(listing: Listing) -> dict[str, Any]:
    """What a listing of the source found, and what it passed over."""
    passed_over = Counter(listing.passed_over)
    return {
        "files": len(listing.files),
        "bytes": sum(file.size for file in listing.files),
        "passed_over": passed_over.total(),
        "passed_over_reasons": dg.MetadataValue.json(dict(passed_over.most_common(_REASONS))),
    }


def _files_sensor(builder: AssetBuilder) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{dagster_name(builder.pipeline.dataset)}__files",
        minimum_interval_seconds=builder.pipeline.refresh.interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Registers new, changed and vanished files as shards; starts no run. Marks runs as failed whose "
        "process is gone.",
    )
    def files(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        for run_id in end_lost_runs(context.instance, own_runs(context.repository_def)):
            context.log.info(f"run {run_id} was lost, and is marked as failed")
        changes = changes_or_reason(builder, context.instance)
        if isinstance(changes, str):
            return dg.SkipReason(changes)
        events = list(changes.observations(builder))
        return dg.SensorResult(asset_events=events) if events else dg.SkipReason("no file is new, changed or missing")

    return files
