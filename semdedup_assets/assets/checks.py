"""Checks of stages, as Dagster's asset checks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg

from semdedup_assets.assets.builder import STEP_TAG, AssetBuilder
from semdedup_assets.assets.lost_runs import alive
from semdedup_assets.assets.metadata import markdown_text
from semdedup_assets.checks.up_to_date import up_to_date
from semdedup_assets.execution import progress
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.evaluated_checks import LISTED, Evaluated, FailedChecksError, evaluate, log_problems
from semdedup_assets.execution.pipeline_stages import StageAsset
from semdedup_assets.execution.stage import Check


def _freshness_check(builder: AssetBuilder, asset: StageAsset) -> Check:
    """The check of an asset that it has beside those of its stage: whether it is up to date."""
    refreshed = builder.is_automatic(asset)
    remedy = f"launch {builder.refresh_job}" if refreshed else f"materialise {builder.key(asset).to_user_string()}"
    return up_to_date(asset.stage.name, refreshed=refreshed, remedy=remedy)


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
        for check in (*asset.stage.checks, _freshness_check(builder, asset))
        if not check.alone
    ]


def evaluated_checks(builder: AssetBuilder, asset: StageAsset, context: StageContext) -> list[Evaluated]:
    """What the checks find on all partitions that are there, also those of earlier runs: a run does not clear another's.

    Each failing partition is reported to the log.
    """
    evaluated = [evaluate(check, context) for check in asset.stage.checks if not check.alone]
    log_problems(evaluated)
    # What is stale is no fault of what a run has made: the check shows it, the run's log does not.
    return [*evaluated, evaluate(_freshness_check(builder, asset), context)]


def check_result(builder: AssetBuilder, asset: StageAsset, found: Evaluated) -> dg.AssetCheckResult:
    """What a check found, for Dagster."""
    problems = found.result.problems
    metadata: dict[str, Any] = {**found.result.measured, "failing_partitions": len(problems)}
    if problems:
        rows = [
            {"partition": problem.partition, "measured": problem.measured, "remedy": problem.remedy}
            for problem in problems[:LISTED]
        ]
        metadata["failing"] = dg.MetadataValue.table([dg.TableRecord(row) for row in rows])
    fails = found.check.blocking and found.result.certain
    return dg.AssetCheckResult(
        asset_key=builder.key(asset),
        check_name=found.check.name,
        passed=not problems,
        severity=dg.AssetCheckSeverity.ERROR if fails else dg.AssetCheckSeverity.WARN,
        # Dagster renders it, and the keys and captions of users in it, as Markdown.
        description=markdown_text(found.sentence) if found.sentence else None,
        metadata=metadata,
    )


@contextmanager
def failing_runs() -> Iterator[None]:
    """End a run whose blocking checks fail with a sentence on each: Dagster's own counts them only.

    Raises:
        dagster.Failure: a blocking check failed, whichever run made what is wrong; names partitions and remedies.
    """
    try:
        yield
    except FailedChecksError as error:
        raise dg.Failure(str(error), allow_retries=False) from error


def check_event(
    builder: AssetBuilder, asset: StageAsset, context: StageContext, found: Evaluated
) -> dg.AssetCheckEvaluation:
    """What a check found, as an event outside a step of the asset.

    Args:
        builder: of the pipeline.
        asset: whose check it is.
        context: of its stage.
        found: what it found.
    """
    check, result = found.check, check_result(builder, asset, found)
    return dg.AssetCheckEvaluation(
        asset_key=builder.key(asset),
        check_name=check.name,
        passed=result.passed,
        metadata=result.metadata,
        severity=result.severity,
        description=result.description,
        blocking=check.blocking and not check.only_warns(context),
    )


def freshness(builder: AssetBuilder, asset: StageAsset, context: StageContext) -> dg.AssetCheckEvaluation:
    """Whether an asset is up to date, as an event."""
    return check_event(builder, asset, context, evaluate(_freshness_check(builder, asset), context))


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

    # Whatever has this tag notes the process of its run.
    tags = {STEP_TAG: "checks"}

    @dg.multi_asset_check(name=f"{builder.group}__lone_checks", specs=specs, can_subset=True, op_tags=tags)
    def lone(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        with progress.reporting_to(context.log.info), alive(context.instance, context.run.run_id):
            first = builder.context(builder.assets[0])
            for key, (asset, check) in found.items():
                if key in context.selected_asset_check_keys:
                    evaluated = evaluate(check, first.with_selection(asset.selection))
                    log_problems([evaluated])
                    yield check_result(builder, asset, evaluated)

    return [lone]
