"""Finding and opening the files of a source."""

import errno
import io
import os
import re
import stat
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import IO, Annotated, Any, cast
from urllib.parse import urlsplit

from fsspec import available_protocols
from fsspec.registry import registry
from pydantic import Field

from semdedup_assets.sources.paths import expanded_braces, is_glob, is_http, secret_problem, with_literal_folders
from semdedup_assets.sources.web import CONNECTIONS, opened_url, web_listing
from semdedup_assets.storage.files import (
    FileStat,
    Listing,
    file_stat,
    filesystem,
    is_chained,
    is_folder,
    is_local,
    list_below,
    list_glob,
    open_file,
    protocol_of,
)
from semdedup_assets.storage.walk import SPECIAL, literal

_NEARLY_A_URL = re.compile(r"(s3a?|gcs?|gs|abfss?|az|https?|hf)(?::/|//)(?!/)")
_SHELL_VARIABLE = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?")

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif",
    ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi",
)  # fmt: skip
"""Suffixes of images in lower case, for folders and tars alike, the one that a sample of several images takes first."""

MAX_ITEM_MIB = 256
"""What `max_item_mib` is by default: far above any picture or book, far below a machine's memory."""

ItemMib = Annotated[
    int,
    Field(
        ge=1,
        description="MiB of an item's payload, or of a line, cell or sample, decompressed; a larger one is an invalid item "
        "and is never held in memory.",
    ),
]
"""The setting `max_item_mib` of every source."""

_MESSAGE = 500  # characters
_BUFFER = 1 << 16
# Of a file of which parts are wanted: little is read beyond a part, locally and of a store.
_PART_BUFFER, _PART_BLOCK = 1 << 12, 4 << 20
_PIECE = 1 << 20
# Why a file cannot be opened though it is there and its disk works.
_OWN_REASONS = {
    errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO, errno.ENOTDIR,
}  # fmt: skip
_ON_THE_WEB = " (a web server needs an index page for a folder or glob; braces such as {000..127} need none)"
_LISTED = 1000  # names that are compared with a missing one


class TruncatedFile(ValueError):
    """A file ends, or becomes unreadable, before its last item.

    `read` and `read_items` raise it after the items before, of which both yield the same number; the message names the
    file, what is cut off and how many items came before.

    Attributes:
        passed_over: by reason, how many members of a tar came before that belong to no item.
    """

    passed_over: Mapping[str, int] = MappingProxyType({})


class InvalidValue(ValueError):
    """A key, a column or a payload cannot be used; the message is the reason that is listed beside the item's key."""


class ReadLimitError(RuntimeError):
    """As much of a source was read as may be; no fault of its files, so that nothing here takes it for one."""


class ReadMeter:
    """Counts the bytes that are read of source files, and ends reading at a limit; threads may share it.

    Attributes:
        most: bytes that may be read.
        read: bytes that were read so far.
    """

    def __init__(self, most: int) -> None:
        self.most, self.read = most, 0
        self._lock = threading.Lock()

    @property
    def is_spent(self) -> bool:
        """Whether no more may be read."""
        return self.read >= self.most

    def count(self, size: int) -> None:
        """Count bytes.

        Raises:
            ReadLimitError: these are more than may be read.
        """
        with self._lock:
            self.read += size
            if self.read > self.most:
                message = f"more than {self.most:,} bytes of the source"
                raise ReadLimitError(message)


def shortened(message: str) -> str:
    """A message of at most 500 characters: its head, and how much more there is."""
    if len(message) <= _MESSAGE:
        return message
    head = message[: _MESSAGE - 40]
    return f"{head} … and {len(message) - len(head):,} more characters"


def some(names: Sequence[str], *, most: int = 3) -> str:
    """The first few names, and how many more there are."""
    listed = ", ".join(names[:most])
    return f"{listed} and {len(names) - most:,} more" if len(names) > most else listed


def file_name(path: str) -> str:
    """The last segment of a path or URL."""
    return path.rsplit("/", 1)[-1]


def printable(name: str) -> str:
    """A file's name with the bytes that are not UTF-8 escaped, for tables hold only valid Unicode."""
    return name.encode("utf-8", "backslashreplace").decode()


def fixed_roots(path: str) -> list[str]:
    """The folders below which a path's files may lie, as their file system formats them, the most likely first.

    A file lies below a folder whose name has a wildcard only if that was taken literally.
    """
    _, name = filesystem(path.rstrip("/") or "/")
    parts = [(part, literal(part)) for part in name.split("/")]
    chosen = (place for place, (part, known) in enumerate(parts) if "{" in part or known is None)
    names, fixed = [known or part for part, known in parts], next(chosen, len(parts))
    return [name, *("/".join(names[:end]) for end in range(len(parts) - 1, fixed, -1)), "/".join(names[:fixed])]


def source_files(path: str, suffixes: tuple[str, ...]) -> list[FileStat]:
    """The files of `source_listing`."""
    return source_listing(path, suffixes).files


def source_listing(path: str, suffixes: tuple[str, ...]) -> Listing:
    """The files of a source, and what was passed over.

    Args:
        path: a file, taken whatever its suffix; or a folder or glob, of which those of fitting suffix are taken. What
            has the literal name comes first; then braces stand for several paths, and wildcards match.
        suffixes: lower-case suffixes, each with its dot.

    Returns:
        At least one file; sorted by path.

    Raises:
        FileNotFoundError: nothing matches, or not each of the braces' paths; names the path and the remedy.
        OSError: a folder cannot be listed, or the store does not answer.
        ValueError: the path holds a secret, or its braces stand for too many paths.
    """
    paths = _alternatives(path)
    if len(paths) > 1 and not is_local(paths[0]):
        # Each is a request.
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            listings = list(pool.map(lambda each: _listing(each, suffixes), paths))
    else:
        listings = [_listing(each, suffixes) for each in paths]
    passed_over = Counter[str]()
    for listing in listings:
        passed_over.update(listing.passed_over)
    missing = [each for each, listing in zip(paths, listings, strict=True) if not listing.files]
    if len(missing) == len(paths):
        raise FileNotFoundError(nothing_there(path, suffixes, passed_over))
    if missing:
        message = (
            f"{path}: nothing is there for {len(missing):,} of the {len(paths):,} paths that its braces stand for: "
            f"{some(missing)}; restore them, or narrow the braces"
        )
        raise FileNotFoundError(message)
    files = {file.path: file for listing in listings for file in listing.files}
    return Listing([files[name] for name in sorted(files)], dict(passed_over))


def _alternatives(path: str) -> list[str]:
    """The paths that a source's path stands for: itself where it is there, else those of its braces."""
    if problem := path_problem(path):
        message = f"path: {problem}"
        raise ValueError(message)
    if "{" not in path or file_stat(path) is not None or is_folder(path):
        return [path]
    return expanded_braces(path)


def _listing(path: str, suffixes: tuple[str, ...]) -> Listing:
    if is_http(path):
        return web_listing(path, suffixes)
    path = path.rstrip("/") or "/"
    if (file := file_stat(path)) is not None:
        return Listing([file], {})
    if is_folder(path):
        return list_below(path, suffixes)
    return list_glob(with_literal_folders(path), suffixes) if is_glob(path) else Listing([], {})


def nothing_there(path: str, suffixes: tuple[str, ...], passed_over: Mapping[str, int]) -> str:
    """Why a listing came back empty, and the remedy."""
    what = None if passed_over else _missing_folder(path) or _no_file(path)
    if what is not None:
        # Of a path that is whole, what is missing may be the path itself.
        return shortened(what if what.startswith(f"{path} ") else f"{path}: {what}")
    passed = ", ".join(f"{count:,} × {reason}" for reason, count in Counter(passed_over).most_common(5))
    return shortened(
        f"{path}: no file here ends in {' '.join(suffixes)}{f'; passed over: {passed}' if passed else ''}; set "
        "`path` to a file, to a folder that holds such files, to a glob (`/**` for all below a folder), or to a URL such "
        f"as s3://bucket/folder{_ON_THE_WEB if is_http(path) else ''}"
    )


def path_problem(path: str) -> str | None:
    """What is wrong with a source's path as a setting; None where nothing is.

    A path without files is no problem: a machine that only loads the code location has no data.
    """
    if problem := location_problem(path, setting="path"):
        return problem
    if is_chained(path):
        return f"{path}: fsspec's chained file systems are not read; give the store's own URL, and unpack archives"
    try:
        expanded_braces(path)
    except ValueError as error:
        return str(error)
    return None


def location_problem(path: str, *, setting: str) -> str | None:
    """What is wrong with a path or URL, wherever it is looked at; None where nothing is.

    Args:
        path: of a source, or of the store.
        setting: which holds it, for the remedy.
    """
    if problem := secret_problem(path, setting=setting):
        return problem
    protocol = protocol_of(path)
    known = {*available_protocols(), *registry}
    if protocol not in known:
        near = ", ".join(get_close_matches(protocol.lower(), known, n=3)) or "s3, gs, abfs, https"
        return f"{path}: no file system is called {protocol!r}; near names: {near}"
    problem = _host_problem(path, setting) or _mistyped(path)
    return f"{path}: {problem}" if problem else None


def _host_problem(path: str, setting: str) -> str | None:
    """Why a URL names no server or bucket; None where it does, or the path is no URL of one."""
    if not is_http(path):
        _, separator, rest = path.partition("://")
        is_empty = separator and not rest.strip("/") and protocol_of(path) not in ("file", "local", "memory")
        return f"names no bucket; set `{setting}` to a URL such as s3://bucket/folder" if is_empty else None
    try:
        host = urlsplit(path).hostname
    except ValueError as error:
        return f"is no URL ({error}); set `{setting}` to one such as https://host/folder/"
    return None if host else f"names no host; set `{setting}` to a URL such as https://host/folder/"


def _mistyped(path: str) -> str | None:
    """Why a path would name a folder on this machine that nobody means; None where it is there, or looks like a path."""
    if os.path.lexists(path):
        return None
    if (url := _NEARLY_A_URL.match(path)) is not None:
        return f"names a folder on this machine; is {url[1]}://{path[url.end() :]} meant?"
    if (variable := _SHELL_VARIABLE.search(path)) is not None:
        return f'{variable[0]} is not filled in here; write "{{{{ env.{variable[1]} }}}}" in its place'
    return None


def _no_file(path: str) -> str | None:
    """What a path is that names no file and no folder; None where it has wildcards or braces, or nothing is known."""
    if is_glob(path) or "{" in path:
        return None
    if is_http(path):
        is_there = path.endswith("/") or file_stat(path) is not None
        return None if is_there else f"its server has no such file or page (404); correct `path`{_ON_THE_WEB}"
    name = filesystem(path)[1]
    if not is_local(path) or not os.path.exists(name) or os.path.isdir(name):  # noqa: PTH110, PTH112
        return None
    return f"{SPECIAL}, such as a pipe or a device; set `path` to a file with the same content"


def _missing_folder(path: str) -> str | None:
    """Which part of a local path does not exist, with near names; None where its folder is there, or it is a URL."""
    if protocol_of(path) not in ("file", "local"):
        return None
    whole, *_, folder = (Path(root or "/") for root in fixed_roots(path))
    try:
        if whole.is_symlink() and not whole.exists():
            return f"is a link to {str(whole.readlink())!r}, which is not there; restore that, or set `path` to what is"
        return None if whole.exists() or folder.exists() else _missing(folder.resolve())
    except OSError as error:
        return f"{folder} cannot be listed ({error.strerror}); let the user who runs Dagster read it"


def _missing(folder: Path) -> str:
    parent = next(parent for parent in folder.parents if parent.exists())
    name = folder.relative_to(parent).parts[0]
    names = [entry.name for entry in islice(parent.iterdir(), _LISTED)] if parent.is_dir() else []
    near = ", ".join(get_close_matches(name, names, n=3)) or "none"
    return (
        f"{folder} does not exist: {parent} has no {name!r} (near names: {near}); set `path` to an existing file, "
        f"folder, glob or URL; a relative path starts at the current directory, {Path.cwd()}"
    )


@contextmanager
def opened(path: str, *, seekable: bool = False, meter: ReadMeter | None = None) -> Iterator[IO[bytes]]:
    """Open a source file as a stream of bytes.

    Args:
        path: local path or URL.
        seekable: whether the reader jumps back and forth; a stream of a web server then costs more.
        meter: counts what is read, where only parts of the file are wanted.

    Raises:
        FileNotFoundError, PermissionError, OSError: it cannot be opened, or later be read; has a number (`errno`) and
            names the path and the remedy.
    """
    try:
        if is_local(path):
            stream = _opened_local(filesystem(path)[1], meter)
        else:
            stream = _Remote.opened(path, seekable=seekable, meter=meter)
    except (ImportError, ValueError):
        raise
    except Exception as cause:
        raise _cannot_be_opened(path, cause) from cause
    try:
        with stream:
            yield stream
    except OSError as error:
        # Reading a local file does not say of which.
        if error.strerror and error.filename is None:
            error.filename = path
        raise


def whole_content(path: str, max_mib: int, meter: ReadMeter | None = None) -> bytes:
    """The content of a file that is one item, or a part of one.

    Raises:
        InvalidValue: it is larger than the bound, or it cannot be opened for a reason of its own: its permissions, a
            link that leads nowhere, no file.
        OSError: it vanished since it was listed, or its store fails; names it.
    """
    try:
        with opened(path, meter=meter) as stream:
            return bounded_content(stream, max_mib)
    except OSError as error:
        name = filesystem(path)[1]
        if not is_local(path) or not (error.errno in _OWN_REASONS or os.path.islink(name)):  # noqa: PTH114
            raise
        message = f"cannot be opened ({os.strerror(error.errno or 0)})"
        raise InvalidValue(message) from error


def bounded_content(stream: IO[bytes], max_mib: int) -> bytes:
    """The rest of a stream.

    Raises:
        InvalidValue: it is larger than the bound; not all of it is read.
    """
    most, content = max_mib << 20, bytearray()
    while piece := stream.read(min(_PIECE, most + 1 - len(content))):
        content += piece
        if len(content) > most or (len(content) == len(piece) and _size(stream) > most):
            raise InvalidValue(too_large(max(len(content), _size(stream)), max_mib))
    return bytes(content)


def _size(stream: IO[bytes]) -> int:
    """Bytes of a local file, 0 of another."""
    try:
        return os.fstat(stream.fileno()).st_size
    except OSError:
        return 0


def too_large(size: int, max_mib: int, *, name: str = "") -> str:
    """Why an item is invalid that exceeds the setting `max_item_mib`."""
    return f"{name}{size:,} bytes or more exceed max_item_mib ({max_mib} MiB); raise it, or make the item smaller"


def _opened_local(name: str, meter: ReadMeter | None = None) -> IO[bytes]:
    # Without the flag, a pipe would wait for its writer.
    descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        reason = errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL
        raise OSError(reason, "is a folder" if stat.S_ISDIR(kind) else "is neither file nor folder")
    if meter is None:
        return os.fdopen(descriptor, "rb")
    return cast("IO[bytes]", io.BufferedReader(_Metered(io.FileIO(descriptor), meter), _PART_BUFFER))


def _cannot_be_opened(path: str, cause: Exception) -> OSError:
    kinds: dict[type[OSError], int] = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES}
    kind = next((kind for kind in kinds if isinstance(cause, kind)), OSError)
    error = kind(f"{path}: cannot be opened ({cause}); check that it is there and may be read, then observe the shards")
    # As an argument it would stand before the message.
    error.errno = getattr(cause, "errno", None) or kinds.get(kind, errno.EIO)
    return error


class _Metered(io.RawIOBase):
    """A stream whose bytes are counted as they are read, or as a store sends them: it sends more than is asked for."""

    def __init__(self, stream: "io.FileIO | _Remote", meter: ReadMeter) -> None:
        self._stream, self._meter = stream, meter

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._stream.seekable()

    def fileno(self) -> int:
        return self._stream.fileno()

    def readinto(self, buffer: Any) -> int:
        before = self._sent()
        size = cast("int", self._stream.readinto(buffer))
        after = self._sent()
        self._meter.count(size if before is None or after is None else after - before)
        return size

    def _sent(self) -> int | None:
        return self._stream.sent if isinstance(self._stream, _Remote) else None

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


class _Remote(io.RawIOBase):
    """A stream of a remote file: what fails is an `OSError` with a number, whatever library reports it."""

    def __init__(self, stream: Any, path: str) -> None:
        self._stream, self._path = stream, path

    @classmethod
    def opened(cls, path: str, *, seekable: bool, meter: ReadMeter | None) -> IO[bytes]:
        block = None if meter is None else _PART_BLOCK
        stream = opened_url(path, seekable=seekable) if is_http(path) else open_file(path, block_size=block)
        raw = cls(stream, path)
        return cast("IO[bytes]", io.BufferedReader(raw if meter is None else _Metered(raw, meter), _BUFFER))

    @property
    def sent(self) -> int | None:
        """Bytes that the store has sent so far; None where that is not known."""
        return getattr(getattr(self._stream, "cache", None), "total_requested_bytes", None)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        # A stream of a web server says that it is, and fails.
        return bool(self._stream.seekable()) and getattr(self._stream, "size", 0) is not None

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        with self._faults():
            content = self._stream.read(len(target))
        target[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        with self._faults():
            return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self._stream.tell())

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except Exception as cause:
            if isinstance(cause, OSError) and cause.errno is not None:
                raise
            # s3fs looks at the words of an error that has none, and so fails itself: that error says more.
            first = cause.__context__ if isinstance(cause.__context__, TimeoutError) else cause
            error = OSError(f"{self._path}: cannot be read further ({type(first).__name__}: {first})")
            error.errno = errno.EIO
            raise error from cause
