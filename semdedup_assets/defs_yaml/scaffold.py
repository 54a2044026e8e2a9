"""What `dg scaffold defs semdedup_assets.SemDedupPipeline <name>` writes, and the same of the two comparisons."""

from typing import Any, Literal

import click
import dagster as dg
import yaml
from pydantic import BaseModel, Field, model_validator

from semdedup_assets.comparison_settings import Comparison, ModelComparison
from semdedup_assets.defs_yaml.commented import commented_settings
from semdedup_assets.settings import MOST_PARTITIONS, Pipeline

_ENCODER_OF = {"folder": "openclip", "webdataset": "openclip", "vectors": "precomputed"}
_OF_IMAGES = ("openclip", "timm", "torchscript")
_MODELS = {
    "timm": "vit_small_patch14_dinov2.lvd142m",
    "transformers": "facebook/opt-125m",
    "sentence_transformers": "sentence-transformers/all-MiniLM-L6-v2",
}
_PAPERS_WEIGHTS = {"model": "ViT-B-16", "pretrained": "laion2b_s34b_b88k"}
_HEAD = """\
# SemDeDup (arXiv 2303.09540) of one dataset with one embedding model.
# A line `#name: value` shows a default: remove its `#` to change it.
# `{{{{ env.NAME }}}}` takes a value from the environment. Relative paths start where Dagster is started;
# `{{{{ context.project_root }}}}/photos` starts at this project's root.
# `dg check defs` reports what is wrong, before anything runs.
type: {type}

attributes:
"""


class NewPipeline(BaseModel, extra="forbid"):
    """What can be said of a new pipeline when its `defs.yaml` is scaffolded."""

    dataset: str | None = Field(None, description="Name of the dataset; empty: that of the new folder.")
    source: Literal["folder", "webdataset", "parquet", "jsonl", "vectors"] = Field(
        "folder", description="Kind of the source."
    )
    path: str | None = Field(None, description="Where the source lies: a path, a glob or a URL.")
    encoder: (
        Literal["openclip", "timm", "torchscript", "transformers", "sentence_transformers", "precomputed"] | None
    ) = Field(None, description="Kind of the encoder; empty: the one that fits the source.")
    model: str | None = Field(None, description="The encoder's model: a name, a hub id or a local folder.")
    pretrained: str | None = Field(None, description="Of an OpenCLIP model: the tag of its weights, or their file.")
    store: str | None = Field(None, description="Folder or URL below which all results lie.")

    @model_validator(mode="after")
    def _makes_a_pipeline(self) -> "NewPipeline":
        # Here, for Dagster makes the new folder between taking the options and writing the file.
        Pipeline.model_validate(self.settings("dataset"))
        return self

    def settings(self, name: str) -> dict[str, Any]:
        """The settings that have no default, and those that were given.

        Args:
            name: of the dataset, where none was given.
        """
        dataset = self.dataset or name
        settings: dict[str, Any] = {"dataset": dataset, "store": self.store, "encoder": self._encoder()}
        settings["source"] = {"kind": self.source, "path": self.path or f"path/to/{dataset}"}
        if self.source == "parquet":
            content = "image" if settings["encoder"]["kind"] in _OF_IMAGES else "text"
            settings["source"][content] = content
        return {setting: value for setting, value in settings.items() if value is not None}

    def _encoder(self) -> dict[str, Any]:
        kind = self.encoder or _ENCODER_OF.get(self.source, "transformers")
        given = {name: value for name in ("model", "pretrained") if (value := getattr(self, name)) is not None}
        if kind == "openclip":
            return {"kind": kind, **(given or _PAPERS_WEIGHTS)}
        if kind == "torchscript":
            # Its model is a file.
            return {"kind": kind, "path": given.pop("model", "path/to/model.torchscript.pt"), **given}
        return {"kind": kind, **({"model": _MODELS[kind]} if kind in _MODELS else {}), **given}


class PipelineScaffolder(dg.Scaffolder[NewPipeline]):
    """Writes a `defs.yaml` in which every setting is explained."""

    @classmethod
    def get_scaffold_params(cls) -> type[NewPipeline]:
        """The options of `dg scaffold defs`."""
        return NewPipeline

    def scaffold(self, request: dg.ScaffoldRequest[NewPipeline]) -> None:
        """Write the file, or put another document into it.

        Raises:
            ValidationError: what was given makes no pipeline; nothing is written.
        """
        name = (request.target_path.parent if request.append else request.target_path).name
        settings = request.params.settings(name)
        if request.scaffold_format == "python":
            dg.scaffold_component(request, settings)
            return
        content = _HEAD.format(type=request.type_name) + commented_settings(settings)
        Pipeline.model_validate(yaml.safe_load(content)["attributes"])
        _write(request, content)
        if request.params.path:
            click.echo(shards_to_come(Pipeline.model_validate(settings)))


_COMPARISON_HEAD = """\
# Manifests of this project's pipelines, each compared with each: what they keep in common, and what changed and why.
# `dg check defs` reports what is wrong, before anything runs.
type: {type}

attributes:
"""


class NewComparison(BaseModel, extra="forbid"):
    """What can be said of a new comparison when its `defs.yaml` is scaffolded."""

    dataset: str = Field("photos", description="Dataset of the pipeline whose manifests are compared.")
    epsilon: str = Field("keep=50%", description="Target of both: at equal size, intersections tell of robustness.")
    k: str = Field("1000,2000", description="Clusterings that are compared, with commas between them.")

    @model_validator(mode="after")
    def _makes_a_comparison(self) -> "NewComparison":
        Comparison.model_validate(self.settings("name"))
        return self

    def settings(self, name: str) -> dict[str, Any]:
        """The settings that have no default, and those that were given.

        Args:
            name: of the comparison.
        """
        return {
            "name": name,
            "manifests": [
                {"dataset": self.dataset, "epsilon": self.epsilon, "k": k.strip()} for k in self.k.split(",")
            ],
        }


class ComparisonScaffolder(dg.Scaffolder[NewComparison]):
    """Writes a `defs.yaml` in which every setting is explained."""

    @classmethod
    def get_scaffold_params(cls) -> type[NewComparison]:
        """The options of `dg scaffold defs`."""
        return NewComparison

    def scaffold(self, request: dg.ScaffoldRequest[NewComparison]) -> None:
        """Write the file, or put another document into it.

        Raises:
            ValidationError: what was given makes no comparison; nothing is written.
        """
        _scaffold_comparison(request, Comparison, head=_COMPARISON_HEAD)


_TRAINING_COMPARISON_HEAD = """\
# Models that were trained on kept sets of this project's pipelines, beside each other: what each is worth, and what is clear.
# `dg check defs` reports what is wrong, before anything runs.
type: {type}

attributes:
"""


class NewTrainingComparison(BaseModel, extra="forbid"):
    """What can be said of a new comparison of trained models when its `defs.yaml` is scaffolded."""

    dataset: str = Field("photos", description="Dataset of the pipeline whose trained models are compared.")
    epsilon: str = Field("keep=50%", description="Target of all: at equal size, the choice of items alone differs.")
    selection: str = Field("hard,easy", description="Selections that are compared, with commas between them.")

    @model_validator(mode="after")
    def _makes_a_comparison(self) -> "NewTrainingComparison":
        ModelComparison.model_validate(self.settings("name"))
        return self

    def settings(self, name: str) -> dict[str, Any]:
        """The settings that have no default, and those that were given.

        Args:
            name: of the comparison.
        """
        return {
            "name": name,
            "kept_sets": [
                {"dataset": self.dataset, "selection": each.strip(), "epsilon": self.epsilon}
                for each in self.selection.split(",")
            ],
        }


class TrainingComparisonScaffolder(dg.Scaffolder[NewTrainingComparison]):
    """Writes a `defs.yaml` in which every setting is explained."""

    @classmethod
    def get_scaffold_params(cls) -> type[NewTrainingComparison]:
        """The options of `dg scaffold defs`."""
        return NewTrainingComparison

    def scaffold(self, request: dg.ScaffoldRequest[NewTrainingComparison]) -> None:
        """Write the file, or put another document into it.

        Raises:
            ValidationError: what was given makes no comparison; nothing is written.
        """
        _scaffold_comparison(request, ModelComparison, head=_TRAINING_COMPARISON_HEAD)


def _scaffold_comparison(request: dg.ScaffoldRequest[Any], model: type[BaseModel], *, head: str) -> None:
    """Write the file of a comparison, once its settings are seen to be valid."""
    name = (request.target_path.parent if request.append else request.target_path).name
    settings = request.params.settings(name)
    if request.scaffold_format == "python":
        dg.scaffold_component(request, settings)
        return
    content = head.format(type=request.type_name) + commented_settings(settings, model)
    model.model_validate(yaml.safe_load(content)["attributes"])
    _write(request, content)


def _write(request: dg.ScaffoldRequest[Any], content: str) -> None:
    if request.append:
        with request.target_path.open("a", encoding="utf-8") as file:
            file.write(f"---\n{content}")
    else:
        (request.target_path / "defs.yaml").write_text(content, encoding="utf-8")


def shards_to_come(pipeline: Pipeline) -> str:
    """How many files a source has and how many shards they will make, in words; why that cannot be said yet."""
    try:
        files = sorted(pipeline.source.files(), key=lambda file: file.path)
    except (OSError, ValueError) as error:
        return f"The source cannot be listed from here: {error}"
    shards = len(pipeline.new_shards(files))
    size = sum(file.size for file in files) / 1e9
    found = f"The source has {len(files):,} files, {size:,.1f} GB: {shards:,} shards, each a partition"
    if shards <= MOST_PARTITIONS:
        return f"{found}. `shards.files_per_shard` changes that, but only before they are first observed."
    return (
        f"{found}; beyond {MOST_PARTITIONS:,} Dagster's pages and ticks become slow: set `shards.files_per_shard` before "
        "they are first observed."
    )
