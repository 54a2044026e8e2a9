"""Copies of records save requests, and change no answer: whatever the file of copies holds, or whether there is one."""

from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from semdedup_assets.execution import progress
from semdedup_assets.execution.result_index import RecordCache
from semdedup_assets.storage import collected_records
from semdedup_assets.storage.collected_records import COLLECTED, MANY, RecordReader, collect, collect_written
from semdedup_assets.storage.files import exists, filesystem, list_folder, list_folders, read_bytes, remove, write_bytes
from semdedup_assets.storage.leftovers import remove_leftovers
from semdedup_assets.storage.results import DAMAGED, RECORD, ResultRecord
from semdedup_assets_tests.object_store import ObjectStore
from semdedup_assets_tests.storage.written import write_result

RECORDS = MANY + 2


def write_many(folder: str, count: int = RECORDS, **details: Any) -> dict[str, ResultRecord]:
    """Records of results without files, by location; written together, for this is no test of writing."""
    records = [
        ResultRecord(f"{folder}/s{index:06d}", f"v{index}", "c", {"input": "1"}, {}, {"index": index, **details})
        for index in range(count)
    ]
    fs, _ = filesystem(folder)
    fs.pipe({filesystem(f"{each.location}{RECORD}")[1]: each.to_json() for each in records})
    return {each.location: each for each in records}


def as_new_process(locations: Any) -> dict[str, ResultRecord | None]:
    """What a process that has read nothing yet finds at some locations."""
    collected_records._known.clear()
    locations = list(locations)
    return dict(zip(locations, RecordCache().get(locations), strict=True))


@pytest.fixture
def folder(bucket: str, request: pytest.FixtureRequest) -> str:
    return f"{bucket}/{request.node.name}"


@pytest.fixture
def written(folder: str) -> dict[str, ResultRecord]:
    """Many records on S3, with their copies."""
    records = write_many(folder)
    collect_written(records.values())
    return records


def test_who_reads_many_records_leaves_copies_and_the_next_reads_one_file(
    folder: str, served_store: ObjectStore
) -> None:
    written = write_many(folder)
    assert not exists(f"{folder}/{COLLECTED}")
    with served_store.counted_kinds() as first:
        assert as_new_process(written) == written
    assert first["GET"] >= RECORDS
    with served_store.counted_kinds() as second:
        assert as_new_process(written) == written
    assert second.total() <= 3, second
    assert second["GET"] == 1


def test_who_writes_many_records_leaves_copies_and_reads_none_of_them(folder: str, served_store: ObjectStore) -> None:
    written = write_many(folder)
    cache = RecordCache()
    for record in written.values():
        cache.put(record)
    with served_store.counted_kinds() as sent:
        cache.collect()
    assert sent["GET"] <= 1  # of earlier copies, never of a record
    with served_store.counted_kinds() as sent:
        assert as_new_process(written) == written
    assert sent.total() <= 3, sent
    with served_store.counted_kinds() as sent:
        cache.collect()
    assert sent.total() == 0


def test_few_records_are_read_by_themselves(folder: str) -> None:
    written = write_many(folder, MANY - 1)
    assert as_new_process(written) == written
    collect_written(written.values())
    assert not exists(f"{folder}/{COLLECTED}")


def test_a_record_that_was_replaced_or_removed_since_is_seen(
    folder: str, written: dict[str, ResultRecord], served_store: ObjectStore
) -> None:
    first, second = list(written)[:2]
    replaced = write_result(first, {"file": b"other"}, writer="later")
    remove(f"{second}{RECORD}")
    with served_store.counted_kinds() as sent:
        found = as_new_process(written)
    assert found == {**written, first: replaced, second: None}
    assert sent["GET"] == 2


def test_a_copy_of_a_record_whose_file_is_lost_is_no_result(folder: str) -> None:
    whole = write_result(f"{folder}/whole", {"file": b"content"})
    written = {**write_many(folder), whole.location: whole}
    collect_written(written.values())
    assert as_new_process(written) == written
    remove(whole.file("file").path)
    assert as_new_process(written) == {**written, whole.location: None}


def test_a_record_that_came_since_is_seen(folder: str, written: dict[str, ResultRecord]) -> None:
    new = write_result(f"{folder}/new", {"file": b"new"})
    assert as_new_process([*written, new.location]) == {**written, new.location: new}


def test_a_record_that_was_damaged_since_is_found_and_set_aside(written: dict[str, ResultRecord]) -> None:
    location = next(iter(written))
    path = f"{location}{RECORD}"
    write_bytes(path, read_bytes(path).replace(b'"version":"', b'"version":"x'))
    messages: list[str] = []
    with progress.reporting_to(messages.append):
        assert as_new_process(written) == {**written, location: None}
    (message,) = messages
    assert path in message
    assert exists(f"{path}{DAMAGED}")
    assert not exists(path)


@pytest.mark.parametrize("content", [b"", b"records 1 0123\nshort", bytes(range(256))], ids=["empty", "cut", "foreign"])
def test_a_damaged_or_foreign_file_of_copies_is_passed_over_and_replaced(
    bucket: str, content: bytes, request: pytest.FixtureRequest, served_store: ObjectStore
) -> None:
    folder = f"{bucket}/foreign-{request.node.callspec.indices['content']}"
    written = write_many(folder)
    write_bytes(f"{folder}/{COLLECTED}", content)
    assert as_new_process(written) == written
    with served_store.counted_kinds() as sent:
        assert as_new_process(written) == written
    assert sent["GET"] == 1


def test_copies_with_a_changed_byte_anywhere_are_passed_over(folder: str, written: dict[str, ResultRecord]) -> None:
    path = f"{folder}/{COLLECTED}"
    content = read_bytes(path)
    for offset in (3, len(content) // 2, len(content) - 1):
        write_bytes(path, content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
        assert as_new_process(written) == written


def test_copies_of_other_records_say_nothing(folder: str, written: dict[str, ResultRecord]) -> None:
    """As where a folder was copied over another: names are the same, records are not."""
    others = write_many(f"{folder}/others", writer="other")
    write_bytes(f"{folder}/others/{COLLECTED}", read_bytes(f"{folder}/{COLLECTED}"))
    assert as_new_process(others) == others


def test_copies_that_are_older_than_some_records_are_completed(
    folder: str, written: dict[str, ResultRecord], served_store: ObjectStore
) -> None:
    changed = write_many(folder, MANY, again=True)
    assert as_new_process(written) == {**written, **changed}
    with served_store.counted_kinds() as sent:
        assert as_new_process(written) == {**written, **changed}
    assert sent["GET"] == 1


def test_what_is_replaced_while_it_is_copied_is_not_copied(folder: str) -> None:
    written = write_many(folder)
    listed = list_folder(folder)
    location = next(iter(written))
    later = write_result(location, {"file": b"later"})
    contents = {f"{each}{RECORD}": record.to_json() for each, record in {**written, location: later}.items()}
    collect(folder, contents, listed=listed)
    # Put back as it was listed: the ETag is that of the listing again, and the content that was read is not.
    write_bytes(f"{location}{RECORD}", written[location].to_json())
    assert as_new_process(written) == written


def test_two_who_copy_at_once_leave_copies_of_one(folder: str, served_store: ObjectStore) -> None:
    written = write_many(folder, 2 * MANY)
    halves = list(written.values())[:MANY], list(written.values())[MANY:]
    threads = [Thread(target=collect_written, args=(half,)) for half in halves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for _ in range(2):
        assert as_new_process(written) == written
    with served_store.counted_kinds() as sent:
        assert as_new_process(written) == written
    assert sent["GET"] == 1


def test_records_that_others_wrote_since_are_copied_as_they_are_now(folder: str) -> None:
    written = write_many(folder)
    other = write_result(next(iter(written)), {"file": b"of another writer"})
    collect_written(written.values())
    assert as_new_process(written) == {**written, other.location: other}


def test_a_moved_store_is_read_anew_where_it_has_other_etags(
    folder: str, written: dict[str, ResultRecord], tmp_path: Path
) -> None:
    for path in list_folder(folder):
        write_bytes(f"{tmp_path}/{path.rpartition('/')[2]}", read_bytes(path))
    here = [f"{tmp_path}/{each.rpartition('/')[2]}" for each in written]
    found = as_new_process(here)
    assert [record and record.version for record in found.values()] == [each.version for each in written.values()]


def test_a_local_store_has_no_copies(tmp_path: Path) -> None:
    written = write_many(str(tmp_path))
    collect_written(written.values())
    assert as_new_process(written) == written
    assert not (tmp_path / COLLECTED).exists()


def test_a_store_without_etags_has_no_copies() -> None:
    written = write_many("memory://copies/folder")
    collect_written(written.values())
    assert as_new_process(written) == written
    assert not exists(f"memory://copies/folder/{COLLECTED}")


def test_leftovers_are_told_from_results_by_the_copies(
    folder: str, written: dict[str, ResultRecord], served_store: ObjectStore
) -> None:
    write_bytes(f"{folder}/s000000.0123456789ab.first", b"half")
    with served_store.counted_kinds() as sent:
        assert remove_leftovers(folder, older_than=-3600) == 1
    assert sent["GET"] == 1
    with served_store.counted_kinds() as sent:
        assert remove_leftovers(folder, older_than=-3600) == 0
        assert RecordCache().get(list(written)) == list(written.values())
    assert sent["GET"] == 0
    assert exists(f"{folder}/{COLLECTED}")
    assert as_new_process(written) == written


def test_a_reader_gives_what_is_asked_one_by_one_from_one_file(
    folder: str, written: dict[str, ResultRecord], served_store: ObjectStore
) -> None:
    """As a worker does, that meets its shards one after the other."""
    folders, reader = list_folders([folder]), RecordReader()
    with served_store.counted_kinds() as sent:
        found = [reader.read(folders, [f"{location}{RECORD}"]) for location in written]
    assert [record for each in found for record in each.values()] == list(written.values())
    assert sent == {"GET": 1}


def test_what_is_forgotten_is_seen_as_it_is_now_and_not_as_it_was_copied(
    written: dict[str, ResultRecord], folder: str
) -> None:
    locations = list(written)
    collected_records._known.clear()
    # An earlier look of this process, so that the next one leaves the copy of this record unread.
    RecordCache().get(locations[3:4])
    cache = RecordCache()
    assert cache.get(locations) == list(written.values())
    replaced = ResultRecord(locations[3], "another", "c", {"input": "2"}, {}, {})
    write_bytes(f"{locations[3]}{RECORD}", replaced.to_json())
    cache.forget(locations)
    for found in (cache.get(locations), RecordCache().get(locations)):
        assert found == [*list(written.values())[:3], replaced, *list(written.values())[4:]]
