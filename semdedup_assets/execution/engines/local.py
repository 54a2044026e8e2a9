"""Run tasks one after the other in this process."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from semdedup_assets.execution import usage


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


Engine = Callable[[Callable[[], Callable[[Any], Any]], Iterable[Any]], Iterator[Outcome]]
"""Maps tasks: given what sets a worker up, and the tasks, it yields their outcomes as they end."""


def map_tasks(make_worker: Callable[[], Callable[[Any], Any]], tasks: Iterable[Any]) -> Iterator[Outcome]:
    """Run tasks; a worker is set up only if there is one.

    Args:
        make_worker: sets up what makes a task. What it raises is raised here: no task could be made.
        tasks: what the worker is called with, one after the other.

    Yields:
        An outcome for each task, also where it raised.
    """
    worker: Callable[[Any], Any] | None = None
    for task in tasks:
        if worker is None:
            worker = make_worker()
        try:
            with usage.measured():
                value = worker(task)
        except Exception as error:  # whatever a file, a store or a library may raise: the caller decides
            yield Outcome(task, error=error)
        else:
            yield Outcome(task, value)
