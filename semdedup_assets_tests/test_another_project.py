"""The example of somebody else's project, loaded as Dagster loads it and run on its real data."""

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

PROJECT = Path(__file__).parent.parent / "examples" / "another_project"
DEFS_YAML = PROJECT / "photo_library" / "defs" / "emoji" / "defs.yaml"


def test_five_lines_are_enough() -> None:
    assert len(DEFS_YAML.read_text().splitlines()) == 5


def test_its_assets_are_materialised_where_the_project_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(PROJECT))
    definitions = dg.load_from_defs_folder(path_within_project=PROJECT)
    job = definitions.resolve_implicit_global_asset_job_def()
    shards, embeddings = dg.AssetKey(["emoji", "shards"]), dg.AssetKey(["emoji", "encoder", "embeddings"])
    with dg.DagsterInstance.ephemeral() as instance:
        job.get_subset(asset_selection={shards}).execute_in_process(instance=instance)
        partitions = instance.get_dynamic_partitions("emoji/shard")
        assert partitions == ["s000000", "s000001", "s000002", "s000003"]
        ran = job.get_subset(asset_selection={embeddings}).execute_in_process(
            instance=instance, partition_key=partitions[0]
        )
        assert ran.success
        assert instance.get_materialized_partitions(embeddings) == {partitions[0]}
    assert (tmp_path / "data" / "emoji" / "encoder").is_dir()


def test_dagsters_own_check_of_the_project_passes() -> None:
    command = [str(Path(sys.executable).with_name("dg")), "check", "defs"]
    environment = {**os.environ, "DAGSTER_HOME": ""}
    ran = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
