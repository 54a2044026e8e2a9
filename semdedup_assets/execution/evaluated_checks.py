"""Evaluate the checks of a stage, and word what they find."""

from collections.abc import Sequence
from dataclasses import dataclass

from semdedup_assets.execution import progress
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import Check, CheckResult

LISTED = 50
"""How many problems of a check are listed."""

_NAMED = 5


class FailedChecksError(RuntimeError):
    """Blocking checks fail: names checks, partitions and remedies, a line for each check."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A check of a stage, evaluated.

    Attributes:
        check: which.
        result: what it found.
        sentence: what is wrong and the remedy; None where it passes.
        failure: why what follows must be held back; None where nothing must.
    """

    check: Check
    result: CheckResult
    sentence: str | None
    failure: str | None


def evaluate(check: Check, context: StageContext) -> Evaluated:
    """What a check finds on all partitions that are there, whichever run made them.

    Args:
        check: of a stage.
        context: of the pipeline and the selection.
    """
    found = check.evaluate(context)
    sentence = _sentence(context.pipeline.dataset, check.name, found) if found.problems else None
    return Evaluated(check, found, sentence, sentence if check.blocking and found.certain else None)


def log_problems(evaluated: Sequence[Evaluated]) -> None:
    """Report each failing partition to the log."""
    for each in evaluated:
        for problem in each.result.problems[:LISTED]:
            progress.log(f"{each.check.name}: {problem.partition}: {problem.measured}; {problem.remedy}")


def _sentence(dataset: str, name: str, found: CheckResult) -> str:
    named = ", ".join(f"{problem.partition} ({problem.measured})" for problem in found.problems[:_NAMED])
    more = ", …" if len(found.problems) > _NAMED else ""
    count = f"{len(found.problems)} of {dataset}'s {found.fault}"
    return f"{name}: {count}: {named}{more}; {found.problems[0].remedy}"


def raise_failures(evaluated: Sequence[Evaluated]) -> None:
    """Hold back what follows where a blocking check fails.

    Raises:
        FailedChecksError: one does.
    """
    failures = [each.failure for each in evaluated if each.failure is not None]
    if failures:
        raise FailedChecksError("\n".join(failures))
