"""Refreshes by the real daemon: which partitions ran is read from the event log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semdedup_assets.stages.embeddings import left_out_shards
from semdedup_assets_tests.dagster_process import RunningDagster, running_dagster, wait_for, write_project
from semdedup_assets_tests.pipeline_runs import Partitions, PipelineRuns, near_duplicates, vectors_settings, write_shard

SHARDS = ["s000000", "s000001"]


def of_new(*shards: str) -> Partitions:
    """What new or changed shards make run, each once."""
    return {
        "embeddings": sorted(shards),
        "assignments": sorted(f"3|{shard}" for shard in shards),
        "duplicate_scores": ["b0000|3", "b0001|3"],
        "keep_masks": ["0.05|3"],
        "manifests": ["0.05|3"],
        "figures": ["3"],
        "galleries": ["0.05|3"],
    }


def everything() -> Partitions:
    return {**of_new(*SHARDS), "training_sample": [None], "centroids": ["3"]}


@contextmanager
def refreshing(folder: Path, refresh: dict[str, Any]) -> Iterator[tuple[PipelineRuns, RunningDagster]]:
    """The daemon at work on a pipeline of two shards."""
    for seed in range(2):
        write_shard(folder, f"{seed}", near_duplicates(seed))
    settings = {**vectors_settings(folder), "refresh": {"interval_seconds": 5, **refresh}}
    write_project(folder, settings)
    with running_dagster(folder) as dagster:
        yield PipelineRuns(dagster.instance, settings), dagster


def times_made(runs: PipelineRuns, since: int) -> dict[tuple[str, str | None], int]:
    """In how many runs each partition was made after a record of the event log."""
    made: dict[tuple[str, str | None], set[str]] = {}
    for asset in runs.materialised_since(since):
        for record in runs.materialisations(asset, since):
            made.setdefault((asset, record.partition_key), set()).add(record.run_id)
    return {partition: len(run_ids) for partition, run_ids in made.items()}


def now(runs: PipelineRuns) -> int:
    return runs.instance.event_log_storage.get_maximum_record_id() or 0


def wait_until_made(runs: PipelineRuns, dagster: RunningDagster, expected: Partitions, since: int) -> None:
    """Wait until the expected partitions and no others were made, each in one run, and no run is left."""

    def made() -> bool:
        return runs.materialised_since(since).keys() >= expected.keys() and not unfinished(runs)

    wait_for(made, seconds=400, what=f"{expected}, made so far", log=dagster.log)
    assert runs.materialised_since(since) == expected
    assert set(times_made(runs, since).values()) == {1}


def unfinished(runs: PipelineRuns) -> bool:
    return any(not run.is_finished for run in runs.instance.get_runs(limit=20))


def scheduled_runs(runs: PipelineRuns) -> int:
    return sum(run.job_name.endswith("__refresh") and run.is_success for run in runs.instance.get_runs())


def test_the_schedule_makes_what_is_new_and_nothing_on_the_next_tick(tmp_path: Path) -> None:
    with refreshing(tmp_path, {"schedule": "* * * * *", "retry_seconds": 3}) as (runs, dagster):
        wait_until_made(runs, dagster, everything(), 0)

        before, ticks = now(runs), scheduled_runs(runs)
        wait_for(lambda: scheduled_runs(runs) > ticks, seconds=150, what="a second tick", log=dagster.log)
        assert runs.materialised_since(before) == {}

        manifest = runs.data_version("manifests", "0.05|3")
        broken = tmp_path / "source" / "2.npy"
        np.save(broken, np.zeros(3))  # One dimension: no table of vectors.
        wait_for(lambda: said(runs, "s000002: attempt 2 of 3 failed"), seconds=150, what="failures", log=dagster.log)
        write_shard(tmp_path, "2", near_duplicates(2))
        wait_until_made(runs, dagster, of_new("s000002") | {"training_sample": [None]}, before)
        assert not said(runs, "s000002: attempt 3 of 3 failed")
        assert left_out_shards(runs.work) == {}
        assert runs.data_version("manifests", "0.05|3") != manifest
        assert (
            runs.last_materialisation("manifests", ["0.05|3"]).metadata["records"].value
            == len(near_duplicates(0)) * 3
        )


def said(runs: PipelineRuns, text: str) -> bool:
    """Whether any run's log holds a text."""
    return any(
        text in entry.user_message for run in runs.instance.get_runs(limit=20) for entry in runs.instance.all_logs(run.run_id)
    )


def test_files_that_arrive_are_followed_by_what_depends_on_them_and_nothing_else(tmp_path: Path) -> None:
    with refreshing(tmp_path, {"automatic": True}) as (runs, dagster):
        wait_until_made(runs, dagster, everything(), 0)

        before = now(runs)
        for seed in (2, 3):
            write_shard(tmp_path, f"{seed}", near_duplicates(seed))
        wait_until_made(runs, dagster, of_new("s000002", "s000003"), before)

        before = now(runs)
        time.sleep(30)
        assert runs.materialised_since(before) == {}
        assert not unfinished(runs)

        (tmp_path / "source" / "0.npy").unlink()
        without_shards = {asset: made for asset, made in of_new().items() if made}
        wait_until_made(runs, dagster, without_shards, before)
        assert (
            runs.last_materialisation("manifests", ["0.05|3"]).metadata["records"].value
            == len(near_duplicates(0)) * 3
        )
