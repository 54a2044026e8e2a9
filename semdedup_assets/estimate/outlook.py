"""What a refresh will make, and how long it will take: of what the store and an estimate say before it begins."""

from collections.abc import Sequence
from dataclasses import dataclass

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.pipeline_stages import StageAsset
from semdedup_assets.execution.refresh import RefreshPlan
from semdedup_assets.execution.runner import run_partitions
from semdedup_assets.storage.results import MissingResultError, ResultRecord


@dataclass(frozen=True, slots=True)
class StageOutlook:
    """What of one asset will be made.

    Attributes:
        asset: which.
        partitions: how many it has; None where that is not known before its inputs are made.
        stale: how many of them will be made; those whose inputs are made again may prove to be up to date.
        seconds: that making these takes, as estimated; None where nothing is estimated.
    """

    asset: StageAsset
    partitions: int | None
    stale: int | None
    seconds: float | None


def made_estimate(context: StageContext) -> ResultRecord:
    """The estimate of what all stages take, made by a trial run of some seconds where the store has none that is up to date.

    Raises:
        ValueError: the source does not hold what the settings say, or nothing in it can be embedded.
        Exception: what the trial run raised otherwise.
    """
    for _ in run_partitions(context, context.graph["estimate"], context.index.stale("estimate")):
        pass
    return context.index.require("estimate", Partition())


def outlook(plan: RefreshPlan, context: StageContext) -> list[StageOutlook]:
    """What of each asset a refresh would make, in order.

    Args:
        plan: what is made.
        context: of the pipeline, with the shards that there are.
    """
    estimated, pending = _estimated(context), set[str]()
    found = list[StageOutlook]()
    for asset in plan.assets:
        stage, own = asset.stage, context.with_selection(asset.selection)
        partitions = _partitions(own, stage.name)
        names = stage.all_inputs(context.pipeline, asset.selection)
        waits = not pending.isdisjoint(names) and not (stage.frozen and own.index.records(stage.name))
        again = stage.name in plan.again
        stale = partitions if waits or again else _stale(own, stage.name, partitions)
        if stale != 0:
            pending.add(stage.name)
        seconds = estimated.get(str(asset))
        share = stale / partitions if stale is not None and partitions else 1.0
        found.append(StageOutlook(asset, partitions, stale, None if seconds is None else seconds * share))
    return found


def _partitions(context: StageContext, stage: str) -> int | None:
    try:
        return len(context.index.partitions(stage))
    except MissingResultError:
        return None


def _stale(context: StageContext, stage: str, partitions: int | None) -> int | None:
    try:
        return len(context.index.stale(stage))
    except MissingResultError:
        return partitions


def _estimated(context: StageContext) -> dict[str, float]:
    """Seconds of each asset, of all its clusterings, by the last estimate; empty where there is none."""
    record = context.index.record("estimate", Partition())
    found: dict[str, float] = {}
    for row in record.details["stages"] if record else ():
        found[row["stage"]] = found.get(row["stage"], 0.0) + row["seconds"]
    return found


def seconds_left(ahead: Sequence[StageOutlook]) -> float | None:
    """How long some assets will take together; None where none of them is estimated."""
    known = [each.seconds for each in ahead if each.seconds is not None and each.stale != 0]
    return sum(known) if known or all(each.stale == 0 for each in ahead) else None
