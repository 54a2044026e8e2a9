"""Checks of stages, as Dagster's asset checks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from semdedup_assets.assets.builder import AssetBuilder, StageAsset
from semdedup_assets.assets.events import EventSink
from semdedup_assets.assets.metadata import markdown_text
from semdedup_assets.checks.up_to_date import NAME, up_to_date
from semdedup_assets.execution import progress
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import Check, CheckResult

_LISTED = 50
_NAMED = 5


def checks_of(builder: AssetBuilder, asset: StageAsset) -> tuple[Check, ...]:
    """The checks of an asset: those of its stage, and whether it is up to date."""
    refreshed = builder.is_automatic(asset)
    remedy = f"launch {builder.refresh_job}" if refreshed else f"materialise {builder.key(asset).to_user_string()}"
    return (*asset.stage.checks, up_to_date(asset.stage.name, refreshed=refreshed, remedy=remedy))


def check_specs(builder: AssetBuilder, asset: StageAsset) -> list[dg.AssetCheckSpec]:
    """The checks of an asset that each of its runs evaluates."""
    context = builder.context(asset)
    return [
        dg.AssetCheckSpec(
            check.name,
            asset=builder.key(asset),
            blocking=check.blocking and not check.only_warns(context),
            description=check.description,
        )
        for check in checks_of(builder, asset)
        if not check.alone
    ]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A check of an asset, evaluated.

    Attributes:
        result: for Dagster.
        failure: why what follows must be held back; None where nothing must.
    """

    result: dg.AssetCheckResult
    failure: str | None


def evaluated_checks(builder: AssetBuilder, asset: StageAsset, context: StageContext) -> list[Evaluated]:
    """What the checks find on all partitions that are there, also those of earlier runs: a run does not clear another's.

    Each failing partition is reported to the log.
    """
    return [_evaluated(builder, asset, context, check) for check in checks_of(builder, asset) if not check.alone]


def _evaluated(builder: AssetBuilder, asset: StageAsset, context: StageContext, check: Check) -> Evaluated:
    found = check.evaluate(context)
    # What is stale is no fault of what a run has made: the check shows it, the run's log does not.
    for problem in () if check.name == NAME else found.problems[:_LISTED]:
        progress.log(f"{check.name}: {problem.partition}: {problem.measured}; {problem.remedy}")
    metadata: dict[str, Any] = {**found.measured, "failing_partitions": len(found.problems)}
    if found.problems:
        rows = [
            {"partition": problem.partition, "measured": problem.measured, "remedy": problem.remedy}
            for problem in found.problems[:_LISTED]
        ]
        metadata["failing"] = dg.MetadataValue.table([dg.TableRecord(row) for row in rows])
    sentence = _sentence(builder, check.name, found) if found.problems else None
    result = dg.AssetCheckResult(
        asset_key=builder.key(asset),
        check_name=check.name,
        passed=not found.problems,
        severity=dg.AssetCheckSeverity.ERROR if check.blocking and found.certain else dg.AssetCheckSeverity.WARN,
        # Dagster renders it, and the keys and captions of users in it, as Markdown.
        description=markdown_text(sentence) if sentence else None,
        metadata=metadata,
    )
    return Evaluated(result, sentence if check.blocking and found.certain else None)


def raise_failures(evaluated: Sequence[Evaluated]) -> None:
    """End a run whose blocking checks fail with a sentence on each: Dagster's own counts them only.

    Raises:
        dagster.Failure: names checks, partitions and remedies.
    """
    failures = [each.failure for each in evaluated if each.failure is not None]
    if failures:
        raise dg.Failure("\n".join(failures), allow_retries=False)


def _sentence(builder: AssetBuilder, name: str, found: CheckResult) -> str:
    named = ", ".join(f"{problem.partition} ({problem.measured})" for problem in found.problems[:_NAMED])
    more = ", …" if len(found.problems) > _NAMED else ""
    count = f"{len(found.problems)} of {builder.pipeline.dataset}'s {found.fault}"
    return f"{name}: {count}: {named}{more}; {found.problems[0].remedy}"


def report_checks(builder: AssetBuilder, asset: StageAsset, context: StageContext, sink: EventSink) -> None:
    """Evaluate an asset's checks, report the results as events, and hold back what follows where one fails.

    Args:
        builder: of the pipeline.
        asset: whose checks.
        context: of its stage.
        sink: takes the events.

    Raises:
        dagster.Failure: a blocking check fails, whichever run made what is wrong; names partitions and remedies.
    """
    checks = checks_of(builder, asset)
    evaluated = [_evaluated(builder, asset, context, check) for check in checks]
    for check, each in zip(checks, evaluated, strict=True):
        key = dg.AssetCheckKey(builder.key(asset), check.name)
        sink(_event(key, each.result, blocking=check.blocking and not check.only_warns(context)))
    raise_failures(evaluated)


def freshness(builder: AssetBuilder, asset: StageAsset, context: StageContext) -> dg.AssetCheckEvaluation:
    """Whether an asset is up to date, as an event."""
    check = checks_of(builder, asset)[-1]
    key = dg.AssetCheckKey(builder.key(asset), check.name)
    return _event(key, _evaluated(builder, asset, context, check).result, blocking=False)


def _event(key: dg.AssetCheckKey, result: dg.AssetCheckResult, *, blocking: bool) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=key.asset_key,
        check_name=key.name,
        passed=result.passed,
        metadata=result.metadata,
        severity=result.severity,
        description=result.description,
        blocking=blocking,
    )


def lone_checks(builder: AssetBuilder) -> list[dg.AssetChecksDefinition]:
    """The checks that change while nothing is made of their asset, as a job of their own; none where there is none."""
    found = {
        dg.AssetCheckKey(builder.key(asset), check.name): (asset, check)
        for asset in builder.assets
        for check in asset.stage.checks
        if check.alone
    }
    specs = [
        dg.AssetCheckSpec(key.name, asset=key.asset_key, description=check.description)
        for key, (_, check) in found.items()
    ]
    if not specs:
        return []

    @dg.multi_asset_check(name=f"{builder.group}__lone_checks", specs=specs, can_subset=True)
    def evaluate(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        first = builder.context(builder.assets[0])
        with progress.reporting_to(context.log.info):
            for key, (asset, check) in found.items():
                if key in context.selected_asset_check_keys:
                    yield _evaluated(builder, asset, first.with_selection(asset.selection), check).result

    return [evaluate]
