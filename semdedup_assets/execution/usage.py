"""What a task used: seconds by phase, and the greatest memory. Of the task at hand, never bound to a context."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"

T = TypeVar("T")


class Usage:
    """A stopwatch with phases, and the greatest memory since it was started."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.phases: dict[str, float] = {}
        self.results = 1
        _reset_peak()

    def details(self) -> dict[str, Any]:
        """Seconds, seconds by phase and peak memory in MiB; of several results each has its share of the seconds."""
        seconds = (time.monotonic() - self.started) / self.results
        details: dict[str, Any] = {"seconds": seconds, "peak_memory_mib": peak_memory_mib()}
        if self.phases:
            details["seconds_by_phase"] = {name: spent / self.results for name, spent in self.phases.items()}
        device = _device_peak_mib()
        if device is not None:
            details["peak_device_memory_mib"] = device
        return details


_current: ContextVar[Usage | None] = ContextVar("usage", default=None)


@contextmanager
def measured() -> Iterator[Usage]:
    """Measure a block."""
    usage = Usage()
    token = _current.set(usage)
    try:
        yield usage
    finally:
        _current.reset(token)


def current() -> Usage | None:
    """What is being measured, if anything is."""
    return _current.get()


def share(results: int) -> None:
    """Note how many results the task at hand makes, so that their seconds add up to its own."""
    usage = _current.get()
    if usage is not None:
        usage.results = results


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Count the time of a block to a phase of what is measured."""
    started = time.monotonic()
    try:
        yield
    finally:
        usage = _current.get()
        if usage is not None:
            usage.phases[name] = usage.phases.get(name, 0.0) + time.monotonic() - started


def each(name: str, items: Iterable[T]) -> Iterator[T]:
    """Pass items on, and count the time until each comes to a phase."""
    source = iter(items)
    end = object()
    while True:
        with phase(name):
            item = next(source, end)
        if item is end:
            return
        yield item  # type: ignore[misc]  # the sentinel is not a T, and is excluded above


def added(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What several tasks used together: seconds added up, the greatest of their memories.

    Args:
        parts: details of each, as `Usage.details` gives them.
    """
    total: dict[str, Any] = {"seconds": 0.0, "peak_memory_mib": 0.0}
    phases: dict[str, float] = {}
    for part in parts:
        total["seconds"] += part.get("seconds", 0.0)
        for name, seconds in part.get("seconds_by_phase", {}).items():
            phases[name] = phases.get(name, 0.0) + seconds
        for name in ("peak_memory_mib", "peak_device_memory_mib"):
            if name in part:
                total[name] = max(total.get(name, 0.0), part[name])
    return {**total, "seconds_by_phase": phases} if phases else total


def _reset_peak() -> None:
    """Let the greatest memory be that of what follows, where the system can."""
    # Elsewhere than on Linux, or in a sandbox, the peak stays the process' own: still an upper bound.
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_RESET_PEAK)
    cuda = _cuda()
    if cuda is not None:
        cuda.reset_peak_memory_stats()


def peak_memory_mib() -> float:
    """Greatest resident memory of the process since it was last reset, mapped files counted in."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


def _device_peak_mib() -> float | None:
    cuda = _cuda()
    return None if cuda is None else cuda.max_memory_allocated() / (1 << 20)


def _cuda() -> Any:
    """torch.cuda where this process has used a GPU; nothing is imported or started for the asking."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
