"""Runs whose process ended without a word: killed, or gone with its machine.

Dagster's default launcher cannot tell whether the process of a started run is still there: after a reboot such a run
stays under way for ever, takes a slot of the queue, and whatever waits for its end waits in vain. So our runs note
their process and, now and then, that they are alive.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from semdedup_assets.execution import progress
from semdedup_assets.execution.processes import has_ended, this_process

PROCESS_TAG, HEARTBEAT_TAG = "semdedup/process", "semdedup/heartbeat"

_BEAT_SECONDS = 20.0
# Of a run on another machine, where nobody can look for its process.
_SILENT_SECONDS = 300.0
_MOST_RUNS = 1000


@contextmanager
def alive(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Note the process of a run, and until the block ends that it is alive."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_BEAT_SECONDS):
            _note(instance, run_id, {HEARTBEAT_TAG: _now()})

    _note(instance, run_id, {PROCESS_TAG: this_process(), HEARTBEAT_TAG: _now()})
    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _note(instance: dg.DagsterInstance, run_id: str, tags: dict[str, str]) -> None:
    try:
        instance.add_run_tags(run_id, tags)
    except Exception as error:  # A busy database must not end the run; a beat that is missing ends it neither.
        progress.log(f"the run's process and heartbeat could not be noted: {error}")


def loss_of(run: dg.DagsterRun) -> str | None:
    """Why a started run will never end, in words; None where it may still be at work, or is not one of ours."""
    process = run.tags.get(PROCESS_TAG)
    if run.status != dg.DagsterRunStatus.STARTED or process is None:
        return None
    machine, _, number = process.rpartition("/")
    ended = has_ended(process)
    if ended is not None:
        return f"its process {number.partition('-')[0]} ended without a word" if ended else None
    silent = time.time() - float(run.tags.get(HEARTBEAT_TAG, 0))
    if silent <= _SILENT_SECONDS:
        return None
    return f"its process on {machine.partition('/')[0]} has been silent for {silent:.0f} s"


def end_lost_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark lost runs as failed, so that they hold nothing back and, as the instance is configured, are tried again.

    Returns:
        Their ids.
    """
    ended = []
    for found in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]), limit=_MOST_RUNS):
        if loss_of(found) is None:
            continue
        # Its process may have ended just now, as it should: then the run no longer counts as started.
        run = instance.get_run_by_id(found.run_id)
        reason = loss_of(run) if run is not None else None
        if run is not None and reason is not None:
            instance.report_run_failed(run, f"The run was lost: {reason}. What it had finished is kept.")
            ended.append(run.run_id)
    return ended


def _now() -> str:
    return f"{time.time():.0f}"
