"""A comparison of trained models in a `defs.yaml`: what it makes of several pipelines, and what it refuses."""

import json
import statistics
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
import yaml
from dagster.components.component_scaffolding import scaffold_object

from semdedup_assets.comparison_settings import ModelComparison
from semdedup_assets.component import TrainingComparison
from semdedup_assets_tests import comparison_projects
from semdedup_assets_tests.baselines.baseline_runs import docstrings, edited, text_runs
from semdedup_assets_tests.comparison_projects import check_job, comparison_job, line_of, metadata_of
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.test_component import COMMENTED_SETTING, check_failure, load
from semdedup_assets_tests.training.training_pipelines import metric_command, training

COMPONENT = "semdedup_assets.TrainingComparison"
KEY = dg.AssetKey(["strategies", "training_comparison"])
NODE = "strategies__training_comparison"
SEEDS = 3
HARD = {"dataset": "toy", "model": "first", "selection": "hard", "k": 2, "epsilon": "keep=60%"}
EXPECTED = {
    "hard": HARD,
    "easy": {**HARD, "selection": "easy"},
    "k = 3": {**HARD, "k": 3},
    "other": {"dataset": "toy", "model": "other"},
}
"""Two strategies, two k, and a model: the other pipeline has one selection, epsilon and k."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageRuns]:
    """Two pipelines on one dataset, whose models are trained and evaluated."""
    folder = tmp_path_factory.mktemp("texts")
    trained = {
        "training": training(seeds=SEEDS, against=["everything"], at_once=SEEDS),
        "evaluation": {"command": metric_command()},
        "clustering": {"k": [2, 3], "buckets": 1, "iterations": 5},
        "selections": {"hard": {"keep": "hard"}, "easy": {"keep": "easy"}},
    }
    first = text_runs(folder, edited(docstrings(30), 1), shards=1, epsilons=["keep=60%"], model="first", **trained)
    # What is not changed back is not made again: both share the source.
    settings = {name: value for name, value in first.settings.items() if name not in ("selections", "model")}
    settings |= {"model": "other", "epsilons": ["keep=80%"], "clustering": {"k": [2], "buckets": 1}}
    other = StageRuns(settings, first.graph)
    StageRuns(settings).run()
    for name in ("hard", "easy"):
        evaluate(first, name, *(["keep=60%|2", "keep=60%|3"] if name == "hard" else ["keep=60%|2"]))
    evaluate(other, None, "keep=80%|2")
    return {"first": first, "other": other}


def evaluate(runs: StageRuns, selection: str | None, *keys: str) -> None:
    """Train on everything and on some kept sets, and measure the models."""
    for stage in ("everything_masks", "everything_manifests", "everything_trained_models"):
        runs.make(stage, again=False)
    for stage in ("trained_models", "evaluations"):
        runs.make(stage, *keys, again=False, selection=selection)


def write_project(folder: Path, runs: dict[str, StageRuns], kept_sets: list[dict[str, Any]], **changes: Any) -> Path:
    pipelines = [each.changed(**changes.get(name, {})).settings for name, each in runs.items()]
    return comparison_projects.write_project(
        folder, pipelines, COMPONENT, {"name": "strategies", "kept_sets": kept_sets}
    )


def named(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": name, **kept_set, **changes.get(name, {})} for name, kept_set in EXPECTED.items()]


def kept(runs: dict[str, StageRuns]) -> dict[str, set[str]]:
    """The keys of the manifests that are compared."""
    first = {name: runs["first"].kept_keys(f"keep=60%|{EXPECTED[name]['k']}", str(EXPECTED[name]["selection"]))
             for name in ("hard", "easy", "k = 3")}  # fmt: skip
    return {name: set(keys) for name, keys in first.items()} | {"other": set(runs["other"].kept_keys("keep=80%|2"))}


def test_models_of_strategies_k_and_pipelines_are_compared_and_a_check_tells_when_they_change(
    runs: dict[str, StageRuns], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(tmp_path, runs, named())
    definitions = load(tmp_path, monkeypatch)
    graph = definitions.resolve_asset_graph()
    evaluations = [["toy", "first", "hard"], ["toy", "first", "easy"], ["toy", "other"]]
    assert graph.get(KEY).parent_keys == {dg.AssetKey([*parts, "evaluations"]) for parts in evaluations}
    (hard,) = (dep for dep in graph.get(KEY).assets_def.get_asset_spec(KEY).deps if "hard" in dep.asset_key.path)
    assert hard.partition_mapping == dg.SpecificPartitionsPartitionMapping(["keep=60%|2", "keep=60%|3"])

    with dg.instance_for_test() as instance:
        result = comparison_job(definitions, KEY).execute_in_process(instance=instance)
    (check,) = result.get_asset_check_evaluations()
    assert check.passed
    found = metadata_of(result, NODE)
    assert found["comparison"].startswith("![Models trained on the compared kept sets](data:image/png;base64,")
    assert (found["compared"], "not compared" in found) == (2 * 6, False)

    # The toy's number is that of the different items it was trained on, and a quarter of its seed.
    expected = {name: [len(keys) + seed / 4 for seed in range(SEEDS)] for name, keys in kept(runs).items()}
    table = pl.read_parquet(found["all_kept_sets"]).filter(metric="distinct")
    assert table["kept_set"].to_list() == list(EXPECTED)
    assert table["mean"].to_list() == [statistics.fmean(values) for values in expected.values()]
    assert table["deviation"].to_list() == [pytest.approx(statistics.stdev(each)) for each in expected.values()]
    assert table["selection"].to_list() == ["hard", "easy", "hard", None]
    assert table["k"].to_list() == ["2", "2", "3", "2"]
    everything = table["everything_mean"].unique().to_list()
    assert len(everything) == 1
    items = everything[0] - statistics.fmean(range(SEEDS)) / 4
    assert table["share"].to_list() == [pytest.approx(len(keys) / items) for keys in kept(runs).values()]
    verdicts = {
        (row.data["first"], row.data["second"]): row.data["the first is"]
        for row in found["verdicts"].records
        if row.data["metric"] == "distinct"
    }
    pooled = statistics.stdev([0, 1 / 4])
    for (first, second), said in verdicts.items():
        difference = statistics.fmean(expected[first]) - statistics.fmean(expected[second])
        clear = "better" if difference > 0 else "worse"
        assert said == (clear if abs(difference) > 2 * pooled else "within the spread")
    assert verdicts["hard", "other"] == "worse"


def test_evaluations_that_were_made_again_are_named_by_the_check_and_other_commands_are_not_compared(
    runs: dict[str, StageRuns], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"other": {"evaluation": {"command": metric_command("other")}}}
    write_project(tmp_path, runs, named(), **changed)
    definitions = load(tmp_path, monkeypatch)
    (check,) = check_job(definitions, KEY).execute_in_process().get_asset_check_evaluations()
    assert not check.passed
    assert "nothing was compared yet" in str(check.description)
    job = comparison_job(definitions, KEY)
    with pytest.raises(Exception, match=r"materialise toy/other/evaluations, partition keep=80%\|2"):
        job.execute_in_process()
    runs["other"].changed(**changed["other"]).make("evaluations", "keep=80%|2")
    result = job.execute_in_process()
    rows = [row.data for row in metadata_of(result, NODE)["not compared"].records]
    assert [(row["first"], row["second"], row["not compared"]) for row in rows] == [
        (name, "other", "measured by different commands") for name in ("hard", "easy", "k = 3")
    ]
    runs["other"].make("evaluations", "keep=80%|2")
    (check,) = check_job(definitions, KEY).execute_in_process().get_asset_check_evaluations()
    assert not check.passed
    assert "made again since: other (" in str(check.description)


@pytest.mark.parametrize(
    ("kept_set", "changes", "problem"),
    [
        ("easy", {"k": 7}, "attributes.kept_sets.1.k: '7' is none of those that there are: 2, 3"),
        ("easy", {"epsilon": 0.1}, "attributes.kept_sets.1.epsilon: '0.1' is none of those that there are: keep=60%"),
        ("easy", {"dataset": "tyo"}, "attributes.kept_sets.1.dataset: 'tyo' is none of those that there are: toy"),
        ("easy", {"model": "clip"}, "attributes.kept_sets.1.model: 'clip' is none of those that there are: first, o"),
        ("easy", {"selection": "best"}, "attributes.kept_sets.1.selection: 'best' is none of those that there are: e"),
        ("easy", {"baseline": "random"}, "attributes.kept_sets.1.baseline: no such setting; near names"),
        ("easy", {"name": "hard"}, "attributes.kept_sets: the name hard is given more than once; each needs its own"),
    ],
)
def test_a_kept_set_that_is_not_there_is_told_with_its_line_and_what_there_is(
    runs: dict[str, StageRuns],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept_set: str,
    changes: dict[str, Any],
    problem: str,
) -> None:
    path = write_project(tmp_path, runs, named(**{kept_set: changes}))
    (line,) = problems_of(tmp_path, monkeypatch)
    assert line.startswith(f"{path}:{line_of(path, problem)} {problem}")


def problems_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a check of the project's definitions fails with."""
    head, *lines = check_failure(folder, monkeypatch).splitlines()
    assert head.startswith(f"{len(lines)} problem")
    return lines


def test_a_pipeline_that_trains_nothing_is_told_with_its_line(
    runs: dict[str, StageRuns], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_project(tmp_path, runs, named(), other={"training": None, "evaluation": {"command": None}})
    (line,) = problems_of(tmp_path, monkeypatch)
    problem = "attributes.kept_sets.3.model: the pipeline toy/other has no `training`, so that no model is trained"
    assert line.startswith(f"{path}:{line_of(path, problem)} {problem}")


def test_a_new_comparison_explains_every_setting_and_its_commented_lines_can_be_uncommented(tmp_path: Path) -> None:
    params = json.dumps({"dataset": "emoji", "selection": "hard, middle,easy"})
    scaffold_object(tmp_path / "strategies", COMPONENT, params, "yaml", tmp_path)
    text = (tmp_path / "strategies" / "defs.yaml").read_text()
    written = yaml.safe_load(text)
    assert written["type"] == COMPONENT
    comparison = ModelComparison.model_validate(written["attributes"])
    assert comparison.name == "strategies"
    assert [each.selection for each in comparison.kept_sets] == ["hard", "middle", "easy"]
    prose = " ".join(line.strip().removeprefix("# ") for line in text.splitlines() if line.lstrip().startswith("# "))
    listed = ModelComparison.model_fields["kept_sets"].annotation.__args__[0]
    for field in (*ModelComparison.model_fields.values(), *listed.model_fields.values()):
        assert (field.description or "?") in prose
    everything = yaml.safe_load(COMMENTED_SETTING.sub(r"\1", text))["attributes"]
    assert ModelComparison.model_validate(everything) == comparison
    assert list(everything) == list(ModelComparison.model_fields)
    schema = TrainingComparison.get_model_cls().model_json_schema()
    assert {"name", "kept_sets", "store"} <= schema["properties"].keys()
