"""The components of a project, loaded together: one that is wrong is no reason to lose the others.

Where definitions are loaded to be checked, by `dg check defs` or `dagster definitions validate`, the same problems are an
error instead, and sources and models are looked into too. `dagster dev`, its code servers, and the processes of runs load
what can be loaded.
"""

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import dagster as dg
from dagster.components.core.component_tree import ComponentTreeException
from pydantic import BaseModel, RootModel

from semdedup_assets.assets.not_loaded import NotLoaded, not_loaded_definitions
from semdedup_assets.defs_yaml.documents import FILES, defs_file_in, headed, read_documents, reported_lines
from semdedup_assets.defs_yaml.problems import Problem
from semdedup_assets.defs_yaml.source_check import checked_source
from semdedup_assets.encoders.checkpoints import path_safe
from semdedup_assets.settings import Pipeline

_CHECKING = "DAGSTER_IS_DEFS_VALIDATION_CLI"  # which both commands set, also for the servers that they start
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BUG = "a fault of semdedup-assets that these settings bring about; please report it, with its traceback"
_SOURCES_AT_ONCE = 8
_LOGGER = logging.getLogger("dagster.semdedup_assets")

T = TypeVar("T")


class NotLoadedError(ComponentTreeException, dg.DagsterInvalidDefinitionError):
    """Some components cannot be loaded; the message has each problem on a line, with file and line.

    Before other errors Dagster prints the whole tree of components, but not before those of the tree's own kind.
    """


class InvalidComponentError(Exception):
    """One component cannot be loaded.

    Attributes:
        problems: lines, each with file and line.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class ProjectComponent(Protocol):
    """A component as its project sees it."""

    @property
    def loaded(self) -> BaseModel | NotLoaded:
        """Its settings, or why there are none."""

    def defined(self, context: dg.ComponentLoadContext, project: "Project") -> dg.Definitions:
        """Its definitions.

        Raises:
            InvalidComponentError: there cannot be any.
        """


@dataclass
class _Entry:
    """A component with the context that knows its file, and what became of it: one of the last two."""

    component: ProjectComponent
    context: dg.ComponentLoadContext
    definitions: dg.Definitions | None = None
    broken: NotLoaded | None = None

    def define(self, project: "Project") -> None:
        """Find out what became of it."""
        loaded = self.component.loaded
        if isinstance(loaded, NotLoaded):
            self.broken = loaded
            return
        made = made_or_not_loaded(lambda: self.component.defined(self.context, project), loaded, self.context)
        if isinstance(made, NotLoaded):
            self.broken = made
        else:
            self.definitions = made


@dataclass
class Project:
    """The components of one component tree."""

    entries: dict[int, _Entry] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def add(self, component: ProjectComponent, context: dg.ComponentLoadContext) -> None:
        """Note a component, once."""
        self.entries.setdefault(id(component), _Entry(component, context))

    def definitions(self, component: ProjectComponent, context: dg.ComponentLoadContext) -> dg.Definitions:
        """What a component defines; an asset that says why where that cannot be.

        Raises:
            NotLoadedError: definitions are loaded to be checked, and a component that is known by now has problems; names
                those of all.
        """
        self.add(component, context)
        entry = self.entries[id(component)]
        if entry.definitions is None:
            self._settle()
        return entry.definitions or dg.Definitions()

    def broken(self) -> Iterator[NotLoaded]:
        """The components that are known to be broken."""
        yield from (entry.broken for entry in self.entries.values() if entry.broken is not None)

    def is_broken(self, component: ProjectComponent) -> bool:
        """Whether a component is known to be broken."""
        entry = self.entries.get(id(component))
        return isinstance(component.loaded, NotLoaded) or (entry is not None and entry.broken is not None)

    def pipelines_before(self, component: ProjectComponent) -> Iterator[tuple[Pipeline, Path]]:
        """The pipelines that are defined already, each with its file."""
        for entry in self.entries.values():
            loaded = entry.component.loaded
            if entry.component is not component and entry.definitions is not None and isinstance(loaded, Pipeline):
                yield loaded, defs_file(entry.context)

    def _settle(self) -> None:
        """Define every component that is not defined yet, pipelines before what compares them."""
        new = [entry for entry in self.entries.values() if entry.definitions is None]
        for entry in sorted(new, key=lambda each: not isinstance(each.component.loaded, Pipeline | NotLoaded)):
            entry.define(self)
        if is_checking():
            _refuse_problems(new)
        for entry in new:
            if entry.broken is not None:
                entry.definitions = not_loaded_definitions(entry.broken, self._free_name(entry.broken.name))

    def _free_name(self, name: str) -> str:
        """A name for an asset that stands for a broken component: two of them may have one dataset."""
        taken = (f"{name}-{number}" if number > 1 else name for number in range(1, len(self.names) + 2))
        free = next(each for each in taken if each not in self.names)
        self.names.add(free)
        return free


_current: tuple[Any, Project] | None = None


def project_of(context: dg.ComponentLoadContext) -> Project:
    """The project that is being loaded: each load begins anew."""
    global _current  # A component does not know the others.
    tree = context.component_tree
    if _current is None or _current[0] is not tree:
        _current = tree, Project()
    return _current[1]


def is_checking() -> bool:
    """Whether definitions are loaded to be checked, so that whatever is wrong is an error."""
    return os.environ.get(_CHECKING) == "1"


def made_or_not_loaded(
    make: Callable[[], T], settings: BaseModel | None, context: dg.ComponentLoadContext
) -> T | NotLoaded:
    """What is made of settings; what is known where that fails, also by a fault of ours.

    Args:
        make: makes it.
        settings: as far as they are known: what they call the component.
        context: of the component.
    """
    written = settings.root if isinstance(settings, RootModel) else settings.model_dump() if settings else {}
    written = written if isinstance(written, Mapping) else {}
    named = settings.model_name if isinstance(settings, Pipeline) else written.get("model")
    name, model = _name_of(written, context), None if named is None else str(named)
    try:
        return make()
    except InvalidComponentError as error:
        return NotLoaded(name, error.problems, model)
    except (OSError, ValueError, dg.DagsterInvalidDefinitionError) as error:
        return NotLoaded(name, (f"{defs_file(context)}: {_one_line(error)}",), model, traceback.format_exc())
    except Exception as error:
        problem = f"{defs_file(context)}: {type(error).__name__}: {_one_line(error)} ({_BUG})"
        return NotLoaded(name, (problem,), model, traceback.format_exc(), is_fault=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _name_of(written: Mapping[str, Any], context: dg.ComponentLoadContext) -> str:
    """What settings, right or wrong, call a dataset or comparison; the folder's name where they do not."""
    named = written.get("dataset") or written.get("name")
    if isinstance(named, str) and _NAME.fullmatch(named):
        return named
    return path_safe(context.path.name if context.path.suffix == "" else context.path.parent.name)


def defs_file(context: dg.ComponentLoadContext) -> Path:
    """The file in which a component is written."""
    return defs_file_in(context.path) or context.path


def pitfalls_of(context: dg.ComponentLoadContext) -> list[str]:
    """What YAML takes otherwise than it looks in a component's document, each with file and line; Dagster sees only the rest."""
    file, index = defs_file(context), context.component_path.instance_key
    if not file.is_file() or file.name not in FILES:
        return []
    documents = read_documents(file)
    return list(documents[index if isinstance(index, int) else 0].pitfalls)


def lines_of(problems: Sequence[Problem], context: dg.ComponentLoadContext) -> list[str]:
    """The problems, each on a line with its file and line, in the file's order."""
    tree = context.resolution_context.source_position_tree

    def located(problem: Problem) -> tuple[int, str]:
        position = tree.lookup_closest_and_path(["attributes", *problem.path], None)[0] if tree else None
        return (position.start.line, str(position)) if position else (0, str(defs_file(context)))

    return reported_lines((problem, located(problem)) for problem in problems)


def _refuse_problems(entries: Sequence[_Entry]) -> None:
    """End the check of definitions where anything is wrong.

    Raises:
        NotLoadedError: names every problem of every component.
    """
    with ThreadPoolExecutor(_SOURCES_AT_ONCE) as pool:
        found = [line for lines in pool.map(_checked, entries) for line in lines]
    if not found:
        return
    # The lines say it all: the process was started to check, and ends with this error.
    sys.tracebacklimit = 0
    faults = "".join(f"\n\n{entry.broken.traceback}" for entry in entries if entry.broken and entry.broken.is_fault)
    raise NotLoadedError(headed(found) + faults)


def _checked(entry: _Entry) -> list[str]:
    """What is wrong with a component, its source and its model; what may be wrong is logged."""
    if entry.broken is not None:
        return list(entry.broken.problems)
    loaded = entry.component.loaded
    if not isinstance(loaded, Pipeline):
        return []
    try:
        found = checked_source(loaded)
    except Exception as error:
        # What a library raises of a file is seen by the run; here nothing must hide what else is wrong.
        reason = f"could not be looked into ({type(error).__name__}: {_one_line(error)})"
        found = [Problem(("source",), reason, warning=True)]
    for line in lines_of([each for each in found if each.warning], entry.context):
        _LOGGER.warning(line)
    return lines_of([each for each in found if not each.warning], entry.context)
