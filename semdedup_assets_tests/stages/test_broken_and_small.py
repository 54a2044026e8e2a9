"""Broken items, and datasets at the edges, through the whole pipeline."""

import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.shards import observe_source
from semdedup_assets.storage.results import MissingResultError
from semdedup_assets_tests.pipeline_runs import PipelineRuns, near_duplicates, vectors_settings, write_shard


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def broken_table(folder: Path) -> None:
    """Twenty good rows, and one of each fault."""
    rows = [list(row) for row in near_duplicates(0, groups=10, copies=2, dimension=8).astype(float)]
    faults = {3: [float("nan")] + [1.0] * 7, 8: [0.0] * 8, 11: [1.0] * 5, 15: None, 19: [float("inf")] * 8}
    for row, vector in faults.items():
        rows.insert(row, vector)
    keys = [f"item {row}" for row in range(len(rows))]
    keys[24] = keys[23]
    (folder / "source").mkdir()
    table = pa.table({"embedding": pa.array(rows, pa.list_(pa.float32())), "name": keys})
    pq.write_table(table, folder / "source" / "0.parquet")


REASONS = {3: "not finite", 8: "zero vector", 11: "5 numbers", 15: "null", 19: "not finite"}


def manifest(runs: PipelineRuns, k: str = "3", epsilon: str = "0.05") -> tuple[Path, dict]:
    pointer = Path(runs.work.layout.current_manifest(k, epsilon))
    folder = pointer.parent / json.loads(pointer.read_text())["folder"]
    return folder, json.loads((folder / "manifest.recipe.json").read_text())["details"]


def kept_keys(runs: PipelineRuns, k: str = "3", epsilon: str = "0.05") -> list[str]:
    folder, _ = manifest(runs, k, epsilon)
    tables = [pl.read_parquet(path) for path in sorted((folder / "parquet").glob("*.parquet"))]
    return [key for table in tables for key in table["key"].to_list()]


def test_broken_vectors_are_skipped_listed_counted_and_in_no_manifest(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    broken_table(tmp_path)
    settings = vectors_settings(tmp_path)
    settings["source"]["key"] = "name"
    runs = PipelineRuns(instance, settings).changed(max_skipped=0.2)
    runs.refresh()
    listed = pl.read_parquet(runs.work.layout.skipped("s000000"))
    assert listed["id"].to_list() == list(REASONS)
    assert listed["key"].to_list() == [f"item {row}" for row in REASONS]
    for found, reason in zip(listed["reason"], REASONS.values(), strict=True):
        assert reason in found
    metadata = runs.last_materialisation("embeddings", ["s000000"]).metadata
    counts = {name: metadata[name].value for name in ("records", "items", "skipped", "repeated_keys")}
    assert counts == {"records": 25, "items": 20, "skipped": 5, "repeated_keys": 1}
    assert "item 23" in str(metadata["repeated_key_examples"].value)
    assert not {f"item {row}" for row in REASONS} & set(kept_keys(runs))
    _, details = manifest(runs)
    assert details["records"] == details["kept"] + details["removed"] + details["skipped"] == 25
    assert details["skipped"] == 5
    assert details["kept"] == len(kept_keys(runs)) < 20


def last_check(runs: PipelineRuns) -> dg.AssetCheckEvaluation:
    records = runs.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(runs.key("embeddings"), "skipped_share"), limit=1
    )
    event = records[0].event
    assert event is not None
    evaluation = event.asset_check_evaluation
    assert evaluation is not None
    return evaluation


def test_the_check_fails_above_the_share_stops_the_run_and_passes_at_it(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    broken_table(tmp_path)
    below = PipelineRuns(instance, vectors_settings(tmp_path)).changed(max_skipped=0.19)
    with pytest.raises(dg.Failure, match="skipped_share"):
        below.refresh()
    failed = last_check(below)
    assert failed.passed is False
    assert failed.metadata["shards_above"].value == {"s000000": 0.2}
    assert "training_sample" in below.stale()
    with pytest.raises(dg.Failure, match=r"1 of toy's shards have more than 19.00% broken items: s000000 \(20.00%"):
        below.refresh()  # nothing is stale above the failed check, and yet nothing below it is made
    assert "training_sample" in below.stale()
    at = below.changed(max_skipped=0.2)
    at.materialise("embeddings", "s000000")
    assert last_check(at).passed is True
    assert at.data_version("embeddings", "s000000") == at.work.embeddings("s000000").version


def test_vectors_off_unit_norm_are_broken_where_they_are_not_to_be_normalised(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    vectors = near_duplicates(0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[5] *= 1.2
    write_shard(tmp_path, "0", vectors)
    runs = PipelineRuns(instance, vectors_settings(tmp_path)).changed(encoder={"normalise": False}, max_skipped=0.5)
    runs.refresh()
    listed = pl.read_parquet(runs.work.layout.skipped("s000000"))
    assert listed.rows() == [(5, "0.npy:5", "norm 1.2, not 1; set `normalise: true`")]


def test_a_shard_of_another_dimension_is_refused_by_name(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    write_shard(tmp_path, "0", near_duplicates(0, dimension=16))
    write_shard(tmp_path, "1", near_duplicates(1, dimension=8))
    runs = PipelineRuns(instance, vectors_settings(tmp_path))
    with pytest.raises(dg.Failure, match=r"one_dimension: 1 of toy's .*s00000[01]"):
        runs.refresh()
    named = runs.changed(encoder={"dimension": 16}, max_skipped=1.0)
    named.refresh()
    assert named.work.embeddings("s000001").details["skipped"] == 60
    assert all(key.startswith("0.npy") for key in kept_keys(named))


@pytest.mark.parametrize("name", ["0", "1", "2"])
def test_an_empty_shard_and_one_of_broken_items_only_change_nothing_for_the_others(
    instance: dg.DagsterInstance, tmp_path: Path, name: str
) -> None:
    for seed in range(3):
        write_shard(tmp_path, f"{seed}", near_duplicates(seed))
    good = [f"{seed}" for seed in range(3) if f"{seed}" != name]
    alone = PipelineRuns(instance, vectors_settings(tmp_path)).changed(
        dataset="good", source={"path": f"{tmp_path}/source/[{''.join(good)}].npy"}
    )
    alone.refresh()
    with_empty = PipelineRuns(instance, vectors_settings(tmp_path)).changed(dataset="empty", max_skipped=1.0)
    write_shard(tmp_path, name, np.empty((0, 16), np.float32))
    with_empty.refresh()
    with_broken = with_empty.changed(dataset="broken")
    write_shard(tmp_path, name, np.zeros((7, 16), np.float32))
    with_broken.refresh()
    assert len(kept_keys(alone)) > 20
    assert len(kept_keys(with_empty)) == pytest.approx(len(kept_keys(alone)), abs=6)
    assert kept_keys(with_empty) == kept_keys(with_broken)
    assert not any(key.startswith(f"{name}.npy") for key in kept_keys(with_empty))
    assert manifest(with_empty)[1]["records"] == 120
    assert manifest(with_broken)[1]["records"] == 127
    assert manifest(with_broken)[1]["skipped"] == 7
    assert with_broken.refresh() == {}


def test_a_manifest_is_one_table_also_where_a_shard_is_empty(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name, rows in (("0", 0), ("1", 12)):
        columns = {
            "embedding": pa.array(list(near_duplicates(0)[:rows]), pa.list_(pa.float32())),
            "quality": [0.5] * rows,
        }
        pq.write_table(pa.table(columns), tmp_path / "source" / f"{name}.parquet")
    settings = vectors_settings(tmp_path)
    settings["source"]["columns"] = {"quality": "float"}
    runs = PipelineRuns(instance, settings)
    runs.refresh()
    folder, details = manifest(runs)
    table = pl.read_parquet(f"{folder}/parquet/*.parquet")
    assert table.columns == ["id", "shard", "row", "file", "file_row", "key", "quality"]
    assert len(table) == details["kept"] > 0


def test_nothing_but_broken_items_is_refused_with_where_to_look(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    write_shard(tmp_path, "0", np.zeros((7, 16), np.float32))
    runs = PipelineRuns(instance, vectors_settings(tmp_path)).changed(max_skipped=1.0)
    with pytest.raises(ValueError, match="no shard holds a single item that could be embedded; see the skipped items"):
        runs.refresh()


def test_a_missing_source_is_told(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="source: no file here ends in"):
        PipelineRuns(instance, vectors_settings(tmp_path)).refresh()


def test_a_single_item_is_kept_at_every_epsilon(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    write_shard(tmp_path, "0", np.ones((1, 4), np.float32))
    runs = PipelineRuns(instance, vectors_settings(tmp_path)).changed(
        clustering={"k": ["1"]}, epsilons=[0, 1, 2, "keep=1%"]
    )
    runs.refresh()
    for epsilon in runs.pipeline.epsilons:
        assert kept_keys(runs, "1", epsilon) == ["0.npy:0"]


@pytest.mark.filterwarnings("ignore:k = 50 exceeds the 12 sampled items")
def test_more_clusters_than_items_and_more_buckets_than_clusters(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    vectors = near_duplicates(0, groups=6, copies=2)
    write_shard(tmp_path, "0", vectors)
    runs = PipelineRuns(instance, vectors_settings(tmp_path)).changed(clustering={"k": [1, 50, "auto"], "buckets": 20})
    runs.refresh()
    details = runs.work.centroids("50").details
    assert (details["k_asked"], details["k"]) == (50, 12)
    assert kept_keys(runs, "50") == [f"0.npy:{row}" for row in range(12)]
    assert runs.work.centroids("1").details["k"] == 1
    assert runs.work.centroids("auto").details["k"] == runs.work.centroids("1").details["k_suggested"] == 2
    for k in ("1", "50", "auto"):
        assert manifest(runs, k)[1]["kept"] + manifest(runs, k)[1]["removed"] == 12


def test_one_cluster_compares_all_pairs(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    vectors = near_duplicates(0)
    for part in range(3):
        write_shard(tmp_path, f"{part}", vectors[part * 20 : (part + 1) * 20])
    runs = PipelineRuns(instance, vectors_settings(tmp_path)).changed(clustering={"k": [1]}, epsilons=["0.05"])
    runs.refresh()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = unit @ unit.T > 0.95
    alone = near.sum(1) == 1
    kept = {(int(key[0]) * 20 + int(key.partition(":")[2])) for key in kept_keys(runs, "1")}
    assert set(np.flatnonzero(alone)) <= kept
    assert not near[np.ix_(sorted(kept), sorted(kept))][~np.eye(len(kept), dtype=bool)].any()


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_new_manifest_lies_beside_the_old_which_stays_byte_for_byte(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    for seed in range(2):
        write_shard(tmp_path, f"{seed}", near_duplicates(seed))
    runs = PipelineRuns(instance, vectors_settings(tmp_path))
    runs.refresh()
    old, old_details = manifest(runs)
    before = snapshot(old)
    write_shard(tmp_path, "1", near_duplicates(5))
    runs.refresh()
    new, _ = manifest(runs)
    assert new != old
    assert new.parent == old.parent
    assert snapshot(old) == before
    assert {path for path in before if "parquet/" in path} == {f"parquet/s00000{shard}.parquet" for shard in range(2)}
    write_shard(tmp_path, "1", near_duplicates(1))
    runs.refresh()
    assert manifest(runs) == (old, old_details)
    assert snapshot(old) == before


def test_a_manifest_keeps_what_made_it(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    write_shard(tmp_path, "0", near_duplicates(0))
    runs = PipelineRuns(instance, vectors_settings(tmp_path)).changed(epsilons=["keep=50%"])
    runs.refresh()
    recipe = manifest(runs, epsilon="keep=50%")[1]["recipe"]
    assert recipe["k"] == "3"
    assert recipe["iterations"] == 10
    assert recipe["epsilon"] == runs.work.masks("3", "keep=50%").details["epsilon"]
    assert recipe["encoder"] == {"kind": "precomputed", "normalise": True, "dimension": None}


def test_keep_lists_name_file_row_and_key(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    for seed in range(3):
        write_shard(tmp_path, f"{seed}", near_duplicates(seed))
    runs = PipelineRuns(instance, vectors_settings(tmp_path)).changed(shards={"files_per_shard": 2})
    runs.refresh()
    folder, _ = manifest(runs)
    lines = [
        line.split("\t") for path in sorted((folder / "keep_lists").iterdir()) for line in path.read_text().splitlines()
    ]
    assert [key for _, _, key in lines] == kept_keys(runs)
    assert all(key == f"{Path(file).name}:{row}" for file, row, key in lines)
    assert len({file for file, _, _ in lines}) == 3


def test_a_stage_asked_too_early_says_what_to_materialise(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    write_shard(tmp_path, "0", near_duplicates(0))
    runs = PipelineRuns(instance, vectors_settings(tmp_path))
    with pytest.raises(MissingResultError, match=r"no shard is known; observe toy/shards first"):
        runs.materialise("training_sample")
    runs.refresh()
    Path(runs.work.layout.scores("3", "b0001")).unlink()
    with pytest.raises(MissingResultError, match=r"materialise toy/precomputed/duplicate_scores, partition b0001\|3"):
        runs.materialise("keep_masks", "0.05|3")


def test_masks_are_not_made_from_scores_of_other_assignments(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    for seed in range(2):
        write_shard(tmp_path, f"{seed}", near_duplicates(seed))
    runs = PipelineRuns(instance, vectors_settings(tmp_path))
    runs.refresh()
    write_shard(tmp_path, "1", near_duplicates(5))
    observe_source(Declaration(runs.pipeline), instance)
    runs.materialise("embeddings", "s000001")
    with pytest.raises(MissingResultError, match="made from other embeddings than there are now"):
        runs.materialise("manifests", "0.05|3")
    runs.materialise("assignments", "3|s000001")
    with pytest.raises(MissingResultError, match="made from other assignments than there are now"):
        runs.materialise("keep_masks", "0.05|3")
    made = {"training_sample", "duplicate_scores", "keep_masks", "manifests", "figures", "galleries"}
    assert set(runs.refresh()) == made
