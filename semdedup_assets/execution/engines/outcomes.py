"""What an engine is: a map from tasks to their outcomes, over workers that are set up once."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from semdedup_assets.execution import usage

Worker = Callable[[Any], Any]
"""Makes one task after the other, with what it set up once."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a task ended.

    Attributes:
        task: which.
        value: what it gave.
        error: what it raised; then there is no value.
    """

    task: Any
    value: Any = None
    error: Exception | None = None


Engine = Callable[[Callable[[], Worker], Iterable[Any]], Iterator[Outcome]]
"""Maps tasks: given what sets a worker up, and the tasks, it yields their outcomes as they end."""


class WorkerDiedError(RuntimeError):
    """The process that made a task ended without a word, each time the task was tried."""


def outcome_of(worker: Worker, task: Any) -> Outcome:
    """Make a task, and measure what that uses."""
    try:
        with usage.measured():
            value = worker(task)
    except Exception as error:  # whatever a file, a store or a library may raise: the caller decides
        return Outcome(task, error=error)
    return Outcome(task, value)
