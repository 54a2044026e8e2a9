"""What trained models are worth: a row for each metric, model, budget and seed, and what can be said of the difference."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from semdedup_assets.execution.partitions import Partition
from semdedup_assets.storage.results import DamagedResultError, MissingResultError
from semdedup_assets.training.model_scores import EvaluationFailedError, command_scores
from semdedup_assets.training.training_runs import work_root
from semdedup_assets_tests.stage_runs import StageRuns, record_path
from semdedup_assets_tests.training.training_pipelines import (
    METRIC,
    copied,
    metric_command,
    train_all,
    training,
    with_manifests,
)

KEY = "0.1|2"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    """All models, of two budgets and three seeds, and their evaluations."""
    settings = training(seeds=3, budget=["epochs", "steps"])
    folder = tmp_path_factory.mktemp("texts")
    runs = with_manifests(folder, training=settings, evaluation={"command": metric_command()})
    train_all(runs)
    runs.make("evaluations")
    return runs


@pytest.fixture
def runs(prepared: StageRuns, tmp_path: Path) -> StageRuns:
    return copied(prepared, tmp_path)


def table(runs: StageRuns) -> pl.DataFrame:
    return pl.read_parquet(runs.record("evaluations", KEY).file("evaluations.parquet").path)


def scores(runs: StageRuns) -> dict[str, bytes]:
    folder = Path(runs.context().layout.folder, "evaluation_scores")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def contents(runs: StageRuns, seed: int) -> set[str]:
    """Of the models of a seed."""
    root = Path(runs.context().layout.folder)
    return {path.read_text() for path in root.rglob(f"*-seed{seed}/checkpoint/weights.json")}


def test_each_model_has_a_row_for_each_metric(prepared: StageRuns) -> None:
    rows = table(prepared)
    counted = rows.group_by("role", "budget").len().sort("role", "budget")
    roles = ("everything", "exact", "random", "semdedup", "sized_random")
    # Three seeds by two metrics; a model of everything counts for both budgets.
    assert counted.rows() == [(role, budget, 6) for role in roles for budget in ("epochs", "steps")]
    record = prepared.record("evaluations", KEY)
    # The toy's number is that of the different items it was trained on, and a quarter of its seed.
    for role, stage, key in (
        ("semdedup", "trained_models", KEY),
        ("random", "random_trained_models", KEY),
        ("everything", "everything_trained_models", ""),
    ):
        trained = prepared.record(stage, key)
        own = rows.filter(pl.col("role") == role, pl.col("metric") == "distinct", pl.col("budget") == "epochs")
        for seed, value in own.select("seed", "value").iter_rows():
            model = json.loads(trained.file(f"epochs-seed{seed}/checkpoint/weights.json").content())
            assert value == len(set(model["keys"])) + seed / 4
    # A model of everything counts for both budgets, and is one.
    assert record.details["models"] == 4 * 2 * 3 + 3
    assert not prepared.stale("evaluations")


def test_the_summary_is_the_table_in_means(prepared: StageRuns) -> None:
    rows = table(prepared).filter(pl.col("metric") == "distinct", pl.col("budget") == "steps")
    values = {role: rows.filter(pl.col("role") == role)["value"].to_list() for role in ("semdedup", "everything")}
    (found,) = [
        row
        for row in prepared.record("evaluations", KEY).details["summary"]
        if (row["metric"], row["budget"], row["against"]) == ("distinct", "steps", "everything")
    ]
    means = {role: statistics.fmean(each) for role, each in values.items()}
    pooled = math.sqrt(sum(statistics.variance(each) for each in values.values()) / 2)
    assert found["SemDeDup"].startswith(f"{means['semdedup']:.4g} ± ")
    assert abs(means["semdedup"] - means["everything"]) > 2 * pooled
    assert found["verdict"] == "worse"


def test_a_metric_that_falls_is_better_when_it_is_lower(prepared: StageRuns) -> None:
    cost = table(prepared).filter(pl.col("metric") == "cost")
    assert cost["higher_is_better"].to_list() == [False] * len(cost)


def test_what_was_measured_is_not_measured_again(runs: StageRuns) -> None:
    before = scores(runs)
    first = table(runs)
    runs.make("evaluations")
    assert scores(runs) == before
    assert table(runs).equals(first)
    # A fourth seed adds its own models; two of equal content are one, as choices of equal count and of equal size may be.
    more = runs.changed(training=training(seeds=4, budget=["epochs", "steps"]))
    train_all(more)
    more.make("evaluations")
    added = scores(more).keys() - before.keys()
    assert len(added) == len(contents(more, 3))
    assert before.items() <= scores(more).items()


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"format": 1, "checksum": "0", "scores": "[]"}'])
def test_a_damaged_score_is_measured_again(runs: StageRuns, damage: bytes) -> None:
    before = scores(runs)
    name = sorted(before)[0]
    Path(runs.context().layout.folder, "evaluation_scores", name).write_bytes(damage)
    runs.make("evaluations")
    assert scores(runs) == before


def test_a_damaged_model_is_not_measured(runs: StageRuns) -> None:
    record = runs.record("trained_models", KEY)
    file = Path(record.file("epochs-seed0/checkpoint/weights.json").path)
    file.write_bytes(file.read_bytes().replace(b"0", b"1"))
    other = runs.changed(evaluation={"command": metric_command("other")})
    with pytest.raises(DamagedResultError, match="holds other bytes than were written"):
        other.make("evaluations")


def test_models_that_are_missing_are_named(runs: StageRuns) -> None:
    more = runs.changed(training=training(seeds=5, budget=["epochs", "steps"]))
    with pytest.raises(MissingResultError, match=r"materialise toy/.*trained_models"):
        more.make("evaluations")
    # A baseline that is not held against need not be there.
    fewer = runs.changed(training=training(seeds=3, budget=["epochs", "steps"], against=["random"]))
    fewer.make("evaluations")
    assert set(table(fewer)["role"]) == {"semdedup", "random"}


@pytest.mark.parametrize(
    ("mode", "message"),
    [("nothing", r"wrote no \{out\}/metrics\.json"), ("words", "is not what is expected .*distinct.value is 'many'")],
)
def test_a_command_that_measures_nothing_is_named(runs: StageRuns, mode: str, message: str) -> None:
    broken = runs.changed(evaluation={"command": metric_command(mode)})
    with pytest.raises(EvaluationFailedError, match=message):
        broken.make("evaluations")


def test_a_command_that_fails_is_told_with_its_last_words(runs: StageRuns) -> None:
    broken = runs.changed(evaluation={"command": "sh -c 'echo no such task {checkpoint} {out}; exit 4'"})
    with pytest.raises(EvaluationFailedError, match="exit code 4") as error:
        broken.make("evaluations")
    assert "no such task" in str(error.value)


def test_without_any_metric_nothing_is_measured(runs: StageRuns) -> None:
    with pytest.raises(EvaluationFailedError, match="nothing to measure the models by"):
        runs.changed(evaluation={}).changed(evaluation={"command": None}).make("evaluations")


@pytest.mark.parametrize("number", ["NaN", "Infinity"])
def test_a_number_that_is_not_finite_is_refused(runs: StageRuns, number: str, tmp_path: Path) -> None:
    program = tmp_path / "metric.sh"
    program.write_text(f"echo '{{\"accuracy\": {number}}}' > $1/metrics.json")
    broken = runs.changed(evaluation={"command": f"sh {program} {{out}} {{checkpoint}}"})
    with pytest.raises(EvaluationFailedError, match="accuracy is not a finite number"):
        broken.make("evaluations")


def test_numbers_of_a_command_have_a_direction() -> None:
    found = command_scores(b'{"accuracy": 0.5, "perplexity": {"value": 12, "higher_is_better": false}}')
    assert [(score.metric, score.value, score.higher_is_better) for score in found] == [
        ("accuracy", 0.5, True),
        ("perplexity", 12.0, False),
    ]


def test_an_evaluation_command_names_model_and_folder(runs: StageRuns) -> None:
    with pytest.raises(ValueError, match=r"\{checkpoint\} is not in it"):
        runs.changed(evaluation={"command": "lm_eval --output_path {out}"}).context()
    with pytest.raises(ValueError, match=r"nothing is held out; add `held_out`"):
        runs.changed(evaluation={"command": "lm_eval {checkpoint} {held_out} {out}"}).context()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b"", "JSONDecodeError"),
        (b"\xff\xfe\x00", "metrics.json is not what is expected"),
        (b"[0.5]", "dictionary"),
        (b'{"results": {"accuracy": 0.5}}', "results.value"),
        (b'{"accuracy": "0.5"}', "accuracy.value is '0.5'"),
        (b'{"accuracy": true}', "accuracy.value is 'True'"),
        (b'{"loss": {"value": 1, "higher_is_better": "false"}}', "loss.higher_is_better is 'false'"),
        (b'{"loss": {"value": 1, "lower_is_better": true}}', "loss.lower_is_better"),
        (b'{"accuracy": 1' + b"0" * 400 + b"}", "accuracy.value"),
        (b'{"a":' * 100_000, "RecursionError"),
    ],
)
def test_metrics_of_another_form_are_refused(written: bytes, message: str) -> None:
    with pytest.raises(EvaluationFailedError, match=message):
        command_scores(written)


def test_models_of_a_command_need_a_known_form_for_built_in_metrics(runs: StageRuns, tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text('{"text": "some words"}\n')
    asked = runs.changed(evaluation={"bits_per_byte": {"own": str(tmp_path / "set.jsonl")}, "command": None})
    with pytest.raises(EvaluationFailedError, match=r"one folder with a config\.json is needed .* there is none"):
        asked.make("evaluations")


def test_curves_bring_the_kept_sets_together(runs: StageRuns) -> None:
    runs.make("evaluation_curves")
    record = runs.record("evaluation_curves", "2")
    means = pl.read_parquet(record.file("means.parquet").path)
    rows = table(runs)
    for role, budget, metric, mean, seeds in means.select("role", "budget", "metric", "mean", "seeds").iter_rows():
        own = rows.filter(pl.col("role") == role, pl.col("budget") == budget, pl.col("metric") == metric)
        assert mean == pytest.approx(own["value"].mean())
        assert seeds == 3
    saved = {(row["metric"], row["trained on"]): row["reached by"] for row in record.details["saved"]}
    # Fewer different items are clearly worse by the toy's number; what costs the same is reached by the fewest steps.
    assert saved["distinct", "SemDeDup"] == "nothing"
    assert saved["cost", "SemDeDup"] != "nothing"
    shown = runs.context().graph["evaluation_curves"].shown(runs.context(), Partition.parse("2", ("k",)), record)
    assert list(shown) == ["Metrics by share kept", "Metrics by steps of training", "saved", "means"]


def problems(runs: StageRuns, check: str) -> list[str]:
    context = runs.context()
    checks = {check.name: check for check in context.graph["evaluations"].checks}
    return [each.measured for each in checks[check].evaluate(context).problems]


def test_a_check_says_what_is_not_known_of_leaks(runs: StageRuns, tmp_path: Path) -> None:
    check = "no_evaluation_item_in_training"
    (tmp_path / "set.jsonl").write_text('{"text": "some words"}\n')
    named: dict[str, Any] = {"bits_per_byte": {"own": str(tmp_path / "set.jsonl")}}
    # Of evaluations by other settings nothing is said.
    assert problems(runs.changed(evaluation={**named, "command": metric_command()}), check) == []
    assert problems(runs, check) == [
        "evaluation.command: not known whether training items are near to what it measures by"
    ]
    referred = runs.changed(references={"own": {"source": {"kind": "jsonl", "path": str(tmp_path / "set.jsonl")}}})
    assert problems(referred, check) == ["own: its leaks were not looked for"]
    for stage in ("reference_embeddings", "reference_matches", "reference_leaks"):
        referred.make(stage)
    assert problems(referred, check) == []
    # Those of other settings are not those of now.
    assert problems(
        referred.changed(references={"own": {**referred.settings["references"]["own"], "epsilon": 0.2}}), check
    )


def test_a_check_says_what_was_trained_on_other_devices(runs: StageRuns) -> None:
    assert problems(runs, "models_trained_on_one_device") == []
    record = runs.record("evaluations", KEY)
    devices = {**record.details["devices"], "semdedup": ["cuda"]}
    record_path(record).write_bytes(replace(record, details={**record.details, "devices": devices}).to_json())
    (found,) = problems(runs, "models_trained_on_one_device")
    assert found.startswith("semdedup on cuda; ")


def test_another_measuring_script_makes_evaluations_stale(runs: StageRuns, tmp_path: Path) -> None:
    script = tmp_path / "metric.py"
    script.write_text(METRIC.read_text())
    alone = training(seeds=3, budget=["epochs", "steps"], against=[])
    command = metric_command().replace(str(METRIC), str(script))
    own = runs.changed(training=alone, evaluation={"command": command})
    own.make("evaluations")
    assert not own.stale("evaluations")
    script.write_text(script.read_text() + "\n# mended\n")
    assert own.stale("evaluations") == [KEY]


@pytest.mark.parametrize("other", ['{"cost": 1}', '{"distinct": {"value": 1, "higher_is_better": false}}'])
def test_numbers_that_not_all_models_have_are_named(runs: StageRuns, tmp_path: Path, other: str) -> None:
    program = tmp_path / "metric.sh"
    program.write_text(
        f"test $3 = 1 && echo '{other}' > $1/metrics.json || echo '{{\"distinct\": 1}}' > $1/metrics.json\n"
    )
    uneven = runs.changed(evaluation={"command": f"sh {program} {{out}} {{checkpoint}} {{seed}}"})
    with pytest.raises(EvaluationFailedError, match=r"seed1: command: .*distinct: only some of the models have it"):
        uneven.make("evaluations")


def test_a_command_that_is_killed_is_no_trainer(runs: StageRuns) -> None:
    killed = runs.changed(evaluation={"command": "sh -c 'echo loss: nan; kill -9 $$' {checkpoint} {out}"})
    with pytest.raises(EvaluationFailedError, match=r"seed0: evaluation\.command: the program was ended by SIGKILL"):
        killed.make("evaluations")
    logs = work_root(killed.context()) / "evaluations"
    assert [path.read_text() for path in logs.rglob("trainer.log")] == ["loss: nan\n"]
