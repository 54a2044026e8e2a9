"""What the automation's looks ask for, and what the schedule and the jobs do."""

import os
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, get_args

import dagster as dg
import numpy as np
import pytest

from semdedup_assets.analysis_settings import OnDemand
from semdedup_assets.assets import looks as looks_module
from semdedup_assets.assets.automation import REASON_TAG, find_wanted, held_back
from semdedup_assets.assets.builder import AssetBuilder
from semdedup_assets.assets.looks import Look
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets_tests.pipeline_runs import Partitions, PipelineRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard

AFTER_ASSIGNMENTS: Partitions = {
    "duplicate_scores": ["b0000|3", "b0001|3"],
    "keep_masks": ["0.05|3"],
    "manifests": ["0.05|3"],
    "galleries": ["0.05|3"],
}
JOB, SENSOR = "toy__precomputed__refresh", "toy__precomputed__automation"
NOTHING = "everything is up to date"
# More runs than that after one change are too many.
MOST_RUNS = 3


class Looks:
    """The daemon's looks at a pipeline."""

    def __init__(self, runs: PipelineRuns) -> None:
        self.runs = runs

    def tick(self, cursor: str | None = None) -> Any:
        """What an evaluation of the sensor gives, after the one that left a cursor."""
        repository = self.runs.definitions.get_repository_def()
        sensor, instance = repository.get_sensor_def(SENSOR), self.runs.instance
        with dg.build_sensor_context(instance=instance, repository_def=repository, cursor=cursor) as context:
            found = sensor.evaluate_tick(context)
        # As the daemon does.
        for event in found.asset_events:
            instance.report_runless_asset_event(event)
        return found

    def look(self) -> dg.RunRequest | str:
        """The run that one look asks for, or why it asks for none."""
        found = self.tick()
        requests = list(found.run_requests or [])
        assert len(requests) <= 1
        return requests[0] if requests else str(found.skip_message)

    def request(self) -> dg.RunRequest:
        found = self.look()
        assert isinstance(found, dg.RunRequest), found
        return found

    def make(self, request: dg.RunRequest) -> bool:
        """Run what a look asked for, as the daemon does; returns whether it succeeded."""
        job = self.runs.definitions.resolve_job_def(JOB)
        return job.execute_in_process(
            instance=self.runs.instance, tags=dict(request.tags), raise_on_error=False
        ).success

    def settle(self) -> list[Partitions]:
        """What each run makes until a look asks for none."""
        made = list[Partitions]()
        while isinstance(request := self.look(), dg.RunRequest):
            before = self.runs.last_record
            assert self.make(request)
            made.append(self.runs.made_since(before))
            assert len(made) <= MOST_RUNS
        assert request == NOTHING
        return made


@pytest.fixture
def looks(runs: PipelineRuns) -> Looks:
    """Three shards, everything made."""
    return Looks(runs)


def test_all_that_is_missing_is_made_in_one_run(unmade: PipelineRuns) -> None:
    looks, shards = Looks(unmade), ["s000000", "s000001", "s000002"]
    assert looks.settle() == [
        {
            "items": shards,
            "embeddings": shards,
            "training_sample": [None],
            "centroids": ["3"],
            "assignments": [f"3|{shard}" for shard in shards],
            **AFTER_ASSIGNMENTS,
        }
    ]
    assert unmade.stale() == {}


def test_a_new_and_a_changed_shard_are_followed_by_what_depends_on_them(looks: Looks) -> None:
    assert looks.look() == NOTHING
    write_shard(looks.runs.folder, "9", near_duplicates(9))
    write_shard(looks.runs.folder, "1", near_duplicates(11))
    request = looks.request()
    both = ["s000001", "s000003"]
    assert request.tags[REASON_TAG].startswith("items: 2 missing or stale (s000001, s000003); embeddings: 2")
    before = looks.runs.last_record
    assert looks.make(request)
    assert looks.runs.made_since(before) == {
        "items": both,
        "embeddings": both,
        "assignments": [f"3|{shard}" for shard in both],
        **AFTER_ASSIGNMENTS,
    }
    assert looks.look() == NOTHING


def test_the_store_is_looked_at_where_something_has_left_a_trace_and_once_an_hour(looks: Looks) -> None:
    last = Look.parse(looks.tick().cursor)
    assert last is not None
    assert last.found == NOTHING

    def earlier(minutes: int) -> str:
        return replace(last, at=last.at - 60 * minutes).cursor

    assert looks.tick(earlier(59)).skip_message == f"nothing has changed since the last look: {NOTHING}"
    assert looks.tick(earlier(61)).skip_message == NOTHING
    write_shard(looks.runs.folder, "9", near_duplicates(9))
    # Looks take a small share of the time, whatever changes.
    assert looks.tick(replace(last, seconds=60.0).cursor).run_requests == []
    assert len(looks.tick(earlier(59)).run_requests) == 1


def test_what_a_look_answered_too_late_is_answered_by_the_next_tick(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = Look.parse(looks.tick().cursor)
    assert last is not None
    before = replace(last, seconds=0.0).cursor
    write_shard(looks.runs.folder, "9", near_duplicates(9))
    monkeypatch.setattr(looks_module, "_DAGSTER_WAITS_SECONDS", 0.0)
    # Dagster knows the cursor of what it waited for alone.
    lost, again = looks.tick(before), looks.tick(before)
    assert again.run_requests == lost.run_requests
    assert len(again.run_requests) == 1
    assert looks.tick(again.cursor).run_requests == []


def test_a_refit_that_is_under_way_holds_the_automation_back(looks: Looks) -> None:
    refit = looks.runs.definitions.resolve_job_def("toy__precomputed__refit")
    # As the page of a job launches it: the run names no assets.
    run = looks.runs.instance.create_run_for_job(refit, status=dg.DagsterRunStatus.STARTED)
    assert run.asset_selection is None
    assert looks.tick().skip_message == f"run {run.run_id} of the pipeline is under way"


def test_the_same_bytes_again_are_followed_by_nothing(looks: Looks) -> None:
    os.utime(looks.runs.folder / "source" / "1.npy", ns=(1, 1))
    assert looks.settle() == [{"items": ["s000001"], "embeddings": ["s000001"]}]


def test_a_vanished_shard_leaves_without_anything_being_embedded(looks: Looks) -> None:
    (looks.runs.folder / "source" / "2.npy").unlink()
    assert looks.settle() == [AFTER_ASSIGNMENTS]


def test_a_source_without_files_is_said_to_have_none(looks: Looks) -> None:
    for file in (looks.runs.folder / "source").iterdir():
        file.unlink()
    assert "the source has no file" in str(looks.look())


@pytest.mark.slow
def test_a_refit_is_followed_by_the_centroids_and_all_below(looks: Looks) -> None:
    write_shard(looks.runs.folder, "9", near_duplicates(9))
    looks.settle()
    looks.runs.materialise("training_sample", config={"refit": True})
    shards = [f"3|s00000{index}" for index in range(4)]
    assert looks.settle() == [{"centroids": ["3"], "assignments": shards, **AFTER_ASSIGNMENTS}]


@pytest.mark.parametrize(
    ("changes", "made"),
    [
        (
            {"epsilons": ["0.05", "0.1"]},
            {"keep_masks": ["0.1|3"], "manifests": ["0.1|3"], "galleries": ["0.1|3", "0.05|3"]},
        ),
        ({"manifests": ["keep_lists"]}, {"manifests": ["0.05|3"]}),
        ({"clustering": {"k": [3, 4]}}, {"centroids": ["4"], "assignments": [f"4|s00000{n}" for n in range(3)]}),
    ],
)
def test_other_settings_are_noticed(looks: Looks, changes: dict[str, Any], made: Partitions) -> None:
    looks.runs = looks.runs.changed(**changes)
    (found,) = looks.settle()
    for asset, partitions in made.items():
        assert set(found[asset]) <= set(partitions)
        assert partitions[0] in found[asset]
    assert "embeddings" not in found
    assert "training_sample" not in found


@pytest.mark.slow
def test_another_precision_makes_everything_anew_in_one_run(looks: Looks) -> None:
    looks.runs = looks.runs.changed(vectors="float32")
    (made,) = looks.settle()
    assert list(made) == ["embeddings", "training_sample", "centroids", "assignments", *AFTER_ASSIGNMENTS]


def test_a_lost_result_is_made_again(looks: Looks) -> None:
    record = looks.runs.context.index.require_all("keep_masks").popitem()[1]
    Path(record.file(next(iter(record.files))).path).unlink()
    (made,) = looks.settle()
    assert made["keep_masks"] == ["0.05|3"]
    assert "duplicate_scores" not in made


def test_what_a_refresh_has_made_is_not_asked_for_again(looks: Looks) -> None:
    write_shard(looks.runs.folder, "9", near_duplicates(9))
    looks.runs.refresh()
    assert looks.look() == NOTHING


def test_too_many_broken_items_fail_once_an_hour_until_the_file_is_another(looks: Looks) -> None:
    vectors = near_duplicates(1)
    vectors[:30] = np.nan
    write_shard(looks.runs.folder, "1", vectors)
    assert not looks.make(looks.request())
    waiting = str(looks.look())
    assert "failed; the next is at" in waiting
    assert f"or when you launch {JOB}; assignments: 1 missing or stale (3|s000001)" in waiting
    found, builder = find_wanted(looks.runs.builder, looks.runs.context), looks.runs.builder
    end = datetime.now(timezone.utc) + timedelta(hours=1)
    assert held_back(builder, looks.runs.instance, found, end - timedelta(minutes=1)) is not None
    assert held_back(builder, looks.runs.instance, found, end) is None
    write_shard(looks.runs.folder, "1", near_duplicates(11))
    (made,) = looks.settle()
    assert made["assignments"] == ["3|s000001"]


def test_what_failed_by_hand_is_not_repeated_at_once_but_under_other_settings(looks: Looks) -> None:
    vectors = near_duplicates(1)
    vectors[:30] = np.nan
    write_shard(looks.runs.folder, "1", vectors)
    looks.tick()
    assert not looks.make(dg.RunRequest())
    assert "failed; the next is at" in str(looks.look())
    looks.runs = looks.runs.changed(refresh={"max_excluded": 0.5})
    looks.request()


def test_a_source_most_of_whose_files_are_away_is_a_reason_to_wait(looks: Looks) -> None:
    for name in ("0.npy", "1.npy"):
        (looks.runs.folder / "source" / name).unlink()
    assert "2 of the 3 files" in str(looks.look())


def test_a_run_that_makes_nothing_of_what_is_wanted_is_not_repeated_at_once(looks: Looks) -> None:
    write_shard(looks.runs.folder, "9", near_duplicates(9))
    request = looks.request()
    run = looks.runs.instance.create_run_for_job(
        looks.runs.definitions.resolve_job_def(JOB), tags=dict(request.tags), status=dg.DagsterRunStatus.STARTED
    )
    looks.runs.instance.report_dagster_event(
        dg.DagsterEvent(dg.DagsterEventType.RUN_SUCCESS.value, job_name=JOB), run.run_id
    )
    assert "made nothing of it; the next is at" in str(looks.look())
    write_shard(looks.runs.folder, "8", near_duplicates(8))
    looks.request()


def test_what_is_made_on_demand_is_never_asked_for(looks: Looks) -> None:
    builder = looks.runs.builder
    on_demand = {str(asset) for asset in builder.assets if asset.stage.on_demand}
    assert {"estimate"} <= on_demand
    assert on_demand.isdisjoint(map(str, builder.automatic))
    assert looks.look() == NOTHING


def test_every_stage_that_is_made_on_demand_can_be_followed() -> None:
    assert {stage.name for stage in GRAPH.stages if stage.on_demand} == set(get_args(OnDemand))


def test_what_is_followed_is_made_with_all_that_it_is_made_from(tmp_path: Path) -> None:
    settings = vectors_settings(tmp_path) | {"analyses": {"follow": ["rule_comparison"]}}
    builder = AssetBuilder(Pipeline.model_validate(settings), GRAPH)
    named = {str(asset) for asset in builder.automatic}
    assert "rule_comparison" in named
    assert {"estimate", "removed_items"}.isdisjoint(named)


def test_while_the_pipeline_is_made_nothing_is_asked_for(looks: Looks) -> None:
    write_shard(looks.runs.folder, "9", near_duplicates(9))
    instance, definitions = looks.runs.instance, looks.runs.definitions
    whole = definitions.resolve_implicit_global_asset_job_def()
    for job, asset in ((definitions.resolve_job_def(JOB), None), (whole, "assignments"), (whole, "estimate")):
        selection = None if asset is None else frozenset({looks.runs.key(asset)})
        run = instance.create_run_for_job(job, asset_selection=selection, status=dg.DagsterRunStatus.STARTED)
        if asset == "estimate":
            looks.request()
        else:
            assert looks.look() == f"run {run.run_id} of the pipeline is under way"
        instance.report_run_canceled(run)


def test_each_named_selection_is_asked_for(looks: Looks) -> None:
    looks.runs = looks.runs.changed(selections={"paper": {}, "simple": {"keep": "easy"}})
    (made,) = looks.settle()
    # The paper's selection is in the store already.
    assert {name for name in made if "/" not in name} == set()
    assert {"simple/duplicate_scores", "simple/manifests"} <= made.keys()
    assert "paper/duplicate_scores" not in made
    assert looks.runs.stale() == {}


def test_one_click_refits(looks: Looks) -> None:
    write_shard(looks.runs.folder, "9", near_duplicates(9))
    looks.settle()
    sample = looks.runs.data_version("training_sample")
    job = looks.runs.definitions.resolve_job_def("toy__precomputed__refit")
    assert job.execute_in_process(instance=looks.runs.instance).success
    assert looks.runs.data_version("training_sample") != sample
    assert looks.runs.stale() == {"centroids": ["3"]}


def test_a_schedule_exists_where_the_settings_name_one_and_skips_while_a_run_is_under_way(tmp_path: Path) -> None:
    with dg.instance_for_test() as instance:
        expect_the_schedule_to_wait(PipelineRuns(instance, vectors_settings(tmp_path)))


def expect_the_schedule_to_wait(runs: PipelineRuns) -> None:
    assert not runs.definitions.get_repository_def().schedule_defs
    definitions = runs.changed(refresh={"schedule": "0 3 * * *"}).definitions
    repository = definitions.get_repository_def()
    (schedule,) = repository.schedule_defs
    assert schedule.cron_schedule == "0 3 * * *"
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING

    def evaluate() -> Any:
        instance = runs.instance.get_ref()
        return schedule.evaluate_tick(dg.build_schedule_context(instance_ref=instance, repository_def=repository))

    assert len(evaluate().run_requests or []) == 1
    runs.instance.create_run_for_job(
        definitions.resolve_implicit_global_asset_job_def(),
        asset_selection=frozenset({runs.key("centroids")}),
        status=dg.DagsterRunStatus.STARTED,
    )
    assert not evaluate().run_requests
    assert "is under way" in str(evaluate().skip_message)
