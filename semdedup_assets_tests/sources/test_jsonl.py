import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from semdedup_assets.records import Invalid, Item, Record
from semdedup_assets.sources import JsonLines, TruncatedFile

PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes,
    ".json.gz": gzip.compress,
    ".jsonl.zst": zstandard.ZstdCompressor().compress,
}


def json_lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def read_all(source: JsonLines) -> list[Record | Invalid]:
    return [item for file in source.files() for item in source.read(file.path)]


def all_items(source: JsonLines) -> list[Item]:
    return [item for file in source.files() for item in source.read_items(file.path)]


@pytest.mark.parametrize("suffix", PACKED)
def test_c4_lines_give_texts_and_urls_plain_and_packed(tmp_path: Path, suffix: str) -> None:
    content = json_lines(
        {"text": "Beginners\nBBQ", "url": "https://example.org/1", "timestamp": "2019-04-25T12:57:54Z"},
        {"text": "Ünïcode 🐟"},
    )
    (tmp_path / f"c4-train.00000{suffix}").write_bytes(PACKED[suffix](content))
    source = JsonLines(path=str(tmp_path), columns={"timestamp": "string"})
    name = f"c4-train.00000{suffix}"
    first = {"url": "https://example.org/1", "timestamp": "2019-04-25T12:57:54Z", "text": "Beginners\nBBQ"}
    assert read_all(source) == [Record(f"{name}:0", "Beginners\nBBQ"), Record(f"{name}:1", "Ünïcode 🐟")]
    assert all_items(source) == [
        Item(f"{name}:0", first),
        Item(f"{name}:1", {"url": None, "timestamp": None, "text": "Ünïcode 🐟"}),
    ]
    assert list(all_items(source)[0].columns) == list(source.column_types)
    assert list(source.column_types.items()) == [("url", "string"), ("timestamp", "string"), ("text", "string")]


def test_text_key_and_columns_may_be_nested(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines({"id": 7, "doc": {"body": "words", "lang": "en"}, "doc.n": 3}))
    source = JsonLines(path=str(tmp_path), text="doc.body", key="id", columns={"doc.lang": "string", "doc.n": "int"})
    columns = {"url": None, "doc.lang": "en", "doc.n": 3, "text": "words"}
    assert read_all(source) == [Record("7", "words")]
    assert all_items(source) == [Item("7", columns)]


def test_an_invalid_line_keeps_its_row_and_its_reason(tmp_path: Path) -> None:
    lines = [
        b'{"text": "fine", "id": "k0"}',
        b'{"text": "cut of',
        b"",
        b'{"body": "other", "id": "k3"}',
        b'{"text": 5, "id": "k4"}',
        b'{"text": "  \\n", "id": "k5"}',
        b'["text"]',
        b"\xff\xfe",
        b'{"text": "half a pair \\ud800", "id": "k8"}',
        b"[" * 100_000,
        b'{"text": "fine too", "id": "k10"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    source = JsonLines(path=str(tmp_path), key="id", columns={"score": "int"})
    records, items = read_all(source), all_items(source)
    keys = ["k0", "a.jsonl:1", "a.jsonl:2", "k3", "k4", "k5", "a.jsonl:6", "a.jsonl:7", "k8", "a.jsonl:9", "k10"]
    assert [record.key for record in records] == [item.key for item in items] == keys
    reasons = {row: record.reason for row, record in enumerate(records) if isinstance(record, Invalid)}
    where = "line {} (counted from 0): "
    assert reasons[1] == where.format(1) + "not JSON (Unterminated string starting at at character 9)"
    assert reasons[2] == "blank line"
    assert reasons[3] == where.format(3) + "no text under 'text'; the line has ['body', 'id']"
    assert reasons[4] == where.format(4) + "'text' is 5, not a text; the line has ['text', 'id']"
    assert reasons[5] == "empty text"
    assert reasons[6] == where.format(6) + "not a JSON object: ['text']"
    assert reasons[7].startswith(where.format(7) + "not JSON")
    assert reasons[8].startswith("text is not a string of valid Unicode: ")
    assert reasons[9].startswith(where.format(9) + "not JSON")
    assert len(reasons) == 9
    for row in (1, 2, 6, 7, 9):  # no object at all
        assert items[row] == Item(keys[row], {"url": None, "score": None, "text": None}, (reasons[row],))
    assert [items[row].columns["text"] for row in (0, 3, 4, 5, 8, 10)] == ["fine", None, None, "  \n", None, "fine too"]
    assert items[4].invalid_values == ("column 'text': 5 is not a string",)


def test_no_key_and_no_column_makes_a_line_invalid(tmp_path: Path) -> None:
    rows = [{"text": "no key"}, {"text": "wrong", "id": ["x"], "score": "abc"}, {"text": "fine", "id": "k2"}]
    (tmp_path / "a.jsonl").write_bytes(json_lines(*rows))
    source = JsonLines(path=str(tmp_path), key="id", columns={"score": "int"})
    assert read_all(source) == [Record("a.jsonl:0", "no key"), Record("a.jsonl:1", "wrong"), Record("k2", "fine")]
    assert [item.invalid_values for item in all_items(source)] == [
        ("key 'id': None is neither a string nor a whole number",),
        ("key 'id': ['x'] is neither a string nor a whole number", "column 'score': 'abc' is not an int"),
        (),
    ]


@given(content=st.binary(max_size=40).map(lambda raw: raw.replace(b"\x01", b"\n")), chunk=st.integers(1, 7))
@settings(deadline=None)
def test_lines_are_the_file_split_at_its_newlines(
    content: bytes, chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl.gz"
    pieces = [content[start : start + chunk] for start in range(0, len(content), chunk)]
    path.write_bytes(b"".join(map(gzip.compress, pieces or [b""])))
    expected = content.split(b"\n")
    assert list(JsonLines(path=str(path)).lines(str(path))) == (expected if expected[-1] else expected[:-1])


def test_a_line_longer_than_any_buffer_stays_whole(tmp_path: Path) -> None:
    text = "long " * 100_000
    (tmp_path / "a.jsonl").write_bytes(json_lines({"text": "short"}, {"text": text}, {"text": "end"}))
    assert [item.payload for item in read_all(JsonLines(path=str(tmp_path)))] == ["short", text, "end"]


def test_frames_one_after_the_other_and_trailing_zeros_are_one_file(tmp_path: Path) -> None:
    parts = [json_lines({"text": word * 50}) for word in ("one", "two", "three")]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(map(gzip.compress, parts)) + bytes(700))
    (tmp_path / "b.jsonl.zst").write_bytes(b"".join(map(PACKED[".jsonl.zst"], parts)))
    texts = [item.payload for item in read_all(JsonLines(path=str(tmp_path)))]
    assert texts == ["one" * 50, "two" * 50, "three" * 50] * 2


@pytest.mark.parametrize("suffix", [".json.gz", ".jsonl.zst"])
def test_a_cut_packed_file_gives_its_whole_lines_and_one_invalid_file(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": " ".join(str(n * n * row) for n in range(200))} for row in range(1, 2000)]
    content = PACKED[suffix](json_lines(*rows))
    for share in (0, 0.001, 0.3, 0.9, 1):
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(content[: min(int(len(content) * share), len(content) - 1)])
        source = JsonLines(path=str(path))
        *records, last = source.read(str(path))
        assert [record.payload for record in records] == [row["text"] for row in rows[: len(records)]]
        assert len(records) >= len(rows) * (share - 0.2)
        assert isinstance(last, Invalid)
        assert last.key == path.name
        assert f"{path}: cut off or damaged in line {len(records)} (counted from 0)" in last.reason
        with pytest.raises(TruncatedFile, match="cut off or damaged"):
            list(source.lines(str(path)))


@pytest.mark.parametrize("suffix", [".json.gz", ".jsonl.zst"])
def test_a_damaged_packed_file_is_reported(tmp_path: Path, suffix: str) -> None:
    content = bytearray(PACKED[suffix](json_lines(*({"text": str(n**5)} for n in range(50_000)))))
    content[len(content) // 2 : len(content) // 2 + 100] = bytes(100)
    (tmp_path / f"a{suffix}").write_bytes(content)
    *records, last = read_all(JsonLines(path=str(tmp_path)))
    assert records
    assert isinstance(last, Invalid)
    assert "cut off or damaged" in last.reason


@pytest.mark.parametrize("suffix", [".json.gz", ".jsonl.zst"])
def test_what_is_not_packed_at_all_is_one_invalid_file(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(json_lines({"text": "plain"}))
    (item,) = read_all(JsonLines(path=str(tmp_path)))
    assert item.key == f"a{suffix}"


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    assert read_all(JsonLines(path=str(tmp_path))) == []


def test_a_missing_file_raises_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.jsonl: cannot be opened"):
        list(JsonLines(path=str(tmp_path)).read(str(tmp_path / "missing.jsonl")))
    with pytest.raises(FileNotFoundError, match=r"no file here ends in .*\.jsonl"):
        JsonLines(path=str(tmp_path)).files()


def test_the_text_column_is_not_declared_twice() -> None:
    with pytest.raises(ValidationError, match="'text' always holds the item's text"):
        JsonLines(path="a", columns={"text": "string"})
