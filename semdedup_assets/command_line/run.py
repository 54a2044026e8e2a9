"""`semdedup run`: make what is missing or stale, and show how far it is."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from semdedup_assets.command_line.errors import UsageError
from semdedup_assets.command_line.lines import say, table, warn, whole_path
from semdedup_assets.defs_yaml.pipelines import WrittenPipeline
from semdedup_assets.defs_yaml.problems import near_names
from semdedup_assets.estimate.outlook import StageOutlook, made_estimate, outlook, seconds_left
from semdedup_assets.estimate.readable import readable_seconds
from semdedup_assets.execution import progress
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.evaluated_checks import Evaluated
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.pipeline_stages import PipelineStages, StageAsset
from semdedup_assets.execution.refresh import RefreshListener, RefreshPlan, refresh
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets.storage.files import join
from semdedup_assets.storage.results import ResultRecord

_LEFT_EVERY = 0.5
# Bytes of a source. Of a smaller one `semdedup check` estimates what it takes, for those who want to know.
_WORTH_A_TRIAL = 256 << 20


def refresh_plan(pipeline: Pipeline, *, only: Sequence[str], further: Sequence[str], again: bool) -> RefreshPlan:
    """What a command asks for.

    Raises:
        UsageError: it names a stage that the pipeline has not, or none of those that are to be made again.
    """
    stages = PipelineStages(pipeline, GRAPH)
    there = list(dict.fromkeys(asset.stage.name for asset in stages.assets))
    for option, names in (("only", only), ("with", further)):
        for name in names:
            if name not in there:
                message = f"--{option}: {stages.pipeline.dataset} has no stage {name!r}; {near_names(name, there)}"
                raise UsageError(message)
    if again and not only:
        message = "--again: name the stages that are made again: `--only STAGE --again`"
        raise UsageError(message)
    remade = frozenset(only if again else ())
    return RefreshPlan(stages, frozenset(only), frozenset(further), remade, excluded=True)


def run(written: WrittenPipeline, plan: RefreshPlan) -> None:
    """Make what is missing or stale of a pipeline, and say what was made and what is kept.

    Raises:
        FailedChecksError: a blocking check fails.
        SettingsError: a model cannot be loaded, or a device not be used; names the setting's file and line.
        Exception: what a stage raised; what was finished before stays.
    """
    started, folder = time.monotonic(), whole_path(plan.first.layout.folder)
    say(f"{written.name}: store {folder}")
    listener = _Shown(plan)
    try:
        with written.naming_settings(), progress.reporting_to(listener.log):
            for _ in refresh(plan, listener):
                pass
    finally:
        listener.close()
    made = f"{listener.partitions} partitions made" if listener.partitions else "everything was up to date"
    say(f"{made}, {readable_seconds(time.monotonic() - started)}")
    for line in kept_lines(plan):
        say(line)


class _Shown(RefreshListener):
    """Shows how far a refresh is: a line for each stage, and bars in a terminal."""

    def __init__(self, plan: RefreshPlan) -> None:
        self.partitions = 0
        self._plan = plan
        self._ahead: list[StageOutlook] = []
        self._bar = None
        self._begin(0)

    def _begin(self, stale: int) -> None:
        self._started, self._stale, self._made, self._items = time.monotonic(), stale, 0, 0
        self._last = 0.0

    def observe(self, context: StageContext) -> None:
        """Bring the shard index up to date, and see what there is to be made."""
        super().observe(context)
        context = self._plan.first
        self._estimate(context)
        self._ahead = outlook(self._plan, context)
        self.close()
        self._bar = progress.terminal_bar(
            total=len(self._ahead), desc="   all stages", bar_format="{desc}: {n_fmt} of {total_fmt} |{bar}|{postfix}"
        )
        self._show_left(0.0)

    def _estimate(self, context: StageContext) -> None:
        """Estimate what the stages take, where most of it lies ahead and a trial run is short beside it."""
        index = context.index
        size = sum(file.size for shard in context.shards for file in shard.files)
        if size >= _WORTH_A_TRIAL and not index.records("embeddings"):
            try:
                made_estimate(context)
            except (ValueError, OSError) as error:
                # The stages say the same of what they cannot read, and more.
                self.log(f"nothing could be estimated: {error}")

    def log(self, line: str) -> None:
        """Show a line of what is under way, with what is left of everything."""
        ahead = seconds_left(self._ahead)
        left = f"; all stages: about {readable_seconds(ahead)} left" if ahead and ", until " in line else ""
        warn(f"{line}{left}")

    def up_to_date(self, asset: StageAsset, context: StageContext, partitions: Sequence[Partition]) -> int:
        """An asset begins."""
        self._begin(len(context.index.partitions(asset.stage.name)) - len(partitions))
        return 0

    def made(self, asset: StageAsset, context: StageContext, partition: Partition, record: ResultRecord) -> None:
        """A partition of it was made."""
        self._made += 1
        self.partitions += 1
        self._items += record.details.get("items", record.details.get("records", 0))
        if self._stale and self._ahead:
            self._show_left(self._made / self._stale)

    def checked(self, asset: StageAsset, context: StageContext, evaluated: Sequence[Evaluated]) -> None:
        """It is done."""
        if self._made:
            seconds = readable_seconds(time.monotonic() - self._started)
            partitions = f"{self._made:,} partition{'s' * (self._made > 1)}"
            items = f"{self._items:,} items" if self._items else ""
            say(f"  {asset!s:<24} {partitions:>16}  {items:>18}  {seconds:>10}")
        else:
            say(f"  {asset!s:<24} {'up to date':>16}")
        for each in evaluated:
            if each.sentence is not None and each.failure is None:
                warn(f"  warning: {each.sentence}")
        self._ahead = self._ahead[1:]
        if self._bar is not None:
            self._bar.update()
        self._show_left(0.0)

    def _show_left(self, done: float) -> None:
        """Show how long all that is ahead will take, of whose first stage a share is done."""
        if self._bar is None or (done and time.monotonic() - self._last < _LEFT_EVERY):
            return
        self._last = time.monotonic()
        ahead = self._ahead
        if ahead and ahead[0].seconds is not None:
            ahead = [replace(ahead[0], seconds=ahead[0].seconds * (1 - done)), *ahead[1:]]
        left = seconds_left(ahead)
        self._bar.set_postfix_str("" if left is None else f"about {readable_seconds(left)} left")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


def kept_lines(plan: RefreshPlan) -> Iterator[str]:
    """What each manifest keeps and removes, and where it lies, in a table."""
    pipeline = plan.stages.pipeline
    rows = [("selection", "k", "epsilon", "kept", "removed", "", "manifest")]
    for name, selection in pipeline.named_selections.items():
        context = plan.first.with_selection(selection)
        for partition, record in context.index.records("manifests").items():
            kept, removed = record.details["kept"], record.details["removed"]
            folder = whole_path(join(record.location, str(record.details["manifest"])))
            share = f"{removed / max(kept + removed, 1):.1%}"
            label = name or str(selection.path)
            parts = str(partition.clustering), str(partition.target), f"{kept:,}", f"{removed:,}", share
            rows.append((label, *parts, folder))
    return table(rows if len(rows) > 1 else [], right={3, 4, 5})
