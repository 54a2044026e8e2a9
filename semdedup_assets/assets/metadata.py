"""Counts and measures as Dagster shows them."""

from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import dagster as dg

_LONGEST = 50
_DIGITS = 4
# What a person looks for comes first, what it cost comes last; between them stands how good it is.
_RESULTS = ("items", "kept", "removed", "kept_fraction", "skipped", "records", "removed_by_chain", "epsilon", "rule")
_COST = (
    "seconds",
    "items_per_second",
    "seconds_by_phase",
    "bytes",
    "peak_memory_mib",
    "peak_device_memory_mib",
    "device",
    "recipe",
)
# For checks and for other stages, or told by another entry.
_HIDDEN = frozenset({"version", "id_checksum", "page", "panels", "parts", "sampled_shards"})
_SHOWN_AS = {"orphans": "removed_by_chain", "sample": "sample_items"}


def as_metadata(details: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of a materialisation: numbers plot over time, lists of records become tables.

    Args:
        details: of a recipe.
    """
    shown = {
        _SHOWN_AS.get(name, name): _condensed(name, value)
        for name, value in details.items()
        if not _is_noise(name, value, details)
    }
    metadata = {name: _value(shown[name]) for name in sorted(shown, key=_place)}
    if "items" in details:
        metadata["dagster/partition_row_count"] = int(details["items"])
    return metadata


def picture(png: bytes, *, title: str) -> dg.MarkdownMetadataValue:
    """A picture as Dagster's UI shows it: inline, since it shows no file."""
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{b64encode(png).decode()})")


def rounded(number: float) -> float:
    """A number with four significant digits, and every digit before its point."""
    return float(round(number)) if abs(number) >= 10**_DIGITS else float(f"{number:.{_DIGITS}g}")


def _is_noise(name: str, value: Any, details: Mapping[str, Any]) -> bool:
    """Whether an entry says nothing, or what another one says."""
    if name in _HIDDEN or value is None or (isinstance(value, list | dict | str) and not value):
        return True
    if name == "k_asked":
        return bool(value == details.get("k"))
    return name == f"kept_by_{details.get('rule')}"


def _condensed(name: str, value: Any) -> Any:
    """What is shown of an entry that is longer than a person wants it."""
    if name == "files" and isinstance(value, list):
        return len(value)
    if name == "objective":
        # Every iteration is in the picture beside it; the last one plots over time.
        return value[-1]
    if name == "skipped_examples":
        return [{"item": key, "reason": reason} for key, reason in value]
    if name == "largest_cluster" and isinstance(value, dict):
        return {part: number for part, number in value.items() if part != "item"}
    return value


def _place(name: str) -> int:
    """Where an entry stands; the others keep the order of the recipe between the first and the last ones."""
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
