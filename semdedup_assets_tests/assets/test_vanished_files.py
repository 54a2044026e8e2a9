"""A source that is away for a while is not a source whose files were deleted."""

from pathlib import Path

import dagster as dg
import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from semdedup_assets.assets.metadata import markdown_text
from semdedup_assets.sources.shard_index import VanishedFilesError
from semdedup_assets_tests.assets.test_recompute import manifest_keys
from semdedup_assets_tests.pipeline_runs import PipelineRuns
from semdedup_assets_tests.toy_source import vectors_settings

CHECK = dg.AssetCheckKey(dg.AssetKey(["toy", "shard_index"]), "source_has_files")
MISSING = (
    r"2 of the 3 files that the source had are missing, such as .*/0\.npy: .*bring them back under their old paths, or"
)


def sensor_tick(runs: PipelineRuns) -> object:
    repository = runs.definitions.get_repository_def()
    context = dg.build_sensor_context(runs.instance, repository_def=repository)
    return repository.get_sensor_def("toy__files")(context)


def check_result(runs: PipelineRuns) -> dg.AssetCheckEvaluation | None:
    record = runs.instance.event_log_storage.get_latest_asset_check_execution_by_key([CHECK]).get(CHECK)
    found = record.evaluation if record is not None else None
    return found if isinstance(found, dg.AssetCheckEvaluation) else None


def known_of(runs: PipelineRuns) -> tuple[object, ...]:
    """What Dagster, the store and a training job know of the shards."""
    shards = sorted(runs.instance.get_dynamic_partitions("toy/shard"))
    return shards, runs.context.shard_index, manifest_keys(runs)


def test_files_that_are_away_for_a_while_are_not_deleted(runs: PipelineRuns, tmp_path: Path) -> None:
    before, source = known_of(runs), runs.folder / "source"
    for name in ("0.npy", "1.npy"):
        (source / name).rename(tmp_path / name)
    skipped = sensor_tick(runs)
    assert isinstance(skipped, dg.SkipReason)
    with pytest.raises(VanishedFilesError, match=MISSING):
        runs.refresh()
    assert known_of(runs) == before
    failing = check_result(runs)
    assert failing is not None
    assert not failing.passed
    # A name of a file is no Markdown that Dagster would render, such as a picture from elsewhere.
    assert failing.description == markdown_text(skipped.skip_message or "")
    (tmp_path / "0.npy").rename(source / "0.npy")
    (tmp_path / "1.npy").rename(source / "1.npy")
    assert runs.refresh() == {}
    assert known_of(runs) == before
    mended = check_result(runs)
    assert mended is not None
    assert mended.passed


def test_an_empty_folder_fails_the_check_and_changes_nothing(runs: PipelineRuns) -> None:
    before, source = known_of(runs), runs.folder / "source"
    source.rename(runs.folder / "unmounted")
    source.mkdir()
    assert isinstance(sensor_tick(runs), dg.SkipReason)
    with pytest.raises(FileNotFoundError, match="no file here ends in"):
        runs.refresh()
    failing = check_result(runs)
    assert failing is not None
    assert not failing.passed
    source.rmdir()
    (runs.folder / "unmounted").rename(source)
    assert known_of(runs) == before
    assert runs.refresh() == {}


def test_a_folder_whose_files_are_all_renamed_is_asked_about_and_then_taken(runs: PipelineRuns) -> None:
    before = manifest_keys(runs)
    for path in (runs.folder / "source").iterdir():
        path.rename(path.with_name(f"renamed-{path.name}"))
    with pytest.raises(
        VanishedFilesError, match=r"3 of the 3 files .* \(3 new ones have come; .*embedded anew\).*allow_vanished"
    ):
        runs.refresh()
    job = runs.definitions.resolve_job_def("toy__precomputed__refresh")
    config = {"ops": {"toy__precomputed__refresh_all": {"config": {"allow_vanished": True}}}}
    assert job.execute_in_process(run_config=config, instance=runs.instance).success
    assert [shard.name for shard in runs.context.shards] == ["s000003", "s000004", "s000005"]
    assert sorted(manifest_keys(runs)) == sorted(f"renamed-{key}" for key in before)
    # The setting is as it was, and nothing is missing any more.
    assert runs.refresh() == {}


def test_a_source_whose_files_are_replaced_is_a_setting(runs: PipelineRuns) -> None:
    replaced = runs.changed(refresh={"max_vanished": 1})
    for name in ("0.npy", "1.npy"):
        (runs.folder / "source" / name).unlink()
    assert set(replaced.refresh()) >= {"manifests"}
    assert [shard.name for shard in replaced.context.shards] == ["s000002"]


class Away(MemoryFileSystem):
    """A store that does not answer."""

    protocol = "away"

    def info(self, path: str, **_: object) -> dict[str, object]:
        message = f"{path}: the connection timed out"
        raise TimeoutError(message)

    def cat_file(self, path: str, *_: object, **__: object) -> bytes:
        message = f"{path}: the connection timed out"
        raise TimeoutError(message)


def test_a_store_that_does_not_answer_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    fsspec.register_implementation("away", Away, clobber=True)
    with dg.DagsterInstance.ephemeral() as instance:
        runs = PipelineRuns(instance, {**vectors_settings(tmp_path), "store": "away://results"})
        with pytest.raises(TimeoutError):
            _ = runs.context.shard_index
