"""Read the clusters of a bucket from all shards, a bounded run of clusters at a time."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from semdedup_assets.algorithm.buckets import runs
from semdedup_assets.algorithm.budget import rows_within
from semdedup_assets.algorithm.keep_order import KeepStrategy, cluster_offsets, cluster_order, keep_priority
from semdedup_assets.settings import KeepColumn, Pipeline
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.vectors import BucketSlice, clusters_of_rows, read_bucket

# Vectors of a run, in bytes: small enough to copy out of mapped files without a thought, large enough to batch.
_RUN_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ClusterRun:
    """Consecutive clusters with the rows of all shards, sorted by cluster and within each in keep-order.

    Attributes:
        first: index of the first cluster.
        offsets: (clusters + 1,) int64, where each cluster starts.
        ids: (n,) uint64.
        centroid_similarity: (n,) float64.
        vectors: (n, d) as stored.
    """

    first: int
    offsets: np.ndarray
    ids: np.ndarray
    centroid_similarity: np.ndarray
    vectors: np.ndarray

    @property
    def cluster(self) -> np.ndarray:
        """(n,) int32, the cluster of each row."""
        return clusters_of_rows(self.offsets) + np.int32(self.first)


def bucket_runs(
    work: Work, k: str, *, bucket: int, clusters: range, only: set[int] | None = None
) -> Iterator[ClusterRun]:
    """The clusters of one bucket, a bounded run at a time; empty ones are passed over.

    Locally the shards' files are mapped, and only the rows of the run at hand are copied.

    Args:
        work: the pipeline at work.
        k: number of clusters, as the partition spells it.
        bucket: index of the bucket.
        clusters: the clusters it holds.
        only: the clusters that are wanted, each a run of its own; None: all.
    """
    if len(clusters) == 0 or (only is not None and not only):
        return
    paths = [work.layout.assignments(k, shard.name) for shard in work.shards()]
    slices = [part for path in paths if len((part := read_bucket(path, bucket=bucket, clusters=clusters)).table.ids)]
    if not slices:
        return
    sizes = np.sum([np.diff(part.offsets) for part in slices], axis=0)
    wanted: Iterable[tuple[int, int]] = (
        (cluster - clusters.start, cluster - clusters.start + 1) for cluster in sorted(only or ())
    )
    if only is None:
        row_bytes = slices[0].table.vectors.shape[1] * slices[0].table.vectors.itemsize
        wanted = runs(sizes, most=rows_within(_RUN_BYTES, row_bytes=row_bytes))
    for first, last in wanted:
        yield _in_keep_order(work.pipeline, slices, clusters.start, (first, last))


def _in_keep_order(pipeline: Pipeline, slices: list[BucketSlice], start: int, run: tuple[int, int]) -> ClusterRun:
    first, last = run
    pairs = [(part, slice(int(part.offsets[first]), int(part.offsets[last]))) for part in slices]
    ids = np.concatenate([part.table.ids[here] for part, here in pairs])
    cluster = np.concatenate([clusters_of_rows(part.offsets[first : last + 1]) for part, _ in pairs])
    similarity = np.concatenate([_column(part, "centroid_similarity")[here] for part, here in pairs])
    keep: KeepStrategy | np.ndarray
    if isinstance(pipeline.selection.keep, KeepColumn):
        value = np.concatenate([_column(part, "keep_value")[here] for part, here in pairs])
        keep = -value if pipeline.selection.keep.order == "descending" else value
    else:
        keep = pipeline.selection.keep
    priority = keep_priority(keep, centroid_similarity=similarity, ids=ids, seed=pipeline.selection.seed)
    order = cluster_order(cluster, priority=priority, ids=ids)
    vectors = np.concatenate([part.table.vectors[here] for part, here in pairs])[order]
    offsets = cluster_offsets(cluster, k=last - first)
    return ClusterRun(start + first, offsets, ids[order], similarity[order], vectors)


def _column(part: BucketSlice, name: str) -> np.ndarray:
    values: np.ndarray = part.table.columns.column(name).to_numpy(zero_copy_only=False)
    return values
