"""What must hold of trained models, so that they can be held against each other."""

from semdedup_assets.algorithm.seed_spread import FEWEST_SEEDS
from semdedup_assets.checks.counting import current_records
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import Check, CheckResult, Problem


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
        """The steps of each model are known, and those of equal steps are everything's."""
        problems, everything = [], _steps_of_everything(context)
        for partition, record in current_records(context, stage).items():
            for budget in sorted({run["budget"] for run in record.details["runs"]}):
                runs = [run for run in record.details["runs"] if run["budget"] == budget]
                steps = {run["steps"] for run in runs}
                if None in steps:
                    measured = f"{budget}: the trainer did not say how many steps it took"
                    remedy = "report `{'steps': …}` by Dagster Pipes, or print `step: …, loss: …`"
                    problems.append(Problem(str(partition), measured, remedy))
                elif budget == "steps" and steps != (everything or steps):
                    measured = f"{_listed(steps)} steps where everything took {_listed(everything)}"
                    remedy = "let the trainer take `{items}` for the samples of a pass, and train again"
                    problems.append(Problem(str(partition), measured, remedy))
        return CheckResult("kept sets have models of unknown or unequal budgets", problems, {}, certain=False)

    return (
        Check(at_least_three_seeds, "Each kept set has models of three seeds or more.", blocking=False),
        Check(
            equal_budgets, "The steps of each model are known, and equal where the budget is `steps`.", blocking=False
        ),
    )


def _steps_of_everything(context: StageContext) -> set[int | None]:
    """The steps of the models that were trained on everything; none where there are no such models."""
    stage = "everything_trained_models"
    if stage not in context.graph or not context.graph[stage].applies(context.pipeline, context.selection):
        return set()
    return {run["steps"] for record in current_records(context, stage).values() for run in record.details["runs"]}


def _listed(steps: set[int | None]) -> str:
    return ", ".join(sorted(map(str, steps)))
