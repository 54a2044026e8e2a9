"""Make the partitions of a stage: one loop for all stages, over whatever engine."""

import errno
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from semdedup_assets.execution import progress
from semdedup_assets.execution.context import PartOfResult, StageContext
from semdedup_assets.execution.engines.outcomes import Engine, Outcome, WorkerDiedError
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.placement import Placement, WorkerSetup, placement_of
from semdedup_assets.execution.shard_reader import SourceChangedError
from semdedup_assets.execution.stage import Stage
from semdedup_assets.records import TooManyRowsError
from semdedup_assets.storage.results import MissingResultError, ResultRecord

# What a shard's own data make a reader raise. Whatever else is raised (a store out of reach, memory or a disk that is
# full, a model that fails) is no fault of the shard's; but what ends each worker that makes it, while others live, is.
_DATA_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, EOFError, WorkerDiedError, SourceChangedError)
# What ended its workers, the engine has tried as often already; a file that was changed will not be as it was.
_TRIED_ENOUGH = (WorkerDiedError, SourceChangedError)
# What no further attempt can mend.
_FINAL = (PermissionError, MissingResultError, TooManyRowsError)
_NAMED = 3
# A machine or a store that cannot take results: all that follows would fail too.
_STORE_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
}


class FailedPartitionsError(RuntimeError):
    """Partitions could not be made, and are too many, or too telling, to be excluded."""


@dataclass(frozen=True, slots=True)
class _Task:
    """A task of a partition; `index` is its rank among the partition's tasks."""

    partition: Partition
    index: int
    content: Any


def run_partitions(  # noqa: PLR0913  # what is made, and three ways to make it
    context: StageContext,
    stage: Stage,
    partitions: Sequence[Partition],
    *,
    again: bool = False,
    patient: bool = True,
    engine: Engine | None = None,
) -> Iterator[tuple[Partition, ResultRecord]]:
    """Make partitions of a stage, each yielded as it is done, so that a failure keeps what was finished.

    Where a stage can exclude (`Stage.exclude`), a partition that fails holds back none of the others: it is tried again
    after them (`refresh.attempts`, `refresh.retry_seconds`). One whose data cannot be read is then excluded; where the
    machine, the store or the model failed, the run fails once the others are made.

    Args:
        context: of the pipeline and the selection.
        stage: which.
        partitions: which.
        again: whether parts of them that are up to date are made again.
        patient: whether the source may be observed anew, and shards wait for that whose files were changed meanwhile;
            else they are excluded.
        engine: where tasks run; None: where `compute` says.

    Raises:
        FailedPartitionsError: nothing at all can be made, more fails than `refresh.max_excluded` allows, or something
            fails that is no fault of the data.
        SourceChangedError: a source file is not the one that was observed, and the stage is patient or cannot exclude.
        ClusterError: the cluster cannot be joined, or no worker can start on it.
        Exception: what a task raised, of a stage that cannot exclude.
    """
    if not partitions:
        return
    placement = placement_of(context, stage) if engine is None else Placement(engine)
    making = _Making(placement.context_of(context), stage, placement.engine, again, patient)
    with progress.Progress(stage.name, total=len(partitions), unit="partitions") as bar:
        failed = yield from _attempts(making, list(partitions), bar)
    if placement.threads is not None:
        # Other processes may have made results of these too.
        for selection in context.together:
            context.with_selection(selection).index.forget(stage.name)
    if failed:
        yield from _excluded(context, stage, failed)


@dataclass(frozen=True, slots=True)
class _Making:
    """What makes the partitions of a stage."""

    context: StageContext
    stage: Stage
    engine: Engine
    again: bool
    patient: bool


def _attempts(
    making: _Making, waiting: list[Partition], bar: progress.Progress
) -> Generator[tuple[Partition, ResultRecord], None, dict[Partition, Exception]]:
    """Try partitions until each is made or was tried as often as it may be; returns those that were not made."""
    context, stage, failed = making.context, making.stage, dict[Partition, Exception]()
    setting = context.pipeline.refresh
    attempts = setting.attempts if stage.exclude is not None else 1
    for attempt in range(1, attempts + 1):
        errors: dict[Partition, Exception] = {}
        for partition, record, error in _attempt(making, waiting):
            bar.advance()
            if record is not None:
                yield partition, record
            elif error is not None:
                _raise_unless_retried(stage, error)
                errors[partition] = error
                if not isinstance(error, SourceChangedError | WorkerDiedError):
                    progress.log(f"{partition}: attempt {attempt} of {attempts} failed: {_reason(error)}")
        if making.patient or stage.exclude is None:
            _raise_source_change(errors)
        if errors:
            _refuse_unless_some_are_good(context, stage, errors)
        last = attempt == attempts
        failed |= {each: error for each, error in errors.items() if last or isinstance(error, _TRIED_ENOUGH)}
        waiting = [each for each in errors if each not in failed]
        if not waiting:
            break
        progress.log(f"{len(waiting)} {stage.unit} failed; the next attempt is in {setting.retry_seconds:g} s")
        time.sleep(setting.retry_seconds)
    return failed


def _attempt(
    making: _Making, partitions: Sequence[Partition]
) -> Iterator[tuple[Partition, ResultRecord | None, Exception | None]]:
    """Try each partition once: its record, or the error of the first of its tasks that failed."""
    context, stage = making.context, making.stage
    results: dict[Partition, dict[int, Any]] = {}
    counts: dict[Partition, int] = {}
    failed, nothing_to_do = set[Partition](), list[Partition]()

    def tasks() -> Iterator[_Task]:
        # One after the other: a partition whose inputs are missing holds back none of those before it.
        for partition in partitions:
            contents = _tasks_of(context, stage, partition, again=making.again)
            counts[partition], results[partition] = len(contents), {}
            if not contents:
                nothing_to_do.append(partition)
            yield from (_Task(partition, index, content) for index, content in enumerate(contents))

    for outcome in making.engine(WorkerSetup(context, stage.name), tasks()):
        partition = outcome.task.partition
        if partition in failed:
            # A task of it that ran beside the one that failed.
            context.discard_parts(stage.name, partition, _parts([outcome.value]))
            continue
        if outcome.error is not None:
            failed.add(partition)
            context.discard_parts(stage.name, partition, _parts(results.pop(partition).values()))
            yield partition, None, outcome.error
            continue
        _take(context, stage, outcome, results[partition])
        if len(results[partition]) == counts[partition]:
            values = [value for _, value in sorted(results.pop(partition).items())]
            yield partition, _finished(context, stage, partition, values), None
    for partition in nothing_to_do:
        yield partition, _finished(context, stage, partition, []), None


def _parts(values: Iterable[Any]) -> list[PartOfResult]:
    """Of what tasks gave, that which is not committed by itself."""
    return [value for value in values if isinstance(value, PartOfResult)]


def _tasks_of(context: StageContext, stage: Stage, partition: Partition, *, again: bool) -> Sequence[Any]:
    if not stage.by_range:
        return stage.tasks(context, partition)
    # Each range is a result of its own: one that is up to date, of another grouping perhaps, is not made again.
    stored = context.index.stored(stage.name, partition)
    return stored if again else [each for each in stored if not context.index.is_current(stage.name, each)]


def _take(context: StageContext, stage: Stage, outcome: Outcome, results: dict[int, Any]) -> None:
    """Keep a task's result; a record may come from another process, whose index is not this one's."""
    results[outcome.task.index] = outcome.value
    if isinstance(outcome.value, ResultRecord):
        context.index.put(stage.name, outcome.value)


def _finished(context: StageContext, stage: Stage, partition: Partition, values: list[Any]) -> ResultRecord:
    if not stage.by_range:
        return stage.finish(context, partition, values)
    record = context.index.result(stage.name, partition)
    if record is None:
        message = f"{context.asset(stage.name)}, partition {partition}: a part of it vanished while it was made"
        raise MissingResultError(message)
    return record


def _raise_unless_retried(stage: Stage, error: Exception) -> None:
    """Raise what ends the stage at once: another attempt, or another partition, would only fail again."""
    of_the_store = isinstance(error, OSError) and error.errno in _STORE_ERRORS
    if stage.exclude is None or of_the_store or isinstance(error, _FINAL):
        raise error


def _raise_source_change(errors: dict[Partition, Exception]) -> None:
    """Another attempt would find the same files: who observes the source again can go on."""
    changes = [error for error in errors.values() if isinstance(error, SourceChangedError)]
    if changes:
        message = "; ".join(map(str, changes[:_NAMED])) + (
            f"; and {len(changes) - _NAMED} more" * (len(changes) > _NAMED)
        )
        raise SourceChangedError(message) from changes[0]


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _refuse_unless_some_are_good(context: StageContext, stage: Stage, errors: dict[Partition, Exception]) -> None:
    """Where nothing ever worked the settings are wrong, not the data."""
    version = context.code_version(stage.name)
    records = context.index.records(stage.name).values()
    if not any(record.code_version == version and record.excluded is None for record in records):
        message = f"{context.pipeline.dataset}: no shard can be made into {stage.name}; {_first(errors)}"
        raise FailedPartitionsError(message)


def _excluded(
    context: StageContext, stage: Stage, errors: dict[Partition, Exception]
) -> Iterator[tuple[Partition, ResultRecord]]:
    """Record the partitions that failed every attempt as excluded.

    Raises:
        FailedPartitionsError: they are too many, or one failed that is no fault of its data.
    """
    faults = {partition: error for partition, error in errors.items() if not isinstance(error, _DATA_ERRORS)}
    if faults:
        message = (
            f"{context.pipeline.dataset}: {len(faults)} {stage.unit} failed in {stage.name} for a cause that is not in "
            f"their data; what was finished stays, run again once it is mended; {_first(faults)}"
        )
        raise FailedPartitionsError(message) from next(iter(faults.values()))
    total = len(context.index.partitions(stage.name))
    allowed = max(1, int(context.pipeline.refresh.max_excluded * total))
    failing = {*errors, *context.index.excluded(stage.name)}
    if len(failing) > allowed:
        message = (
            f"{context.pipeline.dataset}: {len(failing)} of {total} {stage.unit} fail in {stage.name}, and {allowed} may "
            f"be excluded; mend them, or raise `refresh.max_excluded`; {_first(errors)}"
        )
        raise FailedPartitionsError(message)
    for partition, error in errors.items():
        if stage.exclude is not None:
            yield partition, stage.exclude(context, partition, _reason(error))


def _first(errors: dict[Partition, Exception]) -> str:
    return "; ".join(f"{partition}: {_reason(error)}" for partition, error in list(errors.items())[:_NAMED])
