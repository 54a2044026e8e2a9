"""What a task used, and how far it is, belong to the task at hand and to nothing that is sent around."""

import subprocess
import sys
import threading

import pytest

from semdedup_assets.execution import progress, usage


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(usage, "time", made)
    monkeypatch.setattr(progress, "time", made)
    return made


def test_seconds_are_counted_by_phase(clock: Clock) -> None:
    with usage.measured() as used:
        for seconds in (1, 2):
            with usage.phase("read"):
                clock.now += seconds
        with usage.phase("write"):
            clock.now += 4
        clock.now += 8
        details = used.details()
    assert details["seconds"] == 15
    assert details["seconds_by_phase"] == {"read": 3, "write": 4}
    assert details["peak_memory_mib"] > 1


def test_waiting_for_items_is_a_phase_and_what_is_done_with_them_is_not(clock: Clock) -> None:
    def slow() -> list[int]:
        for item in range(3):
            clock.now += 1
            yield item

    with usage.measured() as used:
        found = []
        for item in usage.each("read", slow()):
            clock.now += 10
            found.append(item)
    assert found == [0, 1, 2]
    assert used.phases == {"read": 3}


def test_a_phase_counts_also_where_it_raises(clock: Clock) -> None:
    def fail() -> None:
        with usage.phase("read"):
            clock.now += 2
            raise KeyError

    with usage.measured() as used, pytest.raises(KeyError):
        fail()
    assert used.phases == {"read": 2}


def test_nothing_is_measured_outside_and_each_thread_measures_its_own() -> None:
    assert usage.current() is None
    with usage.phase("nobody asks"):
        pass
    seen: list[usage.Usage | None] = []
    with usage.measured() as outer:
        with usage.measured() as inner:
            assert usage.current() is inner
        assert usage.current() is outer
        thread = threading.Thread(target=lambda: seen.append(usage.current()))
        thread.start()
        thread.join()
    assert seen == [None]
    assert usage.current() is None


PEAK = """
import numpy as np
from semdedup_assets.execution import usage
with usage.measured() as used:
    before = used.details()["peak_memory_mib"]
    array = np.ones((256 << 20) // 8)
    print(used.details()["peak_memory_mib"] - before)
"""


def test_the_peak_grows_with_what_a_task_holds() -> None:
    """In a process of its own: where the system resets no peak, an earlier test's would hide it."""
    grown = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert 200 < float(grown.stdout) < 400


def test_several_tasks_add_up_seconds_and_share_the_greatest_memory() -> None:
    parts = [
        {"seconds": 1.0, "peak_memory_mib": 10.0, "seconds_by_phase": {"read": 0.5}},
        {},
        {
            "seconds": 2.0,
            "peak_memory_mib": 7.0,
            "peak_device_memory_mib": 3.0,
            "seconds_by_phase": {"read": 1, "cut": 1},
        },
    ]
    assert usage.added(parts) == {
        "seconds": 3.0,
        "peak_memory_mib": 10.0,
        "peak_device_memory_mib": 3.0,
        "seconds_by_phase": {"read": 1.5, "cut": 1},
    }
    assert usage.added([]) == {"seconds": 0.0, "peak_memory_mib": 0.0}


def test_lines_go_to_whoever_listens_and_to_nobody_else() -> None:
    outer, inner = list[str](), list[str]()
    progress.log("nobody listens")
    with progress.reporting_to(outer.append):
        progress.log("one")
        with progress.reporting_to(inner.append):
            progress.log("two")
        progress.log("three")
    progress.log("nobody listens")
    assert (outer, inner) == (["one", "three"], ["two"])


def bar_at(clock: Clock, *, total: int | None) -> progress.Progress:
    return progress.Progress("embeddings", total=total, unit="shards", started=clock.now)


def test_progress_is_reported_now_and_then_with_what_is_left(clock: Clock) -> None:
    lines: list[str] = []
    with progress.reporting_to(lines.append), bar_at(clock, total=100) as bar:
        for _ in range(3):
            clock.now += 4
            bar.advance()
        assert lines == []
        clock.now += 8
        bar.advance(17)
        clock.now += 1
        bar.advance()
    (line,) = lines
    assert line.startswith("embeddings: 20 of 100 shards, 1.0 a second, about 80 s left, until ")


def test_a_line_names_the_part_of_the_whole_that_runs(clock: Clock) -> None:
    lines: list[str] = []
    with progress.reporting_to(lines.append):
        with progress.part("stage 3 of 9"), bar_at(clock, total=None) as bar:
            clock.now += 20
            bar.advance()
        with bar_at(clock, total=None) as bar:
            clock.now += 20
            bar.advance()
    assert [line.partition(":")[0] for line in lines] == ["stage 3 of 9, embeddings", "embeddings"]


def test_without_a_total_nothing_is_said_of_what_is_left(clock: Clock) -> None:
    lines: list[str] = []
    with progress.reporting_to(lines.append), bar_at(clock, total=None) as bar:
        clock.now += 20
        bar.advance(50_000)
    assert lines == ["embeddings: 50,000 shards, 2,500.0 a second"]
