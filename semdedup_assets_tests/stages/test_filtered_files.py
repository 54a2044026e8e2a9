"""The source's own files with the kept rows only, against the source as PyArrow and NumPy read it."""

import datetime as dt
import decimal
import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from semdedup_assets import read_manifest
from semdedup_assets.checks.manifests import counts_are_conserved
from semdedup_assets.execution.shard_reader import SourceChangedError
from semdedup_assets.sources import Vectors
from semdedup_assets.sources.filtering import relative_name, write_array_rows, write_table_rows
from semdedup_assets_tests.assets.test_images_and_texts import read_by
from semdedup_assets_tests.stage_runs import StageRuns, stored_files
from semdedup_assets_tests.stages.test_source_copies import unseen
from semdedup_assets_tests.toy_source import STATIC_TEXTS, near_duplicates, vectors_settings, write_shard, write_table

KEPT = "0.05|3"
FORMATS = ["parquet", "removed", "filtered"]
WORDS = ["cat", "dog", "train", "river", "winter", "number", "parser", "matrix"]


def texts(rows: int, *, seed: int) -> list[str | None]:
    """Some texts twice, a null, and blank ones."""
    rng = np.random.default_rng(seed)
    found: list[str | None] = [f"{' '.join(rng.choice(WORDS, 4))} {seed}" for _ in range(rows // 2)] * 2
    found[3], found[5] = None, "  "
    return found


def hostile_table(rows: int, *, seed: int) -> pa.Table:
    """Columns of nested, dictionary, extension and exact types with nulls among them, repeated keys and metadata."""
    odd = [None if row % 3 == 0 else row for row in range(rows)]
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(rows * 4, dtype=np.float32).reshape(rows, 2, 2))
    columns = {
        "text": pa.array(texts(rows, seed=seed)),
        "key": pa.array([f"key {row % 5}\t\n" for row in range(rows)]),
        "raw": pa.array([None if row is None else bytes([row % 256, 255]) for row in odd], pa.binary()),
        "nested": pa.array([None if row is None else {"a": [row, None], "b": {"c": "x" * row}} for row in odd]),
        "lists": pa.array([[[row], []] if row else None for row in odd], pa.list_(pa.large_list(pa.int8()))),
        "map": pa.array([[("k", row)] if row else None for row in odd], pa.map_(pa.string(), pa.int32())),
        "kind": pa.array([f"kind {row % 2}" if row else None for row in odd]).dictionary_encode(),
        "price": pa.array([None if row is None else decimal.Decimal(row) / 100 for row in odd], pa.decimal128(12, 2)),
        "half": pa.array(np.arange(rows, dtype=np.float16)),
        "big": pa.array([2**64 - 1 - row for row in range(rows)], pa.uint64()),
        "at": pa.array(
            [dt.datetime(2020, 1, 1) + dt.timedelta(days=row) for row in range(rows)], pa.timestamp("ns", "UTC")
        ),
        "tensor": tensor,
    }
    schema = pa.schema(
        [
            pa.field(name, array.type, nullable=name != "big", metadata={"unit": name})
            for name, array in columns.items()
        ],
        metadata={"huggingface": '{"info": {}}', "ours": "é"},
    )
    return pa.table(list(columns.values()), schema=schema)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    """Tables of one name in several folders: of small row groups, of another writer's kind, of nothing new, of nothing."""
    folder = tmp_path_factory.mktemp("tables")
    source = folder / "source"
    for name in ("lang=en", "lang=fr/deep", "lang=de", "lang=es"):
        (source / name).mkdir(parents=True)
    first = hostile_table(40, seed=1)
    pq.write_table(first, source / "lang=en" / "part 0.parquet", row_group_size=7, compression="gzip")
    other = hostile_table(30, seed=2).drop_columns(["tensor", "half"])
    far = pa.array([dt.datetime(9999, 12, 31, 1, 2, 3, 456) for _ in range(30)], pa.timestamp("us"))
    other = other.append_column("far", far)
    with pq.ParquetWriter(
        source / "lang=fr" / "deep" / "part 0.parquet",
        other.schema,
        store_schema=False,
        use_deprecated_int96_timestamps=True,
        use_compliant_nested_type=False,
        compression={"text": "zstd", "big": "none"},
        version="1.0",
    ) as writer:
        writer.write_table(other)
        writer.add_key_value_metadata({"org.apache.spark": '{"type": "struct"}'})
    pq.write_table(first, source / "lang=de" / "part 0.parquet", use_dictionary=False)
    pq.write_table(first.slice(0, 0), source / "lang=es" / "part 0.parquet")
    settings = vectors_settings(
        folder,
        source={"kind": "parquet", "path": str(source), "text": "text", "key": "key"},
        encoder=STATIC_TEXTS,
        manifests=FORMATS,
        max_skipped=1,
        shards={"files_per_shard": 3},
        selection={"keep": "random"},
    )
    runs = StageRuns(settings)
    runs.run()
    return runs


def kept_rows(runs: StageRuns) -> dict[str, list[int]]:
    """The rows of each file of the source that the masks keep, ascending."""
    masks = runs.masks(KEPT)
    kept = set(masks.filter(masks["kept"])["id"].to_list())
    found: dict[str, list[int]] = {}
    for shard in runs.context().shards:
        first = shard.index << 32
        for file in shard.files:
            rows = rows_of(file.path)
            found[file.path] = [row for row in range(rows) if first + row in kept]
            first += rows
    return found


def rows_of(path: str) -> int:
    if path.endswith(".npz"):
        return len(np.load(path)["vectors"])
    return len(np.load(path)) if path.endswith(".npy") else pq.read_metadata(path).num_rows


def filtered(runs: StageRuns) -> Path:
    return runs.manifest(KEPT)[0] / "filtered"


def assert_rows_of(written: Path, source: Path, rows: list[int]) -> None:
    """A table holds exactly some rows of another, and is of its schema, metadata, types and compression."""
    expected, found = pq.read_table(source, partitioning=None), pq.read_table(written, partitioning=None)
    assert found.schema.equals(expected.schema, check_metadata=True)
    assert found.equals(expected.take(pa.array(rows, pa.int64())))
    own, original = pq.ParquetFile(written), pq.ParquetFile(source)
    assert str(own.schema).partition("\n")[2] == str(original.schema).partition("\n")[2]
    assert own.schema_arrow.metadata == original.schema_arrow.metadata
    assert (own.metadata.metadata or {}).keys() == (original.metadata.metadata or {}).keys()
    if rows:
        codecs = [
            [file.metadata.row_group(0).column(at).compression for at in range(len(file.schema))]
            for file in (own, original)
        ]
        assert codecs[0] == codecs[1]


def test_tables_hold_the_kept_rows_with_every_column_under_their_own_names(tables: StageRuns) -> None:
    folder, kept = filtered(tables), kept_rows(tables)
    source = Path(tables.settings["source"]["path"])
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {os.path.relpath(path, source) for path in kept}
    for path, rows in kept.items():
        assert_rows_of(folder / os.path.relpath(path, source), Path(path), rows)
    of_copy = kept[str(source / "lang=de" / "part 0.parquet")], kept[str(source / "lang=en" / "part 0.parquet")]
    assert len(of_copy[0]) + len(of_copy[1]) < 20
    _, details = tables.manifest(KEPT)
    assert details["kept"] == sum(map(len, kept.values())) == details["rows_written"]["filtered"]
    assert details["kept"] + details["removed"] + details["skipped"] == 110 == details["records"]
    assert details["changed"] == {"images_put_into_tables": 0}
    assert counts_are_conserved(tables.context()).problems == []


def test_times_of_the_old_type_beyond_2262_are_those_of_the_source(tables: StageRuns) -> None:
    written = filtered(tables) / "lang=fr" / "deep" / "part 0.parquet"
    file = pq.ParquetFile(written, coerce_int96_timestamp_unit="us")
    assert file.metadata.row_group(0).column(len(file.schema) - 1).physical_type == "INT96"
    assert set(file.read(["far"])["far"].to_pylist()) == {dt.datetime(9999, 12, 31, 1, 2, 3, 456)}


def test_folders_of_partitions_are_those_of_the_source(tables: StageRuns) -> None:
    folder, details = tables.manifest(KEPT)
    partitions = ds.dataset(folder / "filtered", partitioning="hive", format="parquet").to_table(columns=["lang"])
    assert set(partitions["lang"].to_pylist()) <= {"en", "fr", "de"}
    assert len(partitions) == details["kept"]


def refused(runs: StageRuns, match: str) -> None:
    """Making the manifest fails, and leaves the earlier one as it was."""
    store = Path(runs.settings["store"])
    before = stored_files(store)
    with pytest.raises(SourceChangedError, match=match):
        runs.make("manifests", KEPT)
    assert stored_files(store) == before


def test_tables_that_are_not_what_was_embedded_are_refused(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "0.parquet"
    pq.write_table(
        pa.table({"text": ["one cat sat", "two trains left", "rain"], "n": [1, 2, 3]}),
        path,
        compression="none",
        use_dictionary=False,
    )
    pq.write_table(pa.table({"text": [None], "n": [0]}), tmp_path / "source" / "1.parquet")
    runs = StageRuns(
        vectors_settings(
            tmp_path,
            source={"kind": "parquet", "path": str(tmp_path / "source"), "text": "text"},
            encoder=STATIC_TEXTS,
            manifests=["filtered"],
            epsilons=["0.05"],
            max_skipped=1,
        )
    )
    runs.run()
    key = str(runs.context().index.partitions("manifests")[0])
    assert key == KEPT
    assert [len(pq.read_table(each)) for each in sorted(filtered(runs).iterdir())] == [3, 0]
    assert "3 rows of text, n" in (
        printed := read_by("filtered_tables.py", filtered(runs).parent.parent / "current.json")
    )
    assert printed.splitlines()[-1] == "3 rows"
    unseen(path, lambda content: content.replace(b"two trains left", b"two planes left"))
    refused(runs, r"0\.parquet: changed since it was embedded: record 1 \(counted from 0\) is not the one")
    unseen(path, lambda content: content.replace(b"two planes left", b"two trains left"))
    (tmp_path / "source" / "1.parquet").unlink()
    refused(
        runs, r"1\.parquet: changed since it was embedded: .*1\.parquet: cannot be opened|1\.parquet is no longer there"
    )


def test_rows_before_a_damaged_page_are_kept_with_all_their_columns(tmp_path: Path) -> None:
    """The batches of the texts end at another row than those of all columns together."""
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "0.parquet"
    wanted = [f"{row} {WORDS[row % 8]} {'x' * 290}" for row in range(10_000)]
    table = pa.table({"text": wanted, "pad": [bytes(40)] * 10_000, "good": [True] * 10_000})
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "data_page_size": 4096}
    pq.write_table(table, path, write_page_checksum=True, **options)
    unseen(path, lambda content: content.replace(b"5000 cat", b"5000 CAT"))
    settings = vectors_settings(
        tmp_path,
        source={"kind": "parquet", "path": str(tmp_path / "source"), "text": "text", "columns": {"good": "bool"}},
        encoder=STATIC_TEXTS,
        manifests=["filtered"],
        max_skipped=1,
        selection={"protect": "good"},
    )
    runs = StageRuns(settings)
    runs.run()
    found = pq.read_table(filtered(runs) / "0.parquet")
    (rows,) = kept_rows(runs).values()
    assert len(found) == len(rows) > 0
    assert 3000 < max(rows) < 5000
    assert found["text"].to_pylist() == [wanted[row] for row in rows]


# Vectors


def vector_runs(folder: Path, **source: Any) -> StageRuns:
    settings = vectors_settings(folder, manifests=FORMATS, max_skipped=1, shards={"files_per_shard": 2})
    runs = StageRuns(settings).changed(source=source)
    runs.run()
    return runs


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
def test_arrays_hold_the_kept_rows_as_the_source_has_them(tmp_path: Path, dtype: str) -> None:
    for number in range(3):
        vectors = (7 * near_duplicates(number)).astype(dtype)
        vectors[4] = np.nan
        write_shard(tmp_path, f"sub {number}/vectors", vectors)
    write_shard(tmp_path, "copy", np.load(tmp_path / "source" / "sub 0" / "vectors.npy"))
    write_shard(tmp_path, "empty", np.zeros((0, 16), dtype))
    runs = vector_runs(tmp_path)
    kept = kept_rows(runs)
    for path, rows in kept.items():
        found = np.load(filtered(runs) / os.path.relpath(path, tmp_path / "source"))
        assert found.dtype == np.dtype(dtype)
        assert found.tobytes() == np.load(path)[rows].tobytes()
        assert found.shape == (len(rows), 16)
    _, details = runs.manifest(KEPT)
    assert details["rows_written"]["filtered"] == details["kept"] < 180
    assert counts_are_conserved(runs.context()).problems == []
    again = Vectors(path=str(filtered(runs)))
    assert sum(len(each.vectors) for file in again.files() for each in again.read(file.path)) == details["kept"]


def test_tables_beside_arrays_are_cut_to_the_same_rows_as_clip_retrieval_has_them(tmp_path: Path) -> None:
    for number in range(2):
        write_shard(tmp_path, f"img_emb/img_emb_{number}", near_duplicates(number))
        write_table(
            tmp_path,
            f"metadata/metadata_{number}",
            near_duplicates(number),
            {"url": [f"u{row % 9}" for row in range(60)]},
        )
    source = tmp_path / "source"
    runs = vector_runs(tmp_path, path=str(source / "img_emb"), metadata=str(source / "metadata"), key="url")
    for number, (path, rows) in enumerate(kept_rows(runs).items()):
        assert np.array_equal(np.load(filtered(runs) / "img_emb" / f"img_emb_{number}.npy"), np.load(path)[rows])
        table = Path("metadata") / f"metadata_{number}.parquet"
        assert_rows_of(filtered(runs) / table, source / table, rows)
    folder, details = runs.manifest(KEPT)
    assert details["rows_written"]["filtered"] == details["rows_written"]["filtered_metadata"] == details["kept"]
    assert counts_are_conserved(runs.context()).problems == []
    assert f"{details['kept']} vectors of 16 numbers" in read_by("filtered_vectors.py", folder)
    with pytest.raises(FileNotFoundError, match="it holds filtered, parquet, removed, and not filtered_metadata"):
        read_manifest(str(folder)).files("filtered_metadata")
    table_path = source / "metadata" / "metadata_1.parquet"
    stat = table_path.stat()
    os.utime(table_path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    refused(runs, r"metadata_1\.parquet: changed since it was embedded: it is not the file that was observed")


def test_archives_keep_their_other_arrays_and_tables_their_columns(tmp_path: Path) -> None:
    vectors = near_duplicates(0)
    (tmp_path / "source").mkdir()
    others = {"ids": np.arange(60), "names": np.array([f"é{row}" for row in range(60)]), "mean": vectors.mean(axis=0)}
    np.savez_compressed(tmp_path / "source" / "0.npz", vectors=vectors, **others)
    write_table(tmp_path, "1", vectors + 1, {"tags": [[row, None] for row in range(60)]})
    runs = vector_runs(tmp_path)
    kept = kept_rows(runs)
    rows = kept[str(tmp_path / "source" / "0.npz")]
    with np.load(filtered(runs) / "0.npz") as found:
        assert sorted(found) == ["ids", "mean", "names", "vectors"]
        assert np.array_equal(found["vectors"], vectors[rows])
        assert found["ids"].tolist() == rows
        assert found["names"].tolist() == [f"é{row}" for row in rows]
        assert np.array_equal(found["mean"], others["mean"])
    table = tmp_path / "source" / "1.parquet"
    assert_rows_of(filtered(runs) / "1.parquet", table, kept[str(table)])
    folder = filtered(runs).parent
    assert f"{len(rows)} vectors of 16 numbers" in read_by("filtered_vectors.py", folder)
    pickled = np.array([None] * 60, dtype=object)
    np.savez(tmp_path / "source" / "0.npz", vectors=vectors, pickled=pickled)
    with pytest.raises(
        ValueError, match=r"0\.npz: array 'pickled\.npy' has as many rows as there are vectors, and holds Python"
    ):
        runs.run()


def test_vectors_that_are_not_what_was_embedded_are_refused(tmp_path: Path) -> None:
    path = write_shard(tmp_path, "0", near_duplicates(0))
    runs = vector_runs(tmp_path)
    (rows,) = kept_rows(runs).values()
    changed = near_duplicates(0)
    changed[rows[5]] *= -1
    unseen(path, lambda content: content[: -changed.nbytes] + changed.tobytes())
    refused(runs, rf"0\.npy: changed since it was embedded: record {rows[5]} \(counted from 0\) is not the one")


def test_a_folder_of_images_is_refused_with_what_it_can_have(tmp_path: Path) -> None:
    encoder = {"kind": "openclip", "model": "ViT-B-16", "pretrained": "openai"}
    settings = vectors_settings(
        tmp_path, source={"kind": "folder", "path": "x"}, encoder=encoder, manifests=["filtered"]
    )
    with pytest.raises(
        ValueError,
        match="'filtered' needs a source of kind parquet or vectors or jsonl or webdataset, not 'folder'; of it there can "
        "be parquet, removed, keep_lists, csv, webdataset",
    ):
        StageRuns(settings).pipeline  # noqa: B018


@pytest.mark.parametrize(
    ("path", "setting", "beside", "name"),
    [
        ("/d/a.parquet", "/d/a.parquet", None, "a.parquet"),
        ("/d/x/a.parquet", "/d", None, "x/a.parquet"),
        ("/d/x/a.parquet", "/d/*/a.parquet", None, "x/a.parquet"),
        ("/d/x/a.parquet", "/d/{x,y}/a.parquet", None, "x/a.parquet"),
        ("/d/[1]/a.parquet", "/d/[1]", None, "a.parquet"),
        ("/d/e/0.npy", "/d/e", ("/d/m/0.parquet", "/d/m/*.parquet"), "e/0.npy"),
        ("/d/0.npy", "/d/0.npy", ("/d/0.parquet", "/d/0.parquet"), "0.npy"),
        ("memory://b/e/0.npy", "memory://b/e", ("/m/0.parquet", "/m"), "b/e/0.npy"),
        ("memory://b/p/x y.parquet", "memory://b/p", None, "x y.parquet"),
        ("https://h/p/x%20y.parquet", "https://h/p/", None, "x y.parquet"),
        ("s3://b1/x.parquet", "s3://{b1,b2}/x.parquet", None, "b1/x.parquet"),
        ("memory://b/../x.parquet", "memory://b", None, "%2E%2E/x.parquet"),
        ("https://h/get?file=1.parquet", "https://h/get?file={0,1}.parquet", None, "get?file=1.parquet"),
        ("https://h/e/0.npy", "https://h/{e,f}/0.npy", ("https://h/m/0.parquet", "https://h/m"), "e/0.npy"),
        ("https://h/l/e/0.npy", "https://h/l/e/", ("http://h/l/m/0.parquet", "http://h/l/m"), "e/0.npy"),
        ("s3://b/l/e/0.npy", "s3://b/l/e", ("s3://c/l/m/0.parquet", "s3://c/l/m"), "b/l/e/0.npy"),
        ("/d/a\udcff.parquet", "/d", None, "a\\udcff.parquet"),
    ],
)
def test_names_are_those_below_the_folder_of_the_settings(
    path: str, setting: str, beside: tuple[str, str] | None, name: str
) -> None:
    assert relative_name(path, setting, beside) == name


def test_files_that_would_have_one_name_are_refused_before_any_is_written(tmp_path: Path) -> None:
    """Of which one is not valid Unicode, and the other has the escape in its name; in shards of their own."""
    for number, name in enumerate(("a\udcff", "a\\udcff")):
        write_shard(tmp_path, name, near_duplicates(number))
    settings = vectors_settings(tmp_path, manifests=["filtered"], shards={"files_per_shard": 1})
    runs = StageRuns(settings)
    with pytest.raises(ValueError, match=r"would both be written as 'a\\\\udcff\.npy'; rename one of them"):
        runs.run()
    assert not list(Path(settings["store"]).rglob("filtered"))


def test_rows_of_types_that_arrow_does_not_filter_are_chosen(tmp_path: Path) -> None:
    views = {"a": pa.array([f"text {row}" * 3 for row in range(100)], pa.string_view())}
    nested = pa.array([[None, b"x" * row] for row in range(100)], pa.list_(pa.binary_view()))
    table = pa.table({**views, "b": nested, "n": range(100)})
    pq.write_table(table, tmp_path / "0.parquet", row_group_size=30)
    keep = np.arange(100) % 7 < 3
    with (tmp_path / "out.parquet").open("wb") as stream:
        write_table_rows(str(tmp_path / "0.parquet"), keep, stream)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.schema.equals(table.schema)
    assert found.to_pylist() == [row for row, kept in zip(table.to_pylist(), keep, strict=True) if kept]


def test_row_groups_are_as_large_as_the_source_has_them_where_few_rows_stay(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": np.arange(100_000)}), tmp_path / "0.parquet", row_group_size=1000)
    keep = np.arange(100_000) % 100 == 0
    with (tmp_path / "out.parquet").open("wb") as stream:
        write_table_rows(str(tmp_path / "0.parquet"), keep, stream)
    metadata = pq.read_metadata(tmp_path / "out.parquet")
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [1000]
    assert pq.read_table(tmp_path / "out.parquet")["n"].to_pylist() == np.flatnonzero(keep).tolist()


@pytest.mark.parametrize("fields", [700, 5000])
def test_records_of_many_fields_beside_vectors_are_cut_to_the_same_rows(tmp_path: Path, fields: int) -> None:
    """NumPy itself refuses headers of more than 10 kB, and writes more than 64 KiB in another version."""
    records = np.zeros(6, [(f"field {number}", "u1") for number in range(fields)])
    records["field 3"] = np.arange(6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.savez(tmp_path / "0.npz", vectors=np.eye(6, 3, dtype=np.float32), records=records)
    keep = np.array([True, False, True, True, False, False])
    with (tmp_path / "out.npz").open("wb") as stream:
        write_array_rows(str(tmp_path / "0.npz"), keep, stream, most_mib=1)
    with np.load(tmp_path / "out.npz", max_header_size=1 << 20) as found:
        assert np.array_equal(found["records"], records[keep])
        assert found["records"].dtype == records.dtype


def test_an_array_whose_rows_cannot_be_told_is_refused(tmp_path: Path) -> None:
    records = np.zeros(6, [("größe", "u1"), ("大きさ", "u1")])
    with pytest.warns(UserWarning, match="Stored array in format 3"):
        np.savez(tmp_path / "0.npz", vectors=np.eye(6, 3, dtype=np.float32), records=records)
    with pytest.raises(ValueError, match=r"0\.npz: array 'records\.npy' cannot be cut to the rows of the vectors"):
        write_array_rows(str(tmp_path / "0.npz"), np.ones(6, bool), io.BytesIO(), most_mib=1)


def test_damage_in_a_column_that_nothing_uses_is_named_as_damage(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "0.parquet"
    table = pa.table({"text": [f"{word} one" for word in WORDS], "unused": [f"nobody reads {word}" for word in WORDS]})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    unseen(path, lambda content: content.replace(b"reads train", b"reads TRAIN"))
    settings = vectors_settings(
        tmp_path,
        source={"kind": "parquet", "path": str(tmp_path / "source"), "text": "text"},
        encoder=STATIC_TEXTS,
        manifests=["filtered"],
    )
    with pytest.raises(
        ValueError, match=r"0\.parquet: damaged: .*\(damaged columns: 'unused'\); .* replace the file by a whole one"
    ):
        StageRuns(settings).run()


def test_a_manifest_on_an_object_store_names_its_filtered_files(tmp_path: Path) -> None:
    write_shard(tmp_path, "sub/0", near_duplicates(0))
    runs = vector_runs(tmp_path).changed(store=f"memory://{tmp_path.name}")
    runs.run()
    record = runs.record("manifests", KEPT)
    (file,) = read_manifest(record.location).files("filtered")
    assert file.endswith("/filtered/sub/0.npy")
    assert record.details["rows_written"]["filtered"] == record.details["kept"]
