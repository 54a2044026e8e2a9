"""How many rows a manifest's files hold, read back from them: what was written, not what was meant to be."""

import csv
import gzip
import io
import re
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from semdedup_assets.storage.files import is_local, join, open_file

_BLOCK = 1 << 20
# As the `webdataset` package divides a file's name into key and suffix.
_SAMPLE = re.compile(r"((?:.*/)?[^./][^./]*)\.[^/]*", re.DOTALL)
_PAX_PATH = re.compile(rb"\d+ path=([^\n]*)\n")


def rows_written(folder: str, files: Iterable[str], *, samples_sent: int = 0) -> dict[str, int]:
    """Rows of a manifest's files, by the file or the folder that holds a format.

    Args:
        folder: the manifest's.
        files: their paths in the folder.
        samples_sent: of the tars among them, as they were counted on their way to an object store: there, headers lie
            between the samples, so that all would be read again.
    """
    rows: dict[str, int] = {}
    for name in files:
        kind = name.partition("/")[0]
        path = join(folder, name)
        if kind == "webdataset" and not is_local(path):
            rows[kind] = rows.get(kind, 0) + samples_sent
        elif kind in _COUNTS:
            with open_file(path) as stream:
                rows[kind] = rows.get(kind, 0) + _COUNTS[kind](stream)
    return rows


def group_counts(folder: str, files: Iterable[str]) -> dict[str, int]:
    """How many items the kept ones of a manifest stand for, and how many belong to a kept one, as its files have it.

    Args:
        folder: the manifest's.
        files: their paths in the folder.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    counts = {"stood_for": 0, "grouped": 0}
    for name in files:
        kind = name.partition("/")[0]
        if kind in ("parquet", "removed"):
            with open_file(join(folder, name)) as stream:
                sizes = pq.ParquetFile(stream).read(["group_size"]).column(0).cast(pa.uint64())
            counts["grouped"] += len(sizes) - sizes.null_count
            counts["stood_for"] += (pc.sum(sizes).as_py() or 0) if kind == "parquet" else 0
    return counts


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
    usual = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(usual)


def _tar_samples(stream: IO[bytes]) -> int:
    """Samples of a tar on a local disk: their files are passed over."""
    samples, key = 0, None
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # the list would grow with the archive
            found = _key(member.name)
            samples += found != key
            key = found
    return samples


def _key(name: str) -> str | None:
    parts = _SAMPLE.fullmatch(name)
    return None if parts is None else parts[1]


_COUNTS: dict[str, Callable[[IO[bytes]], int]] = {
    "parquet": _parquet_rows,
    "removed": _parquet_rows,
    "keep_lists": lambda stream: _table_rows(stream, cells=3),
    "samples": lambda stream: _table_rows(stream, cells=4),
    "jsonl": _packed_lines,
    "open_clip.csv": lambda stream: _table_rows(stream, cells=2) - 1,  # the header
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
