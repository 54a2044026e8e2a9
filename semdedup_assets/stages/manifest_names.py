"""How keys, paths and captions are written, so that the readers of each format read back the same."""

import re
from unicodedata import normalize

from semdedup_assets.records import content_hash

# What ends a line or a cell for some reader, and a quotation mark, which begins a quoted cell for many.
_ESCAPED = re.compile('[\x00-\x1f\x7f-\x9f\\\\"\u2028\u2029\ud800-\udfff]')
_SHORT = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}

# OpenCLIP's context is 77 tokens; the CSV reader of Python takes cells of up to 131,072 characters.
MOST_CAPTION = 100_000
_SPACES = re.compile("[ \t\n\r\u2028\u2029]+")
# OpenCLIP's tokenizers remove it; pandas and spreadsheets take what begins with it for a text.
_PROTECTION = "\u00a0"
_FORMULA = tuple("=+-@＝＋－＠")
# What pandas reads as a missing value or a truth value, in lower case.
_WORDS = frozenset(
    ("", "#n/a", "#n/a n/a", "#na", "-1.#ind", "-1.#qnan", "1.#ind", "1.#qnan", "<na>", "n/a", "na", "none", "null")
) | {"true", "false"}

_MOST_KEY = 200  # bytes: with a suffix, a file name of any file system
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def escaped(name: str) -> str:
    r"""A path or key as a cell of a tab-separated table, which `\t`, `\n`, `\r`, `\\` and `\xHH` bring back exactly.

    Args:
        name: any string; bytes that are not UTF-8 stand in it as Python's `surrogateescape` has them.

    Returns:
        A cell without control characters, line breaks and quotation marks; `\xHH` is a byte of its UTF-8.
    """
    return _ESCAPED.sub(_escape, name)


def _escape(found: "re.Match[str]") -> str:
    character = found[0]
    errors = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    return _SHORT.get(character) or "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", errors))


def caption_cell(caption: str | None) -> str:
    """A caption as `open_clip.csv` holds it: the same tokens to OpenCLIP, and a text to pandas and spreadsheets.

    Spaces, tabs and line breaks in sequence become one space, as OpenCLIP's tokenizers make them; they remove NUL; and
    what follows the first 100,000 characters is cut. What would be read as a number, a truth value, a missing value or a formula gets a no-break space
    in front, which these tokenizers remove.
    """
    text = _SPACES.sub(" ", (caption or "").replace("\0", "")).strip(" ")[:MOST_CAPTION]
    return f"{_PROTECTION}{text}" if _is_more_than_text(text) else text


def _is_more_than_text(text: str) -> bool:
    if text.startswith(_FORMULA) or text.lower() in _WORDS:
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


class SampleKeys:
    """The keys of a tar's samples: the source's own, changed where a reader would not read them as distinct samples.

    Attributes:
        renamed: how many were changed, beyond dots in their last part.
    """

    def __init__(self) -> None:
        self.renamed = 0
        self._used = set[int]()

    def add(self, name: str, row: int) -> str:
        """The key of the next sample.

        Args:
            name: the item's key.
            row: of the item in its shard.

        Returns:
            A key that no earlier sample has, whether or not case counts: at most 200 bytes before `-<row>`, which is
            appended where it is needed.
        """
        key = _sample_key(name)
        while (mark := content_hash(normalize("NFC", key).casefold())) in self._used:
            key = f"{key}-{row}"
        self._used.add(mark)
        # A folder's images have a suffix in their keys, whose dot no key of a sample can have.
        head, slash, last = name.rpartition("/")
        self.renamed += key != f"{head}{slash}{last.replace('.', '_')}"
        return key


def _sample_key(name: str) -> str:
    """A name as the path of a file below the current folder, without a dot in its last part, which would end the key."""
    end = name.encode("utf-8", "replace")[-_MOST_KEY:].decode("utf-8", "ignore")
    parts = [part for part in _CONTROL.sub("_", end).split("/") if part not in ("", ".", "..")]
    if not parts:
        return "item"
    parts[-1] = parts[-1].replace(".", "_")
    # Readers take a first part such as `__name__` for metadata.
    parts[0] = re.sub("^__+", "_", parts[0])
    return "/".join(parts)


def sample_suffixes(suffixes: list[str]) -> list[str]:
    """The suffixes of a sample's files, without what a reader would not read as a field of its own."""
    found: list[str] = []
    for suffix in suffixes:
        plain = re.sub("^__+", "_", _CONTROL.sub("_", suffix))
        while plain in found:
            plain += "_"
        found.append(plain)
    return found
