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

from semdedup_assets.records import Broken, Record
from semdedup_assets.sources import Parquet


def image_bytes(color: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(content, "PNG")
    return content.getvalue()


def write(path: Path, table: dict[str, Any] | pa.Table, **options: Any) -> Path:
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path, **options)
    return path


def read_all(source: Parquet) -> list[Record | Broken]:
    return [item for file in source.files() for item in source.read(file.path)]


def test_hugging_faces_image_layout_gives_bytes(tmp_path: Path) -> None:
    images = [{"bytes": image_bytes("red"), "path": "1.png"}, {"bytes": None, "path": "2.png"}, None]
    write(tmp_path / "train.parquet", {"image": images, "label": [3, 4, 5]})
    expected = [
        Record("train.parquet:0", image_bytes("red"), {"caption": None, "url": None, "label": 3}),
        Broken("train.parquet:1", "null image"),
        Broken("train.parquet:2", "null image"),
    ]
    for name in ("image", "image.bytes"):
        source = Parquet(path=str(tmp_path), image=name, columns={"label": "int"})
        assert read_all(source) == expected
        assert source.column_types == {"caption": "string", "url": "string", "label": "int"}


def test_the_datasets_librarys_own_files_are_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"picture": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"picture": [Image.new("RGB", (5, 4), "red")], "caption": ["red"]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "a.parquet")
    (record,) = read_all(Parquet(path=str(tmp_path), image="picture"))
    assert Image.open(io.BytesIO(record.payload)).size == (5, 4)
    assert record.columns == {"caption": "red", "url": None}


def test_img2datasets_parquet_carries_caption_and_url_by_itself(tmp_path: Path) -> None:
    table = {"key": ["k1"], "jpg": [image_bytes("red")], "caption": ["red"], "url": ["https://example.org"]}
    write(tmp_path / "a.parquet", table)
    columns = {"caption": "red", "url": "https://example.org"}
    assert read_all(Parquet(path=str(tmp_path), image="jpg", key="key")) == [Record("k1", image_bytes("red"), columns)]


def test_captions_that_are_no_strings_break_no_image(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": [image_bytes("red")], "caption": [["one", "two"]]})
    (record,) = read_all(Parquet(path=str(tmp_path), image="image"))
    assert record.columns == {"caption": None, "url": None}


def test_texts_are_read_in_order_with_their_columns_over_row_groups(tmp_path: Path) -> None:
    texts = [f"text {row}" for row in range(10_000)]
    table = {"content": texts, "id": range(10_000), "url": texts, "unread": texts}
    write(tmp_path / "a.parquet", table, row_group_size=3_000)
    source = Parquet(path=str(tmp_path), text="content", key="id", columns={"url": "string"})
    records = read_all(source)
    assert [record.key for record in records] == [str(row) for row in range(10_000)]
    assert [record.payload for record in records] == texts
    assert records[7].columns == {"url": "text 7", "text": "text 7"}
    assert source.column_types == {"url": "string", "text": "string"}


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_every_way_to_store_text_gives_text(tmp_path: Path, kind: pa.DataType) -> None:
    values: list[Any] = [b"caf\xc3\xa9", b"caf\xc3\xa9"] if kind == pa.binary() else ["café", "café"]
    write(tmp_path / "a.parquet", pa.table({"text": pa.array(values, kind)}))
    assert [record.payload for record in read_all(Parquet(path=str(tmp_path), text="text"))] == ["café", "café"]


def test_broken_rows_stay_in_their_place(tmp_path: Path) -> None:
    table = {
        "text": ["fine", "", " \t", None, "bad score", "no key", "fine"],
        "score": ["1", None, None, None, "abc", None, None],
        "id": ["a", "b", "c", "d", "e", None, "g"],
    }
    write(tmp_path / "a.parquet", table)
    items = read_all(Parquet(path=str(tmp_path), text="text", key="id", columns={"score": "string"}))
    assert items[4] == Record("e", "bad score", {"score": "abc", "text": "bad score"})
    items = read_all(Parquet(path=str(tmp_path), text="text", key="id", columns={"score": "float"}))
    assert items == [
        Broken("a", "column 'score': '1' is not a float"),
        Broken("b", "empty text"),
        Broken("c", "empty text"),
        Broken("d", "null text"),
        Broken("e", "column 'score': 'abc' is not a float"),
        Broken("a.parquet:5", "key 'id': None is neither a string nor a whole number"),
        Record("g", "fine", {"score": None, "text": "fine"}),
    ]


def test_a_string_that_is_not_utf8_breaks_its_row_only(tmp_path: Path) -> None:
    offsets, content = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 4, 8))), pa.py_buffer(b"caf\xe9fine")
    write(tmp_path / "a.parquet", pa.table({"text": pa.Array.from_buffers(pa.string(), 2, [None, offsets, content])}))
    broken, record = read_all(Parquet(path=str(tmp_path), text="text"))
    assert broken == Broken("a.parquet:0", "text: not UTF-8 at byte 3")
    assert record.payload == "fine"


def test_a_missing_column_names_file_column_and_near_names_before_anything_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"Texts": ["a"], "score": [1.0], "meta": [{"lang": "en"}]})
    message = rf"^{path}: no column 'text'; did you mean 'Texts'\? its columns are Texts, score, meta, meta\.lang$"
    with pytest.raises(ValueError, match=message):
        next(Parquet(path=str(tmp_path), text="text").read(str(path)))
    with pytest.raises(ValueError, match=r"no column 'meta\.long'; did you mean 'meta\.lang'"):
        next(Parquet(path=str(tmp_path), text="Texts", columns={"meta.long": "string"}).read(str(path)))
    with pytest.raises(ValueError, match="no column 'id'"):
        next(Parquet(path=str(tmp_path), text="Texts", key="id").read(str(path)))
    (record,) = Parquet(path=str(tmp_path), text="Texts", columns={"meta.lang": "string"}).read(str(path))
    assert record.columns == {"meta.lang": "en", "text": "a"}


def test_a_column_of_another_type_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"n": [1], "image": ["1.png"]})
    with pytest.raises(ValueError, match=f"{path}: column 'n' holds int64, not texts"):
        next(Parquet(path=str(path), text="n").read(str(path)))
    with pytest.raises(ValueError, match=f"{path}: column 'image' holds string, not encoded images"):
        next(Parquet(path=str(path), image="image").read(str(path)))


@pytest.mark.parametrize("settings", [{}, {"image": "a", "text": "b"}])
def test_exactly_one_of_image_and_text_is_asked_for(settings: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="set either `image` or `text`"):
        Parquet(path="a", **settings)


def test_a_cut_file_is_one_broken_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a"] * 1000})
    for size in (0, 3, path.stat().st_size - 5):
        path.write_bytes(path.read_bytes()[:size])
        (item,) = read_all(Parquet(path=str(tmp_path), text="text"))
        assert isinstance(item, Broken)
        assert item.key == "a.parquet"
        assert f"{path}: cut off or damaged at its footer" in item.reason


@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip"])
def test_a_file_damaged_in_the_middle_gives_what_lies_before(tmp_path: Path, compression: str) -> None:
    texts = [f"{row**7} is the text of row {row}" for row in range(40_000)]
    path = write(tmp_path / "a.parquet", {"text": texts}, row_group_size=5_000, compression=compression)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40_000] = b"\xa5" * 40_000
    path.write_bytes(content)
    *records, last = read_all(Parquet(path=str(path), text="text"))
    assert 5_000 <= len(records) < 40_000
    assert [record.payload for record in records] == texts[: len(records)]
    assert isinstance(last, Broken)
    assert f"{path}: cut off or damaged at row {len(records)}" in last.reason


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
    assert read_all(Parquet(path=str(tmp_path), text="text")) == []


def test_a_missing_file_raises_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.parquet: cannot be opened"):
        list(Parquet(path=str(tmp_path), text="text").read(str(tmp_path / "gone.parquet")))
