"""Make what is missing or stale, in order, and nothing else: in this process, for whoever listens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from semdedup_assets.execution import progress
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.engines.ray import end_resting
from semdedup_assets.execution.evaluated_checks import Evaluated, evaluate, raise_failures
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.pipeline_stages import PipelineStages, StageAsset
from semdedup_assets.execution.reference_files import observe_references
from semdedup_assets.execution.runner import run_partitions
from semdedup_assets.execution.shard_reader import SourceChangedError
from semdedup_assets.execution.source_index import update_shard_index
from semdedup_assets.storage.leftovers import remove_leftovers
from semdedup_assets.storage.results import DamagedResultError, ResultRecord

# Each round makes what the one before found damaged or changed; more than a few, and it is the disk or the source.
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class StageRun:
    """One asset's part of a refresh.

    Attributes:
        asset: its name: the stage's, below the selection's where that has one.
        partitions: that were made.
        adopted: how many more were found in the store, up to date, and were not known to the listener.
    """

    asset: str
    partitions: tuple[Partition, ...]
    adopted: int = 0


@dataclass(frozen=True, slots=True)
class RefreshPlan:
    """Which of a pipeline's stages are made.

    Attributes:
        stages: of the pipeline.
        only: names of stages; these, and what they are made from, are made; none: all that a refresh makes.
        further: names of stages on demand that are made too, with what they are made from.
        again: names of stages that are made again where they are up to date.
        excluded: whether shards that were excluded are tried once more.
        patient: whether files that were changed since they were observed end a round; else their shards are excluded.
    """

    stages: PipelineStages
    only: frozenset[str] = frozenset()
    further: frozenset[str] = frozenset()
    again: frozenset[str] = frozenset()
    excluded: bool = False
    patient: bool = True

    @property
    def assets(self) -> tuple[StageAsset, ...]:
        """What is made where it is not up to date, in order."""
        named = self.stages.with_inputs({*self.only, *self.further})
        return tuple(
            asset
            for asset in self.stages.assets
            if asset.stage.name in named or (not self.only and self.stages.is_automatic(asset))
        )

    @property
    def first(self) -> StageContext:
        """A context of today's store, which knows the selections that are made together."""
        selections = tuple(self.stages.pipeline.named_selections.values())
        return replace(self.stages.context(self.stages.assets[0]), together=selections)


class RefreshListener:
    """Learns what a refresh finds and makes; this one learns nothing of it."""

    def observe(self, context: StageContext) -> None:
        """Look through the source, as each round begins: bring the shard index up to date."""
        update_shard_index(context)

    def passed_over(self, asset: StageAsset, context: StageContext) -> None:
        """An asset is not among those that are made."""

    def up_to_date(self, asset: StageAsset, context: StageContext, partitions: Sequence[Partition]) -> int:
        """Partitions of an asset need not be made, the others are next; returns how many of them were not known."""
        return 0

    def made(self, asset: StageAsset, context: StageContext, partition: Partition, record: ResultRecord) -> None:
        """A partition of an asset was made."""

    def checked(self, asset: StageAsset, context: StageContext, evaluated: Sequence[Evaluated]) -> None:
        """The checks of an asset were evaluated; where a blocking one fails, the refresh ends next."""


def refresh(plan: RefreshPlan, listener: RefreshListener) -> Iterator[StageRun]:
    """Observe the source, then make what is missing or stale, asset by asset.

    The store's records decide what is stale. What is found damaged, or changed since it was observed, is made in
    another round; a shard that changes in every round is excluded in the last one.

    Args:
        plan: what is made.
        listener: learns of it.

    Yields:
        Each asset in turn with the partitions that were made, none where all were up to date.

    Raises:
        FailedChecksError: a blocking check of an asset fails.
        Exception: what a stage raised; what was finished before stays.
    """
    layout = plan.first.layout
    swept = remove_leftovers(layout.folder, apart_from=layout.training, log=progress.log)
    if swept:
        progress.log(f"{swept} files that ended processes had left were removed")
    again = plan.again
    try:
        for number in range(1, _ROUNDS + 1):
            listener.observe(plan.first)
            observe_references(plan.first)
            try:
                for run in _round(replace(plan, again=again, patient=number < _ROUNDS), listener):
                    # What was made again needs not be, should there be another round.
                    again -= {run.asset.rpartition("/")[2]} if run.partitions else set()
                    yield run
            except (DamagedResultError, SourceChangedError) as error:
                # The record of what is damaged was set aside, the source is observed again: another round mends either.
                progress.log(str(error))
                last = error
            else:
                return
        raise last
    finally:
        end_resting()


def _round(plan: RefreshPlan, listener: RefreshListener) -> Iterator[StageRun]:
    first, wanted = plan.first, plan.assets
    planned: dict[StageAsset, set[Partition]] = {}
    for asset in plan.stages.assets:
        context = first.with_selection(asset.selection)
        if asset not in wanted:
            listener.passed_over(asset, context)
            continue
        if asset.stage.together and asset not in planned:
            planned |= _stale_together(wanted, first, asset)
        number = wanted.index(asset) + 1
        with progress.part(f"stage {number} of {len(wanted)}"):
            yield from _made(plan, listener, asset, context, planned.get(asset, set()))
            evaluated = [evaluate(check, context) for check in asset.stage.checks]
            listener.checked(asset, context, evaluated)
            raise_failures(evaluated)


def _stale_together(
    wanted: Sequence[StageAsset], first: StageContext, asset: StageAsset
) -> Mapping[StageAsset, set[Partition]]:
    """What is stale of a stage in each selection, before the first of them makes parts of the others' with its own."""
    alike = [each for each in wanted if each.stage.name == asset.stage.name]
    return {each: set(first.with_selection(each.selection).index.stale(each.stage.name)) for each in alike}


def _made(
    plan: RefreshPlan, listener: RefreshListener, asset: StageAsset, context: StageContext, planned: set[Partition]
) -> Iterator[StageRun]:
    """Bring one asset up to date; what was made is reported also where a damaged input ends it.

    Args:
        plan: of the refresh.
        listener: learns what is made.
        asset: which.
        context: of its stage.
        planned: partitions that were stale when the round began, and may have been made with another selection's since.
    """
    stage, index = asset.stage, context.index
    everything, again = index.partitions(stage.name), stage.name in plan.again
    wanted = set(everything) if again else set(index.stale(stage.name)) | planned
    if plan.excluded:
        wanted |= {partition for partition in index.excluded(stage.name) if partition in everything}
    kept = [each for each in everything if each not in wanted]
    if stage.settle is not None:
        stage.settle(context, index.results(stage.name, kept))
    adopted = listener.up_to_date(asset, context, kept)
    made = set[Partition]()

    def run() -> StageRun:
        return StageRun(str(asset), tuple(each for each in everything if each in made), adopted)

    try:
        ordered = [each for each in everything if each in wanted]
        for partition, record in run_partitions(context, stage, ordered, again=again, patient=plan.patient):
            listener.made(asset, context, partition, record)
            made.add(partition)
        index.collect()
    except (DamagedResultError, SourceChangedError):
        yield run()
        raise
    yield run()
