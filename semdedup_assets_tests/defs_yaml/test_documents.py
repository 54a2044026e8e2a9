"""A `defs.yaml` as it is read: what YAML takes otherwise than it looks, and what is no YAML."""

from pathlib import Path

import pytest

from semdedup_assets.defs_yaml.documents import SettingsError, read_documents


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("a: 1\nb: 2\na: 3", ["3 a: is in line 1 too"]),
        ("a:\n  - {b: 1, c: 2}\n  - {b: 1, b: 1}", ["3 a.1.b: is in line 3 too"]),
        ("a: &x {b: 1}\nc: {<<: *x, b: 2}", []),
        ("a: &x {b: 010}\nc: *x\nd: *x", ["1 a.b: 010 means 8"]),
        ("a: 1:30\nb: '1:30'\nc: 0x10\nd: 0.5\ne: 0", ["1 a: 1:30 means 90"]),
        ("on: 1\n2017: {null: 3}", ["1 on: the key 'on' means True", "2 2017: the key '2017'", "2 2017.null: the key"]),
    ],
)
def test_what_yaml_takes_otherwise_than_it_looks_is_reported_with_its_line(
    tmp_path: Path, text: str, reported: list[str]
) -> None:
    path = tmp_path / "defs.yaml"
    path.write_text(text)
    (document,) = read_documents(path)
    assert len(document.pitfalls) == len(reported)
    for line, words in zip(document.pitfalls, reported, strict=True):
        assert line.startswith(f"{path}:{words}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: ü".encode("utf-16"), ": no valid YAML: byte 0 is not UTF-8; save the file as UTF-8"),
        (b"a: 1\nb: \x07", ":2: no valid YAML: the control character #x07 is in this line"),
        (b"a:\n\tb: 1", ":2: no valid YAML (column 1): found character '\\t'"),
        (b"a: {{ env.HOME }}", ":1: no valid YAML (column 5): "),
        (b"a: &x [*x]", ": no valid YAML: an alias"),
    ],
)
def test_what_is_no_yaml_is_said_in_a_line_with_its_place(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "defs.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        read_documents(path)
    assert str(caught.value).startswith(f"{path}{words}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoded", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_line_ends_and_a_byte_order_mark_change_nothing(tmp_path: Path, encoded: str, ending: str) -> None:
    path = tmp_path / "defs.yaml"
    path.write_bytes(f"a: é{ending}b: 2{ending}".encode(encoded))
    (document,) = read_documents(path)
    assert document.content == {"a": "é", "b": 2}
    assert document.line(("b",)) == 2
