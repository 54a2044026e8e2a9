"""Read the clusters of a range from all shards, a bounded batch of clusters at a time, in keep-order."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from semdedup_assets.algorithm.budget import rows_within
from semdedup_assets.algorithm.cluster_ranges import cluster_batches
from semdedup_assets.algorithm.keep_order import (
    ClusteredItems,
    KeepOrder,
    cluster_offsets,
    cluster_order,
    descending,
    keep_keys,
)
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.kept_sets import Clustering, KeepColumn
from semdedup_assets.records import id_rows, positions_by_shard
from semdedup_assets.stages.assignments import ASSIGNMENTS
from semdedup_assets.stages.centroids import cluster_ranges
from semdedup_assets.stages.items import item_values
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.vectors import VectorTable, clusters_of_rows, read_part

# Vectors of a batch, in bytes: small enough to copy out of mapped files without a thought, large enough to compare fast.
_BATCH_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ClusterBatch:
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


@dataclass(frozen=True)
class AssignedClusters:
    """The clusters of one clustering, as all shards are assigned to them; what is looked up is looked up once.

    Attributes:
        context: of the pipeline and the selection, which orders the items of a cluster.
        clustering: which.
    """

    context: StageContext
    clustering: Clustering

    @cached_property
    def ranges(self) -> list[range]:
        """The clusters of each range."""
        return cluster_ranges(self.context, self.clustering)

    @cached_property
    def _records(self) -> dict[Partition, ResultRecord]:
        return self.context.index.require_consistent("assignments", Partition(clustering=self.clustering))

    @cached_property
    def _keep_values(self) -> dict[int, np.ndarray]:
        """The column that orders items, by shard index: read once for all ranges."""
        column, index = self.context.selection.column, self.context.index
        shards = {shard.name: shard.index for shard in self.context.shards}
        return {
            shards[partition.required_shard]: item_values(record, column)
            for partition, record in index.require_all("items").items()
            if column is not None and record.excluded is None
        }

    def batches(self, cluster_range: int, *, only: set[int] | None = None) -> Iterator[ClusterBatch]:
        """The clusters of one range, a bounded batch at a time; empty ones are passed over.

        Locally the shards' files are mapped, and only the rows of the batch at hand are copied.

        Args:
            cluster_range: index of the range.
            only: the clusters that are wanted, each a batch of its own; None: all.

        Raises:
            MissingResultError: a shard is not assigned to today's centroids.
        """
        clusters = self.ranges[cluster_range]
        if len(clusters) == 0 or (only is not None and not only):
            return
        read = (read_part(record.file(ASSIGNMENTS), cluster_range) for record in self._records.values())
        slices = [_Slice.of(table, clusters) for table in read if len(table.ids)]
        if not slices:
            return
        wanted: Iterable[tuple[int, int]] = (
            (cluster - clusters.start, cluster - clusters.start + 1) for cluster in sorted(only or ())
        )
        if only is None:
            sizes = np.sum([np.diff(part.offsets) for part in slices], axis=0)
            row_bytes = slices[0].table.vectors.shape[1] * slices[0].table.vectors.itemsize
            wanted = cluster_batches(sizes, most=rows_within(_BATCH_BYTES, row_bytes=row_bytes))
        for first, last in wanted:
            yield self._in_keep_order(slices, clusters.start, (first, last))

    def _in_keep_order(self, slices: "list[_Slice]", start: int, batch: tuple[int, int]) -> ClusterBatch:
        first, last = batch
        pairs = [(part.table, slice(int(part.offsets[first]), int(part.offsets[last]))) for part in slices]
        ids = np.concatenate([table.ids[here] for table, here in pairs])
        cluster = np.concatenate([table.column("cluster")[here] for table, here in pairs]) - (start + first)
        similarity = np.concatenate([table.column("centroid_similarity")[here] for table, here in pairs])
        selection = self.context.selection
        keys = keep_keys(self.order_of(ids), ClusteredItems(ids, cluster, similarity), seed=selection.seed)
        order = cluster_order(cluster, keys=keys, ids=ids)
        vectors = np.concatenate([table.vectors[here] for table, here in pairs])[order]
        offsets = cluster_offsets(cluster, k=last - first)
        return ClusterBatch(start + first, offsets, ids[order], similarity[order], vectors)

    def order_of(self, ids: np.ndarray) -> "KeepOrder":
        """What orders some items, of whatever clusters, for `keep_keys`."""
        selection = self.context.selection
        if not isinstance(selection.keep, KeepColumn):
            return [selection.keep]
        values = self._values_of(ids)
        return [descending(values) if selection.keep.order == "descending" else values]

    def _values_of(self, ids: np.ndarray) -> np.ndarray:
        """(n,) the ordering column's value of each item; where it has none, masked."""
        values, rows = self._keep_values, id_rows(ids)
        dtype = next((each.dtype for each in values.values()), np.dtype(np.float64))
        found = np.ma.masked_array(np.zeros(len(ids), dtype), mask=True)
        for shard, positions in positions_by_shard(ids):
            if shard in values:
                found[positions] = values[shard][rows[positions]]
        return found


class AssignedClusterings:
    """The clusters of several clusterings, each looked up once however many tasks read it."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._found: dict[Clustering, AssignedClusters] = {}

    def __getitem__(self, clustering: Clustering) -> AssignedClusters:
        return self._found.setdefault(clustering, AssignedClusters(self._context, clustering))


@dataclass(frozen=True, slots=True)
class _Slice:
    """What one shard holds of one range: rows, and where each cluster of the range starts among them."""

    table: VectorTable
    offsets: np.ndarray

    @classmethod
    def of(cls, table: VectorTable, clusters: range) -> "_Slice":
        return cls(table, np.searchsorted(table.column("cluster"), np.arange(clusters.start, clusters.stop + 1)))
