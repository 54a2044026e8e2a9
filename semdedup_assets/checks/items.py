"""What must hold of keys and carried columns."""

from collections import Counter
from difflib import get_close_matches

from semdedup_assets.checks.counting import current_records
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Check, CheckResult, Problem
from semdedup_assets.settings import MOST_PARTITIONS

_NAMED = 10
_CORRECT = "correct its name, or remove it from `source`"


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


def partitions_are_few(context: StageContext) -> CheckResult:
    """No asset has so many partitions that Dagster becomes slow."""
    shards = len(context.shard_index.shards)
    pipeline, selections = context.pipeline, context.pipeline.named_selections.values()
    counts = {
        stage.name: len(context.index.partitions(stage.name)) if shards else 0
        for stage in context.graph.stages
        if "shard" in stage.dimensions and any(stage.applies(pipeline, selection) for selection in selections)
    }
    problems = [
        Problem(
            stage,
            f"{count:,} partitions of {shards:,} shards",
            "set `shards.files_per_shard` in a new store, or pack the files: Dagster's pages and ticks become slow",
        )
        for stage, count in counts.items()
        if count > MOST_PARTITIONS
    ]
    measured = {"shards": shards, "partitions": max(counts.values()), "limit": MOST_PARTITIONS}
    return CheckResult(f"assets have more than {MOST_PARTITIONS:,} partitions", problems, measured)


def columns_are_there(context: StageContext) -> CheckResult:
    """Every declared column, and the key, has a value in some item."""
    source = context.pipeline.source
    records = {each: record for each, record in current_records(context, "items").items() if not record.excluded}
    present: Counter[str] = Counter()
    for record in records.values():
        present.update(record.details.get("present", {}))
    items = sum(int(record.details["items"]) for record in records.values())
    absent = [name for name in source.columns if not present[name]] if items else []
    problems = [_absent(context, "column", name, next(iter(records))) for name in absent]
    key = getattr(source, "key", None)
    if key and items and sum(int(record.details.get("without_key", 0)) for record in records.values()) == items:
        problems.append(_absent(context, "key", key, next(iter(records))))
    return CheckResult("columns are in no item", problems, {"items": items, "absent": absent})


def _absent(context: StageContext, what: str, name: str, shard: Partition) -> Problem:
    path = context.shard(shard.required_shard).files[0].path
    try:
        names = context.pipeline.source.field_names(path)
    except (OSError, ValueError) as error:
        return Problem(f"{what} {name!r}", f"no item has it; {error}", _CORRECT)
    if name in names:
        measured = f"it is {'null' if what == 'column' else 'null, or no key,'} in every item"
    else:
        near = get_close_matches(name, names, n=3) or names[:_NAMED]
        measured = f"no item has it; {path} has {', '.join(near) or 'no fields'}"
    return Problem(f"{what} {name!r}", measured, _CORRECT)


CHECKS = (
    Check(
        columns_are_there,
        "Every column of `source.columns`, and `source.key`, has a value in some item: a name that is misspelt would read as "
        "null.",
    ),
    Check(
        partitions_are_few,
        f"No asset has more than {MOST_PARTITIONS:,} partitions: assignments have one for each shard and k.",
        blocking=False,
    ),
    Check(
        values_are_valid,
        "Keys are there, and the values of carried columns are of the declared types; others read as null.",
        blocking=False,
    ),
)
