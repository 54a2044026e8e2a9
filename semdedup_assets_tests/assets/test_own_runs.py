"""What notes its process, and what is known to: runs of several pipelines, observations and checks as well."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest
from dagster._core.events import EngineEventData

from semdedup_assets.assets import lost_runs
from semdedup_assets.assets.lost_runs import PROCESS_TAG
from semdedup_assets.assets.own_runs import own_runs
from semdedup_assets.assets.pipeline import pipeline_definitions
from semdedup_assets_tests.pipeline_runs import UNDRAWN, PipelineRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard

SHARDS = dg.AssetKey(["toy", "shards"])
FILES = dg.AssetCheckKey(dg.AssetKey(["toy", "shard_index"]), "source_has_files")
MANIFESTS, OTHER_MANIFESTS = (dg.AssetKey(["toy", model, "manifests"]) for model in ("precomputed", "other"))
THEIRS = dg.AssetKey("theirs")
THEIR_CHECK = dg.AssetCheckKey(MANIFESTS, "their_check")


@dg.asset
def theirs() -> None: ...


@dg.asset_check(asset=MANIFESTS)
def their_check() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


@dg.op
def their_op() -> None: ...


@dg.job
def their_job() -> None:
    their_op()


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[PipelineRuns]:
    """A pipeline with a check that is a job of its own."""
    write_shard(tmp_path, "0", near_duplicates(0))
    settings = vectors_settings(tmp_path)
    settings["references"] = {"test": {"source": settings["source"], "epsilon": 0.05}}
    with dg.DagsterInstance.ephemeral() as instance:
        yield PipelineRuns(instance, settings, UNDRAWN)


def repository_of(runs: PipelineRuns) -> dg.RepositoryDefinition:
    """Two pipelines of a dataset, beside somebody's own asset, check and job."""
    other = pipeline_definitions(runs.changed(model="other").pipeline, UNDRAWN, with_source=False)
    own = dg.Definitions(assets=[theirs], asset_checks=[their_check], jobs=[their_job])
    return dg.Definitions.merge(runs.definitions, other, own).get_repository_def()


def test_a_run_is_own_if_all_that_it_does_is_ours(runs: PipelineRuns) -> None:
    is_own = own_runs(repository_of(runs))

    def of(*assets: dg.AssetKey, checks: tuple[dg.AssetCheckKey, ...] = (), job: str = "__ASSET_JOB") -> bool:
        run = dg.DagsterRun(job, asset_selection=set(assets) or None, asset_check_selection=set(checks) or None)
        return is_own(run)

    assert of(SHARDS)
    assert of(checks=(FILES,))
    assert of(MANIFESTS, OTHER_MANIFESTS)
    assert of(MANIFESTS, checks=(FILES,))
    assert of(job="toy__precomputed__refresh")
    assert of(job="toy__other__refit")
    assert not of(THEIRS, MANIFESTS)
    assert not of(checks=(THEIR_CHECK,))
    assert not of(MANIFESTS, checks=(THEIR_CHECK,))
    assert not of(dg.AssetKey("of_another_code_location"))
    assert not of(job="their_job")
    assert not of(job="of_another_code_location")
    assert not own_runs(None)(dg.DagsterRun("__ASSET_JOB", asset_selection={SHARDS}))


def test_every_observation_and_every_check_of_ours_notes_its_process(runs: PipelineRuns) -> None:
    repository, instance = repository_of(runs), runs.instance
    checks = {key for key in repository.asset_checks_defs_by_key if key != THEIR_CHECK}
    assert len({repository.asset_checks_defs_by_key[key].node_def.name for key in checks}) == 4
    job = repository.get_implicit_global_asset_job_def()
    parts = [job.get_subset(asset_check_selection={key}) for key in checks]
    for key in (SHARDS, FILES.asset_key):
        parts.append(job.get_subset(asset_selection={key}))
    for part in parts:
        result = part.execute_in_process(instance=instance, raise_on_error=False)
        run = instance.get_run_by_id(result.run_id)
        assert run is not None
        assert PROCESS_TAG in run.tags, part
    # Somebody else's does not.
    result = job.get_subset(asset_check_selection={THEIR_CHECK}).execute_in_process(instance=instance)
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    assert PROCESS_TAG not in run.tags


def test_the_sensor_of_the_files_ends_whatever_run_of_ours_was_killed_before_it_noted_itself(
    runs: PipelineRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass

    def killed(*assets: dg.AssetKey, checks: tuple[dg.AssetCheckKey, ...] = ()) -> str:
        run = dg.DagsterRun(
            "__ASSET_JOB",
            str(uuid4()),
            status=dg.DagsterRunStatus.STARTED,
            asset_selection=set(assets) or None,
            asset_check_selection=set(checks) or None,
            tags={".dagster/grpc_info": json.dumps({"host": "localhost", "socket": "/tmp/of-a-code-server"})},
        )
        runs.instance.add_run(run)
        runs.instance.report_engine_event("Started process for run", run, EngineEventData.in_process(process.pid))
        return run.run_id

    ours = {killed(SHARDS), killed(checks=(FILES,)), killed(MANIFESTS, OTHER_MANIFESTS)}
    killed(THEIRS)
    monkeypatch.setattr(lost_runs, "_SILENT_SECONDS", 0)
    repository = repository_of(runs)
    repository.get_sensor_def("toy__files")(dg.build_sensor_context(runs.instance, repository_def=repository))
    ended = runs.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
    assert {run.run_id for run in ended} == ours
