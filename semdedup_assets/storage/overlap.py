"""Calls that wait for a store, several at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from semdedup_assets.storage.files import is_local

T = TypeVar("T")
R = TypeVar("R")

_REMOTE = 8


def calls_at_once(path: str) -> int:
    """How many calls on files below a path to make at a time: of a local disk one, for there is little to wait for."""
    return 1 if is_local(path) else _REMOTE


def overlapped(call: Callable[[T], R], items: Iterable[T], *, most: int) -> Iterator[R]:
    """The results of calls, in the order of their items.

    No call is under way once this ends, also where it ends by an error or is closed.

    Args:
        call: what is done with each item, in threads where `most` is above 1.
        items: taken as they are needed.
        most: how many calls may be under way, or done and not yet taken.
    """
    return map(call, items) if most <= 1 else _in_threads(call, iter(items), most)


def ahead(call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """The same with the next result under way while one is used: at most two are held at a time."""
    return _in_threads(call, iter(items), 1)


def _in_threads(call: Callable[[T], R], source: Iterator[T], most: int) -> Iterator[R]:
    with ThreadPoolExecutor(most) as pool:
        waiting = deque(pool.submit(call, item) for item in islice(source, most))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(call, item) for item in islice(source, 1))
                yield result
        finally:
            for each in waiting:
                each.cancel()
