"""What is stale or missing is shown without a run, soon after a change, once, and only where something has changed."""

import json
import time
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg
import pytest

from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets.storage.results import damaged
from semdedup_assets_tests.pipeline_runs import UNDRAWN, PipelineRuns
from semdedup_assets_tests.toy_source import near_duplicates, write_shard

SENSOR = "toy__precomputed__up_to_date"
REMEDY = "launch toy__precomputed__refresh"
BELOW = {"assignments", "duplicate_scores", "keep_masks", "manifests", "galleries"}


@dataclass
class Looks:
    """The sensor's ticks on a pipeline, some minutes apart."""

    runs: PipelineRuns
    cursor: str | None = None

    def tick(self, *, seconds_later: float = 1000) -> dict[str, dg.AssetCheckEvaluation]:
        """What a tick reports, by asset, noted as the daemon notes it."""
        if self.cursor is not None:
            look = json.loads(self.cursor)
            self.cursor = json.dumps({**look, "at": look["at"] - seconds_later})
        data = self.data()
        self.cursor = data.cursor or self.cursor
        for event in data.asset_events:
            self.runs.instance.report_runless_asset_event(event)
        found = [event for event in data.asset_events if isinstance(event, dg.AssetCheckEvaluation)]
        return {event.asset_key.path[-1]: event for event in found}

    def data(self) -> Any:
        repository = self.runs.definitions.get_repository_def()
        context = dg.build_sensor_context(
            self.runs.instance, self.cursor, repository_def=repository, sensor_name=SENSOR
        )
        return repository.get_sensor_def(SENSOR).evaluate_tick(context)

    def change(self, **settings: Any) -> None:
        """Other settings, in a code location that was loaded again."""
        self.runs = self.runs.changed(**settings)


@pytest.fixture
def looks(runs: PipelineRuns) -> Looks:
    """A pipeline of which everything is made, and known to be up to date."""
    found = Looks(runs)
    first = found.tick()
    # The refresh has reported the others itself.
    assert first == {}
    assert found.tick() == {}
    return found


def failing(found: dict[str, dg.AssetCheckEvaluation]) -> dict[str, set[str]]:
    """The reasons of the partitions that are not up to date, by asset."""
    rows = {name: each.metadata["failing"].value.records for name, each in found.items() if not each.passed}
    return {name: {row.data["measured"] for row in table} for name, table in rows.items()}


def assert_mended_by_a_refresh(looks: Looks) -> None:
    looks.runs.refresh()
    # The refresh reports the checks of what it makes.
    assert looks.tick() == {}
    assert looks.tick() == {}
    keys = [dg.AssetCheckKey(looks.runs.key(str(asset)), "up_to_date") for asset in looks.runs.builder.automatic]
    latest = looks.runs.instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    assert {record.status.value for record in latest.values()} == {"SUCCEEDED"}
    assert len(latest) == len(keys)


def test_other_vectors_make_all_stale_with_the_setting_and_a_refresh_mends_it(looks: Looks) -> None:
    looks.change(vectors="float32")
    found = looks.tick(seconds_later=0)
    reasons = failing(found)
    assert reasons["embeddings"] == {"settings changed: vectors was float16, is float32"}
    assert reasons["assignments"] == {"made from what is stale: embeddings, centroids"}
    assert reasons.keys() == {"embeddings", "training_sample", "centroids", *BELOW}
    embeddings = found["embeddings"]
    assert embeddings.severity == dg.AssetCheckSeverity.WARN
    description = str(embeddings.description).replace("\\", "")
    assert description.startswith("up_to_date: 3 of toy's 3 embeddings are stale or missing: s000000 (settings changed")
    assert description.endswith(REMEDY)
    assert looks.tick() == {}
    assert_mended_by_a_refresh(looks)


def test_a_setting_that_is_changed_back_is_as_before(looks: Looks) -> None:
    looks.change(epsilons=["0.05", "0.1"])
    assert failing(looks.tick(seconds_later=0)) == {
        "keep_masks": {"missing"},
        "manifests": {"missing"},
        "galleries": {"missing"},
    }
    looks.change(epsilons=["0.05"])
    found = looks.tick(seconds_later=0)
    assert found.keys() == {"keep_masks", "manifests", "galleries"}
    assert failing(found) == {}


def test_figures_of_fewer_epsilons_are_stale(runs: PipelineRuns) -> None:
    looks = Looks(runs.with_figures)
    looks.runs.refresh()
    assert looks.tick() == {}
    looks.change(epsilons=["0.05", "0.1"])
    assert "epsilons" in next(iter(failing(looks.tick())["figures"]))


def test_a_new_and_a_changed_shard_are_followed_to_the_manifests(looks: Looks) -> None:
    write_shard(looks.runs.folder, "3", near_duplicates(3))
    write_shard(looks.runs.folder, "1", near_duplicates(7))
    assert looks.tick() == {}  # The files have not been looked at.
    looks.runs.observe()
    found = looks.tick()
    assert failing(found)["embeddings"] == {"missing", "changed since: shards"}
    # The sample is frozen: new data make neither it nor the centroids stale.
    assert failing(found).keys() == {"items", "embeddings", *BELOW}
    assert found["embeddings"].metadata["partitions"].value == 4
    assert_mended_by_a_refresh(looks)


def test_a_column_that_is_asked_for_makes_no_vector_stale(looks: Looks) -> None:
    looks.change(source={**looks.runs.settings["source"], "columns": {"quality": "float"}})
    assert failing(looks.tick()).keys() == {"items", "manifests", "galleries"}


def test_a_damaged_result_is_named_once_it_was_set_aside(looks: Looks) -> None:
    index = looks.runs.context.index
    record = index.records("keep_masks").popitem()[1]
    damaged(record.location, "some bytes differ")
    found = failing(looks.tick())
    assert found["keep_masks"] == {"damaged, and set aside"}
    assert found["manifests"] == {"what it is made from is missing"}
    assert_mended_by_a_refresh(looks)


def test_what_nobody_asked_for_is_not_missing_and_goes_stale_once_made(unmade: PipelineRuns) -> None:
    looks = Looks(replace(unmade, graph=StageGraph((*UNDRAWN.stages, GRAPH["outliers"]))))
    assert looks.data().skip_message.endswith("observe toy/shards first")
    looks.runs.observe()
    found = looks.tick()
    assert found.keys() == {str(asset) for asset in looks.runs.builder.automatic}
    assert failing(found)["embeddings"] == {"missing"}
    looks.runs.refresh()
    looks.runs.materialise("outliers", "3")
    assert last_of(looks, "outliers").passed  # by its run
    assert looks.tick() == {}
    looks.change(vectors="float32")
    found = looks.tick()
    assert REMEDY not in str(found["outliers"].description)
    assert "materialise toy/precomputed/outliers" in str(found["outliers"].description).replace("\\", "")


def test_an_excluded_shard_is_named_and_holds_nothing_back(unmade: PipelineRuns) -> None:
    (unmade.folder / "source" / "1.npy").write_bytes(b"\x93NUMPY but not really")
    looks = Looks(unmade)
    looks.runs.refresh()
    latest = last_of(looks, "embeddings")
    assert not latest.passed
    assert "excluded" in str(latest.description)
    assert last_of(looks, "assignments").passed
    assert looks.tick() == {}


def last_of(looks: Looks, asset: str) -> dg.AssetCheckEvaluation:
    key = dg.AssetCheckKey(looks.runs.key(asset), "up_to_date")
    record = looks.runs.instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    assert record.event is not None
    assert record.event.dagster_event is not None
    return record.event.dagster_event.asset_check_evaluation_data


def test_records_are_read_only_where_something_has_changed(looks: Looks) -> None:
    def looked() -> bool:
        return "nothing has changed" not in str(looks.data().skip_message)

    assert not looked()
    assert not looked()
    looks.runs.instance.report_runless_asset_event(dg.AssetMaterialization(looks.runs.key("manifests"), partition="x"))
    # A moment after the last look it is too soon, whatever has changed.
    looks.cursor = json.dumps({**json.loads(str(looks.cursor)), "at": time.time(), "seconds": 1.0})
    assert not looked()
    looks.tick(seconds_later=100)
    assert not looked()
    # What another program does to an object store is seen within the hour.
    looks.cursor = json.dumps({**json.loads(str(looks.cursor)), "at": time.time() - 3700})
    assert looked()


def test_a_cursor_of_another_version_is_as_none(looks: Looks) -> None:
    looks.cursor = '{"something": "else"}'
    assert looks.data().skip_message == "all is as it was when it was last looked at"
