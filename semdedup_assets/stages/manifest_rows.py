"""How many rows a manifest's files hold, read back from them: what was written, not what was meant to be."""

import csv
import gzip
import io
import re
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import IO, Any, Literal

from semdedup_assets.storage.files import is_local, open_file
from semdedup_assets.storage.results import FolderWriter

_BLOCK = 1 << 20
# As the `webdataset` package divides a file's name into key and suffix.
_SAMPLE = re.compile(r"((?:.*/)?[^./][^./]*)\.[^/]*", re.DOTALL)
_LIMIT = Lock()
_PAX_PATH = re.compile(rb"\d+ path=([^\n]*)\n")


FILTERED, METADATA = "filtered", "filtered_metadata"
"""The folder of the source's own files, and what the tables in it are counted as that belong to arrays."""

CSV = "open_clip.csv"
"""The one file of a manifest that all shards share; where several tasks write it, its parts are `open_clip.csv.<n>`."""


def csv_part(start: int | str) -> str:
    """The name of a part of the CSV file, by the index of the first shard; the first part, of 0, has the header."""
    return f"{CSV}.{start}"


def kind_of(name: str) -> str:
    """The file or the folder that holds a format, of one of a manifest's files."""
    return CSV if name.startswith(CSV) else name.partition("/")[0]


def count_rows(name: str, stream: IO[bytes], *, source: str = "") -> int:
    """Rows of one of a manifest's files.

    Args:
        name: of the file.
        stream: of its content, with `peek`.
        source: the kind of the source, whose form filtered files have.
    """
    kind = kind_of(name)
    count = _filtered_count(name, source) if kind == FILTERED else _COUNTS[kind]
    return count(stream) - has_header(name)


def _filtered_count(name: str, source: str) -> "Callable[[IO[bytes]], int]":
    if source == "vectors":
        return _ARRAY_ROWS.get(name.lower()[-4:], _parquet_rows)
    return {"jsonl": _source_lines, "webdataset": _tar_samples}.get(source, _parquet_rows)


def has_header(name: str) -> bool:
    """Whether a file begins with the names of its columns, in a row of their own."""
    return name in (CSV, csv_part(0))


@dataclass
class CountingFolder(FolderWriter):
    """Writes files of a manifest, and counts what each holds: what was written, not what was meant to be.

    On a local disk the files are read back. Of an upload the bytes that were sent are counted, in a copy that goes at
    once: to fetch them again would cost as much as sending them.

    Attributes:
        rows: by the file or the folder that holds a format.
        stood_for: items that the kept ones stand for, by their groups' sizes.
        grouped: items that belong to a kept one.
        beside: names of the tables that belong to arrays, and so hold the same items once more.
        source: the kind of the source, whose form filtered files have.
    """

    rows: Counter[str] = field(default_factory=Counter)
    stood_for: int = 0
    grouped: int = 0
    beside: set[str] = field(default_factory=set)
    source: str = ""

    @contextmanager
    def open(self, name: str, *, ranges: Callable[[], str] = str) -> Iterator[Any]:
        """Write one file, and count what it holds; see `ResultWriter.open`."""
        if is_local(self.location):
            with super().open(name, ranges=ranges) as stream:
                yield stream
            with open_file(self.path(name)) as written:
                self._count(name, written)
        elif kind_of(name) == "webdataset":
            # A tar may be as large as its shard: its headers are looked at as they pass.
            with super().open(name, ranges=ranges) as stream:
                yield (counter := SampleCounter(stream))
            self.rows["webdataset"] += counter.samples
        else:
            with tempfile.TemporaryFile(prefix="semdedup-") as copy:
                with super().open(name, ranges=ranges) as stream:
                    yield _Copied(stream, copy)
                copy.seek(0)
                self._count(name, copy)

    def _count(self, name: str, stream: IO[bytes]) -> None:
        kind = METADATA if name in self.beside else kind_of(name)
        self.rows[kind] += count_rows(name, stream, source=self.source)
        if kind in ("parquet", "removed"):
            stream.seek(0)
            grouped, size = _groups(stream)
            self.grouped += grouped
            self.stood_for += size if kind == "parquet" else 0

    @property
    def group_counts(self) -> dict[str, int]:
        """How many items the kept ones stand for, and how many belong to a kept one."""
        return {"stood_for": self.stood_for, "grouped": self.grouped}


def _groups(stream: IO[bytes]) -> tuple[int, int]:
    """How many items of a Parquet file belong to a group, and the sizes of the items' groups added up."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    sizes = pq.ParquetFile(stream).read(["group_size"]).column(0).cast(pa.uint64())
    return len(sizes) - sizes.null_count, pc.sum(sizes).as_py() or 0


class _Copied(io.RawIOBase):
    """Passes bytes on, and writes them to a second stream too."""

    def __init__(self, stream: Any, copy: IO[bytes]) -> None:
        self._stream, self._copy = stream, copy

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any) -> int:
        """Pass bytes on."""
        view = memoryview(data).cast("B")
        self._copy.write(view)
        self._stream.write(view)
        return view.nbytes

    def tell(self) -> int:
        """Bytes written so far."""
        return int(self._stream.tell())


def _parquet_rows(stream: IO[bytes]) -> int:
    import pyarrow.parquet as pq

    return int(pq.ParquetFile(stream).metadata.num_rows)


def _packed_lines(stream: IO[bytes]) -> int:
    with gzip.GzipFile(fileobj=stream) as unpacked:
        return sum(block.count(b"\n") for block in iter(lambda: unpacked.read(_BLOCK), b""))


def _table_rows(stream: IO[bytes], *, cells: int) -> int:
    """Rows of a tab-separated table that have so many cells, by the reader that everybody has."""
    with io.TextIOWrapper(stream, encoding="utf-8", newline="") as text, _cells_of_any_size():
        return sum(len(row) == cells for row in csv.reader(text, delimiter="\t"))


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    """Keys are never cut; Python's CSV reader otherwise refuses cells of more than 131,072 characters."""
    # The limit is one for all threads.
    with _LIMIT:
        usual = csv.field_size_limit(sys.maxsize)
        try:
            yield
        finally:
            csv.field_size_limit(usual)


def _tar_samples(stream: IO[bytes]) -> int:
    """Samples of a tar: their files are passed over where it is not packed."""
    from semdedup_assets.sources.tar_members import unpacked

    content, samples, key = unpacked(stream), 0, None
    mode: Literal["r:", "r|"] = "r:" if content is stream else "r|"
    with tarfile.open(fileobj=content, mode=mode) as tar:
        # Python 3.10 fails where `next` is called at the end of an empty tar.
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # the list would grow with the archive
            found = _key(member.name)
            samples += found != key
            key = found
    return samples


def _source_lines(stream: IO[bytes]) -> int:
    from semdedup_assets.sources.jsonl import count_lines

    return count_lines(stream)


def _key(name: str) -> str | None:
    parts = _SAMPLE.fullmatch(name)
    return None if parts is None else parts[1]


def _npy_rows(stream: IO[bytes]) -> int:
    """Rows of an array that lie in its file."""
    from semdedup_assets.sources.vectors import array_header

    (_, width), _, dtype = array_header(stream)
    start = stream.tell()
    return (stream.seek(0, io.SEEK_END) - start) // (width * dtype.itemsize)


def _npz_rows(stream: IO[bytes]) -> int:
    from semdedup_assets.sources.vectors import array_header, only_array

    with zipfile.ZipFile(stream) as archive, archive.open(only_array(archive, "the archive")) as member:
        return int(array_header(member)[0][0])


_ARRAY_ROWS: dict[str, Callable[[IO[bytes]], int]] = {".npy": _npy_rows, ".npz": _npz_rows}

_COUNTS: dict[str, Callable[[IO[bytes]], int]] = {
    "parquet": _parquet_rows,
    "removed": _parquet_rows,
    "keep_lists": lambda stream: _table_rows(stream, cells=3),
    "samples": lambda stream: _table_rows(stream, cells=4),
    "jsonl": _packed_lines,
    CSV: lambda stream: _table_rows(stream, cells=2),
    "webdataset": _tar_samples,
}


class SampleCounter(io.RawIOBase):
    """Passes the bytes of a tar on, and counts its samples by the headers among them.

    Attributes:
        samples: how many there were: files in sequence whose names have one key.
    """

    def __init__(self, stream: Any) -> None:
        self.samples = 0
        self._stream = stream
        self._held, self._wanted, self._skip = bytearray(), tarfile.BLOCKSIZE, 0
        self._extended: bytes | None = None  # name in an extended header, which belongs to the next member
        self._in_extended = False
        self._key: str | None = None

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any) -> int:
        """Pass bytes on."""
        view = memoryview(data).cast("B")
        self._stream.write(view)
        start = 0
        while start < view.nbytes:
            if self._skip:
                step = min(self._skip, view.nbytes - start)
                self._skip -= step
            else:
                step = min(self._wanted - len(self._held), view.nbytes - start)
                self._held += view[start : start + step]
                if len(self._held) == self._wanted:
                    content = bytes(self._held)
                    self._held.clear()
                    self._take(content)
            start += step
        return view.nbytes

    def _take(self, content: bytes) -> None:
        """Take a whole header, or the whole content of an extended one."""
        if self._in_extended:
            found = _PAX_PATH.search(content)
            self._extended = found[1] if found else None
            self._in_extended, self._skip = False, -len(content) % tarfile.BLOCKSIZE
            self._wanted = tarfile.BLOCKSIZE
        elif any(content):
            member = tarfile.TarInfo.frombuf(content, "utf-8", "surrogateescape")
            if member.type == tarfile.XHDTYPE:
                self._in_extended, self._wanted = True, member.size
                return
            name = member.name if self._extended is None else self._extended.decode("utf-8", "surrogateescape")
            self._extended, self._skip = None, member.size + -member.size % tarfile.BLOCKSIZE
            key = _key(name)
            self.samples += key != self._key
            self._key = key
