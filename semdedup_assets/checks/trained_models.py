"""What must hold of trained models, so that they can be held against each other."""

from semdedup_assets.checks.counting import current_records
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import Check, CheckResult, Problem

FEWEST_SEEDS = 3
"""Of fewer there is no spread that says anything."""


def training_checks(stage: str) -> tuple[Check, ...]:
    """The checks of a stage that trains.

    Args:
        stage: its name.
    """

    def at_least_three_seeds(context: StageContext) -> CheckResult:
        """Each kept set has a spread to judge differences by."""
        problems = []
        for partition, record in current_records(context, stage).items():
            seeds = {run["seed"] for run in record.details["runs"]}
            if len(seeds) < FEWEST_SEEDS:
                measured = f"{len(seeds)} seed{'s' * (len(seeds) > 1)}, of which no spread can be told"
                problems.append(Problem(str(partition), measured, "set `training.seeds` to 3 or more; 5 is better"))
        return CheckResult("kept sets have too few trained models", problems, {}, certain=False)

    def equal_budgets(context: StageContext) -> CheckResult:
        """The models of one budget took the same number of steps and tokens, and both are known."""
        problems = []
        for partition, record in current_records(context, stage).items():
            for budget in sorted({run["budget"] for run in record.details["runs"]}):
                runs = [run for run in record.details["runs"] if run["budget"] == budget]
                steps = {run["steps"] for run in runs}
                # Random choices of equal count differ in tokens, so in steps, by design.
                if None in steps:
                    measured = f"{budget}: the trainer did not say how many steps it took"
                    remedy = "report `{'steps': …}` by Dagster Pipes, or print `step: …, loss: …`"
                    problems.append(Problem(str(partition), measured, remedy))
                elif budget == "steps" and len(steps) > 1:
                    measured = f"{budget}: {', '.join(map(str, sorted(steps)))} steps where one number should be"
                    problems.append(Problem(str(partition), measured, context.remedy(stage, partition)))
        return CheckResult("kept sets have models of unknown or unequal budgets", problems, {}, certain=False)

    return (
        Check(at_least_three_seeds, "Each kept set has models of three seeds or more.", blocking=False),
        Check(
            equal_budgets, "The steps of each model are known, and equal where the budget is `steps`.", blocking=False
        ),
    )
