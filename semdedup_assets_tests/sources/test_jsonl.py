import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from semdedup_assets.records import Invalid, Item, Record
from semdedup_assets.sources import JsonLines, TruncatedFile
from semdedup_assets_tests.sources.cut_files import until_cut

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
        ("key 'id': None is neither a string nor a whole number, a UUID or bytes",),
        (
            "key 'id': ['x'] is neither a string nor a whole number, a UUID or bytes",
            "column 'score': 'abc' is not an int",
        ),
        (),
    ]


@given(content=st.binary(max_size=40).map(lambda raw: raw.replace(b"\x01", b"\n")), chunk=st.integers(1, 7))
@settings(deadline=None)
def test_lines_are_the_file_split_at_its_newlines(
    content: bytes, chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl.gz"
    pieces = [content[start : start + chunk] for start in range(0, len(content), chunk)]
    # The first line shows that these are lines, and the last newline that the file is whole.
    path.write_bytes(b"".join(map(gzip.compress, [b"{}\n", *pieces, b"\n"])))
    expected = [line.removeprefix(b"\xef\xbb\xbf") for line in content.split(b"\n")]
    assert list(JsonLines(path=str(path)).lines(str(path))) == [b"{}", *expected]


def test_a_line_longer_than_any_buffer_stays_whole(tmp_path: Path) -> None:
    text = "long " * 100_000
    (tmp_path / "a.jsonl").write_bytes(json_lines({"text": "short"}, {"text": text}, {"text": "end"}))
    assert [item.payload for item in read_all(JsonLines(path=str(tmp_path)))] == ["short", text, "end"]


def test_frames_one_after_the_other_and_trailing_zeros_are_one_file(tmp_path: Path) -> None:
    parts = [json_lines({"text": word * 50}) for word in ("one", "two", "three")]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(map(gzip.compress, parts)) + bytes(200_000))
    (tmp_path / "b.jsonl.zst").write_bytes(b"".join(map(PACKED[".jsonl.zst"], parts)))
    texts = [item.payload for item in read_all(JsonLines(path=str(tmp_path)))]
    assert texts == ["one" * 50, "two" * 50, "three" * 50] * 2


@pytest.mark.parametrize("suffix", [".json.gz", ".jsonl.zst"])
def test_a_cut_packed_file_gives_its_whole_lines_and_then_an_error(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": " ".join(str(n * n * row) for n in range(200))} for row in range(1, 2000)]
    content = PACKED[suffix](json_lines(*rows))
    for share in (0, 0.001, 0.3, 0.9, 1):
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(content[: min(int(len(content) * share), len(content) - 1)])
        source = JsonLines(path=str(path))
        records, cut = until_cut(source.read(str(path)))
        assert [record.payload for record in records] == [row["text"] for row in rows[: len(records)]]
        assert len(records) >= len(rows) * (share - 0.2)
        assert cut is not None
        assert f"{path}: cut off or damaged in line {len(records)} (counted from 0)" in cut
        assert (len(until_cut(source.read_items(str(path)))[0]), until_cut(source.read_items(str(path)))[1]) == (
            len(records),
            cut,
        )
        with pytest.raises(TruncatedFile, match="cut off or damaged"):
            list(source.lines(str(path)))


@pytest.mark.parametrize("suffix", [".json.gz", ".jsonl.zst"])
def test_a_damaged_packed_file_is_reported(tmp_path: Path, suffix: str) -> None:
    content = bytearray(PACKED[suffix](json_lines(*({"text": str(n**5)} for n in range(50_000)))))
    content[len(content) // 2 : len(content) // 2 + 100] = bytes(100)
    (tmp_path / f"a{suffix}").write_bytes(content)
    records, cut = until_cut(JsonLines(path=str(tmp_path)).read(str(tmp_path / f"a{suffix}")))
    assert records
    assert "cut off or damaged" in str(cut)


@pytest.mark.parametrize("suffix", [".json.gz", ".jsonl.zst"])
def test_what_is_not_packed_at_all_is_named(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"neither packed nor JSON\n")
    with pytest.raises(TruncatedFile, match=rf"a{suffix}: cut off or damaged in line 0"):
        read_all(JsonLines(path=str(tmp_path)))


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


def test_a_file_that_ends_within_a_line_is_cut(tmp_path: Path) -> None:
    content = json_lines(*({"text": f"text {n}"} for n in range(100)))
    path = tmp_path / "a.jsonl"
    source = JsonLines(path=str(path))
    for size in (len(content) - 1, len(content)):
        path.write_bytes(content[:size])
        assert len(read_all(source)) == 100
    for size in (len(content) - 2, len(content) // 2, 5):
        path.write_bytes(content[:size])
        lines = content[:size].count(b"\n")
        for found, cut in (until_cut(source.read(str(path))), until_cut(source.read_items(str(path)))):
            assert len(found) == lines
            assert cut == (
                f"{path}: cut off or damaged in line {lines} (counted from 0): "
                "the last line has no newline, and is no whole JSON"
            )


NAMED = {
    "array": (b'[{"text": "a"},\n {"text": "b"}]\n', "this is a JSON array; write one object a line: `jq -c"),
    "array in a line": (b'[{"text": "a"}, {"text": "b"}]', "this is a JSON array"),
    "array line by line": (b'\xef\xbb\xbf[\n{"text": "a"}\n]\n', "this is a JSON array"),
    "objects over lines": (b'{\n  "text": "a"\n}\n', "this is a JSON object over several lines"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n", "this is a git-lfs pointer"),
    "web page": (b"\n<!DOCTYPE html>\n<html>Sign in</html>", "this is a web page"),
    "Parquet": (b"PAR1\x15\x04", "this is a Parquet file"),
    "xz": (b"\xfd7zXZ\0\0", "this is packed with xz; unpack it"),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("name", NAMED)
def test_another_kind_of_file_is_named_with_its_remedy(tmp_path: Path, name: str, suffix: str) -> None:
    content, what = NAMED[name]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    if suffix == ".jsonl.gz" and name.startswith(("array", "objects")):
        path.write_bytes(gzip.compress(content))
    source = JsonLines(path=str(path))
    for found, cut in (until_cut(source.read(str(path))), until_cut(source.read_items(str(path)))):
        assert found == []
        assert str(cut).startswith(f"{path}: no JSON lines: {what}")


def test_a_single_line_that_is_an_array_makes_only_itself_invalid(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'[{"text": "a"}]\n{"text": "b"}\n')
    assert [type(record) for record in read_all(JsonLines(path=str(tmp_path)))] == [Invalid, Record]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_unicode_encodings_and_byte_order_marks_are_read(tmp_path: Path, encoding: str) -> None:
    texts = ["Ünïcode 🐟 \u0a0a", "second", "ਊ" * 70_000]
    content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    path = tmp_path / "a.jsonl"
    path.write_bytes(content.encode(encoding))
    source = JsonLines(path=str(path))
    assert [record.payload for record in read_all(source)] == texts
    assert b"".join(line + b"\n" for line in source.lines(str(path))) == content.encode()
    if encoding != "utf-8-sig":
        path.write_bytes(content.encode(encoding)[:-3])
        found, cut = until_cut(source.read(str(path)))
        assert [record.payload for record in found] == texts[:2]
        assert f"{path}: cut off or damaged in line 2" in str(cut)


def test_a_byte_order_mark_where_two_files_were_joined_is_no_part_of_a_line(tmp_path: Path) -> None:
    part = b"\xef\xbb\xbf" + json_lines({"text": "one"}, {"text": "two"})
    (tmp_path / "a.jsonl").write_bytes(part + part)
    source = JsonLines(path=str(tmp_path))
    assert [record.payload for record in read_all(source)] == ["one", "two"] * 2
    assert b"\xef" not in b"".join(source.lines(str(tmp_path / "a.jsonl")))


@pytest.mark.parametrize("name", ["A.JSONL.GZ", "a.jsonl", "a.Json.Zst"])
@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_packed_files_are_unpacked_whatever_their_suffix_says(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / name).write_bytes(pack(json_lines({"text": "packed"})))
    assert [record.payload for record in read_all(JsonLines(path=str(tmp_path)))] == ["packed"]


@pytest.mark.parametrize("suffix", PACKED)
def test_a_line_that_is_too_large_is_one_invalid_item_and_is_never_held(tmp_path: Path, suffix: str) -> None:
    """A bomb: 80 MB of one line in a file of some kB, between two that are fine."""
    head, tail = b'{"text": "fine"}\n{"text": "', b'"}\n{"text": "fine too"}\n'
    path = tmp_path / f"a{suffix}"
    size = 80_000_000
    path.write_bytes(PACKED[suffix](head + b"a" * size + tail))
    source = JsonLines(path=str(path), max_item_mib=2)
    tracemalloc.start()
    try:
        records, items = read_all(source), all_items(source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    reason = f"line 1 (counted from 0): {size + 12:,} bytes, more than `max_item_mib: 2` allows"
    assert records == [
        Record(f"a{suffix}:0", "fine"),
        Invalid(f"a{suffix}:1", reason),
        Record(f"a{suffix}:2", "fine too"),
    ]
    assert items[1] == Item(f"a{suffix}:1", {"url": None, "text": None}, (reason,))
    assert [line[:8] for line in source.lines(str(path))] == [b'{"text":', b"", b'{"text":']
    # What is unpacked at once holds up to 8 MiB of Zstandard.
    assert peak < 40_000_000


def test_field_names_are_those_of_the_first_lines(tmp_path: Path) -> None:
    rows = [{"text": "a", "meta": {"lang": "en"}}] * 5 + [{"late": 1}]
    (tmp_path / "a.jsonl").write_bytes(b"{not json\n" + json_lines(*rows))
    source = JsonLines(path=str(tmp_path))
    path = str(tmp_path / "a.jsonl")
    assert source.field_names(path) == ["text", "meta", "meta.lang", "late"]
    assert source.field_names(path, limit=3) == ["text", "meta", "meta.lang"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_plain_lines_under_the_name_of_packed_ones_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"text": "one"}\n{"text": "two"}\n')
    source = JsonLines(path=str(tmp_path))
    assert [record.payload for record in source.read(str(tmp_path / name)) if isinstance(record, Record)] == [
        "one",
        "two",
    ]


def test_lines_that_end_in_carriage_returns_alone_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\r{"text": "two"}\r')
    with pytest.raises(TruncatedFile, match="carriage returns alone"):
        list(JsonLines(path=str(tmp_path)).read(str(tmp_path / "a.jsonl")))
