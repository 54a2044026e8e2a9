"""What Dagster adds, and whether it stays usable, with thousands of shards, several k and many epsilons.

    python benchmarks/dagster_at_scale.py [--shards 5000] [--epsilons 20] [--through embeddings] [--json FILE]

A folder of tiny vector files goes through all assets on a real instance (SQLite, this repository's `dagster.yaml`), each
asset's partitions as one run, so that next to nothing but overhead is measured. The sensors' ticks are timed as the code
server evaluates them, and once more as the daemon notes them; the checks run; Dagster's UI is opened on it in Chromium;
at last new files arrive, and the daemon follows. About an hour in full; `--shards 60 --epsilons 3` tries it out, and
`--through embeddings` leaves all that follows registered and missing.
"""

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dagster as dg
import numpy as np
from machine import machine

from semdedup_assets.assets.pipeline import pipeline_definitions
from semdedup_assets.assets.refresh import refresh
from semdedup_assets.encoders import Precomputed
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets_tests.browser import DagsterUI, browsing
from semdedup_assets_tests.dagster_process import (
    RunningDagster,
    configured_instance,
    running_dagster,
    wait_for,
    write_project,
)
from semdedup_assets_tests.pipeline_runs import PipelineRuns

KS, BUCKETS, NEW_SHARDS = ("3", "5", "8"), 2, 20
GROUP, FILES, AUTOMATION = "toy__precomputed", "toy__files", "toy__precomputed__automation"
FRESHNESS = "toy__precomputed__up_to_date"
REFRESHED = tuple(stage.name for stage in GRAPH.stages if not stage.on_demand)


@dataclass
class Clock:
    """What was timed, printed as it comes."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def note(self, what: str, seconds: float, **more: float) -> None:
        """Keep and print one time, with other numbers."""
        self.rows.append({"what": what, "seconds": round(seconds, 3), **more})
        shown = "".join(f", {name} {number:,}" for name, number in more.items())
        print(f"{seconds:>9.2f} s  {what}{shown}", flush=True)

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Time a block."""
        started = time.perf_counter()
        yield
        self.note(what, time.perf_counter() - started)


def settings(folder: Path, epsilons: int, *, automatic: bool) -> dict[str, Any]:
    """A pipeline on tiny files, with as many partitions as a large one."""
    return {
        "dataset": "toy",
        "store": str(folder / "store"),
        "source": {"kind": "vectors", "path": str(folder / "source")},
        "encoder": {"kind": "precomputed"},
        "clustering": {"k": list(KS), "buckets": BUCKETS, "iterations": 5},
        "epsilons": [f"0.{number:02d}" for number in range(1, epsilons + 1)],
        "manifests": ["keep_lists"],
        "refresh": {"automatic": automatic, "interval_seconds": 30},
        "compute": {"device": "cpu"},
    }


def write_shards(folder: Path, shards: range) -> None:
    """Files of four vectors each."""
    (folder / "source").mkdir(exist_ok=True)
    for index in shards:
        vectors = np.random.default_rng(index).normal(size=(4, 16)).astype(np.float32)
        np.save(folder / "source" / f"{index:06d}.npy", vectors)


@dataclass(frozen=True)
class Measured:
    """The pipeline, what remembers it, and the clock."""

    runs: PipelineRuns
    clock: Clock

    @property
    def instance(self) -> dg.DagsterInstance:
        """Dagster's record."""
        return self.runs.instance

    def files_tick(self, name: str) -> None:
        """The files sensor as the code server evaluates it; then its events, which the daemon writes."""
        data, seconds = self._evaluated(FILES, None)
        self.clock.note(f"files sensor's tick, {name}", seconds, events=len(data.asset_events))
        if data.asset_events:
            with self.clock(f"files sensor's events written, {name}"):
                for event in data.asset_events:
                    self.instance.report_runless_asset_event(event)

    def automation_tick(self, name: str, cursor: str | None) -> str | None:
        """The automation sensor as the code server evaluates it; returns its cursor."""
        data, seconds = self._evaluated(AUTOMATION, cursor)
        requests = data.run_requests or []
        subsets = [request.asset_graph_subset for request in requests]
        partitions = sum(subset.num_partitions_and_non_partitioned_assets if subset else 1 for subset in subsets)
        more = {"requests": len(requests), "partitions": partitions}
        self.clock.note(f"automation tick, {name}", seconds, **more)
        return data.cursor

    def freshness_ticks(self) -> None:
        """The sensor that shows what is stale, in one code server: its first look, another one, and no look."""
        repository = pipeline_definitions(self.runs.pipeline).get_repository_def()
        cursor = None
        for name in ("first look", "settings changed", "nothing changed"):
            if cursor and name == "settings changed":
                cursor = json.dumps({**json.loads(cursor), "settings": ""})
            context = dg.build_sensor_context(self.instance, cursor, repository_def=repository, sensor_name=FRESHNESS)
            started = time.perf_counter()
            data = repository.get_sensor_def(FRESHNESS).evaluate_tick(context)
            self.clock.note(f"freshness tick, {name}", time.perf_counter() - started, events=len(data.asset_events))
            cursor = data.cursor or cursor

    def _evaluated(self, name: str, cursor: str | None) -> tuple[Any, float]:
        repository = pipeline_definitions(self.runs.pipeline).get_repository_def()
        context = dg.build_sensor_context(self.instance, cursor, repository_def=repository, sensor_name=name)
        started = time.perf_counter()
        return repository.get_sensor_def(name).evaluate_tick(context), time.perf_counter() - started

    def make_everything(self, *, through: str) -> None:
        """All partitions of every asset by the refresh, and no more than through one asset."""
        begun = started = time.perf_counter()
        total = 0
        for stage in refresh(self.runs.pipeline, self.instance):
            count, seconds = len(stage.partitions), time.perf_counter() - started
            each = round(1000 * seconds / max(1, count), 1)
            self.clock.note(f"refresh: {stage.asset}", seconds, partitions=count, ms_each=each)
            total, started = total + count, time.perf_counter()
            if stage.asset == through:
                break
        self.clock.note(f"refresh, through the {through}", time.perf_counter() - begun, partitions=total)

    def make_nothing(self) -> None:
        """The refresh when there is nothing to do."""
        begun = started = time.perf_counter()
        for stage in refresh(self.runs.pipeline, self.instance):
            name = f"refresh, nothing to do, {stage.asset}"
            self.clock.note(name, time.perf_counter() - started, partitions=len(stage.partitions))
            started = time.perf_counter()
        self.clock.note("refresh, nothing to do", time.perf_counter() - begun)

    def adopt(self, folder: Path) -> None:
        """A fresh instance on the full store: everything is made known to it, nothing is made."""
        with dg.instance_for_test(temp_dir=str(folder)) as fresh:
            begun = time.perf_counter()
            runs = list(refresh(self.runs.pipeline, fresh))
            adopted = sum(run.adopted for run in runs)
            _expect(not any(run.partitions for run in runs), "a fresh instance")
            more = {"partitions": adopted, "ms_each": _each(time.perf_counter() - begun, adopted)}
            self.clock.note("a fresh instance adopts the store", time.perf_counter() - begun, **more)

    def own_work(self) -> None:
        """What the stages themselves used for the two largest assets, by their records."""
        for asset in ("embeddings", "assignments"):
            records = self.runs.context.index.records(asset).values()
            seconds = sum(float(record.details["seconds"]) for record in records)
            self.clock.note(f"{asset}: the stage's own work in it", seconds, ms_each=_each(seconds, len(records)))

    def look_again(self, cursor: str | None) -> None:
        """The sensor with everything made, the checks, and the refresh, when there is nothing to do."""
        self.own_work()
        self.events("assignments")
        self.automation_tick("nothing to do", cursor)
        self.freshness_ticks()
        self.checks()
        self.make_nothing()

    def events(self, asset: str) -> None:
        """How many times each partition of an asset is in the event log after one refresh."""
        before = time.perf_counter()
        made = self.instance.fetch_materializations(self.runs.key(asset), limit=10_000).records
        each = len(made) / len({record.partition_key for record in made})
        self.clock.note(f"{asset}: events read", time.perf_counter() - before, materializations_each=round(each, 2))

    def checks(self) -> None:
        """The checks of each asset, as each of its runs evaluates them."""
        for asset in self.runs.builder.automatic:
            with self.clock(f"checks of the {asset}"):
                context = self.runs.builder.context(asset)
                failed = [check.name for check in asset.stage.checks if check.evaluate(context).problems]
            _expect(not set(failed) - {"sample_is_large_enough"}, str(asset))


def _each(seconds: float, count: int) -> float:
    return round(1000 * seconds / count, 1)


def _expect(holds: bool, what: str) -> None:  # noqa: FBT001
    """A time of something that went wrong means nothing."""
    if not holds:
        message = f"{what}: not as it should be after a refresh; look at its checks"
        raise RuntimeError(message)


def look(measured: Measured, running: RunningDagster, shards: int, through: str) -> None:
    """Pages of the UI in a browser, until what they are opened for is to be seen."""
    clock, epsilon = measured.clock, measured.runs.pipeline.epsilons[-1]
    # So wide that the graph shows each asset's state in words.
    with browsing(running.url, width=3000, height=1200) as ui:
        ui.page.set_default_timeout(300_000)
        ui.open("/overview")
        filled = 8 if through == REFRESHED[-1] else 1
        with clock("UI: graph of the group, with the state of every asset"):
            ui.open_graph("their_project.definitions", GROUP)
            ui.page.get_by_text("100% filled").nth(filled - 1).wait_for()
        shard = f"s{shards // 2:06d}"
        pages = {"embeddings": (shards, shard), "assignments": (len(KS) * shards, f"{KS[0]}|{shard}"),
                 "keep_masks": (len(KS) * len(measured.runs.pipeline.epsilons), f"{epsilon}|{KS[0]}")}  # fmt: skip
        for asset, (count, partition) in pages.items():
            made = REFRESHED.index(asset) <= REFRESHED.index(through)
            shown = f"{'Materialized' if made else 'Missing'} ({count})"
            with clock(f"UI: partitions of the {asset}, {shown}"):
                ui.open_asset(["toy", "precomputed", asset], "partitions")
                ui.page.get_by_text(shown, exact=True).first.wait_for()
            if made:
                with clock(f"UI: one partition of the {asset}"):
                    ui.open_partition(["toy", "precomputed", asset], partition)
                    ui.page.get_by_text("dagster/uri").first.wait_for()
        _open_dialog(clock, ui, shards)
        with clock("UI: checks of the embeddings"):
            ui.open_asset(["toy", "precomputed", "embeddings"], "checks")
            ui.page.get_by_text("ids_are_unique").first.wait_for()
        with clock("UI: runs"):
            ui.open("/runs")
            ui.page.get_by_text("Success").first.wait_for()


def _open_dialog(clock: Clock, ui: DagsterUI, shards: int) -> None:
    ui.open_asset(["toy", "precomputed", "embeddings"], "partitions")
    ui.page.get_by_text(f"Materialized ({shards})", exact=True).first.wait_for()
    with clock("UI: dialog to materialise all embeddings"):
        ui.page.get_by_role("button", name="Materialize…").click()
        ui.dialog.get_by_text("All", exact=True).click()
        ui.dialog.get_by_text(f"{shards:,} partitions", exact=True).first.wait_for()


def ask(measured: Measured, running: RunningDagster) -> None:
    """What the UI asks the webserver for, without a browser."""
    for asset in ("embeddings", "assignments", "manifests"):
        key = json.dumps(list(measured.runs.key(asset).path))
        node = f"assetNodeOrError(assetKey: {{path: {key}}}) {{... on AssetNode {{%s}}}}"
        for name, asked in (
            ("states of all partitions", "partitionStats {numMaterialized numPartitions} assetPartitionStatuses {__typename}"),
            ("staleness of all partitions", "staleStatusByPartition"),
        ):  # fmt: skip
            with measured.clock(f"GraphQL: {name} of the {asset}"):
                _answered(running.url, f"{{{node % asked}}}")


def _answered(url: str, query: str) -> None:
    content = json.dumps({"query": query}).encode()
    request = urllib.request.Request(f"{url}/graphql", content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=1800) as answer:
        if errors := json.load(answer).get("errors"):
            message = f"{query}: {errors[0]['message']}"
            raise RuntimeError(message)


def follow(measured: Measured, running: RunningDagster, folder: Path, shards: int) -> None:
    """New files arrive: how long the daemon takes until they are in all manifests, and in how many runs."""
    pipeline, runs, instance = measured.runs.pipeline, measured.runs, measured.instance
    before = instance.event_log_storage.get_maximum_record_id() or 0
    earlier = {run.run_id for run in instance.get_runs()}
    wanted = len(KS) * len(pipeline.epsilons)
    _expect(not _unfinished(instance), "the daemon")
    with measured.clock(f"daemon: {NEW_SHARDS} new files, until they are in all manifests and galleries"):
        write_shards(folder, range(shards, shards + NEW_SHARDS))

        def followed() -> bool:
            made = [_made_since(runs, asset, before) for asset in ("manifests", "galleries")]
            return all(len(partitions) == wanted for partitions in made) and not _unfinished(instance)

        wait_for(followed, what="the daemon to follow", log=running.log)
    new = [run for run in instance.get_runs() if run.run_id not in earlier]
    for asset in ("embeddings", "figures", "galleries", "assignments", "duplicate_scores", "keep_masks", "manifests"):
        of_asset = [run for run in new if runs.key(asset) in (run.asset_selection or ())]
        partitions = _made_since(runs, asset, before)
        seconds = sum(_seconds(instance, run.run_id) for run in of_asset)
        measured.clock.note(f"daemon: {asset}", seconds, runs=len(of_asset), partitions=len(partitions))


def _made_since(runs: PipelineRuns, asset: str, record_id: int) -> set[str | None]:
    return {record.partition_key for record in runs.materialisations(asset, record_id)}


def _unfinished(instance: dg.DagsterInstance) -> bool:
    return any(not run.is_finished for run in instance.get_runs(limit=50))


def _seconds(instance: dg.DagsterInstance, run_id: str) -> float:
    record = instance.get_run_record_by_id(run_id)
    return (record.end_time or 0) - (record.start_time or 0) if record else 0.0


def daemon_ticks(measured: Measured) -> None:
    """What the daemon notes of its own ticks: those with nothing to do, and others."""
    for state in measured.instance.all_instigator_state():
        ticks = measured.instance.get_ticks(state.instigator_origin_id, state.selector_id)
        for name, of_kind in _by_outcome(ticks):
            more = {"ticks": len(of_kind), "greatest": round(max(of_kind), 2)}
            name = f"daemon: tick of {state.instigator_name}, {name}, median"
            measured.clock.note(name, statistics.median(of_kind), **more)


def _by_outcome(ticks: Sequence[Any]) -> Iterator[tuple[str, list[float]]]:
    outcomes = {"skipped": "nothing to do", "success": "something found", "failure": "failed"}
    for outcome, name in outcomes.items():
        found = [tick for tick in ticks if tick.status.value.lower() == outcome and tick.end_timestamp]
        if found:
            yield name, [tick.end_timestamp - tick.timestamp for tick in found]


def measure(folder: Path, shards: int, epsilons: int, through: str) -> Clock:
    """All of it, in a folder of its own."""
    clock, chosen = Clock(), settings(folder, epsilons, automatic=through == REFRESHED[-1])
    write_shards(folder, range(shards))
    write_project(folder, chosen)
    with configured_instance(folder) as instance:
        in_process(Measured(PipelineRuns(instance, chosen), clock), folder, through)
        size = sum(path.stat().st_size for path in (folder / ".dagster").rglob("*") if path.is_file())
        clock.note("Dagster's record", 0, mib=round(size / (1 << 20), 1))
    with running_dagster(folder) as running:
        measured = Measured(PipelineRuns(running.instance, chosen), clock)
        look(measured, running, shards, through)
        ask(measured, running)
        if through == REFRESHED[-1]:
            follow(measured, running, folder, shards)
        daemon_ticks(measured)
    return clock


def in_process(measured: Measured, folder: Path, through: str) -> None:
    """What needs neither the webserver nor the daemon."""
    for name in ("first", "nothing new"):
        measured.files_tick(name)
    measured.automation_tick("nothing is made yet", None)
    loads = patch.object(Precomputed, "load", autospec=True, side_effect=Precomputed.load)
    with loads as load:
        measured.make_everything(through=through)
    measured.clock.note("embeddings: model loaded", 0, times=load.call_count)
    measured.events("embeddings")
    cursor = measured.automation_tick(f"all is made through the {through}", None)
    if through == REFRESHED[-1]:
        measured.look_again(cursor)
        measured.adopt(folder / "fresh")


def main() -> None:
    """Measure, print, and keep the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=5000)
    parser.add_argument("--epsilons", type=int, default=20)
    parser.add_argument("--through", choices=REFRESHED, default=REFRESHED[-1])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    target = arguments.json.resolve() if arguments.json else None
    logging.disable(logging.INFO)
    conditions = {"shards": arguments.shards, "k": len(KS), "epsilons": arguments.epsilons, "through": arguments.through, "cores": os.cpu_count(),
                  "load_before": os.getloadavg()[0], "dagster": dg.__version__, "machine": machine()}  # fmt: skip
    print(conditions)
    with tempfile.TemporaryDirectory() as folder:
        clock = measure(Path(folder), arguments.shards, arguments.epsilons, arguments.through)
    if target:
        target.write_text(json.dumps({**conditions, "rows": clock.rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
