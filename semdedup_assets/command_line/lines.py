"""Lines that a command writes."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TextIO

import typer

from semdedup_assets.execution import progress
from semdedup_assets.records import visible
from semdedup_assets.storage.files import filesystem, is_local


class LineFormat(str, Enum):
    """How the lines of a table are written."""

    table = "table"
    csv = "csv"
    jsonl = "jsonl"


def say(line: str) -> None:
    """Write a line to standard output, above the bars where both are in one terminal; a reader may have enough of them.

    Raises:
        OSError: standard output cannot be written.
    """
    line = _for(sys.stdout, line)
    if progress.has_terminal() and sys.stdout.isatty():
        progress.write_above_bars(line)
        return
    with contextlib.suppress(ReaderGoneError), _writing(sys.stdout):
        typer.echo(line)


def warn(line: str) -> None:
    """Write a line to standard error, above the bars where there are any."""
    line = _for(sys.stderr, line)
    if progress.has_terminal():
        progress.write_above_bars(line)
        return
    # Where nobody can be told, what is done matters more.
    with contextlib.suppress(OSError, ReaderGoneError), _writing(sys.stderr):
        typer.echo(line, err=True)


def _for(stream: TextIO, text: str) -> str:
    """A text as it is written: the names of users' files, which lines are about, move no terminal's cursor."""
    return "\n".join(map(visible, text.split("\n"))) if stream.isatty() else text


class ReaderGoneError(Exception):
    """Whoever reads standard output has enough, as `head` has."""


class Output:
    """Standard output for a program that reads it, as a file that lines are written to."""

    def write(self, text: str) -> None:
        """Write some text.

        Raises:
            ReaderGoneError: nobody reads it.
            OSError: it cannot be written.
        """
        with _writing(sys.stdout):
            sys.stdout.write(text)

    def flush(self) -> None:
        """Write what waits; raises the same."""
        with _writing(sys.stdout):
            sys.stdout.flush()


@contextmanager
def _writing(stream: TextIO) -> Iterator[None]:
    """Tell what a stream raises from what the work raises; nothing more is written to it then.

    Raises:
        ReaderGoneError: nobody reads it.
        OSError: it cannot be written; names it.
    """
    try:
        yield
    except OSError as error:
        # What is left in the buffer must not fail once more, later or as Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if isinstance(error, BrokenPipeError):
            raise ReaderGoneError from error
        raise OSError(error.errno, error.strerror, stream.name.strip("<>")) from error


def whole_path(path: str) -> str:
    """A path that holds wherever it is read: a command may run in the project's folder, not where it was typed."""
    return str(Path(filesystem(path)[1]).absolute()) if is_local(path) else path


def table(rows: Sequence[Sequence[str]], *, right: Iterable[int] = ()) -> Iterator[str]:
    """Rows as lines whose columns stand below one another."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            each.rjust(width) if index in right else each.ljust(width)
            for index, (each, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
