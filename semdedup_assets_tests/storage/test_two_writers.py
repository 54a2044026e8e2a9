"""Two writers of one result never mix, and what a killed one leaves hurts nobody."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from semdedup_assets.storage import results
from semdedup_assets.storage.leftovers import remove_leftovers
from semdedup_assets.storage.results import (
    DAMAGED,
    RECORD,
    DamagedResultError,
    FolderWriter,
    MissingResultError,
    OtherFormatError,
    ResultRecord,
    ResultWriter,
    attempting,
    commit,
    read_record,
    require_written,
)
from semdedup_assets_tests.storage.written import contents_of, with_own_checksum, write_result

CONTENTS = {name: {"first": name.encode() * 3000, "second": name.encode() * 500} for name in ("old", "A", "B")}
SCHEDULES = sorted(set(permutations("AAABBB")))
WAIT = 30.0


class Turns:
    """Lets two threads go in turns: the steps of their commits happen in the order of a schedule."""

    def __init__(self, schedule: tuple[str, ...]) -> None:
        self._schedule, self._position = schedule, 0
        self._changed = threading.Condition()
        self._running = threading.local()

    def next_step(self) -> None:
        """End the step of this thread, and wait until its next one is due."""
        with self._changed:
            if getattr(self._running, "started", False):
                self._position += 1
                self._changed.notify_all()
            self._running.started = True
            name = threading.current_thread().name
            due = self._changed.wait_for(lambda: self._schedule[self._position :][:1] == (name,), timeout=WAIT)
            assert due, f"{name} was never due"

    def end(self) -> None:
        with self._changed:
            self._position += 1
            self._changed.notify_all()


@pytest.mark.parametrize("earlier", [False, True], ids=["first", "over an earlier one"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids="".join)
def test_whatever_the_order_of_their_steps_one_writer_wins_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: tuple[str, ...], earlier: bool
) -> None:
    location, turns = f"{tmp_path}/result", Turns(schedule)
    if earlier:
        write_result(location, CONTENTS["old"])
    real = results.write_bytes

    def put(path: str, content: bytes) -> None:
        turns.next_step()  # the earlier record is read
        real(path, content)
        turns.next_step()  # the record is put, the earlier files are still there
        seen.append(read_record(location))

    monkeypatch.setattr(results, "write_bytes", put)
    seen: list[ResultRecord | None] = []
    errors: list[BaseException] = []

    def write(name: str) -> None:
        try:
            write_result(location, CONTENTS[name], before_commit=turns.next_step, writer=name)
        except BaseException as error:
            errors.append(error)
        turns.end()

    threads = [threading.Thread(target=write, args=(name,), name=name) for name in "AB"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert errors == []
    record = read_record(location)
    assert record is not None
    last_put = [name for index, name in enumerate(schedule) if schedule[:index].count(name) == 1][-1]
    assert record.details["writer"] == last_put
    assert contents_of(record) == CONTENTS[last_put]
    assert all(found is not None for found in seen)
    attempts = {entry.path.split(".")[1] for entry in record.files.values()}
    assert len(attempts) == 1
    # What lies there besides is the other's, named by no record; nothing of the earlier result is left.
    assert not [path for path in tmp_path.iterdir() if path.read_bytes() in CONTENTS["old"].values()]


WRITER = """
import sys
from semdedup_assets_tests.storage.written import write_result
name, location = sys.argv[1:]
def wait():
    print("written", flush=True)
    assert sys.stdin.readline() == "commit\\n"
write_result(location, {"first": name.encode() * 3000, "second": name.encode() * 500}, before_commit=wait, writer=name)
print("committed", flush=True)
"""


class Process:
    """A writer in a process of its own, which stops before it commits."""

    def __init__(self, name: str, location: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITER, name, location], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.expect("written")

    def expect(self, line: str) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == f"{line}\n"

    def commit(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("commit\n")
        self._process.stdin.flush()
        self.expect("committed")

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        assert self._process.wait(WAIT) == -signal.SIGKILL

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.kill()
        self._process.wait(WAIT)


@contextmanager
def processes(location: str, names: str) -> Iterator[list[Process]]:
    started = [Process(name, location) for name in names]
    try:
        yield started
    finally:
        for process in started:
            process.close()


def whole(location: str) -> str:
    """Whose result is there, once it is seen to be all of one writer."""
    record = read_record(location)
    assert record is not None
    (name,) = (name for name, contents in CONTENTS.items() if contents == contents_of(record))
    return name


def test_two_processes_at_once_give_the_result_of_one(tmp_path: Path) -> None:
    location = f"{tmp_path}/result"
    write_result(location, CONTENTS["old"])
    with processes(location, "AB") as (first, second):
        assert whole(location) == "old"
        second.commit()
        assert whole(location) == "B"
        first.commit()
        assert whole(location) == "A"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_killed_writer_leaves_the_earlier_result_readable(tmp_path: Path) -> None:
    location = f"{tmp_path}/result"
    write_result(location, CONTENTS["old"])
    with processes(location, "AB") as (first, second):
        first.kill()
        assert whole(location) == "old"
        second.commit()
        assert whole(location) == "B"
    # The files of the killed one are named by no record, and go when they are old.
    assert len(list(tmp_path.iterdir())) == 5
    assert remove_leftovers(str(tmp_path)) == 0
    make_old(tmp_path)
    assert remove_leftovers(str(tmp_path)) == 2
    assert whole(location) == "B"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_first_writer_that_is_killed_leaves_no_result(tmp_path: Path) -> None:
    location = f"{tmp_path}/result"
    with processes(location, "A") as (writer,):
        writer.kill()
        assert read_record(location) is None
    assert len(list(tmp_path.iterdir())) == 2
    make_old(tmp_path)
    assert remove_leftovers(str(tmp_path)) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_reader_of_a_result_that_is_replaced_does_not_set_the_new_one_aside(tmp_path: Path) -> None:
    location = f"{tmp_path}/result"
    before = write_result(location, CONTENTS["old"])
    write_result(location, CONTENTS["A"])
    with pytest.raises(
        DamagedResultError, match=r"first is missing: .*result was replaced while it was read; run again"
    ):
        before.file("first").content()
    assert whole(location) == "A"
    assert not list(tmp_path.glob(f"*{DAMAGED}"))


def make_old(folder: Path, seconds: float = 2 * 24 * 3600) -> None:
    moment = time.time() - seconds
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (moment, moment))


def write_manifest(location: str, attempt: str, *, complete: bool = True) -> None:
    with attempting(FolderWriter(location, attempt)) as writer:
        for name in ("parquet/s0.parquet", "open_clip.csv"):
            with writer.open(name) as stream:
                stream.write(attempt.encode())
        if complete:
            results.write_bytes(writer.path("manifest.json"), b"{}")
            results.write_bytes(f"{location}/current.json", b"{}")
            commit(writer, code_version="c", inputs={}, keep_earlier=True)


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    write_result(f"{tmp_path}/deep/result", CONTENTS["A"])
    for attempt in ("0123456789abcdef-000001", "0123456789abcdef-000002"):
        write_manifest(f"{tmp_path}/set/manifests", attempt)
    (tmp_path / "shard_index.json").write_text("{}")
    # What a person puts beside the results is no business of ours.
    (tmp_path / "deep" / "notes.txt").write_text("mine")
    (tmp_path / "eval.csv").write_text("mine")
    kept = {path for path in tmp_path.rglob("*") if path.is_file()}
    left = {
        "deep/result.0123456789ab.first",
        f"deep/.result{RECORD}.{0:032x}.tmp",
        f"deep/result{RECORD}{DAMAGED}",
        "deep/other.0123456789ab.first",
        f"set/.current.json.{1:032x}.tmp",
    }
    for name in left:
        (tmp_path / name).write_bytes(b"half")
    write_manifest(f"{tmp_path}/set/manifests", "0123456789abcdef-000003", complete=False)
    third = "set/manifests/0123456789abcdef-000003"
    left |= {f"{third}/parquet/s0.parquet", f"{third}/open_clip.csv"}
    make_old(tmp_path)
    young = tmp_path / "deep" / "result.ba9876543210.first"
    young.write_bytes(b"being written")
    assert remove_leftovers(str(tmp_path)) == len(left)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*kept, young}
    assert remove_leftovers(str(tmp_path), older_than=-60) == 1
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == kept


def test_nothing_of_an_attempt_is_removed_while_one_of_its_files_is_young(tmp_path: Path) -> None:
    write_manifest(f"{tmp_path}/manifests", "0123456789abcdef-000003", complete=False)
    make_old(tmp_path)
    young = tmp_path / "manifests" / "0123456789abcdef-000003" / "parquet" / "s1.parquet"
    young.write_bytes(b"the next shard")
    assert remove_leftovers(str(tmp_path)) == 0


def test_files_of_trainers_and_models_that_wait_for_the_others_are_left(tmp_path: Path) -> None:
    trainers = tmp_path / "training" / "set" / "out"
    # As TensorBoard names them in a container, and as trainers name folders by a hash.
    for name in ("events.out.tfevents.1764181733.3f2a9c1b7d4e.77.0", "0123456789ab/state.pt"):
        (trainers / name).parent.mkdir(parents=True, exist_ok=True)
        (trainers / name).write_bytes(b"at work")
    with FolderWriter(f"{tmp_path}/set/trained_models").open("epochs-seed0/model.pt") as stream:
        stream.write(b"the other seeds still train")
    make_old(tmp_path)
    assert remove_leftovers(str(tmp_path), apart_from=f"{tmp_path}/training") == 0
    make_old(tmp_path, seconds=31 * 24 * 3600)
    assert remove_leftovers(str(tmp_path), apart_from=f"{tmp_path}/training") == 1
    assert len([path for path in trainers.rglob("*") if path.is_file()]) == 2


def test_a_store_in_which_nothing_may_be_removed_keeps_its_leftovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "result.0123456789ab.first").write_bytes(b"half")
    make_old(tmp_path)

    def refuse(_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr("semdedup_assets.storage.leftovers.remove_all", refuse)
    lines = list[str]()
    assert remove_leftovers(str(tmp_path), log=lines.append) == 0
    assert "cannot be removed" in lines[0]


def test_results_of_another_version_of_the_software_are_not_touched(tmp_path: Path) -> None:
    record = write_result(f"{tmp_path}/result", CONTENTS["A"])
    path = tmp_path / f"result{RECORD}"
    path.write_bytes(with_own_checksum(path.read_bytes(), lambda found: found.update(format=2)))
    make_old(tmp_path)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(OtherFormatError, match="another version of this software"):
        remove_leftovers(str(tmp_path))
    with pytest.raises(OtherFormatError, match="set `store` to a new folder"):
        read_record(record.location)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_result_of_several_tasks_is_committed_only_if_all_its_files_are_there(tmp_path: Path) -> None:
    writer = ResultWriter(f"{tmp_path}/result")
    for name in ("one", "two"):
        with writer.open(name) as stream:
            stream.write(b"rows")
    require_written(writer)
    Path(writer.path("one")).unlink()
    with pytest.raises(MissingResultError, match="was removed while"):
        require_written(writer)


def test_of_a_damaged_record_s_files_nothing_young_is_removed(tmp_path: Path) -> None:
    record = write_result(f"{tmp_path}/result", CONTENTS["A"])
    (tmp_path / f"result{RECORD}").write_bytes(b"garbage")
    assert remove_leftovers(str(tmp_path)) == 0
    assert {entry.path for entry in record.files.values()} <= {path.name for path in tmp_path.iterdir()}


def test_there_is_nothing_to_remove_where_there_is_nothing(tmp_path: Path) -> None:
    assert remove_leftovers(f"{tmp_path}/nowhere") == 0


def test_a_commit_that_fails_leaves_the_earlier_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = f"{tmp_path}/result"
    write_result(location, CONTENTS["old"])

    def fail(_: str, __: bytes) -> Any:
        message = "the disk is full"
        raise OSError(message)

    monkeypatch.setattr(results, "write_bytes", fail)
    with pytest.raises(OSError, match="the disk is full"):
        write_result(location, CONTENTS["A"])
    assert whole(location) == "old"
    assert len(list(tmp_path.iterdir())) == 3


def test_what_is_put_stays_whole_though_its_writer_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location, put = f"{tmp_path}/result", results.write_bytes
    write_result(location, CONTENTS["old"])

    def interrupted(path: str, content: bytes) -> None:
        put(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_result(location, CONTENTS["A"])
    assert whole(location) == "A"


def test_a_store_in_which_nothing_may_be_removed_takes_new_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location, lines = f"{tmp_path}/result", list[str]()
    write_result(location, CONTENTS["old"])

    def refuse(_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(results, "remove_all", refuse)
    with attempting(ResultWriter(location)) as writer:
        for name, content in CONTENTS["A"].items():
            with writer.open(name) as stream:
                stream.write(content)
        commit(writer, code_version="c", inputs={}, log=lines.append)
    assert whole(location) == "A"
    assert len(list(tmp_path.iterdir())) == 5
    assert "cannot be removed" in lines[0]
