"""Invalid items, and datasets at the edges, through all stages."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semdedup_assets.assets.metadata import as_metadata
from semdedup_assets.checks.embeddings import skipped_share, skipped_share_of_shards
from semdedup_assets.checks.items import values_are_valid
from semdedup_assets.checks.manifests import counts_are_conserved
from semdedup_assets_tests.stage_runs import StageRuns, small_pipeline, stored_files
from semdedup_assets_tests.toy_source import STATIC_TEXTS, near_duplicates, vectors_settings, write_shard, write_table

REASONS = {3: "not finite", 8: "zero vector", 11: "5 numbers", 15: "null", 19: "not finite"}
KEPT = "0.05|3"


@pytest.fixture
def invalid(tmp_path: Path) -> StageRuns:
    """Twenty good rows, and one of each fault."""
    rows: list[list[float] | None] = [
        list(row) for row in near_duplicates(0, groups=10, copies=2, dimension=8).astype(float)
    ]
    faults = {3: [float("nan")] + [1.0] * 7, 8: [0.0] * 8, 11: [1.0] * 5, 15: None, 19: [float("inf")] * 8}
    for row, vector in faults.items():
        rows.insert(row, vector)
    names = [f"item {row}" for row in range(25)]
    names[24] = names[23]
    write_table(tmp_path, "0", rows, {"title": names})
    settings = vectors_settings(tmp_path)
    settings["source"]["key"] = "title"
    return StageRuns(settings)


def test_invalid_vectors_are_skipped_listed_counted_and_in_no_manifest(invalid: StageRuns) -> None:
    invalid.run()
    record = invalid.record("embeddings", "s000000")
    listed = pl.read_parquet(record.file("skipped.parquet").path)
    assert listed["id"].to_list() == list(REASONS)
    assert listed["key"].to_list() == [f"item {row}" for row in REASONS]
    for found, reason in zip(listed["reason"], REASONS.values(), strict=True):
        assert reason in found
    assert [record.details[name] for name in ("records", "items", "skipped")] == [25, 20, 5]
    assert [row[0] for row in record.details["skipped_examples"]] == listed["key"].to_list()
    assert not {f"item {row}" for row in REASONS} & set(invalid.kept_keys(KEPT))
    _, details = invalid.manifest(KEPT)
    assert details["records"] == details["kept"] + details["removed"] + details["skipped"] == 25
    assert details["skipped"] == 5
    assert details["kept"] == len(invalid.kept_keys(KEPT)) < 20
    assert details["rows_written"] == {
        "parquet": details["kept"],
        "removed": details["removed"],
        "keep_lists": details["kept"],
    }


def test_items_have_a_row_for_each_record_also_for_those_that_cannot_be_embedded(invalid: StageRuns) -> None:
    invalid.run(until="items")
    record = invalid.record("items", "s000000")
    table = pl.read_parquet(record.file("items.parquet").path)
    assert table.columns == ["id", "key"]
    assert table["id"].to_list() == list(range(25))
    assert table["key"].to_list()[:4] == ["item 0", "item 1", "item 2", "item 3"]
    assert record.details["repeated_keys"] == 1
    assert record.details["repeated_key_examples"] == ["item 23"]
    assert [rows for _, rows in record.details["files"]] == [25]


def test_members_that_belong_to_no_sample_are_counted_by_shard_also_of_a_cut_tar(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    names = ("1.jpg", "noext", ".hidden.jpg", "__MACOSX/1.jpg", "2.jpg", "3.jpg", "__MACOSX/3.jpg")
    for tar_name in ("a.tar", "b.tar"):
        with tarfile.open(tmp_path / "tars" / tar_name, "w") as tar:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = 600
                tar.addfile(member, io.BytesIO(bytes(600)))
    (tmp_path / "tars" / "c.tar").write_bytes((tmp_path / "tars" / "b.tar").read_bytes()[: 1536 * 5 + 700])
    source = {"kind": "webdataset", "path": f"{tmp_path}/tars"}
    settings = vectors_settings(tmp_path) | {
        "source": source,
        "encoder": {"kind": "openclip", "model": "ViT-B-32", "pretrained": "openai"},
        "shards": {"files_per_shard": 2},
        "cut_files": "accept",
    }
    runs = StageRuns(settings)
    runs.run(until="items")
    whole, cut = (runs.record("items", name).details for name in ("s000000", "s000001"))
    hidden, folders, bare = (
        "members with hidden names (. first)",
        "members in hidden folders (. first, __MACOSX)",
        "members without a suffix",
    )
    assert whole["passed_over"] == {hidden: 2, folders: 4, bare: 2}
    assert whole["items"] == 6
    assert cut["passed_over"] == {hidden: 1, folders: 1, bare: 1}
    assert len(cut["cut_files"]) == 1
    shown = str(as_metadata(whole)["passed_over"])
    assert f"{bare}: 2" in shown


def test_values_that_do_not_fit_their_column_are_null_and_listed(tmp_path: Path) -> None:
    views = [1.0, 2.5, None, float("inf"), float("nan")] + [3.0] * 55
    write_table(tmp_path, "0", near_duplicates(0), {"views": views, "title": ["a\tb\nc"] * 60})
    settings = vectors_settings(tmp_path)
    settings["source"] |= {"key": "name", "columns": {"views": "int", "title": "string"}}
    runs = StageRuns(settings)
    runs.run()
    record = runs.record("items", "s000000")
    assert (
        pl.read_parquet(record.file("items.parquet").path)["views"].to_list() == [1, None, None, None, None] + [3] * 55
    )
    assert record.details["invalid_values"] == 2
    assert [key for key, _ in record.details["invalid_value_examples"]] == ["0-1", "0-3"]
    folder, _ = runs.manifest(KEPT)
    kept = pl.read_parquet(folder / "parquet" / "s000000.parquet")
    assert kept.schema["views"] == pl.Int64
    assert kept["title"].unique().to_list() == ["a\tb\nc"]


def test_vectors_off_unit_norm_are_invalid_where_they_are_not_to_be_normalised(tmp_path: Path) -> None:
    vectors = near_duplicates(0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[5] *= 1.2
    write_shard(tmp_path, "0", vectors)
    runs = StageRuns(vectors_settings(tmp_path)).changed(encoder={"normalise": False})
    runs.run()
    listed = pl.read_parquet(runs.record("embeddings", "s000000").file("skipped.parquet").path)
    assert listed.rows() == [(5, "0.npy:5", "norm 1.2, not 1; set `normalise: true`")]


def test_shards_of_two_dimensions_are_refused_unless_one_is_set(tmp_path: Path) -> None:
    write_shard(tmp_path, "0", near_duplicates(0, dimension=16))
    path = write_shard(tmp_path, "1", near_duplicates(1, dimension=8))
    write_shard(tmp_path, "2", near_duplicates(2, dimension=16))
    runs = StageRuns(vectors_settings(tmp_path, max_skipped=1))
    with pytest.raises(ValueError, match=rf"vectors of 16 numbers.*8 in s000001 \({path}\).*encoder\.dimension: 16"):
        runs.run()
    named = runs.changed(encoder={"dimension": 16})
    named.run()
    assert named.record("embeddings", "s000001").details["skipped"] == 60
    assert {key.partition(".")[0] for key in named.kept_keys(KEPT)} == {"0", "2"}


@pytest.mark.parametrize("name", ["0", "1", "2"])
def test_an_empty_shard_and_one_of_invalid_items_only_change_nothing_for_the_others(tmp_path: Path, name: str) -> None:
    everything = small_pipeline(tmp_path)
    good = [f"{seed}" for seed in range(3) if f"{seed}" != name]
    alone = everything.changed(dataset="good", source={"path": f"{tmp_path}/source/[{''.join(good)}].npy"})
    alone.run()
    with_empty = everything.changed(dataset="empty")
    write_shard(tmp_path, name, np.empty((0, 16), np.float32))
    with_empty.run()
    with_invalid = everything.changed(dataset="invalid")
    write_shard(tmp_path, name, np.zeros((7, 16), np.float32))
    with_invalid.run()
    assert len(alone.kept_keys(KEPT)) > 20
    # Ids differ by the shard, and with them the order of equal items.
    assert len(with_empty.kept_keys(KEPT)) == pytest.approx(len(alone.kept_keys(KEPT)), abs=6)
    assert with_empty.kept_keys(KEPT) == with_invalid.kept_keys(KEPT)
    assert not any(key.startswith(f"{name}.npy") for key in with_empty.kept_keys(KEPT))
    assert with_empty.manifest(KEPT)[1]["records"] == 120
    assert with_invalid.manifest(KEPT)[1]["records"] == 127
    assert with_invalid.manifest(KEPT)[1]["skipped"] == 7
    assert with_invalid.run() == {}


def test_a_file_that_cannot_be_read_and_is_a_shard_of_its_own_counts_as_one_item_of_the_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    lines = "".join(json.dumps({"text": f"text number {number}"}) + "\n" for number in range(300))
    (folder / "a.jsonl").write_text(lines)
    source = {"kind": "jsonl", "path": str(folder)}
    runs = StageRuns(vectors_settings(tmp_path, source=source, encoder=STATIC_TEXTS))
    runs.run(until="embeddings")
    (folder / "b.jsonl").write_text('{"text": ""}\n')
    runs.run()
    assert runs.record("embeddings", "s000001").details["items"] == 0
    assert skipped_share(runs.context()).problems == []
    (reported,) = skipped_share_of_shards(runs.context()).problems
    assert (reported.partition, reported.measured[:16]) == ("s000001", "100.00%, 1 of 1:")
    assert len(runs.kept_keys(KEPT)) > 0


def test_a_manifest_is_one_table_also_where_a_shard_is_empty(tmp_path: Path) -> None:
    for name, rows in (("0", 0), ("1", 12)):
        write_table(tmp_path, name, near_duplicates(0)[:rows], {"quality": pa.array([0.5] * rows, pa.float64())})
    settings = vectors_settings(tmp_path)
    settings["source"]["columns"] = {"quality": "float"}
    runs = StageRuns(settings)
    runs.run()
    folder, details = runs.manifest(KEPT)
    assert len(list((folder / "parquet").iterdir())) == 2
    table = pl.read_parquet(f"{folder}/parquet/*.parquet")
    assert table.columns == ["id", "shard", "row", "file", "file_row", "key", "group", "group_size", "quality"]
    assert len(table) == details["kept"] > 0


def test_nothing_but_invalid_items_is_refused_with_where_to_look(tmp_path: Path) -> None:
    write_shard(tmp_path, "0", np.zeros((7, 16), np.float32))
    with pytest.raises(ValueError, match="no shard holds a single item that could be embedded; see the skipped items"):
        StageRuns(vectors_settings(tmp_path)).run()


def test_a_missing_source_is_reported(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"source does not exist: .*set `path` to an existing file, folder, glob or URL"
    ):
        StageRuns(vectors_settings(tmp_path)).run()


def test_a_single_item_is_kept_at_every_epsilon(tmp_path: Path) -> None:
    write_shard(tmp_path, "0", np.ones((1, 4), np.float32))
    runs = StageRuns(vectors_settings(tmp_path, epsilons=[0, 1, 2, "keep=1%"])).changed(clustering={"k": ["1"]})
    runs.run()
    for epsilon in runs.pipeline.epsilons:
        assert runs.kept_keys(f"{epsilon}|1") == ["0.npy:0"]


@pytest.mark.filterwarnings("ignore:k = 50 exceeds the 12 sampled items")
def test_more_clusters_than_items_and_more_buckets_than_clusters(tmp_path: Path) -> None:
    write_shard(tmp_path, "0", near_duplicates(0, groups=6, copies=2))
    runs = StageRuns(vectors_settings(tmp_path)).changed(clustering={"k": [1, 50, "auto"], "buckets": 20})
    runs.run()
    buckets = [runs.record("duplicate_scores", f"b{bucket:04d}|50").details for bucket in range(20)]
    assert sum(found["ranges"] for found in buckets) == sum(found["items"] for found in buckets) == 12
    details = runs.record("centroids", "50").details
    assert (details["requested_k"], details["k"]) == (50, 12)
    assert runs.kept_keys("0.05|50") == [f"0.npy:{row}" for row in range(12)]
    assert runs.record("centroids", "1").details["k"] == 1
    auto = runs.record("centroids", "auto").details
    assert auto["k"] == auto["k_suggested"] == runs.record("centroids", "1").details["k_suggested"] == 2
    for k in ("1", "50", "auto"):
        _, manifest = runs.manifest(f"0.05|{k}")
        assert manifest["kept"] + manifest["removed"] == 12
    assert runs.run() == {}


def test_one_cluster_compares_all_pairs(tmp_path: Path) -> None:
    vectors = near_duplicates(0)
    for part in range(3):
        write_shard(tmp_path, f"{part}", vectors[part * 20 : (part + 1) * 20])
    runs = StageRuns(vectors_settings(tmp_path)).changed(clustering={"k": [1]})
    runs.run()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = unit @ unit.T > 0.95
    alone = near.sum(1) == 1
    kept = {int(key[0]) * 20 + int(key.partition(":")[2]) for key in runs.kept_keys("0.05|1")}
    assert set(np.flatnonzero(alone)) <= kept
    assert not near[np.ix_(sorted(kept), sorted(kept))][~np.eye(len(kept), dtype=bool)].any()


def test_a_new_manifest_lies_beside_the_old_which_stays_byte_for_byte(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, shards=2)
    runs.run()
    old, _ = runs.manifest(KEPT)
    before = stored_files(old)
    assert {path for path in before if "parquet/" in path} == {f"parquet/s00000{shard}.parquet" for shard in range(2)}
    write_shard(tmp_path, "1", near_duplicates(5))
    runs.run()
    new, _ = runs.manifest(KEPT)
    assert new != old
    assert new.parent == old.parent
    assert stored_files(old) == before
    assert stored_files(new) != before
    write_shard(tmp_path, "1", near_duplicates(1))
    runs.run()
    again, _ = runs.manifest(KEPT)
    rows = {name: content for name, content in before.items() if name != "manifest.json"}
    assert {name: content for name, content in stored_files(again).items() if name != "manifest.json"} == rows
    assert stored_files(old) == before


def test_a_manifest_keeps_what_made_it(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, shards=1, epsilons=["keep=50%"])
    runs.run()
    folder, manifest = runs.manifest("keep=50%|3")
    made_with = manifest["made_with"]
    assert made_with["k"] == "3"
    assert made_with["clustering"]["iterations"] == 10
    assert made_with["target"] == "keep=50%"
    assert made_with["epsilon"] == runs.record("keep_masks", "keep=50%|3").details["epsilon"]
    assert made_with["encoder"] == {"kind": "precomputed", "normalise": True, "dimension": None}
    assert made_with["selection"] == {"keep": "hard", "rule": "chain", "seed": 0}
    assert manifest["inputs"] == runs.record("manifests", "keep=50%|3").inputs
    pointer = json.loads((folder.parent / "current.json").read_text())
    assert pointer["folder"] == folder.name
    assert (pointer["epsilon"], pointer["k"]) == ("keep=50%", "3")


def test_keep_lists_name_file_row_and_key(tmp_path: Path) -> None:
    runs = StageRuns({**small_pipeline(tmp_path).settings, "shards": {"files_per_shard": 2}})
    runs.run()
    folder, _ = runs.manifest(KEPT)
    lines = [
        line.split("\t") for path in sorted((folder / "keep_lists").iterdir()) for line in path.read_text().splitlines()
    ]
    assert [key for _, _, key in lines] == runs.kept_keys(KEPT)
    assert all(key == f"{Path(file).name}:{row}" for file, row, key in lines)
    assert len({file for file, _, _ in lines}) == 3
    assert len(list((folder / "keep_lists").iterdir())) == 2


def test_a_shard_whose_items_cannot_be_read_takes_nothing_from_the_others(tmp_path: Path) -> None:
    """Its vectors are there, a column is not: the other shards' items are kept as always."""
    for name in ("0", "1", "2"):
        columns = {} if name == "1" else {"quality": [0.5] * 60}
        write_table(tmp_path, name, near_duplicates(int(name)), columns)
    settings = vectors_settings(tmp_path)
    settings["source"] |= {"key": "name", "columns": {"quality": "float"}}
    for selection in ({}, {"keep": {"column": "quality"}}):
        runs = StageRuns({**settings, "selection": selection})
        runs.run()
        assert "quality" in str(runs.record("items", "s000001").excluded)
        assert {key.partition("-")[0] for key in runs.kept_keys(KEPT)} == {"0", "2"}
        _, manifest = runs.manifest(KEPT)
        assert list(manifest["made_with"]["excluded"]) == ["s000001"]
        assert manifest["unlisted"] == 60
        assert manifest["kept"] + manifest["removed"] == manifest["records"] == 120
        assert counts_are_conserved(runs.context()).problems == []
        (problem,) = values_are_valid(runs.context()).problems
        assert (problem.partition, "quality" in problem.measured) == ("s000001", True)
        assert runs.run() == {}


def test_a_shard_whose_file_is_cut_is_excluded_and_says_what_is_missing(tmp_path: Path) -> None:
    path = write_shard(tmp_path, "0", near_duplicates(0))
    write_shard(tmp_path, "1", near_duplicates(1))
    path.write_bytes(path.read_bytes()[: 128 + 40 * 64 + 5])
    runs = StageRuns(vectors_settings(tmp_path))
    runs.run()
    for stage in ("embeddings", "items"):
        assert f"{path}: cut off after 40 of its 60 rows; 20 are missing" in str(runs.record(stage, "s000000").excluded)
    assert {key.partition(":")[0] for key in runs.kept_keys(KEPT)} == {"1.npy"}


def test_a_parquet_source_without_rows_in_a_row_group_is_read(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    schema = pa.schema([("embedding", pa.list_(pa.float32())), ("name", pa.string())])
    with pq.ParquetWriter(tmp_path / "source" / "0.parquet", schema) as writer:
        for rows in (0, 7, 0, 5):
            vectors = [list(row) for row in near_duplicates(rows)[:rows]]
            writer.write_table(pa.table({"embedding": vectors, "name": ["x"] * rows}, schema=schema))
    runs = StageRuns(vectors_settings(tmp_path))
    runs.run()
    assert runs.record("embeddings", "s000000").details["items"] == 12


@pytest.mark.parametrize(
    ("kind", "stored", "first"),
    [
        ("int", pa.int64(), 1_700_000_000_000_000_000),
        ("uint", pa.uint64(), 2**64 - 60),
        ("int", pa.timestamp("ns"), 2**62),
    ],
)
def test_items_are_kept_by_integers_that_differ_by_one(
    tmp_path: Path, kind: str, stored: pa.DataType, first: int
) -> None:
    """As floats, all these numbers are equal."""
    order = np.random.default_rng(0).permutation(60)
    numbers = [first + int(place) for place in order]
    assert len({float(number) for number in numbers}) == 1
    write_table(tmp_path, "0", np.ones((60, 4), np.float32), {"when": pa.array(numbers, stored)})
    settings = vectors_settings(tmp_path)
    settings["source"] |= {"key": "name", "columns": {"when": kind}}
    for direction, first_row in (("ascending", np.argmin(order)), ("descending", np.argmax(order))):
        selection = {"keep": {"column": "when", "order": direction}}
        runs = StageRuns({**settings, "selection": selection}).changed(clustering={"k": [1]})
        runs.run()
        assert runs.kept_keys("0.05|1") == [f"0-{first_row}"]


def test_long_texts_make_small_row_groups_and_change_no_item(tmp_path: Path) -> None:
    """65,536 rows of a megabyte would fill the memory."""
    notes = [f"{row} " + "long " * 1_000_000 for row in range(20)]
    write_table(tmp_path, "0", near_duplicates(0)[:20], {"note": notes})
    settings = vectors_settings(tmp_path)
    settings["source"] |= {"key": "name", "columns": {"note": "string"}}
    runs = StageRuns(settings)
    runs.run(until="items")
    table = pq.ParquetFile(runs.record("items", "s000000").file("items.parquet").path)
    assert [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)] == [14, 6]
    assert table.read(["note"])["note"].to_pylist() == notes
