"""Whether what is there is what today's settings, source and stages before it would give."""

from collections import Counter

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import Check, CheckResult, Problem
from semdedup_assets.execution.staleness import MISSING, stale_partitions
from semdedup_assets.storage.results import MissingResultError

NAME = "up_to_date"


def up_to_date(stage: str, *, refreshed: bool, remedy: str) -> Check:
    """The check whether every partition of a stage is there and up to date, also with what lies further before it.

    Dagster's own mark is shown for no partitioned asset as a whole, and does not look at dependencies on 100 or more
    partitions.

    Args:
        stage: its name.
        refreshed: whether refreshes make it: what nobody asked for is not missing.
        remedy: what makes it.
    """

    def evaluate(context: StageContext) -> CheckResult:
        try:
            partitions, stale = context.index.partitions(stage), stale_partitions(context, stage)
        except MissingResultError as error:
            # Nothing is known of a source that was never observed.
            return CheckResult("", [], {"not_observed": str(error)}, certain=False)
        if not refreshed:
            partitions = [each for each in partitions if stale.get(each) != MISSING]
        reasons = {each: stale[each] for each in partitions if each in stale}
        problems = [Problem(str(each) or "all of it", reason, remedy) for each, reason in reasons.items()]
        counted = Counter(reason.partition(":")[0] for reason in reasons.values())
        measured = {"partitions": len(partitions), **({"reasons": dict(counted)} if counted else {})}
        return CheckResult(f"{len(partitions)} {stage} are stale or missing", problems, measured, certain=False)

    evaluate.__name__ = NAME
    text = (
        "Each partition is there, made with today's settings from what is there now of the source and of all assets before "
        "it. A sensor looks at it without a run."
    )
    return Check(evaluate, text, blocking=False)
