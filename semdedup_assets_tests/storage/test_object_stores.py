"""Results on an S3-compatible server, started by the test."""

import gc
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest

from semdedup_assets.storage import files
from semdedup_assets.storage.files import (
    create,
    exists,
    is_local,
    list_folder,
    list_glob,
    move,
    read_bytes,
    read_many,
    remove,
    write_bytes,
)
from semdedup_assets.storage.leftovers import remove_leftovers
from semdedup_assets.storage.results import (
    DAMAGED,
    RECORD,
    DamagedResultError,
    ResultRecord,
    StoredFile,
    read_record,
)
from semdedup_assets_tests.stage_runs import small_pipeline
from semdedup_assets_tests.storage.written import READERS, contents_of, write_kinds, write_result
from semdedup_assets_tests.toy_source import near_duplicates, write_shard

FILES = {"first": b"content", "second": b"more"}


def stop() -> None:
    message = "stop"
    raise RuntimeError(message)


@pytest.mark.parametrize("size", [10, 12 << 20], ids=["one put", "multipart"])
def test_an_error_in_the_writer_leaves_nothing_on_s3(bucket: str, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(files, "_UPLOAD_BYTES", 5 << 20)
    url = f"{bucket}/never-{size}"
    with pytest.raises(RuntimeError, match="stop"), create(url) as stream:  # noqa: PT012
        stream.write(b"x" * size)
        stop()
    del stream
    gc.collect()
    assert not exists(url)


def test_an_interrupted_rewrite_on_s3_leaves_the_earlier_result(bucket: str) -> None:
    location = f"{bucket}/rewritten/result"
    first = write_result(location, FILES)
    with pytest.raises(RuntimeError, match="stop"):
        write_result(location, {"first": b"something else"}, before_commit=stop)
    assert read_record(location) == first
    assert contents_of(first) == FILES
    second = write_result(location, {"first": b"something else"})
    assert contents_of(second) == {"first": b"something else"}
    assert set(list_folder(f"{bucket}/rewritten")) == {
        f"{location}{RECORD}",
        f"{bucket}/rewritten/{second.files['first'].path}",
    }


def test_two_writers_at_once_on_s3_give_the_result_of_one(bucket: str) -> None:
    location = f"{bucket}/two/result"
    ready = threading.Barrier(2, timeout=30)
    made: list[ResultRecord] = []

    def write(name: str) -> None:
        contents = {"first": name.encode() * 500, "second": name.encode()}
        made.append(write_result(location, contents, before_commit=ready.wait, writer=name))

    threads = [threading.Thread(target=write, args=(name,)) for name in "AB"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    record = read_record(location)
    assert record in made
    assert record is not None
    name = record.details["writer"].encode()
    assert contents_of(record) == {"first": name * 500, "second": name}


@pytest.mark.parametrize("kind", READERS)
def test_files_are_read_by_ranges_and_damage_is_noticed(bucket: str, tmp_path: Path, kind: str) -> None:
    name, read = READERS[kind]
    there = write_kinds(f"{bucket}/ranges/{kind}")
    assert read(there.file(name)) == read(write_kinds(f"{tmp_path}/here").file(name))
    flipped = write_kinds(f"{bucket}/flipped/{kind}")
    path = flipped.file(name).path
    content = bytearray(read_bytes(path))
    # Ids are read without their vectors: what is noticed there is a file that cannot be read at all.
    offset = len(content) - 3 if kind == "ids of vectors" else len(content) // 2
    content[offset] ^= 0xFF
    write_bytes(path, bytes(content))
    with pytest.raises(DamagedResultError) as error:
        read(flipped.file(name))
    assert path in str(error.value)
    assert read_record(flipped.location) is None
    assert exists(f"{flipped.location}{RECORD}{DAMAGED}")


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("spoil", ["lost", "cut", "emptied"])
def test_lost_and_cut_objects_are_reported(bucket: str, kind: str, spoil: str) -> None:
    name, read = READERS[kind]
    record = write_kinds(f"{bucket}/{spoil}/{kind}")
    path = record.file(name).path
    if spoil == "lost":
        fsspec.filesystem("s3").rm(path)
    else:
        write_bytes(path, read_bytes(path)[: record.files[name].size // 3] if spoil == "cut" else b"")
    with pytest.raises(DamagedResultError) as error:
        read(record.file(name))
    assert path in str(error.value)
    assert read_record(record.location) is None


def test_listings_and_many_reads_on_s3(bucket: str) -> None:
    folder = f"{bucket}/listed"
    names = {"a": b"1", "b": b"", "deep/c": b"333"}
    for name, content in names.items():
        write_bytes(f"{folder}/{name}", content)
    assert not is_local(folder)
    assert {path: file.size for path, file in list_folder(folder).items()} == {f"{folder}/a": 1, f"{folder}/b": 0}
    listed = list_folder(folder, recursive=True)
    assert {path: file.size for path, file in listed.items()} == {f"{folder}/{n}": len(c) for n, c in names.items()}
    assert all(file.modified is not None for file in listed.values())
    stamp = list_folder(folder)[f"{folder}/a"].stamp
    write_bytes(f"{folder}/a", b"2")
    assert list_folder(folder)[f"{folder}/a"].stamp != stamp
    assert read_many([f"{folder}/{name}" for name in ("deep/c", "missing", "a")]) == [b"333", None, b"2"]
    assert read_many([f"{folder}/missing"]) == [None]
    assert [file.path for file in list_glob(f"{folder}/*").files] == [f"{folder}/a", f"{folder}/b"]
    move(f"{folder}/a", f"{folder}/b")
    assert read_bytes(f"{folder}/b") == b"2"
    assert not exists(f"{folder}/a")
    remove(f"{folder}/b")
    remove(f"{folder}/b")
    assert set(list_folder(folder, recursive=True)) == {f"{folder}/deep/c"}


def test_leftovers_on_s3_are_removed(bucket: str) -> None:
    folder = f"{bucket}/leftovers"
    record = write_result(f"{folder}/result", FILES)
    write_bytes(f"{folder}/result.0123456789ab.first", b"half")
    assert remove_leftovers(folder) == 0
    assert remove_leftovers(folder, older_than=-3600) == 1
    assert contents_of(record) == FILES
    assert len(list_folder(folder)) == 3


def test_a_whole_pipeline_from_s3_to_s3(bucket: str, tmp_path: Path) -> None:
    here = small_pipeline(tmp_path, shards=2)
    for path in sorted((tmp_path / "source").iterdir()):
        write_bytes(f"{bucket}/source/{path.name}", path.read_bytes())
    there = here.changed(
        dataset="remote", store=f"{bucket}/store", source={"kind": "vectors", "path": f"{bucket}/source"}
    )
    here.run()
    made = there.run()
    assert {stage: len(keys) for stage, keys in made.items()} == {
        "items": 2,
        "embeddings": 2,
        "training_sample": 1,
        "centroids": 1,
        "assignments": 2,
        "duplicate_scores": 2,
        "keep_masks": 1,
        "manifests": 1,
    }
    assert there.run() == {}
    for stage, key in (("centroids", "3"), ("duplicate_scores", "b0000|3"), ("keep_masks", "0.05|3")):
        assert there.record(stage, key).version == here.record(stage, key).version
    assert remote_keys(there.record("manifests", "0.05|3")) == here.kept_keys("0.05|3")
    write_bytes(f"{bucket}/source/1.npy", write_shard(tmp_path, "9", near_duplicates(9)).read_bytes())
    assert there.run()["assignments"] == ["3|s000001"]


def remote_keys(manifest: ResultRecord) -> list[str]:
    from semdedup_assets.storage.tables import read_arrow

    files: list[StoredFile] = [manifest.file(name) for name in sorted(manifest.files) if name.startswith("parquet/")]
    keys = [key for file in files for table in read_arrow(file) for key in table["key"].to_pylist()]
    assert keys
    assert np.unique(keys).size == len(keys)
    return keys
