"""*Materialize all* of a pipeline's group: what the UI launches then, carried out by the daemon's own backfills."""

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster._daemon.backfill import execute_backfill_iteration

from semdedup_assets_tests.pipeline_runs import UNDRAWN, Partitions, PipelineRuns, event_of
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard

# Dagster's own, of its own names, where it looks for the roots of a backfill.
pytestmark = pytest.mark.filterwarnings("ignore:Function `AssetSelection.sources`:DeprecationWarning")

GROUP = "toy__precomputed"
MOST_ITERATIONS = 40
IN_PROCESS = {"execution": {"config": {"in_process": {}}}}

DEFINITIONS = """
import json
from pathlib import Path

from semdedup_assets.assets.pipeline import pipeline_definitions
from semdedup_assets.settings import Pipeline
from semdedup_assets_tests.pipeline_runs import UNDRAWN

settings = json.loads(Path(__file__).with_suffix(".json").read_text())
defs = pipeline_definitions(Pipeline.model_validate(settings), UNDRAWN)
"""


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[PipelineRuns]:
    """Two shards, observed, nothing made; runs are made in this process, as they are launched from the queue."""
    for seed in range(2):
        write_shard(tmp_path, f"{seed}", near_duplicates(seed))
    with dg.instance_for_test(synchronous_run_launcher=True) as instance:
        made = PipelineRuns(instance, vectors_settings(tmp_path, clustering={"k": [3], "buckets": 1}), UNDRAWN)
        made.observe()
        yield made


def anchored(graph: Any, keys: set[dg.AssetKey]) -> dg.AssetKey | None:
    """The asset whose partitions the dialog offers, as the UI finds it; None where it launches all partitions."""
    roots = [key for key in keys if graph.get(key).is_partitioned and not graph.get(key).parent_keys & keys]
    return min(roots) if len({graph.get(key).partitions_def for key in roots}) == 1 else None


def press(runs: PipelineRuns) -> Partitions:
    """Launch what the button does, with all partitions that the dialog offers; returns what was made, by asset."""
    backfill_id = uuid4().hex[:8]
    # Of a file of its own: Python loads one of the same name once.
    file = runs.folder / f"definitions_{backfill_id}.py"
    file.with_suffix(".json").write_text(json.dumps(runs.settings))
    file.write_text(DEFINITIONS)
    target = LoadableTargetOrigin(executable_path=sys.executable, python_file=str(file), attribute="defs")
    origins = [InProcessCodeLocationOrigin(target, location_name="toy")]
    before = runs.last_record
    with create_test_daemon_workspace_context(InProcessWorkspaceLoadTarget(origins), runs.instance) as workspace:
        graph = workspace.create_request_context().asset_graph
        keys = {key for key in graph.materializable_asset_keys if graph.get(key).group_name == GROUP}
        assert anchored(graph, keys) in (runs.key("embeddings"), runs.key("items"))
        backfill = PartitionBackfill.from_asset_partitions(
            backfill_id=backfill_id,
            asset_graph=graph,
            partition_names=runs.instance.get_dynamic_partitions("toy/shard"),
            asset_selection=sorted(keys),
            backfill_timestamp=0.0,
            tags={},
            dynamic_partitions_store=runs.instance,
            all_partitions=False,
            title=None,
            description=None,
            run_config=IN_PROCESS,
        )
        runs.instance.add_backfill(backfill)
        for _ in range(MOST_ITERATIONS):
            assert not any(execute_backfill_iteration(workspace, logging.getLogger("backfill")))
            for run in runs.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED])):
                runs.instance.launch_run(run.run_id, workspace.create_request_context())
            found = runs.instance.get_backfill(backfill_id)
            if found is None or found.status != BulkActionStatus.REQUESTED:
                break
    assert found is not None
    assert found.status == BulkActionStatus.COMPLETED_SUCCESS
    return made_since(runs, before)


def made_since(runs: PipelineRuns, record_id: int) -> Partitions:
    made: Partitions = {}
    for asset in map(str, runs.builder.automatic):
        versions = [event_of(record) for record in runs.materialisations(asset, record_id)]
        keys = {event.partition for event in versions if "seconds" in event.metadata and "reused" not in event.metadata}
        if keys:
            made[asset] = sorted(keys, key=str)
    return made


def test_what_the_button_makes(runs: PipelineRuns) -> None:
    shards = ["s000000", "s000001"]
    after_assignments = {
        "duplicate_scores": ["b0000|3"],
        "keep_masks": ["0.05|3"],
        "manifests": ["0.05|3"],
        "galleries": ["0.05|3"],
    }
    assert press(runs) == {
        "items": shards,
        "embeddings": shards,
        "training_sample": [None],
        "centroids": ["3"],
        "assignments": [f"3|{shard}" for shard in shards],
        **after_assignments,
    }
    assert runs.stale() == {}
    # A new shard: nothing of the old is clustered again.
    write_shard(runs.folder, "9", near_duplicates(9))
    runs.observe()
    new = ["s000002"]
    assert press(runs) == {"items": new, "embeddings": new, "assignments": ["3|s000002"], **after_assignments}
    assert runs.stale() == {}
    # A new k and a new epsilon make only themselves.
    more = runs.changed(clustering={"k": [3, 5]}, epsilons=["0.05", "0.1"])
    made = press(more)
    assert {"items", "embeddings", "training_sample"}.isdisjoint(made)
    assert made["centroids"] == ["5"]
    assert made["assignments"] == ["5|s000000", "5|s000001", "5|s000002"]
    assert made["keep_masks"] == made["manifests"] == ["0.05|5", "0.1|3", "0.1|5"]
    assert more.stale() == {}
    # A new selection.
    selections = more.changed(selections={"paper": {}, "simple": {"keep": "easy"}})
    made = press(selections)
    assert made["simple/keep_masks"] == ["0.05|3", "0.05|5", "0.1|3", "0.1|5"]
    assert {"centroids", "assignments", "paper/keep_masks"}.isdisjoint(made)
    assert selections.stale() == {}
