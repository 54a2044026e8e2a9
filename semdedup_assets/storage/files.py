"""Files on a local path or any fsspec URL, read and written the same way."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile


@dataclass(frozen=True, slots=True)
class FileStat:
    """A file as a listing shows it.

    Attributes:
        path: local path, or URL with its protocol.
        size: bytes.
        stamp: what changes when the content does: the ETag where the store has one, else the mtime.
    """

    path: str
    size: int
    stamp: str


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URL, and the path as that file system spells it."""
    fs, name = fsspec.core.url_to_fs(path)
    return fs, str(name)


def is_local(path: str) -> bool:
    """Whether a path lies on this machine, where it can be mapped into memory."""
    return isinstance(filesystem(path)[0], LocalFileSystem)


def join(root: str, *parts: str) -> str:
    """Join path segments below a local root or a URL."""
    return "/".join([root.rstrip("/"), *parts])


def exists(path: str) -> bool:
    """Whether a file or folder is there now, never from a cached listing."""
    fs, name = filesystem(path)
    fs.invalidate_cache()
    return bool(fs.exists(name))


def _stat(fs: fsspec.AbstractFileSystem, info: dict[str, Any]) -> FileStat:
    stamp = next(
        (str(info[name]) for name in ("ETag", "etag", "mtime", "LastModified", "created") if info.get(name)), ""
    )
    local = isinstance(fs, LocalFileSystem)
    return FileStat(info["name"] if local else fs.unstrip_protocol(info["name"]), int(info["size"]), stamp.strip('"'))


def list_files(pattern: str) -> list[FileStat]:
    """Every file that a glob pattern (or one plain path) matches, sorted by path.

    Args:
        pattern: local path or URL; `*`, `**`, `?` and `[...]` as in fsspec's glob.

    Returns:
        One `FileStat` a file; empty where nothing matches.
    """
    fs, name = filesystem(pattern)
    fs.invalidate_cache()
    found = fs.glob(name, detail=True)
    return sorted((_stat(fs, info) for info in found.values() if info["type"] == "file"), key=lambda file: file.path)


def open_file(path: str) -> IO[bytes]:
    """Open a file for reading, as a stream of bytes."""
    fs, name = filesystem(path)
    stream: IO[bytes] = fs.open(name, "rb")
    return stream


def read_bytes(path: str) -> bytes:
    """The whole content of a small file."""
    with open_file(path) as stream:
        return stream.read()


@contextmanager
def atomic_write(path: str) -> Iterator[IO[bytes]]:
    """Write a file that appears under its name only when it is complete.

    Locally: a temporary name beside it, flushed to disk, then renamed. On an object store: one
    upload, which becomes visible when it is closed. When the block raises, nothing is left.

    Raises:
        PermissionError: the store cannot be written; names the path and the cure.
    """
    fs, name = filesystem(path)
    if isinstance(fs, LocalFileSystem):
        with _local_atomic_write(Path(name)) as stream:
            yield stream
        return
    stream = fs.open(name, "wb")
    try:
        yield stream
    except BaseException:
        # Closing would publish what is half written, and so would the garbage collector.
        stream.discard()
        if isinstance(stream, AbstractBufferedFile):
            stream.closed = True
        raise
    stream.close()
    fs.invalidate_cache()


@contextmanager
def _local_atomic_write(path: Path) -> Iterator[IO[bytes]]:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = temporary.open("wb")
    except OSError as error:
        message = (
            f"{path}: cannot be written ({error.strerror}); make its folder writable or set `store` to one that is"
        )
        raise PermissionError(message) from error
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str, content: bytes) -> None:
    """Write a small file atomically."""
    with atomic_write(path) as stream:
        stream.write(content)


def remove(path: str) -> None:
    """Remove a file where it is there."""
    fs, name = filesystem(path)
    if fs.exists(name):
        fs.rm(name)
