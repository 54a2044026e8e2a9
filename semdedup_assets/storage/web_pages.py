"""The files that the index pages of a web server link to."""

import errno
import re
from html import unescape
from typing import Any
from urllib.parse import quote, unquote

import fsspec
from fsspec.utils import glob_translate

_KEPT = "%/:?&=#[]@!$'()*+,;~"
_ENTITY = re.compile(r"&#?\w+;")


def page_url(url: str) -> str:
    """A URL as index pages link to it: what must be escaped is, and `.` and `..` are resolved."""
    path, mark, query = quote(url.partition("#")[0], safe=_KEPT).partition("?")
    protocol, separator, rest = path.partition("://")
    host, *segments = rest.split("/")
    resolved = list[str]()
    for segment in segments:
        if segment == "..":
            del resolved[-1:]
        elif segment != ".":
            resolved.append(segment)
    return f"{protocol}{separator}{'/'.join([host, *resolved])}{mark}{query}"


def linked_below(fs: fsspec.AbstractFileSystem, url: str, *, depth: int | None = None) -> dict[str, dict[str, Any]]:
    """The files below a URL that its index page links to, and the pages below it; each page is asked for once.

    Args:
        fs: the web server.
        url: of the page.
        depth: how many pages lie above a file at most; None for any number.

    Returns:
        fsspec's description of each by URL.

    Raises:
        OSError: a page cannot be read for another cause than that it is not there.
    """
    root = page_url(url.rstrip("/"))
    found, seen, waiting = dict[str, dict[str, Any]](), {root}, [(page_url(url), 1)]
    while waiting:
        page, level = waiting.pop()
        for link in _links(fs, page):
            name = page_url(_ENTITY.sub(lambda entity: unescape(entity[0]), link))
            if not name.startswith(f"{root}/") or name.rstrip("/") in seen:
                continue
            if not name.endswith("/"):
                found[name] = {"name": name, "size": None, "type": "file"}
            elif depth is None or level < depth:
                seen.add(name.rstrip("/"))
                waiting.append((name, level + 1))
    return found


def linked(fs: fsspec.AbstractFileSystem, pattern: str, *, root: str) -> dict[str, dict[str, Any]]:
    """The files that a glob matches over index pages; `?` is no wildcard in a URL.

    Args:
        fs: the web server.
        pattern: URL with wildcards.
        root: URL of the page below which everything lies that it matches.

    Raises:
        OSError: a page cannot be read for another cause than that it is not there.
    """
    depth = None if "**" in pattern else pattern.count("/") - root.rstrip("/").count("/")
    # The segments of the glob that are one name are escaped as links are, or not.
    matches = re.compile(glob_translate(pattern)).match
    found = linked_below(fs, root, depth=depth)
    return {name: info for name, info in found.items() if matches(name) or matches(unquote(name))}


def _links(fs: fsspec.AbstractFileSystem, page: str) -> list[str]:
    try:
        return [str(link) for link in fs.ls(page, detail=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except Exception as cause:
        # aiohttp's own errors are of many kinds.
        message = f"{page}: its server does not answer as it should ({cause})"
        raise OSError(errno.EIO, message) from cause
