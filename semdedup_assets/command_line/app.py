"""The commands `semdedup check`, `run`, `removed` and `export`."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from semdedup_assets.command_line.errors import (
    FAILURE,
    USAGE,
    Task,
    in_a_line,
    one_after_the_other,
    wants_traceback,
    without_logs_of_libraries,
)
from semdedup_assets.command_line.interrupts import ending_at_once
from semdedup_assets.command_line.lines import LineFormat, say
from semdedup_assets.command_line.replaced_folder import ReplacedFolder
from semdedup_assets.execution.openmp import let_threads_sleep

# As in the components: before PyTorch is imported.
let_threads_sleep()

app = typer.Typer(
    name="semdedup",
    help="Find what a dataset holds twice in meaning (SemDeDup), as a `defs.yaml` describes it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Defs = Annotated[Path, typer.Argument(metavar="DEFS", help="A defs.yaml, or the folder that holds it.")]
Name = Annotated[str | None, typer.Option("--pipeline", metavar="DATASET/MODEL", help="One of several in DEFS.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")]
Epsilon = Annotated[str | None, typer.Option(metavar="E", help="Such as 0.05 or keep=50%; else the only one.")]
Clusters = Annotated[str | None, typer.Option("--k", metavar="K", help="Number of clusters; else the only one.")]
Selection = Annotated[str | None, typer.Option(metavar="NAME", help="Selection; else the only one.")]

_INTERRUPTED = "interrupted: what was finished is kept; the same command goes on from there"


def _version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(version("semdedup-assets"))
        raise typer.Exit


@contextmanager
def _command(
    interrupted: str | Callable[[], str],
    *,
    traceback: bool,
    settings: int = USAGE,
    left: Callable[[], str] = str,
) -> Iterator[None]:
    """Do a command: what it says is ours alone, also where it fails or Ctrl-C is pressed.

    Args:
        interrupted: what is said then, or gives it.
        traceback: whether where an error happened is shown, and what libraries log.
        settings: the status where the settings are wrong.
        left: gives what is said where Ctrl-C left no time to clean up.

    Raises:
        typer.Exit: something went wrong.
    """
    logs = nullcontext() if wants_traceback(traceback=traceback) else without_logs_of_libraries()
    line = partial(str, interrupted) if isinstance(interrupted, str) else interrupted
    with ending_at_once(line, left=left), in_a_line(traceback=traceback, settings=settings), logs:
        yield


@app.callback()
def options(
    *,
    show: Annotated[
        bool,
        typer.Option(
            "--version", callback=lambda wanted: _version(wanted=wanted), is_eager=True, help="Show it and exit."
        ),
    ] = False,
) -> None:
    """Find what a dataset holds twice in meaning (SemDeDup), as a `defs.yaml` describes it."""


@app.command()
def check(
    defs: Defs,
    *,
    pipeline: Name = None,
    estimate: Annotated[bool, typer.Option(help="Say what it will take, by a short trial run.")] = True,
    traceback: Traceback = False,
) -> None:
    """See whether settings and files are good, and what would be made.

    Exit status 1 where something is wrong.
    """
    with _command("interrupted: not everything was looked at", traceback=traceback, settings=FAILURE):
        from semdedup_assets.command_line.check import check as check_one
        from semdedup_assets.command_line.pipelines import written_pipelines

        with written_pipelines(defs, pipeline) as found:
            tasks: list[Task] = [
                *((each.name, partial(check_one, each, estimated=estimate)) for each in found.valid),
                ("", found.require_valid),
            ]
            one_after_the_other(tasks, traceback=traceback, settings=FAILURE)


@app.command()
def run(
    defs: Defs,
    *,
    pipeline: Name = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="Only this, and what it is made from; may be repeated.")
    ] = None,
    further: Annotated[
        list[str] | None, typer.Option("--with", metavar="ANALYSIS", help="Also this one on demand; may be repeated.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Make the stages of --only again, though up to date.")] = False,
    traceback: Traceback = False,
) -> None:
    """Make what is missing or stale, from embeddings to manifests.

    What is finished is kept: after Ctrl-C, or a failure, the same command goes on. Of several pipelines, one that
    fails holds back none of the others. A run of Dagster, or another command, may make the same at the same time;
    Dagster adopts what it finds.
    """
    with _command(_INTERRUPTED, traceback=traceback):
        from semdedup_assets.command_line.pipelines import written_pipelines
        from semdedup_assets.command_line.run import refresh_plan
        from semdedup_assets.command_line.run import run as run_one

        with written_pipelines(defs, pipeline) as found:
            plans = [
                refresh_plan(each.pipeline, only=only or (), further=further or (), again=again) for each in found.valid
            ]
            several = len(plans) + len(found.problems) > 1
            # What is wrong with one is said before the others are made, which may take long.
            tasks: list[Task] = [("", found.require_valid)]
            tasks += [
                (each.name if several else "", partial(run_one, each, plan))
                for each, plan in zip(found.valid, plans, strict=True)
            ]
            one_after_the_other(tasks, traceback=traceback, settings=USAGE)


@app.command()
def removed(
    defs: Defs,
    *,
    pipeline: Name = None,
    epsilon: Epsilon = None,
    k: Clusters = None,
    selection: Selection = None,
    limit: Annotated[int | None, typer.Option(min=0, metavar="N", help="The first N only.")] = None,
    form: Annotated[LineFormat, typer.Option("--format", help="Of the lines.")] = LineFormat.table,
    traceback: Traceback = False,
) -> None:
    """List what was removed, and for which kept item.

    In the order of the source: key, file, row in the file, the same of the kept item, cosine similarity of the two,
    and whether that is not within epsilon: such an orphan was removed by a chain of others.
    """
    with _command("interrupted: these are not all", traceback=traceback):
        from semdedup_assets.command_line.pipelines import KeptSetNames, only_pipeline, written_pipelines
        from semdedup_assets.command_line.removed import write_removed

        with written_pipelines(defs, pipeline) as found:
            context, partition = KeptSetNames(epsilon, k, selection).find(only_pipeline(found))
            write_removed(context, partition, form, limit=limit)


@app.command()
def export(
    defs: Defs,
    *,
    form: Annotated[
        list[str], typer.Option("--format", metavar="FORMAT", help="One of `manifests` in DEFS; may be repeated.")
    ],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Where it is written: a folder that is empty or missing.")],
    pipeline: Name = None,
    epsilon: Epsilon = None,
    k: Clusters = None,
    selection: Selection = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    traceback: Traceback = False,
) -> None:
    """Write a manifest in another form, elsewhere.

    The settings stay as they are.
    """
    replaced = ReplacedFolder(to)
    with _command(replaced.interrupted, traceback=traceback, left=replaced.left):
        from semdedup_assets.command_line.export import export as export_one
        from semdedup_assets.command_line.export import export_folder, of_pipeline, with_formats
        from semdedup_assets.command_line.pipelines import KeptSetNames, only_pipeline, written_pipelines

        folder = export_folder(to, overwrite=overwrite)
        with written_pipelines(defs, pipeline) as found:
            chosen = only_pipeline(found)
            wanted = with_formats(chosen, form)
            context, partition = KeptSetNames(epsilon, k, selection).find(chosen)
            wanted_context = of_pipeline(context, wanted)
            details = export_one(wanted_context, partition, folder, overwrite=overwrite, replaced=replaced)
        say(f"{details['kept']:,} kept, {details['removed']:,} removed: {folder}")


def main() -> None:
    """The command `semdedup`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Whoever started this has closed it, and reads nothing.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif isinstance(stream, TextIOWrapper):
            # Names of files need not be text, nor a terminal have all letters.
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="semdedup")
    except OSError as error:
        # Of the help, which cannot be written; a command says itself what fails.
        sys.exit(f"{error.strerror}: the output cannot be written")
