"""How a file is compressed, by its first bytes; and how another one is compressed the same way."""

import bz2
import gzip
import lzma
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

Packing = Literal["gzip", "bzip2", "xz", "zstandard"]

_MAGIC: dict[Packing, bytes] = {
    "gzip": b"\x1f\x8b",
    "bzip2": b"BZh",
    "xz": b"\xfd7zXZ",
    "zstandard": b"\x28\xb5\x2f\xfd",
}


def packing_of(head: bytes) -> Packing | None:
    """What a file is compressed with, whatever its name; None where it is not.

    Args:
        head: its first bytes, at least six where it has so many.
    """
    return next((name for name, magic in _MAGIC.items() if head.startswith(magic)), None)


def packed(stream: Any, packing: Packing | None) -> AbstractContextManager[Any]:
    """A stream that compresses what is written to it; the same content gives the same bytes.

    Args:
        stream: takes the compressed bytes; it stays open.
        packing: None: they are passed on as they are.
    """
    match packing:
        case None:
            return nullcontext(stream)
        case "gzip":
            return gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=6, mtime=0, filename="")
        case "bzip2":
            return bz2.BZ2File(stream, "wb")
        case "xz":
            return lzma.LZMAFile(stream, "wb")
        case "zstandard":
            import zstandard

            writer = zstandard.ZstdCompressor(write_checksum=True).stream_writer(stream, closefd=False)
            return cast("AbstractContextManager[Any]", writer)
