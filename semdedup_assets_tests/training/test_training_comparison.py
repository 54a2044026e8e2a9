"""Trained models of several kept sets beside each other: what is compared, what is refused, and how that reads."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semdedup_assets.rendering.training_curves import MOST_PANELS
from semdedup_assets.storage.results import ResultRecord, ResultWriter, commit
from semdedup_assets.storage.tables import write_table
from semdedup_assets.training.evaluation_curves import metric_means, saved_compute
from semdedup_assets.training.evaluations import TABLE
from semdedup_assets.training.training_comparison import (
    ComparedKeptSet,
    ModelVerdict,
    model_verdicts,
    shown_training_comparison,
    write_training_comparison,
)

TRAINER = {"openclip": {"model": "ViT-B-16", "epochs": 32}}


@dataclass(frozen=True)
class Measured:
    """What was measured of the models of one kept set: `values` are one for each seed."""

    values: tuple[float, ...] = (0.5, 0.51, 0.52)
    metric: str = "accuracy"
    set: str = "birds"
    budget: str = "epochs"
    role: str = "semdedup"
    steps: int | None = 60
    data: str = "a"
    higher: bool = True
    share: float = 0.6

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [
            {"role": self.role, "budget": self.budget, "metric": self.metric, "set": self.set, "seed": seed,
             "steps": self.steps, "share": self.share, "value": value, "higher_is_better": self.higher,
             "measured_on": self.data}
            for seed, value in enumerate(self.values)
        ]  # fmt: skip


def kept_set(folder: Path, *measured: Measured, trainer: dict[str, Any] = TRAINER, **parts: str) -> ComparedKeptSet:
    """A kept set with stored evaluations."""
    rows = [row for each in measured for row in each.rows]
    columns: dict[str, np.ndarray] = {name: np.array([row[name] for row in rows], dtype=object) for name in rows[0]}
    unknown = [row["steps"] is None for row in rows]
    columns["steps"] = np.ma.masked_array([row["steps"] or 0 for row in rows], mask=unknown)
    for name, kind in {"seed": np.int64, "share": np.float64, "value": np.float64, "higher_is_better": bool}.items():
        columns[name] = columns[name].astype(kind)
    writer = ResultWriter(str(folder / f"evaluations-{len(list(folder.iterdir()))}"))
    with writer.open(TABLE) as stream:
        write_table(stream, columns)
    writer.details = {"trainer": trainer}
    return ComparedKeptSet(parts, commit(writer, code_version="1", inputs={}))


def verdict(one: ComparedKeptSet, other: ComparedKeptSet) -> ModelVerdict:
    (only,) = model_verdicts({"one": one, "other": other})
    return only


def compared(folder: Path, kept_sets: dict[str, ComparedKeptSet]) -> ResultRecord:
    return write_training_comparison(str(folder / "comparison"), kept_sets)


def test_a_difference_beyond_the_spread_is_clear_in_the_direction_of_the_metric(tmp_path: Path) -> None:
    high, low = Measured((0.70, 0.71, 0.72)), Measured((0.50, 0.51, 0.52))
    assert verdict(kept_set(tmp_path, high), kept_set(tmp_path, low)).verdict == "better"
    falls = [kept_set(tmp_path, replace(each, higher=False)) for each in (high, low)]
    assert verdict(*falls).verdict == "worse"
    near = Measured((0.505, 0.515, 0.525))
    assert verdict(kept_set(tmp_path, near), kept_set(tmp_path, low)).verdict == "within the spread"
    single = verdict(kept_set(tmp_path, Measured((0.9,))), kept_set(tmp_path, low))
    assert (single.verdict, single.note) == ("too few seeds", "")


@pytest.mark.parametrize(
    ("change", "trainer", "note"),
    [
        ({"data": "b"}, TRAINER, "measured on different data of the name birds"),
        ({"higher": False}, TRAINER, "higher is better for one of them, lower for the other"),
        (
            {},
            {"openclip": {"model": "ViT-B-16", "epochs": 16}},
            "trained by different trainers: training.openclip.epochs",
        ),
        ({}, {"command": "train"}, "trained by different trainers: training.openclip, training.command"),
        (
            {},
            {**TRAINER, "model_files": "other weights"},
            "trained by different trainers: training.model_files",
        ),
    ],
)
def test_what_cannot_be_compared_is_not_and_says_why(
    tmp_path: Path, change: dict[str, Any], trainer: dict[str, Any], note: str
) -> None:
    one, other = kept_set(tmp_path, Measured()), kept_set(tmp_path, Measured(**change), trainer=trainer)
    found = verdict(one, other)
    assert (found.verdict, found.difference, found.note) == ("not compared", None, note)
    record = compared(tmp_path, {"one": one, "other": other})
    assert record.details["not_compared"] == [
        {"first": "one", "second": "other", "not compared": note, "by": "birds accuracy, equal epochs"}
    ]
    assert record.details["verdicts"] == []
    assert list(shown_training_comparison(record)) == [
        "comparison", "not compared", "kept sets", "all_verdicts", "all_kept_sets",
    ]  # fmt: skip


def test_commands_are_data_of_their_own(tmp_path: Path) -> None:
    one, other = (kept_set(tmp_path, Measured(set="", data=data)) for data in "ab")
    assert verdict(one, other).note == "measured by different commands"


def test_a_measure_that_only_one_has_is_named(tmp_path: Path) -> None:
    one = kept_set(tmp_path, Measured(), Measured(metric="recall", budget="steps"))
    other = kept_set(tmp_path, Measured())
    third = kept_set(tmp_path, Measured())
    record = compared(tmp_path, {"one": one, "other": other, "third": third})
    # Two that both lack it have nothing to be told of.
    assert [(row["first"], row["second"], row["not compared"]) for row in record.details["not_compared"]] == [
        ("one", "other", "other has no recall of birds at equal steps"),
        ("one", "third", "third has no recall of birds at equal steps"),
    ]
    assert (record.details["compared"], record.details["measures_not_compared"]) == (3, 2)


def test_unequal_steps_are_told_beside_the_verdict_and_unknown_ones_are_null(tmp_path: Path) -> None:
    one, other, silent = (
        kept_set(tmp_path, Measured(budget="steps", steps=steps), dataset="toy") for steps in (60, 90, None)
    )
    assert verdict(one, other).note == "60 steps against 90"
    assert verdict(one, silent).note == ""
    record = compared(tmp_path, {"one": one, "silent": silent})
    table = pl.read_parquet(record.file("kept_sets.parquet").path)
    assert table["steps"].to_list() == [60.0, None]
    assert [row["steps"] for row in record.details["kept_sets"]] == ["60", "–"]


def test_steps_that_no_trainer_reported_save_nothing(tmp_path: Path) -> None:
    known, silent = (
        kept_set(tmp_path, Measured(steps=steps), Measured(role="everything", share=1.0, steps=90))
        for steps in (60, None)
    )
    reached = []
    for each in (known, silent):
        means = metric_means({**row, "target": ""} for row in each.rows)
        (row,) = (row for row in saved_compute(means) if row["trained on"] == "SemDeDup")
        reached.append((row["reached by"], row["steps saved"]))
    assert reached == [("60%, equal epochs", "33%"), ("nothing", "–")]


def test_each_kept_set_stands_beside_the_baselines_that_it_has(tmp_path: Path) -> None:
    random = Measured((0.3, 0.4), role="random")
    both = kept_set(tmp_path, Measured(), random, dataset="toy", model="clip", selection="hard", epsilon="0.1", k="9")
    alone = kept_set(tmp_path, Measured(), dataset="toy", model="clip", epsilon="0.1", k="9")
    record = compared(tmp_path, {"both": both, "alone": alone})
    table = pl.read_parquet(record.file("kept_sets.parquet").path)
    assert table.select("kept_set", "selection", "random_seeds", "exact_seeds").rows() == [
        ("both", "hard", 2, 0),
        ("alone", None, 0, 0),
    ]
    assert table["random_mean"].to_list() == [pytest.approx(0.35), None]
    assert table["random_deviation"].to_list() == [pytest.approx(0.1 / math.sqrt(2)), None]
    assert [row["random"] for row in record.details["kept_sets"]] == ["0.35 ± 0.071", "–"]


def test_long_comparisons_are_whole_in_their_files(tmp_path: Path) -> None:
    metrics = [Measured(metric=f"task{number:02d}") for number in range(12)]
    record = compared(tmp_path, {str(number): kept_set(tmp_path, *metrics) for number in range(5)})
    verdicts = pl.read_parquet(record.file("verdicts.parquet").path)
    # Ten pairs of five.
    assert len(verdicts) == 120 == record.details["compared"]
    assert len(pl.read_parquet(record.file("kept_sets.parquet").path)) == 60
    assert len(record.details["verdicts"]) < 120
    assert len(metrics) > MOST_PANELS


SEEDS = st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=4).map(tuple)


@settings(max_examples=25, deadline=None)
@given(one=SEEDS, other=SEEDS, higher=st.booleans())
def test_verdicts_do_not_depend_on_which_is_first(
    tmp_path_factory: pytest.TempPathFactory, one: tuple[float, ...], other: tuple[float, ...], higher: bool
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    sets = [kept_set(folder, Measured(values, higher=higher)) for values in (one, other)]
    forth, back = verdict(*sets), verdict(*reversed(sets))
    turned = {"better": "worse", "worse": "better"}
    assert forth.verdict == turned.get(back.verdict, back.verdict)
    assert forth.difference == -(back.difference or 0.0)
