"""What a stage is: one record, in the stage's own file, from which everything about it follows."""

import importlib
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from semdedup_assets.execution.engines.outcomes import Worker as Worker  # noqa: TC001  # stages import it from here
from semdedup_assets.execution.partitions import Dimension, Partition
from semdedup_assets.kept_sets import Selection
from semdedup_assets.settings import Pipeline
from semdedup_assets.storage.layout import Layout
from semdedup_assets.storage.results import ResultRecord

if TYPE_CHECKING:
    from semdedup_assets.execution.context import StageContext


ANALYSE = "6-analyse"
"""The step of what is measured beside the main way; its assets have a group of their own."""

EVALUATE = "7-evaluate"
"""The step of models that are trained on kept sets, and of what they are worth; another group."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a stage's table: name, type, meaning."""

    name: str
    type: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A partition that is not as it should be.

    Attributes:
        partition: its key, or several in words.
        measured: what is wrong with it.
        remedy: what to do.
    """

    partition: str
    measured: str
    remedy: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found.

    Attributes:
        fault: what the failing partitions do, as in "2 of the dataset's <fault>".
        problems: one for each failing partition.
        measured: numbers that plot over time, and what explains them.
        certain: whether a problem means that something is wrong, not only that it is unusual.
    """

    fault: str
    problems: list[Problem]
    measured: dict[str, Any] = field(default_factory=dict)
    certain: bool = True


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold of a stage's results; its name is its function's.

    Attributes:
        evaluate: looks at all partitions that are there, whichever run made them: the run of one does not clear another.
        description: what holds where it passes.
        blocking: whether going on would be wrong where it fails.
        only_warns: of which pipelines it does not block.
        alone: whether it can turn false while nothing is made: a run of the asset does not evaluate it, a job does.
    """

    evaluate: "Callable[[StageContext], CheckResult]"
    description: str
    blocking: bool = True
    only_warns: "Callable[[StageContext], bool]" = field(default=lambda _: False)
    alone: bool = False

    @property
    def name(self) -> str:
        """As Dagster shows it."""
        return self.evaluate.__name__


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a result, for a page that shows no files."""

    png: bytes
    title: str


@dataclass(frozen=True, slots=True)
class Rows:
    """A small table of a result; `brief` where it must fit a narrow dialog."""

    rows: Sequence[Mapping[str, Any]]
    brief: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """A file of a result that a person opens."""

    path: str


Shown = Picture | Rows | Link | str | float
"""What a person sees of a result beside its numbers."""


def _partition_itself(_: "StageContext", partition: Partition) -> Sequence[Any]:
    return [partition]


def _only_result(_: "StageContext", partition: Partition, results: list[Any]) -> ResultRecord:
    (record,) = results
    if not isinstance(record, ResultRecord):
        message = f"the task of partition {str(partition)!r} gave {type(record).__name__}, not a result record"
        raise TypeError(message)
    return record


def _nothing_shown(_: "StageContext", __: Partition, ___: ResultRecord) -> dict[str, Shown]:
    return {}


def _version(_: "StageContext", __: str, record: ResultRecord) -> str:
    return record.version


def _accepted(_: "StageContext", __: ResultRecord) -> bool:
    return True


def _whole_selection(selection: Selection) -> Mapping[str, Any]:
    return selection.identity()


def _no_inputs(_: Pipeline, __: Selection) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline: what it is made from, what determines it, where it lies, and what makes it.

    The asset in Dagster, its dependencies, code version and staleness, its place in a refresh, the estimate and the
    paths follow from this record. How partitions map follows from the dimensions: those that a stage shares with an
    input are the same, and of the others the stage needs all.

    Attributes:
        name: of the asset, and of the result's record.
        step: the step of the method, numbered so that a list of them is in order.
        description: what it holds, its shape, the paper's section.
        dimensions: of its partitions.
        inputs: names of the stages it is made from.
        settings: what of the pipeline's settings can change a result, for a selection.
        location: where a partition's result lies, without a suffix.
        worker: sets up once what many tasks need (a model, centroids), and returns what makes a task.
        tasks: what a partition consists of; by default itself.
        finish: makes a partition's record of its tasks' results; by default the only task's.
        version: raised by whoever changes what the stage computes from the same input.
        kinds: what makes it and how it is stored; Dagster shows an icon for each.
        columns: of results that are tables, for a pipeline.
        checks: what must hold of its results.
        shown: what a person sees of a result beside its numbers.
        selected: whether each selection has results of its own.
        selection_settings: what of a selection can change a result, of a stage that each selection has.
        by_range: whether results are stored for each range of clusters: tasks commit records of their own, and a
            partition (a bucket) groups them freely.
        frozen: whether a result stays when its inputs change.
        exclude: records that a partition could not be made; None where a failure ends the run.
        on_demand: whether refreshes and automation make it only where `analyses.follow` names it.
        applies: whether a pipeline and a selection have it at all.
        pool: what it keeps busy, and so cannot share: a `gpu`, or the `cpu`; None for seconds of work, which wait for nobody.
        optional_inputs: further inputs, of some pipelines and selections.
        input_version: of an input's record, what of it counts: by default the version of all its content.
        accepts: whether today's settings want a result that fits its inputs; for settings that say which results count,
            and change none.
        settle: brings what lies beside results that are up to date in step with them; takes them by partition; None where nothing does.
        workers_of: the stage whose `compute.workers` count where this one's are not named.
        together: whether a task also makes what is stale of the selections that are made together with its own.
        unit: what a task is, in the words of a progress bar.
    """

    name: str
    step: str
    description: str
    dimensions: tuple[Dimension, ...]
    inputs: tuple[str, ...]
    settings: "Callable[[StageContext], Mapping[str, Any]]"
    location: Callable[[Layout, Partition, Selection], str]
    worker: "Callable[[StageContext], Worker]"
    tasks: "Callable[[StageContext, Partition], Sequence[Any]]" = _partition_itself
    finish: "Callable[[StageContext, Partition, list[Any]], ResultRecord]" = _only_result
    version: int = 1
    kinds: frozenset[str] = frozenset()
    columns: Callable[[Pipeline], tuple[Column, ...]] = field(default=lambda _: ())
    checks: tuple[Check, ...] = ()
    shown: "Callable[[StageContext, Partition, ResultRecord], dict[str, Shown]]" = _nothing_shown
    selected: bool = False
    selection_settings: Callable[[Selection], Mapping[str, Any]] = _whole_selection
    by_range: bool = False
    frozen: bool = False
    exclude: "Callable[[StageContext, Partition, str], ResultRecord] | None" = None
    on_demand: bool = False
    applies: Callable[[Pipeline, Selection], bool] = field(default=lambda _, __: True)
    pool: Literal["gpu", "cpu"] | None = "gpu"
    optional_inputs: Callable[[Pipeline, Selection], tuple[str, ...]] = _no_inputs
    input_version: "Callable[[StageContext, str, ResultRecord], str]" = _version
    accepts: "Callable[[StageContext, ResultRecord], bool]" = _accepted
    settle: "Callable[[StageContext, Mapping[Partition, ResultRecord]], None] | None" = None
    workers_of: str = ""
    together: bool = False
    unit: str = "partitions"

    @property
    def reads_part_of_inputs(self) -> bool:
        """Whether it may stay up to date though the version of an input changes."""
        return self.input_version is not _version

    @property
    def has_many_tasks(self) -> bool:
        """Whether what it makes grows with the dataset by tasks: by shard, by bucket, or as a partition is cut."""
        return self.tasks is not _partition_itself or not {"shard", "bucket"}.isdisjoint(self.dimensions)

    def all_inputs(self, pipeline: Pipeline, selection: Selection) -> tuple[str, ...]:
        """Names of the stages it is made from in a pipeline."""
        return (*self.inputs, *self.optional_inputs(pipeline, selection))

    def __reduce__(self) -> str | tuple[Any, ...]:
        # Its functions have no names of their own: another process finds the stage in the module that defines it.
        module = self.worker.__module__
        if getattr(sys.modules.get(module), "STAGE", None) is not self:
            message = (
                f"stage {self.name!r} is not the STAGE of the module {module}: it cannot be sent to another process"
            )
            raise pickle.PicklingError(message)
        return _stage_of, (module,)


def _stage_of(module: str) -> Stage:
    found: Stage = importlib.import_module(module).STAGE
    return found


@dataclass(frozen=True)
class StageGraph:
    """The stages of a pipeline, each after those it is made from."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        """Refuse what could not be made.

        Raises:
            ValueError: a stage comes before one of its inputs, or all selections share it though it is made from
                results that each selection has of its own.
        """
        for index, stage in enumerate(self.stages):
            earlier = {each.name: each for each in self.stages[:index]}
            for name in stage.inputs:
                if name != "shards" and name not in earlier:
                    message = f"stage {stage.name!r}: its input {name!r} does not come before it"
                    raise ValueError(message)
                if name != "shards" and earlier[name].selected and not stage.selected:
                    message = f"stage {stage.name!r}: set `selected`, for each selection has {name!r} of its own"
                    raise ValueError(message)

    @cached_property
    def _by_name(self) -> dict[str, Stage]:
        return {stage.name: stage for stage in self.stages}

    def __getitem__(self, name: str) -> Stage:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def is_one_to_one(self, stage: Stage, name: str) -> bool:
        """Whether each partition of a stage is made from one result of an input.

        Args:
            stage: which.
            name: of the input: a stage, or `shards`.
        """
        if name == "shards":
            return "shard" in stage.dimensions
        return not self[name].by_range and set(self[name].dimensions) <= set(stage.dimensions)

    def before(self, stage: Stage, pipeline: Pipeline, selection: Selection) -> list[Stage]:
        """The stages that a stage depends on, however indirectly, in order."""
        needed = set(stage.all_inputs(pipeline, selection))
        found = []
        for each in reversed(self.stages):
            if each.name in needed:
                needed |= set(each.all_inputs(pipeline, selection))
                found.append(each)
        return found[::-1]
