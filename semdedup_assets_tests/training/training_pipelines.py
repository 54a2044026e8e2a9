"""Pipelines on texts with manifests of all baselines, and trainers and metrics of a moment."""

import shutil
from pathlib import Path
from typing import Any

from semdedup_assets_tests.baselines.baseline_runs import docstrings, edited, text_runs
from semdedup_assets_tests.stage_runs import StageRuns

TRAINER = Path(__file__).with_name("toy_trainer.py")
METRIC = Path(__file__).with_name("toy_metric.py")
BASELINES = ("everything", "exact", "random", "sized_random")


def training_command(mode: str = "", more: str = "") -> str:
    told = f"--manifest {{manifest}} --seed {{seed}} --items {{items}} --out {{out}} --mode '{mode}' {more}"
    return f"python '{TRAINER}' {told}"


def metric_command(mode: str = "") -> str:
    return f"python '{METRIC}' {{checkpoint}} {{out}} '{mode}'"


def training(**changes: Any) -> dict[str, Any]:
    return {"command": training_command(), "seeds": 2, "against": list(BASELINES), **changes}


def with_manifests(folder: Path, **changes: Any) -> StageRuns:
    """A pipeline of which the manifests of a kept set and of all baselines are made."""
    runs = text_runs(folder, edited(docstrings(60), 1), **{"training": training(), **changes})
    for name in BASELINES:
        runs.make(f"{name}_masks")
        runs.make(f"{name}_manifests")
    return runs


def train_all(runs: StageRuns) -> None:
    """Train what each kept set is held against, and it."""
    for name in ("everything_trained_models", "exact_trained_models", "trained_models", "random_trained_models"):
        runs.make(name, again=False)
    runs.make("sized_random_trained_models", again=False)


def copied(runs: StageRuns, folder: Path) -> StageRuns:
    """The same in a store of its own."""
    store = folder / "store"
    shutil.copytree(runs.settings["store"], store)
    return runs.changed(store=str(store))
