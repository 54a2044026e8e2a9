"""Estimate the epsilon that keeps a wanted share, before all clusters are scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.analyses.table_rows import columns_of, row_of
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import Progress
from semdedup_assets.execution.stage import ANALYSE, Column, Picture, Rows, Shown, Stage, Worker
from semdedup_assets.rendering import analysis_plots
from semdedup_assets.stages import duplicate_scores
from semdedup_assets.stages.cluster_batches import AssignedClusters
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.tables import write_table

if TYPE_CHECKING:
    from semdedup_assets.algorithm.epsilon_estimate import Bootstrap, ClusterScores

ESTIMATES, CURVE, PICTURE = "estimates.parquet", "sample_curve.parquet", "epsilon_estimates.png"
"""The table by target, the sampled clusters' curve, and the picture, in the record."""

_TITLE = "Epsilon estimated from some clusters"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is estimated for one target; NaN where nothing can be.

    Attributes:
        target: as in the settings.
        share: of the items to be kept.
        interpolated: epsilon of the paper's method: on the line through the two start values.
        interpolated_keeps: share of the sampled items that it keeps.
        epsilon: the one that keeps the share of the sampled items, exactly.
        epsilon_low: lower end of its 95 % interval.
        epsilon_high: upper end.
    """

    target: str
    share: float
    interpolated: float
    interpolated_keeps: float
    epsilon: float
    epsilon_low: float
    epsilon_high: float


def _worker(context: StageContext) -> Worker:
    return lambda partition: estimate_epsilons(context, partition)


def estimate_epsilons(context: StageContext, partition: Partition) -> ResultRecord:
    """Estimate the epsilon of each target from a share of the clusters (SemDeDup, section 6.5).

    Args:
        context: of the pipeline and the selection.
        partition: a clustering.

    Raises:
        MissingResultError: a shard is not assigned to today's centroids.
    """
    from semdedup_assets.algorithm.epsilon_estimate import SampleCurve

    clustering, settings = partition.required_clustering, context.pipeline.analyses.epsilon_estimates
    with context.writing("epsilon_estimates", partition) as result:
        records = context.index.require_consistent("assignments", Partition(clustering=clustering))
        items = sum(int(record.details.get("items", 0)) for record in records.values())
        with usage.phase("compare"):
            scores = _sampled_scores(AssignedClusters(context, clustering))
        kept = [scores.kept_fraction(epsilon) for epsilon in settings.start]
        bootstrap = _bootstrap(scores, seed=settings.seed)
        estimates = [_estimate(context, target, items, (scores, bootstrap)) for target in settings.targets]
        with result.open(ESTIMATES) as stream:
            write_table(stream, columns_of(estimates))
        curve = bootstrap.curve if bootstrap else SampleCurve.empty()
        with result.open(CURVE) as stream:
            drawn = {"epsilon": curve.epsilon, "kept": curve.kept, "kept_low": curve.low, "kept_high": curve.high}
            write_table(stream, {name: np.ma.masked_invalid(values) for name, values in drawn.items()})
        chosen = len(scores.offsets) - 1
        note = (
            f"{context.pipeline.dataset}/{context.pipeline.model_name}, {clustering.label} · {context.selection.label}, "
            f"{chosen:,} of {scores.clusters:,} clusters with {len(scores.similarity):,} of {items:,} items"
        )
        with usage.phase("draw"), result.open(PICTURE) as stream:
            stream.write(analysis_plots.epsilon_estimates(curve, _points(estimates), start=settings.start, note=note))
        result.details = {
            "items": items,
            "sampled_items": len(scores.similarity),
            "clusters": scores.clusters,
            "sampled_clusters": chosen,
            "pairs_compared": int(sum(size * (size - 1) // 2 for size in np.diff(scores.offsets).tolist())),
            "kept_at_start": [None if np.isnan(each) else each for each in kept],
            "estimates": [row_of(each) for each in estimates],
        }
    return result.committed


def _sampled_scores(assigned: AssignedClusters) -> "ClusterScores":
    """Score the chosen clusters."""
    from semdedup_assets.algorithm.epsilon_estimate import ClusterScores, sample_clusters
    from semdedup_assets.algorithm.protection import protect
    from semdedup_assets.algorithm.similarity import score_clusters
    from semdedup_assets.algorithm.unit_rows import as_tensor

    context, settings = assigned.context, assigned.context.pipeline.analyses.epsilon_estimates
    chosen = sample_clusters(
        assigned.ranges, share=settings.clusters, fewest=settings.fewest_clusters, seed=settings.seed
    )
    sizes = {cluster: 0 for clusters in chosen.values() for cluster in sorted(clusters)}
    found = [np.empty(0, dtype=np.float32)]
    with Progress(f"epsilon_estimates {assigned.clustering}", total=len(chosen), unit="ranges") as progress:
        for index, wanted in chosen.items():
            # Clusters one by one are slow to read where all are wanted.
            only = None if len(wanted) == len(assigned.ranges[index]) else wanted
            for batch in assigned.batches(index, only=only):
                vectors = as_tensor(batch.vectors).to(context.compute.torch_device)
                earlier = score_clusters(vectors, batch.offsets, budget=context.compute.budget)
                if batch.overtaken is not None:
                    earlier = protect(earlier, batch.overtaken >= 0)
                found.append(earlier.similarity)
                sizes |= {batch.first + place: size for place, size in enumerate(np.diff(batch.offsets).tolist())}
            progress.advance()
    offsets = np.concatenate([[0], np.cumsum(list(sizes.values()))]).astype(np.int64)
    return ClusterScores(np.concatenate(found), offsets, assigned.ranges[-1].stop)


def _bootstrap(scores: "ClusterScores", *, seed: int) -> "Bootstrap | None":
    from semdedup_assets.algorithm.epsilon_estimate import Bootstrap

    return Bootstrap.of(scores, seed=seed) if len(scores.similarity) else None


def _estimate(
    context: StageContext, target: float, items: int, sample: "tuple[ClusterScores, Bootstrap | None]"
) -> Estimate:
    from semdedup_assets.algorithm.epsilon_estimate import interpolated_epsilon

    (scores, bootstrap), start = sample, context.pipeline.analyses.epsilon_estimates.start
    share = target if target <= 1 else min(1.0, target / max(1, items))
    kept = scores.kept_fraction(start[0]), scores.kept_fraction(start[1])
    interpolated = interpolated_epsilon(start, kept, share=share)
    low, high = bootstrap.epsilon_interval(share) if bootstrap else (np.nan, np.nan)
    name = f"{target:g}" if target <= 1 else f"{int(target)} items"
    keeps = scores.kept_fraction(interpolated)
    return Estimate(name, share, interpolated, keeps, scores.epsilon_for(share), low, high)


def _points(estimates: Sequence[Estimate]) -> list[analysis_plots.EstimatedPoint]:
    return [
        analysis_plots.EstimatedPoint(each.target, each.share, each.interpolated, each.epsilon) for each in estimates
    ]


def _shown(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    rows = [
        {
            "to keep": row["target"],
            "epsilon": number(row["epsilon"]),
            "95 % interval": f"{number(row['epsilon_low'])} to {number(row['epsilon_high'])}",
            "interpolated (paper)": number(row["interpolated"]),
            "which keeps of the sample": "–"
            if row["interpolated_keeps"] is None
            else f"{row['interpolated_keeps']:.1%}",
        }
        for row in record.details["estimates"]
    ]
    return {"epsilon_estimates": Picture(record.file(PICTURE).content(), _TITLE), "estimates": Rows(rows)}


def number(value: float | None) -> str:
    """An epsilon as a person reads it; a dash where there is none."""
    return "–" if value is None else f"{value:.4g}"


def _settings(context: StageContext) -> dict[str, Any]:
    settings = context.pipeline.analyses.epsilon_estimates
    return settings.model_dump(mode="json", exclude={"max_error"})


STAGE = Stage(
    name="epsilon_estimates",
    step=ANALYSE,
    description="The epsilon that keeps each wanted share, estimated from a share of the clusters before the others are "
    "scored (SemDeDup, section 6.5): by the paper's interpolation between two start values, and solved exactly on the "
    "same clusters with a 95 % interval. Of the chain rule. Clusters are chosen with equal probability, whatever their "
    "size.",
    dimensions=("k",),
    inputs=("assignments",),
    optional_inputs=duplicate_scores.STAGE.optional_inputs,
    input_version=duplicate_scores.STAGE.input_version,
    settings=_settings,
    location=lambda layout, partition, selection: layout.of_clustering(
        partition.required_clustering, "epsilon_estimates", selection.keep_order
    ),
    worker=_worker,
    kinds=frozenset({"torch", "matplotlib", "parquet"}),
    columns=lambda _: (
        Column("target", "string", "What is to be kept: a share, or a number of items."),
        Column("share", "float64", "The same as a share of the items."),
        Column("interpolated", "float64", "Epsilon by the paper's method; null where both start values keep the same."),
        Column("interpolated_keeps", "float64", "Share of the sampled items that it keeps."),
        Column("epsilon", "float64", "Epsilon that keeps the share of the sampled items; null without sampled items."),
        Column("epsilon_low", "float64", "Lower end of its 95 % interval; null where a single cluster was sampled."),
        Column("epsilon_high", "float64", "Upper end of it."),
    ),
    shown=_shown,
    selected=True,
    # Both rules select by the same scores.
    selection_settings=duplicate_scores.STAGE.selection_settings,
    on_demand=True,
    # Of pairs within clusters.
    applies=lambda _, selection: selection.repair is None,
    unit="clusterings",
)
