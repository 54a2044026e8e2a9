"""The Dagster components: settings in a `defs.yaml` become the definitions of a pipeline, or of a comparison."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, Generic, TypeVar

try:
    import dagster as dg
except ModuleNotFoundError as error:
    from semdedup_assets.extras import without_dagster

    raise without_dagster(error) from error
from pydantic import BaseModel, RootModel

from semdedup_assets.assets.builder import dagster_name
from semdedup_assets.assets.comparison import (
    comparison_definitions,
    find_evaluations,
    find_manifest,
    training_comparison_definitions,
)
from semdedup_assets.assets.kept_set_lookup import FoundKeptSet, labelled
from semdedup_assets.assets.not_loaded import NotLoaded
from semdedup_assets.assets.pipeline import pipeline_definitions
from semdedup_assets.comparison_settings import Comparison, ModelComparison, NamedKeptSet
from semdedup_assets.defs_yaml.pipelines import NEEDED, collision, filled_pipeline, filled_settings
from semdedup_assets.defs_yaml.problems import Problem, schema_problems
from semdedup_assets.defs_yaml.scaffold import ComparisonScaffolder, PipelineScaffolder, TrainingComparisonScaffolder
from semdedup_assets.defs_yaml.schema import SettingPath, WrittenSchema
from semdedup_assets.execution.kept_set_choice import UnknownKeptSetError
from semdedup_assets.execution.openmp import let_threads_sleep
from semdedup_assets.loading import (
    InvalidComponentError,
    Project,
    defs_file,
    lines_of,
    made_or_not_loaded,
    pitfalls_of,
    project_of,
)
from semdedup_assets.settings import Pipeline

_Settings = TypeVar("_Settings", bound=BaseModel)
_Named = TypeVar("_Named", bound=NamedKeptSet)
_Compared = TypeVar("_Compared", Comparison, ModelComparison)

# Every process that Dagster starts for a pipeline comes by here, and has not imported PyTorch yet.
let_threads_sleep()


def _written_as(settings: type[BaseModel]) -> type[RootModel[dict[str, Any]]]:
    """The model of `attributes` as they are written: settings are validated once templates are filled in."""

    class Attributes(RootModel[dict[str, Any]]):
        @classmethod
        def model_json_schema(cls, *_: Any, **__: Any) -> dict[str, Any]:
            # What `dg check yaml` and editors go by.
            return settings.model_json_schema(schema_generator=WrittenSchema)

    return Attributes


class _ProjectComponent(dg.Component, Generic[_Settings]):
    """A component that is one of a project: loaded, or the reason why not, beside the others."""

    _attributes: ClassVar[type[RootModel[dict[str, Any]]]]

    def __init__(self, loaded: _Settings | NotLoaded, written_in: dg.ComponentLoadContext | None = None) -> None:
        self.loaded = loaded
        # The context of loading knows the lines of the file.
        self._written_in = written_in

    @classmethod
    def get_model_cls(cls) -> type[RootModel[dict[str, Any]]]:
        """The schema of `attributes`."""
        return cls._attributes

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Any:
        """What `attributes` describe, with `{{ env.NAME }}` filled in; one that is not loaded if they are wrong."""
        loaded = made_or_not_loaded(lambda: cls._settings(attributes, context), attributes, context)
        component = cls(loaded, context)
        project_of(context).add(component, context)
        return component

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Its assets; of one that is not loaded, or cannot be in this project, an asset that says why.

        Raises:
            NotLoadedError: definitions are loaded to be checked, and something is wrong with those of the project.
        """
        return project_of(context).definitions(self, context)

    @abstractmethod
    def defined(self, context: dg.ComponentLoadContext, project: Project) -> dg.Definitions:
        """Its assets.

        Raises:
            InvalidComponentError: it cannot be in this project.
        """

    @classmethod
    @abstractmethod
    def _settings(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> _Settings:
        """The settings that attributes are, once templates are filled in.

        Raises:
            InvalidComponentError: something is wrong with them; names every problem with file and line.
        """

    def _valid(self) -> _Settings:
        """Its settings.

        Raises:
            InvalidComponentError: they are wrong.
        """
        if isinstance(self.loaded, NotLoaded):
            raise InvalidComponentError(self.loaded.problems)
        return self.loaded


@dg.scaffold_with(PipelineScaffolder)
class SemDedupPipeline(_ProjectComponent[Pipeline]):
    """One dataset deduplicated with one embedding model (SemDeDup, arXiv 2303.09540).

    Attributes:
        loaded: its settings, or why there are none.
    """

    _attributes = _written_as(Pipeline)

    @property
    def pipeline(self) -> Pipeline:
        """Its settings.

        Raises:
            InvalidComponentError: they are wrong.
        """
        return self._valid()

    def defined(self, context: dg.ComponentLoadContext, project: Project) -> dg.Definitions:
        """All assets of the pipeline.

        Raises:
            InvalidComponentError: it cannot be in one project with another one.
        """
        pipeline, first = self.pipeline, True
        for other, file in project.pipelines_before(self):
            problem = _collision(pipeline, other)
            if problem:
                setting = "model" if pipeline.model and pipeline.dataset == other.dataset else "dataset"
                message = f"pipeline {_named(pipeline)} and pipeline {_named(other)} of {file} {problem}"
                raise InvalidComponentError(lines_of([Problem((setting,), message)], context))
            first = first and other.dataset != pipeline.dataset
        return pipeline_definitions(pipeline, with_source=first)

    @classmethod
    def _settings(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Pipeline:
        pipeline, problems = filled_pipeline(_written(attributes, context, NEEDED), _scope(context))
        refused = [] if pipeline is None else _refused_by_dagster(pipeline)
        if (wrong := _wrong([*problems, *refused], context)) or pipeline is None:
            raise InvalidComponentError(wrong)
        return pipeline


@dg.scaffold_with(ComparisonScaffolder)
class ManifestComparison(_ProjectComponent[Comparison]):
    """Manifests of the project's pipelines, each compared with each: of several k, seeds, strategies or models.

    Attributes:
        loaded: its settings, or why there are none.
    """

    _attributes = _written_as(Comparison)

    def defined(self, context: dg.ComponentLoadContext, project: Project) -> dg.Definitions:
        """The asset that compares the manifests.

        Raises:
            InvalidComponentError: no pipeline of the project has one of them; names every one with file and
                line, and what there is.
        """
        comparison, of_file = self._valid(), self._written_in or context
        _require_own_name(comparison.name, self, of_file, project)
        found = _found("manifests", comparison.manifests, find_manifest, project, of_file)
        return comparison_definitions(comparison, found)

    @classmethod
    def _settings(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Comparison:
        return _comparison(attributes, context, Comparison, needed="name and manifests")


@dg.scaffold_with(TrainingComparisonScaffolder)
class TrainingComparison(_ProjectComponent[ModelComparison]):
    """Models trained on kept sets of the project's pipelines, beside each other: strategies, k, epsilons, models.

    Attributes:
        loaded: its settings, or why there are none.
    """

    _attributes = _written_as(ModelComparison)

    def defined(self, context: dg.ComponentLoadContext, project: Project) -> dg.Definitions:
        """The asset that compares the trained models.

        Raises:
            InvalidComponentError: no pipeline of the project has one of the kept sets, or it trains nothing;
                names every one with file and line, and what there is.
        """
        comparison, of_file = self._valid(), self._written_in or context
        _require_own_name(comparison.name, self, of_file, project)
        found = _found("kept_sets", comparison.kept_sets, find_evaluations, project, of_file)
        return training_comparison_definitions(comparison, found)

    @classmethod
    def _settings(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> ModelComparison:
        return _comparison(attributes, context, ModelComparison, needed="name and kept_sets")


def _comparison(
    attributes: BaseModel | None, context: dg.ComponentLoadContext, model: type[_Compared], *, needed: str
) -> _Compared:
    """The settings that attributes of a comparison are, once templates are filled in.

    Raises:
        InvalidComponentError: something is wrong with them; names every problem with file and line.
    """
    written = _written(attributes, context, needed)
    settings, problems = filled_settings(written, _scope(context), lambda filled: schema_problems(filled, model))
    if wrong := _wrong(problems, context):
        raise InvalidComponentError(wrong)
    return model.model_validate(settings)


def _require_own_name(name: str, component: object, context: dg.ComponentLoadContext, project: Project) -> None:
    """See that no comparison of the same kind has the same name.

    Raises:
        InvalidComponentError: one was loaded before; names its file.
    """
    for entry in project.entries.values():
        other = entry.component
        if other is component:
            return
        if type(other) is type(component) and getattr(other.loaded, "name", None) == name:
            message = f"{name!r} is also the name of the comparison in {defs_file(entry.context)}; rename one"
            raise InvalidComponentError(lines_of([Problem(("name",), message)], context))


def _pipelines(context: dg.ComponentLoadContext, project: Project) -> list[Pipeline]:
    """Of the project, in whatever order the components are loaded: their settings say where results lie."""
    components = context.component_tree.get_all_components(SemDedupPipeline)
    return [each.pipeline for each in components if not project.is_broken(each)]


def _found(
    section: str,
    named: Sequence[_Named],
    find: Callable[[_Named, Sequence[Pipeline]], FoundKeptSet],
    project: Project,
    context: dg.ComponentLoadContext,
) -> list[FoundKeptSet]:
    """The kept sets that a comparison names, each with a label of its own.

    Args:
        section: of the settings, in which they are named.
        named: what the settings say of each.
        find: finds one among the pipelines.
        project: with its pipelines.
        context: in which the file was read.

    Raises:
        InvalidComponentError: some are not there, or cannot be told apart; names every one with file and line.
    """
    found, problems, broken = list[FoundKeptSet](), list[Problem](), list(project.broken())
    pipelines = _pipelines(context, project)
    for index, wanted in enumerate(named):
        try:
            _require_loaded(wanted, pipelines, broken)
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
        raise InvalidComponentError(lines_of(problems, context))
    return found


def _require_loaded(wanted: NamedKeptSet, pipelines: Sequence[Pipeline], broken: Sequence[NotLoaded]) -> None:
    """See that a comparison names no pipeline that is not loaded, nor gets another in its place.

    Raises:
        UnknownKeptSetError: it does; names the first problem of that pipeline.
    """
    there = {(each.dataset, each.model_name) for each in pipelines}
    for each in broken:
        is_named = each.name == wanted.dataset and (wanted.model is None or each.model in (None, wanted.model))
        if is_named and (each.name, each.model) not in there:
            more = f" and {len(each.problems) - 1} more" if len(each.problems) > 1 else ""
            message = f"the pipeline {wanted.dataset} is not loaded; mend it first: {each.problems[0]}{more}"
            raise UnknownKeptSetError(message, setting="dataset")


def _refused_by_dagster(pipeline: Pipeline) -> Iterator[Problem]:
    """The settings that Dagster alone can tell to be wrong: owners, and when a schedule runs."""
    name, schedule = dagster_name(pipeline.dataset), pipeline.refresh.schedule or "@daily"
    trials: dict[SettingPath, Callable[[], object]] = {
        ("owners",): lambda: dg.AssetSpec(name, owners=list(pipeline.owners)),
        ("refresh", "schedule"): lambda: dg.ScheduleDefinition(job_name=name, cron_schedule=schedule),
    }
    for path, trial in trials.items():
        try:
            trial()
        except dg.DagsterInvalidDefinitionError as error:
            yield Problem(path, " ".join(str(error).split()))


def _wrong(problems: Sequence[Problem], context: dg.ComponentLoadContext) -> list[str]:
    """What is wrong with settings, and with how YAML takes them, each with file and line."""
    return [*pitfalls_of(context), *lines_of(problems, context)]


def _written(attributes: BaseModel | None, context: dg.ComponentLoadContext, needed: str) -> dict[str, Any]:
    """`attributes` as they are written.

    Args:
        attributes: of the component.
        context: of the component.
        needed: what they hold at least, in words.

    Raises:
        InvalidComponentError: there are none.
    """
    if isinstance(attributes, RootModel):
        written: dict[str, Any] = attributes.root
        return written
    raise InvalidComponentError([f"{defs_file(context)}: no attributes; give at least {needed}"])


def _scope(context: dg.ComponentLoadContext) -> dict[str, Any]:
    """What templates can name.

    As in Dagster's own components: `{{ context.project_root }}/photos` is there wherever Dagster is started.
    """
    project = SimpleNamespace(project_root=str(context.project_root.resolve()))
    return {**context.resolution_context.scope, "context": project}


def _named(pipeline: Pipeline) -> str:
    return f"{pipeline.dataset}/{pipeline.model_name}"


def _collision(pipeline: Pipeline, other: Pipeline) -> str | None:
    """Why two pipelines cannot be in one project; None where they can."""
    if problem := collision(pipeline, other):
        return problem
    if dagster_name(pipeline.dataset) != dagster_name(other.dataset):
        return None
    if pipeline.dataset != other.dataset:
        return "have datasets that are one to Dagster, which replaces `-` and `.` by `_`; rename one `dataset`"
    same = dagster_name(pipeline.model_name) == dagster_name(other.model_name)
    return "are one to Dagster, which replaces `-` and `.` by `_`; rename one `model`" if same else None
