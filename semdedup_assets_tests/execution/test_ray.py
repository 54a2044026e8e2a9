"""The stages on a Ray cluster of two nodes, against the same in this process: with workers and nodes killed meanwhile."""

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import torch

from semdedup_assets.assets.pipeline import pipeline_definitions
from semdedup_assets.assets.refresh import refresh
from semdedup_assets.execution import placement
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.engines.outcomes import WorkerDiedError
from semdedup_assets.execution.engines.ray import ClusterError, RayEngine, Resources, connect, end_resting
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.placement import OtherVersionError, WorkerSetup
from semdedup_assets.execution.progress import reporting_to
from semdedup_assets.execution.runner import run_partitions
from semdedup_assets.execution.stage import Stage, StageGraph
from semdedup_assets_tests.execution import poisoned_embeddings
from semdedup_assets_tests.object_store import ObjectStore
from semdedup_assets_tests.ray_cluster import RayCluster, is_running, wait_until, workers
from semdedup_assets_tests.stage_runs import METHOD, PLAIN, StageRuns, small_pipeline
from semdedup_assets_tests.toy_source import near_duplicates, write_shard

SHARDS = 8
RECORD = ".result.json"
# Of stages with a task for each partition and with several, each with what is put when a task has been made.
KILLED_IN = {"embeddings": RECORD, "duplicate_scores": RECORD, "manifests": ".parquet"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    # Both are read when Ray starts; a test's machine may be short of memory for other reasons.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0"}
    cluster = RayCluster()
    connect(cluster.address)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    """A pipeline that was made in this process."""
    runs = small_pipeline(tmp_path_factory.mktemp("here"), shards=SHARDS, clustering={"k": [24], "buckets": 12})
    runs.run()
    return runs


def on_cluster(runs: StageRuns, cluster: RayCluster, store: str, **compute: Any) -> StageRuns:
    setting = {"engine": "ray", "address": cluster.address, "shared_paths": True, **compute}
    return runs.changed(store=store, compute=setting)


def versions(runs: StageRuns) -> dict[tuple[str, str], str]:
    context = runs.context()
    return {
        (stage.name, str(partition)): record.version
        for stage in PLAIN.stages
        for partition, record in context.index.records(stage.name).items()
    }


def test_killed_workers_and_nodes_cost_nothing_but_time(
    here: StageRuns, cluster: RayCluster, served_store: ObjectStore
) -> None:
    there, made, lines = on_cluster(here, cluster, f"{served_store.url}/killed"), dict[str, list[str]](), list[str]()
    there.observe()
    for stage in PLAIN.stages:
        context = there.context()
        wanted = context.index.stale(stage.name)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(made_with_lines, context, stage, wanted, lines)
            if stage.name in KILLED_IN:
                before = len(lines)
                # Both workers are in the middle of a task, and wait for the store.
                with served_store.held_back(2, after=KILLED_IN[stage.name]):
                    cluster.kill_worker(cluster.head_raylet)
                with served_store.held_back(2, after=KILLED_IN[stage.name]):
                    cluster.kill_second_node()
                cluster.add_node()
            made[stage.name] = running.result()
        if stage.name in KILLED_IN:
            assert any("a worker" in line and "died" in line for line in lines[before:]), stage.name
    expected = {stage.name: sorted(map(str, here.context().index.partitions(stage.name))) for stage in PLAIN.stages}
    assert {stage: sorted(keys) for stage, keys in made.items()} == expected
    assert versions(there) == versions(here)
    assert there.run() == {}


def made_with_lines(context: StageContext, stage: Stage, wanted: list[Partition], lines: list[str]) -> list[str]:
    with reporting_to(lines.append):
        return [str(partition) for partition, _ in run_partitions(context, stage, wanted)]


def test_the_ui_learns_of_each_partition_while_the_run_is_on(
    here: StageRuns, cluster: RayCluster, served_store: ObjectStore
) -> None:
    pipeline = on_cluster(here, cluster, f"{served_store.url}/events").pipeline
    key = dg.AssetKey(["toy", "precomputed", "embeddings"])
    with dg.DagsterInstance.ephemeral() as instance, ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: list(refresh(pipeline, instance, graph=PLAIN)))
        with served_store.held_back(2, after="embeddings/s000000.result.json"):
            seen = wait_until(lambda: instance.get_materialized_partitions(key), "an event of a partition")
        assert 0 < len(seen) < SHARDS
        assert {run.asset for run in running.result()} >= {"embeddings", "manifests"}
        assert len(instance.get_materialized_partitions(key)) == SHARDS
    # No worker holds what others of the cluster may have.
    wait_until(lambda: not workers(), "idle workers to end")
    assert pipeline_definitions(pipeline, PLAIN).executor is dg.in_process_executor
    assert pipeline_definitions(here.pipeline, PLAIN).executor is None


def test_a_shard_that_ends_every_worker_is_excluded_and_named(
    here: StageRuns, cluster: RayCluster, served_store: ObjectStore
) -> None:
    stages = tuple(poisoned_embeddings.STAGE if stage.name == "embeddings" else stage for stage in METHOD.stages)
    settings = on_cluster(here, cluster, f"{served_store.url}/poisoned").changed(refresh={"attempts": 2}).settings
    there = StageRuns(settings, StageGraph(stages))
    lines = list[str]()
    with reporting_to(lines.append):
        made = there.run()
    excluded = there.context().index.excluded("embeddings")
    assert list(map(str, excluded)) == [poisoned_embeddings.POISONED]
    (reason,) = excluded.values()
    attempts = there.pipeline.refresh.attempts
    assert f"WorkerDiedError: the worker that made it died, {attempts} times" in reason
    assert len(made["embeddings"]) == SHARDS
    assert sum("died" in line and "try" in line for line in lines) == attempts


def test_a_killed_run_leaves_no_worker_that_writes_and_the_next_makes_only_what_is_left(
    here: StageRuns, cluster: RayCluster, served_store: ObjectStore
) -> None:
    there = on_cluster(here, cluster, f"{served_store.url}/driver")
    shards = there.observe()
    end_resting()
    wait_until(lambda: not workers(), "the workers of this process to end")
    program = (
        "import sys, json; from semdedup_assets_tests.stage_runs import StageRuns; "
        "StageRuns(json.loads(sys.argv[1])).make('embeddings')"
    )
    environment = {
        **os.environ,
        "FSSPEC_S3": json.dumps({"endpoint_url": served_store.endpoint, "key": "test", "secret": "test"}),
    }
    driver = subprocess.Popen([sys.executable, "-c", program, json.dumps(there.settings)], env=environment)
    try:
        with served_store.held_back(2, after=RECORD):
            orphans = workers()
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
            assert len(orphans) == 2
            wait_until(lambda: not any(map(is_running, orphans)), "the killed run's workers to end")
    finally:
        driver.kill()
        driver.wait()
    left = set(there.stale("embeddings"))
    assert 0 < len(left) < len(shards)
    assert set(there.run()["embeddings"]) == left
    assert {key: version for key, version in versions(there).items() if key[0] == "embeddings"} == {
        key: version for key, version in versions(here).items() if key[0] == "embeddings"
    }


def test_several_selections_are_scored_from_one_read_there_too(
    here: StageRuns, cluster: RayCluster, tmp_path: Path
) -> None:
    from dataclasses import replace

    selections = {"a": {"keep": "hard"}, "b": {"keep": "easy"}}
    alone = here.changed(store=str(tmp_path / "alone"), selections=selections)
    alone.run()
    there = on_cluster(alone, cluster, str(tmp_path / "there"))
    there.run(until="assignments")
    first = there.context("a")
    second = first.with_selection(there.pipeline.named_selections["b"])
    stage = first.graph["duplicate_scores"]
    assert len(second.index.stale(stage.name)) == len(first.index.stale(stage.name)) > 0
    together = replace(first, together=(first.selection, second.selection))
    together.__dict__["index"] = first.index.of(together)
    assert len(list(run_partitions(together, stage, together.index.stale(stage.name)))) > 0
    # Made by processes of which this index knew nothing.
    assert second.index.stale(stage.name) == []
    assert there.scores("24", "b").equals(alone.scores("24", "b"))


def number_of_threads(_: Any) -> tuple[int, str | None, str | None]:
    return torch.get_num_threads(), os.environ.get("OMP_WAIT_POLICY"), os.environ.get("OMP_NUM_THREADS")


def plain_worker() -> Callable[[Any], Any]:
    return number_of_threads


def failing_worker() -> Callable[[Any], Any]:
    message = "the model's file is cut off"
    raise OSError(message)


def dying_worker() -> Callable[[Any], Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return number_of_threads


def engine(count: int = 1, **changes: Any) -> RayEngine:
    return RayEngine("toy", changes.pop("resources", Resources()), count, **changes)


def test_a_worker_has_as_many_threads_as_cpus_and_none_that_spins(cluster: RayCluster) -> None:
    (outcome,) = engine()(plain_worker, [0])
    assert outcome.value == (1, "passive", "1")


def test_what_setting_up_a_worker_raises_is_what_the_run_fails_with(cluster: RayCluster) -> None:
    with pytest.raises(OSError, match="the model's file is cut off") as raised:
        list(engine()(failing_worker, [0, 1]))
    assert "failing_worker" in str(raised.value.__cause__)


def test_workers_that_die_before_they_are_ready_fail_the_run(cluster: RayCluster) -> None:
    with pytest.raises(ClusterError, match=r"toy: workers on .* die before they are ready, 2 times in a row"):
        list(engine(tries=2)(dying_worker, [0]))


def test_what_no_node_has_is_named_with_what_there_is(cluster: RayCluster) -> None:
    end_resting()
    wanted = engine(resources=Resources(num_gpus=1), patience_seconds=1)
    with pytest.raises(ClusterError, match=r"toy: no worker could start within 1 s: .* 1 GPU; the cluster has 2 CPU"):
        list(wanted(plain_worker, [0]))


def failing_after_two() -> Iterator[int]:
    yield 0
    yield 1
    message = "the inputs of the third are missing"
    raise LookupError(message)


def test_tasks_before_one_that_cannot_be_planned_are_made(cluster: RayCluster) -> None:
    made = list[int]()
    with pytest.raises(LookupError, match="the third"):
        made.extend(outcome.task for outcome in engine(2)(plain_worker, failing_after_two()))
    assert sorted(made) == [0, 1]


def die_at_seven(task: int) -> int:
    if task == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return task * task


def worker_that_dies_at_seven() -> Callable[[Any], Any]:
    return die_at_seven


def test_each_task_is_made_once_and_what_kills_comes_last(cluster: RayCluster) -> None:
    outcomes = list(engine(2, tries=2)(worker_that_dies_at_seven, range(20)))
    assert sorted(outcome.task for outcome in outcomes) == list(range(20))
    assert isinstance(outcomes[-1].error, WorkerDiedError)
    assert all(outcome.value == outcome.task**2 for outcome in outcomes[:-1])


def test_workers_of_another_version_are_refused(
    here: StageRuns, cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = on_cluster(here, cluster, str(tmp_path))
    there.observe()
    monkeypatch.setattr(placement, "package_version", lambda: "0.0.1+elsewhere")
    with pytest.raises(OtherVersionError, match=r"this worker has .* and the run 0\.0\.1\+elsewhere; install the same"):
        there.make("items")


def test_a_checkpoint_that_a_node_lacks_is_named(here: StageRuns, tmp_path: Path, cluster: RayCluster) -> None:
    checkpoint = tmp_path / "model.pt"
    checkpoint.write_bytes(b"weights")
    runs = here.changed(
        source={"kind": "folder", "path": str(tmp_path)},
        encoder={"kind": "torchscript", "path": str(checkpoint), "image_size": 8},
    )
    setup = pickle.loads(pickle.dumps(WorkerSetup(runs.context(), "embeddings")))
    checkpoint.unlink()
    with pytest.raises(OtherVersionError, match=r"model\.pt: .*copy it to every machine of the cluster"):
        list(engine()(setup, [0]))
    checkpoint.write_bytes(b"other weights")
    with pytest.raises(OtherVersionError, match="differs from what the run found"):
        list(engine()(setup, [0]))


def test_shards_that_come_while_a_stage_runs_are_none_of_its_own(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, shards=1)
    runs.observe()
    setup = pickle.loads(pickle.dumps(WorkerSetup(runs.context(), "items")))
    write_shard(tmp_path, "later", near_duplicates(9))
    assert runs.observe() == ["s000000", "s000001"]
    context, _ = pickle.loads(setup.content)
    assert [shard.name for shard in context.shards] == ["s000000"]


def test_files_of_this_machine_alone_are_refused_before_anything_runs(here: StageRuns) -> None:
    from pydantic import ValidationError

    with pytest.raises(
        ValidationError, match=r"store: .* is on this machine.*shared_paths.*\n.*source\.path: .*"
    ) as error:
        _ = here.changed(compute={"engine": "ray"}).pipeline
    assert "s3://" in str(error.value)
    for compute in ({"address": "local"}, {"shared_paths": True}):
        assert here.changed(compute={"engine": "ray", **compute}).pipeline.compute.engine == "ray"
    with pytest.raises(ValidationError, match="called `decoding_threads`"):
        _ = here.changed(compute={"workers": 4}).pipeline


def test_a_cluster_that_is_not_there_is_named(here: StageRuns) -> None:
    program = "from semdedup_assets.execution.engines.ray import connect; connect('127.0.0.1:1')"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "no Ray cluster at '127.0.0.1:1' can be joined" in found.stderr
