"""Runs whose process ended without a word: killed, or gone with its machine.

Dagster's default launcher cannot tell whether the process of a started run is still there: after a reboot such a run
stays under way for ever, takes a slot of the queue, and whatever waits for its end waits in vain. So our runs note
their process and, now and then, that they are alive.
"""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

import dagster as dg

from semdedup_assets.execution import progress
from semdedup_assets.execution.processes import as_noted, has_ended, is_gone

PROCESS_TAG, HEARTBEAT_TAG = "semdedup/process", "semdedup/heartbeat"
# A run that is tried again begins with the tags of the one before it: these are its own only where they name it.
_RUN_TAG = "semdedup/run"

_BEAT_SECONDS = 20.0
# Of a run on another machine, where nobody can look for its process, and of one that never noted its own.
_SILENT_SECONDS = 300.0
_MOST_RUNS = 1000
# Which code server launched a run, as Dagster's default launcher notes it.
_SERVER_TAG = ".dagster/grpc_info"
_HERE = (None, "localhost", "127.0.0.1")
# A step whose run is gone has so long to remove what it had begun to write.
_SECONDS_TO_END = 30.0
_STARTED = (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)
_LAUNCHED = [dg.DagsterRunStatus.STARTING, *_STARTED]


@contextmanager
def alive(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Note the process of a run, and until the block ends that it is alive.

    A step may have a process of its own, which ends before the run does: noted is the one that executes the run, and
    where that is killed the step's ends too, for nobody would hear of what it makes.
    """
    ended, parent = threading.Event(), multiprocessing.parent_process()
    worker = _worker(instance, run_id)
    of_a_step = parent is not None and worker == parent.pid

    def beat() -> None:
        while not ended.wait(_BEAT_SECONDS):
            _note(instance, run_id, {HEARTBEAT_TAG: _now()})

    process = as_noted(worker if of_a_step and worker else os.getpid())
    _note(instance, run_id, {PROCESS_TAG: process, HEARTBEAT_TAG: _now(), _RUN_TAG: run_id})
    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    if parent is not None and of_a_step:
        threading.Thread(target=_end_with, args=(parent, ended), name="end-with-run", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        # Until the next step begins, silence means nothing.
        _note(instance, run_id, {HEARTBEAT_TAG: ""})


def _worker(instance: dg.DagsterInstance, run_id: str) -> int | None:
    """Number of the process that executes a run, as Dagster logs it before any step; None where it does not."""
    started = _worker_started(instance, run_id)
    return None if started is None else started[0]


def _worker_started(instance: dg.DagsterInstance, run_id: str) -> tuple[int, float] | None:
    """The same, and when that was logged, in seconds since 1970."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        event = entry.dagster_event
        pid = event.engine_event_data.metadata.get("pid") if event is not None else None
        if pid is not None:
            return int(str(pid.value)), entry.timestamp
    return None


def _end_with(parent: BaseProcess, ended: threading.Event) -> None:
    """End this process when the one that executes the run does, unless the step ends before."""
    parent.join()
    if ended.is_set():
        return
    # As Dagster interrupts a step.
    os.kill(os.getpid(), signal.SIGINT)
    if not ended.wait(_SECONDS_TO_END):
        os.kill(os.getpid(), signal.SIGKILL)


def _note(instance: dg.DagsterInstance, run_id: str, tags: dict[str, str]) -> None:
    try:
        instance.add_run_tags(run_id, tags)
    except Exception as error:  # A busy database must not end the run; a beat that is missing ends it neither.
        progress.log(f"the run's process and heartbeat could not be noted: {error}")


def _noted_process(run: dg.DagsterRun) -> str | None:
    return run.tags.get(PROCESS_TAG) if run.tags.get(_RUN_TAG, run.run_id) == run.run_id else None


def loss_of(run: dg.DagsterRun) -> str | None:
    """Why a started run will never end, in words; None where it may still be at work, or never noted its process."""
    process = _noted_process(run)
    if run.status not in _STARTED or process is None:
        return None
    machine, _, number = process.rpartition("/")
    ended = has_ended(process)
    if ended is not None:
        return f"its process {number.partition('-')[0]} ended without a word" if ended else None
    beat = run.tags.get(HEARTBEAT_TAG, "0")
    silent = time.time() - float(beat or time.time())
    if silent <= _SILENT_SECONDS:
        return None
    return f"its process on {machine.partition('/')[0]} has been silent for {silent:.0f} s"


def _loss_before_noting(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """Why a run that ended before its first step could note anything will never end; None where it may be at work."""
    server = run.tags.get(_SERVER_TAG)
    if _noted_process(run) or server is None or json.loads(server).get("host") not in _HERE:
        return None
    started = _worker_started(instance, run.run_id)
    if started is None or time.time() - started[1] <= _SILENT_SECONDS or not is_gone(*started):
        return None
    return f"its process {started[0]} ended without a word before its first step"


def end_lost_runs(instance: dg.DagsterInstance, ours: Callable[[dg.DagsterRun], bool] = lambda _: False) -> list[str]:
    """Mark lost runs as failed, so that they hold nothing back and, as the instance is configured, are tried again.

    What ended runs had claimed of pools is freed: Dagster leaves it to them where its instance is not told otherwise.

    Args:
        instance: knows the runs.
        ours: which runs that have noted nothing would have, had their first step begun.

    Returns:
        Their ids.
    """

    def loss(run: dg.DagsterRun) -> str | None:
        return loss_of(run) or (_loss_before_noting(instance, run) if ours(run) else None)

    ended = []
    for found in instance.get_runs(dg.RunsFilter(statuses=_LAUNCHED), limit=_MOST_RUNS):
        if loss(found) is None:
            continue
        # Its process may have ended just now, as it should: then the run no longer counts as started.
        run = instance.get_run_by_id(found.run_id)
        reason = loss(run) if run is not None else None
        if run is not None and reason is not None:
            _report(instance, run, f"The run was lost: {reason}. What it had finished is kept.")
            ended.append(run.run_id)
    _free_claims(instance)
    return ended


def _report(instance: dg.DagsterInstance, run: dg.DagsterRun, message: str) -> None:
    # Who asked a run to stop does not want it to be tried again.
    if run.status == dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, message)
    else:
        instance.report_run_failed(run, message)


def _free_claims(instance: dg.DagsterInstance) -> None:
    """Free what ended runs hold of pools; claims of runs that are at work stay."""
    storage = instance.event_log_storage
    holders = storage.get_concurrency_run_ids() if storage.supports_global_concurrency_limits else set()
    if holders:
        for run in instance.get_runs(dg.RunsFilter(run_ids=list(holders))):
            if run.is_finished:
                storage.free_concurrency_slots_for_run(run.run_id)


def _now() -> str:
    return f"{time.time():.0f}"
