"""Fit centroids to the training sample."""

import io
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.algorithm.cluster_ranges import plan_ranges, predicted_pairs, range_count
from semdedup_assets.algorithm.sampling import id_hash
from semdedup_assets.checks.centroids import CHECKS, larger_sample
from semdedup_assets.execution import progress, usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Column, Picture, Shown, Stage, Worker
from semdedup_assets.kept_sets import Clustering
from semdedup_assets.stages.training_sample import SAMPLE
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.scratch import scratch_array
from semdedup_assets.storage.tables import read_table, write_table
from semdedup_assets.storage.vectors import read_vectors

if TYPE_CHECKING:
    from semdedup_assets.algorithm.kmeans import Centroids

CENTROIDS, CLUSTERS = "centroids.npy", "clusters.parquet"
"""The files of a fit, in its record."""


def _worker(context: StageContext) -> Worker:
    return lambda partition: fit_centroids(context, partition)


def fit_centroids(context: StageContext, partition: Partition) -> ResultRecord:
    """Fit k centroids by spherical k-means (SemDeDup, section 3 and appendix G), and plan ranges of clusters.

    Raises:
        MissingResultError: the training sample has not been drawn.
    """
    from semdedup_assets.algorithm.kmeans import spherical_kmeans, suggest_k

    clustering, settings = partition.required_clustering, context.pipeline.clustering
    (sample,) = context.index.require_consistent("training_sample").values()
    items = int(sample.details["items"])
    k = suggest_k(items) if clustering.k == "auto" else int(clustering.k)
    rows = _rows_for(context, sample, k)
    wanted = context.pipeline.training_sample.wanted_per_cluster
    if len(rows) < min(wanted * k, items):
        progress.log(
            f"centroids {clustering}: {len(rows):,} sampled vectors are {len(rows) / k:.1f} a cluster, where {wanted} are "
            f"wanted; {larger_sample(context)}"
        )
    with usage.phase("fit"):
        fit = spherical_kmeans(
            rows,
            k=k,
            iterations=context.pipeline.iterations,
            seed=clustering.seed,
            engine=settings.engine,
            devices=context.compute.torch_devices,
            budget=context.compute.budget,
        )
    row_bytes = rows.shape[1] * rows.dtype.itemsize
    bounds = plan_ranges(fit.sizes, ranges=range_count(items, k=fit.k, row_bytes=row_bytes))
    with context.writing("centroids", partition) as result:
        with result.open(CENTROIDS) as stream:
            stream.write(_npy(fit.vectors))
        with result.open(CLUSTERS) as stream:
            ranges = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
            write_table(stream, {"cluster": np.arange(fit.k), "sample_items": fit.sizes, "range": ranges})
        result.details = _details(fit, items=items, sample=len(rows), requested=k)
        result.details |= {"ranges": len(bounds) - 1, "wanted_per_cluster": wanted}
    return result.committed


def _rows_for(context: StageContext, sample: ResultRecord, k: int) -> np.ndarray:
    """(m, d) the sampled vectors that a fit of k clusters uses: those with the smallest hashes, by id."""
    # The sample is written as one batch: mapped, and copied only as far as it is used.
    (table,) = read_vectors(sample.file(SAMPLE))
    ids, vectors = table.ids, table.vectors
    setting = context.pipeline.training_sample
    count = setting.fitted(len(ids), k=k)
    if count == len(ids):
        return vectors
    wanted = np.argpartition(id_hash(ids, seed=setting.seed), count)[:count]
    chosen = scratch_array((len(wanted), vectors.shape[1]), vectors.dtype, budget=context.compute.budget)
    # Without a mode, `take` would fill another array first.
    return vectors.take(np.sort(wanted), axis=0, out=chosen, mode="clip")


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def quantiles(values: Any) -> dict[str, float]:
    """Least, median, 90 %, 99 % and greatest of some numbers; empty where there are none."""
    if len(values) == 0:
        return {}
    levels = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: float(np.quantile(values, level)) for name, level in levels.items()}


def _details(fit: "Centroids", *, items: int, sample: int, requested: int) -> dict[str, Any]:
    from semdedup_assets.algorithm.kmeans import suggest_k

    largest = float(fit.sizes.max()) / sample * items
    return {
        "k": fit.k,
        "requested_k": requested,
        "k_suggested": suggest_k(items),
        "sample": sample,
        "sample_per_cluster": sample / fit.k,
        "items_per_cluster": items / fit.k,
        "largest_cluster_predicted": round(largest),
        "pairs_predicted": predicted_pairs(fit.sizes, items=items),
        "empty_clusters": fit.empty,
        "cluster_sizes_in_sample": quantiles(fit.sizes),
        "objective": [float(value) for value in fit.objective],
        "dimension": int(fit.vectors.shape[1]),
    }


def read_centroids(context: StageContext, clustering: Clustering) -> np.ndarray:
    """(k, d) float32 unit rows.

    Raises:
        MissingResultError: they have not been fitted.
    """
    record = context.index.require("centroids", Partition(clustering=clustering))
    array: np.ndarray = np.load(io.BytesIO(record.file(CENTROIDS).content()))
    return array


def cluster_ranges(context: StageContext, clustering: Clustering) -> list[range]:
    """The ranges of clusters in which results are stored, as planned when the centroids were fitted.

    Raises:
        MissingResultError: they have not been fitted.
    """
    record = context.index.require("centroids", Partition(clustering=clustering))
    of_cluster = read_table(record.file(CLUSTERS), ["range"])["range"]
    bounds = np.searchsorted(of_cluster, np.arange(int(record.details["ranges"]) + 1))
    return [range(int(start), int(stop)) for start, stop in pairwise(bounds)]


def _shown(_: StageContext, partition: Partition, record: ResultRecord) -> dict[str, Shown]:
    from semdedup_assets.rendering.plots import convergence

    title = f"k-means, {partition.required_clustering.label}"
    curve = convergence(record.details["objective"], title=title)
    return {"convergence": Picture(curve, "mean similarity to the centroid by iteration")}


STAGE = Stage(
    name="centroids",
    step="2-cluster",
    description="k centroids (k × d, float32, unit norm) by spherical k-means on the training sample (SemDeDup, section "
    "3, appendix G), with the clusters' sizes in the sample, and the ranges of clusters in which results are stored.",
    dimensions=("k",),
    inputs=("training_sample",),
    settings=lambda context: {
        "engine": context.pipeline.clustering.engine,
        "iterations": context.pipeline.iterations,
        "per_cluster": context.pipeline.training_sample.per_cluster,
    },
    location=lambda layout, partition, _: layout.centroids(partition.required_clustering),
    worker=_worker,
    kinds=frozenset({"faiss", "numpy"}),
    columns=lambda _: (
        Column("cluster", "int64", "Index of the cluster."),
        Column("sample_items", "int64", "Vectors of the sample nearest to its centroid."),
        Column("range", "int64", "Index of the range of clusters in whose results it lies."),
    ),
    checks=CHECKS,
    shown=_shown,
    unit="fits",
)
