"""The command line as processes: in a terminal, in a pipe, and without Dagster."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from semdedup_assets.command_line.removed import COLUMNS
from semdedup_assets.execution.stage import StageGraph
from semdedup_assets_tests.pipeline_runs import UNDRAWN, PipelineRuns
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard

SEMDEDUP = (sys.executable, "-m", "semdedup_assets")
MAIN_WAY = StageGraph(tuple(stage for stage in UNDRAWN.stages if stage.name != "galleries"))
"""Up to the manifests: what `run --only manifests` makes."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a `defs.yaml` and its source."""
    for seed in range(2):
        write_shard(tmp_path, f"{seed}", near_duplicates(seed))
    document = {"type": "semdedup_assets.SemDedupPipeline", "attributes": vectors_settings(tmp_path)}
    (tmp_path / "defs.yaml").write_text(yaml.safe_dump(document))
    return tmp_path


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


@contextmanager
def started(command: list[str], **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """A process that is there until the block ends, whatever becomes of the block."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_run_imports_no_dagster_goes_on_when_its_reader_has_enough_and_is_adopted_by_dagster(folder: Path) -> None:
    program = (
        "import sys; from semdedup_assets.command_line.app import app\n"
        "try: app()\n"
        "finally: print(*sorted(m for m in sys.modules if m.partition('.')[0].startswith('dagster')), file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, "run", str(folder), "--only", "manifests"]
    # What is made matters more than what is read of it; Dagster sees below that everything was made.
    with started(command, env=environment(), stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        head = process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=120) == 0, err
    assert err.splitlines()[-1] == ""
    assert "\r" not in head + err

    piped = f"set -o pipefail; {' '.join(SEMDEDUP)} removed {folder} --format jsonl | head -n 1"
    read = subprocess.run(
        ["bash", "-c", piped], env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert (read.returncode, read.stderr) == (0, "")
    assert set(json.loads(read.stdout)) == set(COLUMNS)

    with dg.DagsterInstance.ephemeral() as instance:
        runs = PipelineRuns(instance, vectors_settings(folder), MAIN_WAY)
        found = runs.refresh_runs()
        assert {run.asset: len(run.partitions) for run in found if run.partitions} == {}
        assert all(run.adopted for run in found)
        assert runs.stale() == {}


def lines_of_terminal(ours: int) -> Iterator[str]:
    """What is written to a terminal, line by line as it comes, a bar's states too."""
    text = ""
    while True:
        try:
            part = os.read(ours, 1 << 12).decode(errors="replace")
        except OSError:  # All who wrote to the terminal have ended.
            yield text
            return
        *lines, text = (text + part).replace("\r", "\n").split("\n")
        yield from lines


def test_ctrl_c_in_a_terminal_ends_at_once_with_a_line_and_what_was_finished_is_kept(folder: Path) -> None:
    # Thousands of masks: there is time to press a key.
    settings = vectors_settings(folder, epsilons=[f"{number / 10_000}" for number in range(1, 5000)])
    document = {"type": "semdedup_assets.SemDedupPipeline", "attributes": settings}
    (folder / "defs.yaml").write_text(yaml.safe_dump(document))
    ours, theirs = pty.openpty()
    # The terminal of a session of its own, so that the key's byte becomes a signal.
    command = ["setsid", "--ctty", "--wait", *SEMDEDUP, "run", str(folder), "--only", "keep_masks"]
    with started(command, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen = []
        for line in lines_of_terminal(ours):
            seen.append(line)
            if line.startswith("  duplicate_scores"):
                os.write(ours, b"\x03")
        assert process.wait(timeout=60) == 130, seen
    os.close(ours)
    assert "interrupted: what was finished is kept; the same command goes on from there" in seen
    assert not any("Traceback" in line for line in seen)
    kept = StageRuns(settings)
    assert kept.stale("duplicate_scores") == []
    assert kept.stale("keep_masks")


def test_ctrl_c_ends_what_python_cannot_interrupt() -> None:
    program = (
        "import hashlib\n"
        "from semdedup_assets.command_line.interrupts import ending_at_once\n"
        "with ending_at_once(lambda: 'ended', left=lambda: 'a folder is left'):\n"
        "    while True:\n"
        "        try:\n"
        "            print('at work', flush=True)\n"
        "            hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)\n"
        "        except KeyboardInterrupt: pass"
    )
    with started([sys.executable, "-c", program], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read().split("\n") == ["", "ended", "a folder is left", ""]


def test_ctrl_c_ends_a_check_with_a_line(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        # A server that does not answer: there is time to press a key.
        source = {"kind": "vectors", "path": f"http://127.0.0.1:{server.getsockname()[1]}/v.parquet", "vector": "v"}
        attributes = vectors_settings(folder, source=source)
        document = {"type": "semdedup_assets.SemDedupPipeline", "attributes": attributes}
        (folder / "defs.yaml").write_text(yaml.safe_dump(document))
        command = [*SEMDEDUP, "check", str(folder), "--no-estimate"]
        with started(command, env=environment(), stdout=-1, stderr=-1, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert "defs.yaml" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 130
            assert process.stderr.read().strip() == "interrupted: not everything was looked at"


def test_what_fails_is_a_line_and_a_traceback_for_who_asks(folder: Path) -> None:
    (folder / "store").write_text("no folder")
    command = [*SEMDEDUP, "run", str(folder)]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert str(folder / "store") in line
    asked = {**environment(), "SEMDEDUP_TRACEBACK": "1"}
    ran = subprocess.run(command, env=asked, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr


def test_a_full_disk_is_a_line_that_names_the_store(folder: Path) -> None:
    # No file may be larger than a few blocks, as where the disk is full but for these.
    limited = f"ulimit -f 4; exec {' '.join(SEMDEDUP)} run {folder} --only embeddings"
    write_shard(folder, "0", near_duplicates(0, groups=1000))
    command = ["bash", "-c", limited]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 1
    line = ran.stderr.splitlines()[-1]
    assert str(folder / "store") in line
    assert "make room, then run again: what was finished is kept" in line
    assert "Traceback" not in ran.stderr
