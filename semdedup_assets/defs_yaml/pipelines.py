"""The pipelines of a `defs.yaml`, read without Dagster."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from semdedup_assets.defs_yaml.documents import Document, SettingsError, read_documents, reported
from semdedup_assets.defs_yaml.problems import Problem, near_names, setting_problems
from semdedup_assets.defs_yaml.templates import Templates
from semdedup_assets.execution.pipeline_stages import PipelineStages
from semdedup_assets.execution.source_index import files_of
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH

FILE = "defs.yaml"
COMPONENT = "SemDedupPipeline"

_DG_TABLE = re.compile(r"^\s*\[tool\.dg[\].]", re.MULTILINE)


@dataclass(frozen=True)
class WrittenPipeline:
    """A pipeline, and where it is written.

    Attributes:
        pipeline: its settings.
        document: of the file.
    """

    pipeline: Pipeline
    document: Document

    @property
    def name(self) -> str:
        """`<dataset>/<model>`."""
        return f"{self.pipeline.dataset}/{self.pipeline.model_name}"

    def reported(self, problems: list[Problem]) -> str:
        """Problems with its settings, each with file and line."""
        return reported((each, self.document.located(each.path)) for each in problems)


def defs_file(path: Path) -> Path:
    """The `defs.yaml` that a path names, as a file or by the folder that holds it.

    Raises:
        FileNotFoundError: it is not there; names those that are near.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        below = sorted(str(each) for each in path.glob(f"**/{FILE}"))[:5] if path.is_dir() else []
        near = f"; below it are: {', '.join(below)}" if below else ""
        message = f"{file}: no such file; name a `{FILE}`, or the folder that holds it{near}"
        raise FileNotFoundError(message)
    return file


def project_root(file: Path) -> Path | None:
    """The folder of the Dagster project that a file belongs to: Dagster runs its code there; None where there is none."""
    return next((each for each in file.resolve().parents if _is_project(each)), None)


def _is_project(folder: Path) -> bool:
    if (folder / "dg.toml").is_file():
        return True
    settings = folder / "pyproject.toml"
    return settings.is_file() and _DG_TABLE.search(settings.read_text(encoding="utf-8", errors="replace")) is not None


def read_pipelines(file: Path) -> list[WrittenPipeline]:
    """The pipelines of a `defs.yaml`, in its order.

    Raises:
        SettingsError: it holds none, or something is wrong with the settings of one; names every problem with file and
            line.
        OSError: it cannot be read.
    """
    documents = read_documents(file)
    types = [str(each.content.get("type")) if isinstance(each.content, dict) else "no mapping" for each in documents]
    chosen = [each for each, name in zip(documents, types, strict=True) if name.rpartition(".")[2] == COMPONENT]
    if not chosen:
        found = f"it holds {', '.join(types)}" if types else "it is empty"
        message = f"{file}: no pipeline; {found}, and `type: semdedup_assets.{COMPONENT}` is wanted"
        raise SettingsError(message)
    pipelines, wrong = list[WrittenPipeline](), list[str]()
    for document in chosen:
        try:
            pipelines.append(_pipeline(document))
        except SettingsError as error:
            wrong.append(str(error))
    if wrong := wrong or list(_collisions(pipelines)):
        raise SettingsError("\n".join(wrong))
    return pipelines


def _collisions(found: Sequence[WrittenPipeline]) -> Iterator[str]:
    """The pipelines whose results would lie in one place, or whose shards would."""
    for one, other in combinations(found, 2):
        same_store = one.pipeline.store == other.pipeline.store and one.pipeline.dataset == other.pipeline.dataset
        line = other.document.located(("dataset",))[1]
        if same_store and one.name == other.name:
            yield f"{line} attributes.model: there are two pipelines {one.name}; give one of them another `model`"
        elif same_store and files_of(one.pipeline) != files_of(other.pipeline):
            yield f"{line} attributes.dataset: {one.name} has another source; give one of them another `dataset`"


def _pipeline(document: Document) -> WrittenPipeline:
    attributes = document.content.get("attributes")
    if not isinstance(attributes, dict):
        message = f"{document.path}:{document.line(('attributes',))}: no attributes; give at least dataset, source and encoder"
        raise SettingsError(message)
    settings = _filled(document, attributes)
    written = WrittenPipeline(Pipeline.model_validate(settings), document)
    if problems := list(stage_problems(written.pipeline)):
        raise SettingsError(written.reported(problems))
    return written


def _filled(document: Document, attributes: dict[str, Any]) -> dict[str, Any]:
    """The settings with their templates filled in, seen to be valid."""
    root = project_root(document.path)
    templates = Templates({"context": SimpleNamespace(**({} if root is None else {"project_root": str(root)}))})
    settings: dict[str, Any] = templates.filled(attributes, ())
    if problems := with_unfilled(templates, setting_problems(settings)):
        raise SettingsError(reported((each, document.located(each.path)) for each in problems))
    return settings


def with_unfilled(templates: Templates, problems: list[Problem]) -> list[Problem]:
    """What is wrong with settings, of a template that could not be filled in that alone.

    Args:
        templates: that were filled in.
        problems: with what they gave.
    """
    unfilled = {problem.path for problem in templates.problems}
    return [*templates.problems, *(problem for problem in problems if problem.path not in unfilled)]


def stage_problems(pipeline: Pipeline) -> Iterator[Problem]:
    """The analyses to be followed, and the stages that workers are asked for, which such a pipeline does not have."""
    there = sorted({asset.stage.name for asset in PipelineStages(pipeline, GRAPH).assets})
    for index, name in enumerate(pipeline.analyses.follow):
        if name not in there:
            message = f"{name!r} is not there for such a source, selection or settings; remove it"
            yield Problem(("analyses", "follow", index), message)
    for stage in pipeline.compute.workers:
        if stage not in there:
            yield Problem(("compute", "workers", stage), f"no such stage; {near_names(stage, there)}")
