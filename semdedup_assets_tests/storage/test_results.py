"""Results are there whole or not at all, wherever the store lies."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from semdedup_assets.storage.files import atomic_write, list_files, read_bytes, write_bytes
from semdedup_assets.storage.layout import Layout, recipe_path
from semdedup_assets.storage.results import MissingResultError, read_recipe, writing

CURE = "materialise toy/m/embeddings"

KILLED_WRITER = """
import sys, time
from semdedup_assets.storage.results import writing

folder = sys.argv[1]
with writing(f"{folder}/result", code_version="c", made_from={"input": "1"}) as result:
    with result.open(f"{folder}/first") as stream:
        stream.write(b"first" * 1000)
    with result.open(f"{folder}/result") as stream:
        stream.write(b"half of it" * 100_000)
        stream._stream.flush()
        print("halfway", flush=True)
        time.sleep(60)
"""


def stop() -> None:
    message = "stop"
    raise RuntimeError(message)


def write_result(folder: Path, content: bytes = b"content", extra: bytes = b"extra") -> str:
    path = f"{folder}/result"
    with writing(path, code_version="c", made_from={"input": "1"}) as result:
        with result.open(path) as stream:
            stream.write(content)
        with result.open(f"{folder}/beside") as stream:
            stream.write(extra)
        result.details = {"items": 3}
    return path


def kill_halfway(folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(folder)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "halfway\n"
        writer.send_signal(signal.SIGKILL)
        assert writer.wait(timeout=30) == -signal.SIGKILL


def test_a_writer_killed_halfway_leaves_nothing_under_the_name_and_no_recipe(tmp_path: Path) -> None:
    kill_halfway(tmp_path)
    assert (tmp_path / "first").read_bytes() == b"first" * 1000
    assert not (tmp_path / "result").exists()
    with pytest.raises(MissingResultError, match="its writing was interrupted; materialise toy/m/embeddings"):
        read_recipe(f"{tmp_path}/result", cure=CURE)
    write_result(tmp_path)
    assert read_recipe(f"{tmp_path}/result", cure=CURE).details == {"items": 3}


def test_a_writer_killed_over_an_older_result_makes_the_older_one_unreadable(tmp_path: Path) -> None:
    path = write_result(tmp_path)
    kill_halfway(tmp_path)
    assert Path(path).read_bytes() == b"content"
    with pytest.raises(MissingResultError, match="interrupted"):
        read_recipe(path, cure=CURE)


def test_an_error_in_the_writer_leaves_neither_file_nor_temporary_name(tmp_path: Path) -> None:
    write_bytes(f"{tmp_path}/file", b"old")
    with pytest.raises(RuntimeError, match="stop"), atomic_write(f"{tmp_path}/file") as stream:  # noqa: PT012
        stream.write(b"new")
        stop()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("damage", [b"", b"conten", b"content and more"])
def test_a_file_of_another_size_is_told_with_path_sizes_and_cure(tmp_path: Path, damage: bytes) -> None:
    path = write_result(tmp_path)
    Path(path).write_bytes(damage)
    with pytest.raises(MissingResultError, match=rf"result: {len(damage)} bytes where 7 were written; {CURE}"):
        read_recipe(path, cure=CURE)


def test_a_lost_file_is_told(tmp_path: Path) -> None:
    path = write_result(tmp_path)
    (tmp_path / "beside").unlink()
    with pytest.raises(MissingResultError, match="beside: None bytes where 5 were written"):
        read_recipe(path, cure=CURE)


def test_equal_bytes_have_equal_versions_and_other_bytes_others(tmp_path: Path) -> None:
    versions = []
    for name, content, extra in [("a", b"1", b"2"), ("b", b"1", b"2"), ("c", b"1", b"3"), ("d", b"3", b"2")]:
        versions.append(read_recipe(write_result(tmp_path / name, content, extra), cure="").version)
    assert versions[0] == versions[1]
    assert len(set(versions)) == 3


def test_a_moved_store_is_read_where_it_lies(tmp_path: Path) -> None:
    write_result(tmp_path / "old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert read_recipe(f"{tmp_path}/new/result", cure=CURE).files == {"beside": 5, "result": 7}


def test_an_unwritable_store_is_told_with_path_and_cure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(PermissionError, match=r"file/store/x: cannot be written .*set `store` to one that is"):
        write_bytes(f"{tmp_path}/file/store/x", b"")


def test_a_read_only_store_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("the superuser may write everywhere")
    with pytest.raises(PermissionError, match="cannot be written"):
        write_bytes(f"{tmp_path}/x", b"")


def test_memory_stores_hold_results_as_folders_do() -> None:
    folder = f"memory:///results-{time.monotonic_ns()}"
    path = f"{folder}/result"
    with writing(path, code_version="c", made_from={}) as result, result.open(path) as stream:
        stream.write(b"content")
    assert read_recipe(path, cure=CURE).files == {"result": 7}
    assert read_bytes(path) == b"content"
    assert [file.path for file in list_files(f"{folder}/*")] == [path, recipe_path(path)]


def test_no_two_results_share_a_path() -> None:
    layout = Layout("s3://bucket/results", "photos", "ViT-B-16-openai")
    paths = [
        layout.catalogue,
        layout.embeddings("s000001"),
        layout.skipped("s000001"),
        layout.training_sample,
        layout.centroids("10"),
        layout.centroids("100"),
        layout.clusters("10"),
        layout.assignments("10", "s000001"),
        layout.scores("10", "b0000"),
        layout.masks("10", "0.05"),
        layout.masks("10", "keep=50%"),
        layout.mask("10", "0.05", "b0000"),
        layout.manifest("10", "0.05", "abc"),
        layout.current_manifest("10", "0.05"),
    ]
    assert len(set(paths)) == len(paths)
    assert all(path.startswith("s3://bucket/results/photos/") and "%" not in path for path in paths)
