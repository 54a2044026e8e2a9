"""The observed source: which shards there are, and when one has changed."""

from typing import Any

import dagster as dg

from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.settings import Pipeline

_SCAN_SECONDS = 60


def changed_shards(declaration: Declaration, instance: dg.DagsterInstance) -> dict[str, str]:
    """List the files, keep Dagster's partitions in step with the catalogue, and tell which shards are new or changed.

    Returns:
        Fingerprint by shard, of those whose last observation says otherwise.
    """
    from semdedup_assets.stages.shards import update_catalogue
    from semdedup_assets.stages.work import Work

    shards = {shard.name: shard.fingerprint for shard in update_catalogue(Work(declaration.pipeline)).shards}
    name = f"{declaration.pipeline.dataset}/shard"
    registered = set(instance.get_dynamic_partitions(name))
    instance.add_dynamic_partitions(name, [shard for shard in shards if shard not in registered])
    for vanished in registered - set(shards):
        instance.delete_dynamic_partition(name, vanished)
    observed = _observed(declaration.key("shards"), instance, set(shards))
    return {shard: version for shard, version in shards.items() if observed.get(shard) != version}


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


def observe_shards(declaration: Declaration, instance: dg.DagsterInstance) -> list[str]:
    """Observe the source outside a run; returns the shards that are new or changed."""
    changed = changed_shards(declaration, instance)
    for shard, version in changed.items():
        instance.report_runless_asset_event(_observation(declaration, shard, version))
    return sorted(changed)


def _observation(declaration: Declaration, shard: str, version: str) -> dg.AssetObservation:
    return dg.AssetObservation(declaration.key("shards"), partition=shard, tags={"dagster/data_version": version})


_made: dict[str, dg.Definitions] = {}


def shards_definitions(declaration: Declaration) -> dg.Definitions:
    """The observed source of a dataset, and the sensor that watches it.

    Pipelines of several models on one dataset share it: the same object, which Dagster accepts more than once.
    """
    pipeline = declaration.pipeline
    # What a model reads of an item (a column, a text) is its own affair: the files are the same.
    key = repr((pipeline.dataset, pipeline.store, _place(pipeline), pipeline.shards))
    if key not in _made:
        _made[key] = _definitions(declaration)
    return _made[key]


def _place(pipeline: Pipeline) -> dict[str, Any]:
    """Which files a source has."""
    return pipeline.source.model_dump(mode="json", include={"kind", "path", "metadata"}, exclude_none=True)


def _definitions(declaration: Declaration) -> dg.Definitions:
    dataset = declaration.pipeline.dataset

    @dg.observable_source_asset(
        name="shards",
        key_prefix=dataset,
        partitions_def=declaration.shard,
        group_name=declaration.group,
        description=(
            "The source files, joined to shards: one partition a shard, which a file never leaves. Observing lists the "
            "files, registers new shards, and notes which shards have changed (by size and time, or ETag)."
        ),
        metadata={"source": dg.MetadataValue.json(_place(declaration.pipeline))},
    )
    def shards(context: dg.AssetExecutionContext) -> dg.DataVersionsByPartition:
        return dg.DataVersionsByPartition(dict(changed_shards(declaration, context.instance)))

    @dg.sensor(
        name=f"{dataset}__files".replace("-", "_").replace(".", "_"),
        minimum_interval_seconds=_SCAN_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Registers new, changed and vanished files as shards; starts no run.",
    )
    def files(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        changed = changed_shards(declaration, context.instance)
        if not changed:
            return dg.SkipReason("no file is new or changed")
        return dg.SensorResult(asset_events=[_observation(declaration, *pair) for pair in changed.items()])

    return dg.Definitions(assets=[shards], sensors=[files])
