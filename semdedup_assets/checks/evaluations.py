"""What must hold so that evaluations say something about kept sets."""

from semdedup_assets.checks.counting import current_records
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Check, CheckResult, Problem
from semdedup_assets.kept_sets import Clustering


def no_evaluation_item_in_training(context: StageContext) -> CheckResult:
    """No item of a named evaluation set lies within epsilon of a training item: `references` of the same name say so."""
    evaluation, references = context.pipeline.evaluation, context.pipeline.references
    named = [*evaluation.bits_per_byte, *evaluation.retrieval, *evaluation.zero_shot]
    clusterings = sorted({each.clustering for each in current_records(context, "evaluations") if each.clustering})
    problems = []
    for name in named if clusterings else ():
        if name not in references:
            measured = f"{name}: not known whether training items are near to its items"
            remedy = f"add `references: {{{name}: {{source: …, remove: true}}}}`, and materialise reference_leaks"
            problems.append(Problem("all", measured, remedy))
        else:
            problems += _leaks(context, name, clusterings)
    return CheckResult("evaluation sets may leak into the training data", problems, {"sets": len(named)}, certain=False)


def _leaks(context: StageContext, name: str, clusterings: list[Clustering]) -> list[Problem]:
    problems = []
    for clustering in clusterings:
        record = context.index.record("reference_leaks", Partition(clustering=clustering))
        if record is None:
            remedy = context.remedy("reference_leaks", str(clustering))
            problems.append(Problem(str(clustering), f"{name}: its leaks were not looked for", remedy))
            continue
        found = next((row for row in record.details["references"] if row["reference"] == name), None)
        if found is None:
            remedy = context.remedy("reference_leaks", str(clustering))
            problems.append(Problem(str(clustering), f"{name}: its leaks were not looked for", remedy))
        elif found["training_items"]:
            near = f"{name}: {found['training_items']:,} training items within ε = {found['epsilon']:g} of its items"
            if context.pipeline.references[name].remove:
                # Baselines know no references: everything stays everything.
                measured = f"{near} are in no kept set, and in the baselines all the same"
                remedy = "remove these items from the source, or the set from the evaluation, to compare with baselines"
            else:
                measured, remedy = near, f"set `references.{name}.remove: true`, and train again"
            problems.append(Problem(str(clustering), measured, remedy))
    return problems


CHECKS = (
    Check(
        no_evaluation_item_in_training,
        "No item of an evaluation set is a near duplicate of a training item, by the references of the same names.",
        blocking=False,
    ),
)
