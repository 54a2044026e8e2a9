import math
from decimal import Decimal
from uuid import UUID

import pytest

from semdedup_assets.records import ColumnType, ColumnValue
from semdedup_assets.sources.columns import column_value, field_names, item_key, lookup
from semdedup_assets.sources.reading import InvalidValue


@pytest.mark.parametrize(
    ("kind", "value", "fitted"),
    [
        ("string", "", ""),
        ("int", 5, 5),
        ("int", 5.0, 5),
        ("int", -(2**63), -(2**63)),
        ("int", float(2**53), 2**53),
        ("int", Decimal("9223372036854775807"), 2**63 - 1),
        ("uint", 2**64 - 1, 2**64 - 1),
        ("uint", Decimal(2**64 - 1), 2**64 - 1),
        ("uint", 0.0, 0),
        ("float", Decimal("0.1"), 0.1),
        ("float", 2**60, float(2**60)),
        *((kind, math.nan, None) for kind in ("string", "int", "uint", "float", "bool")),
        ("float", 5, 5.0),
        ("float", math.inf, math.inf),
        ("bool", False, False),
        *((kind, None, None) for kind in ("string", "int", "float", "bool")),
    ],
)
def test_a_value_that_fits_has_its_columns_type(kind: ColumnType, value: object, fitted: ColumnValue) -> None:
    found = column_value(value, name="c", kind=kind)
    assert found == fitted
    assert type(found) is type(fitted)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("float", "abc", "column 'score': 'abc' is not a float"),
        ("float", True, "column 'score': True is not a float"),
        ("float", 10**400, "is not a float"),
        ("int", "5", "column 'score': '5' is not an int"),
        ("int", 5.5, "column 'score': 5.5 is not an int"),
        ("int", True, "column 'score': True is not an int"),
        ("int", 2**63, "column 'score': 9223372036854775808 is not an int; declare the column as `uint`"),
        ("int", 2**64, "column 'score': 18446744073709551616 is not an int$"),
        ("int", float(2**54), "is not an int; floats are not exact beyond 2"),
        ("int", Decimal("1.5"), r"column 'score': Decimal\('1.5'\) is not an int$"),
        ("uint", -1, "column 'score': -1 is not a uint; declare the column as `int`"),
        ("uint", True, "column 'score': True is not a uint$"),
        ("float", 2**53 + 1, "column 'score': 9007199254740993 is not a float; declare the column as `int`"),
        ("float", 2**63 + 1, "is not a float; declare the column as `uint`"),
        ("bool", 1, "column 'score': 1 is not a bool"),
        ("string", 1, "column 'score': 1 is not a string"),
        ("string", ["a"], r"column 'score': \['a'\] is not a string"),
        ("string", "\udc00", "is not a string"),
    ],
)
def test_a_value_that_does_not_fit_is_named(kind: ColumnType, value: object, message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        column_value(value, name="score", kind=kind)


def test_a_dotted_name_reaches_into_objects_unless_it_is_a_name_itself() -> None:
    row = {"a": {"b": {"c": 1}, "d": None}, "a.d": 2, "e": 3}
    assert [lookup(row, name) for name in ("a.b.c", "a.d", "e", "e.f", "a.x.y", "x")] == [1, 2, 3, None, None, None]


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("", ""),
        (2**70, str(2**70)),
        (-5.0, "-5"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (b"\x00\xff", "00ff"),
        (Decimal("10.50"), "10.50"),
        (Decimal("1E+3"), "1000"),
    ],
)
def test_a_key_is_a_string_or_what_names_as_exactly(value: object, key: str) -> None:
    assert item_key(value, name="id") == key


@pytest.mark.parametrize("value", [None, True, math.nan, math.inf, 1.5, float(2**54), ["a"], Decimal("NaN"), "\udc00"])
def test_what_names_nothing_exactly_is_no_key(value: object) -> None:
    with pytest.raises(InvalidValue, match=r"key 'id': .* is neither a string nor a whole number, a UUID or bytes"):
        item_key(value, name="id")


def test_field_names_are_those_of_all_rows_dotted_where_they_are_nested() -> None:
    rows: list[dict[str, object]] = [{"a": {"b": 1, "c": {"d": []}}, "e": [{"f": 1}]}, {"g": None, "a": 3}]
    assert field_names(rows) == ["a", "a.b", "a.c", "a.c.d", "e", "g"]
