"""Loads a project's `defs` folder though one of its YAML files cannot be parsed, or names a type that is not there.

Dagster parses all files before it asks any component, and gives up at the first that is wrong. A component cannot see to
that; a project's `definitions.py` can, by calling this in place of `dagster.load_from_defs_folder`.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    import dagster as dg
except ModuleNotFoundError as error:
    from semdedup_assets.extras import without_dagster

    raise without_dagster(error) from error
import yaml
from dagster.components.core.context import ComponentDeclLoadContext
from dagster.components.core.decl import (
    ComponentDecl,
    DefsFolderDecl,
    YamlBackedComponentDecl,
    YamlFileDecl,
    build_component_decl_from_yaml_document,
    build_filesystem_component_decl_from_context,
)
from dagster.components.core.defs_module import (
    EXPLICITLY_IGNORED_GLOB_PATTERNS,
    ComponentFileModel,
    ComponentPath,
    DefsFolderComponent,
    context_with_injected_scope,
    find_defs_or_component_yaml,
)
from dagster_shared.yaml_utils import parse_yaml_with_source_position, parse_yamls_with_source_position
from dagster_shared.yaml_utils.source_position import ValueAndSourcePositionTree
from pydantic import BaseModel, ValidationError
from pydantic.warnings import PydanticDeprecatedSince20

from semdedup_assets.assets.not_loaded import NotLoaded
from semdedup_assets.defs_yaml.documents import SettingsError, read_documents, type_problem
from semdedup_assets.defs_yaml.problems import schema_problems
from semdedup_assets.encoders.checkpoints import path_safe
from semdedup_assets.loading import Project, project_of


def load_from_defs_folder(*, path_within_project: Path) -> dg.Definitions:
    """As `dagster.load_from_defs_folder`, but a YAML file that cannot be read takes nothing else away.

    Args:
        path_within_project: a path in the project, such as the folder of its `definitions.py`.

    Returns:
        All definitions; for each file or document that cannot be read an asset `<folder>/not_loaded` that says why. Where
        definitions are loaded to be checked, that is an error.
    """
    with warnings.catch_warnings():
        # Dagster's own reading of the files.
        warnings.simplefilter("ignore", PydanticDeprecatedSince20)
        return _Tree.for_project(path_within_project).build_defs()


class UnreadableYaml(dg.Component):
    """Stands for a document of a `defs.yaml` that cannot be read.

    Attributes:
        loaded: why.
    """

    class Why(BaseModel):
        """What is known of it."""

        name: str
        problems: tuple[str, ...]

    def __init__(self, loaded: NotLoaded) -> None:
        self.loaded = loaded

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """What `load` is given."""
        return cls.Why

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> "UnreadableYaml":
        """The document."""
        why = cls.Why.model_validate(attributes)
        component = cls(NotLoaded(why.name, why.problems))
        project_of(context).add(component, context)
        return component

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """An asset that says why.

        Raises:
            NotLoadedError: definitions are loaded to be checked.
        """
        return project_of(context).definitions(self, context)

    def defined(self, context: dg.ComponentLoadContext, project: Project) -> dg.Definitions:
        """There is nothing to define."""
        del context, project
        return dg.Definitions()


class _Tree(dg.ComponentTree):
    """A component tree in which what cannot be read has its place."""

    def _get_filesystem_decl(self) -> ComponentDecl[Any]:
        path = ComponentPath.from_path(self.defs_module_path)
        if self.state_tracker.get_cache_data(path).component_decl is None:
            found = _decl(self.decl_load_context.for_component_loc(path))
            self.state_tracker.set_cache_data(path, component_decl=found)
        return super()._get_filesystem_decl()


def _decl(context: ComponentDeclLoadContext) -> ComponentDecl[Any] | None:
    """What is declared at a path; None where nothing is."""
    file = find_defs_or_component_yaml(context.path)
    if file is not None:
        return _file_decl(context, file)
    if not context.path.is_dir():
        return build_filesystem_component_decl_from_context(context)
    children = _children(context, None)
    return _folder_decl(context, ComponentPath.from_path(context.path), children) if children else None


def _folder_decl(
    context: ComponentDeclLoadContext,
    path: ComponentPath,
    children: Mapping[Path, ComponentDecl[Any]],
    tree: ValueAndSourcePositionTree | None = None,
    model: ComponentFileModel | None = None,
) -> DefsFolderDecl:
    return DefsFolderDecl(context=context, loc=path, children=children, source_tree=tree, component_file_model=model)


def _children(context: ComponentDeclLoadContext, model: ComponentFileModel | None) -> dict[Path, ComponentDecl[Any]]:
    scoped = context_with_injected_scope(context, DefsFolderComponent, model.template_vars_module if model else None)
    found = {}
    for path in sorted(context.path.iterdir()):
        if any(path.relative_to(context.path).match(pattern) for pattern in EXPLICITLY_IGNORED_GLOB_PATTERNS):
            continue
        decl = _decl(scoped.for_component_loc(ComponentPath.from_path(path)))
        if decl is not None:
            found[path] = decl
    return found


def _file_decl(context: ComponentDeclLoadContext, file: Path) -> ComponentDecl[Any]:
    """Every document of a YAML file, the unreadable ones among them."""
    try:
        # Of what is no YAML Dagster raises whatever comes, also a TypeError.
        read_documents(file)
        trees = list(parse_yamls_with_source_position(file.read_text(encoding="utf-8"), str(file)))
        problems = [] if trees else [f"{file}: no component is in it; remove the file, or write one"]
    except SettingsError as error:
        trees, problems = [], [str(error)]
    except OSError as error:
        trees, problems = [], [f"{file}: {_reason(error)}"]
    if problems:
        trees = [_unreadable(file, problems)]
    paths = [ComponentPath.from_path(context.path, index) for index in range(len(trees))]
    return YamlFileDecl(
        loc=ComponentPath.from_path(context.path),
        context=context,
        decls=[
            _document_decl(context.for_component_loc(path), tree, path, file)
            for path, tree in zip(paths, trees, strict=True)
        ],
        source_positions=[tree.source_position_tree.position for tree in trees],
    )


def _document_decl(
    context: ComponentDeclLoadContext, tree: ValueAndSourcePositionTree, path: ComponentPath, file: Path
) -> YamlBackedComponentDecl[Any]:
    problems = list(_head_problems(tree, file))
    if not problems and tree.value["type"] in ("dagster.DefsFolderComponent", "dagster.components.DefsFolderComponent"):
        model = ComponentFileModel.model_validate(tree.value)
        return _folder_decl(context, path, _children(context, model), tree, model)
    if not problems:
        try:
            decl: Any = build_component_decl_from_yaml_document(context, tree, path)
            # Read here, for later there is no way to lose this document alone.
            decl.get_asset_post_processor_lists()
        except Exception as error:
            problems = [f"{tree.source_position_tree.position}: {_reason(error)}"]
        else:
            found: YamlBackedComponentDecl[Any] = decl
            return found
    replaced: Any = build_component_decl_from_yaml_document(context, _unreadable(file, problems), path)
    unreadable: YamlBackedComponentDecl[Any] = replaced
    return unreadable


def _head_problems(tree: ValueAndSourcePositionTree, file: Path) -> Iterator[str]:
    """What is wrong with the outermost keys of a document."""
    if not isinstance(tree.value, Mapping):
        yield f"{tree.source_position_tree.position}: not a mapping with `type` and `attributes`"
        return
    for problem in schema_problems(tree.value, ComponentFileModel):
        position, _ = tree.source_position_tree.lookup_closest_and_path(list(problem.path), None)
        yield f"{position or file} {'.'.join(map(str, problem.path))}: {problem.message}"
    if isinstance(kind := tree.value.get("type"), str) and (wrong := type_problem(kind)):
        position, _ = tree.source_position_tree.lookup_closest_and_path(["type"], None)
        yield f"{position} type: {wrong}"


def _unreadable(file: Path, problems: Sequence[str]) -> ValueAndSourcePositionTree:
    """A document that stands for one that cannot be read."""
    document = {
        "type": f"{UnreadableYaml.__module__}.{UnreadableYaml.__name__}",
        "attributes": {"name": path_safe(file.parent.name), "problems": list(problems)},
    }
    return parse_yaml_with_source_position(yaml.safe_dump(document, width=1 << 20), str(file))


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    name = type(error).__name__
    return f"{name}: {' '.join(str(error).split())}"
