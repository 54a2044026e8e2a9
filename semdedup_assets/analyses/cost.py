"""Add up what the stages took, and project it to another number of items and clusters."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from semdedup_assets.algorithm.cost_projection import Driver, Workload, projected_seconds
from semdedup_assets.analyses.table_rows import columns_of, row_of
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import ANALYSE, Column, Rows, Shown, Stage, Worker
from semdedup_assets.kept_sets import Clustering
from semdedup_assets.storage.results import MissingResultError, ResultRecord
from semdedup_assets.storage.tables import write_table

COST, BESIDE_PAPER = "cost.parquet", "beside_the_paper.parquet"
"""The table by stage and clustering, and the sums beside the paper's, in the record."""

# What the phases of each stage of the method grow with, where that is not the number of items alone.
_DRIVERS: dict[str, dict[str, Driver]] = {
    "items": {},
    "embeddings": {},
    "training_sample": {},
    "centroids": {"": "sample × k"},
    "assignments": {"assign": "items × k"},
    "duplicate_scores": {"compare": "pairs"},
    "keep_masks": {},
    "manifests": {},
}
_EMBEDDING = ("embeddings",)
# What the paper calls clustering, and what it calls finding duplicates.
_CLUSTERING, _COMPARING = ("training_sample", "centroids", "assignments"), ("duplicate_scores",)
_LAION = 440_000_000
_ASSUMPTIONS = (
    "The devices, batch sizes and files are those of the measured results, and their overhead is projected with them: from "
    "results a thousand times smaller it is an upper bound. Reading, writing and embedding grow with n, assigning with "
    "n k, comparing with n² / k (clusters as uneven as measured), fitting with the sampled vectors times k. Device-hours "
    "are hours of whatever device was used: a core's are no GPU's."
)


@dataclass(frozen=True, slots=True)
class _PaperRow:
    """A row of the paper's tables: hours on all its GPUs together, which had 8 to cluster and 64 to compare."""

    source: str
    k: int
    clustering: float
    comparing: float
    total: float


def _of_hours(k: int, clustering: tuple[int, int], comparing: tuple[int, int]) -> _PaperRow:
    """A row of Table A2, of hours and minutes."""
    devices = 8 * (clustering[0] + clustering[1] / 60), 64 * (comparing[0] + comparing[1] / 60)
    return _PaperRow("SemDeDup, Table A2", k, *devices, sum(devices))


_PAPER = (
    *(
        _PaperRow("SemDeDup, Table 5", k, float("nan"), float("nan"), total)
        for k, total in ((10_000, 163.5), (25_000, 101.2), (50_000, 110.3), (70_000, 103.6))
    ),
    _of_hours(10_000, (2, 36), (2, 20)),
    _of_hours(25_000, (3, 52), (1, 19)),
    _of_hours(50_000, (5, 59), (1, 22)),
    _of_hours(70_000, (9, 2), (1, 10)),
)


@dataclass(frozen=True, slots=True)
class StageCost:
    """What a stage took; NaN where nothing was measured.

    Attributes:
        stage: its name.
        clustering: empty where all clusterings share the results.
        device: on which it was made.
        results: that there are to be.
        measured: of those that are up to date, what making them took, whenever that was.
        items: of the measured results, each result's own.
        seconds: of all measured results together.
        device_hours: the same in hours.
        bytes: written.
        grows_with: what its time is projected by.
        growth: how many times as long it would take: the greater, the more of it is overhead that does not grow.
        projected_seconds: of the whole stage, for the numbers of items and clusters in the settings.
        projected_device_hours: the same in hours.
    """

    stage: str
    clustering: str
    device: str
    results: int
    measured: int
    items: int
    seconds: float
    device_hours: float
    bytes: int
    grows_with: str
    growth: float
    projected_seconds: float
    projected_device_hours: float


@dataclass(frozen=True, slots=True)
class CostSum:
    """Device-hours of one clustering, ours or the paper's; NaN where not all of it was measured.

    Attributes:
        source: whose.
        clustering: of the pipeline, as in partition keys; empty for the paper's.
        items: n.
        k: number of clusters.
        embedding: device-hours; the paper does not report them.
        clusters: of sampling, fitting and assigning.
        comparing: of scoring.
        total: of clusters and comparing, as the paper counts.
        share_of_epoch: total, as a share of training one epoch on all items.
    """

    source: str
    clustering: str
    items: int
    k: int
    embedding: float
    clusters: float
    comparing: float
    total: float
    share_of_epoch: float


def _worker(context: StageContext) -> Worker:
    return lambda partition: add_up_costs(context, partition)


def add_up_costs(context: StageContext, partition: Partition) -> ResultRecord:
    """Add up what the stages took, and project it (SemDeDup, section 7, Tables 5 and A2).

    A result that was reused counts as what making it took. What has not been made, or was made by other settings or
    from other inputs than there are now, is not measured.

    Args:
        context: of the pipeline and the selection.
        partition: the only one.

    Raises:
        MissingResultError: a clustering is not scored.
    """
    with context.writing("cost", partition) as result:
        costs = list(_stage_costs(context))
        sums = [*_own_sums(context, costs), *_paper_sums(context)]
        for name, rows in ((COST, costs), (BESIDE_PAPER, sums)):
            with result.open(name) as stream:
                write_table(stream, columns_of(rows))
        result.details = {
            "items": _items(context),
            "stages": [row_of(cost) for cost in costs],
            "beside_the_paper": [row_of(each) for each in sums],
            "assumptions": _ASSUMPTIONS,
        }
    return result.committed


def _stage_costs(context: StageContext) -> Iterator[StageCost]:
    """What each stage took; stages beside the method only where they took something."""
    for stage in context.graph.stages:
        if stage.name in ("estimate", "cost") or not stage.applies(context.pipeline, context.selection):
            continue
        clusterings = context.pipeline.clusterings if "k" in stage.dimensions else (None,)
        for clustering in clusterings:
            cost = _stage_cost(context, stage.name, clustering)
            if stage.name in _DRIVERS or cost.measured:
                yield cost


def _stage_cost(context: StageContext, stage: str, clustering: Clustering | None) -> StageCost:
    within = Partition(clustering=clustering)
    found = {each: record for each, record in context.index.records(stage, within).items() if record.excluded is None}
    made = [
        record
        for partition, record in found.items()
        if "seconds" in record.details and _is_current(context, stage, partition)
    ]
    details = [record.details for record in made]
    seconds = sum(each["seconds"] for each in details) if made else float("nan")
    excluded = len(context.index.records(stage, within)) - len(found)
    results = len(context.index.stored(stage, within)) - excluded
    items = sum(int(each.get("items", each.get("records", each.get("sample", 0)))) for each in details)
    projected = _projected(context, stage, clustering, made) if len(made) == results else float("nan")
    return StageCost(
        stage=stage,
        clustering=str(clustering or ""),
        device=", ".join(sorted({str(each["device"]) for each in details})),
        results=results,
        measured=len(made),
        items=items,
        seconds=seconds,
        device_hours=seconds / 3600,
        bytes=sum(record.size for record in made),
        grows_with=_grows_with(stage),
        growth=projected / seconds if seconds else float("nan"),
        projected_seconds=projected,
        projected_device_hours=projected / 3600,
    )


def _is_current(context: StageContext, stage: str, partition: Partition) -> bool:
    try:
        return context.index.is_current(stage, partition)
    except MissingResultError:
        return False


def _grows_with(stage: str) -> str:
    if stage not in _DRIVERS:
        return "not projected"
    found = {*_DRIVERS[stage].values(), *(() if "" in _DRIVERS[stage] else ("items",))}
    return ", ".join(driver for driver in get_args(Driver) if driver in found)


def _projected(context: StageContext, stage: str, clustering: Clustering | None, made: Sequence[ResultRecord]) -> float:
    """Seconds of a whole stage for the items and clusters in the settings; NaN where that is not known."""
    settings, items = context.pipeline.analyses.cost, _items(context)
    if stage not in _DRIVERS or items == 0:
        return float("nan")
    fit = context.index.require(
        "centroids", Partition(clustering=clustering or context.pipeline.clusterings[0])
    ).details
    measured = Workload(items, int(fit["k"]), int(fit["sample"]))
    projected = Workload(settings.items, settings.k, _sample(context))
    return sum(
        projected_seconds(
            record.details["seconds"],
            record.details.get("seconds_by_phase", {}),
            drivers=_DRIVERS[stage],
            measured=measured,
            projected=projected,
        )
        for record in made
    )


def _sample(context: StageContext) -> int:
    """Vectors that the centroids of as many items and clusters as in the settings would be fitted to."""
    sampling, settings = context.pipeline.training_sample, context.pipeline.analyses.cost
    return sampling.fitted(sampling.drawn(settings.items, k=settings.k), k=settings.k)


def _items(context: StageContext) -> int:
    """Items of the dataset, as they were scored."""
    within = Partition(clustering=context.pipeline.clusterings[0])
    return sum(
        int(record.details["items"]) for record in context.index.require_all("duplicate_scores", within).values()
    )


def _own_sums(context: StageContext, costs: Sequence[StageCost]) -> Iterator[CostSum]:
    settings, items = context.pipeline.analyses.cost, _items(context)
    for clustering in context.pipeline.clusterings:
        k = int(context.index.require("centroids", Partition(clustering=clustering)).details["k"])
        own = {each.stage: each for each in costs if each.clustering in ("", str(clustering))}
        for source, n, clusters, field in (
            ("this pipeline, measured", items, k, "device_hours"),
            ("this pipeline, projected", settings.items, settings.k, "projected_device_hours"),
        ):
            hours = [
                sum(_hours(own[stage], field) for stage in stages) for stages in (_EMBEDDING, _CLUSTERING, _COMPARING)
            ]
            total = hours[1] + hours[2]
            share = _share_of_epoch(context, total, n)
            yield CostSum(source, str(clustering), n, clusters, hours[0], hours[1], hours[2], total, share)


def _hours(cost: StageCost, field: str) -> float:
    """Of a whole stage; NaN where some of its results were not measured."""
    return float(getattr(cost, field)) if cost.measured == cost.results else float("nan")


def _paper_sums(context: StageContext) -> Iterator[CostSum]:
    for row in _PAPER:
        share = _share_of_epoch(context, row.total, _LAION)
        yield CostSum(row.source, "", _LAION, row.k, float("nan"), row.clustering, row.comparing, row.total, share)


def _share_of_epoch(context: StageContext, hours: float, items: int) -> float:
    """Device-hours as a share of training on all items once."""
    epoch = items / context.pipeline.analyses.cost.training_items_per_second / 3600
    return hours / epoch if epoch else float("nan")


def _shown(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    stages = [
        {
            "stage": row["stage"],
            "k": row["clustering"],
            "measured": f"{row['measured']} of {row['results']}" if row["measured"] else "not measured",
            "device": row["device"],
            "seconds": _amount(row["seconds"]),
            "grows with": row["grows_with"],
            "times": _amount(row["growth"]),
            "hours projected": _amount(row["projected_device_hours"]),
        }
        for row in record.details["stages"]
    ]
    sums = [
        {
            "device-hours": row["source"] + (f", k: {row['clustering']}" if row["clustering"] else ""),
            "items": f"{row['items']:,}",
            "k": f"{row['k']:,}",
            "clustering": _amount(row["clusters"]),
            "comparing": _amount(row["comparing"]),
            "both": _amount(row["total"]),
            "of an epoch": "–" if row["share_of_epoch"] is None else f"{row['share_of_epoch']:.2%}",
        }
        for row in record.details["beside_the_paper"]
    ]
    return {"beside_the_paper": Rows(sums), "stages": Rows(stages), "assumptions": _ASSUMPTIONS}


def _amount(value: float | None) -> str:
    if value is not None and 0 < value < 0.001:
        return "< 0.001"
    return "–" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


STAGE = Stage(
    name="cost",
    step=ANALYSE,
    description="Seconds and device-hours of each stage by the records of its results, projected to another number of "
    "items and clusters, beside the paper's GPU-hours and as a share of training one epoch (SemDeDup, section 7, Tables 5 "
    "and A2). Stale when the scores are; stages that were made since are counted when it is made again. "
    + _ASSUMPTIONS,
    dimensions=(),
    inputs=("duplicate_scores",),
    settings=lambda context: {
        "clusterings": sorted(map(str, context.pipeline.clusterings)),
        **context.pipeline.analyses.cost.model_dump(mode="json"),
    },
    location=lambda layout, _, selection: layout.of_all_clusterings(selection, "cost"),
    worker=_worker,
    kinds=frozenset({"parquet"}),
    columns=lambda _: (
        Column("stage", "string", "Name of the stage."),
        Column("clustering", "string", "As in partition keys; empty where all clusterings share the results."),
        Column("device", "string", "On which the results were made."),
        Column("results", "int64", "Results that there are to be."),
        Column("measured", "int64", "Those that are up to date, whose making was measured."),
        Column("items", "int64", "Items of the measured results together."),
        Column("seconds", "float64", "Seconds of the measured results together; null where there are none."),
        Column("device_hours", "float64", "The same in hours."),
        Column("bytes", "int64", "Bytes of their files."),
        Column("grows_with", "string", "What the projection grows with."),
        Column("growth", "float64", "How many times as long it would take; null unless it is projected."),
        Column("projected_seconds", "float64", "Of the whole stage, projected; null unless all of it was measured."),
        Column("projected_device_hours", "float64", "The same in hours."),
    ),
    shown=_shown,
    selected=True,
    on_demand=True,
    pool="cpu",
    unit="pipelines",
)
