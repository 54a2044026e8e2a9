"""How many rows a manifest's files hold, read back from them: what was written, not what was meant to be."""

import gzip
from collections.abc import Callable, Iterable
from typing import IO

from semdedup_assets.storage.files import join, open_file

_BLOCK = 1 << 20


def rows_written(folder: str, files: Iterable[str]) -> dict[str, int]:
    """Rows of a manifest's files, by the file or the folder that holds a format.

    Those of tars are not counted: their headers lie between the samples, so that all would be read again.

    Args:
        folder: the manifest's.
        files: their paths in the folder.
    """
    rows: dict[str, int] = {}
    for name in files:
        kind = name.partition("/")[0]
        if kind in _COUNTS:
            with open_file(join(folder, name)) as stream:
                rows[kind] = rows.get(kind, 0) + _COUNTS[kind](stream)
    return rows


def _parquet_rows(stream: IO[bytes]) -> int:
    import pyarrow.parquet as pq

    return int(pq.ParquetFile(stream).metadata.num_rows)


def _lines(stream: IO[bytes] | gzip.GzipFile) -> int:
    return sum(block.count(b"\n") for block in iter(lambda: stream.read(_BLOCK), b""))


def _packed_lines(stream: IO[bytes]) -> int:
    with gzip.GzipFile(fileobj=stream) as unpacked:
        return _lines(unpacked)


def _csv_rows(stream: IO[bytes]) -> int:
    """Lines that end outside quotes, for a caption may hold line breaks; without the header."""
    rows, quoted = -1, False
    for block in iter(lambda: stream.read(_BLOCK), b""):
        for part in block.split(b'"'):
            rows += 0 if quoted else part.count(b"\n")
            quoted = not quoted
        # A block with n quotes has n + 1 parts: the last change was one too many.
        quoted = not quoted
    return rows


_COUNTS: dict[str, Callable[[IO[bytes]], int]] = {
    "parquet": _parquet_rows,
    "keep_lists": _lines,
    "jsonl": _packed_lines,
    "open_clip.csv": _csv_rows,
}
