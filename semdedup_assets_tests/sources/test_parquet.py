import io
import tracemalloc
import uuid
from base64 import b64decode, b64encode
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as encryption
import pytest
from PIL import Image
from pydantic import ValidationError

from semdedup_assets.records import Invalid, Item, Record
from semdedup_assets.sources import Parquet, TruncatedFile


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
        Invalid(
            "train.parquet:1",
            f"null image whose file '2.png' cannot be opened in the table's folder {tmp_path}; put it there, or write "
            "the table with the images' bytes in it",
        ),
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
            ("key 'id': None is neither a string nor a whole number, a UUID or bytes",),
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


def test_a_file_without_its_footer_is_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a"] * 1000})
    source = Parquet(path=str(tmp_path), text="text")
    for size in (path.stat().st_size - 5, 3, 0):
        path.write_bytes(path.read_bytes()[:size])
        for read in (source.read, source.read_items):
            with pytest.raises(TruncatedFile, match=f"{path}: cut off or damaged at its footer"):
                next(read(str(path)))


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


@pytest.mark.parametrize(
    ("column", "keys"),
    [
        (pa.array([uuid.UUID(int=n).bytes for n in (1, 2)], pa.uuid()), [str(uuid.UUID(int=n)) for n in (1, 2)]),
        (pa.array([b"\x00\xff" * 8, b"\x01" * 16], pa.binary(16)), ["00ff" * 8, "01" * 16]),
        (pa.array([b"ab", b"\xff"]), ["6162", "ff"]),
        (pa.array([2**64 - 1, 0], pa.uint64()), [str(2**64 - 1), "0"]),
        (pa.array([5.0, -7.0]), ["5", "-7"]),
        (pa.array([Decimal("12345678901234567890"), Decimal(1)]), ["12345678901234567890", "1"]),
        (pa.array([Decimal("1.50"), Decimal("2.25")]), ["1.50", "2.25"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
    ],
)
def test_keys_of_every_type_that_names_exactly(tmp_path: Path, column: pa.Array, keys: list[str]) -> None:
    write(tmp_path / "a.parquet", pa.table({"text": ["one", "two"], "id": column}))
    source = Parquet(path=str(tmp_path), text="text", key="id")
    assert [record.key for record in read_all(source)] == [item.key for item in all_items(source)] == keys
    assert [item.invalid_values for item in all_items(source)] == [(), ()]


def test_values_that_name_nothing_are_listed_and_their_row_is_the_key(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"text": ["one"] * 4, "id": [1.5, float("nan"), None, 3.0]})
    source = Parquet(path=str(tmp_path), text="text", key="id")
    assert [item.key for item in all_items(source)] == ["a.parquet:0", "a.parquet:1", "a.parquet:2", "3"]
    assert [bool(item.invalid_values) for item in all_items(source)] == [True, True, True, False]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ([["a"]], "list<.*>"),
        ([{"a": 1}], "struct<.*>"),
        ([True], "bool"),
        (pa.array([0], pa.timestamp("s")), "timestamp"),
    ],
)
def test_a_column_of_which_no_key_can_be_made_is_refused_before_any_row(tmp_path: Path, column: Any, kind: str) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["one"], "id": column})
    source = Parquet(path=str(tmp_path), text="text", key="id")
    with pytest.raises(
        ValueError, match=rf"{path}: column 'id' holds {kind}.*, of which no key can be made; set `key`"
    ):
        next(source.read_items(str(path)))
    assert list(source.read(str(path))) == [Record("a.parquet:0", "one")]


def test_integers_of_64_bits_and_times_are_exact(tmp_path: Path) -> None:
    now = 1_700_000_000_000_000_001
    table = {
        "text": ["one", "two", "three"],
        "hash": pa.array([2**64 - 1, 2**64 - 2, None], pa.uint64()),
        "time": pa.array([now, now + 1, None], pa.timestamp("ns")),
        "nanoseconds": pa.array([now, now + 1, None]),
        "day": pa.array([1, 2, None], pa.date32()),
        "gaps": [1.0, float("nan"), None],
    }
    write(tmp_path / "a.parquet", table)
    kinds: dict[str, Any] = {"hash": "uint", "time": "int", "nanoseconds": "int", "day": "int", "gaps": "int"}
    items = all_items(Parquet(path=str(tmp_path), text="text", columns=kinds))
    assert [[item.columns[name] for name in kinds] for item in items] == [
        [2**64 - 1, now, now, 1, 1],
        [2**64 - 2, now + 1, now + 1, 2, None],
        [None] * 5,
    ]
    assert [item.invalid_values for item in items] == [(), (), ()]
    (item, *_) = all_items(Parquet(path=str(tmp_path), text="text", columns={"hash": "int"}))
    assert item.invalid_values == (f"column 'hash': {2**64 - 1} is not an int; declare the column as `uint`",)


def test_images_that_only_have_a_path_are_read_from_the_tables_folder(tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "1.png").write_bytes(image_bytes("red"))
    (tmp_path / "secret.png").write_bytes(image_bytes("blue"))
    (tmp_path / "data" / "large.png").write_bytes(bytes(2 << 20))
    paths = ["images/1.png", f"{tmp_path}/data/images/1.png", "../secret.png", f"{tmp_path}/secret.png"]
    paths += ["memory://1.png", "gone.png", "large.png", "nul\0.png", "images"]
    images = [{"bytes": None, "path": path} for path in paths]
    write(tmp_path / "data" / "a.parquet", pa.table({"image": pa.array(images, IMAGE)}))
    source = Parquet(path=str(tmp_path / "data"), image="image", max_item_mib=1)
    one, other, *invalid = read_all(source)
    assert [one, other] == [Record(f"a.parquet:{row}", image_bytes("red")) for row in range(2)]
    for record, path in zip(invalid[:3], paths[2:], strict=False):
        assert isinstance(record, Invalid)
        assert record.reason.startswith(f"null image whose path '{path}' does not lie below the table's folder")
    assert [record.reason.partition(";")[0] for record in invalid[3:] if isinstance(record, Invalid)] == [
        f"null image whose file 'gone.png' cannot be opened in the table's folder {tmp_path}/data",
        "1,048,577 bytes, more than `max_item_mib: 1` allows",
        f"null image whose file 'nul\\x00.png' cannot be opened in the table's folder {tmp_path}/data",
        f"null image whose file 'images' cannot be opened in the table's folder {tmp_path}/data",
    ]


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_rows_that_img2dataset_could_not_fill_say_so_and_are_expected(tmp_path: Path) -> None:
    table = {
        "key": ["0", "1", "2", "3"],
        "jpg": pa.array([image_bytes("red"), None, None, None]),
        "status": ["success", "failed_to_download", "failed_to_resize", "success"],
        "error_message": [None, "HTTP Error 404: Not Found", None, None],
    }
    write(tmp_path / "a.parquet", pa.table(table))
    assert read_all(Parquet(path=str(tmp_path), image="jpg", key="key")) == [
        Record("0", image_bytes("red")),
        Invalid("1", "img2dataset: failed_to_download (HTTP Error 404: Not Found)", expected=True),
        Invalid("2", "img2dataset: failed_to_resize", expected=True),
        Invalid("3", "null image"),
    ]
    # A status column of another origin explains nothing.
    write(tmp_path / "a.parquet", pa.table({name: table[name] for name in ("jpg", "status")}))
    assert [record.reason for record in read_all(Parquet(path=str(tmp_path), image="jpg"))[1:]] == ["null image"] * 3  # type: ignore[union-attr]


def test_a_cell_that_is_too_large_makes_only_its_row_invalid(tmp_path: Path) -> None:
    texts = ["small", "a" * 3_000_000, None, "small too"]
    write(tmp_path / "a.parquet", {"text": texts, "id": ["0", "b" * 2_000_000, "2", "3"]})
    source = Parquet(path=str(tmp_path), text="text", key="id", columns={"id": "string"}, max_item_mib=1)
    reason = "3,000,000 bytes, more than `max_item_mib: 1` allows"
    assert read_all(source) == [
        Record("0", "small"),
        Invalid("a.parquet:1", reason),
        Invalid("2", "null text"),
        Record("3", "small too"),
    ]
    of_key = "2,000,000 bytes, more than `max_item_mib: 1` allows"
    assert all_items(source)[1].invalid_values == (
        f"key 'id': {of_key}",
        f"column 'id': {of_key}",
        f"column 'text': {reason}",
    )


@pytest.mark.parametrize("column", ["text", "image"])
@pytest.mark.parametrize("repeated", [False, True])
def test_batches_are_of_so_many_bytes_also_beside_a_column_of_small_cells(
    tmp_path: Path, column: str, repeated: bool
) -> None:
    """Arrow reads all columns of an open file by the batch size last asked for; repeated cells are stored once."""
    texts = [("x" if repeated else f"{row:03}") * (600_000 if repeated else 200_000) for row in range(400)]
    table = {"id": [str(row) for row in range(400)]}
    cells = pa.array(texts) if column == "text" else pa.array([{"bytes": text.encode()} for text in texts])
    options: dict[str, Any] = {} if repeated else {"use_dictionary": False, "write_batch_size": 8}
    write(tmp_path / "a.parquet", pa.table({**table, column: cells}), **options)
    source = Parquet(path=str(tmp_path), key="id", **{column: column})
    before, peak = pa.total_allocated_bytes(), 0
    for row, record in enumerate(source.read(str(tmp_path / "a.parquet"))):
        assert (record.key, len(record.payload)) == (str(row), 600_000)
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert row == 399
    assert peak < 150_000_000 < 400 * 600_000


def test_a_batch_that_no_array_can_hold_is_read_in_smaller_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow puts no more than 2 GiB of a nested column into one array; here, no more than 4 MB."""
    whole = pq.ParquetFile.iter_batches

    def limited(table: pq.ParquetFile, *args: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        for batch in whole(table, *args, **options):
            if batch.nbytes > 4_000_000:
                message = "Nested data conversions not implemented for chunked array outputs"
                raise pa.ArrowNotImplementedError(message)
            yield batch

    sizes = [row % 50 for row in range(1, 2000)] + [1_000_000 + row for row in range(10)] + [7] * 2000
    images = pa.array([{"bytes": bytes([1 + size % 250]) * size, "path": None} for size in sizes], IMAGE)
    write(tmp_path / "a.parquet", pa.table({"image": images}), row_group_size=3000)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", limited)
    records = read_all(Parquet(path=str(tmp_path), image="image"))
    expected = images.field("bytes").to_pylist()
    assert [getattr(record, "payload", b"") for record in records] == expected


def test_field_names_are_the_columns_and_the_fields_of_structs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a"], "meta": [{"lang": "en", "size": {"w": 1}}]})
    names = ["text", "meta", "meta.lang", "meta.size", "meta.size.w"]
    assert Parquet(path=str(path), text="text").field_names(str(path)) == names


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n",
            "a git-lfs pointer, not the file itself",
        ),
        (b"<html><body>Not Found</body></html>", "a web page"),
        (b"ARROW1\0\0" + bytes(100), "an Arrow file; write it as Parquet"),
        (b"PK\x03\x04" + bytes(100), "a ZIP archive; unpack it"),
    ],
)
def test_what_is_no_parquet_file_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    source = Parquet(path=str(path), text="text")
    for read in (source.read, source.read_items):
        with pytest.raises(TruncatedFile, match=f"{path}: not Parquet: this is {what}"):
            next(read(str(path)))


def test_a_column_that_is_there_twice_is_refused_by_name(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.table(columns, names=["t", "t"]), tmp_path / "a.parquet")
    source = Parquet(path=str(tmp_path), text="t")
    with pytest.raises(ValueError, match=r"a\.parquet: column 't' is there 2 times"):
        list(source.read(str(tmp_path / "a.parquet")))


class PlainKeys(encryption.KmsClient):
    """Keys that are kept as they are."""

    def wrap_key(self, key_bytes: bytes, _: str) -> str:
        return b64encode(key_bytes).decode()

    def unwrap_key(self, wrapped_key: str, _: str) -> bytes:
        return b64decode(wrapped_key)


@pytest.mark.parametrize("footer_can_be_read", [True, False])
def test_an_encrypted_file_is_named_and_ends_no_process(tmp_path: Path, *, footer_can_be_read: bool) -> None:
    table, path = pa.table({"text": ["a", "b"], "n": [1, 2]}), tmp_path / "a.parquet"
    chosen = encryption.EncryptionConfiguration(
        "footer", column_keys={"c": ["text"]}, plaintext_footer=footer_can_be_read
    )
    factory = encryption.CryptoFactory(lambda _: PlainKeys())
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), chosen)
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    source = Parquet(path=str(path), text="text")
    for read in (read_all, all_items):
        with pytest.raises(TruncatedFile, match=r"a\.parquet: its columns are encrypted; write it without encryption"):
            read(source)
    write(path, table)
    assert [record.payload for record in read_all(source) if isinstance(record, Record)] == ["a", "b"]
