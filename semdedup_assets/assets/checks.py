"""Checks of stages, as Dagster's asset checks."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from semdedup_assets.assets.builder import AssetBuilder, StageAsset
from semdedup_assets.assets.events import EventSink
from semdedup_assets.execution import progress
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import Check, CheckResult

_LISTED = 50
_NAMED = 5


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
        for check in asset.stage.checks
        if not check.alone
    ]


def check_results(builder: AssetBuilder, asset: StageAsset, context: StageContext) -> list[dg.AssetCheckResult]:
    """What the checks find on all partitions that are there, also those of earlier runs: a run does not clear another's.

    Each failing partition is reported to the log.
    """
    return [_result(builder, asset, check, check.evaluate(context)) for check in asset.stage.checks if not check.alone]


def _result(builder: AssetBuilder, asset: StageAsset, check: Check, found: CheckResult) -> dg.AssetCheckResult:
    for problem in found.problems[:_LISTED]:
        progress.log(f"{check.name}: {problem.partition}: {problem.measured}; {problem.remedy}")
    metadata: dict[str, Any] = {**found.measured, "failing_partitions": len(found.problems)}
    if found.problems:
        rows = [
            {"partition": problem.partition, "measured": problem.measured, "remedy": problem.remedy}
            for problem in found.problems[:_LISTED]
        ]
        metadata["failing"] = dg.MetadataValue.table([dg.TableRecord(row) for row in rows])
    return dg.AssetCheckResult(
        asset_key=builder.key(asset),
        check_name=check.name,
        passed=not found.problems,
        severity=dg.AssetCheckSeverity.ERROR if check.blocking and found.certain else dg.AssetCheckSeverity.WARN,
        description=_sentence(builder, check.name, found) if found.problems else None,
        metadata=metadata,
    )


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
    failed = []
    for check in asset.stage.checks:
        found = check.evaluate(context)
        result = _result(builder, asset, check, found)
        sink(
            dg.AssetCheckEvaluation(
                asset_key=builder.key(asset),
                check_name=check.name,
                passed=result.passed,
                metadata=result.metadata,
                severity=result.severity,
                description=result.description,
                blocking=check.blocking and not check.only_warns(context),
            )
        )
        if check.blocking and found.problems and found.certain:
            failed.append(_sentence(builder, check.name, found))
    if failed:
        raise dg.Failure("\n".join(failed), allow_retries=False)


def freshness_checks(builder: AssetBuilder) -> dg.AssetChecksDefinition:
    """The checks whether what is there is up to date, as a job of their own: they change while nothing is made."""
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

    @dg.multi_asset_check(name=f"{builder.group}__inputs_up_to_date", specs=specs, can_subset=True)
    def inputs_up_to_date(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        with progress.reporting_to(context.log.info):
            for key, (asset, check) in found.items():
                if key in context.selected_asset_check_keys:
                    yield _result(builder, asset, check, check.evaluate(builder.context(asset)))

    return inputs_up_to_date
