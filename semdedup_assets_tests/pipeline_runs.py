"""A pipeline on the files of a folder with a real Dagster instance, and what its runs did by the event log."""

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from semdedup_assets.assets.builder import AssetBuilder
from semdedup_assets.assets.pipeline import pipeline_definitions
from semdedup_assets.assets.refresh import refresh
from semdedup_assets.assets.source import observe_source
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.pipeline_stages import StageAsset
from semdedup_assets.execution.refresh import StageRun
from semdedup_assets.execution.runner import run_partitions
from semdedup_assets.execution.stage import ANALYSE, EVALUATE, StageGraph
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH

MAIN_WAY = StageGraph(tuple(stage for stage in GRAPH.stages if stage.step not in (ANALYSE, EVALUATE)))
"""The stages without the analyses: each asset more makes every run slower to start."""

UNDRAWN = StageGraph(tuple(stage for stage in MAIN_WAY.stages if stage.name != "figures"))
"""These without the figures, which take as long to draw as all else takes to make."""

Partitions = dict[str, list[str | None]]
"""Partitions by asset; `None` stands for the one of an asset that has none."""


@dataclass(frozen=True)
class PipelineRuns:
    """A pipeline, and the instance that remembers what was done."""

    instance: dg.DagsterInstance
    settings: dict[str, Any]
    graph: StageGraph = MAIN_WAY

    def changed(self, **changes: Any) -> "PipelineRuns":
        """The same with other settings; a dictionary changes the settings that it names."""
        settings = deepcopy(self.settings)
        for name, value in changes.items():
            merge = isinstance(value, dict) and isinstance(settings.get(name), dict)
            settings[name] = {**settings[name], **value} if merge else value
        return replace(self, settings=settings)

    def without(self, setting: str) -> "PipelineRuns":
        """The same with the default of a setting."""
        return replace(self, settings={name: value for name, value in self.settings.items() if name != setting})

    @property
    def with_figures(self) -> "PipelineRuns":
        """The same with every stage of the main way."""
        return replace(self, graph=MAIN_WAY)

    @cached_property
    def pipeline(self) -> Pipeline:
        return Pipeline.model_validate(self.settings)

    @property
    def folder(self) -> Path:
        """Where `source` and `store` lie."""
        return Path(self.settings["source"]["path"]).parent

    @property
    def builder(self) -> AssetBuilder:
        return AssetBuilder(self.pipeline, self.graph)

    @property
    def context(self) -> StageContext:
        """What stages are given, of the only or the first selection; it looks at the store anew."""
        return self.builder.context(self.builder.assets[0])

    @cached_property
    def definitions(self) -> dg.Definitions:
        return pipeline_definitions(self.pipeline, self.graph)

    def asset(self, name: str) -> StageAsset:
        return next(asset for asset in self.builder.assets if str(asset) == name)

    def key(self, asset: str) -> dg.AssetKey:
        return self.builder.key(self.asset(asset))

    @property
    def last_record(self) -> int:
        """Id of the last event."""
        return self.instance.event_log_storage.get_maximum_record_id() or 0

    def refresh(self, *, again: bool = False) -> Partitions:
        """Refresh; returns what was made by the event log, once it is seen to be what refresh reports."""
        return made_by(self.refresh_runs(again=again))

    def refresh_runs(self, *, again: bool = False) -> list[StageRun]:
        """Refresh, and hold what it reports against the event log: one event for each partition."""
        before = self.last_record
        runs = list(refresh(self.pipeline, self.instance, again=again, graph=self.graph))
        reported = made_by(runs)
        for name in {run.asset for run in runs}:
            records = self.materialisations(name, before)
            reused = [record for record in records if "reused" in event_of(record).metadata]
            made = [record.partition_key for record in records if record not in reused]
            assert sorted(made, key=str) == reported.get(name, [])
            assert len(reused) == sum(run.adopted for run in runs if run.asset == name)
        return runs

    def observe(self) -> None:
        """Observe the source outside a run."""
        observe_source(self.builder, self.instance)

    def make(self, *stages: str) -> None:
        """Make what is missing or stale of some stages, without telling Dagster."""
        context = self.context
        for name in stages:
            for _ in run_partitions(context, self.graph[name], context.index.stale(name)):
                pass

    def materialised_since(self, record_id: int) -> Partitions:
        """The partitions with a materialisation in the event log after a record, sorted, by asset."""
        return {asset: sorted(events, key=str) for asset, events in self.events_since(record_id).items()}

    def made_since(self, record_id: int) -> Partitions:
        """The same of what was made, without what was only made known once more."""
        found: Partitions = {}
        for asset in map(str, self.builder.assets):
            events = [event_of(record) for record in self.materialisations(asset, record_id)]
            # What Dagster itself says of a range holds for all of it alike, and has no times.
            new = [each for each in events if "seconds" in each.metadata and "reused" not in each.metadata]
            if made := {each.partition for each in new}:
                found[asset] = sorted(made, key=str)
        return found

    def events_since(self, record_id: int) -> dict[str, Counter[str | None]]:
        """How many materialisations of each partition the event log holds after a record, by asset."""
        found = {}
        for asset in self.builder.assets:
            records = self.materialisations(str(asset), record_id)
            if records:
                found[str(asset)] = Counter(record.partition_key for record in records)
        return found

    def materialisations(self, asset: str, record_id: int) -> list[dg.EventLogRecord]:
        """The materialisations of an asset in the event log after a record."""
        chosen = dg.AssetRecordsFilter(asset_key=self.key(asset), after_storage_id=record_id)
        return list(self.instance.fetch_materializations(chosen, limit=1000).records)

    def materialise(
        self, asset: str, *partitions: str, config: dict[str, Any] | None = None, raise_on_error: bool = True
    ) -> dg.ExecuteInProcessResult:
        """Materialise as the UI does, by a run of the implicit job over one partition or a range."""
        key = self.key(asset)
        job = self.definitions.resolve_implicit_global_asset_job_def().get_subset(asset_selection={key})
        tags = {}
        if partitions:
            tags = {
                "dagster/asset_partition_range_start": partitions[0],
                "dagster/asset_partition_range_end": partitions[-1],
            }
        return job.execute_in_process(
            instance=self.instance,
            tags=tags,
            run_config={"ops": {key.to_python_identifier(): {"config": config}}} if config else None,
            raise_on_error=raise_on_error,
        )

    def stale(self) -> Partitions:
        """What Dagster shows as missing or stale, by asset; assets without any are absent."""
        resolver = CachingStaleStatusResolver(
            self.instance, self.definitions.resolve_asset_graph(), LoadingContextForTest(self.instance)
        )
        found: Partitions = {}
        for asset in self.builder.automatic:
            partitions_def = self.builder.partitions_def(asset.stage)
            keys: list[str | None] = [None]
            if partitions_def is not None:
                keys = list(partitions_def.get_partition_keys(dynamic_partitions_store=self.instance))
            key = self.builder.key(asset)
            stale = [each for each in keys if resolver.get_status(key, each) != StaleStatus.FRESH]
            if stale:
                found[str(asset)] = sorted(stale, key=str)
        return found

    def data_version(self, asset: str, partition: str | None = None) -> str:
        """The data version of the last materialisation."""
        event = self.last_materialisation(asset, None if partition is None else [partition])
        return (event.tags or {})["dagster/data_version"]

    def last_materialisation(self, asset: str, partitions: list[str] | None = None) -> dg.AssetMaterialization:
        chosen = dg.AssetRecordsFilter(asset_key=self.key(asset), asset_partitions=partitions)
        return event_of(self.instance.fetch_materializations(chosen, limit=1).records[0])


def made_by(runs: list[StageRun]) -> Partitions:
    """The partitions that a refresh reports as made, sorted, by asset."""
    found: Partitions = {}
    for run in runs:
        if run.partitions:
            made = found.get(run.asset, []) + [str(partition) or None for partition in run.partitions]
            found[run.asset] = sorted(made, key=str)
    return found


def event_of(record: dg.EventLogRecord) -> dg.AssetMaterialization:
    event = record.asset_materialization
    assert event is not None
    return event
