"""Lines that a command writes."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path

import typer

from semdedup_assets.execution import progress
from semdedup_assets.storage.files import is_local


class LineFormat(str, Enum):
    """How the lines of a table are written."""

    table = "table"
    csv = "csv"
    jsonl = "jsonl"


def say(line: str) -> None:
    """Write a line to standard output, above the bars where both are in one terminal."""
    if progress.has_terminal() and sys.stdout.isatty():
        progress.write_above_bars(line)
    else:
        typer.echo(line)


def warn(line: str) -> None:
    """Write a line to standard error, above the bars where there are any."""
    if progress.has_terminal():
        progress.write_above_bars(line)
    else:
        typer.echo(line, err=True)


def whole_path(path: str) -> str:
    """A path that holds wherever it is read: a command may run in the project's folder, not where it was typed."""
    return str(Path(path).absolute()) if is_local(path) else path


def table(rows: Sequence[Sequence[str]], *, right: Iterable[int] = ()) -> Iterator[str]:
    """Rows as lines whose columns stand below one another."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            each.rjust(width) if index in right else each.ljust(width)
            for index, (each, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
