import errno
import json
import os
import re
from pathlib import Path

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from semdedup_assets.sources import Folder, JsonLines, Parquet, Source, Vectors, WebDataset

KINDS: dict[str, type[BaseModel]] = {
    "folder": Folder,
    "webdataset": WebDataset,
    "parquet": Parquet,
    "jsonl": JsonLines,
    "vectors": Vectors,
}
CONTENT = {"folder": "image", "webdataset": "image", "parquet": "text", "jsonl": "text", "vectors": "vector"}


@pytest.mark.parametrize("kind", KINDS)
def test_settings_choose_the_source_by_its_kind(kind: str) -> None:
    extra = {"text": "body"} if kind == "parquet" else {}
    source = TypeAdapter(Source).validate_python({"kind": kind, "path": "data", "columns": {"n": "int"}, **extra})
    assert type(source) is KINDS[kind]
    assert source.content == CONTENT[kind]
    assert source.column_types["n"] == "int"


@pytest.mark.parametrize("kind", KINDS)
def test_a_misspelled_setting_or_unknown_type_is_rejected(kind: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        KINDS[kind].model_validate({"path": "data", "text": "a", "colums": {}})
    with pytest.raises(ValidationError, match="Input should be 'string', 'int', 'uint', 'float' or 'bool'"):
        KINDS[kind].model_validate({"path": "data", "text": "a", "columns": {"n": "str"}})


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_is_described(kind: str) -> None:
    fields = KINDS[kind].model_fields
    assert [name for name, field in fields.items() if not field.description and name != "kind"] == []


CHANGES: dict[str, dict[str, object]] = {
    "path": "elsewhere",
    "key": "id",
    "columns": {"n": "int"},
    "metadata": "meta",
    "text": "body",
    "vector": "v",
    "max_item_mib": 1,
}
PAYLOAD, ITEM = "payload", "item"
EFFECTS = {
    "folder": {"path": [], "columns": [ITEM], "max_item_mib": [PAYLOAD, ITEM]},
    "webdataset": {"path": [], "columns": [ITEM], "max_item_mib": [PAYLOAD, ITEM]},
    "parquet": {"path": [], "key": [ITEM], "columns": [ITEM], "text": [PAYLOAD, ITEM], "max_item_mib": [PAYLOAD, ITEM]},
    "jsonl": {"path": [], "key": [ITEM], "columns": [ITEM], "text": [PAYLOAD, ITEM], "max_item_mib": [PAYLOAD, ITEM]},
    "vectors": {
        "path": [],
        "key": [ITEM],
        "columns": [ITEM],
        "metadata": [ITEM],
        "vector": [PAYLOAD],
        "max_item_mib": [PAYLOAD, ITEM],
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_setting_belongs_to_what_it_can_change(kind: str) -> None:
    settings = {"kind": kind, "path": "data", **({"text": "t"} if kind == "parquet" else {})}
    adapter: TypeAdapter[Source] = TypeAdapter(Source)
    before = adapter.validate_python(settings)
    found = {}
    for name in EFFECTS[kind]:
        after = adapter.validate_python(settings | {name: CHANGES[name]})
        changed = {
            PAYLOAD: after.payload_settings() != before.payload_settings(),
            ITEM: after.item_settings() != before.item_settings(),
        }
        found[name] = [part for part, differs in changed.items() if differs]
    assert found == EFFECTS[kind]
    assert set(KINDS[kind].model_fields) - {"kind", "image"} == set(found)
    for part in (before.payload_settings(), before.item_settings()):
        assert json.loads(json.dumps(part)) == part
        assert part["kind"] == kind


def test_the_image_column_decides_the_payload() -> None:
    one, other = Parquet(path="a", image="x"), Parquet(path="a", image="y")
    assert one.payload_settings() != other.payload_settings()
    assert one.item_settings() == other.item_settings()


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_folder_is_no_problem_until_its_files_are_listed(kind: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    path = str(tmp_path / "photo" / "2019")
    source = TypeAdapter(Source).validate_python(
        {"kind": kind, "path": path, **({"text": "t"} if kind == "parquet" else {})}
    )
    assert source.problems() == []
    with pytest.raises(FileNotFoundError, match=rf"{path} does not exist: .*near names: photos.*set `path` to"):
        source.files()


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_file_system_is_a_problem(kind: str) -> None:
    extra = {"text": "t"} if kind == "parquet" else {}
    source = TypeAdapter(Source).validate_python({"kind": kind, "path": "gcss://data", **extra})
    assert source.problems() == ["path: gcss://data: no file system is called 'gcss'; near names: gcs, gs"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "path",
    [
        "s3://user:SECRET@bucket/a.tar",
        "s3://AKIA:12/SECRET@bucket/a.tar",
        "ftp://user:SECRET@host/a.tar",
        "https://SECRET@host/a.tar",
        "https://host/a.tar?X-Amz-Credential=me&X-Amz-Signature=SECRET",
        "https://host/a.tar?sv=2020&sig=SECRET",
        "https://host/a.tar?access_token=SECRET",
        "https://host/{a,b}.tar?Signature=SECRET",
    ],
)
def test_a_secret_in_a_path_is_a_problem_that_never_shows_it(kind: str, path: str) -> None:
    extra = {"text": "t"} if kind == "parquet" else {}
    source = TypeAdapter(Source).validate_python({"kind": kind, "path": path, **extra})
    (problem,) = source.problems()
    assert "SECRET" not in problem
    assert re.search(r"^path: .*(environment|fsspec's configuration)", problem)
    with pytest.raises(ValueError, match="fsspec's configuration") as raised:
        source.files()
    assert "SECRET" not in str(raised.value)


@pytest.mark.parametrize(
    "path",
    [
        "s3://bucket/a:b@c/d.tar",
        "https://host:8080/a@b/c.tar",
        "http://[::1]:8080/a@b.tar",
        "abfs://container@account.dfs.core.windows.net/a.tar",
        "ftp://user@host/a.tar",
        "https://host/download?design=3&file=a.tar",
        "/data/user:word@home/a.tar",
        "hf://datasets/user/name@main/a.tar",
    ],
)
def test_a_path_without_a_secret_is_none(path: str) -> None:
    assert WebDataset(path=path).problems() == []


def test_a_chain_of_file_systems_and_endless_braces_are_problems() -> None:
    assert "chained file systems are not read" in WebDataset(path="simplecache::s3://bucket/a.tar").problems()[0]
    assert "more than 300,000 names" in WebDataset(path="s3://bucket/{0..9}{000000000..999999999}.tar").problems()[0]


def test_what_a_path_is_that_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "lost.jsonl").symlink_to("nowhere.jsonl")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    for name, reason in {
        "pipe.jsonl": r"neither file nor folder, such as a pipe or a device; set `path` to",
        "lost.jsonl": r"is a link to 'nowhere\.jsonl', which is not there",
        "loop.jsonl": r"is a link to 'loop\.jsonl', which is not there",
    }.items():
        with pytest.raises(FileNotFoundError, match=rf"{name}: {reason}"):
            JsonLines(path=str(tmp_path / name)).files()


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("foo://x", "no file system is called 'foo'"),
        ("https://", "names no host"),
        ("http:///folder/", "names no host"),
        ("https://[1/a.tar", "is no URL"),
        ("s3://", "names no bucket"),
        ("s3//bucket/a", "names a folder on this machine; is s3://bucket/a meant?"),
        ("${NOWHERE}/a", '${NOWHERE} is not filled in here; write "{{ env.NOWHERE }}"'),
    ],
)
def test_a_path_that_no_file_system_can_have_is_a_problem_before_it_is_asked(path: str, problem: str) -> None:
    for source in (Folder(path=path), WebDataset(path=path), JsonLines(path=path), Parquet(path=path, text="text")):
        (found,) = source.problems()
        assert found.startswith(f"path: {path}: {problem}")
        with pytest.raises(ValueError, match=r"^path: ") as raised:
            source.files()
        assert str(raised.value) == found


@pytest.mark.parametrize("kind", ["webdataset", "jsonl"])
def test_a_file_that_fails_while_it_is_read_is_named(kind: str, tmp_path: Path) -> None:
    # The memory of a process is a file of the system that can be opened, and not be read at its start.
    (tmp_path / "failing").symlink_to("/proc/self/mem")
    source = TypeAdapter(Source).validate_python({"kind": kind, "path": str(tmp_path)})
    with pytest.raises(OSError, match=rf"{os.strerror(errno.EIO)}: '{tmp_path}/failing'"):
        list(source.read(str(tmp_path / "failing")))
