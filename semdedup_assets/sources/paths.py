"""What a source's path may say: globs, braces; and what it must not: secrets."""

import glob
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from urllib.parse import parse_qsl, unquote, urlsplit

from semdedup_assets.storage.files import filesystem, is_folder, protocol_of
from semdedup_assets.storage.walk import literal

_MAGIC = re.compile(r"[*?[]")
_MAGIC_OF_URL = re.compile(r"[*[]")  # after `?` comes a query
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?|([a-zA-Z])\.\.([a-zA-Z])")
_MOST_NAMES = 300_000

# Names of query parameters that carry a credential or a signature: of AWS, Google, Azure, Alibaba, CDNs and usual APIs.
_SECRET = re.compile(
    r"(^|[-_.])(sig|signature|sign|token|secret|password|passwd|pwd|auth|authorization|credentials?|jwt|hmac|hdn\w*|"
    r"api-?_?key|access-?_?key\w*)($|[-_.])|^x-(amz|goog|oss|ms|cos)-|accesskeyid|accessid|^key-pair-id$|^policy$|^key$|"
    r"token$|signature$",
    re.IGNORECASE,
)
_PORT = re.compile(r"(\[[0-9a-f:.]*\]|[^:]*)(:\d+)?", re.IGNORECASE)
_WITHOUT_PORT = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "cos")


def is_http(path: str) -> bool:
    """Whether a path is a URL of a web server."""
    return path.lower().startswith(("http://", "https://"))


def unquoted(url: str) -> str:
    """A URL, or a part of its path, without its escapes: `a b.png` of `a%20b.png`."""
    return unquote(url, errors="surrogateescape")


def is_glob(path: str) -> bool:
    """Whether a path or name has a wildcard."""
    return (_MAGIC_OF_URL if is_http(path) else _MAGIC).search(path) is not None


def escaped(path: str) -> str:
    """A glob that matches one path."""
    protocol, separator, name = path.rpartition("://")
    return f"{protocol}{separator}{glob.escape(name)}"


def takes_all_below(path: str, folder: str) -> bool:
    """Whether a source's path takes whatever lies in a folder: below a folder all is taken, but for hidden names.

    Args:
        path: in the settings; one with wildcards takes all only below `**`.
        folder: local path or URL; no store is asked.
    """
    root = path.partition("/**")[0]
    if is_glob(root) or "{" in root or protocol_of(root) != protocol_of(folder):
        return False
    found, above = (_comparable(each) for each in (folder, root))
    hidden = any(part.startswith((".", "_")) for part in found[len(above) :].split("/"))
    return f"{found}/".startswith(f"{above}/") and not hidden


def _comparable(path: str) -> str:
    return (filesystem(path)[1] if protocol_of(path) in ("file", "local") else path).rstrip("/")


def with_literal_folders(path: str) -> str:
    """A glob whose first folders are escaped, as far as they are there under the names that they have in it.

    Each folder with a wildcard in its name is looked up, until one is not there.
    """
    head, separator, rest = path.rpartition("://")
    parts = rest.split("/")
    for place, part in enumerate(parts[:-1]):
        if literal(part) is None:
            folder = "/".join([*(literal(part) or part for part in parts[:place]), part])
            # Some web servers answer to every name.
            if (is_http(path) and "*" in part) or not is_folder(f"{head}{separator}{folder}"):
                break
            parts[place] = escaped(part)
    return f"{head}{separator}{'/'.join(parts)}"


def expanded_braces(path: str) -> list[str]:
    """The paths that `{a,b}` and `{00000..00127}` in a path stand for, each once, in the order of the braces.

    Braces may be nested, and a range may have a step (`{0..100..10}`); what is neither a list nor a range stays.

    Raises:
        ValueError: they stand for more than 300,000.
    """
    names = list(dict.fromkeys(islice(_expanded(path), _MOST_NAMES + 1)))
    if len(names) > _MOST_NAMES:
        message = f"{path}: its braces stand for more than {_MOST_NAMES:,} names; use a glob"
        raise ValueError(message)
    return names


def _expanded(text: str) -> Iterator[str]:
    for opening in re.finditer(r"\{", text):
        start, end = opening.start(), _closing(text, opening.start())
        choices = _choices(text[start + 1 : end]) if end else None
        if choices is not None:
            for choice in choices:
                for chosen in _expanded(choice):
                    for rest in _expanded(text[end + 1 :]):
                        yield f"{text[:start]}{chosen}{rest}"
            return
    yield text


def _closing(text: str, start: int) -> int:
    """Where the brace closes that opens at `start`; 0 where it does not."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return 0


def _choices(body: str) -> Sequence[str] | Iterator[str] | None:
    """What a brace offers; None where it is no list and no range."""
    if found := _RANGE.fullmatch(body):
        return _range(*found.groups())
    choices, depth = [""], 0
    for character in body:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            choices.append("")
        else:
            choices[-1] += character
    return choices if len(choices) > 1 else None


def _range(first: str | None, last: str | None, step: str | None, letter: str | None, end: str | None) -> Iterator[str]:
    if letter is not None and end is not None:
        away = 1 if letter <= end else -1
        return (chr(code) for code in range(ord(letter), ord(end) + away, away))
    low, high = str(first), str(last)
    padded = any(number.lstrip("-").startswith("0") and len(number.lstrip("-")) > 1 for number in (low, high))
    width = max(len(low), len(high)) if padded else 0
    away = 1 if int(low) <= int(high) else -1
    numbers = range(int(low), int(high) + away, away * max(1, abs(int(step or 1))))
    return (f"{number:0{width}d}" for number in numbers)


def secret_problem(path: str, *, setting: str = "path") -> str | None:
    """Why a path would give away a secret, without naming it; None where it holds none.

    A path becomes part of the shard index, of records, manifests and logs.

    Args:
        path: local path or URL.
        setting: which holds it, for the remedy.
    """
    for part in path.split("::"):
        if "://" not in part:
            continue
        if _has_password(part):
            return (
                f"{without_secrets(part)}: holds a user name or password, which would be written into every result; "
                "give it by the environment (such as AWS_ACCESS_KEY_ID) or by fsspec's configuration (FSSPEC_S3_KEY, or "
                f"~/.config/fsspec/conf.json), and remove it from `{setting}`"
            )
        names = sorted({name for name, _ in parse_qsl(_query(part), keep_blank_values=True) if _SECRET.search(name)})
        if names:
            return (
                f"{without_secrets(part)}: is a signed URL ({', '.join(names)}): its signature would be written into "
                "every result, and expires; use the store's own URL (s3://, gs://, abfs://) with credentials from the "
                'environment, or send a header by fsspec\'s configuration (FSSPEC_HTTPS=\'{"client_kwargs": {"headers": …}}\')'
            )
    return None


def without_secrets(url: str) -> str:
    """A URL without user, password and query, for messages."""
    protocol, separator, rest = url.partition("://")
    rest = rest.rpartition("@")[2] if _has_password(url) else rest
    return f"{protocol}{separator}{rest.partition('?')[0]}"


def _query(url: str) -> str:
    try:
        return urlsplit(url).query
    except ValueError:
        return url.partition("?")[2]


def _has_password(url: str) -> bool:
    """Whether `user:password@` stands before the host, or on a web server any `user@`."""
    rest = url.partition("://")[2].partition("?")[0]
    user, at, _ = rest.partition("@")
    if not at:
        return False
    if is_http(url) and "/" not in user:
        return True
    # A password may hold a slash; what follows a port before a path with an `@` is none.
    host, slash, _ = user.partition("/")
    is_port = slash and _PORT.fullmatch(host) is not None and url.partition("://")[0] not in _WITHOUT_PORT
    return "%3a" in host.lower() or (":" in host and not is_port)
