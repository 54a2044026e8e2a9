"""A comparison of manifests in a `defs.yaml`: what it finds, what it makes of them, and how what is wrong is reported."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
import yaml
from dagster.components.component_scaffolding import scaffold_object

from semdedup_assets.comparison_settings import Comparison
from semdedup_assets.component import ManifestComparison
from semdedup_assets_tests import comparison_projects
from semdedup_assets_tests.comparison_projects import check_job, comparison_job, line_of, metadata_of
from semdedup_assets_tests.stage_runs import StageRuns, small_pipeline
from semdedup_assets_tests.test_component import COMMENTED_SETTING, check_failure, load

COMPONENT = "semdedup_assets.ManifestComparison"
KEY = dg.AssetKey(["robustness", "manifest_comparison"])
EXPECTED = {
    "k = 3": {"dataset": "toy", "selection": "hard", "k": 3, "epsilon": "keep=50%"},
    "k = 9": {"dataset": "toy", "selection": "hard", "k": 9, "epsilon": "keep=50%"},
    "easy": {"dataset": "toy", "model": "precomputed", "selection": "easy", "k": 3, "epsilon": "keep=50%"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    """A pipeline with two k and two strategies, whose manifests are made."""
    folder = tmp_path_factory.mktemp("compared")
    made = small_pipeline(
        folder,
        shards=2,
        clustering={"k": [3, 9], "buckets": 1},
        selections={"hard": {"keep": "hard"}, "easy": {"keep": "easy"}},
        epsilons=["0.05", "keep=50%"],
        manifests=["parquet", "removed"],
    )
    made.run()
    return made


def write_project(folder: Path, runs: StageRuns, manifests: list[dict[str, Any]]) -> Path:
    return comparison_projects.write_project(
        folder, [runs.settings], COMPONENT, {"name": "robustness", "manifests": manifests}
    )


def named(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": name, **manifest, **changes.get(name, {})} for name, manifest in EXPECTED.items()]


def test_manifests_of_the_project_are_compared_and_a_check_tells_when_they_change(
    runs: StageRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = runs.manifest("keep=50%|3", "hard")[0].name
    write_project(tmp_path, runs, [*named(), {**EXPECTED["k = 3"], "version": fixed}])
    definitions = load(tmp_path, monkeypatch)
    graph = definitions.resolve_asset_graph()
    assert graph.get(KEY).parent_keys == {
        dg.AssetKey(["toy", "precomputed", name, "manifests"]) for name in ("hard", "easy")
    }
    (hard,) = (dep for dep in graph.get(KEY).assets_def.get_asset_spec(KEY).deps if "hard" in dep.asset_key.path)
    assert hard.partition_mapping == dg.SpecificPartitionsPartitionMapping(["keep=50%|3", "keep=50%|9"])

    with dg.instance_for_test() as instance:
        result = comparison_job(definitions, KEY).execute_in_process(instance=instance)
        (check,) = result.get_asset_check_evaluations()
        assert check.passed
        found = metadata_of(result, "robustness__manifest_comparison")
        kept = {name: set(runs.kept_keys(f"keep=50%|{at['k']}", at["selection"])) for name, at in EXPECTED.items()}
        kept[f"hard k = 3 {fixed}"] = kept["k = 3"]
        for row, (name, own) in zip(found["matrix"].records, kept.items(), strict=True):
            assert row.data["I(row, column)"] == name
            assert [float(row.data[other]) for other in kept] == [
                pytest.approx(len(own & there) / len(own), abs=5e-4) for there in kept.values()
            ]
        assert found["intersections"].startswith("![Intersections of kept sets](data:image/png;base64,")
        changed = pl.read_parquet(found["all_that_changed"])
        assert (
            set(changed.filter(first="k = 3", second="k = 9", in_first="kept")["key"]) == kept["k = 3"] - kept["k = 9"]
        )
        assert {row.data["reason"] for row in found["changed_examples"].records} == {"removed"}

    runs.changed(manifests=["parquet", "removed", "keep_lists"]).make("manifests", "keep=50%|9", selection="hard")
    (check,) = check_job(definitions, KEY).execute_in_process().get_asset_check_evaluations()
    assert not check.passed
    assert "k = 9 (" in str(check.description)


@pytest.mark.parametrize(
    ("manifest", "changes", "problem"),
    [
        ("k = 9", {"k": 7}, "attributes.manifests.1.k: '7' is none of those that there are: 3, 9"),
        (
            "k = 9",
            {"epsilon": 0.1},
            "attributes.manifests.1.epsilon: '0.1' is none of those that there are: 0.05, k",
        ),
        ("k = 9", {"dataset": "tyo"}, "attributes.manifests.1.dataset: 'tyo' is none of those that there are: toy"),
        ("k = 9", {"model": "clip"}, "attributes.manifests.1.model: 'clip' is none of those that there are: precom"),
        (
            "k = 9",
            {"selection": "best"},
            "attributes.manifests.1.selection: 'best' is none of those that there are: e",
        ),
        ("k = 9", {"baseline": "luck"}, "attributes.manifests.1.baseline: 'luck' is none of those that there are: "),
        ("easy", {"name": "k = 3"}, "attributes.manifests: the name k = 3 is given more than once; each needs its own"),
        ("easy", {"kk": 3}, "attributes.manifests.2.kk: no such setting; near names: k"),
        ("easy", {"epsilon": "half"}, "attributes.manifests.2.epsilon: 'half' is neither an epsilon"),
    ],
)
def test_a_manifest_that_is_not_there_is_told_with_its_line_and_what_there_is(
    runs: StageRuns,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    manifest: str,
    changes: dict[str, Any],
    problem: str,
) -> None:
    path = write_project(tmp_path, runs, named(**{manifest: changes}))
    head, *lines = check_failure(tmp_path, monkeypatch).splitlines()
    assert head.startswith(f"{len(lines)} problem")
    (only,) = lines
    assert only.startswith(f"{path}:{line_of(path, problem)} {problem}")


def test_what_is_left_out_is_the_only_one_there_is_or_is_asked_for(
    runs: StageRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(
        tmp_path, runs, [{"dataset": "toy"}, {"dataset": "toy", "selection": "easy", "k": 3, "epsilon": 0.05}]
    )
    problems = check_failure(tmp_path, monkeypatch)
    assert "attributes.manifests.0.selection: missing; there are several: easy, hard" in problems


def test_a_new_comparison_explains_every_setting_and_its_commented_lines_can_be_uncommented(tmp_path: Path) -> None:
    params = json.dumps({"dataset": "emoji", "k": "10, 20,30-seed1"})
    scaffold_object(tmp_path / "robustness", COMPONENT, params, "yaml", tmp_path)
    text = (tmp_path / "robustness" / "defs.yaml").read_text()
    written = yaml.safe_load(text)
    assert written["type"] == COMPONENT
    comparison = Comparison.model_validate(written["attributes"])
    assert comparison.name == "robustness"
    assert [manifest.dataset for manifest in comparison.manifests] == ["emoji"] * 3
    assert [manifest.k for manifest in comparison.manifests] == ["10", "20", "30-seed1"]
    prose = " ".join(line.strip().removeprefix("# ") for line in text.splitlines() if line.lstrip().startswith("# "))
    listed = Comparison.model_fields["manifests"].annotation.__args__[0]
    for field in (*Comparison.model_fields.values(), *listed.model_fields.values()):
        assert (field.description or "?") in prose
    everything = yaml.safe_load(COMMENTED_SETTING.sub(r"\1", text))["attributes"]
    assert Comparison.model_validate(everything) == comparison
    assert list(everything) == list(Comparison.model_fields)
    schema = ManifestComparison.get_model_cls().model_json_schema()
    assert {"name", "manifests", "store"} <= schema["properties"].keys()
