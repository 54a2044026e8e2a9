"""The graph as Dagster sees it, and how it is declared in YAML."""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from PIL import Image

from semdedup_assets.assets.pipeline import pipeline_definitions
from semdedup_assets.execution.stage import ANALYSE, EVALUATE
from semdedup_assets.loading import NotLoadedError
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH as STAGES
from semdedup_assets_tests.pipeline_runs import PipelineRuns
from semdedup_assets_tests.toy_source import vectors_settings

GROUPS = {ANALYSE: "toy__precomputed__analyses", EVALUATE: "toy__precomputed__training"}

# key: (dimensions of its partitions, the keys it depends on)
GRAPH = {
    "toy/shards": (("toy/shard",), ()),
    "toy/shard_index": ((), ()),
    "toy/precomputed/estimate": ((), ("toy/shard_index", "toy/shards")),
    "toy/precomputed/items": (("toy/shard",), ("toy/shards",)),
    "toy/precomputed/embeddings": (("toy/shard",), ("toy/shards",)),
    "toy/precomputed/training_sample": ((), ("toy/precomputed/embeddings",)),
    # Of the embeddings for the sake of backfills, which find no way through the sample.
    "toy/precomputed/centroids": (("k",), ("toy/precomputed/embeddings", "toy/precomputed/training_sample")),
    "toy/precomputed/assignments": (("k", "shard"), ("toy/precomputed/centroids", "toy/precomputed/embeddings")),
    "toy/precomputed/duplicate_scores": (("bucket", "k"), ("toy/precomputed/assignments", "toy/shard_index")),
    "toy/precomputed/keep_masks": (("epsilon", "k"), ("toy/precomputed/duplicate_scores",)),
    "toy/precomputed/manifests": (
        ("epsilon", "k"),
        ("toy/precomputed/items", "toy/precomputed/keep_masks", "toy/shard_index"),
    ),
    "toy/precomputed/detection_efficiency": (
        ("k",),
        ("toy/precomputed/assignments", "toy/precomputed/centroids", "toy/shard_index"),
    ),
    "toy/precomputed/figures": (("k",), ("toy/precomputed/duplicate_scores", "toy/precomputed/keep_masks")),
    "toy/precomputed/galleries": (
        ("epsilon", "k"),
        (
            "toy/precomputed/duplicate_scores",
            "toy/precomputed/items",
            "toy/precomputed/keep_masks",
            "toy/shard_index",
        ),
    ),
    "toy/precomputed/removed_items": (
        ("epsilon", "k"),
        ("toy/precomputed/items", "toy/precomputed/keep_masks", "toy/shard_index"),
    ),
    "toy/precomputed/rule_comparison": (("epsilon", "k"), ("toy/precomputed/keep_masks",)),
    "toy/precomputed/epsilon_estimates": (("k",), ("toy/precomputed/assignments", "toy/shard_index")),
    "toy/precomputed/epsilon_estimate_errors": (
        ("k",),
        ("toy/precomputed/duplicate_scores", "toy/precomputed/epsilon_estimates"),
    ),
    "toy/precomputed/clustering_comparison": ((), ("toy/precomputed/duplicate_scores",)),
    "toy/precomputed/cost": ((), ("toy/precomputed/duplicate_scores",)),
    "toy/precomputed/outliers": (
        ("k",),
        ("toy/precomputed/assignments", "toy/precomputed/items", "toy/shard_index"),
    ),
    "toy/precomputed/baseline_overlaps": (
        ("epsilon", "k"),
        ("toy/precomputed/items", "toy/precomputed/keep_masks", "toy/shard_index"),
    ),
    "toy/precomputed/everything_masks": ((), ("toy/precomputed/embeddings", "toy/shard_index")),
    "toy/precomputed/everything_manifests": (
        (),
        ("toy/precomputed/everything_masks", "toy/precomputed/items", "toy/shard_index"),
    ),
    "toy/precomputed/data_screen": (
        ("epsilon", "k"),
        (
            "toy/precomputed/duplicate_scores",
            "toy/precomputed/items",
            "toy/precomputed/keep_masks",
            "toy/shard_index",
        ),
    ),
    "toy/precomputed/random_masks": (("epsilon", "k"), ("toy/precomputed/keep_masks",)),
    "toy/precomputed/random_manifests": (
        ("epsilon", "k"),
        ("toy/precomputed/items", "toy/precomputed/random_masks", "toy/shard_index"),
    ),
}


def dimensions(partitions: dg.PartitionsDefinition | None) -> tuple[str, ...]:
    if isinstance(partitions, dg.MultiPartitionsDefinition):
        return tuple(sorted(dimension.name for dimension in partitions.partitions_defs))
    if isinstance(partitions, dg.DynamicPartitionsDefinition):
        return (str(partitions.name),)
    return () if partitions is None else ("k",)


def test_keys_partitions_and_dependencies_are_these(tmp_path: Path) -> None:
    graph = pipeline_definitions(Pipeline.model_validate(vectors_settings(tmp_path))).resolve_asset_graph()
    found = {}
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        parents = tuple(sorted(parent.to_user_string() for parent in node.parent_keys))
        found[key.to_user_string()] = (dimensions(node.partitions_def), parents)
    assert found == GRAPH


def test_partitions_are_the_settings_k_epsilons_and_buckets(tmp_path: Path) -> None:
    settings = vectors_settings(tmp_path) | {
        "epsilons": [0.1, "keep=50%"],
        "clustering": {"k": [7, "auto"], "buckets": 2},
    }
    graph = pipeline_definitions(Pipeline.model_validate(settings)).resolve_asset_graph()

    def partitions(asset: str) -> list[str]:
        definition = graph.get(dg.AssetKey(["toy", "precomputed", asset])).partitions_def
        assert definition is not None
        return list(definition.get_partition_keys())

    assert partitions("centroids") == ["7", "auto"]
    assert sorted(partitions("duplicate_scores")) == ["b0000|7", "b0000|auto", "b0001|7", "b0001|auto"]
    assert sorted(partitions("manifests")) == ["0.1|7", "0.1|auto", "keep=50%|7", "keep=50%|auto"]


def test_two_models_of_one_dataset_share_its_shards(tmp_path: Path) -> None:
    settings = vectors_settings(tmp_path)
    other_columns = {**settings["source"], "columns": {"quality": "float"}}
    pipelines = [
        Pipeline.model_validate({**settings, **own})
        for own in ({"model": "one"}, {"model": "two", "source": other_columns})
    ]
    merged = dg.Definitions.merge(*(pipeline_definitions(pipeline) for pipeline in pipelines))
    keys = {key.to_user_string() for key in merged.resolve_asset_graph().get_all_asset_keys()}
    assert sum(key.endswith("shards") for key in keys) == 1
    assert {"toy/one/manifests", "toy/two/manifests"} <= keys
    dg.Definitions.validate_loadable(merged)
    sensors = {sensor.name for sensor in merged.get_repository_def().sensor_defs}
    of_pipelines = {f"toy__{model}__{name}" for model in ("one", "two") for name in ("automation", "up_to_date")}
    assert sensors == {"toy__files", *of_pipelines}


def test_each_asset_is_of_a_group_and_a_step_and_describes_its_columns(tmp_path: Path) -> None:
    settings = vectors_settings(tmp_path) | {"training": {"command": "train {manifest} {seed} {out}"}}
    graph = pipeline_definitions(Pipeline.model_validate(settings)).resolve_asset_graph()
    steps = {}
    groups = {stage.name: GROUPS[stage.step] for stage in STAGES.stages if stage.step in GROUPS}
    # Materialised with all else it would estimate what is just being made.
    groups["estimate"] = GROUPS[ANALYSE]
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.group_name == groups.get(key.path[-1], "toy__precomputed")
        assert node.description
        steps[key.path[-1]] = node.tags["semdedup/step"]
        if "dagster/column_schema" in node.metadata:
            assert node.metadata["dagster/column_schema"].columns
    assert {"evaluations", "trained_models"} <= steps.keys()
    assert len(set(steps.values())) >= 5
    assert steps["embeddings"] < steps["centroids"] < steps["duplicate_scores"] < steps["keep_masks"]
    assert steps["keep_masks"] < steps["manifests"]


def test_selections_by_name_repeat_what_each_has_of_its_own(tmp_path: Path) -> None:
    settings = vectors_settings(tmp_path) | {"selections": {"paper": {}, "simple": {"keep": "easy"}}}
    graph = pipeline_definitions(Pipeline.model_validate(settings)).resolve_asset_graph()
    keys = {key.to_user_string() for key in graph.get_all_asset_keys()}
    own = {
        "duplicate_scores",
        "keep_masks",
        "manifests",
        "figures",
        "galleries",
        "removed_items",
        "rule_comparison",
        "epsilon_estimates",
        "epsilon_estimate_errors",
        "clustering_comparison",
        "cost",
        "random_masks",
        "random_manifests",
        "baseline_overlaps",
        "data_screen",
    }
    shared = {key for key in GRAPH if key.rpartition("/")[2] not in own}
    assert keys == shared | {f"toy/precomputed/{name}/{stage}" for name in ("paper", "simple") for stage in own}
    parents = graph.get(dg.AssetKey(["toy", "precomputed", "simple", "keep_masks"])).parent_keys
    assert parents == {dg.AssetKey(["toy", "precomputed", "simple", "duplicate_scores"])}


def test_the_owners_own_every_asset(tmp_path: Path) -> None:
    settings = vectors_settings(tmp_path) | {"owners": ["team:data", "a@example.org"]}
    graph = pipeline_definitions(Pipeline.model_validate(settings)).resolve_asset_graph()
    owners = {key.to_user_string(): list(graph.get(key).owners) for key in graph.get_all_asset_keys()}
    assert {"toy/shards", "toy/shard_index"} < owners.keys()
    assert all(found == ["team:data", "a@example.org"] for found in owners.values())


def test_loading_the_code_location_of_the_demos_does_not_import_torch() -> None:
    script = """
import sys
from semdedup_assets.definitions import defs
defs().resolve_asset_graph()
heavy = {"torch", "open_clip", "transformers", "faiss", "polars", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def project(folder: Path, attributes: dict[str, Any]) -> Path:
    """A Dagster project of somebody else's, with one pipeline in a `defs.yaml`."""
    package = folder / "their_project"
    (package / "defs" / "toy").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "defs" / "__init__.py").write_text("")
    (folder / "pyproject.toml").write_text(
        "[project]\nname = 'their-project'\nversion = '0'\n"
        "[tool.dg]\ndirectory_type = 'project'\n[tool.dg.project]\nroot_module = 'their_project'\n"
    )
    document = {"type": "semdedup_assets.SemDedupPipeline", "attributes": attributes}
    (package / "defs" / "toy" / "defs.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return folder


def load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    monkeypatch.syspath_prepend(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "their_project"]:
        monkeypatch.delitem(sys.modules, name)
    return dg.load_from_defs_folder(path_within_project=folder)


def test_a_defs_yaml_in_another_project_gives_the_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    definitions = load(project(tmp_path, vectors_settings(tmp_path)), monkeypatch)
    keys = {key.to_user_string() for key in definitions.resolve_asset_graph().get_all_asset_keys()}
    assert keys == set(GRAPH)


def test_dagsters_list_of_components_holds_ours() -> None:
    import semdedup_assets

    found = [
        name
        for name, member in inspect.getmembers(semdedup_assets, inspect.isclass)
        if issubclass(member, dg.Component)
    ]
    assert found == ["ManifestComparison", "SemDedupPipeline", "TrainingComparison"]


def test_environment_variables_fill_a_defs_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "from-environment").mkdir()
    monkeypatch.setenv("TOY_FOLDER", str(tmp_path / "from-environment"))
    settings = vectors_settings(tmp_path)
    settings["source"]["path"] = "{{ env.TOY_FOLDER }}"
    definitions = load(project(tmp_path, settings), monkeypatch)
    metadata = definitions.resolve_asset_graph().get(dg.AssetKey(["toy", "shards"])).metadata
    assert metadata["source"].value["path"] == str(tmp_path / "from-environment")


def line_of(text: str, path: Path) -> int:
    return next(number for number, line in enumerate(path.read_text().splitlines(), 1) if text in line)


@pytest.mark.parametrize(
    ("change", "line", "messages"),
    [
        ({"epsilon": [0.1]}, "epsilon:", ["epsilon"]),
        ({"epsilons": [3.5]}, "- 3.5", ["epsilons", "3.5", r"keep=50%", "higher epsilon removes more"]),
        ({"clustering": {"k": [0]}}, "- 0", ["clustering.k", "0 is not a positive number of clusters"]),
        ({"clustering": {"kk": [5]}}, "kk:", ["clustering.kk"]),
        ({"manifests": ["tsv"]}, "- tsv", ["manifests", "webdataset"]),
        ({"encoder": {"kind": "openclap"}}, "kind: openclap", ["encoder", "openclap", "openclip"]),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else None,
)
def test_a_mistake_is_reported_with_file_line_and_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], line: str, messages: list[str]
) -> None:
    folder = project(tmp_path, {**vectors_settings(tmp_path), **change})
    monkeypatch.setenv("DAGSTER_IS_DEFS_VALIDATION_CLI", "1")
    monkeypatch.setattr(sys, "tracebacklimit", 1000, raising=False)
    with pytest.raises(NotLoadedError) as caught:
        load(folder, monkeypatch)
    reported = str(caught.value)
    path = folder / "their_project" / "defs" / "toy" / "defs.yaml"
    assert f"{path}:{line_of(line, path)}" in reported
    for message in messages:
        assert message in reported


def test_an_unknown_model_is_reported_with_near_names_before_anything_is_embedded(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "source" / "a.png")
    settings = vectors_settings(tmp_path) | {
        "source": {"kind": "folder", "path": str(tmp_path / "source")},
        "encoder": {"kind": "openclip", "model": "ViT-B-61", "pretrained": "openai"},
    }
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(ValueError, match="ViT-B-16"):
        PipelineRuns(instance, settings).refresh()


def test_dagsters_own_command_validates_a_project_and_refuses_a_wrong_one(tmp_path: Path) -> None:
    folder = project(tmp_path, {**vectors_settings(tmp_path), "epsilons": [3]})
    (folder / "their_project" / "definitions.py").write_text(
        "import dagster as dg\nfrom pathlib import Path\n\n\n@dg.definitions\ndef defs():\n"
        "    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)\n"
    )
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-m", "their_project.definitions"]
    environment = {**os.environ, "DAGSTER_HOME": "", "PYTHONPATH": str(folder)}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert ran.returncode != 0
    assert "defs.yaml" in ran.stdout + ran.stderr
    assert "higher epsilon removes more" in ran.stdout + ran.stderr
    assert "Stack Trace" not in ran.stdout + ran.stderr
