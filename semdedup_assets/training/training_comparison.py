"""Trained models of several kept sets beside each other: keep strategies, k, models (SemDeDup, Tables 1 to 4, A6)."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

from semdedup_assets.algorithm.seed_spread import SeedSpread, compare_spreads
from semdedup_assets.execution.stage import Link, Picture, Rows, Shown
from semdedup_assets.rendering.training_curves import MOST_PANELS, SeedPanel, seed_panels
from semdedup_assets.storage.results import ResultRecord, ResultWriter, attempting, commit, fingerprint
from semdedup_assets.storage.tables import TableWriter
from semdedup_assets.training.evaluation_curves import MetricMean, metric_means
from semdedup_assets.training.evaluations import ROLES, evaluation_rows, metric_title

if TYPE_CHECKING:
    import polars as pl

KEPT_SETS, VERDICTS, PICTURE = "kept_sets.parquet", "verdicts.parquet", "comparison.png"

_VERSION = 1
_TITLE = "Models trained on the compared kept sets"
_OWN = "semdedup"
_PARTS = ("dataset", "model", "selection", "epsilon", "k")
_BASELINES = tuple(role for role in ROLES if role != _OWN)
_LISTED = 50

Measure = tuple[str, str, str]
"""Metric, set and budget: what one number of a kept set is of."""


def evaluated_version(record: ResultRecord) -> str:
    """What changes when evaluations give other numbers, or are of another trainer.

    Args:
        record: of the evaluations.
    """
    return fingerprint([record.version, record.details["trainer"]])


@dataclass(frozen=True)
class ComparedKeptSet:
    """A kept set, and what was measured of the models that were trained on it.

    Attributes:
        parts: what it is of, by the names of the settings: dataset, model, selection, epsilon and k.
        record: of its evaluations.
    """

    parts: Mapping[str, str]
    record: ResultRecord

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The table of its evaluations."""
        return evaluation_rows(self.record)

    @cached_property
    def means(self) -> dict[str, dict[Measure, MetricMean]]:
        """Each measure over seeds, by role: of the kept set itself, and of the baselines that it has."""
        found: dict[str, dict[Measure, MetricMean]] = {role: {} for role in ROLES}
        for mean in metric_means({**row, "target": ""} for row in self.rows):
            found[mean.role][mean.metric, mean.set, mean.budget] = mean
        return found

    @property
    def own(self) -> dict[Measure, MetricMean]:
        """Each measure of the kept set itself."""
        return self.means[_OWN]

    @cached_property
    def measured_on(self) -> dict[tuple[str, str], str]:
        """Of each metric and set the hash of the data and of what measured it."""
        return {(row["metric"], row["set"]): row["measured_on"] for row in self.rows}

    @property
    def trainer(self) -> dict[str, Any]:
        """What trained its models."""
        found: dict[str, Any] = self.record.details["trainer"]
        return found


@dataclass(frozen=True, slots=True)
class ModelVerdict:
    """What can be said of the models of two kept sets by one measure.

    Attributes:
        first: name of the one.
        second: name of the other.
        measure: metric, set and budget.
        means: of the first and the second; None of one that was not measured.
        difference: of the means, first minus second; None where they cannot be compared.
        pooled_deviation: standard deviation of a single model; NaN of too few seeds.
        verdict: on the first: `better`, `worse`, `within the spread`, `too few seeds`; or `not compared`.
        note: why they cannot be compared, or what else they differ in.
    """

    first: str
    second: str
    measure: Measure
    means: tuple[MetricMean | None, MetricMean | None]
    difference: float | None
    pooled_deviation: float
    verdict: str
    note: str


def write_training_comparison(location: str, kept_sets: Mapping[str, ComparedKeptSet]) -> ResultRecord:
    """Put the trained models of several kept sets beside each other, and commit the tables.

    Args:
        location: of the result, without a suffix.
        kept_sets: by their names in the tables.

    Raises:
        DamagedResultError: the table of an evaluation is missing, or holds other bytes than were written.
    """
    verdicts = list(model_verdicts(kept_sets))
    unlike = [each for each in verdicts if each.difference is None]
    with attempting(ResultWriter(location)) as writer:
        for name, frame in ((KEPT_SETS, _kept_set_table(kept_sets)), (VERDICTS, _verdict_table(verdicts))):
            with writer.open(name) as stream, TableWriter(stream) as table:
                table.write_frame(frame)
        with writer.open(PICTURE) as stream:
            stream.write(_picture(kept_sets))
        writer.details = {
            "compared": len(verdicts) - len(unlike),
            "clear": sum(each.verdict in ("better", "worse") for each in verdicts),
            "measures_not_compared": len(unlike),
            "kept_sets": [row for _, row in zip(range(_LISTED), _kept_sets_in_words(kept_sets), strict=False)],
            "verdicts": [_in_words(each) for each in verdicts if each.difference is not None][:_LISTED],
            "not_compared": _reasons(unlike),
        }
        versions = {name: evaluated_version(each.record) for name, each in kept_sets.items()}
        named = {name: dict(each.parts) for name, each in kept_sets.items()}
        return commit(writer, code_version=fingerprint([_VERSION, named])[:16], inputs=versions)


def model_verdicts(kept_sets: Mapping[str, ComparedKeptSet]) -> Iterator[ModelVerdict]:
    """Hold each two kept sets against each other by everything that one of them was measured by.

    Args:
        kept_sets: by their names.

    Yields:
        Measure by measure all pairs, those that cannot be compared among them.
    """
    measures = dict.fromkeys(measure for each in kept_sets.values() for measure in each.own)
    for measure in sorted(measures):
        for first, second in combinations(kept_sets, 2):
            one, other = kept_sets[first], kept_sets[second]
            if measure in one.own or measure in other.own:
                yield _verdict(first, second, measure, (one, other))


def _verdict(
    first: str, second: str, measure: Measure, kept_sets: tuple[ComparedKeptSet, ComparedKeptSet]
) -> ModelVerdict:
    one, other = (each.own.get(measure) for each in kept_sets)
    why_not = _why_not(measure, kept_sets, names=(first, second))
    if one is None or other is None or why_not:
        return ModelVerdict(first, second, measure, (one, other), None, math.nan, "not compared", why_not)
    compared = compare_spreads(one.spread, other.spread, higher_is_better=one.higher_is_better)
    return ModelVerdict(
        first,
        second,
        measure,
        (one, other),
        compared.difference,
        compared.pooled_deviation,
        compared.verdict,
        _unequal_steps(one, other),
    )


def _why_not(measure: Measure, kept_sets: tuple[ComparedKeptSet, ComparedKeptSet], *, names: tuple[str, str]) -> str:
    """Why the models of two kept sets cannot be held against each other; empty where they can."""
    metric, data, budget = measure
    one, other = kept_sets
    missing = [name for name, each in zip(names, kept_sets, strict=True) if measure not in each.own]
    if one.trainer != other.trainer:
        return f"trained by different trainers: {', '.join(_differing(one.trainer, other.trainer))}"
    if missing:
        return f"{missing[0]} has no {metric}{f' of {data}' if data else ''} at equal {budget}"
    if one.measured_on[metric, data] != other.measured_on[metric, data]:
        return f"measured on different data of the name {data}" if data else "measured by different commands"
    if one.own[measure].higher_is_better != other.own[measure].higher_is_better:
        return "higher is better for one of them, lower for the other"
    return ""


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], *, within: str = "training") -> list[str]:
    """The settings in which two trainers differ."""
    found = []
    for name in dict.fromkeys((*one, *other)):
        first, second = one.get(name), other.get(name)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            found += _differing(first, second, within=f"{within}.{name}")
        elif first != second:
            found.append(f"{within}.{name}")
    return found


def _unequal_steps(one: MetricMean, other: MetricMean) -> str:
    """Of pipelines on different data, equal steps are equal to those of each one's own everything."""
    if one.budget != "steps" or one.steps == other.steps or math.isnan(one.steps) or math.isnan(other.steps):
        return ""
    return f"{one.steps:.0f} steps against {other.steps:.0f}"


def _kept_set_table(kept_sets: Mapping[str, ComparedKeptSet]) -> "pl.DataFrame":
    """A row for each kept set and measure, beside the baselines that its evaluations have."""
    import polars as pl

    spread = {"mean": pl.Float64, "deviation": pl.Float64, "seeds": pl.Int64}
    schema = {
        **dict.fromkeys(("kept_set", *_PARTS, "budget", "metric", "set"), pl.String),
        **spread,
        "share": pl.Float64,
        "steps": pl.Float64,
        "higher_is_better": pl.Boolean,
        "measured_on": pl.String,
        **{f"{role}_{name}": kind for role in _BASELINES for name, kind in spread.items()},
    }
    rows = []
    for name, each in kept_sets.items():
        for measure, mean in each.own.items():
            row: dict[str, Any] = {"kept_set": name, **each.parts, **_columns(mean)}
            row["measured_on"] = each.measured_on[mean.metric, mean.set]
            for role in _BASELINES:
                row |= _spread_columns(each.means[role].get(measure), prefix=f"{role}_")
            rows.append(row)
    return pl.DataFrame(rows, schema=schema)


def _columns(mean: MetricMean) -> dict[str, Any]:
    return {
        "budget": mean.budget,
        "metric": mean.metric,
        "set": mean.set,
        **_spread_columns(mean),
        "share": mean.share,
        "steps": _known(mean.steps),
        "higher_is_better": mean.higher_is_better,
    }


def _spread_columns(mean: MetricMean | None, *, prefix: str = "") -> dict[str, Any]:
    spread = SeedSpread.of(()) if mean is None else mean.spread
    columns = {"mean": _known(spread.mean), "deviation": _known(spread.deviation), "seeds": spread.seeds}
    return {f"{prefix}{name}": value for name, value in columns.items()}


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number


def _verdict_table(verdicts: Iterable[ModelVerdict]) -> "pl.DataFrame":
    """A row for each measure and pair."""
    import polars as pl

    numbers = ("mean", "deviation", "share", "steps")
    schema = {
        **dict.fromkeys(("first", "second", "budget", "metric", "set"), pl.String),
        **{f"{side}_{name}": pl.Float64 for side in ("first", "second") for name in numbers},
        **dict.fromkeys(("difference", "pooled_deviation"), pl.Float64),
        **dict.fromkeys(("verdict", "note"), pl.String),
    }
    rows = []
    for each in verdicts:
        metric, data, budget = each.measure
        row: dict[str, Any] = {"first": each.first, "second": each.second, "budget": budget, "metric": metric}
        row |= {"set": data, "verdict": each.verdict, "note": each.note, "difference": each.difference}
        row["pooled_deviation"] = _known(each.pooled_deviation)
        for side, mean in zip(("first", "second"), each.means, strict=True):
            columns = {} if mean is None else _columns(mean)
            row |= {f"{side}_{name}": columns.get(name) for name in numbers}
        rows.append(row)
    return pl.DataFrame(rows, schema=schema)


def _kept_sets_in_words(kept_sets: Mapping[str, ComparedKeptSet]) -> Iterator[dict[str, Any]]:
    """Measure by measure the kept sets, as a person reads them."""
    measures = sorted({measure for each in kept_sets.values() for measure in each.own})
    there = [role for role in _BASELINES if any(each.means[role] for each in kept_sets.values())]
    for measure in measures:
        metric, data, budget = measure
        for name, each in kept_sets.items():
            mean = each.own.get(measure)
            if mean is not None:
                beside = {role: each.means[role].get(measure) for role in there}
                yield {
                    "kept set": name,
                    "set": data,
                    "metric": metric,
                    "budget": budget,
                    "share": f"{mean.share:.0%}",
                    "steps": "–" if math.isnan(mean.steps) else f"{mean.steps:.0f}",
                    "seeds": mean.spread.seeds,
                    ROLES[_OWN]: str(mean.spread),
                    **{ROLES[role]: "–" if found is None else str(found.spread) for role, found in beside.items()},
                }


def _in_words(each: ModelVerdict) -> dict[str, Any]:
    metric, data, budget = each.measure
    one, other = ("–" if mean is None else str(mean.spread) for mean in each.means)
    return {
        "first": each.first,
        "second": each.second,
        "set": data,
        "metric": metric,
        "budget": budget,
        "in first": one,
        "in second": other,
        "difference": "–" if each.difference is None else f"{each.difference:+.3g}",
        "the first is": each.verdict,
        "note": each.note,
    }


def _reasons(unlike: Iterable[ModelVerdict]) -> list[dict[str, str]]:
    """Each two kept sets that are not compared by everything, with the reasons, and what these concern."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for each in unlike:
        metric, data, budget = each.measure
        measure = f"{data} {metric}, equal {budget}".strip()
        found.setdefault((each.first, each.second, each.note), []).append(measure)
    return [
        {"first": first, "second": second, "not compared": note, "by": "; ".join(measures)}
        for (first, second, note), measures in found.items()
    ]


def _picture(kept_sets: Mapping[str, ComparedKeptSet]) -> bytes:
    """Each kept set by each measure, in one panel only what can be compared."""
    panels: dict[tuple[Measure, str], SeedPanel] = {}
    budgets = {measure[2] for each in kept_sets.values() for measure in each.own}
    for measure in sorted({measure for each in kept_sets.values() for measure in each.own}):
        metric, data, budget = measure
        title = metric_title(metric, data) + (f", equal {budget}" if len(budgets) > 1 else "")
        alike: dict[str, dict[str, ComparedKeptSet]] = {}
        for name, each in kept_sets.items():
            if measure in each.own:
                like = fingerprint([each.trainer, each.measured_on[metric, data]])
                alike.setdefault(like, {})[name] = each
        for like, named in alike.items():
            higher = next(iter(named.values())).own[measure].higher_is_better
            panels[measure, like] = SeedPanel(title, higher, dict(_bars(measure, named)))
    note = "mean ± one standard deviation; in one panel what can be compared"
    note += f"; {MOST_PANELS} of {len(panels)}" if len(panels) > MOST_PANELS else ""
    return seed_panels(list(panels.values()), title=_TITLE, note=note)


def _bars(measure: Measure, kept_sets: Mapping[str, ComparedKeptSet]) -> Iterator[tuple[str, list[float]]]:
    """The values of the kept sets, then of two baselines; one that several have in common is drawn once."""
    for name, each in kept_sets.items():
        yield f"{ROLES[_OWN]}\n{name}", _values(each, _OWN, measure)
    for role in ("random", "everything"):
        of: dict[tuple[float, ...], list[str]] = {}
        for name, each in kept_sets.items():
            if measure in each.means[role]:
                of.setdefault(tuple(_values(each, role, measure)), []).append(name)
        for values, names in of.items():
            label = ROLES[role] if len(names) == len(kept_sets) else f"{ROLES[role]}\n{', '.join(names)}"
            yield label, list(values)


def _values(kept_set: ComparedKeptSet, role: str, measure: Measure) -> list[float]:
    metric, data, budget = measure
    return [
        row["value"]
        for row in kept_set.rows
        if (row["role"], row["metric"], row["set"], row["budget"]) == (role, metric, data, budget)
    ]


def shown_training_comparison(record: ResultRecord) -> dict[str, Shown]:
    """What a person sees of a comparison: the picture, the tables, and what was not compared.

    Args:
        record: of the comparison.
    """
    tables: Sequence[tuple[str, str]] = (
        ("verdicts", "verdicts"),
        ("not compared", "not_compared"),
        ("kept sets", "kept_sets"),
    )
    rows: dict[str, Shown] = {title: Rows(found) for title, name in tables if (found := record.details[name])}
    return {
        "comparison": Picture(record.file(PICTURE).content(), _TITLE),
        **rows,
        "all_verdicts": Link(record.file(VERDICTS).path),
        "all_kept_sets": Link(record.file(KEPT_SETS).path),
    }
