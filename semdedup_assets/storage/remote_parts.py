"""Parts of results' files on an object store: each by one ranged read, many at once."""

import io
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from semdedup_assets.storage.files import AT_ONCE, filesystem, named_faults
from semdedup_assets.storage.results import StoredFile, damaged_file

WINDOW = 64 << 20
"""Bytes of a large read: far more than passes in the wait for an answer, and little beside what a process holds."""

# Two ranges with no more between them are read as one: it takes less time than another request costs a server.
_GAP = 64 << 10


@dataclass(frozen=True, slots=True)
class FilePart:
    """The bytes `[start, stop)` of a file."""

    file: StoredFile
    start: int
    stop: int


def fetch(parts: Sequence[FilePart]) -> list[bytes]:
    """The content of parts of remote files, 64 of them at once.

    Raises:
        DamagedResultError: a file is missing, or too short; names the first of them.
        OSError: the store does not answer.
    """
    if not parts:
        return []
    fs = filesystem(parts[0].file.path)[0]
    names = [filesystem(part.file.path)[1] for part in parts]
    options = {"batch_size": AT_ONCE} if fs.async_impl else {}
    starts, stops = [part.start for part in parts], [part.stop for part in parts]
    found = fs.cat_ranges(names, starts, stops, on_error="return", **options)
    return [_whole(part, content) for part, content in zip(parts, found, strict=True)]


def _whole(part: FilePart, content: bytes | BaseException) -> bytes:
    """What was read of a part, once it is seen to be all of it."""
    if isinstance(content, FileNotFoundError):
        raise damaged_file(part.file, "is missing") from None
    if isinstance(content, bytes) and len(content) == part.stop - part.start:
        return content
    # A range beyond the end of an object is an error of its own in each store, or a shorter answer.
    path = part.file.path
    with named_faults(path, "read"):
        size = _size(part.file)
    if size != part.file.entry.size:
        reason = f"has {size:,} bytes where {part.file.entry.size:,} were written"
        raise damaged_file(part.file, reason) from (content if isinstance(content, BaseException) else None)
    if isinstance(content, BaseException):
        with named_faults(path, "read"):
            raise content
    message = f"{path}: the store gave {len(content):,} bytes where {part.stop - part.start:,} were asked for"
    raise OSError(message)


def _size(file: StoredFile) -> int:
    fs, name = filesystem(file.path)
    fs.invalidate_cache()
    return int(fs.info(name)["size"])


def windows(bounds: Sequence[tuple[int, int]]) -> Iterator[range]:
    """Consecutive parts that are read together: as many as fit into 64 MiB, at least one.

    Args:
        bounds: first byte of each part, and the one after its last.
    """
    first = 0
    for index, (_, stop) in enumerate(bounds):
        if index > first and stop - bounds[first][0] > WINDOW:
            yield range(first, index)
            first = index
    if first < len(bounds):
        yield range(first, len(bounds))


class RemoteFile(io.RawIOBase):
    """A remote file for readers of file formats: what was fetched is in memory, anything else costs a read of its own.

    Args:
        file: whose size the record has, so that the store is not asked for it.
    """

    def __init__(self, file: StoredFile) -> None:
        self._file = file
        self._position = 0
        self._blocks: list[tuple[int, bytes]] = []
        self._lock = threading.Lock()

    def load(self, ranges: Iterable[tuple[int, int]]) -> list[tuple[int, bytes]]:
        """Fetch ranges, those that are close together as one, all at once; `hold` makes them known.

        Raises:
            DamagedResultError: the file is missing, or too short.
        """
        joined = list[tuple[int, int]]()
        for start, stop in sorted(ranges):
            if joined and start - joined[-1][1] <= _GAP and stop - joined[-1][0] <= WINDOW:
                joined[-1] = joined[-1][0], max(stop, joined[-1][1])
            else:
                joined.append((start, stop))
        contents = fetch([FilePart(self._file, start, stop) for start, stop in joined])
        return [(start, content) for (start, _), content in zip(joined, contents, strict=True)]

    def hold(self, blocks: list[tuple[int, bytes]]) -> None:
        """Serve these blocks from memory, and no others."""
        with self._lock:
            self._blocks = sorted(blocks)

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Choose where the next read begins."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.entry.size}[whence]
        self._position = origin + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Bytes from where the last read ended."""
        start = self._position
        stop = self._file.entry.size if size < 0 else min(start + size, self._file.entry.size)
        self._position = max(start, stop)
        return self._bytes(start, stop) if stop > start else b""

    def _bytes(self, start: int, stop: int) -> bytes:
        with self._lock:
            index = bisect_right(self._blocks, start, key=lambda block: block[0]) - 1
            if index >= 0:
                first, content = self._blocks[index]
                if stop <= first + len(content):
                    return content[start - first : stop - first]
        return fetch([FilePart(self._file, start, stop)])[0]
