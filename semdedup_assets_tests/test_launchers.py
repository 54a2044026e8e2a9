"""The example of a run for each group of partitions: a backfill by the real daemon, its runs at the same time."""

import json
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster_ray import RayRunLauncher

from semdedup_assets_tests.dagster_process import ROOT, RunningDagster, configured_instance, running_dagster, wait_for
from semdedup_assets_tests.postgres import PostgresServer, uncommented

EXAMPLE = ROOT / "examples" / "many_machines" / "launchers"
KEY = dg.AssetKey(["docstrings", "encoder", "embeddings"])
SHARDS = [f"s00000{number}" for number in range(4)]

_BACKFILL = """
mutation ($parameters: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $parameters) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the example, with its data where it looks for them."""
    folder = tmp_path / "examples" / "many_machines" / "launchers"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("data", ".dagster", "__pycache__"))
    (tmp_path / "examples" / "docstrings").symlink_to(ROOT / "examples" / "docstrings")
    return folder


def launch_backfill(dagster: RunningDagster, key: dg.AssetKey, partitions: list[str]) -> str:
    """Launch as the UI does; returns the backfill's id."""
    parameters = {"assetSelection": [{"path": list(key.path)}], "partitionNames": partitions}
    content = json.dumps({"query": _BACKFILL, "variables": {"parameters": parameters}}).encode()
    request = urllib.request.Request(f"{dagster.url}/graphql", content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)["data"]["launchPartitionBackfill"]
    assert found["__typename"] == "LaunchBackfillSuccess", found
    return str(found["backfillId"])


@pytest.mark.slow
def test_a_backfill_is_made_by_two_runs_at_once_in_postgres(
    project: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in postgres.new_database().items():
        monkeypatch.setenv(name, value)
    text = (project / "dagster.yaml").read_text()
    (project / "dagster.yaml").write_text(postgres.dagster_yaml(text))
    with running_dagster(project) as dagster:
        instance = dagster.instance
        wait_for(lambda: instance.get_dynamic_partitions("docstrings/shard"), what="the sensor", log=dagster.log)
        launch_backfill(dagster, KEY, SHARDS)

        def finished() -> list[dg.RunRecord]:
            records = instance.get_run_records()
            return records if len(records) == 2 and all(each.dagster_run.is_finished for each in records) else []

        runs = wait_for(finished, what="two runs", log=dagster.log)
        assert all(record.dagster_run.is_success for record in runs)
        asked = {tuple(record.dagster_run.tags[f"dagster/asset_partition_range_{end}"] for end in ("start", "end"))
                 for record in runs}  # fmt: skip
        assert asked == {("s000000", "s000001"), ("s000002", "s000003")}
        assert instance.get_materialized_partitions(KEY) == set(SHARDS)
        # Each began before the other had ended.
        assert max(record.start_time for record in runs) < min(record.end_time for record in runs)


def test_the_commented_launcher_loads(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOBS_ADDRESS", "http://127.0.0.1:8265")
    text = (project / "dagster.yaml").read_text()
    (project / "dagster.yaml").write_text(uncommented(text, "run_launcher"))
    with configured_instance(project) as instance:
        assert isinstance(instance.run_launcher, RayRunLauncher)
        assert instance.run_launcher.address == "http://127.0.0.1:8265"
        assert instance.run_launcher.env_vars is not None
        assert "DAGSTER_PG_PASSWORD" in instance.run_launcher.env_vars
