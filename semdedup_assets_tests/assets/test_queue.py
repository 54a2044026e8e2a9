"""What passes the queue while long runs are under way, with the instance's configuration that this repository ships."""

import shutil
from pathlib import Path

import dagster as dg
from dagster._core.remote_origin import InProcessCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

from semdedup_assets.stage_graph import GRAPH
from semdedup_assets_tests.dagster_process import ROOT, configured_instance
from semdedup_assets_tests.pipeline_runs import PipelineRuns
from semdedup_assets_tests.toy_source import vectors_settings

STARTED, QUEUED = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.QUEUED


def let_through(runs: PipelineRuns) -> set[str]:
    """The runs that leave the queue now."""
    daemon, instance = QueuedRunCoordinatorDaemon(interval_seconds=5), runs.instance
    config = instance.get_concurrency_config()
    return {run.run_id for run in daemon._get_runs_to_dequeue(instance, config, fixed_iteration_time=None)}


def run_of(runs: PipelineRuns, key: dg.AssetKey | None, status: dg.DagsterRunStatus) -> str:
    """A run of an asset, as the UI launches one, or a refresh; its id."""
    job = runs.definitions.resolve_job_def("toy__precomputed__refresh")
    if key is not None:
        job = runs.definitions.resolve_implicit_global_asset_job_def().get_subset(asset_selection={key})
    selection = frozenset({key}) if key is not None else None
    # The queue asks where a run comes from, but does not look there.
    origin = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="their_project.definitions"))
    return runs.instance.create_run_for_job(
        job,
        asset_selection=selection,
        status=status,
        remote_job_origin=RemoteJobOrigin(RemoteRepositoryOrigin(origin, "__repository__"), job.name),
    ).run_id


def test_observing_and_estimating_pass_long_runs_and_what_is_long_waits_for_its_like(tmp_path: Path) -> None:
    shutil.copy(ROOT / "dagster.yaml", tmp_path)
    with configured_instance(tmp_path) as instance:
        runs = PipelineRuns(instance, vectors_settings(tmp_path), GRAPH)
        light = [runs.builder.source_key("shards"), runs.builder.source_key("shard_index"), runs.key("estimate")]
        of_gpu, of_cpu = [run_of(runs, runs.key(name), QUEUED) for name in ("embeddings", "manifests")]
        waiting = [run_of(runs, key, QUEUED) for key in light]
        # One of each pool at a time.
        assert let_through(runs) == {of_gpu, of_cpu, *waiting}
        run_of(runs, None, STARTED)
        assert let_through(runs) == {of_cpu, *waiting}
        run_of(runs, runs.key("items"), STARTED)
        assert let_through(runs) == set(waiting)


def test_all_but_the_estimate_wait_for_a_pool() -> None:
    assert {stage.name for stage in GRAPH.stages if stage.pool is None} == {"estimate"}
