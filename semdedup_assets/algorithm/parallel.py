"""Independent pieces of work on all cores, a whole piece on one core.

PyTorch shares each operation among its threads, which must then wait for one another. That pays for long operations; a
cluster is hundreds of short ones.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(work: Callable[[Item], Result], items: Sequence[Item], *, most: int) -> list[Result]:
    """Do some work for each item, on as many cores as PyTorch may use here.

    Args:
        work: called once for each item, in any order and at the same time; what it calls of PyTorch runs on one core.
            Where it comes here itself, its items are done one by one.
        items: dearest first, so that no core is left with much when the others are done.
        most: items that may be worked on at once; below 2, they are done one by one, each on all cores.

    Returns:
        The results, in the order of the items.

    Raises:
        Exception: what the work raised, for the first item that failed.
    """
    threads = torch.get_num_threads()
    count = min(threads, len(items), most)
    if count < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(count) as pool:
        _one_core_each(pool, count)
        # PyTorch took the last setting for that of threads yet to come.
        torch.set_num_threads(threads)
        return list(pool.map(work, items))


def _one_core_each(pool: ThreadPoolExecutor, count: int) -> None:
    """Start all threads of the pool, and tell PyTorch in each that it has one core."""
    ready = threading.Barrier(count + 1)

    def settle() -> None:
        # To ask makes PyTorch ready in this thread, which would later undo what is set now.
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
    """One of something for each thread that asks, made when it first does."""

    def __init__(self, make: Callable[[], Result]) -> None:
        """Keep how it is made."""
        self._make, self._local = make, threading.local()

    def get(self) -> Result:
        """This thread's own."""
        if not hasattr(self._local, "own"):
            self._local.own = self._make()
        own: Result = self._local.own
        return own
