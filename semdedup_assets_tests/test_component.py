"""A new pipeline: what `dg scaffold defs` writes, and how what is wrong with it is told."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import dagster as dg
import pytest
import yaml
from dagster.components.component_scaffolding import scaffold_object
from dagster.components.testing import create_defs_folder_sandbox
from PIL import Image
from pydantic import BaseModel, ValidationError

from semdedup_assets.assets.metadata import markdown_text
from semdedup_assets.component import SemDedupPipeline
from semdedup_assets.defs_yaml.problems import setting_problems
from semdedup_assets.defs_yaml.scaffold import NewPipeline, shards_to_come
from semdedup_assets.encoders import Encoder
from semdedup_assets.loading import NotLoadedError
from semdedup_assets.settings import Pipeline
from semdedup_assets.sources import Source
from semdedup_assets_tests.toy_source import vectors_settings

COMPONENT = "semdedup_assets.SemDedupPipeline"
COMMENTED_SETTING = re.compile(r"^( *)#(?=[a-z_]+:)", re.MULTILINE)
DG = Path(sys.executable).with_name("dg")


def project(folder: Path, defs_yaml: str = "") -> Path:
    """A Dagster project of somebody else's; returns where its one pipeline is written."""
    package = folder / "their_project"
    (package / "defs" / "toy").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "defs" / "__init__.py").write_text("")
    (folder / "pyproject.toml").write_text(
        "[project]\nname = 'their-project'\nversion = '0'\n"
        "[tool.dg]\ndirectory_type = 'project'\n[tool.dg.project]\nroot_module = 'their_project'\n"
    )
    path = package / "defs" / "toy" / "defs.yaml"
    if defs_yaml:
        path.write_text(defs_yaml)
    return path


def load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    monkeypatch.syspath_prepend(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "their_project"]:
        monkeypatch.delitem(sys.modules, name)
    return dg.load_from_defs_folder(path_within_project=folder)


def told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The problems for which a check of the project's definitions fails, without its folder's path."""
    head, *lines = check_failure(folder, monkeypatch).splitlines()
    assert head.startswith(f"{len(lines)} problem")
    start = f"{folder}/their_project/defs/toy/"
    assert all(line.startswith(start) for line in lines)
    return [line.removeprefix(start) for line in lines]


def check_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `dg check defs` fails with; `dagster dev` loads the project, and shows the same."""
    load(folder, monkeypatch)
    with monkeypatch.context() as checking:
        checking.setenv("DAGSTER_IS_DEFS_VALIDATION_CLI", "1")
        checking.setattr(sys, "tracebacklimit", 1000, raising=False)
        with pytest.raises(NotLoadedError) as caught:
            load(folder, monkeypatch)
    return str(caught.value)


def written(folder: Path, params: str = "{}", *, name: str = "photos") -> str:
    """What the scaffolder of Dagster's registry writes."""
    scaffold_object(folder / name, COMPONENT, params, "yaml", folder)
    return (folder / name / "defs.yaml").read_text()


def attributes(text: str) -> dict[str, Any]:
    document = yaml.load(text, yaml.CSafeLoader)
    assert document["type"] == COMPONENT
    found: dict[str, Any] = document["attributes"]
    return found


def models(union: Any) -> dict[str, type[BaseModel]]:
    return {model.model_fields["kind"].default: model for model in get_args(get_args(union)[0])}


KINDS = [
    ("folder", "openclip"),
    ("webdataset", "openclip"),
    ("parquet", "openclip"),
    ("parquet", "transformers"),
    ("jsonl", "transformers"),
    ("vectors", "precomputed"),
    ("folder", "timm"),
    ("parquet", "torchscript"),
    ("jsonl", "sentence_transformers"),
]


def params_of(kinds: tuple[str, str]) -> str:
    return json.dumps(dict(zip(("source", "encoder"), kinds, strict=True)))


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_every_setting_of_the_schema_stands_in_a_new_file_with_its_default(
    tmp_path: Path, kinds: tuple[str, str]
) -> None:
    text = written(tmp_path, params_of(kinds))
    everything = attributes(COMMENTED_SETTING.sub(r"\1", text))
    named = attributes(text)
    minimal = {name: named[name] for name in ("dataset", "source", "encoder")}

    pipeline = Pipeline.model_validate(everything)
    assert pipeline == Pipeline.model_validate(named) == Pipeline.model_validate(minimal)
    assert list(everything) == list(Pipeline.model_fields)
    for name, section in pipeline:
        if isinstance(section, BaseModel):
            assert list(everything[name]) == list(type(section).model_fields)


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_each_commented_line_can_be_uncommented_alone(tmp_path: Path, kinds: tuple[str, str]) -> None:
    text = written(tmp_path, params_of(kinds))
    written_as_it_is = attributes(text)
    matches = list(COMMENTED_SETTING.finditer(text))
    assert len(matches) > 15
    for match in matches:
        line = text[match.end() :].partition("\n")[0]
        changed = attributes(text[: match.end() - 1] + text[match.end() :])
        assert changed != written_as_it_is, line
        Pipeline.model_validate(changed)


def test_every_setting_is_explained_in_the_line_above_by_the_schemas_own_words(tmp_path: Path) -> None:
    lines = written(tmp_path).splitlines()
    settings = [index for index, line in enumerate(lines) if re.match(r" +#?(?!kind:)[a-z_]+:", line)]
    assert len(settings) > 30
    for index in settings:
        assert lines[index - 1].lstrip().startswith("# "), lines[index]
    prose = " ".join(line.strip().removeprefix("# ") for line in lines if line.lstrip().startswith("# "))
    for field in Pipeline.model_fields.values():
        assert (field.description or "?") in prose


def test_the_kinds_that_can_be_scaffolded_are_those_of_the_schema() -> None:
    fields = NewPipeline.model_fields
    assert get_args(fields["source"].annotation) == tuple(models(Source))
    assert get_args(get_args(fields["encoder"].annotation)[0]) == tuple(models(Encoder))


def test_what_makes_no_pipeline_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"'folder' holds images, encoder\.kind 'transformers' takes texts"):
        written(tmp_path, '{"source": "folder", "encoder": "transformers"}')
    with pytest.raises(ValidationError, match=r"near names: .*ViT-B-16"):
        written(tmp_path, '{"model": "ViT-B-61"}')
    assert not list(tmp_path.iterdir())


def test_a_password_in_the_store_is_refused_and_not_repeated() -> None:
    settings = {"dataset": "toy", "encoder": {"kind": "precomputed"}, "source": {"kind": "vectors", "path": "x"}}
    (problem,) = setting_problems({**settings, "store": "s3://key:hunter2@bucket/folder"})
    assert problem.setting == "attributes.store"
    assert "remove it from `store`" in problem.message
    assert "hunter2" not in problem.message
    assert setting_problems({**settings, "store": "s3://bucket/folder"}) == []


def test_the_scaffold_says_how_many_shards_the_files_will_make(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.png").write_bytes(b"png")
    written(tmp_path, json.dumps({"source": "folder", "path": str(folder)}), name="toy")
    assert "The source has 30 files, 0.0 GB: 1 shards, each a partition." in capsys.readouterr().out
    settings = {
        "dataset": "toy",
        "encoder": {"kind": "precomputed"},
        "source": {"kind": "vectors", "path": str(folder)},
    }
    for number in range(3):
        (folder / f"{number}.npy").write_bytes(b"npy")
    assert "3 files, 0.0 GB: 3 shards" in shards_to_come(Pipeline.model_validate(settings))
    missing = Pipeline.model_validate(settings | {"source": {"kind": "vectors", "path": str(tmp_path / "nowhere")}})
    assert "cannot be listed from here" in shards_to_come(missing)


def test_dg_scaffolds_a_pipeline_that_loads_and_says_that_its_source_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project(tmp_path)
    path.parent.rmdir()
    source = tmp_path / "photos"
    command = [str(DG), "scaffold", "defs", COMPONENT, "toy", "--source", "folder", "--path", str(source)]
    environment = {**os.environ, "DAGSTER_HOME": ""}
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr

    (tmp_path / "photo").mkdir()
    definitions = load(tmp_path, monkeypatch)
    assert definitions.resolve_asset_graph().has(dg.AssetKey(["toy", "shards"]))
    missing = source_check(definitions)
    assert not missing.passed
    assert markdown_text(f"{source} does not exist") in str(missing.description)
    assert markdown_text("near names: photo") in str(missing.description)
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        skipped = files_sensor(definitions, instance)
        assert isinstance(skipped, dg.SkipReason)
        assert f"{source} does not exist" in str(skipped.skip_message)

    Image.new("RGB", (8, 8), "red").save(make_folder(source) / "red.png")
    found = source_check(definitions)
    assert found.passed
    assert found.metadata["files"].value == 1


def source_check(definitions: dg.Definitions) -> dg.AssetCheckEvaluation:
    """What the check of the source says, in a run of its own."""
    key = dg.AssetCheckKey(dg.AssetKey(["toy", "shard_index"]), "source_has_files")
    job = dg.define_asset_job("only_check", selection=dg.AssetSelection.checks(key))
    merged = dg.Definitions.merge(definitions, dg.Definitions(jobs=[job]))
    (evaluation,) = merged.resolve_job_def("only_check").execute_in_process().get_asset_check_evaluations()
    return evaluation


def files_sensor(definitions: dg.Definitions, instance: dg.DagsterInstance) -> object:
    """What the sensor of the files does on one look."""
    repository = definitions.get_repository_def()
    sensor = repository.get_sensor_def("toy__files")
    return sensor(dg.build_sensor_context(instance, repository_def=repository))


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        (
            "dataset: laion-2b",
            "dataset: laion_2b",
            ["pipeline laion-2b/precomputed ", "pipeline laion_2b/precomputed "],
        ),
        ("dataset: web, model: a.b", "dataset: web, model: a-b", ["pipeline web/a.b ", "pipeline web/a-b "]),
    ],
)
def test_two_pipelines_that_are_one_to_dagster_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str, named: list[str]
) -> None:
    one = project(tmp_path, named_vectors(first))
    other = one.parent.parent / "other" / "defs.yaml"
    other.parent.mkdir()
    other.write_text(named_vectors(second))
    message = check_failure(tmp_path, monkeypatch)
    for part in (*named, str(one), str(other), "rename one `"):
        assert part in message

    other.write_text(named_vectors("dataset: another"))
    assert load(tmp_path, monkeypatch).resolve_asset_graph().has(dg.AssetKey(["another", "shards"]))


def test_owners_and_tags_given_afterwards_reach_every_asset_also_with_two_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = """
post_processing:
  assets:
    - target: "*"
      attributes: {owners: ["team:data"], tags: {cost_centre: "7"}}
"""
    text = named_vectors("dataset: web, model: a")
    project(tmp_path, f"{text}{after}---\n{named_vectors('dataset: web, model: b')}{after}")
    specs = load(tmp_path, monkeypatch).resolve_all_asset_specs()
    names = {spec.key.path[-1] for spec in specs}
    assert {"shards", "shard_index", "items", "manifests", "estimate"} <= names
    assert len(specs) == 2 * (len(names) - 2) + 2
    for spec in specs:
        assert list(spec.owners) == ["team:data"], spec.key
        assert spec.tags["cost_centre"] == "7", spec.key


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")  # Dagster's own
def test_it_loads_in_dagsters_own_sandbox_for_components() -> None:
    contents = yaml.safe_load(named_vectors("dataset: web, model: a"))
    owned = {"target": "*", "attributes": {"owners": ["team:data"]}}
    contents["post_processing"] = {"assets": [owned]}
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(component_cls=SemDedupPipeline, defs_yaml_contents=contents)
        with sandbox.load_component_and_build_defs(defs_path=path) as (component, definitions):
            assert isinstance(component, SemDedupPipeline)
            assert component.pipeline.dataset == "web"
            specs = {spec.key.path[-1]: list(spec.owners) for spec in definitions.resolve_all_asset_specs()}
    assert {"shards", "shard_index", "manifests"} <= specs.keys()
    assert all(owners == ["team:data"] for owners in specs.values())


def test_one_dataset_with_two_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = named_vectors("dataset: web, model: b").replace("path: vectors", "path: others")
    project(tmp_path, f"{named_vectors('dataset: web, model: a')}---\n{other}")
    message = check_failure(tmp_path, monkeypatch)
    assert "pipeline web/b and pipeline web/a of" in message
    assert "one dataset and two sources or stores" in message


def named_vectors(names: str) -> str:
    """A pipeline by its names, in YAML's short form."""
    fields = "".join(f"  {field.strip()}\n" for field in names.split(","))
    rest = "  source: {kind: vectors, path: vectors}\n  encoder: {kind: precomputed}\n"
    return f"type: {COMPONENT}\nattributes:\n{fields}{rest}"


def test_another_pipeline_is_put_into_the_same_file(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "photos" / "defs.yaml"
    scaffold_object(path, COMPONENT, '{"dataset": "texts", "source": "jsonl"}', "yaml", tmp_path, append=True)
    datasets = [document["attributes"]["dataset"] for document in yaml.safe_load_all(path.read_text())]
    assert datasets == ["photos", "texts"]


VECTORS = f"""\
type: {COMPONENT}
attributes:
  dataset: toy
  store: "{{{{ context.project_root }}}}/.store"
  source: {{kind: vectors, path: "{{{{ context.project_root }}}}"}}
  encoder: {{kind: precomputed}}
"""


def test_a_misspelt_setting_within_a_list_is_told_with_its_place(tmp_path: Path) -> None:
    selection = {"keep": [{"collumn": "age"}, "hard"], "limit": [{"column": "age", "max_remove": 0.5}]}
    problems = setting_problems({**vectors_settings(tmp_path), "selection": selection})
    assert {problem.setting.removeprefix("attributes.selection."): problem.message for problem in problems} == {
        "keep.0.column": "missing. A carried column.",
        "keep.0.collumn": "no such setting; near names: column",
        "limit.0.max_removed": "missing. Share of a value's items above which a check fails.",
        "limit.0.max_remove": "no such setting; near names: max_removed",
    }


def test_an_analysis_that_a_pipeline_does_not_have_cannot_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vectors").mkdir()
    project(
        tmp_path,
        f"""\
type: {COMPONENT}
attributes:
  dataset: toy
  source: {{kind: vectors, path: {tmp_path}/vectors}}
  encoder: {{kind: precomputed}}
  analyses:
    follow:
      - cost
      - near_duplicate_masks
""",
    )
    (problem,) = told(tmp_path, monkeypatch)
    assert problem.startswith("defs.yaml:9 attributes.analyses.follow.1: 'near_duplicate_masks' is not there")


def test_workers_and_paths_that_a_cluster_does_not_have_are_told_with_their_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vectors").mkdir()
    text = f"""\
type: {COMPONENT}
attributes:
  dataset: toy
  source: {{kind: vectors, path: {tmp_path}/vectors}}
  encoder: {{kind: precomputed}}
  compute:
    engine: ray
    workers:
      embeddings: {{num_gpus: 1.5}}
"""
    path = project(tmp_path, text)
    assert [problem.partition(": ")[0] for problem in told(tmp_path, monkeypatch)] == [
        "defs.yaml:9 attributes.compute.workers.embeddings.num_gpus"
    ]
    path.write_text(text.replace("1.5", "1"))
    store, source = told(tmp_path, monkeypatch)
    assert store.startswith("defs.yaml:2 attributes.store: 'data' is on this machine")
    assert source.startswith("defs.yaml:4 attributes.source.path: ")
    path.write_text(text.replace("embeddings", "embedings").replace("1.5", "1") + "    shared_paths: true\n")
    (problem,) = told(tmp_path, monkeypatch)
    assert problem.startswith("defs.yaml:9 attributes.compute.workers.embedings: no such stage; near names: embeddings")


def test_all_problems_are_told_at_once_each_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    (tmp_path / "photos").mkdir()
    project(
        tmp_path,
        f"""\
type: {COMPONENT}
attributes:
  dataset: toy
  store: "{{{{ env.NOT_SET }}}}/store"
  source:
    kind: folder
    path: {tmp_path}/photo
  encoder:
    kind: openclip
    model: ViT-B-61
  clustering:
    k:
      - 5
      - 0
    iteratons: 7
  selection: {{keep: hardest}}
  max_skipped: much
""",
    )
    problems = told(tmp_path, monkeypatch)
    places = [problem.partition(": ")[0] for problem in problems]
    assert places == [
        "defs.yaml:4 attributes.store",
        "defs.yaml:10 attributes.encoder.model",
        "defs.yaml:14 attributes.clustering.k.1",
        "defs.yaml:15 attributes.clustering.iteratons",
        "defs.yaml:16 attributes.selection.keep",
        "defs.yaml:17 attributes.max_skipped",
    ]
    for problem, cure in zip(
        problems,
        [
            "the environment variable NOT_SET is not set; set it where",
            "OpenCLIP has no 'ViT-B-61'; near names: ViT-B-16",
            "0 is not a positive number of clusters",
            "no such setting; near names: iterations",
            "'hardest' is none of hard, middle, easy, random; near names: hard",
            "unable to parse string as a number, not 'much'",
        ],
        strict=True,
    ):
        assert cure in problem


@pytest.mark.parametrize(
    ("replaced", "by", "problem"),
    [
        ("precomputed", "openclip", "5 attributes.source.kind: source.kind 'vectors' holds vectors, encoder.kind"),
        ("encoder:", "manifests: [csv]\n  encoder:", "6 attributes.manifests: 'csv' needs a source of kind folder"),
        (
            "encoder:",
            "selection:\n    keep:\n      column: age\n  encoder:",
            "8 attributes.selection.keep.column: 'age'",
        ),
        ("kind: vectors,", "kind: parquet, text: t, image: i,", "5 attributes.source: set either `image` or `text`"),
        ("kind: vectors, ", "kind: vectors} #", "5 attributes.source.path: missing. A Parquet or .npy file"),
        ("dataset: toy", "model: toy", "2 attributes.dataset: missing. Name of the dataset"),
        ("dataset: toy", "dataset: '{{ nothing }}'", "3 attributes.dataset: {{ nothing }}: UndefinedError: "),
        ("dataset: toy", "dataset: '{{ env.X '", "3 attributes.dataset: {{ env.X : "),
    ],
)
def test_a_problem_of_several_settings_is_told_at_the_one_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: str, by: str, problem: str
) -> None:
    text = VECTORS.replace(replaced, by)
    if by == "openclip":
        text = text.replace("openclip", "openclip, model: ViT-B-16, pretrained: openai")
    project(tmp_path, text)
    (only,) = told(tmp_path, monkeypatch)
    assert only.startswith(f"defs.yaml:{problem}")


def test_a_problem_in_the_second_document_has_the_line_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = VECTORS.replace("dataset: toy", "dataset: other").replace(
        "kind: precomputed", "kind: precomputed, dimension: 0"
    )
    project(tmp_path, f"{VECTORS}---\n# The other.\n{second}")
    (only,) = told(tmp_path, monkeypatch)
    assert only.startswith("defs.yaml:14 attributes.encoder.dimension: Input should be greater than or equal to 1")


@pytest.mark.parametrize(
    ("encoder", "setting", "cure"),
    [
        ("{kind: transformers, model: ./gone/minilm}", "model", "./gone/minilm: no such file or folder"),
        ("{kind: transformers, model: models/of/mine}", "model", "/models/of/mine: no such folder"),
        ("{kind: transformers, model: their_project}", "model", "/their_project holds no config.json"),
        ("{kind: transformers, model: 'package:gone/m'}", "model", "package 'gone' is not installed"),
        ("{kind: openclip, model: models/clip}", "model", "nor is there a folder {folder}/models/clip"),
        ("{kind: openclip, model: 'local-dir:gone'}", "model", "no folder with open_clip_config.json"),
        ("{kind: openclip, model: ViT-B-16, pretrained: gone.pt}", "pretrained", "gone.pt: no such file"),
        ("{kind: openclip, model: ViT-B-16}", "pretrained", "missing for ViT-B-16; give a tag"),
    ],
)
def test_a_model_that_is_not_here_is_told_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str, setting: str, cure: str
) -> None:
    monkeypatch.chdir(tmp_path)
    kind = "jsonl" if "transformers" in encoder else "folder"
    text = VECTORS.replace("{kind: precomputed}", encoder).replace("kind: vectors", f"kind: {kind}")
    project(tmp_path, text)
    (only,) = told(tmp_path, monkeypatch)
    assert only.startswith(f"defs.yaml:6 attributes.encoder.{setting}: ")
    assert cure.format(folder=tmp_path) in only


@pytest.mark.parametrize(
    ("source", "encoder"),
    [
        ("{kind: folder, path: 's3://bucket/photos'}", "{kind: openclip, model: 'hf-hub:org/name'}"),
        ("{kind: folder, path: 'their_project'}", "{kind: openclip, model: ViT-B/16, pretrained: openai}"),
        ("{kind: folder, path: 'their_*/**/*.png'}", "{kind: openclip, model: ViT-B-16, pretrained: openai}"),
        ("{kind: jsonl, path: 'their_project'}", "{kind: transformers, model: facebook/opt-125m}"),
    ],
    ids=["urls and hubs are not asked", "files may still come", "a glob in a folder", "a hub's id"],
)
def test_what_may_be_right_is_let_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, encoder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    project(tmp_path, f"type: {COMPONENT}\nattributes: {{dataset: toy, source: {source}, encoder: {encoder}}}\n")
    keys = {key.to_user_string() for key in load(tmp_path, monkeypatch).resolve_asset_graph().get_all_asset_keys()}
    assert "toy/shards" in keys


def test_the_environment_fills_every_kind_of_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PLACE": str(tmp_path), "COUNT": "7", "EPSILONS": "[0.1, 0.2]"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NOT_SET", raising=False)
    project(
        tmp_path,
        f"""\
type: {COMPONENT}
attributes:
  dataset: "{{{{ env.NOT_SET or 'fallback' }}}}"
  model: "{{{{ env('NOT_SET', 'default') }}}}"
  source: {{kind: vectors, path: "{{{{ env.PLACE }}}}"}}
  encoder: {{kind: precomputed}}
  clustering: {{k: ["{{{{ env.COUNT }}}}"], buckets: "{{{{ env.COUNT }}}}"}}
  epsilons: "{{{{ env.EPSILONS }}}}"
""",
    )
    graph = load(tmp_path, monkeypatch).resolve_asset_graph()
    masks = graph.get(dg.AssetKey(["fallback", "default", "keep_masks"])).partitions_def
    scores = graph.get(dg.AssetKey(["fallback", "default", "duplicate_scores"])).partitions_def
    assert masks is not None
    assert sorted(masks.get_partition_keys()) == ["0.1|7", "0.2|7"]
    assert scores is not None
    assert len(scores.get_partition_keys()) == 7


def test_texts_that_look_like_numbers_stay_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path, VECTORS.replace("dataset: toy", "dataset: '2024'"))
    keys = load(tmp_path, monkeypatch).resolve_asset_graph().get_all_asset_keys()
    assert dg.AssetKey(["2024", "shards"]) in keys


def test_looking_for_problems_imports_no_model_library(tmp_path: Path) -> None:
    project(tmp_path, VECTORS.replace("{kind: precomputed}", "{kind: openclip, model: ViT-B-61}"))
    script = f"""
import sys
from pathlib import Path
import dagster as dg
loaded = dg.load_from_defs_folder(path_within_project=Path({str(tmp_path)!r}))
(broken,) = loaded.resolve_all_asset_specs()
assert "ViT-B-16" in broken.description.replace("\\\\", ""), broken
heavy = {{"torch", "open_clip", "transformers", "faiss", "polars"}} & set(sys.modules)
assert not heavy, heavy
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120)
