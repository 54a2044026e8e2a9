from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semdedup_assets.compute import Compute
from semdedup_assets.encoders import Precomputed
from semdedup_assets.records import Invalid, Item, Skipped, VectorBatch
from semdedup_assets.sources import TruncatedFile, Vectors
from semdedup_assets_tests.sources.cut_files import until_cut


def some_vectors(n: int, d: int = 8, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, d)).astype(dtype)


def write(path: Path, table: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(table), path, **options)
    return path


def read_all(source: Vectors) -> list[VectorBatch | Invalid]:
    return [item for file in source.files() for item in source.read(file.path)]


def all_items(source: Vectors) -> list[Item]:
    return [item for file in source.files() for item in source.read_items(file.path)]


def keys(items: list[VectorBatch | Invalid]) -> list[str]:
    return [key for item in items for key in (item.keys if isinstance(item, VectorBatch) else [item.key])]


def joined(items: list[VectorBatch | Invalid]) -> VectorBatch:
    """All batches of items, of which none is invalid."""
    batches = [item for item in items if isinstance(item, VectorBatch)]
    assert len(batches) == len(items)
    return VectorBatch(
        [key for batch in batches for key in batch.keys],
        np.concatenate([batch.vectors for batch in batches]),
    )


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("layout", ["list", "large_list", "fixed", "tensor", "nested"])
def test_every_way_to_store_vectors_in_parquet_gives_them_as_stored(tmp_path: Path, dtype: str, layout: str) -> None:
    vectors = some_vectors(20_000, dtype=dtype)
    numbers, kind = pa.array(vectors.ravel()), pa.from_numpy_dtype(np.dtype(dtype))
    fixed = pa.FixedSizeListArray.from_arrays(numbers, 8)
    column = {
        "list": lambda: fixed.cast(pa.list_(kind)),
        "large_list": lambda: fixed.cast(pa.large_list(kind)),
        "fixed": lambda: fixed,
        "tensor": lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(vectors),
        "nested": lambda: pa.StructArray.from_arrays([fixed], ["clip"]),
    }[layout]()
    write(tmp_path / "a.parquet", {"embedding": column, "id": range(20_000)}, row_group_size=9_000)
    source = Vectors(
        path=str(tmp_path),
        vector="embedding.clip" if layout == "nested" else "embedding",
        key="id",
        columns={"id": "int"},
    )
    items = read_all(source)
    found = joined(items)
    assert max(len(item.keys) for item in items if isinstance(item, VectorBatch)) <= 8192
    np.testing.assert_array_equal(found.vectors, vectors, strict=True)
    assert found.keys == [str(row) for row in range(20_000)]
    assert all_items(source) == [Item(str(row), {"id": row}) for row in range(20_000)]
    assert source.column_types == {"id": "int"}


def test_invalid_rows_of_parquet_keep_their_row(tmp_path: Path) -> None:
    vectors = [None, [], [1.0, 2.0], [3.0, 4.0, 5.0], [6.0, None], [7.0, 8.0], [9.0, 0.0]]
    table = {
        "embedding": vectors,
        "id": ["0", "1", "2", "3", "4", None, "6"],
        "score": [None, None, 0.5, None, None, None, 7.0],
    }
    write(tmp_path / "a.parquet", table)
    source = Vectors(path=str(tmp_path), key="id", columns={"score": "int"})
    items = read_all(source)
    assert [item.key if isinstance(item, Invalid) else item.keys for item in items] == [
        "0",
        "1",
        ["2"],
        ["3"],
        "4",
        ["a.parquet:5", "6"],
    ]
    assert [item.reason for item in items if isinstance(item, Invalid)] == [
        "null vector",
        "empty vector: 0 numbers",
        "a null among the vector's numbers",
    ]
    assert [item.vectors.tolist() for item in items if isinstance(item, VectorBatch)] == [
        [[1.0, 2.0]],
        [[3.0, 4.0, 5.0]],
        [[7.0, 8.0], [9.0, 0.0]],
    ]
    found = all_items(source)
    assert [item.key for item in found] == keys(items)
    assert [item.columns["score"] for item in found] == [None] * 6 + [7]
    assert {row: item.invalid_values for row, item in enumerate(found) if item.invalid_values} == {
        2: ("column 'score': 0.5 is not an int",),
        5: ("key 'id': None is neither a string nor a whole number, a UUID or bytes",),
    }


def test_damage_in_one_column_shifts_no_row_of_another(tmp_path: Path) -> None:
    numbers = pa.FixedSizeListArray.from_arrays(pa.array(some_vectors(30_000).ravel()), 8)
    table = {"id": [f"k{row**3}" for row in range(30_000)], "embedding": numbers}
    path = write(tmp_path / "a.parquet", table, use_dictionary=False, row_group_size=10_000, write_page_checksum=True)
    whole = path.read_bytes()
    source = Vectors(path=str(path), key="id")
    for column in (0, 1):
        chunk = pq.ParquetFile(path).metadata.row_group(1).column(column)
        content = bytearray(whole)
        middle = chunk.data_page_offset + chunk.total_compressed_size // 2
        content[middle : middle + 2000] = b"\xa5" * 2000
        path.write_bytes(content)
        items = read_all(source)
        assert [item.key for item in all_items(source)] == keys(items)
        assert len(keys(items)) == 30_000
        assert (keys(items) == table["id"]) == (column == 1)
        invalid = [item for item in items if isinstance(item, Invalid)]
        assert bool(invalid) == (column == 1)
        assert all("cut off or damaged at row" in item.reason for item in invalid)
        path.write_bytes(whole)


@pytest.mark.skipif(int(pa.__version__.split(".")[0]) < 26, reason="older Arrow cannot read such a Parquet file at all")
def test_fixed_size_lists_with_nulls_keep_the_others(tmp_path: Path) -> None:
    column = pa.array([[1.0, 2.0], None, [3.0, None], [5.0, 6.0]], pa.list_(pa.float32(), 2))
    write(tmp_path / "a.parquet", {"embedding": column})
    first, null, gap, last = read_all(Vectors(path=str(tmp_path)))
    assert [first.vectors.tolist(), last.vectors.tolist()] == [[[1.0, 2.0]], [[5.0, 6.0]]]
    assert [null, gap] == [
        Invalid("a.parquet:1", "null vector"),
        Invalid("a.parquet:2", "a null among the vector's numbers"),
    ]


@pytest.mark.parametrize("dimension", [None, 2])
@pytest.mark.parametrize("odd", [0, 1, 50])
def test_a_vector_of_another_length_makes_only_itself_invalid(tmp_path: Path, odd: int, dimension: int | None) -> None:
    rows = [[1.0, float(row)] for row in range(51)]
    rows[odd] = [1.0]
    write(tmp_path / "a.parquet", {"embedding": rows})
    model = Precomputed(dimension=dimension).load(Compute(device="cpu"))
    embedded = list(model.embed(read_all(Vectors(path=str(tmp_path)))))
    assert [row for part in embedded for row in part.rows] == [row for row in range(51) if row != odd]
    assert [skipped for part in embedded for skipped in part.skipped] == [
        Skipped(odd, f"a.parquet:{odd}", "1 numbers, expected 2")
    ]


@given(
    rows=st.lists(st.none() | st.lists(st.none() | st.floats(-9, 9, width=32), max_size=3), min_size=1, max_size=12),
    kind=st.sampled_from([pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float16())]),
)
@settings(deadline=None, max_examples=60)
def test_every_row_is_a_vector_as_it_is_stored_or_invalid(
    rows: list[list[float | None] | None], kind: pa.DataType, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lists") / "a.parquet"
    column = pa.array(rows, pa.list_(pa.float64())).cast(kind)
    pq.write_table(pa.table({"embedding": column}), path, row_group_size=5)
    found = [
        row
        for item in Vectors(path=str(path)).read(str(path))
        for row in ([item.reason] if isinstance(item, Invalid) else item.vectors.tolist())
    ]
    reasons = {"null vector": None, "empty vector: 0 numbers": [], "a null among the vector's numbers": ...}
    for row, stored in zip(found, column.to_pylist(), strict=True):
        if isinstance(row, str):
            assert reasons[row] == (... if stored and None in stored else stored)
        else:
            assert row == stored


def test_a_column_that_holds_no_floats_or_is_missing_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"Embedding": [[1, 2]], "x": [1.0]})
    with pytest.raises(ValueError, match=r"no column 'embedding'; did you mean 'Embedding'\?"):
        read_all(Vectors(path=str(path)))
    with pytest.raises(ValueError, match=f"{path}: column 'Embedding' holds list<.*int64>, not lists of float16"):
        read_all(Vectors(path=str(path), vector="Embedding"))
    with pytest.raises(ValueError, match="column 'x' holds double, not lists"):
        read_all(Vectors(path=str(path), vector="x"))


@pytest.fixture
def clip_retrieval(tmp_path: Path) -> Path:
    """Two arrays with their metadata, as clip-retrieval writes them."""
    (tmp_path / "img_emb").mkdir()
    for index, rows in enumerate((9_000, 5)):
        np.save(tmp_path / f"img_emb/img_emb_{index}.npy", some_vectors(rows, dtype="float16"))
        table = {"image_path": [f"{index}/{row}.jpg" for row in range(rows)], "caption": [f"c{index}"] * rows}
        write(tmp_path / f"metadata/metadata_{index}.parquet", table, row_group_size=5_000)
    return tmp_path


def clip_source(root: Path, **settings: Any) -> Vectors:
    settings = {"metadata": str(root / "metadata"), "key": "image_path", "columns": {"caption": "string"}} | settings
    return Vectors(path=str(root / "img_emb"), **settings)


def test_clip_retrievals_arrays_get_keys_and_columns_from_their_metadata(clip_retrieval: Path) -> None:
    source = clip_source(clip_retrieval)
    found = joined(read_all(source))
    expected = np.concatenate([some_vectors(rows, dtype="float16") for rows in (9_000, 5)])
    np.testing.assert_array_equal(found.vectors, expected, strict=True)
    assert found.keys == [f"{i}/{row}.jpg" for i, rows in enumerate((9_000, 5)) for row in range(rows)]
    captions = ["c0"] * 9_000 + ["c1"] * 5
    assert all_items(source) == [
        Item(key, {"caption": caption}) for key, caption in zip(found.keys, captions, strict=True)
    ]


def test_changed_metadata_is_a_changed_file(clip_retrieval: Path) -> None:
    source = clip_source(clip_retrieval)
    before = source.files()
    write(clip_retrieval / "metadata/metadata_1.parquet", {"image_path": ["other"] * 5, "caption": ["d"] * 5})
    assert [one == other for one, other in zip(before, source.files(), strict=True)] == [True, False]


def test_arrays_without_metadata_have_their_rows_as_keys(clip_retrieval: Path) -> None:
    for changed in ({"metadata": None}, {}):
        source = clip_source(clip_retrieval, key=None, columns={}, **changed)
        found = joined(read_all(source))
        assert all_items(source) == [Item(key, {}) for key in found.keys]
        assert [found.keys[0], found.keys[8_999], found.keys[9_000]] == [
            "img_emb_0.npy:0",
            "img_emb_0.npy:8999",
            "img_emb_1.npy:0",
        ]
    with pytest.raises(ValueError, match=r"img_emb_0\.npy: an array has no column 'image_path'; set `metadata`"):
        all_items(clip_source(clip_retrieval, metadata=None))
    assert joined(read_all(clip_source(clip_retrieval, metadata=None))).keys == found.keys


def test_metadata_of_other_length_names_both_files_and_counts(clip_retrieval: Path) -> None:
    write(clip_retrieval / "metadata/metadata_1.parquet", {"image_path": ["a"], "caption": ["b"]})
    source = clip_source(clip_retrieval)
    with pytest.raises(ValueError, match=r"img_emb_1\.npy has 5 rows but its metadata .*metadata_1\.parquet has 1"):
        next(source.read_items(source.files()[1].path))
    (batch,) = source.read(source.files()[1].path)
    assert batch.keys == [f"img_emb_1.npy:{row}" for row in range(5)]


def test_a_metadata_file_too_few_names_both_and_counts(clip_retrieval: Path) -> None:
    (clip_retrieval / "metadata/metadata_0.parquet").unlink()
    with pytest.raises(
        ValueError,
        match=r"own metadata file.*: of .*img_emb 1 \(.*img_emb_0\.npy\) without a partner, of .*metadata none$",
    ):
        clip_source(clip_retrieval).files()


def test_no_metadata_row_makes_a_vector_invalid(clip_retrieval: Path) -> None:
    table = {"image_path": ["0", "1", None, "3", "4"], "caption": ["a", "b", "c", "d", None]}
    write(clip_retrieval / "metadata/metadata_1.parquet", table)
    source = clip_source(clip_retrieval, columns={"caption": "int"})
    path = source.files()[1].path
    (batch,) = source.read(path)
    np.testing.assert_array_equal(batch.vectors, some_vectors(5, dtype="float16"))
    items = list(source.read_items(path))
    assert batch.keys == [item.key for item in items] == ["0", "1", "img_emb_1.npy:2", "3", "4"]
    assert items[2].invalid_values == (
        "key 'image_path': None is neither a string nor a whole number, a UUID or bytes",
        "column 'caption': 'c' is not an int",
    )


@pytest.mark.parametrize(
    ("array", "reported"),
    [
        (np.zeros(5, np.float32), r"holds float32 of shape \(5,\)"),
        (np.zeros((2, 3, 4), np.float32), r"of shape \(2, 3, 4\)"),
        (np.zeros((2, 3), np.int8), "holds int8 of shape"),
        (np.asfortranarray(np.zeros((2, 3), np.float32)), "column by column"),
    ],
)
def test_an_array_of_other_shape_or_type_is_reported(tmp_path: Path, array: np.ndarray, reported: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=rf"a\.npy: .*{reported}.*not two dimensions.*ascontiguousarray"):
        read_all(Vectors(path=str(tmp_path)))


def test_big_endian_arrays_come_in_the_machines_order(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", some_vectors(3).astype(">f4"))
    np.testing.assert_array_equal(joined(read_all(Vectors(path=str(tmp_path)))).vectors, some_vectors(3), strict=True)


def test_a_cut_array_gives_its_whole_rows_and_then_says_how_many_are_missing(clip_retrieval: Path) -> None:
    path = clip_retrieval / "img_emb/img_emb_0.npy"
    content = path.read_bytes()
    for source in (clip_source(clip_retrieval), clip_source(clip_retrieval, metadata=None, key=None, columns={})):
        path.write_bytes(content[: 128 + 8_500 * 16 + 7])
        batches, cut = until_cut(source.read(str(path)))
        found = joined(batches)
        np.testing.assert_array_equal(found.vectors, some_vectors(9_000, dtype="float16")[:8_500])
        assert cut == f"{path}: cut off after 8,500 of its 9,000 rows; 500 are missing"
        items, same = until_cut(source.read_items(str(path)))
        assert ([item.key for item in items], same) == (found.keys, cut)
        for size in (0, 5, 100):
            path.write_bytes(content[:size])
            for read, cut in (until_cut(source.read(str(path))), until_cut(source.read_items(str(path)))):
                assert read == []
                assert f"{path}: cut off or damaged at its header" in str(cut)


def test_cut_metadata_make_no_vector_invalid(clip_retrieval: Path) -> None:
    path = clip_retrieval / "metadata/metadata_1.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    source = clip_source(clip_retrieval)
    (batch,) = source.read(source.files()[1].path)
    np.testing.assert_array_equal(batch.vectors, some_vectors(5, dtype="float16"))
    items = list(source.read_items(source.files()[1].path))
    assert [item.key for item in items] == batch.keys == [f"img_emb_1.npy:{row}" for row in range(5)]
    assert [len(item.invalid_values) for item in items] == [2] * 5
    assert f"{path}: cut off or damaged at its footer" in items[0].invalid_values[0]


def test_files_of_no_rows_have_no_records(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", some_vectors(0))
    write(tmp_path / "b.parquet", {"embedding": pa.array([], pa.list_(pa.float32()))})
    assert read_all(Vectors(path=str(tmp_path))) == all_items(Vectors(path=str(tmp_path))) == []


def saved(folder: Path, names: str, suffix: str) -> list[str]:
    """Files of two rows, each with its own name in it."""
    for name in names.split():
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".npy":
            np.save(path, np.ones((2, 4), np.float32))
        else:
            pq.write_table(pa.table({"id": [f"{name}#0", f"{name}#1"]}), path)
    return sorted(names.split())


@pytest.mark.parametrize(
    ("arrays", "tables", "pairs"),
    [
        ("emb_0 emb_1 emb_2 emb_10", "meta_0 meta_1 meta_2 meta_10", "meta_0 meta_1 meta_10 meta_2"),
        ("emb_00 emb_01 emb_10", "meta_0 meta_1 meta_10", "meta_0 meta_1 meta_10"),
        ("emb_0 emb_9 emb_10", "meta_00 meta_09 meta_10", "meta_00 meta_10 meta_09"),
        ("512_emb_7 512_emb_8", "v2_8 v2_7", "v2_7 v2_8"),
        ("0 00", "0 00", "0 00"),
        ("cats dogs", "dogs cats", "cats dogs"),
        ("part-1-of-3 part-2-of-3", "part-1-of-3 part-2-of-3", "part-1-of-3 part-2-of-3"),
        ("a/0 a/1 b/0", "a/m1 a/m0 b/m0", "a/m0 a/m1 b/m0"),
        ("a/emb/0 b/emb/0", "a/meta/0 b/meta/0", "a/meta/0 b/meta/0"),
        ("0 1", "x/0 y/1", "x/0 y/1"),
        ("embeddings", "metadata", "metadata"),
    ],
)
def test_arrays_and_tables_are_paired_by_their_names(tmp_path: Path, arrays: str, tables: str, pairs: str) -> None:
    saved(tmp_path / "emb", arrays, ".npy")
    saved(tmp_path / "meta", tables, ".parquet")
    source = Vectors(path=str(tmp_path / "emb"), metadata=str(tmp_path / "meta"), key="id")
    assert [item.key for item in all_items(source)] == [f"{name}#{row}" for name in pairs.split() for row in range(2)]
    assert [batch.keys[0] for batch in read_all(source)] == [f"{name}#0" for name in pairs.split()]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arrays", "tables", "message"),
    [
        (
            "e_0 e_1 e_3",
            "m_0 m_1 m_2",
            r"own metadata file.*emb 1 \(.*e_3\.npy\) without a partner, of .*1 \(.*m_2\.parquet",
        ),
        ("e_0", "m_1", r"emb 1 \(.*e_0\.npy\) without a partner, of .*1 \(.*m_1\.parquet"),
        ("e_1 f_1", "m_1 m_2", r"several files have the number 1.*: 3 \(.*e_1\.npy.*f_1\.npy.*m_1\.parquet\); rename"),
        ("e_1 e_2", "m_01 m_1 m_2", r"several files have the number 1.*m_01\.parquet"),
        ("x/e_1 y/e_1", "m_1 m_2", "several files have the number 1"),
        ("cats dogs", "a b", "several files have no number"),
        ("x/0 y/0", "0 1", "several files have the name '0'"),
    ],
)
def test_what_has_no_partner_or_more_than_one_is_refused_before_any_row(
    tmp_path: Path, arrays: str, tables: str, message: str
) -> None:
    saved(tmp_path / "emb", arrays, ".npy")
    saved(tmp_path / "meta", tables, ".parquet")
    source = Vectors(path=str(tmp_path / "emb"), metadata=str(tmp_path / "meta"), key="id")
    with pytest.raises(ValueError, match=message):
        source.files()
    with pytest.raises(ValueError, match=message):
        next(source.read_items(str(next((tmp_path / "emb").rglob("*.npy")))))


def test_two_files_that_are_named_belong_together(tmp_path: Path) -> None:
    saved(tmp_path, "vit_16_512", ".npy")
    saved(tmp_path, "meta_v2", ".parquet")
    source = Vectors(path=str(tmp_path / "vit_16_512.npy"), metadata=str(tmp_path / "meta_v2.parquet"), key="id")
    assert [item.key for item in all_items(source)] == ["meta_v2#0", "meta_v2#1"]


def test_an_archive_with_one_array_of_vectors_is_read(tmp_path: Path) -> None:
    vectors = some_vectors(9_000, dtype="float16")
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", labels=np.arange(9_000), emb=vectors)
        source = Vectors(path=str(tmp_path))
        np.testing.assert_array_equal(joined(read_all(source)).vectors, vectors, strict=True)
        assert [item.key for item in all_items(source)][8_999] == "a.npz:8999"
        content = (tmp_path / "a.npz").read_bytes()
        (tmp_path / "a.npz").write_bytes(content[:-30])
        with pytest.raises(TruncatedFile, match=r"a\.npz: cut off or damaged: File is not a zip file"):
            read_all(source)
    np.savez(tmp_path / "a.npz", image=vectors, text=vectors, n=np.arange(3))
    with pytest.raises(
        ValueError, match=r"a\.npz: holds 2 two-dimensional arrays of floats where one is needed, among image"
    ):
        read_all(source)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_damaged_anywhere_is_named_and_no_fault_of_the_machine(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    path = tmp_path / "a.npz"
    save(path, vectors=some_vectors(20, dtype="float32"))
    whole, source, reasons = path.read_bytes(), Vectors(path=str(path)), list[str]()
    for at in range(0, len(whole), 3):
        for damaged in (whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :], whole[:at] + whole[at + 9 :]):
            path.write_bytes(damaged)
            try:
                read_all(source)
            except ValueError as error:
                reasons.append(str(error))
    assert len(reasons) > len(whole) // 8
    assert all(reason.startswith(f"{path}: ") for reason in reasons)


def test_damaged_rows_within_a_whole_archive_are_invalid_one_by_one(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).random((30_000, 8))
    path = tmp_path / "a.npz"
    np.savez_compressed(path, vectors=vectors)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 5000] = b"\xa5" * 5000
    path.write_bytes(content)
    items = read_all(Vectors(path=str(path)))
    assert keys(items) == [item.key for item in all_items(Vectors(path=str(path)))]
    assert len(keys(items)) == 30_000
    invalid = [item for item in items if isinstance(item, Invalid)]
    assert 0 < len(invalid) < 30_000
    assert all(item.reason.startswith(f"{path}: cut off or damaged: ") for item in invalid)
    found = joined([item for item in items if isinstance(item, VectorBatch)]).vectors
    np.testing.assert_array_equal(found[:13_000], vectors[:13_000])


@pytest.mark.parametrize("name", ["a.memmap", "a.dat", "a.bin"])
def test_raw_numbers_are_refused_with_the_way_to_save_them(tmp_path: Path, name: str) -> None:
    np.memmap(tmp_path / name, np.float16, "w+", shape=(5, 4))[:] = 1
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=rf"{name}: raw numbers without a header.*np\.save\('vectors\.npy'"):
            Vectors(path=str(path)).files()


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.parquet"])
def test_a_git_lfs_pointer_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n")
    for read in (read_all, all_items):
        with pytest.raises(TruncatedFile, match=f"{name}: not .*: this is a git-lfs pointer.*run `git lfs pull`"):
            read(Vectors(path=str(tmp_path)))


@pytest.mark.parametrize("shape", [(10**15, 0), (3, 10**12), (10**18, 4)])
def test_a_header_that_promises_what_is_not_there_costs_no_memory(tmp_path: Path, shape: tuple[int, int]) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))
    with pytest.raises(ValueError, match=r"a\.npy: (holds|a vector has|cut off after 4 of its)"):
        read_all(Vectors(path=str(tmp_path)))


def test_field_names_are_those_of_the_table(clip_retrieval: Path) -> None:
    source = clip_source(clip_retrieval)
    assert source.field_names(source.files()[0].path) == ["image_path", "caption"]
    assert clip_source(clip_retrieval, metadata=None).field_names(source.files()[0].path) == []


def test_a_vector_that_is_too_large_makes_only_itself_invalid(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"embedding": [[1.0], [1.0] * 150_000, [2.0]]})
    assert [item for item in read_all(Vectors(path=str(tmp_path), max_item_mib=1)) if isinstance(item, Invalid)] == [
        Invalid("a.parquet:1", "more numbers than `max_item_mib` allows")
    ]


def test_equal_numbers_are_stored_once_and_yet_read_in_small_batches(tmp_path: Path) -> None:
    row = pa.array([[1.0] * 100_000], pa.list_(pa.float32()))
    path = write(tmp_path / "a.parquet", {"embedding": pa.concat_arrays([row] * 400)})
    assert path.stat().st_size < 1_000_000
    batches = [item for item in Vectors(path=str(path)).read(str(path)) if isinstance(item, VectorBatch)]
    assert sum(len(batch.keys) for batch in batches) == 400
    assert max(batch.vectors.nbytes for batch in batches) < 20_000_000


def test_what_follows_the_rows_of_an_array_is_reported(tmp_path: Path) -> None:
    """Two arrays saved to one file, as one stream: the header counts the first only."""
    with (tmp_path / "a.npy").open("wb") as stream:
        np.save(stream, np.ones((4, 8), np.float32))
        np.save(stream, np.ones((3, 8), np.float32))
    source = Vectors(path=str(tmp_path))
    for rows in (source.read, source.read_items):
        found, cut = until_cut(rows(str(tmp_path / "a.npy")))
        assert sum(len(each.keys) if isinstance(each, VectorBatch) else 1 for each in found) == 4
        assert cut is not None
        assert "224 bytes follow the 4 rows" in cut
