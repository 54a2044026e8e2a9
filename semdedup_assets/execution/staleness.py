"""Which partitions of a stage are not up to date, and why: by the store's records, in words."""

import json
from collections.abc import Mapping
from typing import Any

from semdedup_assets.execution.context import SETTINGS, StageContext
from semdedup_assets.execution.partitions import Dimension, Partition
from semdedup_assets.execution.stage import Stage
from semdedup_assets.storage.results import MissingResultError, ResultRecord, changed_inputs

MISSING = "missing"
"""The reason of a partition that was never made."""

_EXCLUDED = "excluded: "
_LONGEST_VALUE = 60
_MOST_SETTINGS = 3
_DIMENSIONS: tuple[Dimension, ...] = ("bucket", "epsilon", "k", "shard")


def stale_partitions(context: StageContext, stage: str) -> dict[Partition, str]:
    """The partitions that are missing, excluded, or not up to date, each with the reason.

    Unlike `ResultIndex.stale`, which names what can be made now, this looks through the stages before: of what is made
    from something stale nothing is up to date.

    Raises:
        MissingResultError: the source has not been observed yet.
    """
    index, found = context.index, context.graph[stage]
    key = stage, context.selection.path if found.selected else ""
    if key not in index.cache.stale:
        partitions = index.partitions(stage)
        index.records(stage)  # All records are read together.
        before = {} if found.frozen else _stale_inputs(context, found)
        reasons = {each: _own_reason(context, found, each) or _reason_before(each, before) for each in partitions}
        index.cache.stale[key] = {each: reason for each, reason in reasons.items() if reason}
    return index.cache.stale[key]


def _stale_inputs(context: StageContext, stage: Stage) -> dict[str, tuple[tuple[Dimension, ...], set[Partition]]]:
    """Of each input that is not up to date the dimensions it shares with a stage, and where in them it is stale."""
    found = {}
    for name in stage.all_inputs(context.pipeline, context.selection):
        if name == "shards":
            continue
        upstream = context.graph[name]
        shared = tuple(each for each in _DIMENSIONS if each in upstream.dimensions and each in stage.dimensions)
        # What could not be read is left out of all that follows, on purpose.
        stale = {
            each.only(shared)
            for each, reason in stale_partitions(context, name).items()
            if not reason.startswith(_EXCLUDED)
        }
        if stale:
            found[name] = shared, stale
    return found


def _reason_before(
    partition: Partition, inputs: Mapping[str, tuple[tuple[Dimension, ...], set[Partition]]]
) -> str | None:
    names = [name for name, (shared, stale) in inputs.items() if partition.only(shared) in stale]
    return f"made from what is stale: {', '.join(names)}" if names else None


def _own_reason(context: StageContext, stage: Stage, partition: Partition) -> str | None:
    """Why a partition is not up to date with what lies directly before it; None where it is."""
    try:
        stored = context.index.stored(stage.name, partition)
    except MissingResultError:
        return MISSING  # The ranges of clusters are not known yet.
    records = {each: context.index.record(stage.name, each) for each in stored}
    # Of more buckets than ranges some hold nothing.
    if stored and not any(records.values()):
        return _reason_of_absence(context, stage, stored[0])
    return next((reason for each, record in records.items() if (reason := _reason(context, stage, each, record))), None)


def _reason_of_absence(context: StageContext, stage: Stage, stored: Partition) -> str:
    damaged = context.index.cache.was_set_aside(context.location(stage.name, stored))
    return "damaged, and set aside" if damaged else MISSING


def _reason(context: StageContext, stage: Stage, stored: Partition, record: ResultRecord | None) -> str | None:
    if record is None:
        return "missing in part"
    if record.excluded is not None:
        return f"{_EXCLUDED}{record.excluded}"
    if record.code_version != context.code_version(stage.name):
        return _changed_settings(record.details.get(SETTINGS), context.determining(stage.name))
    if not stage.accepts(context, record):
        return "today's settings do not accept it"
    if stage.frozen:
        return None
    try:
        changed = changed_inputs(record, context.index.input_versions(stage.name, stored))
    except MissingResultError:
        return "what it is made from is missing"
    return f"changed since: {', '.join(changed)}" if changed else None


def _changed_settings(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    """Which of the determining settings differ, in words; records of earlier versions of this software hold none."""
    if then is None:
        return "made with other settings"
    # The record went through JSON, which knows no tuples.
    old, new = _flat(then), _flat(json.loads(json.dumps(now)))
    names = [name for name in [*new, *(name for name in old if name not in new)] if old.get(name) != new.get(name)]
    changes = [f"{name} was {_value(old, name)}, is {_value(new, name)}" for name in names[:_MOST_SETTINGS]]
    more = f", and {len(names) - _MOST_SETTINGS} more" if len(names) > _MOST_SETTINGS else ""
    return f"settings changed: {'; '.join(changes)}{more}" if changes else "made with other settings"


def _flat(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested settings by their paths: `encoder.precision`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        # Whose settings they are says nothing to a reader: there `encoder.precision` stands at the top.
        below = f"{path}.{name}" if path and path != "settings" else name
        found |= _flat(value, below) if isinstance(value, Mapping) and value else {below: value}
    return found


def _value(settings: Mapping[str, Any], name: str) -> str:
    text = str(settings.get(name, "not there"))
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"
