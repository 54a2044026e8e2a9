"""Files on a local path or any fsspec URL, read and written the same way."""

import contextlib
import errno
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile
from fsspec.utils import get_protocol

from semdedup_assets.storage import walk
from semdedup_assets.storage.web_pages import linked, linked_below, page_url

_LISTERS = 16

TEMPORARY = ".tmp"
"""How the name of a file ends that was being written when its process was ended."""

AT_ONCE = 64
"""Requests that wait for an object store at the same time."""

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What a write raises without the name of the file.
_OF_A_DISK = {*_FULL_DISK, errno.EROFS, errno.EIO}

# What a store's library raises where nothing is under a name.
_NOTHING_THERE = (FileNotFoundError, NotADirectoryError)

# A file up to this size is one request, held in memory until it is complete; a larger one is sent in parts of it.
_UPLOAD_BYTES = 128 << 20
_S3 = ("s3", "s3a")
# botocore lets 10 requests wait at once; s3fs takes an upload for dead after 15 s, which a large part may need.
_S3_CLIENT = {"max_pool_connections": AT_ONCE, "read_timeout": 60}


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
    if is_chained(path):
        fs, name = fsspec.core.url_to_fs(path)
        return fs, str(name)
    # fsspec would take `a::b.jpg` for a file of one file system inside another, and longer to take others apart.
    protocol = protocol_of(path)
    fs_class = fsspec.get_filesystem_class(protocol)
    options = fs_class._get_kwargs_from_urls(path)
    fs = fsspec.filesystem(protocol, **({**options, **_s3_client()} if protocol in _S3 else options))
    return fs, str(fs_class._strip_protocol(path))


def store_access() -> dict[str, Any]:
    """How this process reaches its stores, by protocol: what fsspec is configured with, from its files or `FSSPEC_…`."""
    return {protocol: dict(options) for protocol, options in fsspec.config.conf.items()}


def adopt_access(access: Mapping[str, Any]) -> None:
    """Reach stores as another process does, where this machine has no access of its own.

    Args:
        access: of the other process, by protocol.
    """
    for protocol, options in access.items():
        fsspec.config.conf.setdefault(protocol, options)


def _s3_client() -> dict[str, Any]:
    """How requests to S3 are made, where the configuration of fsspec does not say otherwise."""
    configured = [fsspec.config.conf.get(name, {}).get("config_kwargs", {}) for name in _S3]
    return {"config_kwargs": {name: value for each in (_S3_CLIENT, *configured) for name, value in each.items()}}


def protocol_of(path: str) -> str:
    """The name of a path's file system, `file` for local ones."""
    if "::" not in path or is_chained(path):
        return str(get_protocol(path))
    head, separator, _ = path.partition("://")
    return head if separator and "::" not in head else "file"


def is_chained(path: str) -> bool:
    """Whether a path is a chain of fsspec's file systems, such as `simplecache::s3://bucket/a.tar`."""
    head, separator, _ = path.partition("::")
    return bool(separator) and head.partition("://")[0] in _WRAPPERS and not os.path.lexists(path)


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


_WRAPPERS = {
    "blockcache", "cached", "dir", "filecache", "libarchive", "reference", "simplecache", "tar", "zip",
}  # fmt: skip
_STAMPS = ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "created")


def _stat(fs: fsspec.AbstractFileSystem, info: dict[str, Any]) -> FileStat:
    stamp = next((str(info[name]) for name in _STAMPS if info.get(name)), "")
    local = isinstance(fs, LocalFileSystem)
    return FileStat(
        info["name"] if local else fs.unstrip_protocol(info["name"]), int(info["size"] or 0), stamp.strip('"')
    )


@dataclass(frozen=True, slots=True)
class Listing:
    """What a listing shows.

    Attributes:
        files: sorted by path.
        passed_over: by reason, how many names are none of them: hidden ones, other suffixes, links that lead nowhere.
    """

    files: list[FileStat]
    passed_over: dict[str, int]


def file_stat(path: str) -> FileStat | None:
    """A file under its literal name; None where there is none.

    Raises:
        OSError: the file system cannot be asked, or does not answer as it should.
    """
    fs, name = filesystem(path)
    if isinstance(fs, LocalFileSystem):
        walked = walk.Walk(None)
        walked.add_named(name)
        return next((_local_stat(*found) for found in walked.found.items()), None)
    fs.invalidate_cache()
    try:
        with named_faults(path, "read"):
            info = fs.info(name)
    except _NOTHING_THERE as error:
        # fsspec calls a web server's every failure a missing file.
        if error.__cause__ is not None and getattr(error.__cause__, "status", None) not in (404, 410):
            message = f"{path}: its server does not answer as it should ({error.__cause__})"
            raise OSError(errno.EIO, message) from error
        return None
    return _stat(fs, info) if info["type"] == "file" else None


def is_folder(path: str) -> bool:
    """Whether a path is a folder under its literal name."""
    fs, name = filesystem(path)
    if isinstance(fs, LocalFileSystem):
        return os.path.isdir(name)  # noqa: PTH112  # fsspec takes a name that is not UTF-8 for none
    with named_faults(path, "read"):
        return bool(fs.isdir(name))


def list_glob(pattern: str, suffixes: tuple[str, ...] | None = None) -> Listing:
    """Every file that a glob matches, and what was passed over.

    Args:
        pattern: local path or URL; `*`, `**`, `?` and `[...]` as in fsspec's glob. Names that begin with `.` or `_` are
            matched where the pattern has them.
        suffixes: lower-case suffixes, one of which a name must have that a wildcard matches; None for all.
    """
    fs, name = filesystem(pattern)
    if isinstance(fs, LocalFileSystem):
        return _local_listing(*fixed_part(name), suffixes=suffixes)
    if (path := walk.literal(pattern)) is not None:
        file = file_stat(path)
        return Listing([file] if file is not None else [], {})
    fs.invalidate_cache()
    root, segments = fixed_part(name)
    wanted = suffixes if walk.literal(segments[-1]) is None else None
    if _is_web(fs):
        found, root = linked(fs, name, root=root), page_url(root)
    else:
        with named_faults(pattern, "listed"):
            found = fs.glob(name, detail=True)
    return _visible_files(fs, found, wanted, _hidden_from(root, segments))


def list_below(folder: str, suffixes: tuple[str, ...] | None = None) -> Listing:
    """Every file below a folder, whose name is taken literally, and what was passed over."""
    fs, name = filesystem(folder)
    if isinstance(fs, LocalFileSystem):
        return _local_listing(name, ["**"], suffixes=suffixes)
    fs.invalidate_cache()
    if _is_web(fs):
        found, name = linked_below(fs, name), page_url(name)
    else:
        with named_faults(folder, "listed"):
            found = fs.find(name, detail=True)
    return _visible_files(fs, found, suffixes, _hidden_from(name.rstrip("/"), ["**"]))


def _is_web(fs: fsspec.AbstractFileSystem) -> bool:
    return "https" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def fixed_part(pattern: str) -> tuple[str, list[str]]:
    """The folder of a glob below which everything lies that it matches, and the segments of the glob below it."""
    segments = pattern.split("/")
    fixed = 0
    while fixed < len(segments) - 1 and walk.literal(segments[fixed]) is not None:
        fixed += 1
    root = "/".join(walk.literal(segment) or "" for segment in segments[:fixed])
    return root or ("/" if pattern.startswith("/") else ""), segments[fixed:]


def _local_listing(root: str, segments: list[str], *, suffixes: tuple[str, ...] | None) -> Listing:
    walked = walk.Walk(suffixes)
    walked.glob(root, segments)
    return Listing([_local_stat(*found) for found in sorted(walked.found.items())], dict(walked.passed_over))


def _local_stat(path: str, status: os.stat_result) -> FileStat:
    # A float as fsspec formats it, so that the stamps of earlier versions hold.
    return FileStat(path, status.st_size, str(status.st_mtime))


def _visible_files(
    fs: fsspec.AbstractFileSystem,
    found: dict[str, dict[str, Any]],
    suffixes: tuple[str, ...] | None,
    hidden: Callable[[str], str | None],
) -> Listing:
    files, passed_over, hidden_names = list[FileStat](), Counter[str](), set[str]()
    for name, info in found.items():
        # A web server's index page is reported without a type, and links to itself, sorted otherwise.
        if info.get("type", "directory") == "directory" or "/?" in name:
            continue
        if (part := hidden(name)) is not None:
            hidden_names.add(part)
        elif suffixes is not None and not name.lower().endswith(suffixes):
            passed_over[walk.suffix_of(name.rpartition("/")[2])] += 1
        elif info["type"] == "file":
            files.append(_stat(fs, info))
        else:
            passed_over[walk.SPECIAL] += 1
    if hidden_names:
        passed_over[walk.HIDDEN] = len(hidden_names)
    return Listing(sorted(files, key=lambda file: file.path), dict(passed_over))


def _hidden_from(root: str, segments: list[str]) -> Callable[[str], str | None]:
    """A function from a name below a root to its first hidden part, None where no part is hidden.

    Parts are not hidden where the glob has them: it matches its segments before `**` from the left, those after it from
    the right.
    """
    deep = segments.index("**") if "**" in segments else len(segments)
    after = len(segments) - 1 - deep

    def hidden(name: str) -> str | None:
        parts = name.removeprefix(root).strip("/").split("/")
        for place, part in enumerate(parts):
            from_right = place - len(parts)
            segment = segments[place] if place < deep else segments[from_right] if -from_right <= after else "**"
            if walk.is_hidden(part) and not segment.startswith((".", "_")):
                return "/".join(parts[: place + 1])
        return None

    return hidden


def open_file(path: str, *, block_size: int | None = None) -> IO[bytes]:
    """Open a file for reading, as a stream of bytes.

    Args:
        path: local path or URL.
        block_size: bytes of a request to an object store; None: what its file system takes for a whole file.
    """
    fs, name = filesystem(path)
    stream: IO[bytes] = fs.open(name, "rb") if block_size is None else fs.open(name, "rb", block_size=block_size)
    return stream


def read_bytes(path: str) -> bytes:
    """The whole content of a small file, by one request."""
    fs, name = filesystem(path)
    if isinstance(fs, LocalFileSystem):
        with open_file(path) as stream:
            return stream.read()
    with named_faults(path, "read"):
        try:
            # Without a range s3fs would ask for the size first.
            content: bytes = fs.cat_file(name, start=0)
        except FileNotFoundError:
            raise
        except OSError:
            # An empty object has no range that could be read.
            if fs.info(name)["size"] == 0:
                return b""
            raise
    return content


@contextmanager
def named_faults(path: str, done: str, *, passed_on: tuple[type[Exception], ...] = _NOTHING_THERE) -> Iterator[None]:
    """Say of what a store's library speaks, which repeats the words of its server alone, such as `Access Denied`.

    Args:
        path: local path, whose errors stay as they are, or URL.
        done: what is done there, as a participle.
        passed_on: errors that stay as they are.

    Raises:
        PermissionError, TimeoutError, OSError: the store does not do it; has a number (`errno`), and names the URL and
            the remedy.
    """
    try:
        yield
    except Exception as cause:
        if isinstance(cause, passed_on) or is_local(path):
            raise
        numbers: dict[type[OSError], int] = {PermissionError: errno.EACCES, TimeoutError: errno.ETIMEDOUT}
        number = next((numbers[kind] for kind in numbers if isinstance(cause, kind)), errno.EIO)
        words = f"{type(cause).__name__}: {getattr(cause, 'strerror', None) or cause}"
        remedy = "see that the store is there, that it answers, and that the credentials of this machine allow that"
        # Of these two numbers Python makes a PermissionError and a TimeoutError.
        raise OSError(
            getattr(cause, "errno", None) or number, f"{path}: cannot be {done} ({words}); {remedy}"
        ) from cause


@contextmanager
def create(path: str) -> Iterator[IO[bytes]]:
    """Write a file whose name is new; when the block raises, nothing is left.

    Locally it is flushed to disk; on an object store it is one upload, which becomes visible when it is closed.

    Raises:
        PermissionError: the store cannot be written; names the path and the remedy.
        OSError: its disk is full or fails; names the path.
    """
    fs, name = filesystem(path)
    if isinstance(fs, LocalFileSystem):
        with _local_create(Path(name)) as stream:
            yield stream
        return
    with named_faults(path, "written", passed_on=()):
        stream = fs.open(name, "wb", block_size=_UPLOAD_BYTES)
    try:
        yield stream
    except BaseException:
        # Closing would publish what is half written, and so would the garbage collector.
        stream.discard()
        if isinstance(stream, AbstractBufferedFile):
            stream.closed = True
        raise
    with named_faults(path, "written", passed_on=()):
        stream.close()
    fs.invalidate_cache()


@contextmanager
def _local_create(path: Path) -> Iterator[IO[bytes]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("wb")
    except OSError as error:
        if error.errno in _FULL_DISK:
            raise
        message = (
            f"{path}: cannot be written ({error.strerror}); make its folder writable or set `store` to one that is"
        )
        raise PermissionError(message) from error
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException as error:
        path.unlink(missing_ok=True)
        # Where it has no words of the system, it has its own, which a name would replace.
        if isinstance(error, OSError) and error.errno in _OF_A_DISK and error.strerror and error.filename is None:
            error.filename = str(path)
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


def remove_all(paths: Sequence[str]) -> None:
    """Remove files of one store where they are there; on an object store by one request for many."""
    if len(paths) > 1 and not is_local(paths[0]):
        fs = filesystem(paths[0])[0]
        with contextlib.suppress(FileNotFoundError):
            fs.rm([filesystem(path)[1] for path in paths])
            return
    # A file system that stops at the first that is missing leaves the others.
    for path in paths:
        remove(path)


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
        etag: what an object store calls this content; empty where it has no such name.
    """

    size: int
    stamp: str
    modified: float | None
    etag: str = ""


def list_folder(folder: str, *, recursive: bool = False) -> dict[str, ListedFile]:
    """The files of a folder by their full path, by one listing; empty where the folder is not there.

    Args:
        folder: local path or URL.
        recursive: whether files of folders below it are listed too.
    """
    fs, name = filesystem(folder)
    fs.invalidate_cache()
    try:
        with named_faults(folder, "listed"):
            found = list(fs.find(name, detail=True).values()) if recursive else fs.ls(name, detail=True)
    except _NOTHING_THERE:
        return {}
    prefix = f"{name.rstrip('/')}/"
    return {
        join(folder, str(info["name"]).removeprefix(prefix)): _listed(fs, info)
        for info in found
        if info["type"] == "file" and str(info["name"]).startswith(prefix)
    }


def folder_stamp(folder: str) -> str:
    """What changes when a file comes into a local folder, leaves it or is replaced; "" where nothing can be seen so.

    Args:
        folder: local path or URL.
    """
    if not is_local(folder):
        return ""
    try:
        return str(Path(filesystem(folder)[1]).stat().st_mtime_ns)
    except OSError:
        return ""


def list_folders(folders: Iterable[str], *, recursive: bool = False) -> dict[str, dict[str, ListedFile]]:
    """The files of many folders, as `list_folder` gives those of one; a store is asked for several at once.

    Args:
        folders: local paths or URLs.
        recursive: whether files of folders below them are listed too.
    """
    names = sorted(set(folders))
    if not names:
        return {}
    # Of an object store each listing is a wait and no work.
    with ThreadPoolExecutor(_LISTERS) as pool:
        return dict(zip(names, pool.map(partial(list_folder, recursive=recursive), names), strict=True))


def _listed(fs: fsspec.AbstractFileSystem, info: dict[str, Any]) -> ListedFile:
    moment: Any = next(
        (info[name] for name in ("mtime", "LastModified", "created") if info.get(name) is not None), None
    )
    modified = moment.timestamp() if isinstance(moment, datetime) else moment
    stat = _stat(fs, info)
    etag = str(info.get("ETag") or info.get("etag") or "").strip('"')
    # Locally a file may be replaced within one tick of the clock: its inode changes.
    stamp = f"{stat.stamp}-{info.get('ino', '')}"
    return ListedFile(stat.size, stamp, None if modified is None else float(modified), etag)


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
    for path, content in zip(paths, contents, strict=True):
        if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
            with named_faults(path, "read"):
                raise content
    return [content if isinstance(content, bytes) else None for content in contents]


def _content_or_nothing(path: str) -> bytes | None:
    try:
        return read_bytes(path)
    except (FileNotFoundError, IsADirectoryError):
        return None
