"""Files are there whole or not at all, wherever the store lies."""

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from semdedup_assets.storage.files import (
    create,
    exists,
    file_stat,
    is_local,
    join,
    list_below,
    list_folder,
    list_glob,
    move,
    read_bytes,
    read_many,
    remove,
    write_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def stop() -> None:
    message = "stop"
    raise RuntimeError(message)


def memory_folder() -> str:
    return f"memory:///files-{time.monotonic_ns()}"


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else memory_folder()


def test_what_is_written_is_read_and_listed(folder: str) -> None:
    write_bytes(f"{folder}/a/one", b"1")
    with create(f"{folder}/a/b/two") as stream:
        stream.write(b"22")
    assert read_bytes(f"{folder}/a/one") == b"1"
    assert read_bytes(f"{folder}/a/b/two") == b"22"
    assert exists(f"{folder}/a")
    assert not exists(f"{folder}/b")
    assert {path: file.size for path, file in list_folder(f"{folder}/a").items()} == {f"{folder}/a/one": 1}
    listed = list_folder(folder, recursive=True)
    assert {path: file.size for path, file in listed.items()} == {f"{folder}/a/one": 1, f"{folder}/a/b/two": 2}
    now = time.time()
    assert all(file.modified is not None and now - 60 < file.modified < now + 60 for file in listed.values())
    assert [(file.path, file.size) for file in list_glob(f"{folder}/a/*").files] == [(f"{folder}/a/one", 1)]


def test_a_file_that_is_replaced_has_another_stamp(folder: str) -> None:
    write_bytes(f"{folder}/file", b"old")
    before = list_folder(folder)[f"{folder}/file"]
    write_bytes(f"{folder}/file", b"new")
    assert read_bytes(f"{folder}/file") == b"new"
    after = list_folder(folder)[f"{folder}/file"]
    assert (before.size, before.stamp) != (after.size, after.stamp)


def test_an_error_in_the_writer_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), create(f"{tmp_path}/file") as stream:  # noqa: PT012
        stream.write(b"half")
        stop()
    assert list_folder(str(tmp_path)) == {}


def test_a_local_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    """Whoever reads while it is written again and again sees one of the contents, whole."""
    path, contents = f"{tmp_path}/file", [bytes([number]) * (1 << 16) for number in range(2)]
    write_bytes(path, contents[0])
    done = threading.Event()

    def write() -> None:
        for number in range(200):
            write_bytes(path, contents[number % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set[bytes]()
    while not done.is_set():
        seen.add(read_bytes(path))
    writer.join()
    assert seen <= set(contents)
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_a_failed_replacement_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes(f"{tmp_path}/file", b"old")

    def fail(_: int) -> None:
        message = "disk full"
        raise OSError(message)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(f"{tmp_path}/file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_not_there_is_nothing(folder: str) -> None:
    remove(f"{folder}/nowhere/file")
    move(f"{folder}/nowhere/file", f"{folder}/other")
    assert list_folder(f"{folder}/nowhere") == {}
    assert list_folder(f"{folder}/nowhere", recursive=True) == {}
    assert read_many([]) == []
    assert read_many([f"{folder}/nowhere/file"]) == [None]
    with pytest.raises(FileNotFoundError):
        read_bytes(f"{folder}/nowhere/file")


def test_many_files_are_read_in_their_order(folder: str) -> None:
    paths = [f"{folder}/{name}" for name in ("c", "missing", "a", "b")]
    for path in (paths[0], *paths[2:]):
        write_bytes(path, path[-1].encode() * 3)
    assert read_many(paths) == [b"ccc", None, b"aaa", b"bbb"]
    assert read_many(paths[2:3]) == [b"aaa"]


def test_a_moved_file_replaces_what_has_its_new_name(folder: str) -> None:
    write_bytes(f"{folder}/one", b"1")
    write_bytes(f"{folder}/two", b"2")
    move(f"{folder}/one", f"{folder}/two")
    assert read_bytes(f"{folder}/two") == b"1"
    assert not exists(f"{folder}/one")


def test_files_beside_a_folder_are_not_of_it(folder: str) -> None:
    for name in ("k=1/file", "k=10/file", "k=1.result.json"):
        write_bytes(f"{folder}/{name}", b"x")
    assert list(list_folder(f"{folder}/k=1")) == [f"{folder}/k=1/file"]
    assert list(list_folder(f"{folder}/k=1", recursive=True)) == [f"{folder}/k=1/file"]
    assert list_folder(f"{folder}/k=1/file") == {}


def test_only_paths_of_this_machine_are_local() -> None:
    assert is_local("/data")
    assert is_local("data/store")
    assert is_local("file:///data")
    assert not is_local("memory://data")
    assert join("s3://bucket/", "a", "b") == "s3://bucket/a/b"


def test_an_unwritable_store_is_reported_with_path_and_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(PermissionError, match=r"file/store/.*cannot be written .*set `store` to one that is"):
        write_bytes(f"{tmp_path}/file/store/x", b"")


def test_a_read_only_store_is_reported(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("the superuser may write everywhere")
    with pytest.raises(PermissionError, match="cannot be written"):
        write_bytes(f"{tmp_path}/x", b"")


@pytest.mark.parametrize(
    "cause", [PermissionError("Access Denied"), FileNotFoundError("no such bucket"), KeyError("x")]
)
def test_what_a_store_s_library_raises_names_the_object_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch, cause: Exception
) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise cause

    path = "memory://refusing/folder/x"
    write_bytes(path, b"record")
    for name in ("open", "cat_file", "info", "ls", "find", "glob"):
        monkeypatch.setattr(MemoryFileSystem, name, refused)
    with pytest.raises(OSError, match=rf"{path}: cannot be written .*see that the store is there") as raised:
        write_bytes(path, b"other")
    assert isinstance(raised.value, PermissionError) == isinstance(cause, PermissionError)
    assert raised.value.errno
    if isinstance(cause, FileNotFoundError):
        assert list_folder("memory://refusing/folder") == {}
        return
    asked: list[Callable[[], Any]] = [
        lambda: read_bytes(path),
        lambda: list_folder("memory://refusing"),
        lambda: list_below("memory://refusing"),
        lambda: list_glob("memory://refusing/*"),
        lambda: file_stat("memory://refusing/x"),
    ]
    for each in asked:
        with pytest.raises(OSError, match=r"memory://refusing.*: cannot be (read|listed) .*see that the store"):
            each()


def test_a_store_that_fails_for_a_moment_is_not_a_store_without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        write_bytes(f"memory://flaky/{name}", b"record")
    original = MemoryFileSystem.cat_file

    def throttled(self: MemoryFileSystem, path: str, **more: Any) -> bytes:
        if path.endswith("two"):
            message = "503: slow down"
            raise OSError(message)
        return original(self, path, **more)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", throttled)
    with pytest.raises(OSError, match="503: slow down"):
        read_many(["memory://flaky/one", "memory://flaky/two"])
