"""What must hold of the shares that are removed by value of a column."""

from collections.abc import Mapping
from typing import Any

from semdedup_assets.checks.counting import current_records
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import Check, CheckResult, Problem
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.tables import read_arrow

COUNTS = "counts.parquet"
"""The table of `removed_by_value`, in its record."""

_NAMED, _LONGEST = 10, 80


def no_value_removed_beyond_its_limit(context: StageContext) -> CheckResult:
    """Of no value of a column more is removed than `selection.limit` allows."""
    limits = {limit.column: limit.max_removed for limit in context.selection.limits}
    problems, values = [], 0
    for partition, record in current_records(context, "removed_by_value").items():
        above = [row for row in _rows(record, limits) if row["share"] > limits[row["column"]]]
        values += len(above)
        if above:
            more = f"; and {len(above) - _NAMED:,} more values" * (len(above) > _NAMED)
            text = "; ".join(_named(row, limits) for row in above[:_NAMED]) + more
            remedy = "take a lower epsilon, protect such items, put them first (`keep`), or raise the limit"
            problems.append(Problem(str(partition), text, remedy))
    return CheckResult("kept sets lose more of a value than its limit", problems, {"values_above_their_limit": values})


def _rows(record: ResultRecord, limits: Mapping[str, float]) -> list[dict[str, Any]]:
    """The rows of which more than the least limit is removed: few, where there are millions of values."""
    import pyarrow.compute as pc

    least = min(limits.values(), default=1.0)
    tables = (table.filter(pc.greater(table["share"], least)) for table in read_arrow(record.file(COUNTS)))
    return [row for table in tables for row in table.to_pylist()]


def _named(row: Mapping[str, Any], limits: Mapping[str, float]) -> str:
    value = "null" if row["value"] is None else repr(row["value"][:_LONGEST]) + "…" * (len(row["value"]) > _LONGEST)
    return (
        f"{row['column']} {value}: {row['removed']:,} of {row['items']:,} removed, {row['share']:.1%} where "
        f"{limits[row['column']]:.1%} may be"
    )


CHECKS = (
    Check(
        no_value_removed_beyond_its_limit,
        "Of no source, language or other value more is removed than `selection.limit` allows; names those that are above.",
        # Other epsilons of the same asset may be what a person wants.
        blocking=False,
    ),
)
