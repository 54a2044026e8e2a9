"""A pipeline on the files of a folder without Dagster: the source observed, then the stages run in order."""

import json
import shutil
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.engines.outcomes import Engine
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.runner import run_partitions
from semdedup_assets.execution.source_index import update_shard_index
from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.kept_sets import Clustering
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets.stages import keep_masks
from semdedup_assets.storage.results import RECORD, ResultRecord
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard

Made = dict[str, list[str]]
"""Keys of the partitions that were made, by asset: the stage's name, below the selection's where that has one."""

METHOD = StageGraph(
    tuple(stage for stage in GRAPH.stages if stage.worker.__module__.startswith("semdedup_assets.stages."))
)
"""The stages of the method, without estimate and analyses."""


@lru_cache(maxsize=256)
def _validated(settings: str) -> Pipeline:
    """A pipeline of settings that were asked for before; validation takes milliseconds, and every step asks."""
    return Pipeline.model_validate_json(settings)


_PLAIN = Pipeline.model_validate(vectors_settings(Path("unused")))
PLAIN = StageGraph(tuple(stage for stage in METHOD.stages if stage.applies(_PLAIN, _PLAIN.selection)))
"""Those that every pipeline has, also one without references, captions and a repair."""


@dataclass(frozen=True)
class StageRuns:
    """A pipeline whose stages are run in this process; every call sees the store afresh."""

    settings: dict[str, Any]
    graph: StageGraph = METHOD

    def changed(self, **changes: Any) -> "StageRuns":
        """The same with other settings; a dictionary changes the settings that it names."""
        settings = deepcopy(self.settings)
        for name, value in changes.items():
            merge = isinstance(value, dict) and isinstance(settings.get(name), dict) and "kind" not in value
            settings[name] = {**settings[name], **value} if merge else value
        return StageRuns(settings, self.graph)

    @property
    def pipeline(self) -> Pipeline:
        return _validated(json.dumps(self.settings, default=repr))

    def context(self, selection: str | None = None) -> StageContext:
        """A new context, of a selection by its name or of the first."""
        selections = self.pipeline.named_selections
        return StageContext(
            self.pipeline,
            self.graph,
            selections[selection] if selection else next(iter(selections.values())),
            self.pipeline.compute,
        )

    def observe(self) -> list[str]:
        """Observe the source; returns the names of its shards."""
        return [shard.name for shard in update_shard_index(self.context()).shards]

    def run(self, *, until: str | None = None) -> Made:
        """Observe the source and make all that is missing or stale, stage after stage, as a refresh does."""
        self.observe()
        first, made = self.context(), Made()
        for stage in self.graph.stages:
            named = self.pipeline.named_selections if stage.selected else {None: first.selection}
            for name, selection in named.items():
                if stage.on_demand or not stage.applies(self.pipeline, selection):
                    continue
                context = first.with_selection(selection)
                wanted = context.index.stale(stage.name)
                keys = [str(partition) for partition, _ in run_partitions(context, stage, wanted)]
                assert not context.index.stale(stage.name), f"{stage.name} is stale right after it was made"
                if keys:
                    made[f"{name}/{stage.name}" if name else stage.name] = sorted(keys)
            if stage.name == until:
                break
        return made

    def make(
        self, stage: str, *keys: str, again: bool = True, engine: Engine | None = None, selection: str | None = None
    ) -> list[ResultRecord]:
        """Make some partitions of a stage, up to date or not; without keys, all of them."""
        context = self.context(selection)
        found = context.graph[stage]
        partitions = [Partition.parse(key, found.dimensions) for key in keys] or context.index.partitions(stage)
        return [record for _, record in run_partitions(context, found, partitions, again=again, engine=engine)]

    def stale(self, stage: str, selection: str | None = None) -> list[str]:
        """Keys of the partitions that are missing or not up to date."""
        return [str(partition) for partition in self.context(selection).index.stale(stage)]

    def record(self, stage: str, key: str = "", selection: str | None = None) -> ResultRecord:
        """The record of a partition, or what a bucket is shown as."""
        context = self.context(selection)
        record = context.index.result(stage, Partition.parse(key, context.graph[stage].dimensions))
        assert record is not None, f"{stage} {key} is not there"
        return record

    def scores(self, k: str, selection: str | None = None) -> pl.DataFrame:
        """The scores of all clusters of a clustering, range after range."""
        records = self.context(selection).index.require_all(
            "duplicate_scores", Partition(clustering=Clustering.parse(k))
        )
        return pl.concat([pl.read_parquet(record.file("scores.parquet").path) for record in records.values()])

    def masks(self, key: str, selection: str | None = None) -> pl.DataFrame:
        """The masks of a kept set, in the order of its scores."""
        record = self.record("keep_masks", key, selection)
        return pl.concat([pl.read_parquet(file.path) for file in keep_masks.mask_files(record)])

    def manifest(self, key: str, selection: str | None = None) -> tuple[Path, dict[str, Any]]:
        """The folder that a training job is pointed to, and what its `manifest.json` says."""
        context = self.context(selection)
        kept_set = Partition.parse(key, ("epsilon", "k")).kept_set(context.selection)
        pointer = Path(context.layout.current_manifest(kept_set))
        folder = pointer.parent / json.loads(pointer.read_text())["folder"]
        return folder, json.loads((folder / "manifest.json").read_text())

    def kept_keys(self, key: str, selection: str | None = None) -> list[str]:
        """The keys of a manifest, in its order."""
        folder, _ = self.manifest(key, selection)
        return [name for path in sorted(folder.glob("parquet/*")) for name in pl.read_parquet(path)["key"].to_list()]


def small_pipeline(folder: Path, *, shards: int = 3, **changes: Any) -> StageRuns:
    """A pipeline on a few shards of near duplicates."""
    for seed in range(shards):
        write_shard(folder, f"{seed}", near_duplicates(seed))
    return StageRuns(vectors_settings(folder)).changed(**changes)


def stored_files(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder, by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def record_path(record: ResultRecord) -> Path:
    """Where a record lies."""
    return Path(f"{record.location}{RECORD}")


@dataclass(frozen=True)
class SoundStore:
    """A source and a store that a pipeline made of it; tests change the source, and a copy of the store.

    Attributes:
        runs: that made it; its source lies in `folder/source`.
        folder: where both lie.
    """

    runs: StageRuns
    folder: Path

    @classmethod
    def made_by(cls, runs: StageRuns, folder: Path) -> "SoundStore":
        """Make the store."""
        runs.run()
        shutil.copytree(folder / "source", folder / "source as it was")
        return cls(runs, folder)

    def copy(self, folder: Path) -> StageRuns:
        """The store moved to another folder, on the source as it was: shards are known by the paths of their files."""
        shutil.rmtree(self.folder / "source")
        shutil.copytree(self.folder / "source as it was", self.folder / "source")
        shutil.copytree(self.folder / "store", folder / "store")
        return self.runs.changed(store=str(folder / "store"))
