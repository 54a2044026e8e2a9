"""The pipelines of a `defs.yaml`, read without Dagster."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from semdedup_assets.defs_yaml.documents import (
    FILES,
    PIPELINE,
    Document,
    SettingsError,
    defs_file_in,
    headed,
    read_documents,
    reported,
    reported_lines,
    type_problem,
)
from semdedup_assets.defs_yaml.problems import Problem, near_names, setting_problem, setting_problems
from semdedup_assets.defs_yaml.templates import Templates
from semdedup_assets.execution.pipeline_stages import PipelineStages
from semdedup_assets.execution.source_index import files_of
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH

NEEDED = "dataset, source and encoder"
"""What `attributes` hold at least."""

_OUTERMOST = ("type", "attributes", "template_vars_module", "requirements", "post_processing")
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

    @contextmanager
    def naming_settings(self) -> Iterator[None]:
        """Name file and line of a setting where it proves to be wrong only as something is made, such as a model's weights.

        Raises:
            SettingsError: what a model, or a device, said of its setting.
        """
        try:
            yield
        except ValueError as error:
            problem = setting_problem(str(error), self.pipeline)
            if problem is None:
                raise
            raise SettingsError(*reported_lines([(problem, self.document.located(problem.path))])) from error

    def reported(self, problems: list[Problem]) -> str:
        """Problems with its settings, each with file and line."""
        return reported((each, self.document.located(each.path)) for each in problems)


def defs_file(path: Path) -> Path:
    """The `defs.yaml` that a path names, as a file or by the folder that holds it.

    Raises:
        FileNotFoundError: it is not there; names those that are near.
    """
    file = path if path.is_file() else defs_file_in(path)
    if file is None:
        below = sorted(str(each) for name in FILES for each in path.glob(f"**/{name}"))[:5] if path.is_dir() else []
        near = f"; below it are: {', '.join(below)}" if below else ""
        sought = path / FILES[0] if path.is_dir() else path
        message = f"{sought}: no such file; name a `{FILES[0]}`, or the folder that holds it{near}"
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


@dataclass(frozen=True)
class WrittenPipelines:
    """The pipelines of a file, in its order.

    Attributes:
        valid: those whose settings are.
        problems: of each of the others, what is wrong, with file and line.
    """

    valid: list[WrittenPipeline]
    problems: list[str]

    def require_valid(self) -> None:
        """See that nothing is wrong.

        Raises:
            SettingsError: it is; names every problem.
        """
        if self.problems:
            raise SettingsError("\n".join(self.problems))


def read_pipelines(file: Path) -> WrittenPipelines:
    """The pipelines of a `defs.yaml`.

    Raises:
        SettingsError: it holds none, or two that would be made in one place.
        OSError: it cannot be read.
    """
    documents = [each for each in read_documents(file) if each.content is not None]
    valid, problems = list[WrittenPipeline](), list[str]()
    for document in documents:
        try:
            if _type_of(document) == PIPELINE:
                valid.append(_pipeline(document))
        except SettingsError as error:
            problems.append(str(error))
    if not valid and not problems:
        found = f"it holds {', '.join(map(_type_of, documents))}" if documents else "it is empty"
        message = f"{file}: no pipeline; {found}, and `type: {PIPELINE}` is wanted"
        raise SettingsError(message)
    if collisions := list(_collisions(valid)):
        raise SettingsError("\n".join([*problems, *collisions]))
    return WrittenPipelines(valid, problems)


def _type_of(document: Document) -> str:
    """Which component a document is.

    Raises:
        SettingsError: it is none, or one of ours misspelt.
    """
    if not isinstance(document.content, dict):
        message = f"{document.path}:{document.line(())}: not a mapping with `type` and `attributes`"
        raise SettingsError(message)
    kind = document.content.get("type")
    if problem := type_problem(kind):
        message = f"{document.path}:{document.line(('type',))} type: {problem}"
        raise SettingsError(message)
    return str(kind)


def _collisions(found: Sequence[WrittenPipeline]) -> Iterator[str]:
    """What is wrong with the pipelines whose results would lie in one place, or whose shards would."""
    for one, other in combinations(found, 2):
        if problem := collision(other.pipeline, one.pipeline):
            setting = "model" if other.pipeline.model and one.name == other.name else "dataset"
            message = f"pipeline {other.name} and pipeline {one.name} {problem}"
            yield from reported_lines([(Problem((setting,), message), other.document.located((setting,)))])


def collision(pipeline: Pipeline, other: Pipeline) -> str | None:
    """Why two pipelines cannot be beside each other, wherever they are made; None where they can."""
    if pipeline.dataset != other.dataset:
        return None
    if pipeline.store != other.store or files_of(pipeline) != files_of(other):
        return "have one dataset and two sources or stores; give one of them another `dataset`"
    if pipeline.model_name == other.model_name:
        return "have one name; give one of them another `model`"
    return None


def _pipeline(document: Document) -> WrittenPipeline:
    attributes, wrong = document.content.get("attributes"), [*_unknown_keys(document), *document.pitfalls]
    if not isinstance(attributes, dict):
        wrong.append(f"{document.path}:{document.line(('attributes',))}: no attributes; give at least {NEEDED}")
        raise SettingsError("\n".join(wrong))
    root = project_root(document.path)
    pipeline, problems = filled_pipeline(
        attributes, {"context": SimpleNamespace(**({"project_root": str(root)} if root else {}))}
    )
    wrong += reported_lines((each, document.located(each.path)) for each in problems)
    if pipeline is None or wrong:
        raise SettingsError(headed(wrong))
    return WrittenPipeline(pipeline, document)


def _unknown_keys(document: Document) -> Iterator[str]:
    """The outermost keys of a component that Dagster does not know."""
    for name in document.content:
        if name not in _OUTERMOST:
            near = near_names(str(name), _OUTERMOST)
            yield f"{document.path}:{document.line((name,))} {name}: no such key; {near}"


def filled_pipeline(attributes: dict[str, Any], scope: Mapping[str, Any]) -> tuple[Pipeline | None, list[Problem]]:
    """The pipeline that `attributes` describe, and what is wrong with it.

    Args:
        attributes: as they are written.
        scope: what templates can name beside `env`.
    """
    settings, problems = filled_settings(attributes, scope, setting_problems)
    if problems:
        return None, problems
    pipeline = Pipeline.model_validate(settings)
    return pipeline, list(stage_problems(pipeline))


def filled_settings(
    attributes: dict[str, Any], scope: Mapping[str, Any], problems: Callable[[dict[str, Any]], list[Problem]]
) -> tuple[dict[str, Any], list[Problem]]:
    """Settings with their templates filled in, and what is wrong with them.

    Args:
        attributes: as they are written.
        scope: what templates can name beside `env`.
        problems: what is wrong with settings.
    """
    templates = Templates(scope)
    settings: dict[str, Any] = templates.filled(attributes, ())
    # Of a template that could not be filled in, that alone.
    unfilled = {problem.path for problem in templates.problems}
    return settings, [*templates.problems, *(each for each in problems(settings) if each.path not in unfilled)]


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
