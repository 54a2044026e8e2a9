"""What must hold so that evaluations say something about kept sets."""

from pathlib import Path

from semdedup_assets.checks.counting import current_records
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Check, CheckResult, Problem
from semdedup_assets.kept_sets import Clustering
from semdedup_assets.storage.files import is_local
from semdedup_assets.storage.results import MissingResultError
from semdedup_assets.training_settings import placeholders


def no_evaluation_item_in_training(context: StageContext) -> CheckResult:
    """No item of a named evaluation set lies within epsilon of a training item: `references` of the same name say so."""
    evaluation, references = context.pipeline.evaluation, context.pipeline.references
    clusterings = sorted({each.clustering for each in current_records(context, "evaluations") if each.clustering})
    named = [(setting.split(".", 2)[2].removesuffix(".path"), path) for setting, path in evaluation.paths]
    problems, looked_for = [], {name for name, _ in named if name in references}
    for name, path in named if clusterings else ():
        if name not in references:
            measured = f"{name}: not known whether training items are near to its items"
            remedy = f"add `references: {{{name}: {{source: …, remove: true}}}}`, and materialise reference_leaks"
            problems.append(Problem("all", measured, remedy))
        elif _place(references[name].source.path) != _place(path):
            measured = f"{name}: the reference reads {references[name].source.path}, the evaluation {path}"
            problems.append(Problem("all", measured, "let both read the same files, by the same path"))
    if evaluation.command and "held_out" not in placeholders(evaluation.command):
        # What a command measures by it alone knows: any reference may be of it.
        looked_for = set(references)
        if clusterings and not references:
            measured = "evaluation.command: not known whether training items are near to what it measures by"
            problems.append(Problem("all", measured, "name its data in `references`, and materialise reference_leaks"))
    for name in sorted(looked_for):
        problems += _leaks(context, name, clusterings)
    return CheckResult("evaluation sets may leak into the training data", problems, {"sets": len(named)}, certain=False)


def _place(path: str) -> str:
    return str(Path(path).absolute()) if is_local(path) else path.rstrip("/")


def _leaks(context: StageContext, name: str, clusterings: list[Clustering]) -> list[Problem]:
    problems = []
    for clustering in clusterings:
        partition = Partition(clustering=clustering)
        try:
            record = context.index.require_consistent("reference_leaks", partition)[partition]
        except MissingResultError as error:
            problems.append(Problem(str(clustering), f"{name}: its leaks were not looked for", str(error)))
            continue
        found = next(row for row in record.details["references"] if row["reference"] == name)
        if found["training_items"]:
            near = f"{name}: {found['training_items']:,} training items within ε = {found['epsilon']:g} of its items"
            if context.pipeline.references[name].remove:
                # Baselines know no references: everything stays everything.
                measured = f"{near} are in no kept set, and in the baselines all the same"
                remedy = "remove these items from the source, or the set from the evaluation, to compare with baselines"
            else:
                measured, remedy = near, f"set `references.{name}.remove: true`, and train again"
            problems.append(Problem(str(clustering), measured, remedy))
    return problems


def models_trained_on_one_device(context: StageContext) -> CheckResult:
    """The models that are held against each other were trained on one kind of device: its precision may be another."""
    problems = []
    for partition, record in current_records(context, "evaluations").items():
        devices = record.details.get("devices", {})
        if len({device.partition(":")[0] for each in devices.values() for device in each}) > 1:
            measured = "; ".join(f"{role} on {', '.join(each)}" for role, each in devices.items())
            remedy = "set `compute.device`, or give `compute.workers` of all models the same, and train again"
            problems.append(Problem(str(partition), measured, remedy))
    return CheckResult("models of several devices are held against each other", problems, {}, certain=False)


CHECKS = (
    Check(
        no_evaluation_item_in_training,
        "No item of an evaluation set is a near duplicate of a training item, by the references of the same names.",
        blocking=False,
    ),
    Check(
        models_trained_on_one_device,
        "The models of a comparison were trained on one kind of device.",
        blocking=False,
    ),
)
