"""Read the clusters of a bucket from all shards, a bounded run of clusters at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from semdedup_assets.algorithm.keep_order import KeepStrategy, cluster_order, keep_priority
from semdedup_assets.settings import KeepColumn, Pipeline
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.vectors import BucketSlice, read_bucket


@dataclass(frozen=True, slots=True)
class Cluster:
    """One cluster with the rows of all shards, in keep-order.

    Attributes:
        cluster: index.
        ids: (n,) uint64.
        centroid_similarity: (n,) float64.
        vectors: (n, d) as stored.
    """

    cluster: int
    ids: np.ndarray
    centroid_similarity: np.ndarray
    vectors: np.ndarray


def bucket_clusters(
    work: Work, k: str, *, bucket: int, clusters: range, only: set[int] | None = None
) -> Iterator[Cluster]:
    """The clusters of one bucket in turn; empty ones are passed over.

    Locally the shards' files are mapped, and only the rows of the cluster at hand are copied.

    Args:
        work: the pipeline at work.
        k: number of clusters, as the partition spells it.
        bucket: index of the bucket.
        clusters: the clusters it holds.
        only: the clusters that are wanted; None: all.
    """
    if only is not None and not only:
        return
    paths = [work.layout.assignments(k, shard.name) for shard in work.shards()]
    slices = [part for path in paths if len((part := read_bucket(path, bucket=bucket, clusters=clusters)).table.ids)]
    for index, cluster in enumerate(clusters):
        if only is not None and cluster not in only:
            continue
        parts = [part for part in slices if part.offsets[index] < part.offsets[index + 1]]
        if parts:
            yield _in_keep_order(work.pipeline, cluster, parts, index)


def _in_keep_order(pipeline: Pipeline, cluster: int, parts: list[BucketSlice], index: int) -> Cluster:
    rows = [slice(int(part.offsets[index]), int(part.offsets[index + 1])) for part in parts]
    pairs = list(zip(parts, rows, strict=True))
    ids = np.concatenate([part.table.ids[here] for part, here in pairs])
    similarity = np.concatenate([_column(part, "centroid_similarity")[here] for part, here in pairs])
    keep: KeepStrategy | np.ndarray
    if isinstance(pipeline.selection.keep, KeepColumn):
        value = np.concatenate([_column(part, "keep_value")[here] for part, here in pairs])
        keep = -value if pipeline.selection.keep.order == "descending" else value
    else:
        keep = pipeline.selection.keep
    priority = keep_priority(keep, centroid_similarity=similarity, ids=ids, seed=pipeline.selection.seed)
    order = cluster_order(np.zeros(len(ids), dtype=np.int8), priority=priority, ids=ids)
    vectors = np.concatenate([part.table.vectors[here] for part, here in pairs])[order]
    return Cluster(cluster, ids[order], similarity[order], vectors)


def _column(part: BucketSlice, name: str) -> np.ndarray:
    values: np.ndarray = part.table.columns.column(name).to_numpy(zero_copy_only=False)
    return values
