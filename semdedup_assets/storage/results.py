"""Results: files that carry their attempt in their names, and one record that commits them.

A result is what its record names. Files are written under names that no other attempt uses; putting the record then
replaces the earlier result in one step. Two writers of one result never mix, an earlier result stays readable until
its successor is complete, and what an ended process leaves behind is named by no record.
"""

import io
import json
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import IO, Any, Protocol, TypeVar

import xxhash

from semdedup_assets.storage.files import (
    create,
    join,
    list_folders,
    move,
    open_file,
    read_bytes,
    remove_all,
    write_bytes,
)

RECORD = ".result.json"
"""How the name of a record ends."""

DAMAGED = ".damaged"
"""What is appended to the name of a record that is set aside."""

_FORMAT = 1
_BLOCK = 8 << 20
_LOG = logging.getLogger(__name__)


class MissingResultError(FileNotFoundError):
    """A result that is needed is not there; says what to materialise."""


class OtherFormatError(RuntimeError):
    """A result that another version of this software wrote: it is neither read nor touched."""


class DamagedResultError(MissingResultError):
    """The files of a result are not what its record says: the record is set aside, so that it is made again."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of a result.

    Attributes:
        path: relative to the record's folder, so that a store can be moved.
        size: bytes.
        checksum: XXH3 of the content, 128 bits.
        ranges: where its parts begin and their checksums, of files that are read in parts; see `vectors.ByteRanges`.
    """

    path: str
    size: int
    checksum: str
    ranges: str = ""


@dataclass(frozen=True, slots=True)
class ResultRecord:
    """What a result holds and what it was made from.

    Attributes:
        location: path of the result without a suffix; not stored, so that a store can be moved.
        version: hash of the files' content: equal bytes, equal version.
        code_version: hash of the settings that determine the result.
        inputs: versions of the results it was made from, by name.
        files: by the name the stage gave them.
        details: counts and measures of the result.
    """

    location: str
    version: str
    code_version: str
    inputs: dict[str, str]
    files: dict[str, FileEntry]
    details: dict[str, Any] = field(default_factory=dict)

    def file(self, name: str) -> "StoredFile":
        """One of its files.

        Raises:
            DamagedResultError: the record names no such file.
        """
        if name not in self.files:
            raise damaged(self.location, f"its record names no file {name!r}")
        return StoredFile(
            join(self.location.rpartition("/")[0], self.files[name].path), self.files[name], self.location
        )

    def listed_in(self, path: str) -> str:
        """The folder whose listing shows one of its files: its own, or that of its version, with all below it.

        Args:
            path: of the file, as the record holds it.
        """
        parent = self.location.rpartition("/")[0]
        return join(parent, *path.split("/")[:2]) if "/" in path else parent

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(entry.size for entry in self.files.values())

    @property
    def excluded(self) -> str | None:
        """Why it stands for something that could not be made; None where it was made."""
        reason = self.details.get("excluded")
        return None if reason is None else str(reason)

    def to_json(self) -> bytes:
        """The record as it is stored, with a checksum of its own."""
        content = {name: value for name, value in asdict(self).items() if name != "location"}
        body = json.dumps({"format": _FORMAT, **content}, separators=(",", ":"))
        return f'{{"checksum":"{_checksum(body.encode())}","record":{body}}}\n'.encode()

    @classmethod
    def from_json(cls, content: bytes, location: str) -> "ResultRecord":
        """Read a stored record.

        Raises:
            ValueError: it is damaged; says how.
            OtherFormatError: another version of this software wrote it.
        """
        try:
            document = json.loads(content)
            body = content[content.index(b'"record":') + len(b'"record":') : content.rindex(b"}")]
            if document["checksum"] != _checksum(body):
                message = "its checksum does not fit its content"
                raise ValueError(message)
            found = document["record"]
            if found.pop("format") != _FORMAT:
                message = (
                    f"{location}{RECORD} was written by another version of this software; use that version, or set "
                    "`store` to a new folder"
                )
                raise OtherFormatError(message)
            files = {name: FileEntry(**entry) for name, entry in found.pop("files").items()}
            return cls(location, files=files, **found)
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            message = f"it is not a record ({type(error).__name__}: {error})"
            raise ValueError(message) from error


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a result, where it lies, and what it must hold."""

    path: str
    entry: FileEntry
    location: str

    def content(self) -> bytes:
        """All of it.

        Raises:
            DamagedResultError: it is missing, or holds other bytes than were written.
        """
        try:
            content = read_bytes(self.path)
        except FileNotFoundError:
            raise damaged_file(self, "is missing") from None
        self.verify(content)
        return content

    def verify(self, content: Any) -> None:
        """Hold the whole content against the record.

        Raises:
            DamagedResultError: they differ.
        """
        view = memoryview(content)
        if view.nbytes != self.entry.size:
            raise damaged_file(self, f"has {view.nbytes:,} bytes where {self.entry.size:,} were written")
        if _checksum(view) != self.entry.checksum:
            raise damaged_file(self, "holds other bytes than were written")


def copy_verified(file: StoredFile, to: "TakesBytes") -> None:
    """Copy a file, whatever its size, and hold what was copied against the record.

    Raises:
        DamagedResultError: it is missing, or holds other bytes than were written.
    """
    whole, size = xxhash.xxh3_128(), 0
    try:
        with open_file(file.path) as stream:
            for block in iter(lambda: stream.read(_BLOCK), b""):
                to.write(block)
                whole.update(block)
                size += len(block)
    except FileNotFoundError:
        raise damaged_file(file, "is missing") from None
    if (size, whole.hexdigest()) != (file.entry.size, file.entry.checksum):
        raise damaged_file(file, "holds other bytes than were written")


def damaged_file(file: StoredFile, reason: str) -> DamagedResultError:
    """Set the record of a result with a damaged file aside, and return the error to raise.

    A record that names another attempt's file by now is sound: this file was removed when that was committed.

    Args:
        file: which.
        reason: what is wrong with it, after its path.
    """
    current = read_record(file.location)
    if current is not None and file.entry.path not in {entry.path for entry in current.files.values()}:
        return DamagedResultError(f"{file.path} {reason}: {file.location} was replaced while it was read; run again")
    return damaged(file.location, f"{file.path} {reason}")


def damaged(location: str, reason: str) -> DamagedResultError:
    """Set the record of a damaged result aside, so that the next run makes it again, and return the error to raise.

    Args:
        location: of the result.
        reason: what is wrong with it.
    """
    move(f"{location}{RECORD}", f"{location}{RECORD}{DAMAGED}")
    return DamagedResultError(f"{reason}; the result {location} is set aside, and the next run makes it again")


def _checksum(content: Any) -> str:
    return xxhash.xxh3_128_hexdigest(content)


class TakesBytes(Protocol):
    """What bytes can be written to."""

    def write(self, data: bytes, /) -> Any:
        """Take some."""


class HashingStream(io.RawIOBase):
    """Counts and hashes what is written through it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.size = 0
        self._whole = xxhash.xxh3_128()
        self._part: Any = None

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any) -> int:
        """Pass bytes on."""
        view = memoryview(data).cast("B")
        self._stream.write(view)
        self._whole.update(view)
        if self._part is not None:
            self._part.update(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """Bytes written so far."""
        return self.size

    def start_part(self) -> None:
        """Begin a part with a checksum of its own."""
        self._part = xxhash.xxh3_64()

    def end_part(self) -> int:
        """The 64-bit checksum of what was written since the part began."""
        checksum, self._part = self._part.intdigest(), None
        return int(checksum)

    @property
    def checksum(self) -> str:
        """Of everything."""
        return str(self._whole.hexdigest())


@dataclass
class ResultWriter:
    """Writes the files of one attempt at a result; see `writing`.

    Attributes:
        location: of the result.
        attempt: in the names of its files.
        files: that are complete, by name.
        details: counts and measures, for the record.
        unversioned: names of files whose content does not count for the version.
        record: once it is being put.
    """

    location: str
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    files: dict[str, FileEntry] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    unversioned: set[str] = field(default_factory=set)
    record: ResultRecord | None = None

    @property
    def committed(self) -> ResultRecord:
        """The record, once it is being put."""
        if self.record is None:
            message = f"{self.location}: attempt {self.attempt} is not committed"
            raise RuntimeError(message)
        return self.record

    def path(self, name: str) -> str:
        """Where a file of this attempt lies."""
        return f"{self.location}.{self.attempt}.{name}"

    @contextmanager
    def open(self, name: str, *, ranges: Callable[[], str] = str) -> Iterator["HashingStream"]:
        """Write one file of the result.

        Args:
            name: by which the record knows it, with its suffix.
            ranges: gives, once all is written, where its parts lie.
        """
        path = self.path(name)
        with create(path) as stream:
            hashing = HashingStream(stream)
            yield hashing
        relative = path.removeprefix(f"{self.location.rpartition('/')[0]}/")
        self.files[name] = FileEntry(relative, hashing.size, hashing.checksum, ranges())

    @property
    def version(self) -> str:
        """Hash of what has been written so far."""
        counted = {name: entry.checksum for name, entry in self.files.items() if name not in self.unversioned}
        return fingerprint(counted)

    def discard(self) -> None:
        """Remove what has been written so far, unless it is the result by now."""
        if self.record is None or not self._is_put(self.record):
            folder = self.location.rpartition("/")[0]
            remove_all([join(folder, entry.path) for entry in self.files.values()])

    def _is_put(self, record: ResultRecord) -> bool:
        # Only the store knows: who puts a record may be interrupted, or lose a store's answer, once it is there.
        try:
            return read_bytes(f"{self.location}{RECORD}") == record.to_json()
        except FileNotFoundError:
            return False
        except OSError:
            return True  # It may be: what nobody names is removed as leftovers are.


class FolderWriter(ResultWriter):
    """Writes each attempt into a folder of its own, for results that others read: files keep their plain names."""

    def path(self, name: str) -> str:
        """Where a file of this attempt lies."""
        return join(self.location, self.attempt, name)


W = TypeVar("W", bound=ResultWriter)


@contextmanager
def attempting(writer: W) -> Iterator[W]:
    """Write files; when the block raises, none of them is left."""
    try:
        yield writer
    except BaseException:
        writer.discard()
        raise


def commit(
    writer: ResultWriter,
    *,
    code_version: str,
    inputs: Mapping[str, str],
    keep_earlier: bool = False,
    log: Callable[[str], object] = _LOG.warning,
) -> ResultRecord:
    """Put the record: from now on the written files are the result, and those of the earlier one are removed.

    Where a store lets nobody remove files, the earlier ones stay.

    Args:
        writer: all of whose files are complete.
        code_version: hash of the settings that determine the result.
        inputs: versions of what it is made from, by name.
        keep_earlier: whether the files of the earlier result stay.
        log: takes a line where they cannot be removed.
    """
    record = ResultRecord(
        writer.location, writer.version, code_version, dict(inputs), dict(writer.files), dict(writer.details)
    )
    earlier = None if keep_earlier else read_record(writer.location)
    writer.record = record
    write_bytes(f"{writer.location}{RECORD}", record.to_json())
    # Of equal content somebody else may be reading the earlier files: they are left, as leftovers are.
    if earlier is not None and earlier.version != record.version:
        kept, folder = {entry.path for entry in record.files.values()}, writer.location.rpartition("/")[0]
        try:
            remove_all([join(folder, entry.path) for entry in earlier.files.values() if entry.path not in kept])
        except Exception as error:  # stores have errors of their own, and the result is there
            log(f"{writer.location}: the files of the earlier result cannot be removed, and stay: {error}")
    return record


def require_written(writer: ResultWriter) -> None:
    """See that the files of several tasks are all there before they are committed as one result.

    Raises:
        MissingResultError: one is missing, or has another size.
    """
    parent = writer.location.rpartition("/")[0]
    paths = {join(parent, entry.path): entry for entry in writer.files.values()}
    folders = list_folders(path.rpartition("/")[0] for path in paths)
    listed = {name: file for files in folders.values() for name, file in files.items()}
    for path, entry in paths.items():
        if path not in listed or listed[path].size != entry.size:
            message = f"{path}: was removed while {writer.location} was being made; run again"
            raise MissingResultError(message)


def read_record(location: str) -> ResultRecord | None:
    """The record of a result; None where there is none, or where it is damaged and was set aside.

    Raises:
        OtherFormatError: another version of this software wrote it.
    """
    try:
        content = read_bytes(f"{location}{RECORD}")
    except FileNotFoundError:
        return None
    try:
        return ResultRecord.from_json(content, location)
    except ValueError as error:
        damaged(location, str(error))
        return None


def changed_inputs(record: ResultRecord, now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Which inputs of a result are no longer those that it was made from.

    Args:
        record: of the result.
        now: versions of its inputs as they are to be, by name.

    Returns:
        By name, the version then and the one now; `none` of an input that is not there at one of the two times.
    """
    names = [*now, *(name for name in record.inputs if name not in now)]
    return {
        name: (record.inputs.get(name, "none"), now.get(name, "none"))
        for name in names
        if record.inputs.get(name) != now.get(name)
    }


def fingerprint(value: Any) -> str:
    """One short version for a JSON-able value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode())
