"""What the automation conditions ask for, tick by tick, and what the schedule and the jobs do."""

import os
from pathlib import Path
from typing import Any, get_args

import dagster as dg
import numpy as np
import pytest

from semdedup_assets.analysis_settings import OnDemand
from semdedup_assets.assets.builder import AssetBuilder
from semdedup_assets.assets.pipeline import pipeline_definitions
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets_tests.pipeline_runs import Partitions, PipelineRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard

BUCKETS = ["b0000|3", "b0001|3"]
AFTER_ASSIGNMENTS = [
    {"duplicate_scores": BUCKETS},
    {"keep_masks": ["0.05|3"]},
    {"manifests": ["0.05|3"], "galleries": ["0.05|3"]},
]
TICKS_TO_SETTLE = 12


class Ticks:
    """The daemon's looks at a pipeline, each followed by runs of what it asks for."""

    def __init__(self, runs: PipelineRuns) -> None:
        self.runs = runs
        self._cursor = None

    def tick(self) -> Partitions:
        """What one look asks for."""
        result = dg.evaluate_automation_conditions(self.runs.definitions, self.runs.instance, cursor=self._cursor)
        self._cursor = result.cursor
        names = [str(asset) for asset in self.runs.builder.assets]
        requested = {name: result.get_requested_partitions(self.runs.key(name)) for name in names}
        return {name: sorted(partitions, key=str) for name, partitions in requested.items() if partitions}

    def settle(self) -> list[Partitions]:
        """What each look asks for until one asks for nothing, all of it being made in between."""
        self.runs.observe()
        waves = []
        for _ in range(TICKS_TO_SETTLE):
            wave = self.tick()
            if not wave:
                return waves
            waves.append(wave)
            self.make(wave)
        raise AssertionError(waves)

    def make(self, wave: Partitions) -> None:
        for asset, partitions in wave.items():
            for partition in partitions:
                self.runs.materialise(asset, *([] if partition is None else [partition]))


@pytest.fixture
def ticks(runs: PipelineRuns) -> Ticks:
    """Three shards, everything made, as a first look has found."""
    found = Ticks(runs)
    assert found.settle() == []
    return found


@pytest.mark.slow
def test_all_that_is_missing_is_made_in_order_each_partition_once(unmade: PipelineRuns) -> None:
    ticks = Ticks(unmade)
    shards = ["s000000", "s000001", "s000002"]
    assert ticks.settle() == [
        {"items": shards, "embeddings": shards},
        {"training_sample": [None]},
        {"centroids": ["3"]},
        {"assignments": ["3|s000000", "3|s000001", "3|s000002"]},
        *AFTER_ASSIGNMENTS,
    ]
    assert ticks.settle() == []


def test_a_new_and_a_changed_shard_are_followed_by_what_depends_on_them(ticks: Ticks) -> None:
    write_shard(ticks.runs.folder, "9", near_duplicates(9))
    write_shard(ticks.runs.folder, "1", near_duplicates(11))
    assert ticks.settle() == [
        {"items": ["s000001", "s000003"], "embeddings": ["s000001", "s000003"]},
        {"assignments": ["3|s000001", "3|s000003"]},
        *AFTER_ASSIGNMENTS,
    ]


def test_the_same_bytes_again_are_followed_by_nothing(ticks: Ticks) -> None:
    os.utime(ticks.runs.folder / "source" / "1.npy", ns=(1, 1))
    assert ticks.settle() == [{"items": ["s000001"], "embeddings": ["s000001"]}]


def test_a_vanished_shard_leaves_without_anything_being_embedded(ticks: Ticks) -> None:
    (ticks.runs.folder / "source" / "2.npy").unlink()
    assert ticks.settle() == AFTER_ASSIGNMENTS


@pytest.mark.slow
def test_a_refit_is_followed_by_the_centroids_and_all_below(ticks: Ticks) -> None:
    write_shard(ticks.runs.folder, "9", near_duplicates(9))
    ticks.settle()
    ticks.runs.materialise("training_sample", config={"refit": True})
    shards = [f"3|s00000{index}" for index in range(4)]
    assert ticks.settle() == [{"centroids": ["3"]}, {"assignments": shards}, *AFTER_ASSIGNMENTS]


@pytest.mark.slow
def test_another_model_makes_everything_anew_in_order(ticks: Ticks) -> None:
    ticks.runs = ticks.runs.changed(vectors="float32")
    waves = ticks.settle()
    assert [sorted(wave) for wave in waves[:4]] == [
        ["embeddings"],
        ["training_sample"],
        ["centroids"],
        ["assignments"],
    ]
    assert waves[4:] == AFTER_ASSIGNMENTS


def test_what_a_refresh_has_made_is_not_asked_for_again(ticks: Ticks) -> None:
    write_shard(ticks.runs.folder, "9", near_duplicates(9))
    ticks.runs.refresh()
    assert ticks.settle() == []


def test_while_one_shard_is_embedded_the_others_wait_to_be_assigned_together(ticks: Ticks) -> None:
    for seed in (8, 9):
        write_shard(ticks.runs.folder, f"{seed}", near_duplicates(seed))
    ticks.runs.observe()
    both = ["s000003", "s000004"]
    assert ticks.tick() == {"items": both, "embeddings": both}
    ticks.make({"items": both, "embeddings": ["s000003"]})
    under_way = ticks.runs.instance.create_run_for_job(
        ticks.runs.definitions.resolve_implicit_global_asset_job_def(),
        asset_selection=frozenset({ticks.runs.key("embeddings")}),
        status=dg.DagsterRunStatus.STARTED,
    )
    assert ticks.tick() == {}
    ticks.runs.instance.report_run_canceled(under_way)
    ticks.make({"embeddings": ["s000004"]})
    assert ticks.tick() == {"assignments": ["3|s000003", "3|s000004"]}


def test_too_many_broken_items_hold_back_what_follows(ticks: Ticks) -> None:
    vectors = near_duplicates(1)
    vectors[:30] = np.nan
    write_shard(ticks.runs.folder, "1", vectors)
    ticks.runs.observe()
    assert ticks.tick() == {"items": ["s000001"], "embeddings": ["s000001"]}
    ticks.make({"items": ["s000001"]})
    with pytest.raises(dg.Failure, match=r"skipped_share: 1 of toy.s shards .*s000001"):
        ticks.make({"embeddings": ["s000001"]})
    assert ticks.tick() == {}
    write_shard(ticks.runs.folder, "1", near_duplicates(11))
    assert ticks.settle()[1] == {"assignments": ["3|s000001"]}


def test_what_is_made_on_demand_is_never_asked_for(ticks: Ticks) -> None:
    on_demand = {str(asset) for asset in ticks.runs.builder.assets if asset.stage.on_demand}
    graph = ticks.runs.definitions.resolve_asset_graph()
    for asset in ticks.runs.builder.assets:
        condition = graph.get(ticks.runs.key(str(asset))).automation_condition
        assert (condition is None) == (str(asset) in on_demand)


def test_every_stage_that_is_made_on_demand_can_be_followed() -> None:
    assert {stage.name for stage in GRAPH.stages if stage.on_demand} == set(get_args(OnDemand))


def test_what_is_followed_is_made_with_all_that_it_is_made_from(tmp_path: Path) -> None:
    settings = vectors_settings(tmp_path) | {"analyses": {"follow": ["rule_comparison"]}}
    builder = AssetBuilder(Pipeline.model_validate(settings), GRAPH)
    named = {str(asset) for asset in builder.automatic}
    assert "rule_comparison" in named
    assert {"estimate", "removed_items"}.isdisjoint(named)
    graph = pipeline_definitions(builder.pipeline).resolve_asset_graph()
    for asset in builder.assets:
        assert (graph.get(builder.key(asset)).automation_condition is None) == (str(asset) not in named)


def test_while_a_refresh_runs_nothing_is_asked_for(ticks: Ticks) -> None:
    write_shard(ticks.runs.folder, "9", near_duplicates(9))
    ticks.runs.observe()
    under_way = ticks.runs.instance.create_run_for_job(
        ticks.runs.definitions.resolve_job_def("toy__precomputed__refresh"), status=dg.DagsterRunStatus.STARTED
    )
    assert ticks.tick() == {}
    ticks.runs.instance.report_run_canceled(under_way)
    assert ticks.tick() == {"items": ["s000003"], "embeddings": ["s000003"]}


def test_each_named_selection_is_asked_for(ticks: Ticks) -> None:
    ticks.runs = ticks.runs.changed(selections={"paper": {}, "simple": {"keep": "easy"}})
    # The paper's selection is in the store already: its runs find it so.
    first = {f"{name}/duplicate_scores": BUCKETS for name in ("paper", "simple")}
    assert ticks.settle()[0] == first
    assert ticks.runs.stale() == {}


def test_one_click_refits(ticks: Ticks) -> None:
    write_shard(ticks.runs.folder, "9", near_duplicates(9))
    ticks.settle()
    sample = ticks.runs.data_version("training_sample")
    job = ticks.runs.definitions.resolve_job_def("toy__precomputed__refit")
    assert job.execute_in_process(instance=ticks.runs.instance).success
    assert ticks.runs.data_version("training_sample") != sample
    assert ticks.runs.stale() == {"centroids": ["3"]}


def test_a_schedule_exists_where_the_settings_name_one_and_skips_while_a_run_is_under_way(tmp_path: Path) -> None:
    with dg.instance_for_test() as instance:
        expect_the_schedule_to_wait(PipelineRuns(instance, vectors_settings(tmp_path)))


def expect_the_schedule_to_wait(runs: PipelineRuns) -> None:
    assert not runs.definitions.get_repository_def().schedule_defs
    definitions = runs.changed(refresh={"schedule": "0 3 * * *"}).definitions
    (schedule,) = definitions.get_repository_def().schedule_defs
    assert schedule.cron_schedule == "0 3 * * *"
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING

    def evaluate() -> Any:
        return schedule.evaluate_tick(dg.build_schedule_context(instance_ref=runs.instance.get_ref()))

    assert len(evaluate().run_requests or []) == 1
    runs.instance.create_run_for_job(
        definitions.resolve_implicit_global_asset_job_def(),
        asset_selection=frozenset({runs.key("centroids")}),
        status=dg.DagsterRunStatus.STARTED,
    )
    assert not evaluate().run_requests
    assert "is under way" in str(evaluate().skip_message)
