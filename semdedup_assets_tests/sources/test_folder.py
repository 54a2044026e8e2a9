import errno
import io
import json
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from semdedup_assets.records import Invalid, Item, Record
from semdedup_assets.sources import Folder, WebDataset
from semdedup_assets.sources.reading import IMAGE_SUFFIXES


def image_bytes(color: str, format: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 3), color).save(content, format)
    return content.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "b.JPG").write_bytes(image_bytes("red", "JPEG"))
    (root / "a.png").write_bytes(image_bytes("green"))
    (root / "deep" / "er" / "c.webp").write_bytes(image_bytes("blue", "WEBP"))
    (root / "notes.md").write_text("not an image")
    return root


def read_all(source: Folder) -> list[Record | Invalid]:
    return [item for file in source.files() for item in source.read(file.path)]


def all_items(source: Folder) -> list[Item]:
    return [item for file in source.files() for item in source.read_items(file.path)]


def test_every_image_below_the_folder_is_a_file_with_its_own_bytes(photos: Path) -> None:
    records = read_all(Folder(path=str(photos)))
    assert [record.key for record in records] == ["a.png", "b.JPG", "deep/er/c.webp"]
    assert [record.payload for record in records] == [(photos / record.key).read_bytes() for record in records]
    assert Image.open(io.BytesIO(records[2].payload)).size == (4, 3)


def test_a_caption_comes_from_the_text_file_before_the_json(photos: Path) -> None:
    (photos / "a.txt").write_text("a green field\n")
    (photos / "a.json").write_text(json.dumps({"caption": "unused"}))
    (photos / "b.json").write_text(json.dumps({"caption": "red é"}))
    assert [item.columns for item in all_items(Folder(path=str(photos)))] == [
        {"caption": "a green field"},
        {"caption": "red é"},
        {"caption": None},
    ]


def test_declared_columns_come_from_the_json_also_where_the_caption_is_a_text_file(photos: Path) -> None:
    (photos / "a.txt").write_text("green")
    (photos / "a.json").write_text(json.dumps({"score": 3, "meta": {"safe": True}}))
    (photos / "b.json").write_text(json.dumps({"score": "abc"}))
    source = Folder(path=str(photos), columns={"score": "float", "meta.safe": "bool"})
    first, second, third = all_items(source)
    assert first.columns == {"caption": "green", "score": 3.0, "meta.safe": True}
    assert second.columns == {"caption": None, "score": None, "meta.safe": None}
    assert second.invalid_values == ("column 'score': 'abc' is not a float",)
    assert third.columns == {"caption": None, "score": None, "meta.safe": None}
    assert source.column_types == {"caption": "string", "score": "float", "meta.safe": "bool"}
    assert list(first.columns) == list(source.column_types)


def test_an_image_without_bytes_is_invalid(photos: Path) -> None:
    (photos / "a.png").write_bytes(b"")
    first, *others = read_all(Folder(path=str(photos)))
    assert first == Invalid("a.png", "empty image: 0 bytes")
    assert all(isinstance(other, Record) for other in others)


@pytest.mark.parametrize(
    ("name", "content", "caption", "reason"),
    [
        ("a.json", b"{", "green", "json: not JSON (Expecting property name enclosed in double quotes at character 1)"),
        ("a.json", b"[1]", "green", "json: not a JSON object: [1]"),
        ("a.txt", b"caf\xe9", None, "txt: not UTF-8 at byte 3"),
    ],
)
def test_a_sidecar_that_cannot_be_parsed_gives_nulls_and_never_drops_its_image(
    photos: Path, name: str, content: bytes, caption: str | None, reason: str
) -> None:
    (photos / "a.txt").write_text("green")
    (photos / "a.json").write_text("{}")
    (photos / name).write_bytes(content)
    source = Folder(path=str(photos), columns={"score": "int"})
    assert all_items(source)[0] == Item("a.png", {"caption": caption, "score": None}, (reason,))
    assert [item.invalid_values for item in all_items(source)[1:]] == [(), ()]
    assert all(isinstance(record, Record) for record in read_all(source))


def test_items_are_read_without_the_images(photos: Path) -> None:
    source = Folder(path=str(photos))
    files = source.files()
    for file in files:
        Path(file.path).unlink()
    assert [item.key for file in files for item in source.read_items(file.path)] == ["a.png", "b.JPG", "deep/er/c.webp"]


def test_a_changed_caption_is_a_changed_file_and_no_other_is(photos: Path) -> None:
    (photos / "a.txt").write_text("one")
    source = Folder(path=str(photos))
    before = source.files()
    (photos / "a.txt").write_text("other")
    changed = source.files()
    assert [one == other for one, other in zip(before, changed, strict=True)] == [False, True, True]
    (photos / "a.txt").unlink()
    assert len({before[0].stamp, changed[0].stamp, source.files()[0].stamp}) == 3


@pytest.mark.parametrize(
    ("glob", "keys"),
    [
        ("photos/*", ["a.png", "b.JPG"]),
        ("photos/**", ["a.png", "b.JPG", "deep/er/c.webp"]),
        ("photos/*.png", ["a.png"]),
        ("phot*/a.*", ["photos/a.png"]),
        ("photos/a.png", ["a.png"]),
        ("photos/", ["a.png", "b.JPG", "deep/er/c.webp"]),
    ],
)
def test_a_path_may_be_a_glob_a_file_or_relative(
    photos: Path, glob: str, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "a.txt").write_text("green")
    monkeypatch.chdir(photos.parent)
    for path in (glob, f"./{glob}", str(photos.parent / glob)):
        source = Folder(path=path)
        assert [record.key for record in read_all(source)] == keys
        assert "txt:5" in source.files()[0].stamp, "the caption beside it belongs to the image's stamp"


def test_a_folder_whose_name_looks_like_a_glob_is_read(photos: Path) -> None:
    photos.rename(photos.with_name("photos [2019]"))
    keys = [record.key for record in read_all(Folder(path=str(photos.with_name("photos [2019]"))))]
    assert keys == ["a.png", "b.JPG", "deep/er/c.webp"]


def test_no_image_at_all_names_the_path_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing")
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}: no file here ends in \.jpg .*set `path`"):
        Folder(path=str(tmp_path)).files()


def test_an_image_that_is_missing_raises_with_its_path(photos: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.png: cannot be opened"):
        list(Folder(path=str(photos)).read(str(photos / "missing.png")))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_an_image_that_may_not_be_read_is_one_invalid_item(photos: Path) -> None:
    (photos / "a.png").chmod(0)
    first, *others = read_all(Folder(path=str(photos)))
    assert first == Invalid("a.png", "cannot be opened (Permission denied)")
    assert all(isinstance(other, Record) for other in others)


def test_a_name_that_is_not_utf8_gives_a_key_that_tables_can_hold(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(image_bytes("red"))
    except OSError:
        pytest.skip("this file system holds Unicode names only")
    (record,) = read_all(Folder(path=str(tmp_path)))
    assert record.key == "caf\\udce9.png"
    assert record.key.encode()


def test_field_names_are_those_of_the_files_beside_an_image(photos: Path) -> None:
    (photos / "a.json").write_text(json.dumps({"size": {"w": 4}, "tags": []}))
    (photos / "a.txt").write_text("green")
    source = Folder(path=str(photos))
    assert source.field_names(str(photos / "a.png")) == ["size", "size.w", "tags", "caption"]
    assert source.field_names(str(photos / "b.JPG")) == []


def test_an_image_that_cannot_be_opened_for_its_own_reasons_is_one_invalid_item(photos: Path) -> None:
    source = Folder(path=str(photos))
    files = [file.path for file in source.files()]
    (photos / "a.png").unlink()
    (photos / "a.png").mkdir()
    (photos / "b.JPG").unlink()
    (photos / "b.JPG").symlink_to("missing")
    records = [record for file in files for record in source.read(file)]
    assert records[:2] == [
        Invalid("a.png", "cannot be opened (Is a directory)"),
        Invalid("b.JPG", "cannot be opened (No such file or directory)"),
    ]
    assert isinstance(records[2], Record)
    (photos / "b.JPG").unlink()
    (photos / "b.JPG").symlink_to("b.JPG")
    assert list(source.read(files[1])) == [Invalid("b.JPG", "cannot be opened (Too many levels of symbolic links)")]
    (photos / "b.JPG").unlink()
    os.mkfifo(photos / "b.JPG")
    assert isinstance(next(source.read(files[1])), Invalid)
    (photos / "b.JPG").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.JPG: cannot be opened") as raised:
        next(source.read(files[1]))
    assert raised.value.errno == errno.ENOENT


def test_a_file_above_the_bound_is_invalid_and_not_read(photos: Path) -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    with (photos / "a.png").open("wb") as stream:
        stream.truncate(3_600_000_000)
    (photos / "b.txt").write_bytes(bytes(2 << 20))
    source = Folder(path=str(photos), max_item_mib=1)
    tracemalloc.start()
    try:
        first, *_ = read_all(source)
        items = all_items(source)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(first, Invalid)
    assert "3,600,000,000 bytes or more exceed max_item_mib (1 MiB)" in first.reason
    assert "txt: 2,097,152 bytes or more exceed" in items[1].invalid_values[0]
    assert peak < 10_000_000


def test_a_git_lfs_pointer_is_named(photos: Path) -> None:
    (photos / "a.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert read_all(Folder(path=str(photos)))[0] == Invalid(
        "a.png", "not an image: this is a git-lfs pointer, not the file itself; run `git lfs pull` there"
    )


def test_metadata_jsonl_gives_captions_and_columns(photos: Path) -> None:
    (photos / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "green", "score": 1}\n'
        '{"file_name": "deep/er/c.webp", "caption": "outer"}\n'
        '{"file_name": "missing.png", "text": "x"}\n'
        "not json\n"
    )
    (photos / "deep" / "er" / "metadata.jsonl").write_text('{"file_name": "c.webp", "caption": "nearest"}\n')
    (photos / "b.json").write_text('{"score": 2}')
    source = Folder(path=str(photos), columns={"score": "int"})
    assert [item.columns for item in all_items(source)] == [
        {"caption": "green", "score": 1},
        {"caption": None, "score": 2},
        {"caption": "nearest", "score": None},
    ]
    for path in (f"{photos}/**/*.*", f"{photos}/deep/er/*.webp"):
        narrow = Folder(path=path)
        assert all_items(narrow)[-1].columns == {"caption": "nearest"}
        assert "metadata:" in narrow.files()[-1].stamp
    listing = source.listing()
    assert listing.passed_over == {
        "suffix .md": 1,
        "lines of metadata.jsonl without an image": 2,
        "lines of metadata.jsonl that cannot be read": 1,
    }
    (photos / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "red"}\n')
    changed = source.listing().files
    assert [one != other for one, other in zip(listing.files, changed, strict=True)] == [True, False, False]
    assert all_items(source)[0].columns["caption"] == "red"


NAMES = st.sampled_from(["a", "b", "IMG", "d/a", "d/e/c", "é"])
SUFFIXES = st.sampled_from([*(s for s in IMAGE_SUFFIXES), ".JPG", ".TIFF", ".Png"])
CONTENTS = st.sampled_from([b"image", b"", b"version https://git-lfs.github.com/spec/v1\n"])
TEXTS = st.sampled_from([None, b"caption\n", b"\xef\xbb\xbfwith a mark", b"\xff\xfe", b""])
JSONS = st.sampled_from([None, b'{"caption": "of json", "score": 3}', b"{broken", b"[1]", b'\xef\xbb\xbf{"score": 1}'])
SAMPLES = st.dictionaries(
    NAMES, st.tuples(SUFFIXES, CONTENTS, TEXTS, JSONS, st.sampled_from([str.lower, str.upper])), min_size=1
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(samples=SAMPLES)
def test_a_folder_and_a_tar_of_the_same_files_give_the_same_items(tmp_path: Path, samples: dict[str, Any]) -> None:
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    for key, (suffix, content, text, document, case) in samples.items():
        files = {suffix: content, case(".txt"): text, case(".json"): document}
        for name, data in files.items():
            path = root / "in" / f"{key}{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if data is not None:
                path.write_bytes(data)
    names = sorted(path.relative_to(root / "in").as_posix() for path in (root / "in").rglob("*") if path.is_file())
    with tarfile.open(root / "a.tar", "w") as tar:
        for name in names:
            tar.add(root / "in" / name, name)
    folder = Folder(path=str(root / "in"), columns={"score": "int"})
    packed = WebDataset(path=str(root / "a.tar"), columns={"score": "int"})

    def found(source: Folder | WebDataset) -> dict[str, object]:
        records = [record for file in source.files() for record in source.read(file.path)]
        items = [item for file in source.files() for item in source.read_items(file.path)]
        return {
            record.key.rpartition(".")[0] if source is folder else record.key: (
                record.payload if isinstance(record, Record) else record.reason,
                {name: value for name, value in item.columns.items() if name != "url"},
                item.invalid_values,
            )
            for record, item in zip(records, items, strict=True)
        }

    assert found(folder) == found(packed)
    assert len(found(folder)) == len(samples)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (POINTER, "git-lfs pointer"),
        (b"<!DOCTYPE html><title>404</title>", "web page"),
        (b'<?xml version="1.0"?><Error/>', "XML document"),
        (b"\x1f\x8b\x08\0\xff", "packed with gzip"),
    ],
)
def test_what_lies_beside_an_image_instead_of_its_caption_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(image_bytes("red"))
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "b.json").write_bytes(content)
    (tmp_path / "b.txt").write_text("BZh and PAR1 are words of a caption")
    (tmp_path / "c.txt").write_text("Rar! A caption")
    source = Folder(path=str(tmp_path))
    items = {item.key: item for item in all_items(source)}
    assert {key: item.columns["caption"] for key, item in items.items()} == {
        "a.png": None,
        "b.png": "BZh and PAR1 are words of a caption",
        "c.png": "Rar! A caption",
    }
    (of_text,), (of_json,) = items["a.png"].invalid_values, items["b.png"].invalid_values
    assert of_text.startswith("txt: this is ")
    assert what in of_text
    assert of_json.startswith("json: this is ")
    assert what in of_json
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.png", "a.txt", "b.png", "b.json", "b.txt"):
            tar.add(tmp_path / name, name)
    of_tar = list(WebDataset(path=f"{tmp_path}/a.tar").read_items(f"{tmp_path}/a.tar"))
    assert [item.invalid_values for item in of_tar] == [(of_text,), (of_json,)]
    assert of_tar[0].columns["caption"] is None


def test_a_pointer_instead_of_the_metadata_is_named_at_each_image_until_the_file_is_there(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(image_bytes("red"))
    (tmp_path / "metadata.jsonl").write_bytes(POINTER)
    source = Folder(path=str(tmp_path))
    before = source.listing()
    ((reason, count),) = before.passed_over.items()
    assert (reason.startswith("metadata.jsonl: this is a git-lfs pointer"), count) == (True, 1)
    assert [item.invalid_values for item in all_items(source)] == [(reason,), (reason,)]
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "one"}))
    assert [(item.columns["caption"], item.invalid_values) for item in all_items(source)] == [("one", ()), (None, ())]
    assert not {file.stamp for file in before.files} & {file.stamp for file in source.files()}


@pytest.mark.parametrize(
    ("txt", "document", "line", "caption"),
    [
        (None, None, {"caption": None, "text": "t"}, "t"),
        (None, None, {"caption": "", "text": "t"}, "t"),
        (None, None, {"caption": float("nan"), "text": "t"}, "t"),
        (None, None, {"caption": "c", "text": "t"}, "c"),
        (None, None, {"caption": "", "text": None}, ""),
        (None, None, {"caption": ""}, ""),
        (None, {"caption": None}, {"text": "t"}, "t"),
        (None, {"caption": ""}, {"caption": "c"}, "c"),
        (None, {"caption": "  "}, {"caption": None}, "  "),
        (None, {"caption": None}, None, None),
        ("", {"caption": "j"}, {"caption": "c"}, "j"),
        ("\n", {"caption": None}, {"caption": "c"}, "c"),
        ("", {"caption": None}, None, ""),
        ("x\n", {"caption": "j"}, {"caption": "c"}, "x"),
    ],
)
def test_a_caption_that_is_null_or_blank_hides_no_other(
    tmp_path: Path, txt: str | None, document: object, line: dict[str, object] | None, caption: str | None
) -> None:
    (tmp_path / "a.png").write_bytes(image_bytes("red"))
    if txt is not None:
        (tmp_path / "a.txt").write_text(txt)
    if document is not None:
        (tmp_path / "a.json").write_text(json.dumps(document))
    if line is not None:
        (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", **line}))
    (item,) = all_items(Folder(path=str(tmp_path)))
    assert (item.columns["caption"], item.invalid_values) == (caption, ())


def test_a_null_beside_an_image_hides_no_value_of_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image_bytes("red"))
    (tmp_path / "a.json").write_text(json.dumps({"width": None, "height": 2}))
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "width": 1, "height": 3}))
    (item,) = all_items(Folder(path=str(tmp_path), columns={"width": "int", "height": "int"}))
    assert item.columns == {"caption": None, "width": 1, "height": 2}


def test_keys_and_metadata_below_a_literal_folder_of_a_glob_are_those_of_the_folder(tmp_path: Path) -> None:
    for folder in ("data[1]", "data1"):
        (tmp_path / folder / "deep").mkdir(parents=True)
        (tmp_path / folder / "deep" / "a.png").write_bytes(image_bytes("red"))
        line = {"file_name": "deep/a.png", "text": folder}
        (tmp_path / folder / "metadata.jsonl").write_text(json.dumps(line))
    for path in ("data[1]", "data[1]/**", "data[1]/*/*.png", "data[1]/deep/a.png", "data[[]1]/**/*.png"):
        (item,) = all_items(Folder(path=f"{tmp_path}/{path}"))
        assert (item.key, item.columns["caption"]) in (("deep/a.png", "data[1]"), ("a.png", None)), path
        assert (item.key == "a.png") == path.endswith("deep/a.png")
