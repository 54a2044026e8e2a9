"""What must hold of keys and carried columns."""

from semdedup_assets.checks.counting import current_records
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import Check, CheckResult, Problem


def values_are_valid(context: StageContext) -> CheckResult:
    """Keys and carried columns hold what the settings declare."""
    problems, total, invalid = [], 0, 0
    for partition, record in current_records(context, "items").items():
        total += int(record.details["items"])
        invalid += int(record.details["invalid_values"])
        if record.excluded:
            remedy = f"mend its files, and {context.remedy('items', partition)}"
            problems.append(Problem(str(partition), f"none could be read: {record.excluded}", remedy))
        if record.details["invalid_values"]:
            measured = f"{record.details['invalid_values']:,} values: {record.details['invalid_value_examples'][:3]}"
            problems.append(Problem(str(partition), measured, "mend the files, or change `source.columns`"))
    fault = "shards have keys or column values of another type than declared, which read as null"
    return CheckResult(fault, problems, {"items": total, "invalid_values": invalid})


CHECKS = (
    Check(
        values_are_valid,
        "Keys are there, and the values of carried columns are of the declared types; others read as null.",
        blocking=False,
    ),
)
