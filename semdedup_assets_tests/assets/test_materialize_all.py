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

from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.storage.results import RECORD
from semdedup_assets_tests.pipeline_runs import UNDRAWN, Partitions, PipelineRuns, event_of
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard

# Dagster's own, of its own names, where it looks for the roots of a backfill.
pytestmark = pytest.mark.filterwarnings("ignore:Function `AssetSelection.sources`:DeprecationWarning")

GROUP = "toy__precomputed"
MOST_ITERATIONS = 40
# Each asset more is a run more.
TO_MANIFESTS = StageGraph(tuple(stage for stage in UNDRAWN.stages if stage.name not in ("estimate", "galleries")))
IN_PROCESS = {"execution": {"config": {"in_process": {}}}}

DEFINITIONS = """
import json
from pathlib import Path

from semdedup_assets.assets.pipeline import pipeline_definitions
from semdedup_assets.settings import Pipeline
from semdedup_assets_tests.assets.test_materialize_all import TO_MANIFESTS

settings = json.loads(Path(__file__).with_suffix(".json").read_text())
defs = pipeline_definitions(Pipeline.model_validate(settings), TO_MANIFESTS)
"""


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[PipelineRuns]:
    """Two shards, observed, nothing made; runs are made in this process, as they are launched from the queue."""
    for seed in range(2):
        write_shard(tmp_path, f"{seed}", near_duplicates(seed))
    with dg.instance_for_test(synchronous_run_launcher=True) as instance:
        made = PipelineRuns(instance, vectors_settings(tmp_path, clustering={"k": [3], "buckets": 1}), TO_MANIFESTS)
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


@pytest.mark.slow
def test_what_the_button_makes(runs: PipelineRuns) -> None:
    shards = ["s000000", "s000001"]
    after_assignments = {
        "duplicate_scores": ["b0000|3"],
        "keep_masks": ["0.05|3"],
        "manifests": ["0.05|3"],
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
    # A new shard, k, epsilon and selection: nothing of the old is clustered again.
    write_shard(runs.folder, "9", near_duplicates(9))
    more = runs.changed(
        clustering={"k": [3, 5]}, epsilons=["0.05", "0.1"], selections={"paper": {}, "simple": {"keep": "easy"}}
    )
    more.observe()
    kept_sets = ["0.05|3", "0.05|5", "0.1|3", "0.1|5"]
    assert press(more) == {
        "items": ["s000002"],
        "embeddings": ["s000002"],
        "centroids": ["5"],
        "assignments": ["3|s000002", *(f"5|s00000{number}" for number in range(3))],
        **{f"{name}/duplicate_scores": ["b0000|3", "b0000|5"] for name in ("paper", "simple")},
        **{f"{name}/{asset}": kept_sets for name in ("paper", "simple") for asset in ("keep_masks", "manifests")},
    }
    assert more.stale() == {}


def test_a_run_whose_inputs_are_missing_says_what_to_make_first_and_makes_the_others(unmade: PipelineRuns) -> None:
    unmade.observe()
    missing = r"assignments: 3 partitions cannot be made yet: .*embeddings, partition s000000; .* or launch toy__"
    with pytest.raises(dg.Failure, match=missing):
        unmade.materialise("assignments", "3|s000000", "3|s000002")
    unmade.refresh()
    more = unmade.changed(clustering={"k": [3, 4]})
    more.materialise("centroids", "4")
    location = more.context.location("embeddings", Partition(shard="s000001"))
    Path(f"{location}{RECORD}").unlink()
    before = more.last_record
    with pytest.raises(
        dg.Failure, match=r"assignments: 1 partitions cannot be made yet: .*embeddings, partition s000001"
    ):
        more.materialise("assignments", "4|s000000", "4|s000002")
    assert more.materialised_since(before) == {"assignments": ["4|s000000", "4|s000002"]}


def test_a_centroid_made_by_itself_is_not_stale_for_new_embeddings(unmade: PipelineRuns) -> None:
    unmade.refresh()
    unmade.materialise("centroids", "3", config={"again": True})
    write_shard(unmade.folder, "9", near_duplicates(9))
    unmade.observe()
    unmade.materialise("embeddings", "s000003")
    assert "centroids" not in unmade.stale()
