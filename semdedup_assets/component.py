"""The Dagster components: settings in a `defs.yaml` become the definitions of a pipeline, or of a comparison."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

try:
    import dagster as dg
except ModuleNotFoundError as error:
    from semdedup_assets.extras import without_dagster

    raise without_dagster(error) from error
from dagster.components.resolved.errors import ResolutionException
from pydantic import BaseModel, RootModel

from semdedup_assets.assets.builder import AssetBuilder, dagster_name
from semdedup_assets.assets.comparison import (
    comparison_definitions,
    find_evaluations,
    find_manifest,
    training_comparison_definitions,
)
from semdedup_assets.assets.kept_set_lookup import FoundKeptSet, UnknownKeptSetError, labelled
from semdedup_assets.assets.pipeline import pipeline_definitions
from semdedup_assets.assets.source import files_of
from semdedup_assets.comparison_settings import Comparison, ModelComparison, NamedKeptSet
from semdedup_assets.defs_yaml.problems import Problem, near_names, schema_problems, setting_problems
from semdedup_assets.defs_yaml.scaffold import ComparisonScaffolder, PipelineScaffolder, TrainingComparisonScaffolder
from semdedup_assets.defs_yaml.schema import SettingPath, WrittenSchema
from semdedup_assets.execution.openmp import let_threads_sleep
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH

_Named = TypeVar("_Named", bound=NamedKeptSet)

# Every process that Dagster starts for a pipeline comes by here, and has not imported PyTorch yet.
let_threads_sleep()


class Attributes(RootModel[dict[str, Any]]):
    """`attributes` as they are written, with the schema of `Pipeline`: they are validated once templates are filled in."""

    @classmethod
    def model_json_schema(cls, *_: Any, **__: Any) -> dict[str, Any]:
        """The schema that `dg check yaml` and editors go by."""
        return Pipeline.model_json_schema(schema_generator=WrittenSchema)


@dg.scaffold_with(PipelineScaffolder)
class SemDedupPipeline(dg.Component):
    """One dataset deduplicated with one embedding model (SemDeDup, arXiv 2303.09540)."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    @classmethod
    def get_model_cls(cls) -> type[Attributes]:
        """The schema of `attributes`."""
        return Attributes

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> "SemDedupPipeline":
        """The pipeline that `attributes` describe, with `{{ env.NAME }}` filled in.

        Raises:
            DagsterInvalidDefinitionError: something is wrong with them; names every problem with file and line.
        """
        settings = _settings(attributes, context, needed="dataset, source and encoder", problems=setting_problems)
        pipeline = Pipeline.model_validate(settings)
        if problems := list(_stage_problems(pipeline)):
            raise dg.DagsterInvalidDefinitionError("\n".join(_report(problems, context)))
        return cls(pipeline)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """All assets of the pipeline."""
        first = _declared_in(context).add(self.pipeline, context.path)
        return pipeline_definitions(self.pipeline, with_source=first)


def _stage_problems(pipeline: Pipeline) -> Iterator[Problem]:
    """The analyses to be followed, and the stages that workers are asked for, which such a pipeline does not have."""
    there = sorted({asset.stage.name for asset in AssetBuilder(pipeline, GRAPH).assets})
    for index, name in enumerate(pipeline.analyses.follow):
        if name not in there:
            message = f"{name!r} is not there for such a source, selection or settings; remove it"
            yield Problem(("analyses", "follow", index), message)
    for stage in pipeline.compute.workers:
        if stage not in there:
            yield Problem(("compute", "workers", stage), f"no such stage; {near_names(stage, there)}")


class ComparisonAttributes(RootModel[dict[str, Any]]):
    """`attributes` of a comparison as they are written, with the schema of `Comparison`."""

    @classmethod
    def model_json_schema(cls, *_: Any, **__: Any) -> dict[str, Any]:
        """The schema that `dg check yaml` and editors go by."""
        return Comparison.model_json_schema(schema_generator=WrittenSchema)


@dg.scaffold_with(ComparisonScaffolder)
class ManifestComparison(dg.Component):
    """Manifests of the project's pipelines, each compared with each: of several k, seeds, strategies or models."""

    def __init__(self, comparison: Comparison, written_in: dg.ComponentLoadContext | None = None) -> None:
        self.comparison = comparison
        self._written_in = written_in

    @classmethod
    def get_model_cls(cls) -> type[ComparisonAttributes]:
        """The schema of `attributes`."""
        return ComparisonAttributes

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> "ManifestComparison":
        """The comparison that `attributes` describe, with `{{ env.NAME }}` filled in.

        Raises:
            DagsterInvalidDefinitionError: something is wrong with them; names every problem with file and line.
        """
        settings = _settings(
            attributes,
            context,
            needed="name and manifests",
            problems=lambda filled: schema_problems(filled, Comparison),
        )
        return cls(Comparison.model_validate(settings), context)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The asset that compares the manifests.

        Raises:
            DagsterInvalidDefinitionError: no pipeline of the project has one of them; names every one with file and
                line, and what there is.
        """
        # The context of loading knows the lines of the file.
        of_file = self._written_in or context
        found = _found("manifests", self.comparison.manifests, find_manifest, _pipelines(context), of_file)
        return comparison_definitions(self.comparison, found)


class TrainingComparisonAttributes(RootModel[dict[str, Any]]):
    """`attributes` of a comparison of trained models as they are written, with the schema of `ModelComparison`."""

    @classmethod
    def model_json_schema(cls, *_: Any, **__: Any) -> dict[str, Any]:
        """The schema that `dg check yaml` and editors go by."""
        return ModelComparison.model_json_schema(schema_generator=WrittenSchema)


@dg.scaffold_with(TrainingComparisonScaffolder)
class TrainingComparison(dg.Component):
    """Models trained on kept sets of the project's pipelines, beside each other: strategies, k, epsilons, models."""

    def __init__(self, comparison: ModelComparison, written_in: dg.ComponentLoadContext | None = None) -> None:
        self.comparison = comparison
        self._written_in = written_in

    @classmethod
    def get_model_cls(cls) -> type[TrainingComparisonAttributes]:
        """The schema of `attributes`."""
        return TrainingComparisonAttributes

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> "TrainingComparison":
        """The comparison that `attributes` describe, with `{{ env.NAME }}` filled in.

        Raises:
            DagsterInvalidDefinitionError: something is wrong with them; names every problem with file and line.
        """
        settings = _settings(
            attributes,
            context,
            needed="name and kept_sets",
            problems=lambda filled: schema_problems(filled, ModelComparison),
        )
        return cls(ModelComparison.model_validate(settings), context)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The asset that compares the trained models.

        Raises:
            DagsterInvalidDefinitionError: no pipeline of the project has one of the kept sets, or it trains nothing;
                names every one with file and line, and what there is.
        """
        of_file = self._written_in or context
        found = _found("kept_sets", self.comparison.kept_sets, find_evaluations, _pipelines(context), of_file)
        return training_comparison_definitions(self.comparison, found)


def _pipelines(context: dg.ComponentLoadContext) -> list[Pipeline]:
    """Of the project, in whatever order the components are loaded: their settings say where results lie."""
    return [each.pipeline for each in context.component_tree.get_all_components(SemDedupPipeline)]


def _found(
    section: str,
    named: Sequence[_Named],
    find: Callable[[_Named, Sequence[Pipeline]], FoundKeptSet],
    pipelines: Sequence[Pipeline],
    context: dg.ComponentLoadContext,
) -> list[FoundKeptSet]:
    """The kept sets that a comparison names, each with a label of its own.

    Args:
        section: of the settings, in which they are named.
        named: what the settings say of each.
        find: finds one among the pipelines.
        pipelines: of the project.
        context: in which the file was read.

    Raises:
        DagsterInvalidDefinitionError: some are not there, or cannot be told apart; names every one with file and line.
    """
    found, problems = list[FoundKeptSet](), list[Problem]()
    for index, wanted in enumerate(named):
        try:
            found.append(find(wanted, pipelines))
        except UnknownKeptSetError as error:
            problems.append(Problem((section, index, error.setting), error.message))
    found = labelled(found)
    labels = Counter(each.label for each in found)
    for index, each in enumerate(found if not problems else []):
        if labels[each.label] > 1:
            message = f"{each.label!r} is also the name of another; name them apart, or remove one"
            problems.append(Problem((section, index, "name"), message))
    if problems:
        raise dg.DagsterInvalidDefinitionError("\n".join(_report(problems, context)))
    return found


def _settings(
    attributes: BaseModel | None,
    context: dg.ComponentLoadContext,
    *,
    needed: str,
    problems: Callable[[dict[str, Any]], list[Problem]],
) -> dict[str, Any]:
    """What `attributes` hold, with templates filled in.

    Args:
        attributes: as they are written.
        context: of the component.
        needed: what they hold at least, in words.
        problems: what is wrong with settings.

    Raises:
        DagsterInvalidDefinitionError: something is wrong with them; names every problem with file and line.
    """
    if not isinstance(attributes, RootModel):
        message = f"{context.path}: no attributes; give at least {needed}"
        raise dg.DagsterInvalidDefinitionError(message)
    templates = _Templates(context)
    settings: dict[str, Any] = templates.filled(attributes.root, ())
    unfilled = {problem.path for problem in templates.problems}
    others = [problem for problem in problems(settings) if problem.path not in unfilled]
    if found := [*templates.problems, *others]:
        raise dg.DagsterInvalidDefinitionError("\n".join(_report(found, context)))
    return settings


class _Pipelines:
    """The pipelines of one project, as they are loaded."""

    def __init__(self) -> None:
        self._pipelines: list[tuple[Pipeline, str]] = []

    def add(self, pipeline: Pipeline, path: Path) -> bool:
        """Note a pipeline; returns whether it is the first on its dataset, and so declares its shards.

        Raises:
            DagsterInvalidDefinitionError: another pipeline has the same names in Dagster, which knows neither `-` nor
                `.` in the names of groups and sensors, or another source for the same dataset; names both.
        """
        file = str(path / "defs.yaml" if path.is_dir() else path)
        first = True
        for other, where in self._pipelines:
            problem = _collision(pipeline, other)
            if problem:
                message = f"{file}: pipeline {_named(pipeline)} and pipeline {_named(other)} of {where} {problem}"
                raise dg.DagsterInvalidDefinitionError(message)
            first = first and other.dataset != pipeline.dataset
        self._pipelines.append((pipeline, file))
        return first


def _named(pipeline: Pipeline) -> str:
    return f"{pipeline.dataset}/{pipeline.model_name}"


def _collision(pipeline: Pipeline, other: Pipeline) -> str | None:
    """Why two pipelines cannot be in one project; None where they can."""
    if pipeline.dataset == other.dataset:
        if pipeline.store != other.store or files_of(pipeline) != files_of(other):
            return "have one dataset and two sources or stores; give one of them another `dataset`"
        same = dagster_name(pipeline.model_name) == dagster_name(other.model_name)
        return "are one to Dagster, which replaces `-` and `.` by `_`; rename one `model`" if same else None
    if dagster_name(pipeline.dataset) == dagster_name(other.dataset):
        return "have datasets that are one to Dagster, which replaces `-` and `.` by `_`; rename one `dataset`"
    return None


_loading: tuple[Any, _Pipelines] | None = None


def _declared_in(context: dg.ComponentLoadContext) -> _Pipelines:
    """The pipelines of the project that is being loaded: each load begins anew."""
    global _loading  # A component does not know the others.
    tree = context.component_tree
    if _loading is None or _loading[0] is not tree:
        _loading = tree, _Pipelines()
    return _loading[1]


def _report(problems: list[Problem], context: dg.ComponentLoadContext) -> Iterator[str]:
    """The problems, each on a line with its file and line, in the file's order."""
    yield f"{len(problems)} problem{'s' * (len(problems) > 1)} with the settings; nothing was run:"
    tree = context.resolution_context.source_position_tree
    lines = []
    for problem in problems:
        position = tree.lookup_closest_and_path(["attributes", *problem.path], None)[0] if tree else None
        line = position.start.line if position else 0
        lines.append((line, f"{position or context.path} {problem.setting}: {problem.message}"))
    yield from (line for _, line in sorted(lines))


class _Templates:
    """Fills in `{{ … }}`, and remembers where that failed.

    Attributes:
        problems: of the values that could not be filled in, and were left as they are.
    """

    def __init__(self, context: dg.ComponentLoadContext) -> None:
        self.problems: list[Problem] = []
        self._environment = _Environment()
        # As in Dagster's own components: `{{ context.project_root }}/photos` is there wherever Dagster is started.
        project = SimpleNamespace(project_root=str(context.project_root.resolve()))
        self._context = context.resolution_context.with_scope(env=self._environment, context=project)

    def filled(self, value: Any, path: SettingPath) -> Any:
        """A value with all templates in it filled in."""
        if isinstance(value, dict):
            return {key: self.filled(part, (*path, key)) for key, part in value.items()}
        if isinstance(value, list):
            return [self.filled(part, (*path, index)) for index, part in enumerate(value)]
        # Other strings are left as they are: Dagster would read "2024" as a number.
        return self._rendered(value, path) if isinstance(value, str) and "{{" in value else value

    def _rendered(self, template: str, path: SettingPath) -> Any:
        self._environment.unset.clear()
        try:
            value = self._context.resolve_value(template, as_type=object)
        except ResolutionException as error:
            value, cause = None, str(error).strip().splitlines()[-1]
        else:
            if not isinstance(value, _Unset):
                return value
            cause = ""
        unset = ", ".join(self._environment.unset)
        reason = f"the environment variable {unset} is not set; set it where Dagster loads its code, or give a default"
        self.problems.append(Problem(path, f"{template}: {reason}" if unset else f"{template}: {cause}"))
        return template


class _Environment:
    """`env` in templates: `{{ env.NAME }}`, `{{ env('NAME', 'default') }}` or `{{ env.NAME or 'default' }}`."""

    def __init__(self) -> None:
        self.unset: list[str] = []

    def __call__(self, name: str, default: Any = None) -> Any:
        value = os.environ.get(name, default)
        if value is None:
            self.unset.append(name)
            return _Unset()
        return value

    def __getattr__(self, name: str) -> Any:
        # Jinja asks every object for marks of its own.
        if name.startswith(("jinja", "_")):
            raise AttributeError(name)
        return self(name)


class _Unset:
    """A variable that is not set: false, and never a part of a text, which Jinja would make `None/photos` of."""

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        message = "the variable is not set"
        raise LookupError(message)
