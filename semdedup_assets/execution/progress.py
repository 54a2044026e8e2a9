"""Report how far a stage is: to whoever listens in this process, never bound to a stage's context."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TextIO

from tqdm import tqdm

_REPORT_SECONDS = 15.0
# Nobody waits for longer, and dates have an end.
_FAR_SECONDS = 1e9


def _terminal() -> TextIO | None:
    """The terminal this process was started from, if any; without one a bar would fill a log with half lines.

    While a step runs, Dagster sends standard error to the run's log: the terminal must be known before.
    """
    try:
        return os.fdopen(os.dup(sys.stderr.fileno()), "w") if sys.stderr.isatty() else None
    except (OSError, ValueError, AttributeError):
        return None


_TERMINAL = _terminal()


def has_terminal() -> bool:
    """Whether bars are shown."""
    return _TERMINAL is not None


def terminal_bar(**options: Any) -> Any:
    """A bar of tqdm's in the terminal; without one it shows nothing."""
    return tqdm(file=_TERMINAL, disable=_TERMINAL is None, leave=False, **options)


def write_above_bars(line: str) -> None:
    """Write a line to the terminal, where there is one, and leave the bars below it whole."""
    if _TERMINAL is not None:
        tqdm.write(line, file=_TERMINAL)
        _TERMINAL.flush()


def _silent(_: str) -> None:
    return


_listener: ContextVar[Callable[[str], None]] = ContextVar("listener", default=_silent)
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)
_part: ContextVar[str] = ContextVar("part", default="")


@contextmanager
def reporting_to(listener: Callable[[str], None]) -> Iterator[None]:
    """Send the lines of a block to a listener, such as a run's log."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def gathered() -> Iterator[list[str]]:
    """Gather the lines of a block, for a process that others listen to later; how far it is, they need not know then."""
    lines = list[str]()
    quiet = _quiet.set(True)
    try:
        with reporting_to(lines.append):
            yield lines
    finally:
        _quiet.reset(quiet)


@contextmanager
def part(name: str) -> Iterator[None]:
    """Name the part of a whole that a block is, such as `stage 3 of 9`: its lines say so."""
    before = _part.get()
    _part.set(name)
    try:
        yield
    finally:
        # Without a token: a generator that holds the block may be closed from elsewhere.
        _part.set(before)


def in_part(title: str) -> str:
    """A title below the part of the whole that runs: `stage 3 of 9, assignments`."""
    return ", ".join(filter(None, (_part.get(), title)))


def log(line: str) -> None:
    """Report a line."""
    _listener.get()(line)


def _clock_after(seconds: float) -> str:
    """The time of day after some seconds, with the day where that is another one."""
    now = datetime.now().astimezone()
    end = now + timedelta(seconds=min(seconds, _FAR_SECONDS))
    return f"{end:%H:%M:%S}" if end.date() == now.date() else f"{end:%d %b %Y %H:%M}"


@dataclass
class Progress:
    """How far something is: a bar in a terminal, and now and then a line in the log."""

    title: str
    total: int | None
    unit: str
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._reported = self.started
        self._bar = terminal_bar(total=self.total, desc=f"   {self.title}", unit=f" {self.unit}")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, count: int = 1) -> None:
        """Report that `count` more units are done."""
        self.done += count
        self._bar.update(count)
        now = time.monotonic()
        ended = self.total is not None and self.done >= self.total
        if now - self._reported >= _REPORT_SECONDS and not ended and not _quiet.get():
            self._reported = now
            log(self._line(now - self.started))

    def _line(self, seconds: float) -> str:
        """Such as `stage 3 of 9, assignments: 120 of 400 partitions, 12.3 a second, about 23 s left, until 14:32:05`."""
        rate = self.done / max(seconds, 1e-9)
        of = f" of {self.total:,}" if self.total else ""
        line = f"{in_part(self.title)}: {self.done:,}{of} {self.unit}, {rate:,.1f} a second"
        if self.total and rate:
            left = (self.total - self.done) / rate
            line += f", about {left:,.0f} s left, until {_clock_after(left)}"
        return line
