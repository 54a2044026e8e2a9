from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semdedup_assets.records import Invalid, Item, VectorBatch
from semdedup_assets.sources import Vectors


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
        "3",
        "4",
        ["a.parquet:5", "6"],
    ]
    assert [item.reason for item in items if isinstance(item, Invalid)] == [
        "null vector",
        "0 numbers where the first row has 2",
        "3 numbers where the first row has 2",
        "a null among the vector's numbers",
    ]
    assert [item.vectors.tolist() for item in items if isinstance(item, VectorBatch)] == [
        [[1.0, 2.0]],
        [[7.0, 8.0], [9.0, 0.0]],
    ]
    found = all_items(source)
    assert [item.key for item in found] == keys(items)
    assert [item.columns["score"] for item in found] == [None] * 6 + [7]
    assert {row: item.invalid_values for row, item in enumerate(found) if item.invalid_values} == {
        2: ("column 'score': 0.5 is not an int",),
        5: ("key 'id': None is neither a string nor a whole number",),
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


def test_the_first_rows_length_counts_over_batches(tmp_path: Path) -> None:
    rows = [None] * 8192 + [[1.0, 2.0]] * 8192 + [[1.0]]
    write(tmp_path / "a.parquet", {"embedding": rows})
    items = read_all(Vectors(path=str(tmp_path)))
    assert sum(isinstance(item, Invalid) for item in items) == 8193
    assert items[-1] == Invalid("a.parquet:16384", "1 numbers where the first row has 2")


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
    for settings in ({"metadata": None}, {}):
        source = clip_source(clip_retrieval, key=None, columns={}, **settings)
        found = joined(read_all(source))
        assert all_items(source) == [Item(key, {}) for key in found.keys]
        assert [found.keys[0], found.keys[8_999], found.keys[9_000]] == [
            "img_emb_0.npy:0",
            "img_emb_0.npy:8999",
            "img_emb_1.npy:0",
        ]
    with pytest.raises(ValueError, match=r"img_emb_0\.npy: an \.npy file has no column 'image_path'; set `metadata`"):
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
    with pytest.raises(ValueError, match=r"img_emb has 2 \.npy files and .*metadata 1 Parquet files"):
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
        "key 'image_path': None is neither a string nor a whole number",
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


def test_a_cut_array_gives_its_whole_rows_and_counts_the_missing_ones(clip_retrieval: Path) -> None:
    path = clip_retrieval / "img_emb/img_emb_0.npy"
    content = path.read_bytes()
    for source in (clip_source(clip_retrieval), clip_source(clip_retrieval, metadata=None, key=None, columns={})):
        path.write_bytes(content[: 128 + 8_500 * 16 + 7])
        items = list(source.read(str(path)))
        found = joined([item for item in items if isinstance(item, VectorBatch)])
        np.testing.assert_array_equal(found.vectors, some_vectors(9_000, dtype="float16")[:8_500])
        missing = [item for item in items if isinstance(item, Invalid)]
        assert keys(items) == [*found.keys, *(item.key for item in missing)]
        assert {item.reason for item in missing} == {f"{path}: cut off after 8500 of its 9000 rows"}
        assert [item.key for item in source.read_items(str(path))] == keys(items)
        assert len(keys(items)) == 9_000
        for size in (0, 5, 100):
            path.write_bytes(content[:size])
            (record,), (item,) = source.read(str(path)), source.read_items(str(path))
            assert isinstance(record, Invalid)
            assert record.key == item.key == "img_emb_0.npy"
            assert "cut off or damaged at its header" in record.reason
            assert item.invalid_values == (record.reason,)


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
