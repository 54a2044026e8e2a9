"""Damage to the files of a result is noticed where they are read, and the record is set aside."""

from collections.abc import Callable
from pathlib import Path

import pytest

from semdedup_assets.storage.results import DAMAGED, RECORD, DamagedResultError, MissingResultError, read_record
from semdedup_assets_tests.storage.written import READERS, flip, read_vector_file, write_kinds


@pytest.mark.parametrize("kind", READERS)
def test_a_sound_file_reads_as_it_was_written(tmp_path: Path, kind: str) -> None:
    name, read = READERS[kind]
    one, other = write_kinds(f"{tmp_path}/one"), write_kinds(f"{tmp_path}/other")
    assert read(one.file(name)) == read(one.file(name)) == read(other.file(name))


@pytest.mark.parametrize("kind", READERS)
def test_no_flipped_byte_goes_unnoticed(tmp_path: Path, kind: str) -> None:
    name, read = READERS[kind]
    expected = read(write_kinds(f"{tmp_path}/sound").file(name))
    noticed, offset, size = 0, 0, 1
    while offset < size:
        location = f"{tmp_path}/{offset}"
        record = write_kinds(location)
        path, size = record.file(name).path, record.files[name].size
        flip(path, offset)
        try:
            found, reported = read(record.file(name)), None
        except DamagedResultError as error:
            found, reported = None, str(error)
        if reported is not None:
            assert path in reported
            assert read_record(location) is None
            assert Path(f"{location}{RECORD}{DAMAGED}").exists()
            noticed += 1
        else:
            # Such as a byte of the footer, which is not read: nothing was lost.
            assert found == expected
            assert name == "vectors.arrow"
        offset += max(1, size // 60)
    assert noticed >= 35


SPOILT: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut by a byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "another file": lambda path: path.write_bytes(b"\x00" * path.stat().st_size),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("kind", READERS)
def test_a_file_that_is_not_what_was_written_is_named(tmp_path: Path, kind: str, spoil: str) -> None:
    name, read = READERS[kind]
    location = f"{tmp_path}/result"
    record = write_kinds(location)
    SPOILT[spoil](Path(record.file(name).path))
    with pytest.raises(DamagedResultError, match="is set aside, and the next run makes it again") as error:
        read(record.file(name))
    assert record.file(name).path in str(error.value)
    assert read_record(location) is None
    assert Path(f"{location}{RECORD}{DAMAGED}").exists()
    again = write_kinds(location)
    assert read(again.file(name))
    assert read_record(location) == again


def test_a_file_that_the_record_does_not_name_is_reported(tmp_path: Path) -> None:
    record = write_kinds(f"{tmp_path}/result")
    with pytest.raises(DamagedResultError, match=r"its record names no file 'scores\.parquet'"):
        record.file("scores.parquet")
    assert read_record(f"{tmp_path}/result") is None


def test_damage_is_a_missing_result_to_whoever_only_asks_whether_it_is_there() -> None:
    assert issubclass(DamagedResultError, MissingResultError)
    assert issubclass(MissingResultError, FileNotFoundError)


def test_a_part_that_is_not_read_is_not_held_against_its_checksum(tmp_path: Path) -> None:
    """Reading a range must not cost reading the whole file."""
    from semdedup_assets.storage.vectors import read_part

    record = write_kinds(f"{tmp_path}/result")
    file = record.file("vectors.arrow")
    flip(file.path, file.entry.size // 2)
    assert len(read_part(file, 0).ids) == 14
    with pytest.raises(DamagedResultError, match="holds other bytes than were written"):
        read_vector_file(file)
