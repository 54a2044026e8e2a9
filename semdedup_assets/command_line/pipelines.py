"""Which pipeline, and which of its kept sets, a command is about."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from semdedup_assets.command_line.errors import UsageError
from semdedup_assets.command_line.lines import warn
from semdedup_assets.defs_yaml.pipelines import WrittenPipelines, defs_file, project_root, read_pipelines
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.kept_set_choice import UnknownKeptSetError, chosen
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.pipeline_stages import PipelineStages
from semdedup_assets.kept_sets import Clustering, Target
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets.storage.results import MissingResultError


@contextmanager
def written_pipelines(defs: Path, name: str | None) -> Iterator[WrittenPipelines]:
    """The pipelines of a `defs.yaml`; in a block, in which paths and the environment are as Dagster has them.

    Args:
        defs: the file, or the folder that holds it.
        name: `<dataset>/<model>` of the one that is meant, whatever is wrong with others; None: all.

    Raises:
        UsageError: the file, or such a pipeline, is not there.
        SettingsError: the file holds no pipeline, or that one is wrong.
    """
    try:
        file = defs_file(defs)
    except FileNotFoundError as error:
        raise UsageError(str(error)) from error
    here, root = Path.cwd(), project_root(file)
    if root is not None and root != here:
        file = file.resolve()
        os.chdir(root)
    try:
        with _environment_of(root):
            yield _named(read_pipelines(file), file, name)
    finally:
        os.chdir(here)


def _named(found: WrittenPipelines, file: Path, name: str | None) -> WrittenPipelines:
    """The one that is meant, of those of a file."""
    chosen = [each for each in found.valid if name in (None, each.name)]
    if name is None:
        return found
    if not chosen:
        # It may be one of those that are wrong.
        found.require_valid()
        message = f"--pipeline: {name!r} is none of those in {file}: {', '.join(each.name for each in found.valid)}"
        raise UsageError(message)
    return WrittenPipelines(chosen, [])


@contextmanager
def _environment_of(root: Path | None) -> Iterator[None]:
    """Have the variables of a project's `.env` in the environment, before those that are there, as in Dagster."""
    file = None if root is None else root / ".env"
    if file is None or not file.is_file():
        yield
        return
    before = dict(os.environ)
    with file.open(encoding="utf-8") as stream:
        for binding in parse_stream(stream):
            if binding.error:
                warn(f"{file}:{binding.original.line}: no `NAME=value`; it is passed over")
    os.environ.update({key: value for key, value in dotenv_values(file).items() if value is not None})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def only_pipeline(found: WrittenPipelines) -> Pipeline:
    """The pipeline of a command that is about one.

    Raises:
        UsageError: there are several; names them.
        SettingsError: there may be several, for something is wrong with some.
    """
    found.require_valid()
    if len(found.valid) > 1:
        message = f"--pipeline: missing; there are several: {', '.join(each.name for each in found.valid)}"
        raise UsageError(message)
    return found.valid[0].pipeline


@dataclass(frozen=True)
class KeptSetNames:
    """What a command says of a kept set; None where it says nothing."""

    epsilon: str | None = None
    k: str | None = None
    selection: str | None = None

    def find(self, pipeline: Pipeline) -> tuple[StageContext, Partition]:
        """The kept set: of several, the one that is named.

        Raises:
            UsageError: there is no such one, or several; names them.
            MissingResultError: it has not been made, or not of what its inputs are now.
        """
        stages, selections = PipelineStages(pipeline, GRAPH), pipeline.named_selections
        try:
            epsilon = chosen("epsilon", _plain(self.epsilon, Target), [str(each) for each in pipeline.targets])
            k = chosen("k", _plain(self.k, Clustering), [str(each) for each in pipeline.clusterings])
            names = [name for name in selections if name is not None]
            named = chosen("selection", self.selection, names) if names or self.selection else None
        except UnknownKeptSetError as error:
            message = f"--{error.setting}: {error.message}"
            raise UsageError(message) from error
        context = stages.context(stages.assets[0]).with_selection(selections[named])
        partition = Partition(target=Target.parse(epsilon), clustering=Clustering.parse(k))
        try:
            context.index.require_consistent("keep_masks", partition)
        except MissingResultError as error:
            message = f"{error}; `semdedup run` makes what is missing or stale"
            raise MissingResultError(message) from error
        return context, partition


def _plain(given: str | None, kind: Any) -> str | None:
    """A name as the settings write it: `0.050` is `0.05`."""
    try:
        return None if given is None else str(kind.parse(given))
    except ValueError:
        return given
