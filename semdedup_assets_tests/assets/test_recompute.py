"""What runs again after what change: read from the instance's event log, on real files."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest

from semdedup_assets.assets.refresh import refresh
from semdedup_assets.stages.embeddings import FailedShardsError, embed_shards, left_out_shards
from semdedup_assets.stages.shards import update_catalogue
from semdedup_assets.stages.work import Work
from semdedup_assets_tests.pipeline_runs import Partitions, PipelineRuns, near_duplicates, vectors_settings, write_shard

SHARDS = ["s000000", "s000001", "s000002"]
BUCKETS = ["b0000", "b0001"]


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[PipelineRuns]:
    """Three shards, nothing done yet."""
    for seed in range(3):
        write_shard(tmp_path, f"{seed}", near_duplicates(seed))
    with dg.DagsterInstance.ephemeral() as instance:
        yield PipelineRuns(instance, vectors_settings(tmp_path))


def everything(*, k: str = "3", epsilon: str = "0.05", shards: list[str] = SHARDS) -> Partitions:
    return {
        "embeddings": list(shards),
        "training_sample": [None],
        "centroids": [k],
        **below_centroids(k=k, epsilon=epsilon, shards=shards),
    }


def below_centroids(*, k: str = "3", epsilon: str = "0.05", shards: list[str] = SHARDS) -> Partitions:
    return {
        "assignments": [f"{k}|{shard}" for shard in shards],
        "duplicate_scores": [f"{bucket}|{k}" for bucket in BUCKETS],
        "keep_masks": [f"{epsilon}|{k}"],
        "manifests": [f"{epsilon}|{k}"],
        "figures": [k],
        "galleries": [f"{epsilon}|{k}"],
    }


def manifest_keys(runs: PipelineRuns, *, k: str = "3", epsilon: str = "0.05") -> set[str]:
    pointer = Path(runs.work.layout.current_manifest(k, epsilon))
    folder = pointer.parent / json.loads(pointer.read_text())["folder"]
    return set(pl.read_parquet(f"{folder}/parquet/*.parquet")["key"])


def test_the_first_refresh_makes_everything_and_the_second_nothing(runs: PipelineRuns) -> None:
    assert runs.refresh() == everything()
    assert runs.stale() == {}
    assert runs.refresh() == {}


def test_another_k_embeds_nothing(runs: PipelineRuns) -> None:
    runs.refresh()
    more = runs.changed(clustering={"k": [3, 5]})
    expected = {"centroids": ["5"], **below_centroids(k="5")}
    assert more.stale() == expected
    assert more.refresh() == expected
    assert more.refresh() == {}


def test_another_epsilon_makes_only_masks_and_manifests(runs: PipelineRuns) -> None:
    runs.refresh()
    more = runs.changed(epsilons=["0.01", "0.05", "keep=50%"])
    new = ["0.01|3", "keep=50%|3"]
    expected = {
        "keep_masks": new,
        "manifests": new,
        # A figure shows, and a gallery's seeds have thresholds at, every epsilon.
        "figures": ["3"],
        "galleries": ["0.01|3", "0.05|3", "keep=50%|3"],
    }
    assert more.stale() == expected
    assert more.refresh() == expected
    assert more.refresh() == {}


def test_a_taken_back_k_and_epsilon_are_still_there(runs: PipelineRuns) -> None:
    more = runs.changed(clustering={"k": [3, 5]}, epsilons=["0.05", "0.1"])
    more.refresh()
    pictures = {"figures": ["3"], "galleries": ["0.05|3"]}  # They show the epsilons that there are.
    assert runs.refresh() == pictures
    assert more.refresh().keys() == pictures.keys()


@pytest.mark.parametrize("change", [{"vectors": "float32"}, {"source": {"key": None}, "encoder": {"dimension": 16}}])
def test_a_changed_encoder_makes_everything_below_the_shards_stale(runs: PipelineRuns, change: dict) -> None:
    runs.refresh()
    changed = runs.changed(**change)
    assert set(changed.stale()) >= {"embeddings", "training_sample"}
    made = changed.refresh()
    assert made["embeddings"] == SHARDS
    assert made["training_sample"] == [None]
    if "vectors" in change:  # The other change gives the same bytes, so that what follows is the same.
        assert made == everything()
    else:
        assert set(made) == {"embeddings", "training_sample"}
    assert changed.refresh() == {}


def test_another_model_name_is_another_pipeline_beside_the_first(runs: PipelineRuns) -> None:
    runs.refresh()
    other = runs.changed(model="other")
    assert other.refresh() == everything()
    assert runs.refresh() == {}


def test_a_changed_shard_redoes_itself_and_what_follows_but_no_centroids(runs: PipelineRuns, tmp_path: Path) -> None:
    runs.refresh()
    sample, centroids = runs.data_version("training_sample"), runs.data_version("centroids", "3")
    others = [Path(runs.work.layout.assignments("3", shard)).stat().st_mtime_ns for shard in ("s000000", "s000002")]
    write_shard(tmp_path, "1", near_duplicates(7))
    made = runs.refresh()
    assert made.pop("training_sample") == [None]
    assert made == {"embeddings": ["s000001"], **below_centroids(shards=["s000001"])}
    assert runs.data_version("training_sample") == sample
    assert runs.last_materialisation("training_sample").metadata["kept_as_it_was"].value is True
    assert runs.data_version("centroids", "3") == centroids
    assert others == [
        Path(runs.work.layout.assignments("3", shard)).stat().st_mtime_ns for shard in ("s000000", "s000002")
    ]
    assert runs.refresh() == {}


def test_a_touched_file_with_the_same_bytes_is_embedded_again_and_nothing_follows(
    runs: PipelineRuns, tmp_path: Path
) -> None:
    runs.refresh()
    os.utime(tmp_path / "source" / "1.npy", ns=(1, 1))
    assert runs.refresh() == {"embeddings": ["s000001"]}
    assert runs.refresh() == {}


def test_a_new_shard_is_judged_against_the_frozen_centroids(runs: PipelineRuns, tmp_path: Path) -> None:
    runs.refresh()
    centroids = runs.data_version("centroids", "3")
    write_shard(tmp_path, "0-sorts-between", near_duplicates(9))
    made = runs.refresh()
    assert made.pop("training_sample") == [None]
    assert made == {"embeddings": ["s000003"], **below_centroids(shards=["s000003"])}
    assert runs.data_version("centroids", "3") == centroids
    assert any(key.startswith("0-sorts-between") for key in manifest_keys(runs))
    assert runs.refresh() == {}


def test_the_items_of_a_vanished_shard_leave_the_manifest(runs: PipelineRuns, tmp_path: Path) -> None:
    runs.refresh()
    assert any(key.startswith("1.npy") for key in manifest_keys(runs))
    (tmp_path / "source" / "1.npy").unlink()
    made = runs.refresh()
    assert not {"embeddings", "centroids", "assignments"} & set(made)
    assert made["duplicate_scores"] == [f"{bucket}|3" for bucket in BUCKETS]
    keys = manifest_keys(runs)
    assert keys
    assert not any(key.startswith("1.npy") for key in keys)
    assert runs.refresh() == {}


def test_a_lost_store_is_made_again(runs: PipelineRuns, tmp_path: Path) -> None:
    runs.refresh()
    before = manifest_keys(runs)
    shutil.rmtree(tmp_path / "store")
    assert runs.refresh() == everything()
    assert manifest_keys(runs) == before
    assert runs.refresh() == {}


def test_a_lost_file_is_made_again_and_where_its_bytes_are_the_same_nothing_follows(runs: PipelineRuns) -> None:
    runs.refresh()
    Path(runs.work.layout.assignments("3", "s000001")).unlink()
    assert runs.refresh() == {"assignments": ["3|s000001"]}
    assert runs.refresh() == {}


def test_beyond_the_hundred_partitions_that_dagster_looks_at_a_changed_shard_still_counts(tmp_path: Path) -> None:
    for seed in range(101):
        write_shard(tmp_path, f"{seed:03d}", near_duplicates(seed, groups=2))
    with dg.DagsterInstance.ephemeral() as instance:
        runs = PipelineRuns(instance, vectors_settings(tmp_path))
        runs.refresh()
        write_shard(tmp_path, "050", near_duplicates(999, groups=2))
        assert runs.refresh() == {"embeddings": ["s000050"], **below_centroids(shards=["s000050"])}
        assert runs.refresh() == {}


def test_the_number_of_a_vanished_shard_is_never_given_again(runs: PipelineRuns, tmp_path: Path) -> None:
    runs.refresh()
    (tmp_path / "source" / "2.npy").unlink()
    write_shard(tmp_path, "3", near_duplicates(3))
    made = runs.refresh()
    assert made["embeddings"] == ["s000003"]
    assert [shard.name for shard in runs.work.shards()] == ["s000000", "s000001", "s000003"]
    assert runs.refresh() == {}


def test_refit_draws_a_new_sample_and_the_centroids_follow(runs: PipelineRuns, tmp_path: Path) -> None:
    runs.refresh()
    sample = runs.data_version("training_sample")
    write_shard(tmp_path, "1", near_duplicates(7))
    runs.refresh()
    runs.materialise("training_sample", config={"refit": True})
    assert runs.data_version("training_sample") != sample
    assert runs.stale() == {"centroids": ["3"]}
    assert runs.refresh() == {"centroids": ["3"], **below_centroids()}
    assert runs.refresh() == {}


def test_refit_on_the_same_data_makes_nothing_stale(runs: PipelineRuns) -> None:
    runs.refresh()
    runs.materialise("training_sample", config={"refit": True})
    assert runs.stale() == {}


def test_a_failure_halfway_keeps_what_was_finished(runs: PipelineRuns, tmp_path: Path) -> None:
    for name in "12":
        np.save(tmp_path / "source" / f"{name}.npy", np.zeros(3))  # One dimension: no table of vectors.
    at_once = runs.changed(refresh={"retry_seconds": 0})
    before = runs.instance.event_log_storage.get_maximum_record_id() or 0
    with pytest.raises(FailedShardsError, match=r"2 of 3 shards .* 1 may be left out; .*1\.npy"):
        at_once.refresh()
    assert runs.materialised_since(before) == {"embeddings": ["s000000"]}
    assert runs.stale()["embeddings"] == ["s000001", "s000002"]
    for name in "12":
        write_shard(tmp_path, name, near_duplicates(int(name)))
    assert runs.refresh() == everything() | {"embeddings": ["s000001", "s000002"]}
    assert runs.refresh() == {}


def test_one_shard_that_always_fails_is_left_out_and_comes_back_when_it_is_mended(
    runs: PipelineRuns, tmp_path: Path
) -> None:
    path = tmp_path / "source" / "1.npy"
    good = path.read_bytes()
    np.save(path, np.zeros(3))
    at_once = runs.changed(refresh={"retry_seconds": 0})
    assert at_once.refresh() == everything()
    assert left_out_shards(runs.work).keys() == {"s000001"}
    manifest = runs.last_materialisation("manifests", ["0.05|3"]).metadata
    assert manifest["records"].value == 2 * len(near_duplicates(0))
    assert "s000001" in manifest["recipe"].value["left_out"]
    assert at_once.refresh() == {}
    tried = [
        run.asset for run in refresh(at_once.pipeline, at_once.definitions, runs.instance, again=True) if run.partitions
    ]
    assert tried == ["embeddings"]
    path.write_bytes(good)
    assert at_once.refresh() == {
        "embeddings": ["s000001"],
        "training_sample": [None],
        **(below_centroids() | {"assignments": ["3|s000001"]}),
    }
    assert left_out_shards(runs.work) == {}
    assert "left_out" not in runs.last_materialisation("embeddings", ["s000001"]).metadata


def test_a_shard_that_fails_twice_and_then_succeeds_is_like_any_other(runs: PipelineRuns, tmp_path: Path) -> None:
    path = tmp_path / "source" / "1.npy"
    good, lines = path.read_bytes(), list[str]()
    np.save(path, np.zeros(3))

    def mend(line: str) -> None:
        lines.append(line)
        if "s000001: attempt 2 of 3 failed" in line:
            path.write_bytes(good)

    update_catalogue(runs.work)
    work = Work(runs.changed(refresh={"retry_seconds": 0}).pipeline, log=mend)
    model = work.pipeline.encoder.load(work.compute)
    made = {shard.name: recipe for shard, recipe in embed_shards(work, work.shards(), model=model)}
    assert [*made] == ["s000000", "s000002", "s000001"]
    assert made["s000001"].details["items"] == len(near_duplicates(1))
    assert "left_out" not in made["s000001"].details
    assert sum("s000001: attempt" in line for line in lines) == 2


def test_where_nothing_can_be_embedded_the_settings_are_wrong_and_nothing_is_tried_again(
    runs: PipelineRuns, tmp_path: Path
) -> None:
    for path in (tmp_path / "source").iterdir():
        np.save(path, np.zeros(3))
    with pytest.raises(FailedShardsError, match=r"no shard can be embedded; s000000: .*0\.npy"):
        runs.refresh()
    assert runs.stale()["embeddings"] == ["s000000", "s000001", "s000002"]


def test_speed_settings_make_nothing_stale(runs: PipelineRuns) -> None:
    runs.refresh()
    faster = runs.changed(compute={"batch_size": 7, "workers": 1, "memory_mib": 16}, max_skipped=0.5)
    assert faster.stale() == {}


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"training_sample": {"size": 50}}, "training_sample"),
        ({"training_sample": {"seed": 1}}, None),
        ({"training_sample": {"per_cluster": 10}}, "centroids"),
        ({"clustering": {"seed": 1}}, "centroids"),
        ({"selection": {"keep": "easy"}}, "duplicate_scores"),
        ({"selection": {"rule": "greedy"}}, "keep_masks"),
        ({"manifests": ["parquet"]}, "manifests"),
    ],
)
def test_a_setting_makes_its_own_stage_and_what_follows_run(
    runs: PipelineRuns, change: dict, first: str | None
) -> None:
    runs.refresh()
    changed = runs.changed(**change)
    made = changed.refresh()
    if first is None:  # All items are in the sample, whichever seed: the bytes are the same.
        assert made == {"training_sample": [None]}
    else:
        assert next(iter(made)) == first
        assert "manifests" in made
    assert changed.refresh() == {}


def test_every_partition_records_what_it_was_made_from(runs: PipelineRuns) -> None:
    runs.refresh()
    tags = runs.last_materialisation("assignments", ["3|s000001"]).tags or {}
    assert tags["dagster/code_version"] == runs.work.code_version("assignments")
    assert tags["dagster/input_data_version/toy/precomputed/embeddings"] == runs.data_version("embeddings", "s000001")
    assert tags["dagster/input_data_version/toy/precomputed/centroids"] == runs.data_version("centroids", "3")
    recipe = runs.work.assignments("3", "s000001")
    assert tags["dagster/data_version"] == recipe.version
    assert recipe.made_from["embeddings"] == runs.data_version("embeddings", "s000001")
    assert isinstance(np.load(runs.work.layout.centroids("3")), np.ndarray)
