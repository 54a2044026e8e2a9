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


@dataclass(frozen=True)
class RunningDagster:
    """Where it can be reached, and what it remembers."""

    url: str
    instance: dg.DagsterInstance
    log: Path


def write_project(folder: Path, attributes: dict[str, Any]) -> None:
    """A Dagster project with one pipeline, and the instance's configuration that this repository ships."""
    package = folder / "their_project"
    (package / "defs" / "toy").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "defs" / "__init__.py").write_text("")
    (package / "definitions.py").write_text(
        "from pathlib import Path\n\nimport dagster as dg\n\n\n@dg.definitions\ndef defs() -> dg.Definitions:\n"
        "    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)\n"
    )
    (folder / "pyproject.toml").write_text(
        "[project]\nname = 'their-project'\nversion = '0'\n"
        "[tool.dg]\ndirectory_type = 'project'\n[tool.dg.project]\nroot_module = 'their_project'\n"
    )
    (folder / "workspace.yaml").write_text(
        "load_from:\n  - python_module: {module_name: their_project.definitions, working_directory: .}\n"
    )
    document = {"type": "semdedup_assets.SemDedupPipeline", "attributes": attributes}
    (package / "defs" / "toy" / "defs.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    shutil.copy(ROOT / "dagster.yaml", folder)


@contextmanager
def running_dagster(folder: Path) -> Iterator[RunningDagster]:
    """`dagster dev` on a project, until the block ends."""
    port, log = _free_port(), folder / "dagster.log"
    environment = {**os.environ, "DAGSTER_HOME": str(folder), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "dagster", "dev", "-w", "workspace.yaml", "-p", str(port), "-h", "127.0.0.1"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: _answers(url), seconds=120, what=f"{url} to answer", log=log)
        with configured_instance(folder) as instance:
            yield RunningDagster(url, instance, log)
    finally:
        # Its children outlive it: the whole group goes.
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        _kill_group(process.pid)
        process.wait()


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


def wait_for(found: Callable[[], T | None], *, seconds: float, what: str, log: Path) -> T:
    """What a question answers once it answers something; fails with the end of Dagster's own log."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = found()
        if answer:
            return answer
        time.sleep(0.5)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-60:])
    message = f"waited {seconds:.0f} s for {what}; the end of {log}:\n{tail}"
    raise TimeoutError(message)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/server_info", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
