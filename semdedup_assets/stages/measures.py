"""What a partition took: seconds by phase, and the greatest memory."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"

T = TypeVar("T")


class Measures:
    """A stopwatch with phases, and the greatest memory since it was last started."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start anew, for another partition."""
        self._started = time.monotonic()
        self._phases: dict[str, float] = {}
        _reset_peak()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of a block to a phase."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._phases[name] = self._phases.get(name, 0.0) + time.monotonic() - started

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Pass items on, and count the time until each comes to a phase."""
        source = iter(items)
        end = object()
        while True:
            with self.phase(name):
                item = next(source, end)
            if item is end:
                return
            yield item  # type: ignore[misc]  # `end` has been told apart

    def taken(self, *, items: int | None) -> dict[str, Any]:
        """Seconds, seconds by phase, peak memory in MiB, and items a second where there are items."""
        seconds = time.monotonic() - self._started
        measures: dict[str, Any] = {"seconds": seconds, "peak_memory_mib": _peak_mib()}
        if self._phases:
            measures["seconds_by_phase"] = dict(self._phases)
        device = _device_peak_mib()
        if device is not None:
            measures["peak_device_memory_mib"] = device
        if items is not None:
            measures["items_per_second"] = items / max(seconds, 1e-9)
        return measures


def _reset_peak() -> None:
    """Let the greatest memory be that of what follows, where the system can."""
    # Elsewhere than on Linux, or in a sandbox, the peak stays the process' own: still an upper bound.
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_RESET_PEAK)
    cuda = _cuda()
    if cuda is not None:
        cuda.reset_peak_memory_stats()


def _peak_mib() -> float:
    """Greatest resident memory, mapped files counted in."""
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
