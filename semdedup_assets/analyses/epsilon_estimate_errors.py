"""Hold the estimated epsilons against the scores of all items."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from semdedup_assets.analyses.epsilon_estimates import ESTIMATES, number
from semdedup_assets.analyses.score_curves import ScoreCurve, epsilons_keeping
from semdedup_assets.analyses.table_rows import columns_of, row_of
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import (
    ANALYSE,
    Check,
    CheckResult,
    Column,
    Picture,
    Problem,
    Rows,
    Shown,
    Stage,
    Worker,
)
from semdedup_assets.rendering import analysis_plots
from semdedup_assets.stages.duplicate_scores import repaired_input, scores_files
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.tables import read_table, write_table

ERRORS, CURVE, PICTURE = "errors.parquet", "curve.parquet", "epsilon_estimate_errors.png"
"""The table by target, the curve of all items, and the picture, in the record."""

_TITLE = "Estimated epsilons, and what they keep of all items"


@dataclass(frozen=True, slots=True)
class EstimateError:
    """What became of one target's estimates; NaN where there was none.

    Attributes:
        target: as in the settings.
        share: of the items to be kept.
        exact: epsilon that keeps it, of all items.
        exact_keeps: share that it keeps, more than wanted where ties force it.
        interpolated: epsilon of the paper's method.
        interpolated_keeps: share of all items that it keeps.
        interpolated_error: that less what the exact one keeps.
        epsilon: the one that was solved on the sampled clusters.
        epsilon_keeps: share of all items that it keeps.
        epsilon_error: that less what the exact one keeps.
        inside: whether the exact epsilon lies in the estimate's interval.
    """

    target: str
    share: float
    exact: float
    exact_keeps: float
    interpolated: float
    interpolated_keeps: float
    interpolated_error: float
    epsilon: float
    epsilon_keeps: float
    epsilon_error: float
    inside: bool


def _worker(context: StageContext) -> Worker:
    return lambda partition: compare_estimates(context, partition)


def compare_estimates(context: StageContext, partition: Partition) -> ResultRecord:
    """Solve each target's epsilon exactly, and count what the estimates keep (SemDeDup, section 6.5).

    Args:
        context: of the pipeline and the selection.
        partition: a clustering.

    Raises:
        MissingResultError: estimates or scores are missing, or are made from other inputs than there are now.
    """
    clustering = partition.required_clustering
    with context.writing("epsilon_estimate_errors", partition) as result:
        (estimated,) = context.index.require_consistent("epsilon_estimates", partition).values()
        estimates = read_table(
            estimated.file(ESTIMATES),
            ["target", "share", "interpolated", "epsilon", "epsilon_low", "epsilon_high"],
        )
        scores = scores_files(context, clustering)
        with usage.phase("solve"):
            exact = epsilons_keeping(scores, estimates["share"].tolist())
        with usage.phase("count"):
            curve = ScoreCurve.of(scores, np.concatenate([exact, estimates["interpolated"], estimates["epsilon"]]))
        errors = [_error(estimates, row, float(epsilon), curve) for row, epsilon in enumerate(exact)]
        with result.open(ERRORS) as stream:
            write_table(stream, columns_of(errors))
        with result.open(CURVE) as stream:
            write_table(stream, {"epsilon": curve.epsilon, "kept": curve.kept})
        note = (
            f"{context.pipeline.dataset}/{context.pipeline.model_name}, {clustering.label} · {context.selection.label}, "
            f"{curve.items:,} items; estimated from {estimated.details['sampled_items']:,} of them"
        )
        with usage.phase("draw"), result.open(PICTURE) as stream:
            points = [
                analysis_plots.MeasuredPoint(
                    each.share, each.interpolated, each.interpolated_keeps, each.epsilon, each.epsilon_keeps
                )
                for each in errors
            ]
            stream.write(analysis_plots.epsilon_estimate_errors(curve.epsilon, curve.kept, points=points, note=note))
        result.details = {
            "items": curve.items,
            "sampled_items": estimated.details["sampled_items"],
            "straightness": curve.straightness(exact),
            "errors": [row_of(each) for each in errors],
        }
    return result.committed


def _error(estimates: dict[str, np.ndarray], row: int, exact: float, curve: ScoreCurve) -> EstimateError:
    found = {name: values[row] for name, values in estimates.items()}
    interpolated, epsilon = float(found["interpolated"]), float(found["epsilon"])
    keeps, interpolated_keeps, epsilon_keeps = curve.at(exact), curve.at(interpolated), curve.at(epsilon)
    return EstimateError(
        target=str(found["target"]),
        share=float(found["share"]),
        exact=exact,
        exact_keeps=keeps,
        interpolated=interpolated,
        interpolated_keeps=interpolated_keeps,
        interpolated_error=interpolated_keeps - keeps,
        epsilon=epsilon,
        epsilon_keeps=epsilon_keeps,
        epsilon_error=epsilon_keeps - keeps,
        inside=bool(found["epsilon_low"] <= exact <= found["epsilon_high"]),
    )


def estimates_are_near(context: StageContext) -> CheckResult:
    """The epsilons that were solved on some clusters keep about the wanted shares of all items."""
    most, problems, measured = context.pipeline.analyses.epsilon_estimates.max_error, [], dict[str, Any]()
    for partition, record in context.index.records("epsilon_estimate_errors").items():
        errors = [each for each in record.details["errors"] if each["epsilon_error"] is not None]
        for name, label in (("epsilon_error", "solved"), ("interpolated_error", "interpolated")):
            sizes = [abs(each[name]) for each in errors if each[name] is not None]
            measured |= {f"k={partition} greatest error, {label}": max(sizes)} if sizes else {}
        problems += [
            Problem(
                str(partition),
                f"to keep {each['target']}: epsilon {number(each['epsilon'])} keeps {each['epsilon_keeps']:.1%}, "
                f"{number(each['exact'])} keeps {each['exact_keeps']:.1%}",
                "use the exact epsilon; raise analyses.epsilon_estimates.clusters for better estimates",
            )
            for each in errors
            if abs(each["epsilon_error"]) > most
        ]
    return CheckResult(
        f"numbers of clusters have an estimate that keeps another share, by more than {most:.1%}",
        problems,
        measured,
        certain=False,
    )


def _shown(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    rows = [
        {
            "to keep": row["target"],
            "exact epsilon": number(row["exact"]),
            "estimated": number(row["epsilon"]),
            "error in kept share": _signed(row["epsilon_error"]),
            "interpolated (paper)": number(row["interpolated"]),
            "its error in kept share": _signed(row["interpolated_error"]),
        }
        for row in record.details["errors"]
    ]
    return {"epsilon_estimate_errors": Picture(record.file(PICTURE).content(), _TITLE), "errors": Rows(rows)}


def _signed(share: float | None) -> str:
    return "–" if share is None else f"{share:+.2%}"


STAGE = Stage(
    name="epsilon_estimate_errors",
    step=ANALYSE,
    description="The exact epsilon of each target of `epsilon_estimates`, and what the estimates really keep of all items "
    "(SemDeDup, section 6.5). Of the chain rule. `straightness` is R² of a line through what is kept between the least "
    "and the greatest exact epsilon: the paper finds it semi-linear in epsilon.",
    dimensions=("k",),
    inputs=("epsilon_estimates", "duplicate_scores"),
    optional_inputs=repaired_input,
    settings=lambda _: {},
    location=lambda layout, partition, selection: layout.of_selection(
        partition.required_clustering, selection, "epsilon_estimate_errors"
    ),
    worker=_worker,
    kinds=frozenset({"matplotlib", "parquet"}),
    columns=lambda _: (
        Column("target", "string", "What is to be kept: a share, or a number of items."),
        Column("share", "float64", "The same as a share of the items."),
        Column("exact", "float64", "Epsilon that keeps it, of all items; null without items."),
        Column("exact_keeps", "float64", "Share that it keeps: more than wanted where ties force it."),
        Column("interpolated", "float64", "Epsilon by the paper's method; null where there is none."),
        Column("interpolated_keeps", "float64", "Share of all items that it keeps."),
        Column("interpolated_error", "float64", "That less `exact_keeps`."),
        Column("epsilon", "float64", "Epsilon that was solved on the sampled clusters."),
        Column("epsilon_keeps", "float64", "Share of all items that it keeps."),
        Column("epsilon_error", "float64", "That less `exact_keeps`."),
        Column("inside", "bool", "Whether `exact` lies in the 95 % interval of `epsilon`."),
    ),
    checks=(
        Check(
            estimates_are_near,
            "The estimated epsilons keep the wanted shares of all items, but for `analyses.epsilon_estimates.max_error`.",
            blocking=False,
        ),
    ),
    shown=_shown,
    selected=True,
    on_demand=True,
    # Of pairs within clusters.
    applies=lambda _, selection: selection.repair is None,
    pool="cpu",
    unit="clusterings",
)
