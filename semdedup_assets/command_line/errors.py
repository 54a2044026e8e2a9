"""What went wrong, in a line: a traceback is for those who ask for it."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer

TRACEBACK = "SEMDEDUP_TRACEBACK"
"""The variable of the environment that has tracebacks shown."""

USAGE, FAILURE, INTERRUPTED = 2, 1, 130
"""Exit statuses: of a mistake in the settings or the command, of what failed, and of Ctrl-C as shells know it."""

_FULL = "make room, then run again: what was finished is kept"
_NO_RIGHT = "see that it may be read and written, or name another `store`"
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.EROFS: _NO_RIGHT,
}
_LONGEST = 1000


class UsageError(ValueError):
    """A command that cannot be meant; says what can."""


@contextmanager
def in_a_line(*, traceback: bool, settings: int = USAGE) -> Iterator[None]:
    """End a command that fails with a line on standard error, and with a status.

    Args:
        traceback: whether the error goes on, with where it happened.
        settings: the status where the settings are wrong.

    Raises:
        typer.Exit: something went wrong.
    """
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except BrokenPipeError as error:
        # Whoever reads has enough. What is left in the buffer must not fail once more as Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise typer.Exit(0) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(INTERRUPTED) from error
    except Exception as error:
        if traceback or os.environ.get(TRACEBACK, "0") not in ("", "0"):
            raise
        typer.echo(_worded(error), err=True)
        raise typer.Exit(_status(error, settings=settings)) from error


def _status(error: Exception, *, settings: int) -> int:
    from semdedup_assets.defs_yaml.documents import SettingsError

    if isinstance(error, SettingsError):
        return settings
    return USAGE if isinstance(error, UsageError) else FAILURE


def _worded(error: Exception) -> str:
    """An error as a person reads it."""
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return f"{_path(error)}{error.strerror}; {_REMEDIES[error.errno]}"
    if isinstance(error, OSError) and error.strerror:
        return f"{_path(error)}{error.strerror}"
    lines = [line for line in str(error).splitlines() if line.strip()] or ["no message"]
    if type(error).__module__.startswith("semdedup_assets."):
        return "\n".join(lines)
    if isinstance(error, OSError | ValueError):
        return " ".join(lines)[:_LONGEST]
    return f"{type(error).__name__}: {' '.join(lines)[:_LONGEST]} (`--traceback` shows where)"


def _path(error: OSError) -> str:
    return f"{error.filename}: " if error.filename else ""
