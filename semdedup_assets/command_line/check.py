"""`semdedup check`: what a pipeline would read, take and make, before anything is made."""

import shutil
import textwrap
from collections import Counter

from semdedup_assets.command_line.lines import say, warn, whole_path
from semdedup_assets.defs_yaml.documents import SettingsError, reported_lines
from semdedup_assets.defs_yaml.pipelines import WrittenPipeline
from semdedup_assets.defs_yaml.problems import Problem
from semdedup_assets.defs_yaml.source_check import checked_source
from semdedup_assets.estimate.outlook import StageOutlook, made_estimate, outlook
from semdedup_assets.estimate.readable import readable_bytes
from semdedup_assets.execution import progress
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.pipeline_stages import PipelineStages
from semdedup_assets.execution.refresh import RefreshPlan
from semdedup_assets.execution.source_index import index_of
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets.storage.write_trial import write_problem

_SHOWN = ("time", "disk", "memory", "training sample")
_REASONS = 3
_NAME = 12


def check(written: WrittenPipeline, *, estimated: bool) -> None:
    """Say what a refresh would read, take and make. Of the store only the estimate is written.

    Args:
        written: the pipeline, whose settings are valid.
        estimated: whether what it takes is estimated, by a trial run of some seconds.

    Raises:
        SettingsError: the source or the model has not what the settings say, or the store cannot be written.
        Exception: what the trial run raised.
    """
    say(f"{written.name} in {written.document.path}")
    plan = RefreshPlan(PipelineStages(written.pipeline, GRAPH), excluded=True)
    problems = checked_source(written.pipeline)
    if problem := write_problem(plan.first.layout.folder):
        problems.append(Problem(("store",), problem))
    if wrong := [each for each in problems if not each.warning]:
        raise SettingsError(written.reported(wrong))
    context = _observed(plan, written, problems)
    for line in reported_lines((each, written.document.located(each.path)) for each in problems):
        warn(line)
    _row("store", whole_path(context.layout.folder))
    if estimated:
        with written.naming_settings():
            _show_estimate(context)
    found = outlook(plan, context)
    stale = [each for each in found if each.stale != 0]
    _row("to make", ", ".join(map(_counted, stale)) or "nothing: everything is up to date")
    if stale:
        _row("", f"{len(found) - len(stale)} of {len(found)} stages are up to date")


def _show_estimate(context: StageContext) -> None:
    with progress.reporting_to(warn):
        record = made_estimate(context)
    for name, value in GRAPH["estimate"].shown(context, Partition(), record).items():
        if name in _SHOWN:
            _row(name, str(value))


def _observed(plan: RefreshPlan, written: WrittenPipeline, problems: list[Problem]) -> StageContext:
    """A context with the files that the source has now; the store does not learn of them, for shards once made stay.

    Args:
        plan: of the refresh.
        written: the pipeline.
        problems: that may stand in no one's way; without files they do.

    Raises:
        SettingsError: the source has no file, or cannot be read from here.
    """
    context = plan.first
    try:
        listing = context.pipeline.source.listing()
    except Exception as error:
        # Each store's library has its own exceptions; that the source cannot be read was seen before.
        seen = [each for each in problems if each.path[:1] == ("source",)]
        missing = seen or [Problem(("source", "path"), f"{type(error).__name__}: {error}")]
        raise SettingsError(written.reported(missing)) from error
    index = index_of(context, listing)
    reasons = Counter(listing.passed_over)
    passed = ", ".join(f"{count:,} × {reason}" for reason, count in reasons.most_common(_REASONS))
    size = readable_bytes(sum(file.size for file in listing.files))
    over = f"; passed over: {reasons.total():,} ({passed})" if passed else ""
    _row("source", f"{len(listing.files):,} files, {size}, {len(index.shards):,} shards{over}")
    return context.with_shard_index(index)


def _counted(found: StageOutlook) -> str:
    of = "" if found.stale == found.partitions else f" of {found.partitions:,}"
    return f"{found.asset}{'' if found.stale is None or not found.asset.stage.dimensions else f' {found.stale:,}{of}'}"


def _row(name: str, value: str) -> None:
    """Write a line, or as many as the terminal's width asks for."""
    width = shutil.get_terminal_size().columns
    head = f"  {name:<{_NAME}}"
    lines = textwrap.wrap(value, width, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False)
    say("\n".join(lines))
