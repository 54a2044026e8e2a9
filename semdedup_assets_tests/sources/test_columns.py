import math

import pytest

from semdedup_assets.records import ColumnType, ColumnValue
from semdedup_assets.sources.columns import column_value, lookup
from semdedup_assets.sources.reading import InvalidValue


@pytest.mark.parametrize(
    ("kind", "value", "fitted"),
    [
        ("string", "", ""),
        ("int", 5, 5),
        ("int", 5.0, 5),
        ("int", -(2**63), -(2**63)),
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
        ("int", math.nan, "column 'score': nan is not an int"),
        ("int", True, "column 'score': True is not an int"),
        ("int", 2**63, "is not an int"),
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
