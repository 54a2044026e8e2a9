"""`metadata.jsonl` as Hugging Face's `imagefolder` has it: a line for each image, named by `file_name`."""

import json
import posixpath
from dataclasses import dataclass
from functools import lru_cache

from semdedup_assets.sources.columns import first_caption
from semdedup_assets.sources.foreign import HEAD, foreign
from semdedup_assets.sources.reading import opened
from semdedup_assets.storage.files import FileStat

METADATA = "metadata.jsonl"
_MOST = 1 << 30


@dataclass(frozen=True, slots=True)
class ImageRows:
    """The lines of a `metadata.jsonl`.

    Attributes:
        lines: by path of the image below its folder.
        invalid: how many lines are no JSON object with a `file_name`.
        foreign: what the file is instead; None where nothing shows that it is something else.
    """

    lines: dict[str, bytes]
    invalid: int
    foreign: str | None = None


@lru_cache(maxsize=4)
def image_rows(file: FileStat) -> ImageRows:
    """Read a `metadata.jsonl`; once for each state of it.

    Raises:
        ValueError: it is larger than 1 GiB, which would have to be held in memory; names it.
        OSError: it cannot be opened; names it.
    """
    if file.size > _MOST:
        message = (
            f"{file.path}: {file.size:,} bytes exceed 1 GiB; split it over folders, or use <name>.json beside each"
        )
        raise ValueError(message)
    lines, invalid = dict[str, bytes](), 0
    with opened(file.path) as stream:
        # The size bounds each line too.
        content = stream.read(_MOST)
        if what := foreign(content[:HEAD]):
            return ImageRows({}, 0, f"{METADATA}: {what}")
        for line in content.removeprefix(b"\xef\xbb\xbf").splitlines():
            name = _image(line) if line.strip() else ""
            if name:
                lines[name] = line
            invalid += name is None
    return ImageRows(lines, invalid)


def _image(line: bytes) -> str | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    name = found.get("file_name") if isinstance(found, dict) else None
    return posixpath.normpath(name) if isinstance(name, str) and name else None


def fields_of(line: bytes) -> dict[str, object]:
    """The fields of an image's line; `text` is its caption where its `caption` is missing, null or blank."""
    found: dict[str, object] = json.loads(line)
    del found["file_name"]
    return {**found, "caption": first_caption(found.get("caption"), found["text"])} if "text" in found else found
