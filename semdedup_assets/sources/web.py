"""Files of web servers: index pages, servers that report no size or cannot send a part of a file."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, cast

from semdedup_assets.sources.paths import is_glob, with_literal_folders
from semdedup_assets.storage.files import Listing, file_stat, filesystem, list_below, list_glob

CONNECTIONS = 16
_DEAD = "links of the page that lead nowhere"
_PAUSE = 300  # seconds without a byte after which a connection counts as lost
_CHUNK = 1 << 20


def web_listing(url: str, suffixes: tuple[str, ...]) -> Listing:
    """What a URL of a web server stands for: a file, or the files that its index page links to.

    Args:
        url: of a file; of an index page, of which all below is taken; or a glob over index pages.
        suffixes: lower-case suffixes, one of which a linked file must have.

    Raises:
        OSError: the server does not answer as it should.
    """
    if is_glob(url) and ("*" in url or not _is_there(url)):
        return _asked(list_glob(with_literal_folders(url), suffixes))
    file = None if url.endswith("/") else file_stat(url)
    if file is not None and (url.lower().endswith(suffixes) or not _is_page(url)):
        return Listing([file], {})
    return _asked(list_below(url, suffixes))


def _is_there(url: str) -> bool:
    try:
        return file_stat(url) is not None
    except OSError:
        # A server may refuse what it takes for no name.
        return False


def _is_page(url: str) -> bool:
    fs, name = filesystem(url)
    return bool(fs.info(name).get("mimetype") == "text/html")


def _asked(listing: Listing) -> Listing:
    """A page's links with the sizes and stamps that the server reports for each."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        found = list(pool.map(lambda file: file_stat(file.path), listing.files))
    dead = found.count(None)
    return Listing([file for file in found if file is not None], listing.passed_over | ({_DEAD: dead} if dead else {}))


def opened_url(url: str, *, seekable: bool) -> Any:
    """A file of a web server as a stream of bytes.

    Args:
        url: of the file.
        seekable: whether the reader jumps; where the server cannot send a part, the file is copied to the disk first.
    """
    fs, name = filesystem(url)
    if seekable:
        stream = fs.open(name, "rb")
        if _sends_parts(stream):
            return stream
        stream.close()
    # A request for each block fails where the server cannot send a part; a single one takes as long as it takes. Any size
    # keeps fsspec from asking for it, with that timeout.
    streamed = fs.open(name, "rb", block_size=0, size=1, timeout=_without_total())
    if not seekable:
        return streamed
    copy = cast("IO[bytes]", tempfile.TemporaryFile())  # noqa: SIM115  # the caller closes it
    with streamed:
        while content := streamed.read(_CHUNK):
            copy.write(content)
    copy.seek(0)
    return copy


def _sends_parts(stream: Any) -> bool:
    size = getattr(stream, "size", None)
    if not size or not stream.seekable():
        return False
    try:
        stream.seek(size - 1)
        sent = len(stream.read(1)) == 1
        stream.seek(0)
    except ValueError:
        return False
    return sent


def _without_total() -> Any:
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=_PAUSE, sock_read=_PAUSE)
