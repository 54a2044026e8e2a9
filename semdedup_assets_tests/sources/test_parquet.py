import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from semdedup_assets.records import Invalid, Item, Record
from semdedup_assets.sources import Parquet


def image_bytes(color: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(content, "PNG")
    return content.getvalue()


def write(path: Path, table: dict[str, Any] | pa.Table, **options: Any) -> Path:
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path, **options)
    return path


def read_all(source: Parquet) -> list[Record | Invalid]:
    return [item for file in source.files() for item in source.read(file.path)]


def all_items(source: Parquet) -> list[Item]:
    return [item for file in source.files() for item in source.read_items(file.path)]


def test_hugging_faces_image_layout_gives_bytes(tmp_path: Path) -> None:
    images = [{"bytes": image_bytes("red"), "path": "1.png"}, {"bytes": None, "path": "2.png"}, None]
    write(tmp_path / "train.parquet", {"image": images, "label": [3, 4, 5]})
    expected = [
        Record("train.parquet:0", image_bytes("red")),
        Invalid("train.parquet:1", "null image"),
        Invalid("train.parquet:2", "null image"),
    ]
    for name in ("image", "image.bytes"):
        source = Parquet(path=str(tmp_path), image=name, columns={"label": "int"})
        assert read_all(source) == expected
        assert all_items(source) == [
            Item(f"train.parquet:{row}", {"caption": None, "url": None, "label": row + 3}) for row in range(3)
        ]
        assert source.column_types == {"caption": "string", "url": "string", "label": "int"}


def test_the_datasets_librarys_own_files_are_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"picture": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"picture": [Image.new("RGB", (5, 4), "red")], "caption": ["red"]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "a.parquet")
    source = Parquet(path=str(tmp_path), image="picture")
    (record,) = read_all(source)
    assert Image.open(io.BytesIO(record.payload)).size == (5, 4)
    assert all_items(source) == [Item("a.parquet:0", {"caption": "red", "url": None})]


def test_img2datasets_parquet_carries_caption_and_url_by_itself(tmp_path: Path) -> None:
    table = {"key": ["k1"], "jpg": [image_bytes("red")], "caption": ["red"], "url": ["https://example.org"]}
    write(tmp_path / "a.parquet", table)
    columns = {"caption": "red", "url": "https://example.org"}
    source = Parquet(path=str(tmp_path), image="jpg", key="key")
    assert read_all(source) == [Record("k1", image_bytes("red"))]
    assert all_items(source) == [Item("k1", columns)]


def test_captions_that_are_no_strings_are_null(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": [image_bytes("red")], "caption": [["one", "two"]]})
    assert all_items(Parquet(path=str(tmp_path), image="image")) == [
        Item("a.parquet:0", {"caption": None, "url": None})
    ]


def test_texts_are_read_in_order_with_their_columns_over_row_groups(tmp_path: Path) -> None:
    texts = [f"text {row}" for row in range(10_000)]
    table = {"content": texts, "id": range(10_000), "url": texts, "unread": texts}
    write(tmp_path / "a.parquet", table, row_group_size=3_000)
    source = Parquet(path=str(tmp_path), text="content", key="id", columns={"url": "string"})
    records = read_all(source)
    assert [record.key for record in records] == [str(row) for row in range(10_000)]
    assert [record.payload for record in records] == texts
    items = all_items(source)
    assert [item.key for item in items] == [record.key for record in records]
    assert [item.columns for item in items] == [{"url": text, "text": text} for text in texts]
    assert source.column_types == {"url": "string", "text": "string"}


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_every_way_to_store_text_gives_text(tmp_path: Path, kind: pa.DataType) -> None:
    values: list[Any] = [b"caf\xc3\xa9", b"caf\xc3\xa9"] if kind == pa.binary() else ["café", "café"]
    write(tmp_path / "a.parquet", pa.table({"text": pa.array(values, kind)}))
    source = Parquet(path=str(tmp_path), text="text")
    assert [record.payload for record in read_all(source)] == ["café", "café"]
    assert [item.columns for item in all_items(source)] == [{"text": "café"}] * 2


def test_invalid_payloads_keep_their_row(tmp_path: Path) -> None:
    table = {"text": ["fine", "", " \t", None, "fine"], "id": list("abcde"), "score": [1, 2, 3, 4, 5]}
    write(tmp_path / "a.parquet", table)
    source = Parquet(path=str(tmp_path), text="text", key="id", columns={"score": "float"})
    assert read_all(source) == [
        Record("a", "fine"),
        Invalid("b", "empty text"),
        Invalid("c", "empty text"),
        Invalid("d", "null text"),
        Record("e", "fine"),
    ]
    assert all_items(source) == [
        Item(key, {"score": float(row + 1), "text": table["text"][row]}) for row, key in enumerate("abcde")
    ]


def test_no_key_and_no_column_makes_a_row_invalid(tmp_path: Path) -> None:
    table = {"text": ["one", "two", "three"], "score": ["1", None, "abc"], "id": ["a", None, "c"]}
    write(tmp_path / "a.parquet", table)
    source = Parquet(path=str(tmp_path), text="text", key="id", columns={"score": "float"})
    assert read_all(source) == [Record("a", "one"), Record("a.parquet:1", "two"), Record("c", "three")]
    assert all_items(source) == [
        Item("a", {"score": None, "text": "one"}, ("column 'score': '1' is not a float",)),
        Item(
            "a.parquet:1",
            {"score": None, "text": "two"},
            ("key 'id': None is neither a string nor a whole number",),
        ),
        Item("c", {"score": None, "text": "three"}, ("column 'score': 'abc' is not a float",)),
    ]


def test_a_string_that_is_not_utf8_makes_only_its_row_invalid(tmp_path: Path) -> None:
    offsets, content = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 4, 8))), pa.py_buffer(b"caf\xe9fine")
    write(tmp_path / "a.parquet", pa.table({"text": pa.Array.from_buffers(pa.string(), 2, [None, offsets, content])}))
    source = Parquet(path=str(tmp_path), text="text")
    assert read_all(source) == [Invalid("a.parquet:0", "text: not UTF-8 at byte 3"), Record("a.parquet:1", "fine")]
    assert all_items(source) == [
        Item("a.parquet:0", {"text": None}, ("column 'text': not UTF-8 at byte 3",)),
        Item("a.parquet:1", {"text": "fine"}),
    ]


def test_a_missing_column_names_file_column_and_near_names_before_anything_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"Texts": ["a"], "score": [1.0], "meta": [{"lang": "en"}]})
    message = rf"^{path}: no column 'text'; did you mean 'Texts'\? its columns are Texts, score, meta, meta\.lang$"
    with pytest.raises(ValueError, match=message):
        next(Parquet(path=str(tmp_path), text="text").read(str(path)))
    with pytest.raises(ValueError, match=r"no column 'meta\.long'; did you mean 'meta\.lang'"):
        next(Parquet(path=str(tmp_path), text="Texts", columns={"meta.long": "string"}).read_items(str(path)))
    with pytest.raises(ValueError, match="no column 'id'"):
        next(Parquet(path=str(tmp_path), text="Texts", key="id").read_items(str(path)))
    (item,) = Parquet(path=str(tmp_path), text="Texts", columns={"meta.lang": "string"}).read_items(str(path))
    assert item.columns == {"meta.lang": "en", "text": "a"}


def test_a_missing_key_or_column_stops_no_embedding(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a"]})
    source = Parquet(path=str(path), text="text", key="id", columns={"score": "int"})
    assert list(source.read(str(path))) == [Record("a.parquet:0", "a")]


def test_a_column_of_another_type_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"n": [1], "image": ["1.png"]})
    with pytest.raises(ValueError, match=f"{path}: column 'n' holds int64, not texts"):
        next(Parquet(path=str(path), text="n").read(str(path)))
    with pytest.raises(ValueError, match=f"{path}: column 'image' holds string, not encoded images"):
        next(Parquet(path=str(path), image="image").read(str(path)))


@pytest.mark.parametrize("settings", [{}, {"image": "a", "text": "b"}])
def test_exactly_one_of_image_and_text_is_set(settings: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="set either `image` or `text`"):
        Parquet(path="a", **settings)


def test_a_cut_file_is_one_invalid_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a"] * 1000})
    for size in (0, 3, path.stat().st_size - 5):
        path.write_bytes(path.read_bytes()[:size])
        (item,) = read_all(Parquet(path=str(tmp_path), text="text"))
        assert isinstance(item, Invalid)
        assert item.key == "a.parquet"
        assert f"{path}: cut off or damaged at its footer" in item.reason


@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip"])
def test_a_file_damaged_in_the_middle_gives_what_comes_before_and_counts_every_row(
    tmp_path: Path, compression: str
) -> None:
    texts = [f"{row**7} is the text of row {row}" for row in range(40_000)]
    path = write(tmp_path / "a.parquet", {"text": texts}, row_group_size=5_000, compression=compression)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40_000] = b"\xa5" * 40_000
    path.write_bytes(content)
    source = Parquet(path=str(path), text="text")
    items = read_all(source)
    records = [item for item in items if isinstance(item, Record)]
    assert 5_000 <= len(records) < 40_000
    assert [record.payload for record in items[: len(records)]] == texts[: len(records)]
    lost = items[len(records) :]
    assert [item.key for item in items] == [f"a.parquet:{row}" for row in range(40_000)]
    assert {item.reason.partition(" (counted")[0] for item in lost} == {
        f"{path}: cut off or damaged at row {len(records)}"
    }
    assert [item.key for item in all_items(source)] == [item.key for item in items]


@pytest.mark.parametrize("damaged", ["text", "id", "score"])
def test_damage_in_one_column_shifts_no_row_of_another(tmp_path: Path, damaged: str) -> None:
    table = {
        "text": [f"{row**5} is a text" for row in range(20_000)],
        "id": [f"k{row**3}" for row in range(20_000)],
        "score": [float(row) ** 0.5 for row in range(20_000)],
    }
    path = write(tmp_path / "a.parquet", table, use_dictionary=False, row_group_size=5_000, write_page_checksum=True)
    group = pq.ParquetFile(path).metadata.row_group(2)
    chunk = group.column(list(table).index(damaged))
    content = bytearray(path.read_bytes())
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    content[middle : middle + 2000] = b"\xa5" * 2000
    path.write_bytes(content)
    source = Parquet(path=str(path), text="text", key="id", columns={"score": "float"})
    records, items = read_all(source), all_items(source)
    assert [record.key for record in records] == [item.key for item in items]
    whole = {
        "text": [isinstance(record, Record) for record in records],
        "id": [record.key == table["id"][row] for row, record in enumerate(records)],
        "score": [item.columns["score"] == table["score"][row] for row, item in enumerate(items)],
    }
    assert {name: all(rows) for name, rows in whole.items()} == {name: name != damaged for name in table}
    assert all(whole[damaged][:8_000])
    assert not any(whole[damaged][15_000:])
    assert "cut off or damaged at row" in str(items[-1].invalid_values)
    assert items[-1].invalid_values[0].partition(":")[0] in ("column 'text'", "key 'id'", "column 'score'")


def test_items_are_read_without_the_images(tmp_path: Path) -> None:
    images = [np.random.default_rng(row).bytes(1000) for row in range(500)]
    path = write(tmp_path / "a.parquet", {"image": images, "caption": ["c"] * 500}, use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset : chunk.data_page_offset + chunk.total_compressed_size] = bytes(
        chunk.total_compressed_size
    )
    path.write_bytes(content)
    source = Parquet(path=str(path), image="image")
    assert all(isinstance(item, Invalid) for item in read_all(source))
    assert all_items(source) == [Item(f"a.parquet:{row}", {"caption": "c", "url": None}) for row in range(500)]


def test_a_row_group_of_images_is_read_as_a_stream(tmp_path: Path) -> None:
    images = [np.random.default_rng(row).bytes(100_000) for row in range(600)]
    path = write(tmp_path / "a.parquet", {"image": images}, write_batch_size=8, use_dictionary=False)
    assert pq.ParquetFile(path).num_row_groups == 1
    tracemalloc.start()
    try:
        records = zip(Parquet(path=str(path), image="image").read(str(path)), images, strict=True)
        peak = max(pa.total_allocated_bytes() for record, image in records if record.payload == image)
        peak += tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40_000_000 < path.stat().st_size


def test_a_file_of_no_rows_has_no_records(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.table({"text": pa.array([], pa.string())}))
    source = Parquet(path=str(tmp_path), text="text")
    assert read_all(source) == all_items(source) == []


def test_a_missing_file_raises_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.parquet: cannot be opened"):
        list(Parquet(path=str(tmp_path), text="text").read(str(tmp_path / "missing.parquet")))
