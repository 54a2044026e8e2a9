"""A result is what its record names: whole, and held against what was written."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.kept_sets import Clustering, KeptSet, Selection, Target
from semdedup_assets.storage.files import list_folder
from semdedup_assets.storage.layout import Layout
from semdedup_assets.storage.results import (
    DAMAGED,
    RECORD,
    FileEntry,
    FolderWriter,
    ResultRecord,
    ResultWriter,
    attempting,
    commit,
    fingerprint,
    read_record,
)
from semdedup_assets_tests.storage.written import contents_of, with_own_checksum, write_result

FILES = {"first": b"content", "second": b"more"}

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)
entries = st.builds(FileEntry, st.text(), st.integers(0, 2**62), st.text(), st.text())
records = st.builds(
    ResultRecord,
    location=st.just("folder/result"),
    version=st.text(),
    code_version=st.text(),
    inputs=st.dictionaries(st.text(), st.text(), max_size=3),
    files=st.dictionaries(st.text(), entries, max_size=3),
    details=st.dictionaries(st.text(), json_values, max_size=4),
)


@given(records)
def test_a_record_is_read_back_from_what_is_stored(record: ResultRecord) -> None:
    assert ResultRecord.from_json(record.to_json(), "folder/result") == record


def test_a_result_is_read_back_with_its_files_and_details(tmp_path: Path) -> None:
    location = f"{tmp_path}/folder/result"
    written = write_result(location, FILES, items=3, share=0.5, ids=[2**62])
    record = read_record(location)
    assert record == written
    assert record.details == {"items": 3, "share": 0.5, "ids": [2**62]}
    assert record.inputs == {"input": "1"}
    assert record.code_version == "c"
    assert contents_of(record) == FILES
    assert record.size == 11
    assert record.excluded is None
    assert len(list((tmp_path / "folder").iterdir())) == 3


def test_there_is_no_record_where_nothing_was_written(tmp_path: Path) -> None:
    assert read_record(f"{tmp_path}/nowhere/result") is None


def test_a_writer_is_not_committed_before_its_record_is_put(tmp_path: Path) -> None:
    writer = ResultWriter(f"{tmp_path}/result")
    with pytest.raises(RuntimeError, match=f"result: attempt {writer.attempt} is not committed"):
        _ = writer.committed
    record = commit(writer, code_version="c", inputs={})
    assert writer.committed is record


def test_equal_bytes_have_equal_versions_and_other_bytes_others(tmp_path: Path) -> None:
    contents = {"a": (b"1", b"2"), "b": (b"1", b"2"), "c": (b"1", b"3"), "d": (b"2", b"1"), "e": (b"12", b"")}
    versions = {
        name: write_result(f"{tmp_path}/{name}", {"one": one, "two": two}, name=name).version
        for name, (one, two) in contents.items()
    }
    assert versions["a"] == versions["b"]
    assert len(set(versions.values())) == 4


def test_files_that_do_not_count_leave_the_version_as_it_is(tmp_path: Path) -> None:
    versions = []
    for content in (b"1", b"2"):
        with attempting(ResultWriter(f"{tmp_path}/result")) as writer:
            with writer.open("vectors") as stream:
                stream.write(b"same")
            writer.unversioned.add("beside")
            with writer.open("beside") as stream:
                stream.write(content)
            versions.append(commit(writer, code_version="c", inputs={}).version)
    assert versions[0] == versions[1]
    record = read_record(f"{tmp_path}/result")
    assert record is not None
    assert contents_of(record) == {"vectors": b"same", "beside": b"2"}


def test_a_new_result_replaces_the_files_of_the_earlier_one(tmp_path: Path) -> None:
    write_result(f"{tmp_path}/result", {**FILES, "third": b"3"})
    (tmp_path / "result.other").write_bytes(b"of nobody")
    second = write_result(f"{tmp_path}/result", {"first": b"new"})
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"result{RECORD}", second.files["first"].path, "result.other"}


def test_attempts_in_folders_keep_plain_names_and_earlier_attempts(tmp_path: Path) -> None:
    for number in range(2):
        with attempting(FolderWriter(f"{tmp_path}/manifests", f"attempt{number}")) as writer:
            with writer.open("parquet/s0.parquet") as stream:
                stream.write(b"%d" % number)
            commit(writer, code_version="c", inputs={}, keep_earlier=True)
    assert (tmp_path / "manifests/attempt0/parquet/s0.parquet").read_bytes() == b"0"
    record = read_record(f"{tmp_path}/manifests")
    assert record is not None
    assert record.files["parquet/s0.parquet"].path == "manifests/attempt1/parquet/s0.parquet"
    assert contents_of(record) == {"parquet/s0.parquet": b"1"}


def test_a_moved_store_is_read_where_it_lies(tmp_path: Path) -> None:
    old = write_result(f"{tmp_path}/old/deep/result", FILES)
    shutil.move(tmp_path / "old", tmp_path / "new")
    record = read_record(f"{tmp_path}/new/deep/result")
    assert record is not None
    assert contents_of(record) == FILES
    assert record.version == old.version
    assert str(tmp_path) not in (tmp_path / f"new/deep/result{RECORD}").read_text()


def test_a_failed_attempt_leaves_nothing_and_the_earlier_result_as_it_was(tmp_path: Path) -> None:
    location = f"{tmp_path}/result"
    write_result(location, FILES)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def stop() -> None:
        message = "stop"
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="stop"):
        write_result(location, {"first": b"x" * 1000, "second": b"y"}, before_commit=stop)
    with pytest.raises(RuntimeError, match="stop"), attempting(ResultWriter(location)) as writer:  # noqa: PT012
        with writer.open("first") as stream:
            stream.write(b"x")
        with writer.open("second") as stream:
            stream.write(b"half")
            stop()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


DAMAGES = {
    "emptied": lambda content: b"",
    "garbage": lambda content: b"\x00\xffgarbage" * 20,
    "cut": lambda content: content[: len(content) // 2],
    "another json": lambda content: b'["record", 1]',
    "a null": lambda content: b"null",
    "a field missing": lambda content: with_own_checksum(content, lambda record: record.pop("inputs")),
    "a field of a file missing": lambda content: with_own_checksum(content, lambda r: r["files"]["first"].pop("size")),
    "a field more": lambda content: with_own_checksum(content, lambda record: record.update(more=1)),
    "files a list": lambda content: with_own_checksum(content, lambda record: record.update(files=[])),
    "a flipped letter in a string": lambda content: content.replace(b"a remark", b"a remerk"),
    "no record in it": lambda content: content.replace(b'"record":', b'"recorb":'),
    "no checksum": lambda content: content.replace(b'"checksum":', b'"checksun":', 1),
    "utf-16": lambda content: content.decode().encode("utf-16"),
}


def test_a_record_written_by_hand_as_ours_is_read(tmp_path: Path) -> None:
    """Else the damaged records below would be refused for the way they are written."""
    write_result(f"{tmp_path}/result", FILES, text="a remark")
    path = tmp_path / f"result{RECORD}"
    path.write_bytes(with_own_checksum(path.read_bytes(), lambda record: record["details"].update(text="another")))
    record = read_record(f"{tmp_path}/result")
    assert record is not None
    assert record.details == {"text": "another"}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_counts_as_missing_and_is_set_aside(tmp_path: Path, damage: str) -> None:
    location = f"{tmp_path}/result"
    write_result(location, FILES, text="a remark")
    path = tmp_path / f"result{RECORD}"
    spoilt = DAMAGES[damage](path.read_bytes())
    assert spoilt != path.read_bytes()
    path.write_bytes(spoilt)
    assert read_record(location) is None
    assert not path.exists()
    assert path.with_name(f"{path.name}{DAMAGED}").read_bytes() == spoilt
    assert read_record(location) is None
    again = write_result(location, {"first": b"again"})
    assert read_record(location) == again


def test_no_flipped_byte_of_a_record_goes_unnoticed(tmp_path: Path) -> None:
    location = f"{tmp_path}/result"
    record = write_result(location, FILES, text="a remark", numbers=[1, 2.5])
    content = (tmp_path / f"result{RECORD}").read_bytes()
    read = 0
    for offset in range(len(content)):
        for bits in (0x01, 0x20, 0xFF):
            flipped = bytearray(content)
            flipped[offset] ^= bits
            try:
                found = ResultRecord.from_json(bytes(flipped), location)
            except ValueError:
                continue
            assert found == record  # such as another white space after the end
            read += 1
    assert read <= 3


def test_versions_do_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert (
        len({fingerprint(value) for value in ({"a": 1}, {"a": 2}, {"b": 1}, ["a", 1], None, [[1], 2], [1, [2]])}) == 7
    )


def test_memory_stores_hold_results_as_folders_do() -> None:
    folder = "memory:///results-of-test-results"
    first = write_result(f"{folder}/result", FILES)
    assert contents_of(first) == FILES
    second = write_result(f"{folder}/result", {"first": b"new"})
    assert read_record(f"{folder}/result") == second
    assert set(list_folder(folder)) == {f"{folder}/result{RECORD}", f"{folder}/{second.files['first'].path}"}


def test_no_two_results_share_a_path_and_none_lies_in_another() -> None:
    layout = Layout("s3://bucket/results", "photos", "ViT-B-16-openai")
    ten, hundred = Clustering("10"), Clustering("100")
    hard, easy, greedy = Selection(), Selection(keep="easy"), Selection(rule="greedy")
    sets = [
        KeptSet(clustering, selection, target)
        for clustering in (ten, hundred, Clustering("10", 1), Clustering("auto"))
        for selection in (hard, easy, greedy)
        for target in map(Target.parse, ["0.05", "0.5", "5e-10", "keep=50%", "keep=5%"])
    ]
    locations = [
        layout.shard_index,
        layout.estimate,
        layout.items("s000001"),
        layout.embeddings("s000001"),
        layout.training_sample,
        layout.centroids(ten),
        layout.centroids(hundred),
        layout.assignments(ten, "s000001"),
        layout.assignments(ten, "s000002"),
        layout.scores(ten, hard, 0),
        layout.scores(ten, easy, 0),
        layout.scores(ten, hard, 1),
        *(layout.of_kept_set(kept_set, name) for kept_set in sets for name in ("masks", "manifests", "gallery")),
        *(layout.current_manifest(kept_set) for kept_set in sets),
    ]
    records = [f"{location}{RECORD}" for location in locations]
    assert len(set(locations) | set(records)) == 2 * len(locations)
    assert all(path.startswith("s3://bucket/results/photos/") and "%" not in path for path in locations)
    # Both rules select from the same scores.
    assert layout.scores(ten, greedy, 0) == layout.scores(ten, hard, 0)


def test_an_attempt_that_is_committed_twice_keeps_its_files(tmp_path: Path) -> None:
    with attempting(ResultWriter(f"{tmp_path}/result")) as writer:
        with writer.open("first") as stream:
            stream.write(b"1")
        commit(writer, code_version="c", inputs={})
        writer.details = {"more": 1}
        record = commit(writer, code_version="c", inputs={})
    assert record.details == {"more": 1}
    assert contents_of(record) == {"first": b"1"}
