"""Measure the models of a kept set and of what it is held against, and say which differences are clear."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from semdedup_assets.algorithm.seed_spread import SeedSpread, compare_spreads
from semdedup_assets.checks.evaluations import CHECKS
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import Progress
from semdedup_assets.execution.stage import EVALUATE, Column, Picture, Rows, Shown, Stage, Worker
from semdedup_assets.kept_sets import Selection
from semdedup_assets.rendering.training_curves import SeedPanel, seed_panels
from semdedup_assets.settings import Pipeline
from semdedup_assets.storage.results import ResultRecord, ResultWriter
from semdedup_assets.storage.tables import read_arrow, write_table
from semdedup_assets.training import (
    everything_trained_models,
    exact_trained_models,
    held_out_sets,
    random_trained_models,
    sized_random_trained_models,
    trained_models,
)
from semdedup_assets.training.evaluation_data import local_versions
from semdedup_assets.training.model_scores import ModelScores, Score, stored_models
from semdedup_assets.training.training_runs import named_files, required_training

TABLE, PICTURE = "evaluations.parquet", "evaluations.png"

STAGES = (trained_models, random_trained_models, sized_random_trained_models, exact_trained_models,
          everything_trained_models)  # fmt: skip
"""The modules whose models are measured, the method's own first."""

ROLES = {
    "semdedup": "SemDeDup",
    "random": "random",
    "sized_random": "random, equal size",
    "exact": "exact",
    "everything": "everything",
}
"""What each kind of kept set is called in pictures and tables."""

_STRINGS = ("role", "budget", "metric", "set", "manifest", "measured_on")
_COUNTS = ("kept", "everything", "seed", "steps", "tokens", "items", "skipped")


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One number of one model.

    Attributes:
        role: `semdedup`, or the baseline.
        kept: items that it was trained on.
        everything: items that there are.
        budget: `epochs` or `steps`; a model of everything counts for both.
        seed: of the training.
        steps: that it was trained; None where that is not known.
        tokens: of text; None of others.
        seconds: that it took.
        manifest: what it was trained on, by content.
        measured_on: hash of the data, and of what measured it.
        score: the number.
    """

    role: str
    kept: int
    everything: int
    budget: str
    seed: int
    steps: int | None
    tokens: int | None
    seconds: float
    manifest: str
    measured_on: str
    score: Score


def _worker(context: StageContext) -> Worker:
    return lambda partition: evaluate(context, partition)


def evaluate(context: StageContext, partition: Partition) -> ResultRecord:
    """Measure all models of a kept set and of its baselines by all metrics.

    Args:
        context: of the pipeline and the selection.
        partition: the kept set.

    Raises:
        MissingResultError: models are missing, or were trained on other manifests than there are now.
        EvaluationFailedError: a model cannot be measured, or nothing says by what.
    """
    with context.writing("evaluations", partition) as result:
        rows = list(_rows(context, partition))
        summary = summarised(rows)
        _write(result, rows, summary, note=partition.kept_set(context.selection).label)
        result.details = {
            # A model of everything counts for both budgets, and is one.
            "models": len({(row.role, "" if row.role == "everything" else row.budget, row.seed) for row in rows}),
            "metrics": len({(row.score.metric, row.score.set) for row in rows}),
            "clearly better than random": _clear(summary, "random", "better"),
            "clearly worse than random": _clear(summary, "random", "worse"),
            "trainer": _trainer(context, partition),
            "devices": _devices(context, partition),
            "summary": summary,
        }
    return result.committed


def _trainer(context: StageContext, partition: Partition) -> dict[str, Any]:
    """What trained the models; those of a trainer that is no longer that of the settings were refused when they were read."""
    found: dict[str, Any] = context.index.require("trained_models", partition).details["trainer"]
    return found


def _devices(context: StageContext, partition: Partition) -> dict[str, list[str]]:
    """The devices that the models of each kept set were trained on."""
    found = {}
    for module in measured_stages(context.pipeline, context.selection):
        record = context.index.require(module.STAGE.name, partition.only(module.STAGE.dimensions))
        found[module.TRAINED_MODELS.role] = sorted({str(run["device"]) for run in record.details["runs"]})
    return found


def evaluation_rows(record: ResultRecord) -> list[dict[str, Any]]:
    """The table of some evaluations, row by row; steps and tokens that are not known are None.

    Args:
        record: of the evaluations.

    Raises:
        DamagedResultError: its file is missing, or holds other bytes than were written.
    """
    return [row for part in read_arrow(record.file(TABLE)) for row in part.to_pylist()]


def _clear(summary: Sequence[dict[str, Any]], against: str, verdict: str) -> int:
    return sum(row["against"] == ROLES[against] and row["verdict"] == verdict for row in summary)


def _rows(context: StageContext, partition: Partition) -> Iterator[EvaluationRow]:
    held_out = None
    if held_out_sets.STAGE.applies(context.pipeline, context.selection):
        held_out = context.index.require_consistent("held_out_sets")[Partition()]
    scores, training = ModelScores(context, held_out), required_training(context)
    models = []
    for module in measured_stages(context.pipeline, context.selection):
        within = partition.only(module.STAGE.dimensions)
        record = context.index.require_consistent(module.STAGE.name, within)[within]
        models += [(record, model) for model in stored_models(record)]
    with usage.phase("measure"), Progress("evaluations", total=len(models), unit="models") as progress:
        for record, model in models:
            run, role = model.result, record.details["role"]
            found = scores.of(model)
            for budget in training.budget if role == "everything" else (run["budget"],):
                for metric, score in ((metric, score) for metric, own in found for score in own):
                    yield EvaluationRow(
                        role=role,
                        kept=int(run["kept"]),
                        everything=int(record.details["everything"]),
                        budget=budget,
                        seed=int(run["seed"]),
                        steps=run["steps"],
                        tokens=run["tokens"],
                        seconds=float(run["seconds"]),
                        manifest=str(run["manifest"]),
                        measured_on=metric.version,
                        score=score,
                    )
            progress.advance()


def measured_stages(pipeline: Pipeline, selection: Selection) -> list[Any]:
    """The modules whose models a pipeline measures: its own, and those that the settings hold them against."""
    against = {"semdedup", *(pipeline.training.against if pipeline.training else ())}
    return [
        module
        for module in STAGES
        if module.TRAINED_MODELS.role in against and module.STAGE.applies(pipeline, selection)
    ]


def summarised(rows: Sequence[EvaluationRow]) -> list[dict[str, Any]]:
    """Each metric of the kept set beside that of each baseline, with what can be said of the difference.

    Args:
        rows: of one kept set and its baselines.
    """
    values: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    higher: dict[tuple[str, str], bool] = {}
    for row in rows:
        by_role = values.setdefault((row.budget, row.score.set, row.score.metric), {})
        by_role.setdefault(row.role, []).append(row.score.value)
        higher[row.score.set, row.score.metric] = row.score.higher_is_better
    return [
        {"budget": budget, "set": name, "metric": metric, **compared}
        for (budget, name, metric), by_role in values.items()
        for compared in against_baselines(by_role, higher_is_better=higher[name, metric])
    ]


def against_baselines(values: Mapping[str, Sequence[float]], *, higher_is_better: bool) -> list[dict[str, Any]]:
    """A metric of the kept set beside that of each baseline, with what can be said of the difference.

    Args:
        values: of the metric, one a seed, by role.
        higher_is_better: of the metric.

    Returns:
        A row for each baseline that has values; none where the kept set has none.
    """
    own, rows = SeedSpread.of(values.get("semdedup", ())), []
    for role in (each for each in ROLES if each != "semdedup" and own.seeds and values.get(each)):
        other = SeedSpread.of(values[role])
        compared = compare_spreads(own, other, higher_is_better=higher_is_better)
        rows.append(
            {
                "SemDeDup": str(own),
                "against": ROLES[role],
                "its value": str(other),
                "difference": f"{compared.difference:+.3g}",
                "verdict": compared.verdict,
            }
        )
    return rows


def _write(
    result: ResultWriter, rows: Sequence[EvaluationRow], summary: Sequence[dict[str, Any]], *, note: str
) -> None:
    flat = [{**asdict(row), **asdict(row.score)} for row in rows]
    columns: dict[str, np.ndarray] = {name: np.array([row[name] for row in flat], dtype=object) for name in _STRINGS}
    for name in _COUNTS:
        known = [row[name] is not None for row in flat]
        numbers = np.array([row[name] or 0 for row in flat], np.int64)
        columns[name] = np.ma.masked_array(numbers, mask=[not each for each in known])
    columns["share"] = np.array([row.kept / max(1, row.everything) for row in rows])
    columns["seconds"] = np.array([row.seconds for row in rows])
    columns["value"] = np.array([row.score.value for row in rows])
    columns["higher_is_better"] = np.array([row.score.higher_is_better for row in rows], bool)
    with result.open(TABLE) as stream:
        write_table(stream, columns)
    with result.open(PICTURE) as stream:
        stream.write(seed_panels(_panels(rows), title="What the trained models are worth", note=note))


def _panels(rows: Sequence[EvaluationRow]) -> list[SeedPanel]:
    """A panel for each metric that is no variant of another, its budgets side by side."""
    budgets = list(dict.fromkeys(row.budget for row in rows))
    panels: dict[tuple[str, str], SeedPanel] = {}
    for role, name in ROLES.items():
        for row in (each for each in rows if each.role == role):
            key = row.score.metric, row.score.set
            title = metric_title(row.score.metric, row.score.set)
            panel = panels.setdefault(key, SeedPanel(title, row.score.higher_is_better, {}))
            label = name if len(budgets) == 1 or role == "everything" else f"{name}\nequal {row.budget}"
            panel.values.setdefault(label, [])
            if role != "everything" or row.budget == budgets[0]:
                panel.values[label].append(row.score.value)
    return list(panels.values())


def _shown(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    return {
        "evaluations": Picture(record.file(PICTURE).content(), "What the trained models are worth"),
        "summary": Rows(_side_by_side(record.details["summary"])),
    }


def _side_by_side(summary: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each metric, a column for each baseline: words that can be wrapped, for a narrow page."""
    budgets = {row["budget"] for row in summary}
    rows: dict[str, dict[str, Any]] = {}
    for row in summary:
        name = metric_title(row["metric"], row["set"]) + (f", equal {row['budget']}" if len(budgets) > 1 else "")
        found = rows.setdefault(name, {"metric": name, "SemDeDup": row["SemDeDup"]})
        found[f"against {row['against']}"] = f"{row['verdict']}: {row['its value']}"
    return list(rows.values())


def metric_title(metric: str, name: str) -> str:
    """A metric and its data set in words.

    Args:
        metric: such as `image_to_text_recall@5`.
        name: of the data set; empty of a command's.
    """
    return f"{name} {metric.replace('_', ' ')}".strip()


def _optional_inputs(pipeline: Pipeline, selection: Selection) -> tuple[str, ...]:
    baselines = [module.STAGE.name for module in measured_stages(pipeline, selection)[1:]]
    held_out = [held_out_sets.STAGE.name] if held_out_sets.STAGE.applies(pipeline, selection) else []
    return (*baselines, *held_out)


def _settings(context: StageContext) -> dict[str, Any]:
    """Remote data sets count by their paths: listing them takes too long for whoever only looks at what is stale."""
    pipeline = context.pipeline
    budget = [] if pipeline.training is None else sorted(pipeline.training.budget)
    evaluation = pipeline.evaluation
    command = {} if evaluation.command is None else {"command_files": named_files(evaluation.command)}
    files = local_versions(evaluation)
    return {"evaluation": evaluation.model_dump(mode="json"), "files": files, "budget": budget, **command}


STAGE = Stage(
    name="evaluations",
    version=2,
    step=EVALUATE,
    description="What the models that were trained on a kept set, and on what it is held against, are worth: a row for each "
    "metric, model, budget and seed (SemDeDup, sections 4.4 to 6). A difference counts as clear only beyond two pooled "
    "standard deviations of the seeds.",
    dimensions=("epsilon", "k"),
    inputs=("trained_models",),
    optional_inputs=_optional_inputs,
    settings=_settings,
    location=lambda layout, partition, selection: layout.of_kept_set(
        partition.kept_set(selection), "trained_models", "evaluations"
    ),
    worker=_worker,
    kinds=frozenset({"torch", "matplotlib", "parquet"}),
    columns=lambda _: (
        Column("role", "string", "`semdedup`, or the baseline: `random`, `sized_random`, `exact`, `everything`."),
        Column(
            "budget", "string", "`epochs`: equal passes; `steps`: equal steps. A model of everything counts for both."
        ),
        Column("metric", "string", "Such as `bits_per_byte`, `image_to_text_recall@5`, or a name of a command's."),
        Column("set", "string", "Data set that it was measured on."),
        Column("manifest", "string", "What the model was trained on, by content."),
        Column("measured_on", "string", "Hash of the data and of what measured it: only equal ones can be compared."),
        Column("kept", "int64", "Items that it was trained on."),
        Column("everything", "int64", "Items that there are."),
        Column("seed", "int64", "Of the training."),
        Column("steps", "int64", "That it was trained; null where the trainer did not say."),
        Column("tokens", "int64", "Of text that it was trained on; null where it did not say."),
        Column("items", "int64", "Of the data set that were measured."),
        Column("skipped", "int64", "That could not be."),
        Column("share", "float64", "Kept share of the items."),
        Column("seconds", "float64", "That training took."),
        Column("value", "float64", "The number."),
        Column("higher_is_better", "bool", "Of the metric."),
    ),
    checks=CHECKS,
    shown=_shown,
    selected=True,
    on_demand=True,
    applies=lambda pipeline, _: pipeline.training is not None,
    unit="kept sets",
)
