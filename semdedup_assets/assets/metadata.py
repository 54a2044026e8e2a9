"""Counts, measurements and pictures as Dagster shows them."""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from semdedup_assets.execution.stage import Link, Picture, Rows, Shown
from semdedup_assets.records import visible
from semdedup_assets.storage.files import filesystem, is_local

_LONGEST = 50
_TEXT = 80
_DIGITS = 4
# What may begin an emphasis, a link, a tag or a cell; makes a link of a URL or an address; or begins a list or an underline.
_MARKS = re.compile(r"[\\`*_{}\[\]<>!|~&$#]|:(?=//)|(?<=www)\.|(?<=\S)@|^\s*[-+=:]|(?<=\d)[.)](?=\s|$)", re.MULTILINE)
# What a person looks for comes first, what it cost comes last; between them stands how good it is.
_RESULTS = ("items", "kept", "removed", "kept_fraction", "skipped", "held_out", "records", "orphans", "epsilon", "rule")
_COST = (
    "seconds",
    "items_per_second",
    "seconds_by_phase",
    "bytes",
    "peak_memory_mib",
    "peak_device_memory_mib",
    "device",
    "trainer",
    "made_with",
)
# For checks and for other stages, or shown by another entry.
_HIDDEN = frozenset(
    {
        "id_checksum",
        "page",
        "groups",
        "parts",
        "fingerprints",
        "sampled_shards",
        "column_versions",
        "present",
        "settings",
        "shared_vectors",
        "without_key",
    }
)
_SHOWN_AS = {"sample": "sample_items"}


def as_metadata(details: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of a materialisation: numbers plot over time, lists of records become tables.

    Args:
        details: of a result record.
    """
    shown = {
        _SHOWN_AS.get(name, name): _condensed(name, value)
        for name, value in details.items()
        if not _is_noise(name, value, details)
    }
    metadata = {name: _value(shown[name]) for name in sorted(shown, key=_rank)}
    if "items" in details:
        metadata["dagster/partition_row_count"] = int(details["items"])
    return metadata


def shown_metadata(shown: Mapping[str, Shown]) -> dict[str, Any]:
    """Metadata of what a person sees of a result beside its numbers."""
    return {name: _shown(value) for name, value in shown.items()}


def _shown(value: Shown) -> Any:
    if isinstance(value, Picture):
        # Inline, since Dagster's UI shows no file.
        return dg.MetadataValue.md(f"![{value.title}](data:image/png;base64,{b64encode(value.png).decode()})")
    if isinstance(value, Link):
        # Whole, so that it can be opened from wherever one is.
        local = Path(filesystem(value.path)[1]).absolute() if is_local(value.path) else None
        return dg.MetadataValue.path(local) if local else dg.MetadataValue.url(value.path)
    if isinstance(value, Rows):
        if value.brief:
            return _brief_table(value.rows)
        return dg.MetadataValue.table([dg.TableRecord(_rounded(dict(row))) for row in value.rows[:_LONGEST]])
    return rounded(value) if isinstance(value, float) else value


def _brief_table(rows: Sequence[Mapping[str, str]]) -> dg.MarkdownMetadataValue:
    """Rows as a table for a dialog of 600 pixels: Dagster's own would run out of the page. Of texts, the head."""
    # A text shows more than its key.
    columns = [name for name in rows[0] if name != "key" or "text" not in rows[0]]
    lines = [[_cell(row[name]) for name in columns] for row in rows]
    table = [columns, ["---"] * len(columns), *lines]
    return dg.MetadataValue.md("\n".join(f"| {' | '.join(line)} |" for line in table))


def _cell(text: str) -> str:
    return markdown_text(visible(text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"))


def markdown_text(text: str) -> str:
    """A text that Markdown shows as it is: no link, picture, tag, list or heading in it comes to life.

    Where Dagster shows it as it is written, a path stays one: only what may begin something is escaped.
    """
    return _MARKS.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", text)


def rounded(number: float) -> float:
    """A number with four significant digits, and every digit before its point."""
    return float(round(number)) if abs(number) >= 10**_DIGITS else float(f"{number:.{_DIGITS}g}")


def _is_noise(name: str, value: Any, details: Mapping[str, Any]) -> bool:
    """Whether an entry is empty, or repeats another one."""
    if name in _HIDDEN or value is None or (isinstance(value, list | dict | str) and not value):
        return True
    return name == "requested_k" and bool(value == details.get("k"))


def _condensed(name: str, value: Any) -> Any:
    """What is shown of an entry that is longer than a person wants it."""
    if name == "files" and isinstance(value, list):
        return len(value)
    if name == "objective":
        # Every iteration is in the picture beside it; the last one plots over time.
        return value[-1]
    if name == "cut_files" and isinstance(value, list):
        return [{"file": path, "reason": reason} for path, reason in value]
    if name in ("skipped_examples", "invalid_value_examples"):
        return [{"item": key, "reason": reason} for key, reason in value]
    if name == "trainer" and isinstance(value, dict):
        return _flat(value)
    if name == "largest_cluster" and isinstance(value, dict):
        return {part: number for part, number in value.items() if part != "item"}
    return value


def _flat(value: dict[str, Any]) -> dict[str, Any]:
    """One level of names in place of two; without empty texts."""
    levels = [each if isinstance(each, dict) else {name: each} for name, each in value.items()]
    return {name: each for level in levels for name, each in level.items() if each != ""}


def _rank(name: str) -> int:
    """The rank of an entry; the others keep the order of the record between the first and the last ones."""
    if name in _RESULTS:
        return _RESULTS.index(name) - len(_RESULTS)
    return _COST.index(name) + 1 if name in _COST else 0


def _value(value: Any) -> Any:
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return dg.MetadataValue.table([dg.TableRecord(_rounded(row)) for row in value[:_LONGEST]])
    if isinstance(value, list | dict):
        return _line_or_json(value)
    return value


def _line_or_json(value: list[Any] | dict[str, Any]) -> Any:
    """A flat list or dictionary as one line; what is nested as JSON."""
    parts = list(value.values()) if isinstance(value, dict) else value
    if any(isinstance(part, list | dict) for part in parts):
        return dg.MetadataValue.json(_rounded(value))
    if len(value) > _LONGEST:
        return f"{len(value):,} entries"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_words(part)}" for name, part in value.items())
    return ", ".join(_words(part) for part in value)


def _words(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{rounded(value):,.12g}"


def _rounded(value: Any) -> Any:
    """The same, every number in it rounded."""
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value
