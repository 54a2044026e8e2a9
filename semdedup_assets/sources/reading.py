"""Finding and opening the files of a source."""

import glob
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import IO, Annotated

from fsspec import available_protocols
from fsspec.registry import registry
from fsspec.utils import get_protocol
from pydantic import Field

from semdedup_assets.storage.files import FileStat, filesystem, list_files, open_file

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif",
    ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi",
)  # fmt: skip
"""Suffixes of images in lower case, for folders and tars alike, the one that a sample of several images takes first."""

MAX_ITEM_MIB = 256
ItemBytes = Annotated[
    int,
    Field(
        gt=0,
        description="Most mebibytes of one item: what is larger is invalid, and is never read into memory.",
    ),
]
"""The setting `max_item_mib` of every source; its default is `MAX_ITEM_MIB`."""

_MESSAGE = 500  # characters

_MAGIC = re.compile(r"[*?[]")
_LISTED = 1000  # names that are compared with a missing one


class TruncatedFile(ValueError):
    """A file ends, or becomes unreadable, before its last item.

    `read` and `read_items` raise it after the items before, of which both yield the same number; the message names the
    file, what is cut off and how many items came before.
    """


class InvalidValue(ValueError):
    """A key, a column or a payload cannot be used; the message is the reason that is listed beside the item's key."""


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


def is_glob(name: str) -> bool:
    """Whether a name has a wildcard."""
    return _MAGIC.search(name) is not None


def patterns(path: str) -> list[str]:
    """The globs a source's path may stand for, the most likely first: itself, its literal name, all below it."""
    path = path.rstrip("/") or "/"
    protocol, separator, name = path.rpartition("://")
    literal = f"{protocol}{separator}{glob.escape(name)}"
    return list(dict.fromkeys([path, literal, f"{literal}/**"]))


def fixed_roots(path: str) -> list[str]:
    """The folders below which a path's files may lie, as their file system formats them, the most likely first."""
    _, name = filesystem(path.rstrip("/") or "/")
    parts = name.split("/")
    fixed = next((i for i, part in enumerate(parts) if is_glob(part)), len(parts))
    return [name, "/".join(parts[:fixed])]


def source_files(path: str, suffixes: tuple[str, ...]) -> list[FileStat]:
    """The files of a source, by one listing of its path.

    Args:
        path: a file, taken whatever its suffix; or a folder or glob, of which those of fitting suffix are taken.
        suffixes: lower-case suffixes, each with its dot.

    Returns:
        At least one file; sorted by path.

    Raises:
        FileNotFoundError: nothing matches; names the path and what would.
    """
    for pattern in patterns(path):
        found = list_files(pattern)
        if is_glob(file_name(pattern)):
            found = [file for file in found if file.path.lower().endswith(suffixes)]
        if found:
            return found
    raise FileNotFoundError(nothing_there(path, suffixes))


def nothing_there(path: str, suffixes: tuple[str, ...]) -> str:
    """Why a listing came back empty, and the remedy."""
    missing = _missing_folder(path)
    if missing is not None:
        return f"{path}: {missing}"
    return (
        f"{path}: no file here ends in {' '.join(suffixes)}; set `path` to a file, to a folder that holds "
        "such files, to a glob (`/**` for all below a folder), or to a URL such as s3://bucket/folder"
    )


def path_problem(path: str) -> str | None:
    """What is wrong with a source's path as a setting; None where nothing is.

    A path without files is no problem: a machine that only loads the code location has no data.
    """
    protocol = get_protocol(path)
    known = {*available_protocols(), *registry}
    if protocol in known:
        return None
    near = ", ".join(get_close_matches(protocol, known, n=3)) or "s3, gs, abfs, https"
    return f"{path}: no file system is called {protocol!r}; near names: {near}"


def _missing_folder(path: str) -> str | None:
    """Which part of a local path does not exist, with near names; None where its folder is there, or it is a URL."""
    if get_protocol(path) not in ("file", "local"):
        return None
    whole, folder = (Path(root or "/") for root in fixed_roots(path))
    try:
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
def opened(path: str) -> Iterator[IO[bytes]]:
    """Open a source file as a stream of bytes.

    Raises:
        FileNotFoundError, PermissionError, OSError: it cannot be opened; names the path and the remedy.
    """
    try:
        stream = open_file(path)
    except OSError as error:
        kind = type(error) if type(error) in (FileNotFoundError, PermissionError) else OSError
        message = f"{path}: cannot be opened ({error}); check that it is there and may be read, then observe the shards"
        raise kind(message) from error
    with stream:
        yield stream
