"""Runs whose process is gone are ended and nothing waits for them; those at work are left alone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest
from dagster._core.events import EngineEventData

from semdedup_assets.assets import lost_runs
from semdedup_assets.assets import under_way as under_way_of_runs
from semdedup_assets.assets.lost_runs import HEARTBEAT_TAG, PROCESS_TAG, alive, end_lost_runs, loss_of
from semdedup_assets.assets.under_way import unfinished_run
from semdedup_assets.execution.processes import this_process
from semdedup_assets_tests.dagster_process import ROOT

STARTED = dg.DagsterRunStatus.STARTED
JOB = "toy__precomputed__refresh"

# A run of one step in a process of its own, as a launcher executes it; the step waits until something ends it.
_JOB = """
import sys
import threading
from pathlib import Path

import dagster as dg
from dagster._core.execution.api import execute_run_iterator

from semdedup_assets.assets.lost_runs import alive


@dg.op(pool="gpu")
def first(context: dg.OpExecutionContext) -> None:
    with alive(context.instance, context.run.run_id):
        pass


@dg.op(ins={"after": dg.In(dg.Nothing)}, pool="gpu")
def second(context: dg.OpExecutionContext) -> None:
    with alive(context.instance, context.run.run_id):
        Path("second").touch()
        try:
            threading.Event().wait()
        finally:
            Path("ended").touch()


@dg.job
def two_steps() -> None:
    second(first())


if __name__ == "__main__":
    with dg.DagsterInstance.from_config(".") as instance:
        run = instance.create_run_for_job(two_steps, run_id=sys.argv[1])
        for _ in execute_run_iterator(dg.reconstructable(two_steps), run, instance):
            pass
"""

_PROCESS = """
import sys

import dagster as dg

from semdedup_assets.assets.lost_runs import alive

with dg.DagsterInstance.from_config(sys.argv[1]) as instance, alive(instance, sys.argv[2]):
    print("alive", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[dg.DagsterInstance]:
    """One that several processes can open, in SQLite unless a test asks for Postgres."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    if getattr(request, "param", "sqlite") == "postgres":
        server = request.getfixturevalue("postgres")
        (tmp_path / "dagster.yaml").write_text(server.dagster_yaml((ROOT / "dagster.yaml").read_text()))
        for name, value in server.new_database().items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def started(instance: dg.DagsterInstance, tags: dict[str, str] | None = None) -> str:
    """A run that has started; its id."""
    run_id = str(uuid4())
    instance.add_run(dg.DagsterRun(JOB, run_id, status=STARTED, tags=tags))
    return run_id


def run_of(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRun:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run


def under_way(process: subprocess.Popen[str], path: Path) -> None:
    """Wait until a file is there; fails where the process ends before."""
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_step_ends_with_the_process_of_its_run_and_leaves_no_claim_of_a_pool(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    (tmp_path / "two_steps.py").write_text(_JOB)
    instance.event_log_storage.set_concurrency_slots("gpu", 1)
    run_id = str(uuid4())
    command = [sys.executable, "two_steps.py", run_id]
    with subprocess.Popen(command, cwd=tmp_path, text=True, stderr=subprocess.PIPE) as process:
        under_way(process, tmp_path / "second")
        # The process of the first step has ended: it was not the run's.
        assert loss_of(instance, run_of(instance, run_id)) is None
        assert end_lost_runs(instance) == []
        assert claims(instance) == {run_id}
        process.kill()
    while not (tmp_path / "ended").exists():
        time.sleep(0.05)
    assert f"its process {process.pid} ended" in str(loss_of(instance, run_of(instance, run_id)))
    assert end_lost_runs(instance) == [run_id]
    assert claims(instance) == set()


def claims(instance: dg.DagsterInstance) -> set[str]:
    return instance.event_log_storage.get_concurrency_run_ids()


@pytest.mark.parametrize("instance", ["sqlite", "postgres"], indirect=True)
def test_a_run_is_under_way_until_its_process_is_killed(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    run_id = started(instance)
    command = [sys.executable, "-c", _PROCESS, str(tmp_path), run_id]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "alive\n"
        assert loss_of(instance, run_of(instance, run_id)) is None
        assert unfinished_run(instance, JOB, set()) == run_id
        assert end_lost_runs(instance) == []
        process.kill()
        # Until somebody asks how it ended, it is a zombie; afterwards it is not there at all.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert "ended without a word" in str(loss_of(instance, run_of(instance, run_id)))
    assert f"its process {process.pid} ended without a word" in str(loss_of(instance, run_of(instance, run_id)))
    assert unfinished_run(instance, JOB, set()) is None
    assert end_lost_runs(instance) == [run_id]
    assert run_of(instance, run_id).status == dg.DagsterRunStatus.FAILURE
    assert any("The run was lost" in entry.message for entry in instance.all_logs(run_id))
    assert end_lost_runs(instance) == []


def test_another_process_of_the_same_number_is_not_the_run(instance: dg.DagsterInstance) -> None:
    run_id = started(instance)
    with alive(instance, run_id):
        mark = run_of(instance, run_id).tags[PROCESS_TAG]
        assert mark.rpartition("/")[2].partition("-")[0] == str(os.getpid())
        instance.add_run_tags(run_id, {PROCESS_TAG: f"{mark}0"})
        assert "ended without a word" in str(loss_of(instance, run_of(instance, run_id)))


def test_a_run_elsewhere_is_lost_only_once_it_is_silent(instance: dg.DagsterInstance) -> None:
    elsewhere = {PROCESS_TAG: "gpu-7/another-boot/pid:[1]/123-456"}
    fresh = started(instance, {**elsewhere, HEARTBEAT_TAG: f"{time.time():.0f}"})
    silent = started(instance, {**elsewhere, HEARTBEAT_TAG: f"{time.time() - 1000:.0f}"})
    assert loss_of(instance, run_of(instance, fresh)) is None
    assert "gpu-7 has been silent for 100" in str(loss_of(instance, run_of(instance, silent)))
    assert end_lost_runs(instance) == [silent]


def logged(instance: dg.DagsterInstance, run_id: str, seconds: float) -> None:
    """Have a run log something, so many seconds ago."""
    event = dg.DagsterEvent("ENGINE_EVENT", JOB, event_specific_data=EngineEventData(), message="at work")
    entry = dg.EventLogEntry(None, 10, "", run_id, time.time() - seconds, job_name=JOB, dagster_event=event)
    instance.handle_new_event(entry)


@pytest.mark.parametrize(("seconds", "is_lost"), [(10, False), (10 * 3600, False), (25 * 3600, True)])
def test_between_two_steps_elsewhere_only_a_day_of_silence_means_something(
    instance: dg.DagsterInstance, seconds: float, is_lost: bool
) -> None:
    run_id = started(instance)
    with alive(instance, run_id):
        pass
    instance.add_run_tags(run_id, {PROCESS_TAG: "gpu-7/another-boot/pid:[1]/123-456"})
    # Of a run without any event nothing is known.
    assert loss_of(instance, run_of(instance, run_id)) is None
    logged(instance, run_id, seconds)
    assert end_lost_runs(instance) == ([run_id] if is_lost else [])


def test_what_a_run_elsewhere_logs_is_a_sign_of_life_as_its_heartbeat_is(instance: dg.DagsterInstance) -> None:
    noted = {PROCESS_TAG: "gpu-7/another-boot/pid:[1]/123-456", HEARTBEAT_TAG: f"{time.time() - 1000:.0f}"}
    run_id = started(instance, noted)
    logged(instance, run_id, 100)
    assert end_lost_runs(instance) == []


@pytest.mark.parametrize("in_a_step", [True, False])
def test_after_a_reboot_a_run_of_this_machine_is_lost_at_once(instance: dg.DagsterInstance, in_a_step: bool) -> None:
    up, number = time.clock_gettime(time.CLOCK_BOOTTIME), f"{Path('/proc/self/ns/pid').readlink()}/{os.getpid()}-1"
    before, after = time.time() - up - 1, time.time() - up + 1
    here, elsewhere = (f"{name}/another-boot/{number}" for name in (socket.gethostname(), "gpu-7"))

    def run_at(noted: str, when: float) -> str:
        run_id = started(instance, {PROCESS_TAG: noted, HEARTBEAT_TAG: f"{when:.0f}" if in_a_step else ""})
        logged(instance, run_id, time.time() - when)
        return run_id

    lost = run_at(here, before)
    if not in_a_step:
        # Seen after this machine's start: on another one that has the same name.
        run_at(here, after)
        run_at(elsewhere, before)
    assert end_lost_runs(instance) == [lost]
    assert any("when this machine was started anew" in entry.message for entry in instance.all_logs(lost))


def test_a_run_that_is_tried_again_is_not_the_lost_one(instance: dg.DagsterInstance) -> None:
    lost = started(instance)
    with alive(instance, lost):
        pass
    noted = {**run_of(instance, lost).tags, PROCESS_TAG: f"{run_of(instance, lost).tags[PROCESS_TAG]}0"}
    instance.add_run_tags(lost, noted)
    assert loss_of(instance, run_of(instance, lost)) is not None
    # Dagster gives it the tags of the run before it, until its own first step begins.
    again = started(instance, noted)
    assert loss_of(instance, run_of(instance, again)) is None
    assert end_lost_runs(instance) == [lost]
    with alive(instance, again):
        assert loss_of(instance, run_of(instance, again)) is None


def test_a_run_that_somebody_stops_ends_as_stopped(instance: dg.DagsterInstance) -> None:
    run_id = started(instance, {PROCESS_TAG: f"{this_process()}0"})
    instance.report_run_canceling(run_of(instance, run_id))
    assert end_lost_runs(instance) == [run_id]
    assert run_of(instance, run_id).status == dg.DagsterRunStatus.CANCELED


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, STARTED])
def test_a_run_that_was_killed_before_its_first_step_is_ended(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    local = {".dagster/grpc_info": json.dumps({"host": "localhost", "socket": "/tmp/of-a-code-server"})}
    gone, there = (launched(instance, status, local, pid) for pid in (process.pid, os.getpid()))
    elsewhere = launched(instance, status, {".dagster/grpc_info": '{"host": "code", "port": 4000}'}, process.pid)
    # It may be on another machine, about to note itself.
    assert end_lost_runs(instance, lambda _: True) == []
    monkeypatch.setattr(lost_runs, "_SILENT_SECONDS", 0)
    assert end_lost_runs(instance, lambda _: False) == []
    assert end_lost_runs(instance, lambda _: True) == [gone]
    message = f"its process {process.pid} ended without a word before its first step"
    assert any(message in entry.message for entry in instance.all_logs(gone))
    assert {run_of(instance, each).status for each in (there, elsewhere)} == {status}


# A run that nothing launched, as `execute_in_process` and `dg launch` make it; its process waits for ever, and notes nothing.
_UNLAUNCHED = """
import sys

import dagster as dg


@dg.op
def only() -> None:
    print("begun", flush=True)
    sys.stdin.read()


@dg.job(name="toy__precomputed__refresh")
def job() -> None:
    only()


with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
    job.execute_in_process(instance=instance, run_id=sys.argv[2])
"""


def test_a_refresh_that_nothing_launched_and_that_was_killed_before_it_noted_itself_is_ended(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = str(uuid4())
    command = [sys.executable, "-c", _UNLAUNCHED, str(tmp_path), run_id]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        monkeypatch.setattr(lost_runs, "_SILENT_UNLAUNCHED_SECONDS", 0)
        monkeypatch.setattr(lost_runs, "_SILENT_SECONDS", 0)
        assert unfinished_run(instance, JOB, set()) == run_id
        assert end_lost_runs(instance, lambda _: True) == []
        process.kill()
    monkeypatch.setattr(lost_runs, "_SILENT_UNLAUNCHED_SECONDS", 900)
    assert unfinished_run(instance, JOB, set()) == run_id, "it may be on another machine"
    monkeypatch.setattr(lost_runs, "_SILENT_UNLAUNCHED_SECONDS", 0)
    assert unfinished_run(instance, "another_job", set()) is None
    assert unfinished_run(instance, JOB, set()) is None
    assert end_lost_runs(instance, lambda _: False) == []
    assert end_lost_runs(instance, lambda _: True) == [run_id]
    assert run_of(instance, run_id).status == dg.DagsterRunStatus.FAILURE


def test_what_a_launcher_began_elsewhere_may_wait_for_a_day_until_its_first_step(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    run_id = launched(instance, STARTED, {}, process.pid)
    instance.report_dagster_event(dg.DagsterEvent("PIPELINE_STARTING", JOB), run_id)
    monkeypatch.setattr(lost_runs, "_SILENT_UNLAUNCHED_SECONDS", 0)
    monkeypatch.setattr(lost_runs, "_SILENT_SECONDS", 0)
    assert loss_of(instance, run_of(instance, run_id), ours=True) is None
    monkeypatch.setattr(lost_runs, "_SILENT_BETWEEN_STEPS_SECONDS", 0)
    assert "none of its steps has begun" in str(loss_of(instance, run_of(instance, run_id), ours=True))


def test_a_run_that_was_only_created_blocks_nothing_for_long(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = str(uuid4())
    instance.add_run(dg.DagsterRun(JOB, run_id))
    assert unfinished_run(instance, JOB, set()) == run_id
    monkeypatch.setattr(under_way_of_runs, "_LONGEST_CREATED", timedelta(0))
    assert unfinished_run(instance, JOB, set()) is None
    starting = str(uuid4())
    instance.add_run(dg.DagsterRun(JOB, starting, status=dg.DagsterRunStatus.STARTING))
    assert unfinished_run(instance, JOB, set()) == starting


def test_the_process_is_noted_by_a_beat_where_a_busy_database_refused_it_first(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_runs, "_BEAT_SECONDS", 0.01)
    run_id = started(instance)
    with alive(instance, run_id):
        instance.add_run_tags(run_id, {PROCESS_TAG: ""})
        while not run_of(instance, run_id).tags[PROCESS_TAG]:
            time.sleep(0.01)
        assert loss_of(instance, run_of(instance, run_id)) is None


def launched(instance: dg.DagsterInstance, status: dg.DagsterRunStatus, tags: dict[str, str], pid: int) -> str:
    """A run whose process has begun, as Dagster logs it, and has noted nothing; its id."""
    run_id = str(uuid4())
    run = instance.add_run(dg.DagsterRun(JOB, run_id, status=status, tags=tags))
    instance.report_engine_event("Started process for run", run, EngineEventData.in_process(pid))
    return run_id


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_a_run_in_a_terminal_that_is_closed_is_lost(
    instance: dg.DagsterInstance, tmp_path: Path, number: signal.Signals
) -> None:
    run_id = started(instance)
    command = [sys.executable, "-c", _PROCESS, str(tmp_path), run_id]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "alive\n"
        process.send_signal(number)
    assert end_lost_runs(instance) == [run_id]


def test_runs_of_others_and_runs_that_have_not_begun_are_left_alone(instance: dg.DagsterInstance) -> None:
    others = started(instance)
    assert loss_of(instance, run_of(instance, others)) is None
    assert end_lost_runs(instance) == []
    assert unfinished_run(instance, JOB, set()) == others


def test_a_refresh_notes_its_process(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    from semdedup_assets_tests.pipeline_runs import PipelineRuns
    from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard

    write_shard(tmp_path, "0", near_duplicates(0))
    runs = PipelineRuns(instance, vectors_settings(tmp_path))
    job = runs.definitions.resolve_job_def(JOB)
    result = job.execute_in_process(instance=instance)
    assert result.success
    assert PROCESS_TAG in run_of(instance, result.run_id).tags
    # A second one, while the first has not ended, ends at once and names it.
    first = started(instance)
    with alive(instance, first):
        second = job.execute_in_process(instance=instance, raise_on_error=False)
    assert not second.success
    failures = [
        entry.dagster_event for entry in instance.all_logs(second.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    ]
    assert any(first in str(event.step_failure_data.user_failure_data) for event in failures if event)
    instance.report_run_failed(run_of(instance, first))
    assert job.execute_in_process(instance=instance).success
