"""Dagster's UI in a real browser, on a pipeline of real images: what a person sees and clicks."""

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from semdedup_assets.assets.automation import find_wanted
from semdedup_assets.assets.builder import AssetBuilder
from semdedup_assets.assets.checks import check_specs
from semdedup_assets.checks.up_to_date import NAME as UP_TO_DATE
from semdedup_assets.compute import Compute
from semdedup_assets.execution.stage import ANALYSE, EVALUATE
from semdedup_assets.stage_graph import GRAPH, pipeline_context
from semdedup_assets_tests.browser import BrowserNotFoundError, DagsterUI, browsing
from semdedup_assets_tests.dagster_process import ROOT, RunningDagster, running_dagster, wait_for, write_project
from semdedup_assets_tests.pipeline_runs import PipelineRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard

LOCATION = "their_project.definitions"
GROUP = "emoji__tiny_clip"
SKIP = "SEMDEDUP_NO_BROWSER"

ON_A_CLUSTER = ("engine", "address", "workers", "shared_paths", "patience_seconds")


@dataclass(frozen=True)
class Seen:
    """A pipeline, one of which nothing is made, one of which something is, the Dagster they run in, and a browser."""

    runs: PipelineRuns
    fresh: PipelineRuns
    grown: PipelineRuns
    dagster: RunningDagster
    ui: DagsterUI

    def key(self, asset: str) -> list[str]:
        return list(self.runs.key(asset).path)

    def text(self) -> str:
        """What can be read on the page, in one line."""
        return " ".join(self.ui.page.locator("body").inner_text().split())

    def wait_for_texts(self, *texts: str) -> None:
        for text in texts:
            self.ui.page.get_by_text(text, exact=True).first.wait_for()


def settings(folder: Path) -> dict[str, Any]:
    """A shard of the emoji, and the small CLIP that this repository ships."""
    return vectors_settings(folder) | {
        "dataset": "emoji",
        "model": "tiny-clip",
        "source": {"kind": "webdataset", "path": str(folder / "source")},
        "encoder": {"kind": "openclip", "model": str(ROOT / "examples/emoji/encoder"), "precision": "float32"},
        "clustering": {"k": [6, 4], "buckets": 2, "iterations": 10},
        "epsilons": ["0.05", "keep=70%"],
        "manifests": ["parquet"],
        # A minute that a test never meets.
        "refresh": {"schedule": "0 4 29 2 *", "interval_seconds": 10},
    }


def fresh_settings(folder: Path) -> dict[str, Any]:
    """Another pipeline, of vectors."""
    clustering = {"k": [3], "buckets": 1, "iterations": 10}
    return vectors_settings(folder / "fresh", dataset="fresh", clustering=clustering, manifests=["parquet"])


def grown_settings(folder: Path) -> dict[str, Any]:
    """The same on another folder, with a k and an epsilon more."""
    return {
        **fresh_settings(folder),
        **vectors_settings(folder / "grown", dataset="grown"),
        "clustering": {"k": [3, 5], "buckets": 1, "iterations": 10},
        "epsilons": ["0.05", "0.1"],
    }


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """A pipeline in Dagster, of which one k and one target have not been made yet."""
    if os.environ.get(SKIP) == "1":
        pytest.skip(f"{SKIP}=1: NOTHING OF THE UI IS TESTED; install Chromium and unset it")
    folder = tmp_path_factory.mktemp("browser")
    (folder / "source").mkdir()
    shutil.copy(min((ROOT / "examples/emoji/shards").glob("*.tar")), folder / "source")
    for dataset in ("fresh", "grown"):
        write_shard(folder / dataset, "0", near_duplicates(0))
    pipelines = settings(folder), fresh_settings(folder), grown_settings(folder)
    write_project(folder, *pipelines)
    with running_dagster(folder) as dagster:
        runs, fresh, grown = (PipelineRuns(dagster.instance, each) for each in pipelines)
        runs.changed(clustering={"k": [6]}, epsilons=["0.05"]).refresh()
        grown.changed(clustering={"k": [3]}, epsilons=["0.05"]).refresh()
        for each in (fresh, grown):
            write_shard(each.folder, "1", near_duplicates(1))
            each.observe()
        # Only now: Playwright's event loop would be in the way of Dagster's.
        with browsing_or_fail(dagster.url) as ui:
            yield Seen(runs, fresh, grown, dagster, ui)


@contextmanager
def browsing_or_fail(url: str) -> Iterator[DagsterUI]:
    try:
        with browsing(url) as ui:
            yield ui
    except BrowserNotFoundError as error:
        pytest.fail(f"{error}; {SKIP}=1 leaves these tests out", pytrace=False)


def launch_and_wait(seen: Seen, asset: str, partition: str) -> dg.AssetMaterialization:
    """Materialise a partition that is missing through the UI's dialog; waits for the log and the page to show it."""
    seen.ui.open_partition(seen.key(asset), partition)
    seen.ui.page.get_by_text("No metadata entries").first.wait_for()
    before = {run.run_id for run in seen.dagster.instance.get_runs()}
    missing = missing_partitions(seen.text())
    seen.ui.launch_selected_partition()

    def finished() -> dg.DagsterRun | None:
        new = [run for run in seen.dagster.instance.get_runs() if run.run_id not in before]
        return next((run for run in new if run.is_finished), None)

    run = wait_for(finished, what=f"a run of {asset}", log=seen.dagster.log)
    log = [entry for entry in seen.dagster.instance.all_logs(run.run_id) if entry.level >= logging.ERROR]
    assert run.is_success, "\n".join(str(entry.dagster_event or entry.user_message) for entry in log)
    # The list of partitions follows by itself, its details when they are opened again.
    seen.ui.page.get_by_text(f"Missing ({missing - 1})", exact=True).wait_for()
    seen.ui.open_partition(seen.key(asset), partition)
    seen.ui.page.get_by_role("link", name=run.run_id[:8]).first.wait_for()
    seen.ui.page.get_by_text("Materialized", exact=True).first.wait_for()
    return seen.runs.last_materialisation(asset, [partition])


def missing_partitions(text: str) -> int:
    """How many partitions the list of them tells to be missing."""
    found = re.search(r"Missing \((\d+)\)", text)
    assert found, text
    return int(found[1])


def number(text: str) -> float:
    return float(text.replace(",", ""))


def test_the_groups_list_their_assets_and_the_graph_shows_the_main_way(seen: Seen) -> None:
    pipeline = seen.runs.pipeline
    stages = [stage for stage in GRAPH.stages if stage.applies(pipeline, pipeline.selection)]

    def wait_for_link(name: str) -> None:
        # Long names are cut in the middle; their links are whole.
        seen.ui.page.locator(f'a[href$="/{name}"]').first.wait_for()

    seen.ui.open_group(LOCATION, GROUP)
    for name in (
        "shards",
        "shard_index",
        *(stage.name for stage in stages if stage.step not in (ANALYSE, EVALUATE) and not stage.on_demand),
    ):
        wait_for_link(name)
    seen.ui.open_group(LOCATION, f"{GROUP}__analyses")
    # The first ones: of a long list the page has what is in sight.
    for name in sorted(stage.name for stage in stages if stage.step == ANALYSE)[:3]:
        wait_for_link(name)
    seen.ui.open_graph(LOCATION, GROUP)
    seen.wait_for_texts("embeddings", "centroids", "assignments", "duplicate_scores", "keep_masks")


def test_a_fit_launched_from_the_dialog_shows_its_numbers_and_its_curve(seen: Seen) -> None:
    event = launch_and_wait(seen, "centroids", "4")
    for name in ("k", "dimension", "empty_clusters", "seconds", "peak_memory_mib", "bytes"):
        shown = number(seen.ui.metadata(name).inner_text())
        assert shown == pytest.approx(event.metadata[name].value, rel=1e-6), name
    assert number(seen.ui.metadata("k").inner_text()) == 4
    picture = seen.ui.show_picture("convergence")
    assert picture.evaluate("image => image.naturalWidth") > 200
    assert picture.evaluate("image => image.clientWidth") > 200
    seen.ui.close_dialog()


def test_a_target_launched_from_the_dialog_shows_what_is_kept(seen: Seen) -> None:
    event = launch_and_wait(seen, "keep_masks", "keep=70%|6")
    items, kept = (number(seen.ui.metadata(name).inner_text()) for name in ("items", "kept"))
    assert items == sum(record["items"] for record in embedded(seen))
    assert kept / items == pytest.approx(0.7, abs=0.02)
    assert {"seconds", "peak_memory_mib"} <= event.metadata.keys()


def test_materialize_all_makes_everything_at_first_and_later_what_is_new(seen: Seen) -> None:
    before = seen.grown.last_record
    for runs in (seen.fresh, seen.grown):
        builder = runs.builder
        seen.ui.open_graph(LOCATION, builder.group)
        seen.wait_for_texts("embeddings", "centroids", "assignments")
        preview = seen.ui.materialise_group()
        # So it says of those that have none, and said it of the centroids.
        group = [asset for asset in builder.assets if builder.group_of(asset) == builder.group]
        assert preview.count("No partitions available") == sum(not asset.stage.dimensions for asset in group)

    seen.ui.page.goto("about:blank")  # A graph that is open asks and draws all the time.

    def ended() -> bool:
        return all(each.status.value != "REQUESTED" for each in seen.dagster.instance.get_backfills())

    wait_for(ended, what="the backfills", log=seen.dagster.log)
    for backfill in seen.dagster.instance.get_backfills():
        assert backfill.status.value == "COMPLETED_SUCCESS", backfill.error
    shards = ["s000000", "s000001"]
    assert seen.fresh.made_since(0) == {
        "items": shards,
        "embeddings": shards,
        "training_sample": [None],
        "centroids": ["3"],
        "assignments": ["3|s000000", "3|s000001"],
        "duplicate_scores": ["b0000|3"],
        "keep_masks": ["0.05|3"],
        "figures": ["3"],
        "manifests": ["0.05|3"],
        "galleries": ["0.05|3"],
    }
    # Of what was there nothing is embedded or clustered again.
    assert seen.grown.made_since(before) == {
        "items": ["s000001"],
        "embeddings": ["s000001"],
        "centroids": ["5"],
        "assignments": ["3|s000001", "5|s000000", "5|s000001"],
        "duplicate_scores": ["b0000|3", "b0000|5"],
        "figures": ["3", "5"],
        **{name: ["0.05|3", "0.05|5", "0.1|3", "0.1|5"] for name in ("keep_masks", "manifests", "galleries")},
    }
    for runs in (seen.fresh, seen.grown):
        assert find_wanted(runs.builder, runs.context).partitions == {}


def embedded(seen: Seen) -> list[dict[str, Any]]:
    return [record.details for record in pipeline_context(seen.runs.pipeline).index.require_all("embeddings").values()]


@pytest.mark.parametrize(
    ("asset", "partition", "picture"),
    [("figures", "6", "kept_by_epsilon"), ("galleries", "0.05|6", "largest_groups_of_duplicates")],
)
def test_pictures_of_a_partition_are_drawn_on_its_page(seen: Seen, asset: str, partition: str, picture: str) -> None:
    seen.ui.open_partition(seen.key(asset), partition)
    image = seen.ui.show_picture(picture)
    assert image.evaluate("image => image.naturalWidth") > 200
    seen.ui.close_dialog()


def test_the_lineage_of_an_asset_shows_what_it_is_made_from_and_what_is_made_of_it(seen: Seen) -> None:
    seen.ui.open_asset(seen.key("keep_masks"), "lineage")
    seen.wait_for_texts("duplicate_scores", "keep_masks", "manifests", "galleries")


def test_the_launchpad_describes_each_setting(seen: Seen) -> None:
    seen.ui.open_asset(seen.key("embeddings"), "partitions")
    seen.ui.open_launchpad()
    seen.ui.dialog.get_by_text("memory_mib?").wait_for()
    text = seen.text()
    for name, field in Compute.model_fields.items():
        # Which machines there are is no choice of a single run.
        assert (name in text and str(field.description) in text) == (name not in ON_A_CLUSTER)


def test_the_checks_tab_shows_each_check_with_its_result(seen: Seen) -> None:
    seen.ui.open_asset(seen.key("keep_masks"), "checks")
    names = check_names(seen, "keep_masks")
    assert len(names) > 1
    for name in set(names) - {UP_TO_DATE}:
        seen.ui.page.get_by_text(name, exact=True).first.click()
        seen.ui.page.get_by_text("Passed", exact=True).first.wait_for()
        seen.ui.page.get_by_text("failing_partitions", exact=True).first.wait_for()


def test_the_checks_tab_names_what_is_missing_and_the_job_that_makes_it(seen: Seen) -> None:
    key = dg.AssetCheckKey(dg.AssetKey(seen.key("galleries")), UP_TO_DATE)

    def evaluated() -> bool:
        found = seen.dagster.instance.event_log_storage.get_latest_asset_check_execution_by_key([key])
        return key in found and found[key].status.value == "FAILED"

    wait_for(evaluated, what="the sensor to look", log=seen.dagster.log)
    seen.ui.open_asset(seen.key("galleries"), "checks")
    seen.ui.page.get_by_text(UP_TO_DATE, exact=True).first.click()
    seen.ui.page.get_by_text(f"launch {GROUP}__refresh").first.wait_for()
    assert "galleries are stale or missing: 0.05|4 (missing)" in seen.text()


def check_names(seen: Seen, asset: str) -> list[str]:
    """The checks that each run of an asset evaluates."""
    builder = AssetBuilder(seen.runs.pipeline, GRAPH)
    return [spec.name for spec in check_specs(builder, next(each for each in builder.assets if str(each) == asset))]


def test_jobs_schedule_and_sensors_are_listed(seen: Seen) -> None:
    seen.ui.open("/jobs")
    seen.wait_for_texts(f"{GROUP}__refresh", f"{GROUP}__refit")
    seen.ui.open("/automation")
    seen.wait_for_texts("emoji__files", f"{GROUP}__automation", f"{GROUP}__{UP_TO_DATE}", f"{GROUP}__schedule")
