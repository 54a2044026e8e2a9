"""Metrics against the share kept and against steps, and the compute that a kept set saves (SemDeDup, Figs 4, 5b, 7, 8, A18)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from semdedup_assets.algorithm.seed_spread import SeedSpread, compare_spreads
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import EVALUATE, Column, Picture, Rows, Shown, Stage, Worker
from semdedup_assets.rendering.training_curves import MetricPanel, MetricPoint, metric_panels
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.tables import write_table
from semdedup_assets.training.evaluations import ROLES, evaluation_rows, metric_title

MEANS = "means.parquet"
_PICTURES = {
    "share": "Metrics by share kept",
    "steps": "Metrics by steps of training",
}
_LEVELS = ("everything", "exact")


@dataclass(frozen=True, slots=True)
class MetricMean:
    """One metric of the models of one kept set and budget.

    Attributes:
        role: `semdedup`, or the baseline.
        budget: `epochs` or `steps`.
        metric: its name.
        set: the data set.
        share: kept of everything.
        steps: mean over seeds; NaN where it is not known.
        spread: over seeds.
        higher_is_better: of the metric.
    """

    role: str
    budget: str
    metric: str
    set: str
    share: float
    steps: float
    spread: SeedSpread
    higher_is_better: bool


def _worker(context: StageContext) -> Worker:
    return lambda partition: draw_curves(context, partition)


def draw_curves(context: StageContext, partition: Partition) -> ResultRecord:
    """Bring the evaluations of all kept sets of a clustering together.

    Args:
        context: of the pipeline and the selection.
        partition: a clustering.

    Raises:
        MissingResultError: evaluations are missing; names what to materialise.
    """
    records = context.index.require_consistent("evaluations", partition)
    means = metric_means(
        {**row, "target": str(each.target)} for each, record in records.items() for row in evaluation_rows(record)
    )
    note = f"{context.pipeline.dataset}/{context.pipeline.model_name}, {partition.required_clustering.label}, "
    note += f"{context.selection.label}; bands: one standard deviation over seeds"
    with context.writing("evaluation_curves", partition) as result:
        with result.open(MEANS) as stream:
            write_table(stream, _columns(means))
        for axis, title in _PICTURES.items():
            with result.open(f"{axis}.png") as stream:
                label = "share kept" if axis == "share" else "steps"
                panels = list(_panels(means, axis))
                stream.write(metric_panels(panels, x_label=label, title=title, note=note))
        result.details = {
            "kept_sets": len(records),
            "saved": saved_compute(means),
            "means": [_in_words(each) for each in means],
        }
    return result.committed


def metric_means(rows: Iterable[Mapping[str, Any]]) -> list[MetricMean]:
    """Each metric by kept set and budget, over seeds; what several kept sets are held against is counted once.

    Args:
        rows: of the tables of evaluations.
    """
    found: dict[tuple[Any, ...], dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        # Everything and exact deduplication are the same beside each kept set.
        target = "" if row["role"] in _LEVELS else row["target"]
        key = (row["metric"], row["set"], row["budget"], row["role"], target)
        found.setdefault(key, {})[row["seed"]] = row
    roles, metrics = list(ROLES), list(dict.fromkeys(key[:2] for key in found))
    means = [_mean(list(seeds.values())) for seeds in found.values()]

    def rank(each: MetricMean) -> tuple[int, str, int, float]:
        return metrics.index((each.metric, each.set)), each.budget, roles.index(each.role), -each.share

    return sorted(means, key=rank)


def _mean(rows: Sequence[Mapping[str, Any]]) -> MetricMean:
    """Of a metric's rows that differ in their seed alone; random choices of equal size differ in their items a little."""
    steps = [np.nan if row["steps"] is None else float(row["steps"]) for row in rows]
    first = rows[0]
    return MetricMean(
        role=first["role"],
        budget=first["budget"],
        metric=first["metric"],
        set=first["set"],
        share=float(np.mean([row["share"] for row in rows])),
        steps=float(np.mean(steps)),
        spread=SeedSpread.of([row["value"] for row in rows]),
        higher_is_better=first["higher_is_better"],
    )


def saved_compute(means: Sequence[MetricMean]) -> list[dict[str, Any]]:
    """The fewest steps at which a kept set is not clearly worse than everything, by metric (SemDeDup, Fig. 8).

    Args:
        means: of a clustering's kept sets and their baselines.
    """
    found = []
    whole = {(each.metric, each.set): each for each in means if each.role == "everything"}
    for (metric, name), everything in whole.items():
        for role in ("semdedup", "random"):
            enough = [
                each
                for each in means
                if (each.metric, each.set, each.role) == (metric, name, role)
                and np.isfinite(each.steps)
                and _keeps_up(each, everything)
            ]
            least = min(enough, key=lambda each: each.steps, default=None)
            found.append(
                {
                    "set": name,
                    "metric": metric,
                    "trained on": ROLES[role],
                    "everything": str(everything.spread),
                    "reached by": _reached(least, everything),
                    "its value": "–" if least is None else str(least.spread),
                    "steps saved": _saved(least, everything),
                }
            )
    return found


def _reached(least: MetricMean | None, everything: MetricMean) -> str:
    if not np.isfinite(everything.steps):
        return "steps are not known"
    return "nothing" if least is None else f"{least.share:.0%}, equal {least.budget}"


def _saved(least: MetricMean | None, everything: MetricMean) -> str:
    if least is None or not np.isfinite(everything.steps):
        return "–"
    return f"{1 - least.steps / everything.steps:.0%}"


def _keeps_up(mean: MetricMean, everything: MetricMean) -> bool:
    compared = compare_spreads(mean.spread, everything.spread, higher_is_better=mean.higher_is_better)
    return compared.verdict in ("better", "within the spread")


def _panels(means: Sequence[MetricMean], axis: str) -> Iterator[MetricPanel]:
    """A panel for each metric; against shares, one budget each, against steps, both in one."""
    budgets = list(dict.fromkeys(each.budget for each in means))
    for metric, name in dict.fromkeys((each.metric, each.set) for each in means):
        for budget in budgets if axis == "share" else [None]:
            own = [
                each for each in means if (each.metric, each.set) == (metric, name) and budget in (None, each.budget)
            ]
            title = metric_title(metric, name)
            title += f", equal {budget}" if len(budgets) > 1 and budget is not None else ""
            lines: dict[str, list[MetricPoint]] = {}
            for each in own:
                x = each.share if axis == "share" else each.steps
                if each.role not in _LEVELS and np.isfinite(x):
                    lines.setdefault(ROLES[each.role], []).append(_point(each, x))
            ordered = {role: sorted(points, key=lambda point: point.x) for role, points in lines.items()}
            levels = {ROLES[each.role]: _point(each, each.share) for each in own if each.role in _LEVELS}
            yield MetricPanel(title, own[0].higher_is_better, ordered, levels)


def _point(mean: MetricMean, x: float) -> MetricPoint:
    return MetricPoint(x, mean.spread.mean, mean.spread.deviation)


def _in_words(mean: MetricMean) -> dict[str, Any]:
    return {
        "set": mean.set,
        "metric": mean.metric,
        "trained on": ROLES[mean.role],
        "share": f"{mean.share:.0%}",
        "budget": mean.budget,
        "steps": None if np.isnan(mean.steps) else round(mean.steps),
        "value": str(mean.spread),
        "seeds": mean.spread.seeds,
    }


def _columns(means: Sequence[MetricMean]) -> dict[str, np.ndarray]:
    texts = {name: np.array([getattr(each, name) for each in means], dtype=object)
             for name in ("role", "budget", "metric", "set")}  # fmt: skip
    deviation = np.array([each.spread.deviation for each in means], np.float64)
    steps = np.array([each.steps for each in means], np.float64)
    return {
        **texts,
        "share": np.array([each.share for each in means], np.float64),
        "steps": np.ma.masked_invalid(steps),
        "mean": np.array([each.spread.mean for each in means], np.float64),
        "deviation": np.ma.masked_invalid(deviation),
        "seeds": np.array([each.spread.seeds for each in means], np.int64),
    }


def _shown(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    pictures: dict[str, Shown] = {
        title: Picture(record.file(f"{axis}.png").content(), title) for axis, title in _PICTURES.items()
    }
    tables = {name: Rows([_brief(row) for row in record.details[name]]) for name in ("saved", "means")}
    return {**pictures, **tables}


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    """Metric and data set in one cell of words, which can be wrapped."""
    others = {name: value for name, value in row.items() if name not in ("set", "metric")}
    return {"metric": metric_title(row["metric"], row["set"]), **others}


STAGE = Stage(
    name="evaluation_curves",
    step=EVALUATE,
    description="Metrics of the trained models against the share kept (SemDeDup, Figs 4, 7, A18) and against steps (Fig. 5b), "
    "beside random choices, exact deduplication and everything; and the fewest steps at which a kept set keeps up with "
    "everything (Fig. 8).",
    dimensions=("k",),
    inputs=("evaluations",),
    settings=lambda _: {},
    location=lambda layout, partition, selection: layout.of_selection(
        partition.required_clustering, selection, "evaluation_curves"
    ),
    worker=_worker,
    kinds=frozenset({"matplotlib", "parquet"}),
    columns=lambda _: (
        Column("role", "string", "`semdedup`, or the baseline."),
        Column("budget", "string", "`epochs`: equal passes; `steps`: equal steps."),
        Column("metric", "string", "Its name."),
        Column("set", "string", "Data set that it was measured on."),
        Column("share", "float64", "Kept share of the items."),
        Column("steps", "float64", "Of a training, mean over seeds; null where it is not known."),
        Column("mean", "float64", "Of the metric, over seeds."),
        Column("deviation", "float64", "Sample standard deviation over seeds; null of one seed."),
        Column("seeds", "int64", "How many."),
    ),
    shown=_shown,
    selected=True,
    on_demand=True,
    applies=lambda pipeline, _: pipeline.training is not None,
    pool="cpu",
    unit="clusterings",
)
