"""A real Dagster, as `dagster dev` starts it: webserver, daemon and code server, on a project in a folder."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import yaml

ROOT = Path(__file__).parent.parent

T = TypeVar("T")

_SHORT_INTERVALS = Path(__file__).with_name("short_intervals")
_LOOKS = 3
_MOST_TIMES = 4


@dataclass(frozen=True)
class RunningDagster:
    """Where it can be reached, and what it remembers."""

    url: str
    instance: dg.DagsterInstance
    log: Path
    process: int

    def kill(self) -> None:
        """End every process of it at once, as a reboot does: webserver, daemon, code server and runs."""
        for pid in [*_descendants(self.process), self.process]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def write_project(folder: Path, *pipelines: dict[str, Any]) -> None:
    """A Dagster project with some pipelines, its code location and its instance configured as this repository's.

    Args:
        folder: of the project.
        pipelines: their settings.
    """
    package = folder / "their_project"
    (package / "defs").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "defs" / "__init__.py").write_text("")
    shutil.copy(ROOT / "semdedup_assets" / "definitions.py", package)
    (folder / "pyproject.toml").write_text(
        "[project]\nname = 'their-project'\nversion = '0'\n"
        "[tool.dg]\ndirectory_type = 'project'\n[tool.dg.project]\nroot_module = 'their_project'\n"
        "code_location_name = 'their_project.definitions'\n"
    )
    (folder / "workspace.yaml").write_text(
        "load_from:\n  - python_module: {module_name: their_project.definitions, working_directory: .}\n"
    )
    for attributes in pipelines:
        document = {"type": "semdedup_assets.SemDedupPipeline", "attributes": attributes}
        file = package / "defs" / attributes["dataset"] / "defs.yaml"
        file.parent.mkdir()
        file.write_text(yaml.safe_dump(document, sort_keys=False))
    shutil.copy(ROOT / "dagster.yaml", folder)


@contextmanager
def running_dagster(folder: Path) -> Iterator[RunningDagster]:
    """`dagster dev` on a project, until the block ends; its daemon looks more often than a user's."""
    port, log = free_port(), folder / "dagster.log"
    environment = {**os.environ, "DAGSTER_HOME": str(folder), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(_SHORT_INTERVALS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment.pop("OMP_WAIT_POLICY", None)  # What `make test` gives is not what a user has.
    command = [sys.executable, "-m", "dagster", "dev", "-w", "workspace.yaml", "-p", str(port), "-h", "127.0.0.1"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: _answers(url), what=f"{url} to answer", log=log)
        with configured_instance(folder) as instance:
            yield RunningDagster(url, instance, log, process.pid)
    finally:
        # Its children outlive it: the whole group goes.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        _kill_group(process.pid)
        process.wait()


def _descendants(pid: int) -> list[int]:
    """All processes below one; the lowest first."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = file.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                child = int(file.parent.name)
                found += [*_descendants(child), child]
    return found


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


@contextmanager
def configured_instance(folder: Path) -> Iterator[dg.DagsterInstance]:
    """What the project's Dagster remembers; its configuration names folders relative to where the process runs."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with dg.DagsterInstance.from_config(str(folder)) as instance:
            yield instance
    finally:
        os.chdir(before)


def wait_for(found: Callable[[], T | None], *, what: str, log: Path, idle: float = 300) -> T:
    """What a question answers once it answers something; fails with the end of Dagster's own log.

    A busy machine only takes longer: the wait ends where nothing has been made for a while.

    Args:
        found: the question.
        what: what is waited for, in words.
        log: of Dagster, in the folder that is its home.
        idle: seconds without anything happening after which it is taken to have stopped.
    """
    begun = since = time.monotonic()
    seen = _activity(log)
    # A schedule goes on for ever: what has not come after so many times as long will not come.
    while time.monotonic() - since < idle and time.monotonic() - begun < _MOST_TIMES * idle:
        answer = found()
        if answer:
            return answer
        now = _activity(log)
        if now != seen:
            seen, since = now, time.monotonic()
        time.sleep(1)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-60:])
    message = f"nothing happened for {idle:.0f} s, or too much, while waiting for {what}; the end of {log}:\n{tail}"
    raise TimeoutError(message)


def _activity(log: Path) -> tuple[int, ...]:
    """What changes while Dagster makes something: the logs of its runs, and their events.

    Ticks and heartbeats, which go on when nothing is done, change neither.
    """
    runs = list((log.parent / ".dagster" / "logs").rglob("*"))
    events = list((log.parent / ".dagster" / "storage" / "history" / "runs").glob("*.db*"))
    return len(runs), sum(map(_size, [*runs, *events]))


def _size(file: Path) -> int:
    """Bytes of a file; 0 where it has just been removed, as SQLite's journals are."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def wait_for_ticks(dagster: RunningDagster, name: str, *, what: str) -> None:
    """Wait until a sensor or a schedule has ended some evaluations that began after now."""
    start = time.time()

    def looked() -> bool:
        ticks = [tick for state in _states(dagster.instance, name) for tick in _ticks(dagster.instance, state)]
        return sum(tick.timestamp > start and tick.is_completed for tick in ticks) >= _LOOKS

    # Ticks are no activity: they alone are waited for, and they come every few seconds.
    wait_for(looked, what=f"{name} to look {_LOOKS} times, {what}", log=dagster.log)


def last_tick(dagster: RunningDagster, name: str) -> Any:
    """The last evaluation of a sensor or a schedule that has ended."""
    (state,) = _states(dagster.instance, name)
    return next(tick for tick in _ticks(dagster.instance, state) if tick.is_completed)


def _states(instance: dg.DagsterInstance, name: str) -> list[Any]:
    return [state for state in instance.all_instigator_state() if state.instigator_name == name]


def _ticks(instance: dg.DagsterInstance, state: Any) -> list[Any]:
    return list(instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=_LOOKS + 1))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/server_info", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
