"""Copies of a folder's records in one file, so that an object store is asked once for thousands of them.

Copies decide nothing: which records there are, a listing of the folder shows. A copy counts only while the record's own
file has the ETag that it had when it was copied, and whatever else the file of copies holds is passed over. Whoever read
or wrote many records that it lacks writes it again; the last one wins, and nothing is lost with it. A local store, and one
without ETags, has none.
"""

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import xxhash

from semdedup_assets.storage.files import ListedFile, is_local, join, list_folder, read_many, write_bytes
from semdedup_assets.storage.results import RECORD, ResultRecord

COLLECTED = "_records.collected"
"""Name of the file of copies, beside the records; what reads a folder of tables passes such names over."""

MANY = 16
"""Records that are read or written before copies are worth a file; fewer are read together, each by itself."""

# The head, a checksum of what follows, and a line for each record: its ETag, its name, its content.
_HEAD = b"records 1 "

Files = Mapping[str, ListedFile]
"""The files of a folder by their paths, as they were listed."""

_Value = TypeVar("_Value")

_MOST_KNOWN = 200_000
# Records that this process has read, by path, with the stamp of the file: whoever looks again reads what is new.
_known: dict[str, tuple[str, ResultRecord]] = {}


class RecordReader:
    """Reads records that were listed, from their folders' copies where these count, and each once in a process."""

    def __init__(self) -> None:
        self._copies: dict[str, dict[str, bytes]] = {}

    def read(self, folders: Mapping[str, Files], paths: Sequence[str]) -> dict[str, ResultRecord | ValueError]:
        """Some records by their paths, without those that have vanished since; an error says why one is damaged.

        Args:
            folders: the files of each record's folder, as they were listed.
            paths: of the records.

        Raises:
            OSError: one cannot be read for another cause.
            OtherFormatError: another version of this software wrote it.
        """
        stamps = {path: _stamp(folders[folder_of(path)][path]) for path in paths}
        # Asked once for each: another thread may forget it meanwhile.
        known = {path: each[1] for path, stamp in stamps.items() if (each := _known.get(path)) and each[0] == stamp}
        read = self._read(folders, [path for path in paths if path not in known])
        for path, record in read.items():
            if isinstance(record, ResultRecord):
                _known[path] = stamps[path], record
        if (beyond := len(_known) - _MOST_KNOWN) > 0:
            for path in list(_known)[:beyond]:
                _known.pop(path, None)
        return {**known, **read}

    def _read(self, folders: Mapping[str, Files], paths: Sequence[str]) -> dict[str, ResultRecord | ValueError]:
        self._load(folders, {folder_of(path) for path in paths})
        # Each is asked for once: what remains is what nobody has asked for yet.
        copied = {path: content for path in paths if (content := self._copies[folder_of(path)].pop(path, None))}
        lacking = [path for path in paths if path not in copied]
        alone = {
            path: content for path, content in zip(lacking, read_many(lacking), strict=True) if content is not None
        }
        records = {path: _parsed(path, content) for path, content in {**copied, **alone}.items()}
        sound = {path: content for path, content in alone.items() if isinstance(records[path], ResultRecord)}
        for folder, contents in by_folder(sound).items():
            collect(folder, contents, listed=folders[folder])
        return records

    def _load(self, folders: Mapping[str, Files], wanted: set[str]) -> None:
        unknown = sorted(wanted - self._copies.keys())
        self._copies |= {folder: {} for folder in unknown}
        there = [folder for folder in unknown if join(folder, COLLECTED) in folders[folder]]
        for folder, copies in zip(there, read_many([join(folder, COLLECTED) for folder in there]), strict=True):
            self._copies[folder] = dict(_counting(folder, copies, folders[folder]))


def _stamp(file: ListedFile) -> str:
    return f"{file.size}-{file.stamp}"


def _parsed(path: str, content: bytes) -> ResultRecord | ValueError:
    try:
        return ResultRecord.from_json(content, path.removesuffix(RECORD))
    except ValueError as error:
        return error


def folder_of(path: str) -> str:
    """The folder that a file lies in."""
    return path.rpartition("/")[0]


def by_folder(files: Mapping[str, _Value]) -> dict[str, dict[str, _Value]]:
    """What belongs to some files, by the files' folders and paths."""
    found = defaultdict[str, dict[str, _Value]](dict)
    for path, value in files.items():
        found[folder_of(path)][path] = value
    return dict(found)


def collect_written(records: Iterable[ResultRecord]) -> None:
    """Copy records that this process or its workers have just written, where they are many in a folder.

    Args:
        records: as they were written.
    """
    for folder, written in by_folder({f"{record.location}{RECORD}": record for record in records}).items():
        if len(written) < MANY or is_local(folder):
            continue
        listed = list_folder(folder)
        contents = {path: record.to_json() for path, record in written.items() if path in listed and listed[path].etag}
        # Somebody may have replaced one meanwhile, and not every store's ETag is the hash of the content.
        known = {path: content for path, content in contents.items() if _md5(content) == listed[path].etag}
        others = [path for path in contents if path not in known]
        read = {path: content for path, content in zip(others, read_many(others), strict=True) if content is not None}
        sound = {path: content for path, content in read.items() if isinstance(_parsed(path, content), ResultRecord)}
        collect(folder, {**known, **sound}, listed=listed)


def collect(folder: str, contents: Mapping[str, bytes], *, listed: Files) -> None:
    """Copy some records, beside those that were copied before and still count; nothing where they are few.

    Args:
        folder: of the records.
        contents: of sound records by path, as they were read once the folder was listed.
        listed: its files.
    """
    if sum(bool(listed[path].etag) for path in contents) < MANY:
        return
    now, path = list_folder(folder), join(folder, COLLECTED)
    (earlier,) = read_many([path])
    # What was replaced while it was read may have either content.
    sure = {each: content for each, content in contents.items() if now.get(each) == listed[each]}
    copies = {**dict(_counting(folder, earlier, now)), **sure}
    body = b"".join(_lines(copies, now))
    try:
        write_bytes(path, _HEAD + xxhash.xxh3_128_hexdigest(body).encode() + b"\n" + body)
    except OSError:
        return  # Who may only read a store reads each record by itself.


def _lines(copies: Mapping[str, bytes], listed: Files) -> Iterator[bytes]:
    for path, content in sorted(copies.items()):
        line = b"%s\t%s\t%s" % (listed[path].etag.encode(), path.rpartition("/")[2].encode(), content)
        # A record that was not written by this software is a record all the same, if of another form.
        if line.count(b"\n") == 1 and line.endswith(b"\n") and line.count(b"\t") == 2:
            yield line


def _counting(folder: str, copies: bytes | None, listed: Files) -> Iterator[tuple[str, bytes]]:
    """The copies of records that are still what was copied; none of a file that is damaged, foreign or gone."""
    head, _, body = (copies or b"").partition(b"\n")
    if head != _HEAD + xxhash.xxh3_128_hexdigest(body).encode():
        return
    for line in io.BytesIO(body):
        etag, name, content = line.split(b"\t")
        file = listed.get(path := join(folder, name.decode()))
        if file is not None and file.etag == etag.decode():
            yield path, content


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
