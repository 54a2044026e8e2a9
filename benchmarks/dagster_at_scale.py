"""What Dagster adds, and whether it stays usable, with thousands of shards, several k and many epsilons.

    python benchmarks/dagster_at_scale.py [--shards 5000] [--json FILE]

A folder of tiny vector files goes through all assets on a real instance (SQLite, this repository's `dagster.yaml`), each
asset's partitions as one run, so that next to nothing but overhead is measured; then the automation conditions are
evaluated, the checks run, and Dagster's UI is opened on it in a browser. Every number is wall time in seconds.
"""

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import numpy as np

from semdedup_assets.assets.checks import checks_of
from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.pipeline import pipeline_definitions
from semdedup_assets.assets.refresh import refresh
from semdedup_assets.assets.shards import observe_source
from semdedup_assets.settings import Pipeline
from semdedup_assets.stages.verdicts import made_from_current
from semdedup_assets.stages.work import Work
from semdedup_assets_tests.browser import browsing
from semdedup_assets_tests.dagster_process import configured_instance, running_dagster, write_project

KS, EPSILONS, BUCKETS = ("3", "5", "8"), tuple(f"0.{number:02d}" for number in range(1, 21)), 2
STAGES = ("embeddings", "centroids", "assignments", "duplicate_scores", "keep_masks", "manifests")


def settings(folder: Path) -> dict[str, object]:
    """A pipeline on tiny files, with as many partitions as a large one."""
    return {
        "dataset": "toy",
        "store": str(folder / "store"),
        "source": {"kind": "vectors", "path": str(folder / "source")},
        "encoder": {"kind": "precomputed"},
        "clustering": {"k": list(KS), "buckets": BUCKETS, "iterations": 5},
        "epsilons": list(EPSILONS),
        "manifests": ["keep_lists"],
        "compute": {"device": "cpu"},
    }


def write_shards(folder: Path, shards: int) -> None:
    """Files of four vectors each."""
    (folder / "source").mkdir()
    random = np.random.default_rng(0)
    for index in range(shards):
        np.save(folder / "source" / f"{index:06d}.npy", random.normal(size=(4, 16)).astype(np.float32))


class Clock:
    """Names and seconds, printed as they come."""

    def __init__(self) -> None:
        self.taken: dict[str, float] = {}

    def note(self, name: str, seconds: float) -> None:
        """Keep and print one."""
        self.taken[name] = round(seconds, 3)
        print(f"{seconds:>9.2f} s  {name}", flush=True)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block."""
        started = time.perf_counter()
        yield
        self.note(name, time.perf_counter() - started)


def make_everything(clock: Clock, pipeline: Pipeline, instance: dg.DagsterInstance) -> None:
    """All partitions of every asset, by the refresh; then once more, when there is nothing to do."""
    definitions = pipeline_definitions(pipeline)
    for what in ("made", "nothing to do"):
        total, started = 0, time.perf_counter()
        begun = started
        for stage in refresh(pipeline, definitions, instance):
            seconds, count = time.perf_counter() - started, len(stage.partitions)
            if count:
                each = f" ({1000 * seconds / count:.1f} ms each)" if count > 1 else ""
                clock.note(f"{stage.asset}: {count:,} partitions{each}", seconds)
            total, started = total + count, time.perf_counter()
        clock.note(f"refresh, {what}: {total:,} partitions", time.perf_counter() - begun)


def evaluate(clock: Clock, pipeline: Pipeline, instance: dg.DagsterInstance, names: tuple[str, ...]) -> None:
    """The automation conditions, tick by tick."""
    definitions, cursor = pipeline_definitions(pipeline), None
    for name in names:
        started = time.perf_counter()
        result = dg.evaluate_automation_conditions(definitions, instance, cursor=cursor)
        cursor = result.cursor
        clock.note(f"automation tick, {name}: {result.total_requested:,} requested", time.perf_counter() - started)


def look(clock: Clock, folder: Path) -> None:
    """Pages of the UI, until what they are opened for is to be seen."""
    with running_dagster(folder) as running, browsing(running.url) as ui:
        ui.open("/overview")
        with clock("UI: graph of the group, with the state of every asset"):
            ui.open_graph("their_project.definitions", "toy__precomputed")
            ui.page.get_by_text("manifests", exact=True).first.wait_for()
            ui.page.get_by_text("Loading").first.wait_for(state="hidden")
        for asset, partition in (("embeddings", "s000003"), ("assignments", f"{KS[0]}|s000003")):
            with clock(f"UI: a partition of the {asset}"):
                ui.open_partition(["toy", "precomputed", asset], partition)
        with clock("UI: a partition of the keep_masks"):
            ui.open_partition(["toy", "precomputed", "keep_masks"], f"{EPSILONS[4]}|{KS[0]}")
        with clock("UI: the checks of the assignments"):
            ui.open_asset(["toy", "precomputed", "assignments"], "checks")
            ui.page.get_by_text("every_item_in_one_cluster").first.wait_for()


def measure(folder: Path, shards: int) -> dict[str, float]:
    """All of it, in a folder of its own."""
    clock, chosen = Clock(), settings(folder)
    write_shards(folder, shards)
    write_project(folder, chosen)
    pipeline = Pipeline.model_validate(chosen)
    declaration = Declaration(pipeline)
    with configured_instance(folder) as instance:
        os.chdir(folder)
        for name in ("first", "nothing new"):
            with clock(f"look through the source, {name}"):
                observe_source(declaration, instance)
        evaluate(clock, pipeline, instance, ("nothing is made yet",))
        make_everything(clock, pipeline, instance)
        evaluate(clock, pipeline, instance, ("everything is made, first look", "idle"))
        for stage in STAGES:
            with clock(f"checks of the {stage}"):
                checks_of(Work(pipeline), stage)
        for stage in ("assignments", "duplicate_scores", "manifests"):
            with clock(f"made_from_current of the {stage}"):
                made_from_current(Work(pipeline), stage)
    look(clock, folder)
    return clock.taken


def main() -> None:
    """Measure, print, and keep the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=5000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    target = arguments.json.resolve() if arguments.json else None
    logging.disable(logging.INFO)
    print(f"{arguments.shards:,} shards, {len(KS)} k, {len(EPSILONS)} epsilons")
    with tempfile.TemporaryDirectory() as folder:
        before = Path.cwd()
        taken = measure(Path(folder), arguments.shards)
        os.chdir(before)
    if target:
        content = {"shards": arguments.shards, "k": len(KS), "epsilons": len(EPSILONS), "cores": os.cpu_count(),
                   "dagster": dg.__version__, "seconds": taken}  # fmt: skip
        target.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
