"""Read the clusters of a range from all shards, a bounded batch of clusters at a time, in keep-order."""

from collections.abc import Iterable, Iterator, Sequence
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
    overtaken_by_protected,
)
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.kept_sets import Clustering, KeepColumn, Selection
from semdedup_assets.records import id_rows, positions_by_shard
from semdedup_assets.stages.assignments import ASSIGNMENTS
from semdedup_assets.stages.centroids import cluster_ranges
from semdedup_assets.stages.items import item_values
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.vectors import VectorTable, clusters_of_rows, read_parts

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
        overtaken: (n,) int64, how many unprotected items of its cluster a protected item overtakes by being protected;
            -1 of unprotected ones; None where the selection protects none.
    """

    first: int
    offsets: np.ndarray
    ids: np.ndarray
    centroid_similarity: np.ndarray
    vectors: np.ndarray
    overtaken: np.ndarray | None = None

    @property
    def cluster(self) -> np.ndarray:
        """(n,) int32, the cluster of each row."""
        return clusters_of_rows(self.offsets) + np.int32(self.first)


class KeepValues:
    """What orders the items of a selection: read once for all of them."""

    def __init__(self, context: StageContext) -> None:
        self._context = context

    @property
    def selection(self) -> Selection:
        """Whose order it is."""
        return self._context.selection

    def order_of(self, ids: np.ndarray) -> KeepOrder:
        """What orders some items, as `keep_keys` takes it; of which protected ones come first.

        Args:
            ids: (n,) uint64, in any order.
        """
        protected = self.protected(ids)
        return [*([] if protected is None else [~protected]), *self.unprotected_order_of(ids)]

    def unprotected_order_of(self, ids: np.ndarray) -> KeepOrder:
        """What would order some items if none were protected."""
        return [
            self._of_column(each, ids) if isinstance(each, KeepColumn) else each for each in self.selection.criteria
        ]

    def protected(self, ids: np.ndarray) -> np.ndarray | None:
        """(n,) bool, which of some items are protected; None where the selection protects none."""
        if self.selection.protect is None:
            return None
        found = self._values(self._flags, ids)
        protected: np.ndarray = np.ma.getdata(found).astype(bool) & ~np.ma.getmaskarray(found)
        return protected

    def _of_column(self, keep: KeepColumn, ids: np.ndarray) -> np.ndarray:
        values = self._values(self._columns[keep.column], ids)
        return descending(values) if keep.values is None and keep.order == "descending" else values

    @cached_property
    def _columns(self) -> dict[str, dict[int, np.ndarray]]:
        """The values of each column that orders items, by shard index."""
        ordering = [each for each in self.selection.criteria if isinstance(each, KeepColumn)]
        return {each.column: self._read(each.column, each.values) for each in ordering}

    @cached_property
    def _flags(self) -> dict[int, np.ndarray]:
        return self._read(self.selection.protect or "", None)

    def _read(self, column: str, ranked: Sequence[str] | None) -> dict[int, np.ndarray]:
        index = self._context.index
        shards = {shard.name: shard.index for shard in self._context.shards}
        return {
            shards[partition.required_shard]: item_values(record, column, ranked=ranked)
            for partition, record in index.require_all("items").items()
            if record.excluded is None
        }

    @staticmethod
    def _values(values: dict[int, np.ndarray], ids: np.ndarray) -> np.ndarray:
        """(n,) a column's value of each item; where it has none, masked."""
        rows = id_rows(ids)
        dtype = next((each.dtype for each in values.values()), np.dtype(np.float64))
        found = np.ma.masked_array(np.zeros(len(ids), dtype), mask=True)
        for shard, positions in positions_by_shard(ids):
            if shard in values:
                found[positions] = values[shard][rows[positions]]
        return found


@dataclass(frozen=True, slots=True)
class ClusterRows:
    """Consecutive clusters with the rows of all shards, in no order: every selection has its own.

    Attributes:
        first: index of the first cluster.
        clusters: how many there are.
        ids: (n,) uint64.
        cluster: (n,) integers, counted from the first.
        centroid_similarity: (n,) float64.
        vectors: (n, d) as stored.
    """

    first: int
    clusters: int
    ids: np.ndarray
    cluster: np.ndarray
    centroid_similarity: np.ndarray
    vectors: np.ndarray

    def in_keep_order(self, keep: KeepValues) -> ClusterBatch:
        """The rows in the order of a selection."""
        seed, items = keep.selection.seed, ClusteredItems(self.ids, self.cluster, self.centroid_similarity)
        keys = keep_keys(keep.unprotected_order_of(self.ids), items, seed=seed)
        protected, overtaken = keep.protected(self.ids), None
        if protected is not None:
            plain = cluster_order(self.cluster, keys=keys, ids=self.ids)
            overtaken = overtaken_by_protected(self.cluster, plain, protected)
            keys = (~protected, *keys)
        order = cluster_order(self.cluster, keys=keys, ids=self.ids)
        return ClusterBatch(
            self.first,
            cluster_offsets(self.cluster, k=self.clusters),
            self.ids[order],
            self.centroid_similarity[order],
            self.vectors[order],
            None if overtaken is None else overtaken[order],
        )


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
    def keep(self) -> KeepValues:
        """What orders the items of a cluster."""
        return KeepValues(self.context)

    def batches(self, cluster_range: int, *, only: set[int] | None = None) -> Iterator[ClusterBatch]:
        """The clusters of one range in keep-order, as `rows` gives them.

        Args:
            cluster_range: index of the range.
            only: the clusters that are wanted, each a batch of its own; None: all.

        Raises:
            MissingResultError: a shard is not assigned to today's centroids.
        """
        return (rows.in_keep_order(self.keep) for rows in self.rows(cluster_range, only=only))

    def rows(self, cluster_range: int, *, only: set[int] | None = None) -> Iterator[ClusterRows]:
        """The clusters of one range, a bounded batch at a time; empty ones are passed over.

        Locally the shards' files are mapped, and only the rows of the batch at hand are copied. Of an object store all
        parts of the range are fetched at once and held: about 256 MiB, more where 512 ranges share more than 128 GiB.

        Args:
            cluster_range: index of the range.
            only: the clusters that are wanted, each a batch of its own; None: all.

        Raises:
            MissingResultError: a shard is not assigned to today's centroids.
        """
        clusters = self.ranges[cluster_range]
        if len(clusters) == 0 or (only is not None and not only):
            return
        read = read_parts([record.file(ASSIGNMENTS) for record in self._records.values()], cluster_range)
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
            pairs = [(part.table, slice(int(part.offsets[first]), int(part.offsets[last]))) for part in slices]
            yield ClusterRows(
                clusters.start + first,
                last - first,
                np.concatenate([table.ids[here] for table, here in pairs]),
                np.concatenate([table.column("cluster")[here] for table, here in pairs]) - (clusters.start + first),
                np.concatenate([table.column("centroid_similarity")[here] for table, here in pairs]),
                np.concatenate([table.vectors[here] for table, here in pairs]),
            )


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
