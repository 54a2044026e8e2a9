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
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

import dagster as dg

from semdedup_assets.execution import progress
from semdedup_assets.execution.processes import as_noted, has_ended, is_gone, was_before_this_boot

# Dagster shows no tags of this prefix, which would hide the others.
PROCESS_TAG, HEARTBEAT_TAG = ".dagster/semdedup_process", ".dagster/semdedup_heartbeat"
# A run that is tried again begins with the tags of the one before it: these are its own only where they name it.
_RUN_TAG = ".dagster/semdedup_run"

_BEAT_SECONDS = 20.0
# Of a run on another machine, where nobody can look for its process, and of one that never noted its own.
_SILENT_SECONDS = 300.0
# Of one that nothing launched, but `execute_in_process` or `dg launch` executes, perhaps on another machine.
_SILENT_UNLAUNCHED_SECONDS = 900.0
# Between our steps nothing beats: a step of somebody else's may be at work, or the run may wait for a pool.
_SILENT_BETWEEN_STEPS_SECONDS = 24 * 3600.0
# A beat may be late by so much: until then, silence proves nothing.
_LATE_SECONDS = 3 * _BEAT_SECONDS
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

    process = as_noted(worker if of_a_step and worker else os.getpid())

    def note() -> None:
        _note(instance, run_id, {PROCESS_TAG: process, HEARTBEAT_TAG: _now(), _RUN_TAG: run_id})

    def beat() -> None:
        while not ended.wait(_BEAT_SECONDS):
            # The process too: a busy database may have refused it so far.
            note()

    note()
    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    if parent is not None and of_a_step:
        threading.Thread(target=_end_with, args=(parent, ended), name="end-with-run", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        # Until the next step begins, nothing beats.
        _note(instance, run_id, {HEARTBEAT_TAG: ""})


def _worker(instance: dg.DagsterInstance, run_id: str) -> int | None:
    """Number of the process that executes a run, as Dagster logs it before any step; None where it does not."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        event = entry.dagster_event
        pid = event.engine_event_data.metadata.get("pid") if event is not None else None
        if pid is not None:
            return int(str(pid.value))
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


def loss_of(instance: dg.DagsterInstance, run: dg.DagsterRun, *, ours: bool = False) -> str | None:
    """Why a run that was launched will never end, in words; None where it may still be at work.

    Args:
        instance: knows what the run has logged.
        run: as the instance knows it now.
        ours: whether each of its steps would have noted the process: where none did, none has begun.
    """
    process = _noted_process(run)
    if process is None:
        return _loss_before_noting(instance, run) if ours and run.status in _LAUNCHED else None
    if run.status not in _STARTED:
        return None
    ended = has_ended(process)
    if ended is None:
        return _loss_out_of_sight(instance, run, process)
    return f"its process {_pid(process)} ended without a word" if ended else None


def _loss_out_of_sight(instance: dg.DagsterInstance, run: dg.DagsterRun, process: str) -> str | None:
    """The same of a run whose process cannot be looked for from here."""
    beat = run.tags.get(HEARTBEAT_TAG, "0")
    seen = max(float(beat or 0), _last_logged(instance, run.run_id) or 0) or time.time()
    silent = time.time() - seen
    if silent > _LATE_SECONDS and was_before_this_boot(process, seen):
        return f"its process {_pid(process)} ended without a word when this machine was started anew"
    if silent <= (_SILENT_SECONDS if beat else _SILENT_BETWEEN_STEPS_SECONDS):
        return None
    return f"its process on {process.partition('/')[0]} has been silent for {silent:.0f} s"


def _pid(process: str) -> str:
    return process.rpartition("/")[2].partition("-")[0]


def _last_logged(instance: dg.DagsterInstance, run_id: str) -> float | None:
    """When a run logged something last, in seconds since 1970; None where it never did."""
    records = instance.get_records_for_run(run_id, limit=1, ascending=False).records
    return records[0].event_log_entry.timestamp if records else None


def _loss_before_noting(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """Why a run that ended before its first step could note anything will never end; None where it may be at work."""
    seen = _last_logged(instance, run.run_id)
    silent = 0 if seen is None else time.time() - seen
    if silent > _SILENT_BETWEEN_STEPS_SECONDS:
        return f"it has been silent for {silent:.0f} s, and none of its steps has begun"
    if silent <= _SILENT_SECONDS:
        return None
    pid, is_here = _worker(instance, run.run_id), _was_launched_here(run)
    # One that is elsewhere may be about to note its process.
    if not is_here and (silent <= _SILENT_UNLAUNCHED_SECONDS or not _was_never_launched(instance, run)):
        return None
    # Without a number, what was launched is about to begin; what nothing launched logs its number at once.
    if is_here if pid is None else not is_gone(pid):
        return None
    return f"its process {pid or ''} ended without a word before its first step"


def _was_launched_here(run: dg.DagsterRun) -> bool:
    """Whether a code server of this machine was to execute a run."""
    server = run.tags.get(_SERVER_TAG)
    return server is not None and json.loads(server).get("host") in _HERE


def _was_never_launched(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether whoever asked for a started run executes it, by `execute_in_process` or `dg launch`, and it waits for no pool.

    What a launcher starts elsewhere, a step in a cluster perhaps, may wait for long until it begins.
    """
    launched = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_STARTING)
    return run.status in _STARTED and not launched and run.run_id not in _waiting_for_pools(instance)


def _waiting_for_pools(instance: dg.DagsterInstance) -> Set[str]:
    """Ids of runs that hold or await claims of pools."""
    storage = instance.event_log_storage
    return storage.get_concurrency_run_ids() if storage.supports_global_concurrency_limits else set()


def end_lost_runs(instance: dg.DagsterInstance, ours: Callable[[dg.DagsterRun], bool] = lambda _: False) -> list[str]:
    """Mark lost runs as failed, so that they hold nothing back and, as the instance is configured, are tried again.

    What ended runs had claimed of pools is freed: Dagster leaves it to them where its instance is not told otherwise.

    Args:
        instance: knows the runs.
        ours: which runs that have noted nothing would have, had their first step begun.

    Returns:
        Their ids.
    """
    ended = []
    for found in instance.get_runs(dg.RunsFilter(statuses=_LAUNCHED), limit=_MOST_RUNS):
        if loss_of(instance, found, ours=ours(found)) is None:
            continue
        # Its process may have ended just now, as it should: then the run no longer counts as started.
        run = instance.get_run_by_id(found.run_id)
        reason = loss_of(instance, run, ours=ours(run)) if run is not None else None
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
    if holders := _waiting_for_pools(instance):
        for run in instance.get_runs(dg.RunsFilter(run_ids=list(holders))):
            if run.is_finished:
                instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def _now() -> str:
    return f"{time.time():.0f}"
