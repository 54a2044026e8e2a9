"""What went wrong, in a line: a traceback is for those who ask for it."""

import errno
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import format_exception

import typer

from semdedup_assets.command_line.lines import ReaderGoneError, warn

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
_PACKAGE = Path(__file__).parent.parent


Task = tuple[str, Callable[[], None]]
"""What is done, and what its error's line is about: `photos/openclip`, or empty."""


class UsageError(ValueError):
    """A command that cannot be meant; says what can."""


@contextmanager
def in_a_line(*, traceback: bool, settings: int = USAGE, of: str = "") -> Iterator[None]:
    """End a command that fails with a line on standard error, and with a status.

    Args:
        traceback: whether where the error happened is shown instead.
        settings: the status where the settings are wrong.
        of: what the line is about, where a command is about several.

    Raises:
        typer.Exit: something went wrong.
    """
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except ReaderGoneError as error:
        raise typer.Exit(0) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(INTERRUPTED) from error
    except Exception as error:
        status = _status(error, settings=settings)
        if wants_traceback(traceback=traceback):
            warn("".join(format_exception(error)).rstrip())
        else:
            # Problems with settings have the file's name, and the line.
            head = f"{of}: " if of and not _is_of_settings(error) else ""
            warn(f"{head}{_worded(error)}")
        raise typer.Exit(status) from error


def one_after_the_other(tasks: Iterable[Task], *, traceback: bool, settings: int) -> None:
    """Do tasks, also those that come after one that fails.

    Args:
        tasks: in their order.
        traceback: as of `in_a_line`.
        settings: as of `in_a_line`.

    Raises:
        typer.Exit: some failed, with the status of the first; or Ctrl-C was pressed, which ends all.
    """
    failed = None
    for name, task in tasks:
        try:
            with in_a_line(traceback=traceback, settings=settings, of=name):
                task()
        except typer.Exit as ended:
            if ended.exit_code == INTERRUPTED:
                raise
            failed = failed or ended
    if failed is not None:
        raise failed


def wants_traceback(*, traceback: bool) -> bool:
    """Whether everything is shown, by an option or by the environment."""
    return traceback or os.environ.get(TRACEBACK, "0") not in ("", "0")


@contextmanager
def without_logs_of_libraries() -> Iterator[None]:
    """Keep what libraries log, and warn of, from the terminal: of what goes wrong there is a line of our own.

    So there is of an image that cannot be decoded; of one that can, Pillow's warnings name no file.
    """
    before = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            warnings.showwarning = _show_ours  # type: ignore[assignment]  # it is called by position
            yield
    finally:
        logging.disable(before)


def _show_ours(message: Warning | str, _: type[Warning], filename: str, *__: object) -> None:
    """Show a warning of our own as a line, without where in the code it was given."""
    if Path(filename).is_relative_to(_PACKAGE):
        warn(f"  warning: {message}")


def _is_of_settings(error: Exception) -> bool:
    from semdedup_assets.defs_yaml.documents import SettingsError

    return isinstance(error, SettingsError)


def _status(error: Exception, *, settings: int) -> int:
    if _is_of_settings(error):
        return settings
    return USAGE if isinstance(error, UsageError) else FAILURE


def _worded(error: Exception) -> str:
    """An error as a person reads it."""
    lines = [line for line in str(error).splitlines() if line.strip()] or ["no message"]
    text = " ".join(lines)[:_LONGEST]
    if isinstance(error, OSError) and error.strerror:
        in_own_words = error.strerror != os.strerror(error.errno or 0)
        remedy = f"; {_REMEDIES[error.errno]}" if error.errno in _REMEDIES and not in_own_words else ""
        # Some say the path in their own words.
        named = error.filename and str(error.filename) not in error.strerror
        if error.filename or remedy or in_own_words:
            return f"{f'{error.filename}: ' if named else ''}{error.strerror}{remedy}"
    elif type(error).__module__.startswith("semdedup_assets."):
        return "\n".join(lines)
    elif isinstance(error, OSError | ValueError):
        return text
    return f"{type(error).__name__}: {text} (`--traceback` shows where)"
