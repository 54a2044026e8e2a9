"""Run tasks one after the other in this process."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from semdedup_assets.execution.engines.outcomes import Outcome, Worker, outcome_of


def map_tasks(make_worker: Callable[[], Worker], tasks: Iterable[Any]) -> Iterator[Outcome]:
    """Run tasks; a worker is set up only if there is one.

    Args:
        make_worker: sets up what makes a task. What it raises is raised here: no task could be made.
        tasks: what the worker is called with, one after the other.

    Yields:
        An outcome for each task, also where it raised.
    """
    worker: Worker | None = None
    for task in tasks:
        if worker is None:
            worker = make_worker()
        yield outcome_of(worker, task)
