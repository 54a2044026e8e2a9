"""Partitions are made one by one: what fails holds back as little as it can, and what is finished stays."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.engines.local import map_tasks
from semdedup_assets.execution.engines.outcomes import Outcome
from semdedup_assets.execution.pipeline_stages import PipelineStages
from semdedup_assets.execution.progress import reporting_to
from semdedup_assets.execution.refresh import RefreshListener, RefreshPlan, refresh
from semdedup_assets.execution.runner import FailedPartitionsError, run_partitions
from semdedup_assets.execution.shard_reader import ShardReader, SourceChangedError
from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.records import TooManyRowsError
from semdedup_assets.storage.results import DamagedResultError
from semdedup_assets_tests.stage_runs import METHOD, StageRuns, small_pipeline
from semdedup_assets_tests.storage.written import flip
from semdedup_assets_tests.toy_source import near_duplicates, write_shard

SHARDS = ["s000000", "s000001", "s000002"]


def spoil(folder: Path, *names: str) -> None:
    """Write files that hold no table of vectors."""
    for name in names:
        np.save(folder / "source" / f"{name}.npy", np.zeros(3))


def excluded(runs: StageRuns, stage: str) -> dict[str, str]:
    context = runs.context()
    return {str(key): reason for key, reason in context.index.excluded(stage).items()}


@pytest.mark.parametrize("stage", ["items", "embeddings"])
def test_a_shard_that_fails_every_attempt_is_excluded_with_its_reason_and_the_others_go_on(
    tmp_path: Path, stage: str
) -> None:
    runs = small_pipeline(tmp_path)
    spoil(tmp_path, "1")
    runs = runs.changed(refresh={"attempts": 3})
    runs.observe()
    lines: list[str] = []
    with reporting_to(lines.append):
        runs.make(stage)
    failed = [line for line in lines if "failed: " in line]
    assert [line.partition(" failed")[0] for line in failed] == [f"s000001: attempt {n} of 3" for n in (1, 2, 3)]
    assert all("1.npy: holds float64 of shape (3,)" in line for line in failed)
    assert sum("the next attempt is in 0 s" in line for line in lines) == 2
    assert list(excluded(runs, stage)) == ["s000001"]
    assert "ValueError" in excluded(runs, stage)["s000001"]
    assert "1.npy: holds float64 of shape (3,)" in excluded(runs, stage)["s000001"]
    assert runs.record(stage, "s000001").details["items"] == 0
    assert runs.record(stage, "s000002").details["items"] == 60
    assert runs.stale(stage) == []


def test_all_that_follows_goes_on_without_an_excluded_shard(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path)
    spoil(tmp_path, "1")
    made = runs.run()
    assert made["manifests"] == ["0.05|3"]
    assert {key.partition(".")[0] for key in runs.kept_keys("0.05|3")} == {"0", "2"}
    assert list(runs.manifest("0.05|3")[1]["made_with"]["excluded"]) == ["s000001"]
    assert runs.run() == {}
    # Mended, it is embedded, and all follows.
    write_shard(tmp_path, "1", near_duplicates(1))
    assert runs.run()["embeddings"] == ["s000001"]
    assert excluded(runs, "embeddings") == {}
    assert {key.partition(".")[0] for key in runs.kept_keys("0.05|3")} == {"0", "1", "2"}


def engine_failing(error: Exception, *, of: str, times: int | None = None) -> Callable[..., Iterator[Outcome]]:
    """Runs tasks, but that of one partition, which ends as if it had met an error, each time or the first few."""
    left = [times]

    def run(make_worker: Any, tasks: Iterable[Any]) -> Iterator[Outcome]:
        for task in tasks:
            if str(task.partition) == of and left[0] != 0:
                left[0] = None if left[0] is None else left[0] - 1
                yield Outcome(task, error=error)
            else:
                yield from map_tasks(make_worker, [task])

    return run


def test_an_attempt_that_succeeds_later_excludes_nothing(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, refresh={"attempts": 2})
    runs.observe()
    once = engine_failing(OSError(errno.EIO, os.strerror(errno.EIO)), of="s000001", times=1)
    keys = [record.location.rpartition("/")[2] for record in runs.make("embeddings", engine=once)]
    assert keys == ["s000000", "s000002", "s000001"]
    assert excluded(runs, "embeddings") == {}
    assert runs.record("embeddings", "s000001").details["items"] == 60


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, os.strerror(errno.EIO)),
        ConnectionResetError("the store closed the connection"),
        TimeoutError("the store does not answer"),
        MemoryError(),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
    ],
)
def test_a_fault_of_the_machine_or_the_store_excludes_no_shard_and_fails_the_run_at_its_end(
    tmp_path: Path, error: Exception
) -> None:
    runs = small_pipeline(tmp_path, refresh={"attempts": 2})
    runs.observe()
    with pytest.raises(
        FailedPartitionsError, match=rf"1 shards failed in embeddings .* {type(error).__name__}"
    ) as raised:
        runs.make("embeddings", engine=engine_failing(error, of="s000001"))
    assert raised.value.__cause__ is error
    assert excluded(runs, "embeddings") == {}
    # What was finished stays, also that which came after the failing shard.
    assert runs.stale("embeddings") == ["s000001"]
    assert runs.run()["embeddings"] == ["s000001"]


@pytest.mark.parametrize("stage", ["items", "embeddings"])
def test_a_file_that_is_not_the_one_observed_fails_the_run_and_leaves_no_result_of_it(
    tmp_path: Path, stage: str
) -> None:
    runs = small_pipeline(tmp_path, refresh={"attempts": 3})
    runs.observe()
    path = write_shard(tmp_path, "1", near_duplicates(7, groups=21))
    lines: list[str] = []
    with (
        reporting_to(lines.append),
        pytest.raises(SourceChangedError, match=r"1\.npy was changed .*observe the shards"),
    ):
        runs.make(stage)
    assert lines == []  # Another attempt would find the same file.
    assert runs.stale(stage) == ["s000001"]
    path.unlink()
    with pytest.raises(SourceChangedError, match=r"1\.npy is no longer there"):
        runs.make(stage, "s000001")
    assert excluded(runs, stage) == {}
    assert sorted(runs.observe()) == ["s000000", "s000002"]
    assert runs.stale(stage) == []


def test_a_file_that_is_exchanged_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    """Its records would be those of two states, under the fingerprint of the first."""
    runs = small_pipeline(tmp_path)
    runs.observe()
    context = runs.context()
    (shard,) = (each for each in context.shards if each.name == "s000001")
    reader = ShardReader(context, shard, context.pipeline.source.read)
    records = iter(reader)
    next(records)
    write_shard(tmp_path, "1", near_duplicates(7, groups=21))
    with pytest.raises(SourceChangedError, match=r"1\.npy was changed"):
        list(records)


def test_where_nothing_works_the_settings_are_wrong_and_nothing_is_tried_again(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, refresh={"attempts": 3})
    spoil(tmp_path, "0", "1", "2")
    runs.observe()
    lines: list[str] = []
    with (
        reporting_to(lines.append),
        pytest.raises(
            FailedPartitionsError, match=r"toy: no shard can be made into embeddings; s000000: ValueError: .*0"
        ),
    ):
        runs.make("embeddings")
    assert sum("failed" in line for line in lines) == 3
    assert excluded(runs, "embeddings") == {}


def test_too_many_failing_shards_end_the_run_and_keep_what_was_made(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path)
    spoil(tmp_path, "0", "2")
    runs.observe()
    with pytest.raises(
        FailedPartitionsError,
        match=r"2 of 3 shards fail in embeddings, and 1 may be excluded; .*max_excluded.*s000000.*s000002",
    ):
        runs.make("embeddings")
    assert runs.stale("embeddings") == ["s000000", "s000002"]
    assert excluded(runs, "embeddings") == {}
    # A later run counts those that are excluded already.
    allowed = runs.changed(refresh={"max_excluded": 0.7})
    assert len(allowed.make("embeddings", again=False)) == 3
    spoil(tmp_path, "1")
    runs.observe()
    with pytest.raises(FailedPartitionsError, match=r"3 of 3 shards fail|no shard can be made"):
        allowed.make("embeddings", "s000001")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        PermissionError("the store is read-only"),
        OSError(errno.EROFS, ""),
    ],
)
def test_a_store_that_takes_no_results_is_no_fault_of_a_shard(tmp_path: Path, error: Exception) -> None:
    runs = small_pipeline(tmp_path)
    runs.observe()
    with pytest.raises(type(error)) as raised:
        runs.make("embeddings", engine=engine_failing(error, of="s000001"))
    assert raised.value is error
    # Those before it were made; the shard itself is not excluded, and is made by the next run.
    assert runs.stale("embeddings") == ["s000001", "s000002"]
    assert runs.run()["embeddings"] == ["s000001", "s000002"]


def test_a_model_that_cannot_be_loaded_ends_the_run(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path)
    runs.observe()

    def broken(_: Any) -> Any:
        message = "no such checkpoint"
        raise FileNotFoundError(message)

    stage = replace(METHOD["embeddings"], worker=broken)
    changed = StageRuns(runs.settings, StageGraph(tuple(stage if s.name == stage.name else s for s in METHOD.stages)))
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        changed.make("embeddings")
    assert excluded(runs, "embeddings") == {}


def test_an_error_of_a_stage_that_cannot_exclude_keeps_what_was_finished(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path)
    runs.run(until="centroids")
    path = runs.record("embeddings", "s000001").file("vectors.arrow").path
    flip(path, 400)
    fresh = runs.changed(store=str(tmp_path / "moved"))
    Path(runs.settings["store"]).rename(tmp_path / "moved")  # this process has not read the files under their new names
    with pytest.raises(DamagedResultError, match=r"embeddings/s000001\..*vectors\.arrow holds other bytes"):
        fresh.make("assignments")
    assert [str(key) for key in fresh.context().index.records("assignments")] == ["3|s000000"]
    assert fresh.run()["assignments"] == ["3|s000001", "3|s000002"]


class NeverResting(RefreshListener):
    """A file is written to once more whenever it has been looked at."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.looks = folder, 0

    def observe(self, context: StageContext) -> None:
        super().observe(context)
        self.looks += 1
        write_shard(self.folder, "1", near_duplicates(10 + self.looks))


def test_a_shard_whose_file_never_rests_is_excluded_in_the_last_round_and_the_others_are_made(tmp_path: Path) -> None:
    runs, writer = small_pipeline(tmp_path), NeverResting(tmp_path)
    pipeline = runs.context().pipeline
    made = list(refresh(RefreshPlan(PipelineStages(pipeline, METHOD)), writer))
    assert writer.looks > 2
    assert {"manifests", "keep_masks"} <= {each.asset for each in made if each.partitions}
    (reason,) = excluded(runs, "items").values()
    assert "1.npy was changed since it was observed" in reason
    shards = list(runs.context().index.records("items"))
    kept = [runs.record("items", str(each)).details["items"] for each in shards]
    assert sum(kept) == sum(len(near_duplicates(n)) for n in (0, 2))
    # It rests, and is like any other.
    list(refresh(RefreshPlan(PipelineStages(pipeline, METHOD)), RefreshListener()))
    assert excluded(runs, "items") == excluded(runs, "embeddings") == {}
    assert runs.record("items", "s000001").details["items"] == len(near_duplicates(10 + writer.looks))


def test_each_partition_is_given_as_soon_as_it_is_done(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path)
    runs.observe()
    context = runs.context()
    steps = run_partitions(context, METHOD["embeddings"], context.index.partitions("embeddings"))
    for number, shard in enumerate(SHARDS, 1):
        partition, record = next(steps)
        assert str(partition) == shard
        assert record.code_version == context.code_version("embeddings")
        assert len(runs.context().index.records("embeddings")) == number


def reversed_tasks(make_worker: Any, tasks: Iterable[Any]) -> Iterator[Outcome]:
    return map_tasks(make_worker, list(tasks)[::-1])


@pytest.mark.parametrize("stage", ["assignments", "duplicate_scores", "keep_masks", "manifests"])
def test_tasks_may_end_in_any_order(tmp_path: Path, stage: str) -> None:
    runs = small_pipeline(tmp_path, epsilons=["0.01", "0.05", "keep=50%"])
    runs.run()
    keys = [str(partition) for partition in runs.context().index.partitions(stage)]
    before = {key: runs.record(stage, key) for key in keys}
    assert len(runs.make(stage, engine=reversed_tasks)) == len(keys)
    for key in keys:
        record = runs.record(stage, key)
        assert record.version == before[key].version
        assert record.inputs == before[key].inputs
        assert record.details.get("items") == before[key].details.get("items")
    assert runs.run() == {}


def test_a_partition_of_several_tasks_has_a_record_only_when_all_are_done(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, epsilons=["0.01", "0.05"])
    runs.run(until="duplicate_scores")

    def failing_at_the_last(make_worker: Any, tasks: Iterable[Any]) -> Iterator[Outcome]:
        *most, last = tasks
        yield from map_tasks(make_worker, most)
        yield Outcome(last, error=RuntimeError("the machine is gone"))

    with pytest.raises(RuntimeError, match="the machine is gone"):
        runs.make("keep_masks", engine=failing_at_the_last)
    assert runs.stale("keep_masks") == ["0.05|3"]
    assert runs.record("keep_masks", "0.01|3").details["items"] == 180
    assert len(runs.record("keep_masks", "0.01|3").files) == 3
    assert runs.run()["keep_masks"] == ["0.05|3"]


def test_what_is_made_of_no_task_is_made_all_the_same(tmp_path: Path) -> None:
    """Of a bucket that is up to date no range is scored, and yet its record is given."""
    runs = small_pipeline(tmp_path)
    runs.run()

    def none(_: Any, tasks: Iterable[Any]) -> Iterator[Outcome]:
        assert list(tasks) == []
        return iter(())

    records = runs.make("duplicate_scores", again=False, engine=none)
    assert sum(record.details["items"] for record in records) == 180


def test_a_worker_is_set_up_once_for_many_tasks_and_not_for_none() -> None:
    made: list[int] = []

    def make_worker() -> Callable[[int], float]:
        made.append(1)
        return lambda task: 1 / task

    outcomes = list(map_tasks(make_worker, [1, 0, 2]))
    assert [(each.task, each.value) for each in outcomes] == [(1, 1.0), (0, None), (2, 0.5)]
    assert isinstance(outcomes[1].error, ZeroDivisionError)
    assert made == [1]
    assert list(map_tasks(make_worker, [])) == []
    assert made == [1]


def test_more_rows_than_ids_can_number_end_the_run_at_the_first_attempt(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path)
    runs.observe()
    error = TooManyRowsError("shard 1 has too many rows")
    with pytest.raises(TooManyRowsError, match="shard 1 has"):
        runs.make("embeddings", engine=engine_failing(error, of="s000001", times=1))
    assert excluded(runs, "embeddings") == {}
    assert runs.stale("embeddings") == ["s000001", "s000002"]
