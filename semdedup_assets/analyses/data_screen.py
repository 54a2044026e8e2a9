"""Screen a kept set before anything is trained on it: what it covers and teaches, against as many random items."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from semdedup_assets.algorithm.coverage import coverage
from semdedup_assets.analyses.screened_items import ScreenedItems
from semdedup_assets.analyses.screened_texts import NOVEL, RANDOM, Bits, Fit, TextSample, by_validation_set, fit_models
from semdedup_assets.analyses.training_outlook import CLUSTERS, GROUPS, Covered, outlook
from semdedup_assets.baselines.random_choices import sizes_version
from semdedup_assets.checks.counting import current_records
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import columns_version
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
from semdedup_assets.kept_sets import Selection
from semdedup_assets.rendering import training_plots
from semdedup_assets.settings import Pipeline
from semdedup_assets.stages.duplicate_scores import repaired_input
from semdedup_assets.storage.results import ResultRecord, ResultWriter
from semdedup_assets.storage.tables import write_table

COVERAGE, NGRAM, COVERAGE_PICTURE, NGRAM_PICTURE = "coverage.parquet", "ngram.parquet", "coverage.png", "ngram.png"
"""The files of a kept set's screen, in its record; those of the language model only of texts."""

_COVERAGE_TITLE = "Values that the kept items cover"
_NGRAM_TITLE = "What a count-based language model learns"
_SETS = {RANDOM: "a random tenth", NOVEL: "of it, without a duplicate"}
_TYPES = ("string", "int", "uint", "bool")


def _worker(context: StageContext) -> Worker:
    return lambda partition: screen(context, partition)


def screen(context: StageContext, partition: Partition) -> ResultRecord:
    """Screen one kept set; nothing is trained but counts (after SemDeDup, sections 4 and 5, which train models).

    Memory holds about 80 bytes an item.

    Args:
        context: of the pipeline and the selection.
        partition: a kept set.

    Raises:
        MissingResultError: masks, scores or items are missing, or are made from other inputs than there are now.
    """
    with context.writing("data_screen", partition) as result:
        with usage.phase("cover"):
            items = ScreenedItems.of(context, partition)
            covered = _covered(context, items)
        fits, details = list[Fit](), dict[str, Any]()
        if context.pipeline.source.content == "text":
            with usage.phase("model"):
                sample = TextSample.read(context, items)
                fits = fit_models(context, sample)
                details = _sample_details(sample)
        bits = by_validation_set(fits)
        found = outlook(covered, bits, cut=details.get("cut", 0.0))
        subject = f"{context.pipeline.dataset}/{context.pipeline.model_name}"
        note = f"{subject}, {partition.kept_set(context.selection).label}: {found.verdict}"
        with usage.phase("draw"):
            _write(context, covered, fits, note, result)
        result.details = {
            "items": len(items.ids),
            "kept": int(items.kept.sum()),
            "verdict": found.verdict,
            "reasons": found.reasons,
            "remedy": found.remedy,
            "covered": [_row(each) for each in covered],
            "bits_per_byte": [{**asdict(each), "change": each.change, "clear": each.clear} for each in bits],
            "text_sample": details,
        }
    return result.committed


def _covered(context: StageContext, items: ScreenedItems) -> list[Covered]:
    """Clusters and groups, and each column that counts."""
    own = ((CLUSTERS, items.cluster), (GROUPS, items.groups))
    found = [Covered(name, coverage(values, items.kept), by_encoder=True) for name, values in own]
    named = context.pipeline.analyses.data_screen.columns
    for column in _columns(context):
        values = items.values(context, column)
        there = ~np.ma.getmaskarray(values)
        counts = coverage(values.data[there], items.kept[there])
        # Of values that hardly repeat, no item could stand for another.
        if column in named or 0 < 2 * counts.values <= counts.items:
            found.append(Covered(column, counts, *_agreement(items, values)))
    return found


def _columns(context: StageContext) -> Sequence[str]:
    types = context.pipeline.source.column_types
    found = tuple(name for name, kind in types.items() if kind in _TYPES and name != "text")
    return context.pipeline.analyses.data_screen.columns or found


def _agreement(items: ScreenedItems, values: "np.ma.MaskedArray[Any, Any]") -> tuple[int, float, float]:
    """Pairs of a removed and a kept item that have values, the share with equal ones, and that of pairs at random."""
    removed = items.pairs
    equal = values[removed] == values[items.head[removed]]
    pairs = int(np.ma.count(equal))
    counts = np.unique(values.compressed(), return_counts=True)[1].astype(np.float64)
    total = counts.sum()
    chance = float((counts * (counts - 1)).sum() / (total * (total - 1))) if total > 1 else np.nan
    return pairs, float(equal.sum()) / pairs if pairs else np.nan, chance


def _row(found: Covered) -> dict[str, Any]:
    """A subject's row of the table; None where there is no number."""
    counts = found.counts
    return {
        "subject": found.subject,
        "items": counts.items,
        "kept": counts.kept,
        "values": counts.values,
        "covered": counts.covered,
        "random": counts.random.values,
        "random_sd": counts.random.values_sd,
        "covered_items": counts.covered_items,
        "random_items": counts.random.items,
        "random_items_sd": counts.random.items_sd,
        "effective": counts.effective,
        "random_effective": counts.random.effective,
        "all_effective": counts.effective_all,
        "pairs": found.pairs,
        "same_value": _number(found.same),
        "same_by_chance": _number(found.chance),
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _sample_details(sample: TextSample) -> dict[str, Any]:
    return {
        "texts": len(sample.ids),
        "bytes": sum(map(len, sample.texts)),
        "held_out": int(sample.held_out.sum()),
        "novel": int(sample.novel.sum()),
        "cut": sample.cut,
    }


def _write(context: StageContext, covered: list[Covered], fits: list[Fit], note: str, result: ResultWriter) -> None:
    rows = [_row(each) for each in covered]
    with result.open(COVERAGE) as stream:
        write_table(stream, {name: _array([row[name] for row in rows]) for name in rows[0]})
    with result.open(COVERAGE_PICTURE) as stream:
        stream.write(_coverage_picture(covered, note))
    if context.pipeline.source.content == "text":
        with result.open(NGRAM) as stream:
            write_table(stream, _fit_table(fits))
        with result.open(NGRAM_PICTURE) as stream:
            stream.write(_bits_picture(by_validation_set(fits), note))


def _array(values: list[Any]) -> np.ndarray:
    if isinstance(values[0], str):
        return np.array(values, dtype=object)
    if isinstance(values[0], int):
        return np.array(values, np.int64)
    return np.ma.masked_invalid(np.array(values, np.float64))


def _fit_table(fits: list[Fit]) -> dict[str, np.ndarray]:
    types = {"validation": object, "trained_on": object, "bits_per_byte": np.float64}
    return {
        field.name: np.array([getattr(fit, field.name) for fit in fits], types.get(field.name, np.int64))
        for field in fields(Fit)
    }


def _coverage_picture(covered: list[Covered], note: str) -> bytes:
    """First what can tell, columns before the encoder's own groups, which kept items cover by construction."""
    shown = [each for each in covered if each.counts.values]
    ordered = sorted(shown, key=lambda each: (not each.can_tell, each.by_encoder))
    bars = training_plots.CoverageBars(
        subjects=[each.subject for each in ordered],
        values=np.array([each.counts.values for each in ordered]),
        kept=np.array([each.counts.covered for each in ordered]),
        random=np.array([each.counts.random.values for each in ordered]),
        random_sd=np.array([each.counts.random.values_sd for each in ordered]),
    )
    return training_plots.coverage(bars, title=_COVERAGE_TITLE, note=note)


def _bits_picture(bits: list[Bits], note: str) -> bytes:
    numbers = {
        name: np.array([getattr(each, name) for each in bits]) for name in ("everything", "kept", "random", "random_sd")
    }
    bars = training_plots.BitsBars(sets=[_SETS[each.validation] for each in bits], **numbers)
    return training_plots.bits_per_byte(bars, title=_NGRAM_TITLE, note=note)


def training_can_gain(context: StageContext) -> CheckResult:
    """Training on the kept items can be expected to beat training on as many random ones."""
    records = current_records(context, "data_screen")
    problems = [
        Problem(str(partition), record.details["reasons"][0], record.details["remedy"])
        for partition, record in records.items()
        if record.details["verdict"] == "no gain to expect"
    ]
    measured = {f"verdict {partition}": record.details["verdict"] for partition, record in records.items()}
    return CheckResult("kept sets promise no gain over random ones", problems, measured, certain=False)


def _shown(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    details = record.details
    shown: dict[str, Shown] = {
        "verdict": details["verdict"],
        "reasons": f"{'. '.join(map(_capital, details['reasons']))}.",
        "values covered": Picture(record.file(COVERAGE_PICTURE).content(), _COVERAGE_TITLE),
    }
    if NGRAM_PICTURE in record.files:
        shown["bits_per_byte"] = Picture(record.file(NGRAM_PICTURE).content(), _NGRAM_TITLE)
    return {**shown, "covered": Rows([_in_words(row) for row in details["covered"]])}


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _in_words(row: dict[str, Any]) -> dict[str, Any]:
    same = row["same_value"]
    return {
        "of": row["subject"],
        "everything": row["values"],
        "kept": row["covered"],
        "random": f"{row['random']:,.1f} ± {row['random_sd']:.1f}",
        "removed alike": "–" if same is None else f"{same:.0%} (by chance {row['same_by_chance']:.0%})",
        "mixed as": f"{row['effective']:,.1f}",
        "random mixed as": f"{row['random_effective']:,.1f}",
    }


def _settings(context: StageContext) -> dict[str, Any]:
    settings = context.pipeline.analyses.data_screen
    of_texts = settings.model_dump(include={"mib", "order", "seed"}) if _is_text(context.pipeline) else {}
    return {"columns": list(_columns(context)), **of_texts}


def _is_text(pipeline: Pipeline) -> bool:
    return pipeline.source.content == "text"


def _optional_inputs(pipeline: Pipeline, selection: Selection) -> tuple[str, ...]:
    """Of texts the embeddings too, beside which the sizes lie."""
    return (*(("embeddings",) if _is_text(pipeline) else ()), *repaired_input(pipeline, selection))


def _input_version(context: StageContext, name: str, record: ResultRecord) -> str:
    if name == "items":
        return columns_version(record, [*_columns(context), *(["text"] if _is_text(context.pipeline) else [])])
    return sizes_version(context, name, record)


STAGE = Stage(
    name="data_screen",
    step=ANALYSE,
    description="Before any training: where can it not gain? Clusters, groups and values of carried columns that the kept "
    "items cover, against the exact expectation of as many random ones; how many removed items show the value of the kept "
    "one that stands for them; of texts, the bits per byte of a count-based language model of everything, of the kept ones "
    "and of as many random bytes. Seconds, in place of hours of training.",
    dimensions=("epsilon", "k"),
    inputs=("keep_masks", "duplicate_scores", "items"),
    optional_inputs=_optional_inputs,
    input_version=_input_version,
    settings=_settings,
    location=lambda layout, partition, selection: layout.of_kept_set(partition.kept_set(selection), "data_screen"),
    worker=_worker,
    kinds=frozenset({"matplotlib", "parquet"}),
    columns=lambda _: (
        Column(
            "subject", "string", "`clusters`; `groups` of a kept item and those it stands for; or a carried column."
        ),
        Column("items", "int64", "Embedded items that have a value."),
        Column("kept", "int64", "Kept ones of them."),
        Column("values", "int64", "Different values of all items."),
        Column("covered", "int64", "Values with at least one kept item."),
        Column("random", "float64", "Values that as many random items are expected to cover."),
        Column("random_sd", "float64", "Standard deviation of that number."),
        Column("covered_items", "int64", "Items, kept or not, whose value is covered."),
        Column("random_items", "float64", "The same of as many random items, expected."),
        Column("random_items_sd", "float64", "Standard deviation of that number."),
        Column(
            "effective", "float64", "exp of the entropy of the kept items' values: as mixed as so many equal shares."
        ),
        Column("random_effective", "float64", "The same of as many random items, of the expected entropy."),
        Column("all_effective", "float64", "The same of all items."),
        Column("pairs", "int64", "Removed items with a value, and a kept one with a value that stands for them."),
        Column("same_value", "float64", "Share of these pairs with equal values; null without any."),
        Column("same_by_chance", "float64", "Share of all pairs of items with equal values."),
    ),
    checks=(
        Check(
            training_can_gain,
            "Training on the kept items can be expected to beat training on as many random ones.",
            blocking=False,
        ),
    ),
    shown=_shown,
    selected=True,
    on_demand=True,
    pool="cpu",
    unit="kept sets",
)
