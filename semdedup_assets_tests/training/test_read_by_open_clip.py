"""The commands that the examples give to train on a manifest are run as a user runs them."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples" / "read_manifests"


def documented_command(example: str) -> str:
    """The line of an example's description that trains."""
    description = ast.get_docstring(ast.parse((EXAMPLES / example).read_text(encoding="utf-8"))) or ""
    (command,) = re.findall(r"^    (python -m open_clip_train.main .*)$", description, re.MULTILINE)
    return str(command)


@pytest.mark.parametrize("example", ["open_clip_webdataset.py", "open_clip_csv.py"])
def test_the_documented_command_trains_on_a_manifest(
    manifest: tuple[Path, dict[str, Any]], clip: Path, tmp_path: Path, example: str
) -> None:
    folder, details = manifest
    names = {
        "<folder>": str(folder), "<items>": str(details["kept"]), "s{000000..000099}": "s{000000..000001}",
        "--model ViT-B-16": f"--model local-dir:{clip}", "--workers 4": "--workers 0",
    }  # fmt: skip
    command = documented_command(example)
    for name, value in names.items():
        command = command.replace(name, value)
    small = f"--epochs 1 --batch-size 16 --device cpu --precision fp32 --logs {tmp_path} --name one"
    ran = subprocess.run(
        [sys.executable, *shlex.split(command)[1:], *small.split()],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    saved = torch.load(tmp_path / "one" / "checkpoints" / "epoch_1.pt", weights_only=True)
    assert {int(state["step"]) for state in saved["optimizer"]["state"].values()} == {details["kept"] // 16}
