"""Make what is missing or stale, in order, and nothing else: what the UI's choices do, as one call."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.errors import DagsterAssetCheckFailedError
from dagster._core.loader import LoadingContextForTest

from semdedup_assets.assets.checks import refuse_failed
from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.shards import observe_source
from semdedup_assets.settings import Pipeline
from semdedup_assets.stages.embeddings import left_out_shards
from semdedup_assets.stages.work import Work

ORDER = (
    "embeddings",
    "training_sample",
    "centroids",
    "assignments",
    "duplicate_scores",
    "keep_masks",
    "manifests",
    "figures",
    "galleries",
)
"""The assets of a pipeline, each after those it is made from."""


@dataclass(frozen=True, slots=True)
class StageRun:
    """One asset's run in a refresh; `partitions` holds `None` where the asset has none."""

    asset: str
    partitions: tuple[str | None, ...]


def stale_partitions(definitions: dg.Definitions, instance: dg.DagsterInstance, key: dg.AssetKey) -> list[str | None]:
    """Partitions of an asset that are missing or stale, in the order of the partitions."""
    graph = definitions.resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    # What was never made is asked for all at once; the resolver takes some milliseconds for each.
    made: set[str | None] = {None, *instance.get_materialized_partitions(key)}
    return [
        partition
        for partition in _partition_keys(definitions, instance, key)
        if partition not in made or resolver.get_status(key, partition) != StaleStatus.FRESH
    ]


def refresh(
    pipeline: Pipeline, definitions: dg.Definitions, instance: dg.DagsterInstance, *, again: bool = False
) -> Iterator[StageRun]:
    """Observe the source, then materialise what is missing or stale, asset by asset.

    Args:
        pipeline: its settings.
        definitions: its assets.
        instance: what remembers them.
        again: whether shards that were left out are tried once more.

    Yields:
        Each asset in turn with the partitions that were made, none where all were fresh.

    Raises:
        dagster.Failure: a blocking check of an asset fails.
        Exception: what a stage raised; what was finished before stays.
    """
    declaration = Declaration(pipeline)
    observe_source(declaration, instance)
    for asset in ORDER:
        key = declaration.key(asset)
        partitions = _to_make(definitions, instance, declaration, asset)
        if again and asset == "embeddings":
            partitions = sorted({*partitions, *left_out_shards(Work(pipeline))}, key=str)
        try:
            for run in _ranges(definitions, instance, key, partitions):
                _materialise(definitions, instance, key, run)
        except DagsterAssetCheckFailedError:
            refuse_failed(Work(pipeline), asset)  # Says what Dagster's error does not: where, and the cure.
            raise
        yield StageRun(asset, tuple(partitions))
        refuse_failed(Work(pipeline), asset)


def _to_make(
    definitions: dg.Definitions, instance: dg.DagsterInstance, declaration: Declaration, asset: str
) -> list[str | None]:
    """What Dagster calls missing or stale, and what the recipes in the store tell is outdated, in order."""
    from semdedup_assets.stages.outdated import outdated_partitions

    key = declaration.key(asset)
    stale = stale_partitions(definitions, instance, key)
    wanted = {*stale, *outdated_partitions(Work(declaration.pipeline), asset)}
    return [partition for partition in _partition_keys(definitions, instance, key) if partition in wanted]


def _partition_keys(
    definitions: dg.Definitions, instance: dg.DagsterInstance, key: dg.AssetKey
) -> Iterable[str | None]:
    partitions_def = definitions.resolve_asset_graph().get(key).partitions_def
    return [None] if partitions_def is None else partitions_def.get_partition_keys(dynamic_partitions_store=instance)


def _ranges(
    definitions: dg.Definitions, instance: dg.DagsterInstance, key: dg.AssetKey, partitions: list[str | None]
) -> list[list[str | None]]:
    """The partitions as contiguous ranges, each of which one run can make."""
    partitions_def = definitions.resolve_asset_graph().get(key).partitions_def
    if partitions_def is None:
        return [partitions] if partitions else []
    everything = list(partitions_def.get_partition_keys(dynamic_partitions_store=instance))
    if len(partitions) == len(everything):
        return [partitions]
    ranges: list[list[str | None]] = []
    place = {partition: index for index, partition in enumerate(everything)}
    for partition in partitions:
        joins = ranges and ranges[-1][-1] is not None and place[str(ranges[-1][-1])] + 1 == place[str(partition)]
        # A range of two dimensions is the product of its sides: one run holds one value of the first.
        if joins and _first_dimension(ranges[-1][0]) == _first_dimension(partition):
            ranges[-1].append(partition)
        else:
            ranges.append([partition])
    return ranges


def _first_dimension(partition: str | None) -> str:
    first, two, _ = str(partition).partition("|")
    return first if two else ""


def _materialise(
    definitions: dg.Definitions, instance: dg.DagsterInstance, key: dg.AssetKey, partitions: list[str | None]
) -> None:
    tags = {}
    if partitions[0] is not None:
        tags = {
            "dagster/asset_partition_range_start": str(partitions[0]),
            "dagster/asset_partition_range_end": str(partitions[-1]),
        }
    job = definitions.resolve_implicit_global_asset_job_def()
    # The stages report by themselves; Dagster's own debug lines are in the run's log, where the UI shows them.
    quiet = {"loggers": {"console": {"config": {"log_level": "WARNING"}}}}
    job.get_subset(asset_selection={key}).execute_in_process(instance=instance, tags=tags, run_config=quiet)
