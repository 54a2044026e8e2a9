"""Calls that overlap: bounded, in order, and none left behind."""

import threading
from collections.abc import Iterator

import pytest

from semdedup_assets.storage.overlap import overlapped


@pytest.mark.parametrize("most", [1, 3, 20])
def test_results_come_in_order_and_no_more_are_under_way_than_allowed(most: int) -> None:
    started, taken = list[int](), list[int]()

    def items() -> Iterator[int]:
        for item in range(12):
            assert item <= len(taken) + most
            yield item

    def call(item: int) -> int:
        started.append(item)
        return item * item

    for result in overlapped(call, items(), most=most):
        taken.append(result)
    assert taken == [item * item for item in range(12)]
    assert sorted(started) == list(range(12))


def test_calls_wait_together() -> None:
    """Each call waits for the others: one after the other they would never end."""
    together = threading.Barrier(4, timeout=30)
    assert sorted(overlapped(lambda _: together.wait(), range(4), most=4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("most", [1, 4])
def test_after_an_error_nothing_is_under_way(most: int) -> None:
    begun, ended = list[int](), list[int]()

    def call(item: int) -> int:
        begun.append(item)
        if item == 2:
            message = "stop"
            raise RuntimeError(message)
        ended.append(item)
        return item

    with pytest.raises(RuntimeError, match="stop"):
        list(overlapped(call, range(50), most=most))
    assert len(begun) == len(ended) + 1 < 10
