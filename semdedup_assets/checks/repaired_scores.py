"""Whether a repair reaches as far as the masks that are made with it."""

from typing import Any

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import Check, CheckResult, Problem


def repair_reaches_all_targets(context: StageContext) -> CheckResult:
    """No share to keep was solved by an epsilon beyond the one up to which other clusters are searched."""
    fault = "kept sets go beyond the epsilon up to which duplicates in other clusters are searched"
    if context.selection.repair is None:
        return CheckResult(fault, [])
    problems, reach = [], context.selection.repair.epsilon
    measured = dict[str, Any](repaired_up_to=reach)
    for partition, record in context.index.records("keep_masks").items():
        epsilon = float(record.details["epsilon"])
        measured[f"{partition} epsilon"] = epsilon
        if epsilon > reach:
            text = f"epsilon {epsilon:.4g}, where {reach:g} is searched: some duplicates in other clusters are kept"
            remedy = f"set selection.repair.epsilon to {epsilon:.2g} or more, or keep a greater share"
            problems.append(Problem(str(partition), text, remedy))
    return CheckResult(fault, problems, measured, certain=False)


REACHES = Check(
    repair_reaches_all_targets,
    "Each mask's epsilon is one up to which duplicates in other clusters were searched.",
    blocking=False,
    # Masks are made after the scores.
    alone=True,
)
