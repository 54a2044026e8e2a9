"""The observed source: which shards there are, and when one has changed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dagster as dg

from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.description import static_metadata
from semdedup_assets.settings import Pipeline


@dataclass(frozen=True, slots=True)
class SourceChanges:
    """What is new in a source since it was last observed.

    Attributes:
        shards: fingerprint of each shard that is new or has changed.
        catalogue: version of the set of shards, where one came or vanished.
    """

    shards: dict[str, str]
    catalogue: str | None

    def observations(self, declaration: Declaration) -> Iterator[dg.AssetObservation]:
        """The same as events for Dagster."""
        for shard, version in self.shards.items():
            yield dg.AssetObservation(declaration.key("shards"), partition=shard, tags=_version_tag(version))
        if self.catalogue:
            yield dg.AssetObservation(declaration.key("catalogue"), tags=_version_tag(self.catalogue))

    def __str__(self) -> str:
        shards = ", ".join(sorted(self.shards)[:5]) + (", …" if len(self.shards) > 5 else "")
        return f"{len(self.shards)} shards new or changed" + (f": {shards}" if shards else "")


def _version_tag(version: str) -> dict[str, str]:
    return {"dagster/data_version": version}


def source_changes(declaration: Declaration, instance: dg.DagsterInstance) -> SourceChanges:
    """List the files, keep Dagster's partitions in step with the catalogue, and tell what is new.

    Raises:
        FileNotFoundError: the source has no file.
    """
    from semdedup_assets.stages.shards import update_catalogue
    from semdedup_assets.stages.work import Work
    from semdedup_assets.storage.results import fingerprint

    shards = {shard.name: shard.fingerprint for shard in update_catalogue(Work(declaration.pipeline)).shards}
    name = f"{declaration.pipeline.dataset}/shard"
    registered = set(instance.get_dynamic_partitions(name))
    instance.add_dynamic_partitions(name, [shard for shard in shards if shard not in registered])
    for vanished in registered - set(shards):
        instance.delete_dynamic_partition(name, vanished)
    observed = _observed(declaration.key("shards"), instance, set(shards))
    roster = fingerprint(sorted(shards))
    return SourceChanges(
        {shard: version for shard, version in shards.items() if observed.get(shard) != version},
        None if _latest_version(declaration.key("catalogue"), instance) == roster else roster,
    )


def _latest_version(key: dg.AssetKey, instance: dg.DagsterInstance) -> str | None:
    records = instance.fetch_observations(key, limit=1).records
    event = records[0].event_log_entry.asset_observation if records else None
    return event.tags.get("dagster/data_version") if event else None


def _observed(key: dg.AssetKey, instance: dg.DagsterInstance, shards: set[str]) -> dict[str, str]:
    """The fingerprint of each shard's last observation, of those that ever were observed."""
    versions: dict[str, str] = {}
    cursor = None
    while True:
        page = instance.fetch_observations(key, limit=1000, cursor=cursor)
        for record in page.records:
            event = record.event_log_entry.asset_observation
            if event and event.partition and event.partition not in versions:
                versions[event.partition] = event.tags.get("dagster/data_version", "")
        if not page.has_more or shards <= versions.keys():
            return versions
        cursor = page.cursor


def observe_source(declaration: Declaration, instance: dg.DagsterInstance) -> SourceChanges:
    """Observe the source outside a run of its own."""
    changes = source_changes(declaration, instance)
    for observation in changes.observations(declaration):
        instance.report_runless_asset_event(observation)
    return changes


_made: dict[str, dg.Definitions] = {}


def shards_definitions(declaration: Declaration) -> dg.Definitions:
    """The observed source of a dataset, and the sensor that watches it.

    Pipelines of several models on one dataset share it: the same object, which Dagster accepts more than once.
    """
    pipeline = declaration.pipeline
    # What a model reads of an item (a column, a text) is its own affair: the files are the same.
    key = repr((pipeline.dataset, pipeline.store, _place(pipeline), pipeline.shards, pipeline.refresh.interval_seconds))
    if key not in _made:
        assets = [_shards(declaration), _catalogue(declaration)]
        _made[key] = dg.Definitions(assets=assets, sensors=[_files_sensor(declaration)])
    return _made[key]


def _place(pipeline: Pipeline) -> dict[str, Any]:
    """Which files a source has."""
    return pipeline.source.model_dump(mode="json", include={"kind", "path", "metadata"}, exclude_none=True)


def _shards(declaration: Declaration) -> dg.SourceAsset:
    @dg.observable_source_asset(
        partitions_def=declaration.shard,
        **declaration.observable("shards", {"source": dg.MetadataValue.json(_place(declaration.pipeline))}),
    )
    def shards(context: dg.AssetExecutionContext) -> dg.DataVersionsByPartition:
        changes = source_changes(declaration, context.instance)
        context.log.info(str(changes))
        for observation in SourceChanges({}, changes.catalogue).observations(declaration):
            context.instance.report_runless_asset_event(observation)
        return dg.DataVersionsByPartition(dict(changes.shards))

    return shards


def _catalogue(declaration: Declaration) -> dg.SourceAsset:
    where = static_metadata(declaration.pipeline, "catalogue")

    @dg.observable_source_asset(**declaration.observable("catalogue", where))
    def catalogue(context: dg.AssetExecutionContext) -> dg.DataVersion:
        changes = observe_source(declaration, context.instance)
        context.log.info(str(changes))
        return dg.DataVersion(_latest_version(declaration.key("catalogue"), context.instance) or "")

    return catalogue


def _files_sensor(declaration: Declaration) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{declaration.pipeline.dataset}__files".replace("-", "_").replace(".", "_"),
        minimum_interval_seconds=declaration.pipeline.refresh.interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Registers new, changed and vanished files as shards; starts no run.",
    )
    def files(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        events = list(source_changes(declaration, context.instance).observations(declaration))
        return dg.SensorResult(asset_events=events) if events else dg.SkipReason("no file is new, changed or gone")

    return files
