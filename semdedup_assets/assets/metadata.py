"""Counts and measures as Dagster shows them."""

from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import dagster as dg

_LONGEST = 50


def as_metadata(details: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of a materialisation: numbers plot over time, lists of records become tables."""
    metadata: dict[str, Any] = {}
    for name, value in details.items():
        if name == "version" or value is None:
            continue
        metadata[name] = _value(value)
    if "items" in details:
        metadata["dagster/partition_row_count"] = int(details["items"])
    return metadata


def picture(png: bytes, *, title: str) -> dg.MarkdownMetadataValue:
    """A picture as Dagster's UI shows it: inline, since it shows no file."""
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{b64encode(png).decode()})")


def _value(value: Any) -> Any:
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return dg.MetadataValue.table([dg.TableRecord(row) for row in value[:_LONGEST]])
    if isinstance(value, list | dict) and len(value) > _LONGEST:
        return f"{len(value):,} entries"
    return dg.MetadataValue.json(value)
