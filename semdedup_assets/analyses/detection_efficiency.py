"""Measure which share of all duplicates the search within clusters finds (SemDeDup, appendix A.2, Table A1)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.checks.detection_efficiency import efficiency_is_high
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import Progress
from semdedup_assets.execution.stage import ANALYSE, Column, Picture, Rows, Shown, Stage, Worker
from semdedup_assets.kept_sets import Clustering, Selection
from semdedup_assets.rendering import plots
from semdedup_assets.stages.centroids import CLUSTERS, read_centroids
from semdedup_assets.stages.cluster_batches import AssignedClusters, ClusterBatch
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.tables import read_table, write_table

if TYPE_CHECKING:
    import torch

    from semdedup_assets.algorithm.detection_efficiency import ClusterRows, DetectionEfficiency, FoundShare

EFFICIENCY = "efficiency.parquet"
"""The share found by method, by what is counted and by epsilon, in the record."""

SEARCHED = "next_clusters.parquet"
"""The share found and the comparisons made if each item's next-nearest clusters are searched too, in the record."""

# Of the sampled items' vectors, whatever the machine: what is sampled must not depend on it.
_SAMPLE_BYTES = 512 << 20
_NEIGHBOURS, _ALL_PAIRS = "neighbours", "all pairs"


def _worker(context: StageContext) -> Worker:
    return lambda partition: measure_efficiency(context, partition)


def measure_efficiency(context: StageContext, partition: Partition) -> ResultRecord:
    """Measure the detection efficiency of one clustering, by sampled clusters and, of few items, by all pairs.

    Args:
        context: of the pipeline.
        partition: a clustering.

    Raises:
        MissingResultError: a shard is not assigned to today's centroids.
    """
    # No order of the items matters here, so none that needs a column is read.
    with context.writing("detection_efficiency", partition) as result:
        search = _Search(context.with_selection(Selection()), partition.required_clustering)
        settings = context.pipeline.analyses.detection_efficiency
        measured = {_NEIGHBOURS: search.measure(clusters=settings.clusters, neighbours=settings.neighbours)}
        if search.items <= settings.all_pairs_up_to:
            measured[_ALL_PAIRS] = search.measure(clusters=None, neighbours=None)
        subject = f"{context.pipeline.dataset}/{context.pipeline.model_name}, {partition.required_clustering.label}"
        with usage.phase("draw"):
            for name, (table, png) in _pictures(measured, f"{subject}: {search.items:,} items").items():
                with result.open(f"{name}.png") as stream:
                    stream.write(png)
                with result.open(f"{name}.parquet") as stream:
                    write_table(stream, table)
        result.details = _details(measured, search.items, context.pipeline.largest_epsilon)
    return result.committed


@dataclass(frozen=True)
class _Search:
    """The clusters of one clustering, and what is compared of them."""

    context: StageContext
    clustering: Clustering

    @cached_property
    def assigned(self) -> AssignedClusters:
        return AssignedClusters(self.context, self.clustering)

    @cached_property
    def centroids(self) -> "torch.Tensor":
        import torch

        return torch.from_numpy(read_centroids(self.context, self.clustering)).to(self.context.compute.torch_device)

    @cached_property
    def items(self) -> int:
        """Items that are assigned."""
        records = self.context.index.require_consistent("assignments", Partition(clustering=self.clustering))
        return sum(int(record.details["items"]) for record in records.values())

    @cached_property
    def sizes(self) -> np.ndarray:
        """(k,) float64: items of each cluster, as the training sample predicts them."""
        record = self.context.index.require("centroids", Partition(clustering=self.clustering))
        sampled = read_table(record.file(CLUSTERS), ["sample_items"])["sample_items"].astype(np.float64)
        return sampled * (self.items / max(1.0, float(sampled.sum())))

    def measure(self, *, clusters: int | None, neighbours: int | None) -> "DetectionEfficiency":
        """Compare the items of some clusters with those of their neighbours.

        Args:
            clusters: how many are sampled; None: all.
            neighbours: with how many clusters each is compared beside itself; None: with all.
        """
        from semdedup_assets.algorithm.detection_efficiency import DuplicateCounter

        settings, compute = self.context.pipeline.analyses.detection_efficiency, self.context.compute
        chosen = self._sampled(clusters)
        with usage.phase("read"):
            items = self._rows(chosen)
        counter = DuplicateCounter(
            items,
            centroids=self.centroids,
            epsilons=sorted({*settings.epsilons, *self.context.pipeline.own_epsilons}),
            neighbours=neighbours,
            budget=compute.budget,
        )
        needed = counter.needed
        with Progress(f"detection_efficiency {self.clustering}", total=len(needed), unit="clusters") as progress:
            for batch in usage.each("read", self._batches(needed)):
                with usage.phase("compare"):
                    counter.add(self._cluster_rows(batch))
                progress.advance(len(batch.offsets) - 1)
        return counter.result(self.sizes, all_clusters=len(chosen) == len(self.centroids), seed=settings.seed)

    def _sampled(self, clusters: int | None) -> np.ndarray:
        """(c,) int64: clusters whose items, as predicted, are held in memory; at least one."""
        from semdedup_assets.algorithm.detection_efficiency import sample_clusters

        k, seed = len(self.centroids), self.context.pipeline.analyses.detection_efficiency.seed
        most = _SAMPLE_BYTES // (4 * self.centroids.shape[1])
        if clusters is None:
            return np.arange(k, dtype=np.int64)
        while clusters > 1 and self.sizes[sample_clusters(k, most=clusters, seed=seed)].sum() > most:
            clusters = clusters // 2
        return sample_clusters(k, most=clusters, seed=seed)

    def _batches(self, clusters: np.ndarray) -> Iterator[ClusterBatch]:
        """Batches that hold some clusters, range by range."""
        for index, of_range in enumerate(self.assigned.ranges):
            wanted = clusters[(clusters >= of_range.start) & (clusters < of_range.stop)]
            if len(wanted):
                # Clusters one by one are slow to read where most are wanted.
                only = None if 2 * len(wanted) > len(of_range) else set(wanted.tolist())
                yield from self.assigned.batches(index, only=only)

    def _rows(self, clusters: np.ndarray) -> "ClusterRows":
        """All items of some clusters."""
        import torch

        from semdedup_assets.algorithm.detection_efficiency import ClusterRows

        parts = []
        for batch in self._batches(clusters):
            rows, inside = self._cluster_rows(batch), np.isin(batch.cluster, clusters)
            index = torch.as_tensor(np.flatnonzero(inside), device=rows.vectors.device)
            parts.append(ClusterRows(rows.ids[inside], rows.cluster[inside], rows.vectors[index]))
        if not parts:
            empty = self.centroids[:0]
            return ClusterRows(np.empty(0, np.uint64), np.empty(0, np.int64), empty)
        return ClusterRows(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.cluster for part in parts]),
            torch.cat([part.vectors for part in parts]),
        )

    def _cluster_rows(self, batch: ClusterBatch) -> "ClusterRows":
        from semdedup_assets.algorithm.detection_efficiency import ClusterRows
        from semdedup_assets.algorithm.unit_rows import as_tensor

        vectors = as_tensor(batch.vectors).to(self.context.compute.torch_device)
        return ClusterRows(batch.ids, batch.cluster.astype(np.int64), vectors)


_Measured = dict[str, "DetectionEfficiency"]


def _pictures(measured: _Measured, subject: str) -> dict[str, tuple[dict[str, np.ndarray], bytes]]:
    """The two tables, each with its picture."""
    curves = [
        plots.ShareCurve(f"{counted}, {method}", each.epsilons, found.share, found.low, found.high)
        for method, each in measured.items()
        for counted, found in (("items", each.items), ("pairs", each.pairs))
    ]
    note = f"{subject}, {len(measured[_NEIGHBOURS].clusters):,} sampled clusters; bands: 95 % of resampled clusters"
    best = list(measured.values())[-1]
    return {
        "efficiency": (_efficiency_table(measured), plots.detection_efficiency(curves, note=note)),
        "next_clusters": (
            _searched_table(measured),
            plots.found_by_next_clusters(
                [each.clusters for each in best.searched],
                {
                    float(e): np.array([each.pairs.share[i] for each in best.searched])
                    for i, e in enumerate(best.epsilons)
                },
                note=f"{subject}; {list(measured)[-1]}",
            ),
        ),
    }


def _efficiency_table(measured: _Measured) -> dict[str, np.ndarray]:
    """One row for each method, what is counted, and epsilon."""
    parts = [
        _found_columns(each.epsilons, found, method=method, counted=counted)
        for method, each in measured.items()
        for counted, found in (("items", each.items), ("pairs", each.pairs))
    ]
    return {name: _joined([part[name] for part in parts]) for name in parts[0]}


def _found_columns(epsilons: np.ndarray, found: "FoundShare", *, method: str, counted: str) -> dict[str, np.ndarray]:
    shares = {"eta": found.share, "low": found.low, "high": found.high}
    return {
        "method": np.full(len(epsilons), method),
        "counted": np.full(len(epsilons), counted),
        "epsilon": epsilons,
        "found_within": found.found,
        "found_in_total": found.total,
        **{name: np.ma.masked_invalid(share) for name, share in shares.items()},
    }


def _searched_table(measured: _Measured) -> dict[str, np.ndarray]:
    """One row for each method, number of next-nearest clusters, and epsilon."""
    parts = [
        {
            "method": np.full(len(each.epsilons), method),
            "next_clusters": np.full(len(each.epsilons), searched.clusters),
            "epsilon": each.epsilons,
            "items_share": np.ma.masked_invalid(searched.items.share),
            "pairs_share": np.ma.masked_invalid(searched.pairs.share),
            "comparisons": searched.comparisons,
        }
        for method, each in measured.items()
        for searched in each.searched
    ]
    return {name: _joined([part[name] for part in parts]) for name in parts[0]}


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    plain = np.concatenate([np.ma.getdata(part) for part in parts])
    if not isinstance(parts[0], np.ma.MaskedArray):
        return plain
    return np.ma.masked_array(plain, mask=np.concatenate([np.ma.getmaskarray(part) for part in parts]))


def _details(measured: _Measured, items: int, largest: float | None) -> dict[str, Any]:
    """The shares at each epsilon; an exact one first, where there is one."""
    method, best = list(measured.items())[-1]
    rows = [
        {
            "epsilon": float(epsilon),
            "eta_items": _number(best.items.share[index]),
            "eta_pairs": _number(best.pairs.share[index]),
            "eta_items_sampled": _number(measured[_NEIGHBOURS].items.share[index]),
            "low": _number(measured[_NEIGHBOURS].items.low[index]),
            "high": _number(measured[_NEIGHBOURS].items.high[index]),
        }
        for index, epsilon in enumerate(best.epsilons)
    ]
    return {
        "items": items,
        "method": method,
        "sampled_clusters": len(measured[_NEIGHBOURS].clusters),
        "largest_epsilon": largest,
        "eta_at_largest_epsilon": next((row["eta_items"] for row in rows if row["epsilon"] == largest), None),
        "by_epsilon": rows,
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _shown(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    """Both pictures, and the shares by epsilon."""
    rows = [
        {
            "epsilon": row["epsilon"],
            "items found": _percent(row["eta_items"]),
            "pairs found": _percent(row["eta_pairs"]),
            "items, sampled": _percent(row["eta_items_sampled"]) + _interval(row),
        }
        for row in record.details["by_epsilon"]
    ]
    return {
        **{
            name: Picture(record.file(f"{name}.png").content(), title)
            for name, title in plots.EFFICIENCY_TITLES.items()
        },
        "by_epsilon": Rows(rows),
    }


def _interval(row: dict[str, Any]) -> str:
    """The interval of what was sampled; where all clusters were, it has none."""
    return "" if row["low"] == row["high"] else f" ({_percent(row['low'])} to {_percent(row['high'])})"


def _percent(share: float | None) -> str:
    return "none to find" if share is None else f"{share:.2%}"


STAGE = Stage(
    name="detection_efficiency",
    step=ANALYSE,
    description="Which share of all duplicates the search within clusters finds, by epsilon (SemDeDup, appendix A.2, Table "
    "A1): the items of sampled clusters are compared with those of the 20 nearest clusters too, and of few items with all. "
    "With it, what would be found, and at which cost, if each item's next-nearest clusters were searched.",
    dimensions=("k",),
    inputs=("assignments", "centroids"),
    settings=lambda context: {
        "epsilons": sorted(
            {*context.pipeline.analyses.detection_efficiency.epsilons, *context.pipeline.own_epsilons},
        ),
        **context.pipeline.analyses.detection_efficiency.model_dump(exclude={"epsilons", "warn_below"}),
    },
    location=lambda layout, partition, _: layout.of_clustering(partition.required_clustering, "detection_efficiency"),
    worker=_worker,
    kinds=frozenset({"torch", "parquet"}),
    columns=lambda _: (
        Column("method", "string", "`neighbours`: sampled clusters and their neighbours; `all pairs`: everything."),
        Column("counted", "string", "`items` with a duplicate, or `pairs`: the duplicates of all items."),
        Column("epsilon", "float64", "More similar than 1 - epsilon is a duplicate."),
        Column("found_within", "int64", "Found within the item's own cluster."),
        Column("found_in_total", "int64", "Found in all clusters that were compared."),
        Column("eta", "float64", "Their ratio; null where there is nothing to find."),
        Column("low", "float64", "Lower end of a 95 % interval, by resampling clusters."),
        Column("high", "float64", "Upper end."),
    ),
    checks=(efficiency_is_high,),
    shown=_shown,
    on_demand=True,
    unit="clusterings",
)
