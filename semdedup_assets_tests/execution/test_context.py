"""A context can be sent to another process, which sees the store for itself."""

import multiprocessing
import pickle
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from semdedup_assets.compute import Compute, devices_meant
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.engines.local import map_tasks
from semdedup_assets.execution.engines.outcomes import Engine, Outcome
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.storage.results import MissingResultError
from semdedup_assets_tests.stage_runs import METHOD, PLAIN, StageRuns, record_path, small_pipeline
from semdedup_assets_tests.toy_source import near_duplicates, write_shard


def sent(context: StageContext) -> StageContext:
    found: StageContext = pickle.loads(pickle.dumps(context))
    return found


def test_a_context_that_was_sent_is_the_same_and_sees_for_itself_what_the_store_holds(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, shards=1)
    runs.run()
    context = runs.context()
    assert context.index.stale("manifests") == []
    # Which shards there are is what the work was planned with, whatever is observed meanwhile.
    write_shard(tmp_path, "1", near_duplicates(1))
    runs.observe()
    record_path(runs.record("items", "s000000")).unlink()
    other = sent(context)
    assert other == context
    assert other.graph.stages == METHOD.stages
    assert [other.code_version(stage.name) for stage in PLAIN.stages] == [
        context.code_version(stage.name) for stage in PLAIN.stages
    ]
    assert other.shards == context.shards
    assert len(other.shards) == 1
    assert context.index.stale("items") == []
    assert [str(partition) for partition in other.index.stale("items")] == ["s000000"]
    assert other.index is not context.index


def test_a_stage_that_another_process_could_not_find_is_refused(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, shards=1)
    stage = replace(METHOD["items"], version=2)
    changed = StageRuns(runs.settings, StageGraph((stage,)))
    with pytest.raises(pickle.PicklingError, match="stage 'items' is not the STAGE of the module"):
        sent(changed.context())


def run_there(make_worker: Callable[[], Any], tasks: list[Any]) -> list[Outcome]:
    return list(map_tasks(make_worker, tasks))


def engine_of(pool: ProcessPoolExecutor) -> Engine:
    def run(make_worker: Callable[[], Any], tasks: Iterable[Any]) -> Iterator[Outcome]:
        yield from pool.submit(partial(run_there, make_worker), list(tasks)).result(timeout=120)

    return run


def test_stages_run_in_another_process_as_in_this_one(tmp_path: Path) -> None:
    here = small_pipeline(tmp_path, shards=2)
    here.run()
    there = here.changed(store=str(tmp_path / "there"))
    there.observe()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for stage in PLAIN.stages:
            there.make(stage.name, engine=engine_of(pool))
    assert there.run() == {}
    for stage, key in (("centroids", "3"), ("duplicate_scores", "b0001|3"), ("keep_masks", "0.05|3")):
        assert there.record(stage, key).version == here.record(stage, key).version
    assert there.kept_keys("0.05|3") == here.kept_keys("0.05|3")


def test_the_code_version_follows_from_what_can_change_a_result(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, shards=1)
    before = versions(runs)
    assert len(set(before.values())) == len(PLAIN.stages)
    for same in (
        {"compute": {"device": "auto"}},
        {"epsilons": ["0.2"]},
        {"clustering": {"k": [9], "seed": 4, "buckets": 7}},
    ):
        assert versions(runs.changed(**same)) == before
    for changes, stages in (
        ({"selection": {"keep": "easy"}}, {"duplicate_scores", "keep_masks", "manifests"}),
        ({"manifests": ["parquet"]}, {"manifests"}),
        ({"clustering": {"iterations": 3}}, {"centroids"}),
        ({"vectors": "float32"}, {"embeddings", "training_sample"}),
    ):
        after = versions(runs.changed(**changes))
        assert {stage for stage in before if before[stage] != after[stage]} == stages


def versions(runs: StageRuns) -> dict[str, str]:
    return {stage.name: runs.context().code_version(stage.name) for stage in PLAIN.stages}


def test_a_raised_version_of_a_stage_makes_it_again(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, shards=1)
    runs.run()
    stages = tuple(replace(stage, version=2) if stage.name == "assignments" else stage for stage in METHOD.stages)
    # The same bytes come of it: what follows stays as it is.
    assert StageRuns(runs.settings, StageGraph(stages)).run() == {"assignments": ["3|s000000"]}


def test_results_note_what_making_them_used(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, shards=2)
    runs.run()
    for stage in PLAIN.stages:
        for partition in runs.context().index.partitions(stage.name):
            details = runs.record(stage.name, str(partition)).details
            assert details["seconds"] > 0
            assert details["peak_memory_mib"] > 1
            assert details["device"] == "cpu"
    embedded = runs.record("embeddings", "s000000")
    assert embedded.details["items_per_second"] == pytest.approx(60 / embedded.details["seconds"])
    assert {"embed", "write"} <= set(embedded.details["seconds_by_phase"])
    assert embedded.details["bytes"] == embedded.size


def test_assets_and_remedies_are_named_as_people_see_them(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, shards=1, selections={"a": {}, "b": {"keep": "easy"}})
    context = runs.context("b")
    assert context.asset("embeddings") == "toy/precomputed/embeddings"
    assert context.asset("keep_masks") == "toy/precomputed/b/keep_masks"
    assert context.remedy("keep_masks") == "materialise toy/precomputed/b/keep_masks"
    assert context.remedy("items", Partition(shard="s1")) == "materialise toy/precomputed/items, partition s1"


def test_a_missing_shard_is_reported(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, shards=1)
    runs.observe()
    with pytest.raises(MissingResultError, match="s000009: its files are missing; observe toy/shards again"):
        runs.context().shard("s000009")


def test_a_device_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"device 'cuda:77' cannot be used .*use `auto` or one of cpu"):
        _ = Compute(device="cuda:77").torch_device


@pytest.mark.parametrize(
    ("device", "gpus", "meant"),
    [
        ("cuda", 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda", 1, ["cuda:0"]),
        ("cuda:1", 3, ["cuda:1"]),
        ("cpu", 3, ["cpu"]),
        ("mps", 0, ["mps"]),
    ],
)
def test_all_gpus_are_meant_unless_one_is_named(device: str, gpus: int, meant: list[str]) -> None:
    assert [str(each) for each in devices_meant(torch.device(device), gpus=gpus)] == meant


def test_a_fit_uses_the_devices_that_are_there() -> None:
    assert Compute(device="cpu").torch_devices == (torch.device("cpu"),)
    gpus = tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    assert Compute().torch_devices == (gpus or (torch.device("cpu"),))
    with pytest.raises(ValueError, match="device 'cuda:77' cannot be used"):
        _ = Compute(device="cuda:77").torch_devices
