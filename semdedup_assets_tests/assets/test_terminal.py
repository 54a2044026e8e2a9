"""`dg launch` in a terminal shows what is made, line by line, and bars below."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from semdedup_assets_tests.dagster_process import write_project
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard


def output_in_a_terminal(command: list[str], folder: Path) -> str:
    """Run a command whose standard output and error are a terminal; what it writes there."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "DAGSTER_HOME": str(folder), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        parts = []
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # All who wrote to the terminal have ended.
                break
            parts.append(part)
        os.close(ours)
    output = b"".join(parts).decode(errors="replace")
    assert process.returncode == 0, output
    return output


def test_a_launched_refresh_shows_bars_and_one_line_for_each_asset(tmp_path: Path) -> None:
    for seed in range(2):
        write_shard(tmp_path, f"{seed}", near_duplicates(seed))
    write_project(tmp_path, vectors_settings(tmp_path))
    dg = str(Path(sys.executable).parent / "dg")
    lines = re.split(r"[\r\n]+", output_in_a_terminal([dg, "launch", "--job", "toy__precomputed__refresh"], tmp_path))
    made = [match[1] for line in lines if (match := re.fullmatch(r"\d\d:\d\d:\d\d (\w+): \d+ partitions made", line))]
    assert made == [
        "items",
        "embeddings",
        "training_sample",
        "centroids",
        "assignments",
        "duplicate_scores",
        "keep_masks",
        "manifests",
        "figures",
        "galleries",
    ]
    assert any(re.search(r"assignments: +\d+%.* \d/2 ", line) for line in lines)
    # Lines stand alone: no bar ends in one.
    assert not any(re.search(r"\S.*\d\d:\d\d:\d\d \w+: \d+ partitions made", line) for line in lines)


def test_the_help_of_dg_lists_the_options_of_its_commands(tmp_path: Path) -> None:
    dg = str(Path(sys.executable).parent / "dg")
    environment = {**os.environ, "COLUMNS": "120"}
    shown = subprocess.run(
        [dg, "launch", "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert "--job" in shown.stdout
