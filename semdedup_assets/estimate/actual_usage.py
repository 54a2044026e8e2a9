"""What the stages used, by the records of their results."""

from collections.abc import Callable
from dataclasses import dataclass

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.kept_sets import Clustering
from semdedup_assets.storage.results import MissingResultError, ResultRecord

SHARED = ("items", "embeddings", "training_sample")
STAGES = (*SHARED, "centroids", "assignments", "duplicate_scores", "keep_masks", "manifests")
"""The stages that are estimated, each after its inputs; the first are shared by all clusterings."""

RowKey = tuple[str, str]
"""Stage, below its selection's name, and k, empty where all share the results: as a person reads them."""


@dataclass(frozen=True, slots=True)
class ActualUsage:
    """What the results that are there (`done` of `results`) used together; the greatest of their memories."""

    results: int
    done: int
    items: int
    seconds: float
    bytes: int
    peak_memory_mib: float

    @property
    def complete(self) -> bool:
        """Whether all results are there."""
        return self.done == self.results


@dataclass(frozen=True, slots=True)
class StageRow:
    """A row of the estimate: a stage, of one clustering and one selection where each has its own."""

    key: RowKey
    stage: str
    context: StageContext
    clustering: Clustering | None

    def actual(self) -> ActualUsage:
        """What its up-to-date results used."""
        return self._usage(self._is_current)

    def earlier(self) -> ActualUsage:
        """What its results used that were made with today's settings on such a device, of whichever inputs."""
        made_so = self.context.code_version(self.stage), str(self.context.compute.torch_device)
        return self._usage(lambda _, record: (record.code_version, record.details.get("device")) == made_so)

    def _is_current(self, partition: Partition, _: ResultRecord) -> bool:
        try:
            return self.context.index.is_current(self.stage, partition)
        except MissingResultError:
            return False

    def _usage(self, counts: Callable[[Partition, ResultRecord], bool]) -> ActualUsage:
        index, within = self.context.index, Partition(clustering=self.clustering)
        try:
            results = len(index.stored(self.stage, within))
        except MissingResultError:
            results = 1  # The ranges of clusters are not planned yet.
        records = index.records(self.stage, within).items()
        made = [record.details for partition, record in records if counts(partition, record)]
        if self.stage == "centroids":
            items = sum(round(each["items_per_cluster"] * each["k"]) for each in made)
        else:
            items = sum(each.get("items", each.get("records", 0)) for each in made)
        seconds, size = sum(each.get("seconds", 0.0) for each in made), sum(each["bytes"] for each in made)
        peak = max((each.get("peak_memory_mib", 0.0) for each in made), default=0.0)
        return ActualUsage(results, len(made), items, seconds, size, peak)


def stage_rows(context: StageContext, *, merged: bool = True) -> list[StageRow]:
    """The rows of an estimate, in the order of the stages.

    Args:
        context: of the pipeline.
        merged: whether results that several selections share are one row.
    """
    rows = []
    for stage in (context.graph[name] for name in STAGES):
        clusterings = (None,) if stage.name in SHARED else context.pipeline.clusterings
        selections = context.pipeline.named_selections if stage.selected else {None: context.selection}
        found = set[str]()
        for name, selection in selections.items():
            of_selection = context.with_selection(selection)
            version = of_selection.code_version(stage.name)
            label = f"{name}/{stage.name}" if name else stage.name
            if version not in found or not merged:
                rows += [StageRow((label, str(each or "")), stage.name, of_selection, each) for each in clusterings]
            found.add(version)
    return rows


def actual_usage(context: StageContext) -> dict[RowKey, ActualUsage]:
    """What the up-to-date results of each row used."""
    return {row.key: row.actual() for row in stage_rows(context)}
