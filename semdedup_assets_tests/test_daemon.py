"""Refreshes by the real daemon: which partitions ran is read from the event log."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from semdedup_assets.assets.automation import REASON_TAG, UP_TO_DATE
from semdedup_assets.assets.lost_runs import PROCESS_TAG
from semdedup_assets.assets.source import observe_source
from semdedup_assets_tests.dagster_process import (
    RunningDagster,
    configured_instance,
    last_tick,
    running_dagster,
    wait_for,
    wait_for_ticks,
    write_project,
)
from semdedup_assets_tests.pipeline_runs import Partitions, PipelineRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard

pytestmark = pytest.mark.slow

SHARDS = ["s000000", "s000001"]
AUTOMATION = "toy__precomputed__automation"


def of_new(*shards: str) -> Partitions:
    """What new or changed shards make run, each once."""
    return {
        "items": sorted(shards),
        "embeddings": sorted(shards),
        "assignments": sorted(f"3|{shard}" for shard in shards),
        "duplicate_scores": ["b0000|3"],
        "keep_masks": ["0.05|3"],
        "manifests": ["0.05|3"],
        "figures": ["3"],
        "galleries": ["0.05|3"],
    }


def everything() -> Partitions:
    return {**of_new(*SHARDS), "training_sample": [None], "centroids": ["3"]}


@contextmanager
def refreshing(
    folder: Path, refresh: dict[str, Any], *, before: Callable[[PipelineRuns, Path], None] | None = None
) -> Iterator[tuple[PipelineRuns, RunningDagster]]:
    """The daemon running on a pipeline of two shards, after something else was done before it was started."""
    for seed in range(2):
        write_shard(folder, f"{seed}", near_duplicates(seed))
    settings = {**vectors_settings(folder), "refresh": {"interval_seconds": 5, **refresh}}
    settings["clustering"]["buckets"] = 1
    write_project(folder, settings)
    if before:
        with configured_instance(folder) as instance:
            before(PipelineRuns(instance, settings), folder)
    with running_dagster(folder) as dagster:
        yield PipelineRuns(dagster.instance, settings), dagster


def times_made(runs: PipelineRuns, since: int) -> dict[tuple[str, str | None], int]:
    """In how many runs each partition was made after a record of the event log."""
    made: dict[tuple[str, str | None], set[str]] = {}
    for asset in runs.made_since(since):
        for record in runs.materialisations(asset, since):
            made.setdefault((asset, record.partition_key), set()).add(record.run_id)
    return {partition: len(run_ids) for partition, run_ids in made.items()}


def now(runs: PipelineRuns) -> int:
    return runs.instance.event_log_storage.get_maximum_record_id() or 0


def wait_until_made(runs: PipelineRuns, dagster: RunningDagster, expected: Partitions, since: int) -> None:
    """Wait until the expected partitions and no others were made, each in one run, and no run is left."""

    def made() -> bool:
        return runs.made_since(since).keys() >= expected.keys() and not unfinished(runs)

    wait_for(made, what=f"{expected}, made so far", log=dagster.log)
    assert runs.made_since(since) == expected
    assert set(times_made(runs, since).values()) == {1}


def unfinished(runs: PipelineRuns) -> bool:
    return any(not run.is_finished for run in runs.instance.get_runs(limit=20))


def test_the_schedule_makes_what_is_new_and_nothing_else_on_the_next_tick(tmp_path: Path) -> None:
    with refreshing(tmp_path, {"schedule": "* * * * *", "retry_seconds": 3}) as (runs, dagster):
        wait_until_made(runs, dagster, everything(), 0)

        before = now(runs)
        manifest = runs.data_version("manifests", "0.05|3")
        broken = tmp_path / "source" / "2.npy"
        np.save(broken, np.zeros(3))  # One dimension: no table of vectors.
        wait_for(lambda: logged(runs, "s000002: attempt 2 of 3 failed"), what="failures", log=dagster.log)
        write_shard(tmp_path, "2", near_duplicates(2))
        wait_until_made(runs, dagster, of_new("s000002"), before)
        assert not logged(runs, "s000002: attempt 3 of 3 failed")
        assert logged(runs, "2.npy was changed since it was observed")
        assert runs.context.index.excluded("embeddings") == {}
        assert runs.data_version("manifests", "0.05|3") != manifest
        manifest_now = runs.last_materialisation("manifests", ["0.05|3"])
        assert manifest_now.metadata["records"].value == 3 * len(near_duplicates(0))


def logged(runs: PipelineRuns, text: str) -> bool:
    """Whether any run's log holds a text."""
    return any(
        text in entry.user_message
        for run in runs.instance.get_runs(limit=20)
        for entry in runs.instance.all_logs(run.run_id)
    )


def test_what_was_missing_before_the_daemon_first_looked_is_made_and_a_vanished_shard_leaves(tmp_path: Path) -> None:
    with refreshing(tmp_path, {"automatic": True}, before=two_shards_made_and_two_missing) as (runs, dagster):
        before = runs.instance.fetch_observations(runs.builder.source_key("shards"), limit=1).records[0].storage_id
        wait_until_made(runs, dagster, of_new("s000002", "s000003"), before)
        (run,) = runs.instance.get_runs()
        assert run.tags[REASON_TAG].startswith("items: 2 missing or stale (s000002, s000003)")

        wait_for_ticks(dagster, AUTOMATION, what="with nothing to do")
        assert runs.instance.get_runs_count() == 1
        assert str(last_tick(dagster, AUTOMATION).skip_reason).endswith(UP_TO_DATE)

        before = now(runs)
        (tmp_path / "source" / "0.npy").unlink()
        wait_until_made(runs, dagster, {asset: made for asset, made in of_new().items() if made}, before)
        assert runs.instance.get_runs_count() == 2
        manifest = runs.last_materialisation("manifests", ["0.05|3"])
        assert manifest.metadata["records"].value == 3 * len(near_duplicates(0))


def test_after_a_reboot_the_lost_run_is_ended_and_refreshes_go_on(tmp_path: Path) -> None:
    def spoil_a_shard(_: PipelineRuns, folder: Path) -> None:
        np.save(folder / "source" / "1.npy", np.zeros(3))

    schedule = {"schedule": "* * * * *", "attempts": 9, "retry_seconds": 3600}
    with refreshing(tmp_path, schedule, before=spoil_a_shard) as (runs, dagster):
        wait_for(lambda: logged(runs, "the next attempt is in 3600 s"), what="a run that waits", log=dagster.log)
        assert environment_of_a_run(runs)["OMP_WAIT_POLICY"] == "passive"
        dagster.kill()
        (lost,) = runs.instance.get_runs()
        assert lost.status == dg.DagsterRunStatus.STARTED
    write_shard(tmp_path, "1", near_duplicates(1))
    with running_dagster(tmp_path) as dagster:
        runs = PipelineRuns(dagster.instance, runs.settings)
        wait_until_made(runs, dagster, everything(), 0)
        ended = runs.instance.get_run_by_id(lost.run_id)
        assert ended is not None
        assert ended.status == dg.DagsterRunStatus.FAILURE
        messages = [entry.message for entry in runs.instance.all_logs(lost.run_id)]
        assert any("The run was lost: its process" in message for message in messages)


def environment_of_a_run(runs: PipelineRuns) -> dict[str, str]:
    """What the process of the only run was started with."""
    (run,) = runs.instance.get_runs()
    pid = run.tags[PROCESS_TAG].rpartition("/")[2].partition("-")[0]
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def two_shards_made_and_two_missing(runs: PipelineRuns, folder: Path) -> None:
    runs.refresh()
    for seed in (2, 3):
        write_shard(folder, f"{seed}", near_duplicates(seed))
    observe_source(runs.builder, runs.instance)
