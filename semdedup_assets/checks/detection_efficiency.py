"""Whether the search within clusters finds enough."""

from semdedup_assets.checks.counting import current_records
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import Check, CheckResult, Problem


def finds_most_duplicates(context: StageContext) -> CheckResult:
    """The search within clusters finds most items that have a duplicate."""
    problems, measured = [], {}
    least = context.pipeline.analyses.detection_efficiency.warn_below
    for partition, record in current_records(context, "detection_efficiency").items():
        share, epsilon = record.details["eta_at_largest_epsilon"], record.details["largest_epsilon"]
        if share is None:
            continue
        measured[f"k={partition} share found"] = share
        if share < least:
            text = f"{share:.1%} of the items with a duplicate within epsilon {epsilon} have one in their own cluster"
            remedy = "take fewer clusters, or search next-nearest clusters too (selection.repair)"
            problems.append(Problem(str(partition), text, remedy))
    fault = f"clusterings find less than {least:.0%} of the items with a duplicate"
    return CheckResult(fault, problems, measured, certain=False)


efficiency_is_high = Check(
    finds_most_duplicates,
    "At the pipeline's largest epsilon, most items with a duplicate have one in their own cluster.",
    blocking=False,
)
