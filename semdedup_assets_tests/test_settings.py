from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import pipeline_context

STAGES = (
    "items",
    "embeddings",
    "training_sample",
    "centroids",
    "assignments",
    "duplicate_scores",
    "keep_masks",
    "manifests",
)
VECTORS = {
    "dataset": "toy",
    "source": {
        "kind": "vectors",
        "path": "vectors",
        "columns": {"quality": "float", "licence": "string", "stars": "int", "mine": "bool"},
    },
    "encoder": {"kind": "precomputed"},
}
IMAGES = {
    "dataset": "photos",
    "source": {"kind": "folder", "path": "photos"},
    "encoder": {"kind": "openclip", "model": "ViT-B-16", "pretrained": "openai"},
}
TARS = {**IMAGES, "source": {"kind": "webdataset", "path": "tars"}}
TEXTS = {
    "dataset": "web",
    "source": {"kind": "jsonl", "path": "web"},
    "encoder": {"kind": "transformers", "model": "facebook/opt-125m"},
}


def changed(base: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    settings = deepcopy(base)
    *parents, last = path.split(".")
    inner = settings
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[last] = value
    return settings


@pytest.mark.parametrize(
    ("base", "path", "value", "where", "message"),
    [
        (
            IMAGES,
            "store",
            ".",
            "",
            "store: results lie in './photos', where `source.path`, 'photos', takes all files, so that",
        ),
        (
            VECTORS,
            "source.path",
            "data/**/*.npy",
            "",
            "store: results lie in 'data/toy', where `source.path`, 'data/**/*.npy', takes all files",
        ),
        (
            TEXTS,
            "source.path",
            "data",
            "",
            "use another store, or one below a folder whose name begins with `.` or `_`",
        ),
        (
            VECTORS,
            "epsilons",
            [2.1],
            "epsilons.0",
            "2.1 is neither an epsilon in [0, 2] nor a target such as `keep=50%`",
        ),
        (VECTORS, "epsilons", [0.05, -0.1], "epsilons.1", "a higher epsilon removes more"),
        (VECTORS, "epsilons", ["nan"], "epsilons.0", "'nan' is neither"),
        (VECTORS, "epsilons", [True], "epsilons.0", "True is neither"),
        (VECTORS, "epsilons", ["keep=0%"], "epsilons.0", "'keep=0%' is neither"),
        (VECTORS, "epsilons", ["keep=101%"], "epsilons.0", "'keep=101%' is neither"),
        (VECTORS, "epsilons", ["keep=50"], "epsilons.0", "'keep=50' is neither"),
        (VECTORS, "epsilons", ["keep 50%"], "epsilons.0", "'keep 50%' is neither"),
        (VECTORS, "epsilons", [], "epsilons", "at least 1 item"),
        (
            VECTORS,
            "epsilons",
            [0.1, "0.10"],
            "epsilons",
            "0.1: listed more than once; list it once",
        ),
        (VECTORS, "clustering.k", [100, "auto", "100"], "clustering.k", "100: listed more than once"),
        (VECTORS, "manifests", ["parquet", "parquet"], "manifests", "parquet: listed more than once"),
        (VECTORS, "clustering.k", [0], "clustering.k.0", "0 is not a positive number of clusters"),
        (VECTORS, "clustering.k", [10, -5], "clustering.k.1", "-5 is not a positive number of clusters"),
        (VECTORS, "clustering.k", [2.5], "clustering.k.0", "2.5 is not a positive number"),
        (VECTORS, "clustering.k", ["many"], "clustering.k.0", "nor `auto`"),
        (VECTORS, "clustering.buckets", 0, "clustering.buckets", "greater than or equal to 1"),
        (VECTORS, "training_sample.size", "most", "training_sample.size", "'all'"),
        (VECTORS, "max_skipped", 1.5, "max_skipped", "less than or equal to 1"),
        (VECTORS, "dataset", "../elsewhere", "dataset", "pattern"),
        (VECTORS, "selection.keep", {"column": "views"}, "", "'views' is not carried; declare it in source.columns"),
        (VECTORS, "selection.keep", {"column": "licence"}, "", "'licence' is carried as a string"),
        (VECTORS, "selection.keep", "hardest", "selection.keep", "'hard', 'middle', 'easy' or 'random'"),
        (
            VECTORS,
            "selection.keep",
            {"column": "licence", "values": ["a"], "order": "ascending"},
            "",
            "selection.keep.order: 'licence' is ordered by `values`, the preferred first; remove `order`",
        ),
        (
            VECTORS,
            "selection.keep",
            {"column": "licence", "values": ["a", "b", "a"]},
            "",
            "selection.keep.values: 'a' listed more than once; list each once",
        ),
        (
            VECTORS,
            "selection.keep",
            {"column": "stars", "values": ["5"]},
            "",
            "selection.keep.values: 'stars' is carried as int, which `order` orders; remove `values`",
        ),
        (
            VECTORS,
            "selection.keep",
            [{"column": "stars"}, {"column": "views"}],
            "",
            "selection.keep.1.column: 'views' is not carried; declare it",
        ),
        (
            VECTORS,
            "selection.keep",
            ["hard", {"column": "stars"}],
            "",
            "selection.keep.0: 'hard' is not the last; it settles what columns leave open, put it at the end",
        ),
        (
            VECTORS,
            "selection.keep",
            [{"column": "stars"}, {"column": "stars", "order": "ascending"}],
            "",
            "selection.keep.1.column: 'stars' is there already; a second time it decides nothing",
        ),
        (
            VECTORS,
            "selection.protect",
            "licence",
            "",
            "selection.protect: 'licence' is carried as string; declare it in source.columns as bool (now: ['mine'])",
        ),
        (VECTORS, "selection.protect", "views", "", "selection.protect: 'views' is not carried"),
        (
            VECTORS,
            "selection.limit",
            {"column": "views", "max_removed": 0.5},
            "",
            "selection.limit.column: 'views' is not carried; declare it in source.columns",
        ),
        (
            VECTORS,
            "selection.limit",
            [{"column": "stars", "max_removed": 0.5}, {"column": "stars", "max_removed": 0.6}],
            "",
            "selection.limit.1.column: 'stars' has a limit already; remove one of them",
        ),
        (
            VECTORS,
            "selection.limit",
            {"column": "stars", "max_removed": 80},
            "selection.limit.RemovalLimit.max_removed",
            "less than",
        ),
        (VECTORS, "selection.rule", "greed", "selection.rule", "'chain' or 'greedy'"),
        (VECTORS, "clustering.seed", [0, 0], "clustering.seed", "0: listed more than once"),
        (VECTORS, "clustering.seed", -1, "clustering.seed.0", "greater than or equal to 0"),
        (VECTORS, "selection.rule", "greedy", "", "selection.rule: `greedy` cannot be solved for keep=50%"),
        (VECTORS, "selections", {}, "selections", "at least 1 item"),
        (VECTORS, "selections", {"a": {}, "b": {"seed": 1}}, "", "a and b keep the same items; remove one of them"),
        (VECTORS, "selections", {"a-b": {}, "a_b": {"keep": "easy"}}, "", "a-b and a_b are one to Dagster"),
        (VECTORS, "selections", {"a b": {}}, "selections", "pattern"),
        (
            VECTORS,
            "selections",
            {"best": {"keep": {"column": "views"}}},
            "",
            "selections.best.keep.column: 'views' is not carried",
        ),
        (
            {**VECTORS, "selection": {"keep": "easy"}},
            "selections",
            {"a": {}},
            "",
            "give either `selection` or `selections`, not both",
        ),
        (TARS, "manifests", ["csv"], "", "'csv' needs a source of kind folder, not 'webdataset'"),
        (VECTORS, "manifest_weight", "group", "manifest_weight", "'group_size' or 'inverse_group_size'"),
        (VECTORS, "source.columns", {"group": "int"}, "", "['group'] name columns of our own tables"),
        (VECTORS, "source.columns", {"weight": "float"}, "", "['weight'] name columns of our own tables"),
        (VECTORS, "manifests", ["webdataset"], "", "'webdataset' needs a source of kind webdataset or folder"),
        (IMAGES, "manifests", ["jsonl"], "", "'jsonl' needs a source of kind jsonl, not 'folder'"),
        (VECTORS, "manifests", ["tsv"], "manifests.0", "'keep_lists'"),
        (
            TEXTS,
            "encoder",
            IMAGES["encoder"],
            "",
            "source.kind 'jsonl' holds texts, encoder.kind 'openclip' takes images",
        ),
        (IMAGES, "encoder", VECTORS["encoder"], "", "holds images, encoder.kind 'precomputed' takes vectors"),
        (VECTORS, "epsilon", [0.1], "epsilon", "Extra inputs are not permitted"),
        (VECTORS, "clustering.clusters", 3, "clustering.clusters", "Extra inputs are not permitted"),
        (VECTORS, "source.kind", "csv", "source", "'parquet'"),
        (VECTORS, "compute.gpu", True, "compute.gpu", "Extra inputs are not permitted"),
    ],
    ids=lambda value: str(value) if isinstance(value, str | list) and len(str(value)) < 30 else "",
)
def test_a_mistake_names_its_setting_and_the_remedy(
    base: dict[str, Any], path: str, value: Any, where: str, message: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        Pipeline.model_validate(changed(base, path, value))
    messages = {".".join(str(part) for part in error["loc"]): error["msg"] for error in caught.value.errors()}
    assert any(path.startswith(where) and message in text for path, text in messages.items()), messages


@pytest.mark.parametrize(
    ("given", "partition"),
    [
        (0.05, "0.05"),
        ("0.050", "0.05"),
        ("5e-2", "0.05"),
        (0, "0"),
        (-0.0, "0"),
        (2, "2"),
        (0.00095, "0.00095"),
        (1e-7, "0.0000001"),
        (0.00012345678, "0.00012345678"),
        ("keep=50.0%", "keep=50%"),
        ("keep=33.3333333%", "keep=33.3333333%"),
        ("keep=0.00001%", "keep=0.00001%"),
    ],
)
def test_an_epsilon_has_one_spelling_that_loses_no_digit(given: Any, partition: str) -> None:
    pipeline = Pipeline.model_validate({**VECTORS, "epsilons": [given]})
    assert pipeline.epsilons == (partition,)
    assert Pipeline.model_validate(pipeline.model_dump()) == pipeline


def test_text_is_clustered_in_20_iterations_and_images_in_100_unless_told() -> None:
    assert Pipeline.model_validate(TEXTS).iterations == 20
    assert Pipeline.model_validate(IMAGES).iterations == 100
    assert Pipeline.model_validate(changed(TEXTS, "clustering.iterations", 3)).iterations == 3


def stages_changed(base: dict[str, Any], path: str, value: Any) -> set[str]:
    one, other = (pipeline_context(Pipeline.model_validate(each)) for each in (base, changed(base, path, value)))
    return {stage for stage in STAGES if one.code_version(stage) != other.code_version(stage)}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("compute", {"device": "cpu", "batch_size": 3, "decoding_threads": 1, "memory_mib": 99}),
        ("store", "s3://elsewhere/results"),
        ("source.path", "elsewhere"),
        ("max_skipped", 0.5),
        ("shards.files_per_shard", 9),
        ("model", "another-name"),
        ("clustering.k", [3, 30]),
        ("epsilons", [0.2]),
        ("clustering.buckets", 5),
        ("clustering.seed", [0, 5]),
        ("selection.seed", 7),
        ("selections", {"hard": {}, "easy": {"keep": "easy"}}),
    ],
)
def test_what_changes_no_result_changes_no_code_version(path: str, value: Any) -> None:
    assert stages_changed(VECTORS, path, value) == set()


@pytest.mark.parametrize(
    ("path", "value", "stages"),
    [
        ("encoder.normalise", False, {"embeddings", "training_sample"}),
        ("encoder.dimension", 8, {"embeddings", "training_sample"}),
        ("vectors", "float32", {"embeddings", "training_sample"}),
        ("source.vector", "other", {"embeddings", "training_sample"}),
        ("source.columns", {"quality": "int"}, {"items"}),
        ("training_sample.size", 10, {"training_sample"}),
        ("training_sample.seed", 1, {"training_sample"}),
        ("training_sample.per_cluster", 10, {"centroids"}),
        ("clustering.iterations", 5, {"centroids"}),
        ("manifests", ["parquet"], {"manifests"}),
        ("manifest_weight", "group_size", {"manifests"}),
    ],
)
def test_a_setting_changes_the_code_version_of_its_own_stage(path: str, value: Any, stages: set[str]) -> None:
    assert stages_changed(VECTORS, path, value) == stages


def test_stating_a_default_changes_nothing() -> None:
    for path, value in {
        "vectors": "float16",
        "selection.rule": "chain",
        "clustering.iterations": 100,
        "source.vector": "embedding",
    }.items():
        assert stages_changed(VECTORS, path, value) == set()


def test_a_checkpoint_counts_by_its_content_wherever_it_lies(tmp_path: Path) -> None:
    versions = []
    for folder, content in (("one", b"weights"), ("two", b"weights"), ("three", b"others!")):
        (tmp_path / folder).mkdir()
        checkpoint = tmp_path / folder / "vit.pt"
        checkpoint.write_bytes(content)
        settings = changed(IMAGES, "encoder.pretrained", str(checkpoint))
        versions.append(pipeline_context(Pipeline.model_validate(settings)).code_version("embeddings"))
    assert versions[0] == versions[1]
    assert versions[0] != versions[2]
