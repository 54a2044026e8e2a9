"""A project in which something is wrong: the rest is loaded, what is wrong is an asset that says why, and a check fails."""

import re
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from semdedup_assets import component
from semdedup_assets.assets.not_loaded import NotLoaded
from semdedup_assets.defs_folder import load_from_defs_folder
from semdedup_assets.loading import NotLoadedError
from semdedup_assets_tests.test_component import load, named_vectors, project
from semdedup_assets_tests.toy_source import near_duplicates, write_shard

GOOD = dg.AssetKey(["good", "precomputed", "manifests"])
COMPARISON = """\
type: semdedup_assets.ManifestComparison
attributes:
  name: robustness
  manifests:
    - {dataset: toy, epsilon: 0.05, name: a}
    - {dataset: good, epsilon: 0.05, name: b}
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / "their_project" / "defs" / name / "defs.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_project(folder: Path, toy: str, **others: str) -> Path:
    """A project with a pipeline that is right, and one to be tried; returns where that is written."""
    path = project(folder, toy)
    write(folder, "good", named_vectors("dataset: good"))
    for name, text in others.items():
        write(folder, name, text)
    return path


def not_loaded(definitions: dg.Definitions) -> dict[str, str]:
    """What is shown of each that is not loaded, by the first part of its key."""
    specs = definitions.resolve_all_asset_specs()
    return {
        spec.key.path[0]: re.sub(r"\\(.)", r"\1", str(spec.metadata["problems"].value))
        for spec in specs
        if spec.key.path[1:] == ["not_loaded"]
    }


def check_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    with monkeypatch.context() as checking:
        checking.setenv("DAGSTER_IS_DEFS_VALIDATION_CLI", "1")
        checking.setattr(sys, "tracebacklimit", 1000, raising=False)
        with pytest.raises(NotLoadedError) as caught:
            load_from_defs_folder(path_within_project=folder)
    return str(caught.value)


TOY = named_vectors("dataset: toy")
WRONG_SETTINGS = {
    "a wrong value": (f"{TOY}  epsilons: [5]\n", 6, "attributes.epsilons.0: 5 is neither an epsilon"),
    "an unknown key": (
        f"{TOY}  clustering: {{kk: 3}}\n",
        6,
        "attributes.clustering.kk: no such setting; near names: k",
    ),
    "a missing key": ("type: semdedup_assets.SemDedupPipeline\nattributes:\n  dataset: toy\n", 2, "source: missing"),
    "a variable that is not set": (f"{TOY}  store: '{{{{ env.NOT_SET }}}}'\n", 6, "variable NOT_SET is not set"),
    "no model": (
        TOY.replace("{kind: precomputed}", "{kind: transformers, model: ./gone}"),
        5,
        "no such file or folder",
    ),
}
WRONG_SETTINGS |= {
    "a key given twice": (f"{TOY}  epsilons: [0.05]\n  epsilons: [0.2]\n", 7, "epsilons: is in line 6 too"),
    "a schedule that never comes": (
        f"{TOY}  refresh: {{schedule: 0 99 * * *}}\n",
        6,
        "refresh.schedule: Found invalid",
    ),
    "an owner of no kind": (f"{TOY}  owners: [me]\n", 6, "owners: Invalid owner 'me'"),
    "an octal number": (f"{TOY}  clustering: {{k: [010]}}\n", 6, "clustering.k.0: 010 means 8 in YAML"),
}
WRONG_YAML = {
    "a bare template": (f"{TOY}  store: {{{{ env.HOME }}}}\n", 6, "put the template into quotes"),
    "an alias within itself": (f"{TOY}  galleries: &a {{groups: *a}}\n", "", "an alias"),
    "no YAML": (f"{TOY}  epsilons: [5\n", 7, "no valid YAML (column 1): expected ',' or ']'"),
    "another type": (TOY.replace("Pipeline", "Pipelin"), 1, "near names: semdedup_assets.SemDedupPipeline"),
    "another module": (TOY.replace("semdedup_assets.", "nowhere."), 1, "Module `nowhere` not found"),
    "an unknown key at the top": (TOY.replace("attributes", "atributes"), 2, "near names: attributes"),
    "a list": ("- toy\n", 1, "not a mapping with `type` and `attributes`"),
    "another post-processing": (f"{TOY}post_processing: {{assets: [{{targett: a}}]}}\n", 1, "targett"),
}


@pytest.mark.parametrize("kind", WRONG_SETTINGS)
def test_wrong_settings_take_nothing_else_away_with_dagsters_own_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    text, line, problem = WRONG_SETTINGS[kind]
    path = write_project(tmp_path, text)
    definitions = load(tmp_path, monkeypatch)
    assert definitions.resolve_asset_graph().has(GOOD)
    assert definitions.resolve_job_def("good__precomputed__refresh")
    shown = not_loaded(definitions)
    assert set(shown) == {"toy"}
    assert f"{path}:{line} " in shown["toy"]
    assert problem in shown["toy"]
    for reported in shown["toy"].splitlines():
        assert reported.removeprefix("- ") in check_fails(tmp_path, monkeypatch)


@pytest.mark.parametrize("kind", WRONG_YAML)
def test_yaml_that_cannot_be_read_takes_nothing_else_away_with_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    text, line, problem = WRONG_YAML[kind]
    path = write_project(tmp_path, text)
    monkeypatch.syspath_prepend(str(tmp_path))
    forget_project(monkeypatch)
    definitions = load_from_defs_folder(path_within_project=tmp_path)
    assert definitions.resolve_asset_graph().has(GOOD)
    shown = not_loaded(definitions)
    assert set(shown) == {"toy"}
    assert f"{path}:{line}" in shown["toy"]
    assert problem in shown["toy"]
    assert shown["toy"].removeprefix("- ") in check_fails(tmp_path, monkeypatch)


def forget_project(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "their_project"]:
        monkeypatch.delitem(sys.modules, name)


def test_other_documents_of_a_file_and_folders_with_settings_of_their_own_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(tmp_path, f"{TOY}---\n{TOY.replace('Pipeline', 'Pipelin')}")
    tagged = (
        "type: dagster.DefsFolderComponent\npost_processing: {assets: [{target: '*', attributes: {tags: {a: b}}}]}\n"
    )
    write(tmp_path, "more", tagged)
    write(tmp_path, "more/one", named_vectors("dataset: one"))
    write(tmp_path, "more/two", "{")
    monkeypatch.syspath_prepend(str(tmp_path))
    forget_project(monkeypatch)
    definitions = load_from_defs_folder(path_within_project=tmp_path)
    assert set(not_loaded(definitions)) == {"toy", "two"}
    graph = definitions.resolve_asset_graph()
    assert graph.has(dg.AssetKey(["toy", "shards"]))
    assert graph.get(dg.AssetKey(["one", "shards"])).tags["a"] == "b"


def test_of_two_pipelines_that_collide_the_second_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_project(tmp_path, named_vectors("dataset: good"))
    definitions = load(tmp_path, monkeypatch)
    assert definitions.resolve_asset_graph().has(GOOD)
    assert f"{path}:3 attributes.dataset: pipeline good/precomputed and" in not_loaded(definitions)["good"]


def test_a_comparison_says_that_a_pipeline_is_not_loaded_and_compares_no_other_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_project(tmp_path, f"{TOY}  max_skipped: 5\n", comparison=COMPARISON, again=COMPARISON)
    shown = not_loaded(load(tmp_path, monkeypatch))
    assert set(shown) == {"toy", "robustness", "robustness-2"}
    assert "manifests.0.dataset: the pipeline toy is not loaded; mend it first: " in shown["robustness"]
    assert f"{path}:6 attributes.max_skipped" in shown["robustness"]
    assert "is also the name of the comparison in" in shown["robustness-2"]
    path.write_text(f"{TOY}  model: a\n---\n{TOY}  model: b\n  max_skipped: 5\n")
    shown = not_loaded(load(tmp_path, monkeypatch))
    assert "the pipeline toy is not loaded" in shown["robustness"]


def test_a_fault_of_ours_is_named_with_its_type_and_shown_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(tmp_path, TOY)
    original = component.pipeline_definitions

    def faulty(pipeline: Any, **settings: Any) -> dg.Definitions:
        if pipeline.dataset == "toy":
            raise KeyError(pipeline.dataset)
        return original(pipeline, **settings)

    monkeypatch.setattr(component, "pipeline_definitions", faulty)
    definitions = load(tmp_path, monkeypatch)
    assert definitions.resolve_asset_graph().has(GOOD)
    assert "KeyError: 'toy' (a fault of semdedup-assets" in not_loaded(definitions)["toy"]
    (spec,) = (spec for spec in definitions.resolve_all_asset_specs() if spec.key.path[1:] == ["not_loaded"])
    assert "Traceback" in str(spec.metadata["traceback"].value)
    assert "Traceback" in check_fails(tmp_path, monkeypatch)


def test_what_is_not_loaded_fails_with_the_problems_where_it_is_materialised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(tmp_path, f"{TOY}  max_skipped: 5\n")
    definitions = load(tmp_path, monkeypatch)
    key = dg.AssetKey(["toy", "not_loaded"])
    assert definitions.resolve_asset_graph().get(key).group_name == "toy__not_loaded"
    job = dg.define_asset_job("make", selection=dg.AssetSelection.assets(key))
    with pytest.raises(dg.Failure, match="max_skipped"):
        dg.Definitions.merge(definitions, dg.Definitions(jobs=[job])).resolve_job_def("make").execute_in_process()


def test_jobs_and_sensors_of_what_is_not_loaded_are_there_again_once_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_project(tmp_path, f"{TOY}  epsilons: [5]\n")
    broken = load(tmp_path, monkeypatch).get_repository_def()
    assert not broken.has_sensor_def("toy__files")
    assert broken.has_sensor_def("good__files")
    path.write_text(TOY)
    mended = load(tmp_path, monkeypatch)
    assert not not_loaded(mended)
    assert mended.get_repository_def().has_sensor_def("toy__files")
    assert mended.resolve_job_def("toy__precomputed__refresh")


def test_a_check_of_definitions_looks_into_the_source_and_loading_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path, "a", near_duplicates(0))
    path = write_project(tmp_path, TOY.replace("path: vectors", f"path: {tmp_path}/source, key: name"))
    assert not not_loaded(load(tmp_path, monkeypatch))
    (line,) = check_fails(tmp_path, monkeypatch).splitlines()[1:]
    assert line.startswith(f"{path}:4 attributes.source.key: ")
    assert "set `metadata`" in line


def test_a_component_that_is_not_loaded_has_no_settings() -> None:
    broken = component.SemDedupPipeline(NotLoaded("toy", ("defs.yaml:1: wrong",)))
    with pytest.raises(Exception, match=r"defs\.yaml:1: wrong"):
        _ = broken.pipeline
