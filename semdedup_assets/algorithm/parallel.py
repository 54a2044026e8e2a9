"""Independent tasks run concurrently, each on one core.

PyTorch divides each operation among its threads, which then wait for one another. That pays for long operations; scoring
a cluster is hundreds of short ones.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Generic, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(task: Callable[[Item], Result], items: Sequence[Item], *, most: int) -> list[Result]:
    """Call a function for each item, concurrently on as many cores as PyTorch may use here.

    Args:
        task: called once for each item, in any order and concurrently; PyTorch runs on one core within it. A nested call
            processes its items one by one.
        items: largest first, so that no core has much left when the others are done.
        most: items that may be processed concurrently; below 2, they are processed one by one, each on all cores.

    Returns:
        The results, in the order of the items.

    Raises:
        Exception: what the task raised, for the first item that failed.
    """
    threads = torch.get_num_threads()
    count = min(threads, len(items), most)
    if count < 2:
        return [task(item) for item in items]
    with ThreadPoolExecutor(count) as pool:
        _one_core_each(pool, count)
        # PyTorch applies the last setting to later threads.
        torch.set_num_threads(threads)
        return list(pool.map(task, items))


def even_parts(count: int, parts: int) -> list[slice]:
    """Consecutive parts of so many things, about equally large."""
    bounds = [count * index // parts for index in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def on_devices(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """Call functions concurrently, each of which works on a device of its own; one alone is called here.

    Returns:
        Their results, in order.

    Raises:
        Exception: what one of them raised, the first that failed.
    """
    if len(tasks) == 1:
        return [tasks[0]()]
    with ThreadPoolExecutor(len(tasks)) as pool:
        return [each.result() for each in [pool.submit(task) for task in tasks]]


def _one_core_each(pool: ThreadPoolExecutor, count: int) -> None:
    """Start all threads of the pool, and limit PyTorch to one core in each."""
    ready = threading.Barrier(count + 1)

    def settle() -> None:
        # The question initialises PyTorch in this thread, which would otherwise happen later and undo the setting.
        torch.get_num_threads()
        torch.set_num_threads(1)
        ready.wait()

    try:
        for _ in range(count):
            pool.submit(settle)
    except RuntimeError:
        # The system has no thread left: those that have started must not wait for it.
        ready.abort()
        raise
    ready.wait()


class PerThread(Generic[Result]):
    """A value for each thread, made when the thread first asks for it."""

    def __init__(self, make: Callable[[], Result]) -> None:
        """Store how a value is made."""
        self._make, self._local = make, threading.local()

    def get(self) -> Result:
        """This thread's value."""
        if not hasattr(self._local, "own"):
            self._local.own = self._make()
        own: Result = self._local.own
        return own
