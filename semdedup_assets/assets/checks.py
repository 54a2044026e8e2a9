"""Checks of stages, as Dagster's asset checks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg

from semdedup_assets.assets.builder import AssetBuilder
from semdedup_assets.assets.metadata import markdown_text
from semdedup_assets.execution import progress
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.evaluated_checks import LISTED, Evaluated, FailedChecksError, evaluate
from semdedup_assets.execution.pipeline_stages import StageAsset


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


def evaluated_checks(asset: StageAsset, context: StageContext) -> list[Evaluated]:
    """What the checks find on all partitions that are there, also those of earlier runs: a run does not clear another's.

    Each failing partition is reported to the log.
    """
    return [evaluate(check, context) for check in asset.stage.checks if not check.alone]


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
        first = builder.context(builder.assets[0])
        with progress.reporting_to(context.log.info):
            for key, (asset, check) in found.items():
                if key in context.selected_asset_check_keys:
                    yield check_result(builder, asset, evaluate(check, first.with_selection(asset.selection)))

    return inputs_up_to_date
