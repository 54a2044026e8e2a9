"""Fit centroids to the training sample."""

import io
from itertools import pairwise
from typing import Any

import numpy as np

from semdedup_assets.algorithm.buckets import plan_buckets, predicted_pairs
from semdedup_assets.algorithm.kmeans import Centroids, spherical_kmeans, suggest_k
from semdedup_assets.algorithm.sampling import FEWEST_PER_CLUSTER, id_hash
from semdedup_assets.stages.work import Work, quantiles
from semdedup_assets.storage.files import read_bytes
from semdedup_assets.storage.results import Recipe, read_recipe
from semdedup_assets.storage.scratch import scratch_array
from semdedup_assets.storage.tables import read_table, write_table
from semdedup_assets.storage.vectors import read_vectors


def fit_centroids(work: Work, k: str) -> Recipe:
    """Fit k centroids by spherical k-means (SemDeDup, section 3 and appendix G), and plan the buckets.

    Args:
        work: the pipeline at work.
        k: number of clusters, or `auto`.

    Raises:
        MissingResultError: the training sample has not been drawn.
    """
    work.measures.restart()
    sample = read_recipe(work.layout.training_sample, cure=work.cure("training_sample"))
    items = int(sample.details["items"])
    count = suggest_k(items) if k == "auto" else int(k)
    rows = _rows_for(work, count)
    if len(rows) < FEWEST_PER_CLUSTER * count and len(rows) < items:
        work.log(
            f"centroids {k}: {len(rows):,} sampled vectors are {len(rows) / count:.1f} a cluster, and fewer than "
            f"{FEWEST_PER_CLUSTER} place centroids poorly; raise training_sample.size and set `refit`"
        )
    settings = work.pipeline.clustering
    with work.measures.phase("fit"):
        fit = spherical_kmeans(
            rows,
            k=count,
            iterations=work.pipeline.iterations,
            seed=settings.seed,
            engine=settings.engine,
            budget=work.compute.budget,
        )
    bounds = plan_buckets(fit.sizes, buckets=settings.buckets)
    made_from = {"training_sample": sample.version}
    with work.writing("centroids", work.layout.centroids(k), made_from=made_from) as result:
        with result.open(work.layout.centroids(k)) as stream:
            stream.write(_npy(fit.vectors))
        with result.open(work.layout.clusters(k)) as stream:
            bucket = np.repeat(np.arange(settings.buckets), np.diff(bounds))
            write_table(stream, {"cluster": np.arange(fit.k), "sample_items": fit.sizes, "bucket": bucket})
        result.details = _details(fit, items=items, sample=len(rows), asked=count)
    return result.recipe()


def _rows_for(work: Work, k: int) -> np.ndarray:
    """(m, d) the sampled vectors that a fit of k clusters uses: those with the smallest hashes, by id."""
    # The sample is written as one batch: mapped, and copied only as far as it is used.
    (table,) = read_vectors(work.layout.training_sample)
    ids, vectors = table.ids, table.vectors
    setting = work.pipeline.training_sample
    if setting.per_cluster == "all" or len(ids) <= k * setting.per_cluster:
        return vectors
    wanted = np.argpartition(id_hash(ids, seed=setting.seed), k * setting.per_cluster)[: k * setting.per_cluster]
    chosen = scratch_array((len(wanted), vectors.shape[1]), vectors.dtype, budget=work.compute.budget)
    # Without a mode, `take` would fill another array first.
    return vectors.take(np.sort(wanted), axis=0, out=chosen, mode="clip")


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _details(fit: Centroids, *, items: int, sample: int, asked: int) -> dict[str, Any]:
    largest = float(fit.sizes.max()) / sample * items
    return {
        "k": fit.k,
        "k_asked": asked,
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


def read_centroids(work: Work, k: str) -> np.ndarray:
    """(k, d) float32 unit rows.

    Raises:
        MissingResultError: they have not been fitted.
    """
    work.centroids(k)
    array: np.ndarray = np.load(io.BytesIO(read_bytes(work.layout.centroids(k))))
    return array


def bucket_ranges(work: Work, k: str) -> list[range]:
    """The clusters of each bucket, as planned when the centroids were fitted."""
    work.centroids(k)
    table = read_table(work.layout.clusters(k), ["bucket"])
    bounds = np.searchsorted(table["bucket"], np.arange(work.pipeline.clustering.buckets + 1))
    return [range(int(start), int(stop)) for start, stop in pairwise(bounds)]
