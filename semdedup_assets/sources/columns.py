"""Typed values from untyped rows: the one module that looks up and converts keys, columns and payloads."""

import json as json_format
import reprlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, Field

from semdedup_assets.records import ColumnType, ColumnValue, Invalid, Item, is_unicode
from semdedup_assets.sources.foreign import HEAD, foreign
from semdedup_assets.sources.reading import InvalidValue, TruncatedFile

TEXT_IS_CARRIED = "column 'text' always holds the item's text; remove it from `columns`"

Columns = Annotated[
    dict[str, ColumnType],
    Field(
        description="Columns carried along into the manifests, by name and type (`string`, `int`, `uint` for unsigned "
        "64-bit numbers such as hashes, `float` or `bool`); a dotted name reaches into nested fields. A value that does "
        "not fit its type becomes null and is listed; NaN is null.",
    ),
]


def _without_text(columns: dict[str, ColumnType]) -> dict[str, ColumnType]:
    if "text" in columns:
        message = TEXT_IS_CARRIED
        raise ValueError(message)
    return columns


TextColumns = Annotated[Columns, AfterValidator(_without_text)]

_NAMES: dict[ColumnType, str] = {
    "string": "a string",
    "int": "an int",
    "uint": "a uint",
    "float": "a float",
    "bool": "a bool",
}
_EXACT = 1 << 53  # Floats represent every integer up to here, and beyond only some.
_NAMES_LISTED = 10_000


class NotUtf8(bytes):
    """The bytes of a string that is not UTF-8, where the file says that it is one."""

    __slots__ = ()


def lookup(row: Mapping[str, object], name: str) -> object:
    """The value under a name, or under a dotted path into nested objects; None where there is none."""
    if name in row:
        return row[name]
    value: object = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def column_value(value: object, *, name: str, kind: ColumnType) -> ColumnValue:
    """A value as its column's type; NaN is a gap, and reads as None.

    Whole floats fit `int` and ints fit `float`, for tables with gaps store the one as the other; but only where no
    digit can be lost.

    Raises:
        InvalidValue: it does not fit, or its file is damaged; names column, value and type.
    """
    _check_readable(value, name=f"column {name!r}: ")
    if value is None or (isinstance(value, float) and value != value):
        return None
    fitted = _FIT[kind](value)
    if fitted is None:
        message = f"column {name!r}: {reprlib.repr(value)} is not {_NAMES[kind]}{_remedy(value, kind)}"
        raise InvalidValue(message)
    return fitted


def _remedy(value: object, kind: ColumnType) -> str:
    """What to declare or store instead, where a number does not fit only because of its size or how it is stored."""
    if kind in ("string", "bool"):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) > _EXACT:
        return "; floats are not exact beyond 2**53, so store the column as integers"
    whole = _whole(value)
    if whole is None:
        return ""
    fitting: tuple[ColumnType, ...] = ("int", "uint")
    return next((f"; declare the column as `{each}`" for each in fitting if _FIT[each](whole) is not None), "")


def _as_string(value: object) -> str | None:
    return value if isinstance(value, str) and is_unicode(value) else None


def _as_bool(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _whole(value: object) -> int | None:
    """A whole number, however it is stored; None for others, and for floats so large that digits may be lost."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) <= _EXACT else None
    if isinstance(value, Decimal) and value.is_finite():
        return int(value) if value == value.to_integral_value() else None
    return None


def _as_int(value: object) -> int | None:
    whole = _whole(value)
    return whole if whole is not None and -(2**63) <= whole < 2**63 else None


def _as_uint(value: object) -> int | None:
    whole = _whole(value)
    return whole if whole is not None and 0 <= whole < 2**64 else None


def _as_float(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    # An integer that is rounded would order wrongly, and nobody would see it.
    return None if isinstance(value, int) and number != value else number


_FIT: dict[ColumnType, Callable[[object], ColumnValue]] = {
    "string": _as_string,
    "int": _as_int,
    "uint": _as_uint,
    "float": _as_float,
    "bool": _as_bool,
}


@dataclass(frozen=True)
class ItemFields:
    """Which fields of a row are an item's key and columns.

    Attributes:
        key: field of the key; None where the key is the fallback.
        columns: columns that the settings name; their values must fit.
        automatic: string columns that no setting names; None where the row has no string there.
        text: field that is carried along as column `text`; None where there is none.
    """

    key: str | None
    columns: Mapping[str, ColumnType]
    automatic: tuple[str, ...] = ()
    text: str | None = None

    @cached_property
    def column_types(self) -> dict[str, ColumnType]:
        """Every carried column by name and type."""
        types: dict[str, ColumnType] = {**dict.fromkeys(self.automatic, "string"), **self.columns}
        return types if self.text is None else {**types, "text": "string"}

    def key_of(self, row: Mapping[str, object], *, fallback: str) -> str:
        """The key of a row, or the fallback where the row has no valid one."""
        try:
            return self._key(row, fallback)
        except InvalidValue:
            return fallback

    def item(self, row: Mapping[str, object], *, fallback: str, invalid_values: Sequence[str] = ()) -> Item:
        """The item of a row.

        Args:
            row: its fields by name, as the file has them.
            fallback: the key where the row has no valid one: file name and row.
            invalid_values: reasons that are known already.
        """
        key, columns, invalid = fallback, dict[str, ColumnValue](), list(invalid_values)
        try:
            key = self._key(row, fallback)
        except InvalidValue as error:
            invalid.append(str(error))
        for name, kind in self.column_types.items():
            try:
                columns[name] = self._value(row, name, kind)
            except InvalidValue as error:
                columns[name] = None
                invalid.append(str(error))
        return Item(key, columns, tuple(invalid))

    def without_values(self, invalid: Invalid) -> Item:
        """The item of a record whose fields cannot be read at all."""
        return Item(invalid.key, dict.fromkeys(self.column_types), (invalid.reason,))

    def _key(self, row: Mapping[str, object], fallback: str) -> str:
        return fallback if self.key is None else item_key(lookup(row, self.key), name=self.key)

    def _value(self, row: Mapping[str, object], name: str, kind: ColumnType) -> ColumnValue:
        if self.text is not None and name == "text":
            value = lookup(row, self.text)
            value = decoded(value, name="column 'text'") if isinstance(value, bytes) else value
            return column_value(value, name=name, kind=kind)
        if name in self.columns:
            return column_value(lookup(row, name), name=name, kind=kind)
        _check_readable(lookup(row, name), name=f"column {name!r}: ")
        return _as_string(lookup(row, name))


def _check_readable(value: object, *, name: str = "") -> None:
    """Raise for a cell that could not be read: it holds the reason as its value."""
    if isinstance(value, TruncatedFile | InvalidValue):
        message = f"{name}{value}"
        raise InvalidValue(message)


def item_text(value: object) -> str:
    """The text of an item.

    Raises:
        InvalidValue: there is none, or it is empty, blank, or not a string of valid Unicode.
    """
    _check_readable(value)
    if isinstance(value, bytes):
        value = decoded(value, name="text")
    if value is None:
        message = "null text"
        raise InvalidValue(message)
    text = _as_string(value)
    if text is None:
        message = f"text is not a string of valid Unicode: {reprlib.repr(value)}"
        raise InvalidValue(message)
    if not text.strip():
        message = "empty text"
        raise InvalidValue(message)
    return text


def item_key(value: object, *, name: str) -> str:
    """The key of an item: a string, a whole or decimal number as its digits, a UUID, or bytes in hexadecimal digits.

    Raises:
        InvalidValue: there is none, or it is none of these.
    """
    _check_readable(value, name=f"key {name!r}: ")
    if isinstance(value, NotUtf8):
        return decoded(value, name=f"key {name!r}")
    key = _as_key(value)
    if key is None:
        message = f"key {name!r}: {reprlib.repr(value)} is neither a string nor a whole number, a UUID or bytes"
        raise InvalidValue(message)
    return key


def _as_key(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal) and value.is_finite():
        return format(value, "f")
    whole = _whole(value)
    return str(whole) if whole is not None else _as_string(value)


def item_image(content: object) -> bytes:
    """The encoded image of an item.

    Raises:
        InvalidValue: there is none, or it has no bytes.
    """
    _check_readable(content)
    if not isinstance(content, bytes):
        message = "null image" if content is None else f"image is not bytes: {reprlib.repr(content)}"
        raise InvalidValue(message)
    if not content:
        message = "empty image: 0 bytes"
        raise InvalidValue(message)
    what = foreign(content[:HEAD])
    if what:
        message = f"not an image: {what}"
        raise InvalidValue(message)
    return content


def check_item_size(size: int, *, most_mib: int) -> None:
    """Check how many bytes an item has, before it is read or used.

    Raises:
        InvalidValue: more than are allowed; names the setting.
    """
    if size > most_mib << 20:
        raise InvalidValue(too_large(f"{size:,} bytes", most_mib))


def too_large(found: str, most_mib: int) -> str:
    """Why something is not read, and the setting that allows it."""
    return f"{found}, more than `max_item_mib: {most_mib}` allows"


def decoded(content: bytes, *, name: str) -> str:
    """UTF-8 as a string.

    Raises:
        InvalidValue: it is not UTF-8; names what and where.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"{name}: not UTF-8 at byte {error.start}"
        raise InvalidValue(message) from error


def json_object(content: bytes, *, name: str) -> dict[str, object]:
    """A JSON object.

    Raises:
        InvalidValue: it is not JSON, or not an object; names what and where.
    """
    try:
        document = json_format.loads(content)
    except json_format.JSONDecodeError as error:
        message = f"{name}: not JSON ({error.msg} at character {error.pos})"
        raise InvalidValue(message) from error
    except (ValueError, RecursionError) as error:
        message = f"{name}: not JSON that can be read ({error})"
        raise InvalidValue(message) from error
    if not isinstance(document, dict):
        message = f"{name}: not a JSON object: {reprlib.repr(document)}"
        raise InvalidValue(message)
    return document


def sidecar_fields(*, txt: bytes | None, json: bytes | None) -> tuple[dict[str, object], list[str]]:
    """The fields of the files beside an image.

    Args:
        txt: the caption, which takes precedence over the JSON's unless it is blank or cannot be read; None where there
            is no such file.
        json: an object of fields; None where there is no such file.

    Returns:
        The fields by name; and why the text is not UTF-8, or the JSON not an object, or what one of them is instead.
    """
    fields: dict[str, object] = {}
    invalid = []
    if json is not None:
        try:
            fields = json_object(json, name="json")
        except InvalidValue as error:
            what = foreign(json[:HEAD])
            invalid.append(f"json: {what}" if what else str(error))
    if txt is not None:
        try:
            fields = {**fields, "caption": first_caption(_caption(txt), fields.get("caption"))}
        except InvalidValue as error:
            fields.setdefault("caption", None)
            invalid.append(str(error))
    return fields, invalid


def _caption(txt: bytes) -> str:
    """The caption of a text file.

    Raises:
        InvalidValue: it is not UTF-8, or no text of the data set's; names what it is.
    """
    what = foreign(txt[:HEAD], texts_only=True)
    try:
        caption = decoded(txt.removeprefix(BOM_UTF8), name="txt").rstrip("\r\n")
    except InvalidValue:
        what = foreign(txt[:HEAD])
        if what is None:
            raise
    if what:
        message = f"txt: {what}"
        raise InvalidValue(message)
    return caption


def first_caption(*found: object) -> object:
    """The first of some values that is a caption.

    Returns:
        A blank one only where there is no other; None where all are null or NaN.
    """
    there = [value for value in found if not is_null(value)]
    named = (value for value in there if not isinstance(value, str) or value.strip())
    return next(named, there[0] if there else None)


def is_null(value: object) -> bool:
    """Whether a field's value stands for none: null, or the NaN that pandas writes for it."""
    return value is None or (isinstance(value, float) and value != value)


def field_names(rows: Iterable[Mapping[str, object]]) -> list[str]:
    """Names that occur in some rows, at most 10,000 of them; dotted where they lie in nested objects."""
    names = (name for row in rows for name in _nested_names(row))
    distinct: dict[str, None] = {}
    for name in names:
        distinct[name] = None
        if len(distinct) == _NAMES_LISTED:
            break
    return list(distinct)


def _nested_names(row: Mapping[str, object]) -> Iterator[str]:
    todo: list[tuple[str, object]] = [(name, row[name]) for name in reversed(list(row))]
    while todo:
        name, value = todo.pop()
        yield name
        if isinstance(value, Mapping):
            todo.extend((f"{name}.{inner}", value[inner]) for inner in reversed(list(value)))
