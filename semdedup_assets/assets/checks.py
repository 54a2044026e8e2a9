"""Checks that a result is right, and fit to go on with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import dagster as dg

from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.stages import verdicts
from semdedup_assets.stages.stored_recipes import StoredRecipes
from semdedup_assets.stages.verdicts import Verdict
from semdedup_assets.stages.work import Work

_LISTED = 50
_NAMED = 5
_FROM_CURRENT = "made_from_current"


@dataclass(frozen=True, slots=True)
class _Check:
    """A check as it is declared; its name is its judge's.

    Attributes:
        judge: gives the verdict.
        text: what holds where it passes.
        blocking: whether going on would be wrong where it fails.
    """

    judge: Callable[[StoredRecipes], Verdict]
    text: str
    blocking: bool = True

    @property
    def name(self) -> str:
        return self.judge.__name__


_CHECKS: dict[str, tuple[_Check, ...]] = {
    "embeddings": (
        _Check(
            verdicts.vectors_are_finite_unit,
            "No vector holds a NaN or an infinity, and all are of unit norm (SemDeDup, section 3: cosine similarity).",
        ),
        _Check(verdicts.one_dimension, "All shards, and the centroids in use, have vectors of one dimension."),
        _Check(verdicts.ids_are_unique, "No id comes twice, in a shard or in two."),
        _Check(verdicts.skipped_share, "At most `max_skipped` of any shard's items are broken."),
        _Check(
            verdicts.no_shard_left_out,
            "No shard failed every attempt (`refresh.attempts`) and is left out.",
            blocking=False,
        ),
    ),
    "centroids": (
        _Check(verdicts.no_empty_clusters, "Every cluster has a vector of the training sample.", blocking=False),
        _Check(
            verdicts.sample_is_large_enough,
            "There are enough sampled vectors a cluster to place its centroid (SemDeDup, section 6.1: n / k).",
            blocking=False,
        ),
    ),
    "assignments": (
        _Check(
            verdicts.every_item_in_one_cluster,
            "Every embedded item is in exactly one cluster (SemDeDup, section 3): as many, and the same ids.",
        ),
        _Check(
            verdicts.similarity_has_not_drifted,
            "Shards that were embedded since the training sample was drawn are about as similar to their centroids "
            "as the sample (`refresh.max_drift`); else the centroids should be refitted.",
            blocking=False,
        ),
    ),
    "duplicate_scores": (
        _Check(verdicts.every_item_scored_once, "The buckets of each k hold every assigned item exactly once."),
        _Check(
            verdicts.largest_cluster,
            "No cluster is far larger than the average; the paper found one of 307,000 flags. Names an item of it.",
            blocking=False,
        ),
    ),
    "keep_masks": (
        _Check(
            verdicts.masks_are_monotone,
            "A higher epsilon keeps nothing that a lower one removes (SemDeDup, Algorithm A7); the masks themselves "
            "are compared as far as a bound on rows allows. The greedy rule does not promise it, and is only warned of.",
        ),
        _Check(verdicts.every_cluster_keeps_one, "Every cluster keeps an item (SemDeDup, Algorithm A7: the first)."),
        _Check(verdicts.every_item_masked_once, "The masks hold every scored item exactly once."),
    ),
    "manifests": (
        _Check(
            verdicts.counts_are_conserved,
            "Every record of the source is kept, removed or skipped, and each format holds as many rows as are kept.",
        ),
    ),
}

_MADE_OF_MANY = ("assignments", "duplicate_scores", "keep_masks", "manifests", "figures", "galleries")


def check_specs(declaration: Declaration, asset: str) -> list[dg.AssetCheckSpec]:
    """The checks of an asset that each of its runs evaluates."""
    return [
        dg.AssetCheckSpec(
            check.name,
            asset=declaration.key(asset),
            blocking=check.blocking and not _only_warns(declaration, check),
            description=check.text,
        )
        for check in _CHECKS[asset]
    ]


def _only_warns(declaration: Declaration, check: _Check) -> bool:
    # A blocking check that warns would hold automation back, which asks whether it passed.
    return check.judge is verdicts.masks_are_monotone and declaration.pipeline.selection.rule == "greedy"


def checks_of(work: Work, asset: str) -> list[dg.AssetCheckResult]:
    """The verdicts on all partitions that are there, also those of earlier runs: another's run does not clear one.

    Args:
        work: the pipeline at work; its log is told of each failing partition.
        asset: whose checks.
    """
    stored = StoredRecipes(work)
    return [_result(work, check.name, check.judge(stored), blocking=check.blocking) for check in _CHECKS[asset]]


def refuse_failed(work: Work, asset: str) -> None:
    """Hold a refresh back where a blocking check of an asset fails, whichever run made what is wrong.

    Raises:
        dagster.Failure: names the checks, the partitions and the cures.
    """
    stored = StoredRecipes(work)
    found = [(check.name, check.judge(stored)) for check in _CHECKS.get(asset, ()) if check.blocking]
    failed = [_sentence(work, name, verdict) for name, verdict in found if verdict.problems and verdict.certain]
    if failed:
        raise dg.Failure("\n".join(failed), allow_retries=False)


def current_checks(declaration: Declaration) -> dg.AssetChecksDefinition:
    """Whether what is there was made from what is there now.

    By itself, because it is true or false also when nothing has been made since: Dagster's own mark does not look at
    dependencies on 100 or more partitions.
    """
    keys = {asset: dg.AssetCheckKey(declaration.key(asset), _FROM_CURRENT) for asset in _MADE_OF_MANY}
    text = "What is there was made from what is there now of the assets before it, also beyond 100 partitions."
    specs = [dg.AssetCheckSpec(_FROM_CURRENT, asset=key.asset_key, description=text) for key in keys.values()]

    @dg.multi_asset_check(name=f"{declaration.group}__{_FROM_CURRENT}", specs=specs, can_subset=True)
    def made_from_current(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        work = Work(declaration.pipeline, log=context.log.info)
        for asset, key in keys.items():
            if key in context.selected_asset_check_keys:
                verdict = verdicts.made_from_current(work, asset)
                yield _result(work, _FROM_CURRENT, verdict, blocking=False, key=key.asset_key)

    return made_from_current


def _result(
    work: Work, name: str, verdict: Verdict, *, blocking: bool, key: dg.AssetKey | None = None
) -> dg.AssetCheckResult:
    for problem in verdict.problems[:_LISTED]:
        work.log(f"{name}: {problem.partition}: {problem.measured}; {problem.cure}")
    metadata: dict[str, Any] = {**verdict.measured, "failing_partitions": len(verdict.problems)}
    if verdict.problems:
        rows = [
            {"partition": problem.partition, "measured": problem.measured, "cure": problem.cure}
            for problem in verdict.problems[:_LISTED]
        ]
        metadata["failing"] = dg.MetadataValue.table([dg.TableRecord(row) for row in rows])
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=name,
        passed=not verdict.problems,
        severity=dg.AssetCheckSeverity.ERROR if blocking and verdict.certain else dg.AssetCheckSeverity.WARN,
        description=_sentence(work, name, verdict) if verdict.problems else None,
        metadata=metadata,
    )


def _sentence(work: Work, name: str, verdict: Verdict) -> str:
    named = ", ".join(f"{problem.partition} ({problem.measured})" for problem in verdict.problems[:_NAMED])
    more = ", …" if len(verdict.problems) > _NAMED else ""
    count = f"{len(verdict.problems)} of {work.pipeline.dataset}'s {verdict.fault}"
    return f"{name}: {count}: {named}{more}; {verdict.problems[0].cure}"
