"""Typed values from untyped rows: the one place where a column is looked up and converted."""

import json as json_format
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from semdedup_assets.records import ColumnType, ColumnValue
from semdedup_assets.sources.reading import BadItem

Columns = Annotated[
    dict[str, ColumnType],
    Field(
        description="Columns carried along into the manifests, by name and type (`string`, `int`, `float` or `bool`); "
        "a dotted name reaches into nested fields. A value that does not fit its type makes its item a broken one.",
    ),
]


def _without_text(columns: dict[str, ColumnType]) -> dict[str, ColumnType]:
    if "text" in columns:
        message = "column 'text' is carried along by itself, as the item's text: leave it out of `columns`"
        raise ValueError(message)
    return columns


TextColumns = Annotated[Columns, AfterValidator(_without_text)]

_NAMES: dict[ColumnType, str] = {"string": "a string", "int": "an int", "float": "a float", "bool": "a bool"}


def lookup(row: Mapping[str, object], name: str) -> object:
    """The value under a name, or under a dotted path into nested objects; None where there is none."""
    if name in row:
        return row[name]
    value: object = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def column_value(value: object, *, name: str, kind: ColumnType) -> ColumnValue:
    """A value as its column's type.

    Whole floats fit `int` and ints fit `float`, for tables that had gaps store the one as the other.

    Raises:
        BadItem: it does not fit; names column, value and type.
    """
    fitted = None if value is None else _FIT[kind](value)
    if value is not None and fitted is None:
        message = f"column {name!r}: {reprlib.repr(value)} is not {_NAMES[kind]}"
        raise BadItem(message)
    return fitted


def _as_string(value: object) -> str | None:
    return value if isinstance(value, str) and _is_unicode(value) else None


def _as_bool(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _as_int(value: object) -> int | None:
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(whole, bool) or not isinstance(whole, int):
        return None
    return whole if -(2**63) <= whole < 2**63 else None


def _as_float(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


_FIT: dict[ColumnType, Callable[[object], ColumnValue]] = {
    "string": _as_string,
    "int": _as_int,
    "float": _as_float,
    "bool": _as_bool,
}


def _is_unicode(text: str) -> bool:
    """Whether a string can be encoded: JSON's escapes can spell half a surrogate pair, which cannot."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def carried_columns(
    row: Mapping[str, object], *, declared: Mapping[str, ColumnType], automatic: Sequence[str]
) -> dict[str, ColumnValue]:
    """The columns of one item.

    Args:
        row: the item's fields as its file has them.
        declared: columns that the settings name; their values must fit.
        automatic: string columns that nobody asked for; None where the row has no string there.

    Raises:
        BadItem: a declared column's value does not fit its type.
    """
    columns: dict[str, ColumnValue] = {name: _as_string(lookup(row, name)) for name in automatic}
    columns.update({name: column_value(lookup(row, name), name=name, kind=kind) for name, kind in declared.items()})
    return columns


def item_text(value: object) -> str:
    """The text of an item.

    Raises:
        BadItem: there is none, or it is empty, blank, or not a string of valid Unicode.
    """
    if isinstance(value, bytes):
        value = decoded(value, name="text")
    if value is None:
        message = "null text"
        raise BadItem(message)
    text = _as_string(value)
    if text is None:
        message = f"text is not a string of valid Unicode: {reprlib.repr(value)}"
        raise BadItem(message)
    if not text.strip():
        message = "empty text"
        raise BadItem(message)
    return text


def item_key(value: object, *, name: str) -> str:
    """The key of an item: a string, or a whole number as its digits.

    Raises:
        BadItem: there is none, or it is neither.
    """
    key = str(value) if isinstance(value, int) and not isinstance(value, bool) else _as_string(value)
    if key is None:
        message = f"key {name!r}: {reprlib.repr(value)} is neither a string nor a whole number"
        raise BadItem(message)
    return key


def item_image(content: object) -> bytes:
    """The encoded image of an item.

    Raises:
        BadItem: there is none, or it has no bytes.
    """
    if not isinstance(content, bytes):
        message = "null image" if content is None else f"image is not bytes: {reprlib.repr(content)}"
        raise BadItem(message)
    if not content:
        message = "empty image: 0 bytes"
        raise BadItem(message)
    return content


def decoded(content: bytes, *, name: str) -> str:
    """UTF-8 as a string.

    Raises:
        BadItem: it is not UTF-8; names what and where.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"{name}: not UTF-8 at byte {error.start}"
        raise BadItem(message) from error


def json_object(content: bytes, *, name: str) -> dict[str, object]:
    """A JSON object.

    Raises:
        BadItem: it is not JSON, or not an object; names what and where.
    """
    try:
        document = json_format.loads(content)
    except json_format.JSONDecodeError as error:
        message = f"{name}: not JSON ({error.msg} at character {error.pos})"
        raise BadItem(message) from error
    except (ValueError, RecursionError) as error:
        message = f"{name}: not JSON that can be read ({error})"
        raise BadItem(message) from error
    if not isinstance(document, dict):
        message = f"{name}: not a JSON object: {reprlib.repr(document)}"
        raise BadItem(message)
    return document


def image_fields(*, txt: bytes | None, json: bytes | None) -> dict[str, object]:
    """The fields of the JSON that belongs to an image; a text file's caption goes before the JSON's.

    Raises:
        BadItem: the text is not UTF-8, or the JSON not an object.
    """
    fields = {} if json is None else json_object(json, name="json")
    return fields if txt is None else {**fields, "caption": decoded(txt, name="txt").rstrip("\r\n")}
