"""A pipeline on the files of a folder with a real Dagster instance, and what its runs did by the event log."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np

from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.pipeline import pipeline_definitions
from semdedup_assets.assets.refresh import ORDER, refresh, stale_partitions
from semdedup_assets.settings import Pipeline
from semdedup_assets.stages.work import Work

Partitions = dict[str, list[str | None]]
"""Partitions by asset; `None` stands for the one of an asset that has none."""


@dataclass(frozen=True)
class PipelineRuns:
    """A pipeline, and the instance that remembers what was done."""

    instance: dg.DagsterInstance
    settings: dict[str, Any]

    def changed(self, **changes: Any) -> "PipelineRuns":
        """The same with other settings; a dictionary changes the settings that it names."""
        settings = deepcopy(self.settings)
        for name, value in changes.items():
            merge = isinstance(value, dict) and isinstance(settings.get(name), dict)
            settings[name] = {**settings[name], **value} if merge else value
        return PipelineRuns(self.instance, settings)

    @property
    def pipeline(self) -> Pipeline:
        return Pipeline.model_validate(self.settings)

    @property
    def work(self) -> Work:
        return Work(self.pipeline)

    @property
    def definitions(self) -> dg.Definitions:
        return pipeline_definitions(self.pipeline)

    def key(self, asset: str) -> dg.AssetKey:
        return Declaration(self.pipeline).key(asset)

    def refresh(self) -> Partitions:
        """Refresh; returns what was materialised by the event log, once it is seen to be what refresh says."""
        before = self.instance.event_log_storage.get_maximum_record_id() or 0
        said = {
            run.asset: sorted(run.partitions, key=str)
            for run in refresh(self.pipeline, self.definitions, self.instance)
        }
        logged = self.materialised_since(before)
        assert logged == {asset: partitions for asset, partitions in said.items() if partitions}
        return logged

    def materialised_since(self, record_id: int) -> Partitions:
        """The partitions with a materialisation in the event log after a record, sorted, by asset."""
        found: Partitions = {}
        for asset in ORDER:
            records = self.materialisations(asset, record_id)
            if records:
                found[asset] = sorted({record.partition_key for record in records}, key=str)
        return found

    def materialisations(self, asset: str, record_id: int) -> list[dg.EventLogRecord]:
        """The materialisations of an asset in the event log after a record."""
        chosen = dg.AssetRecordsFilter(asset_key=self.key(asset), after_storage_id=record_id)
        return list(self.instance.fetch_materializations(chosen, limit=1000).records)

    def materialise(self, asset: str, *partitions: str, config: dict[str, Any] | None = None) -> None:
        """Materialise as the UI does, by a run of the implicit job."""
        job = self.definitions.resolve_implicit_global_asset_job_def().get_subset(asset_selection={self.key(asset)})
        tags = {}
        if partitions:
            tags = {
                "dagster/asset_partition_range_start": partitions[0],
                "dagster/asset_partition_range_end": partitions[-1],
            }
        op = self.key(asset).to_python_identifier()
        job.execute_in_process(
            instance=self.instance, tags=tags, run_config={"ops": {op: {"config": config}}} if config else None
        )

    def stale(self) -> Partitions:
        """What Dagster shows as missing or stale, by asset; assets without any are left out."""
        found = {asset: stale_partitions(self.definitions, self.instance, self.key(asset)) for asset in ORDER}
        return {asset: partitions for asset, partitions in found.items() if partitions}

    def data_version(self, asset: str, partition: str | None = None) -> str:
        """The data version of the last materialisation."""
        partitions = None if partition is None else [partition]
        event = self.last_materialisation(asset, partitions)
        return (event.tags or {})["dagster/data_version"]

    def last_materialisation(self, asset: str, partitions: list[str] | None = None) -> dg.AssetMaterialization:
        chosen = dg.AssetRecordsFilter(asset_key=self.key(asset), asset_partitions=partitions)
        event = self.instance.fetch_materializations(chosen, limit=1).records[0].asset_materialization
        assert event is not None
        return event


def vectors_settings(folder: Path) -> dict[str, Any]:
    """Settings of a small pipeline on the `.npy` files of `folder/source`."""
    return {
        "dataset": "toy",
        "store": str(folder / "store"),
        "source": {"kind": "vectors", "path": str(folder / "source")},
        "encoder": {"kind": "precomputed"},
        "clustering": {"k": [3], "buckets": 2, "iterations": 10},
        "epsilons": ["0.05"],
        "compute": {"device": "cpu"},
    }


def near_duplicates(seed: int, *, groups: int = 20, copies: int = 3, dimension: int = 16) -> np.ndarray:
    """(groups * copies, dimension) float32: every group a direction, with copies at cosines of about 0.9 to 0.999."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(groups, 1, dimension))
    noise = rng.normal(size=(groups, copies, dimension)) * rng.uniform(0.02, 0.5, size=(groups, copies, 1))
    return rng.permutation((centres + noise).reshape(-1, dimension)).astype(np.float32)


def write_shard(folder: Path, name: str, vectors: np.ndarray) -> Path:
    """Write `folder/source/<name>.npy`."""
    path = folder / "source" / f"{name}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, vectors)
    return path
