"""Files on a local path or any fsspec URL, read and written the same way."""

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile

TEMPORARY = ".tmp"
"""How the name of a file ends that was being written when its process was ended."""


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
    """The file system of a path or URL, and the path as that file system writes it."""
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
def create(path: str) -> Iterator[IO[bytes]]:
    """Write a file whose name is new; when the block raises, nothing is left.

    Locally it is flushed to disk; on an object store it is one upload, which becomes visible when it is closed.

    Raises:
        PermissionError: the store cannot be written; names the path and the remedy.
    """
    fs, name = filesystem(path)
    if isinstance(fs, LocalFileSystem):
        with _local_create(Path(name)) as stream:
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
def _local_create(path: Path) -> Iterator[IO[bytes]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("wb")
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
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_bytes(path: str, content: bytes) -> None:
    """Write a small file that appears under its name only when it is complete, in place of an earlier one."""
    fs, name = filesystem(path)
    if not isinstance(fs, LocalFileSystem):
        with create(path) as stream:
            stream.write(content)
        return
    temporary = Path(name).with_name(f".{Path(name).name}.{uuid.uuid4().hex}{TEMPORARY}")
    with create(str(temporary)) as stream:
        stream.write(content)
    temporary.replace(name)


def remove(path: str) -> None:
    """Remove a file where it is there."""
    fs, name = filesystem(path)
    with contextlib.suppress(FileNotFoundError):
        fs.rm(name)


def move(path: str, to: str) -> None:
    """Rename a file where it is there, in place of what has the new name."""
    fs, name = filesystem(path)
    with contextlib.suppress(FileNotFoundError):
        fs.mv(name, filesystem(to)[1])


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of a store, as a listing shows it.

    Attributes:
        size: bytes.
        stamp: what changes when the file is replaced.
        modified: seconds since 1970; None where the store does not report it.
    """

    size: int
    stamp: str
    modified: float | None


def list_folder(folder: str, *, recursive: bool = False) -> dict[str, ListedFile]:
    """The files of a folder by their full path, by one listing; empty where the folder is not there.

    Args:
        folder: local path or URL.
        recursive: whether files of folders below it are listed too.
    """
    fs, name = filesystem(folder)
    fs.invalidate_cache()
    try:
        found = list(fs.find(name, detail=True).values()) if recursive else fs.ls(name, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    prefix = f"{name.rstrip('/')}/"
    return {
        join(folder, str(info["name"]).removeprefix(prefix)): _listed(fs, info)
        for info in found
        if info["type"] == "file" and str(info["name"]).startswith(prefix)
    }


def _listed(fs: fsspec.AbstractFileSystem, info: dict[str, Any]) -> ListedFile:
    moment: Any = next(
        (info[name] for name in ("mtime", "LastModified", "created") if info.get(name) is not None), None
    )
    modified = moment.timestamp() if isinstance(moment, datetime) else moment
    stat = _stat(fs, info)
    # Locally a file may be replaced within one tick of the clock: its inode changes.
    return ListedFile(stat.size, f"{stat.stamp}-{info.get('ino', '')}", None if modified is None else float(modified))


def read_many(paths: Sequence[str]) -> list[bytes | None]:
    """The whole content of many small files, None where one is not there.

    Raises:
        OSError: one cannot be read for another cause.
    """
    if not paths:
        return []
    fs = filesystem(paths[0])[0]
    if isinstance(fs, LocalFileSystem) or len(paths) == 1:
        return [_content_or_nothing(path) for path in paths]
    found = fs.cat([filesystem(path)[1] for path in paths], on_error="return")
    contents = [found.get(filesystem(path)[1]) for path in paths]
    for content in contents:
        if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
            raise content
    return [content if isinstance(content, bytes) else None for content in contents]


def _content_or_nothing(path: str) -> bytes | None:
    try:
        return read_bytes(path)
    except (FileNotFoundError, IsADirectoryError):
        return None
