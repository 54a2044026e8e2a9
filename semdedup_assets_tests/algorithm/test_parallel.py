"""Tasks on several cores: results in order, failures raised, PyTorch's own threads left as they were."""

import itertools
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from semdedup_assets.algorithm.parallel import PerThread, in_parallel
from semdedup_assets.algorithm.similarity import EarlierSimilarity, score_clusters
from semdedup_assets_tests import oracle
from semdedup_assets_tests.algorithm.vectors import near_duplicates, tensor


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    """Whatever this machine and its settings allow."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_tasks_run_concurrently_each_on_one_core_and_results_keep_their_order() -> None:
    together = threading.Barrier(4, timeout=60)

    def task(item: int) -> tuple[int, int]:
        together.wait()
        return item * item, torch.get_num_threads()

    assert in_parallel(task, range(8), most=8) == [(item * item, 1) for item in range(8)]


def test_no_more_tasks_run_concurrently_than_allowed() -> None:
    lock, running, most = threading.Lock(), [0], [0]

    def task(item: int) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        torch.randn(100_000).sum()
        with lock:
            running[0] -= 1

    in_parallel(task, range(50), most=2)
    assert most[0] <= 2
    in_parallel(task, range(50), most=0)
    assert most[0] <= 2


def test_pytorch_keeps_its_threads_here_and_in_later_threads() -> None:
    in_parallel(torch.zeros, range(1, 9), most=8)
    assert torch.get_num_threads() == 4
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [4]


def test_tasks_within_tasks_run_one_by_one() -> None:
    def task(item: int) -> list[int]:
        return in_parallel(lambda _: threading.get_ident(), range(3), most=3)

    assert all(len(set(names)) == 1 for names in in_parallel(task, range(4), most=4))


def test_the_first_failure_is_raised() -> None:
    def task(item: int) -> int:
        if item >= 2:
            message = f"task {item}"
            raise ValueError(message)
        return item

    with pytest.raises(ValueError, match="task 2"):
        in_parallel(task, range(9), most=9)


def test_each_thread_has_its_own() -> None:
    own, together = PerThread(object), threading.Barrier(4, timeout=60)

    def task(_: int) -> int:
        together.wait()
        assert own.get() is own.get()
        return id(own.get())

    assert len(set(in_parallel(task, range(4), most=4))) == 4


SIZES = [1, 0, 3, 50, 51, 52, 1, 900, 200, 2100, 1, 700, 640, 641, 129]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("budget", [1 << 30, 1 << 24, 1 << 18])
def test_clusters_of_all_sizes_are_scored_as_defined_by_four_threads_as_by_one(budget: int, dtype: type) -> None:
    rows = np.concatenate([near_duplicates(size, 64, epsilon=0.05, dtype=dtype) for size in SIZES if size])
    offsets = np.concatenate([[0], np.cumsum(SIZES)])
    found = score_clusters(tensor(rows), offsets, budget=budget)
    for start, stop in itertools.pairwise(offsets):
        if start == stop:
            continue
        expected = oracle.chain_scores(rows[start:stop])
        assert found.position[start] == -1
        assert found.similarity[start] == -np.inf
        np.testing.assert_allclose(found.similarity[start + 1 : stop], expected[1:], atol=1e-5)
        assert (found.position[start + 1 : stop] >= start).all()
        assert (found.position[start:stop] < np.arange(start, stop)).all()
    torch.set_num_threads(1)
    _assert_same(found, score_clusters(tensor(rows), offsets, budget=budget))


def test_one_large_cluster_shared_by_four_threads_is_scored_as_by_one() -> None:
    rows = tensor(near_duplicates(6000, 64, epsilon=0.05))
    found = score_clusters(rows, np.array([0, 6000]), budget=1 << 30)
    torch.set_num_threads(1)
    _assert_same(found, score_clusters(rows, np.array([0, 6000]), budget=1 << 30))


def _assert_same(found: EarlierSimilarity, alone: EarlierSimilarity) -> None:
    """But where two candidates are so close that the last bit of a product decides."""
    same = found.position == alone.position
    assert same.mean() > 0.99
    np.testing.assert_array_equal(found.similarity[same], alone.similarity[same])
    np.testing.assert_allclose(found.similarity[~same], alone.similarity[~same], atol=2e-6)


@pytest.mark.parametrize("size", [40, 300, 900])
@pytest.mark.parametrize("bad", [5, 41, 1100])
def test_a_row_that_cannot_be_scored_is_named_by_its_index_among_all(size: int, bad: int) -> None:
    rows = near_duplicates(2000, 64, epsilon=0.05)
    rows[bad] = np.nan
    offsets = np.unique(np.append(np.arange(0, 2000, size), 2000))
    with pytest.raises(ValueError, match=f"row {bad} is not finite"):
        score_clusters(tensor(rows), offsets, budget=1 << 30)
    alone = np.array([0, bad, bad + 1, 2000])
    with pytest.raises(ValueError, match=f"row {bad} is not finite"):
        score_clusters(tensor(rows), alone, budget=1 << 30)
