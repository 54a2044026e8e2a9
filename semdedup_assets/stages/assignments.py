"""Assign a shard's items to their nearest centroids, and lay them out by cluster."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from semdedup_assets.algorithm.keep_order import cluster_offsets
from semdedup_assets.algorithm.sampling import CHECKSUM_MODULUS, id_checksum
from semdedup_assets.checks.assignments import CHECKS
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Column, Stage
from semdedup_assets.kept_sets import Clustering
from semdedup_assets.stages.centroids import cluster_ranges, quantiles, read_centroids
from semdedup_assets.stages.embeddings import ID, VECTOR, VECTORS
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.vectors import PartWriter, VectorTable, assignment_batch, assignment_schema, read_vectors

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from semdedup_assets.algorithm.assignment import Assignment, NearestCentroids

ASSIGNMENTS = "assignments.arrow"
"""The rows of a shard in the order of their clusters, in the record; one part for each range of clusters."""

CENTROID_SIMILARITY = Column("centroid_similarity", "float64", "Cosine similarity to the centroid.")


@dataclass(frozen=True)
class FittedClustering:
    """The clusters that the shards of one clustering are assigned to, read once for many shards.

    Attributes:
        context: of the pipeline.
        clustering: which.
    """

    context: StageContext
    clustering: Clustering

    @cached_property
    def centroids(self) -> "torch.Tensor":
        """(k, d) float32, on the device that assigns."""
        import torch

        return torch.from_numpy(read_centroids(self.context, self.clustering)).to(self.context.compute.torch_device)

    @cached_property
    def nearest(self) -> "NearestCentroids":
        """The same, ready to be assigned to."""
        from semdedup_assets.algorithm.assignment import NearestCentroids

        return NearestCentroids(self.centroids, budget=self.context.compute.budget)

    @cached_property
    def ranges(self) -> list[range]:
        """The clusters of each range."""
        return cluster_ranges(self.context, self.clustering)


class _Worker:
    """Assigns shards; the centroids of each clustering are read once."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._fitted: dict[Clustering, FittedClustering] = {}

    def __call__(self, partition: Partition) -> ResultRecord:
        clustering = partition.required_clustering
        fitted = self._fitted.setdefault(clustering, FittedClustering(self._context, clustering))
        return assign_shard(self._context, partition, fitted=fitted)


def assign_shard(context: StageContext, partition: Partition, *, fitted: FittedClustering) -> ResultRecord:
    """Assign a shard to centroids (SemDeDup, section 3), rows in the order of their clusters.

    Args:
        context: of the pipeline.
        partition: a clustering and a shard.
        fitted: what to assign to.

    Raises:
        MissingResultError: the shard is not embedded, or the centroids are not fitted.
        ValueError: embeddings and centroids differ in dimension.
    """
    from semdedup_assets.algorithm.unit_rows import as_tensor

    inputs = context.index.input_versions("assignments", partition)
    context.index.require_consistent("centroids", Partition(clustering=partition.clustering))
    (embeddings,) = context.index.require_consistent("embeddings", Partition(shard=partition.shard)).values()
    tables, found = list[VectorTable](), list["Assignment"]()
    for table in usage.each("read", read_vectors(embeddings.file(VECTORS))):
        # While it is assigned, the next part is on its way from an object store.
        with usage.phase("assign"):
            found.append(fitted.nearest.assign(as_tensor(table.vectors)))
        tables.append(table)
    rows = _Rows(
        ids=_joined([table.ids for table in tables], np.uint64),
        cluster=_joined([part.cluster for part in found], np.int32),
        similarity=_joined([part.similarity for part in found], np.float64),
    )
    offsets = cluster_offsets(rows.cluster, k=len(fitted.centroids))
    schema = assignment_schema(fitted.centroids.shape[1], context.pipeline.vectors)
    items, checksum, ranges = 0, 0, ""
    with context.writing("assignments", partition, inputs=inputs) as result:
        with usage.phase("write"), result.open(ASSIGNMENTS, ranges=lambda: ranges) as stream:
            writer = PartWriter(stream, schema)
            for batch in _batches(rows, tables, offsets, fitted.ranges, schema):
                writer.write(batch)
                # Of what is written, not of what was meant: the checks hold it against the embeddings'.
                items += len(batch)
                checksum = (checksum + id_checksum(batch.column("id").to_numpy())) % CHECKSUM_MODULUS
            ranges = writer.close()
        sizes = np.diff(offsets)
        result.details = {
            "items": items,
            "id_checksum": checksum,
            "clusters_met": int((sizes > 0).sum()),
            "largest_cluster": int(sizes.max(initial=0)),
            "similarity_to_centroid": quantiles(rows.similarity),
            "similarity_to_centroid_mean": float(rows.similarity.mean()) if len(rows.ids) else None,
        }
    return result.committed


@dataclass(frozen=True, slots=True)
class _Rows:
    """A shard's rows in the order of the source: (n,) each."""

    ids: np.ndarray
    cluster: np.ndarray
    similarity: np.ndarray


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype=dtype)


def _batches(
    rows: _Rows, tables: list[VectorTable], offsets: np.ndarray, ranges: list[range], schema: "pa.Schema"
) -> Iterator["pa.RecordBatch"]:
    """One record batch for each range of clusters, so that memory holds one range's rows at a time."""
    order = np.lexsort((rows.ids, rows.cluster))
    starts = np.concatenate([[0], np.cumsum([len(table.ids) for table in tables])]).astype(np.int64)
    width = schema.field("vector").type.list_size
    dtype = schema.field("vector").type.value_type.to_pandas_dtype()
    for clusters in ranges:
        chosen = order[offsets[clusters.start] : offsets[clusters.stop]]
        vectors = np.empty((len(chosen), width), dtype=dtype)
        for table, start, stop in zip(tables, starts[:-1], starts[1:], strict=True):
            here = (chosen >= start) & (chosen < stop)
            vectors[here] = table.vectors[chosen[here] - start]
        yield assignment_batch(schema, rows.ids[chosen], rows.cluster[chosen], rows.similarity[chosen], vectors)


STAGE = Stage(
    name="assignments",
    step="2-cluster",
    description="Each item's nearest centroid by cosine similarity (SemDeDup, section 3). Holds the shard's ids, "
    "similarities to the centroid and vectors in the order of their clusters, for one sequential read a bucket.",
    dimensions=("k", "shard"),
    inputs=("embeddings", "centroids"),
    settings=lambda _: {},
    location=lambda layout, partition, _: layout.assignments(partition.required_clustering, partition.required_shard),
    worker=_Worker,
    kinds=frozenset({"torch", "arrow"}),
    columns=lambda _: (ID, Column("cluster", "int32", "Index of the nearest centroid."), CENTROID_SIMILARITY, VECTOR),
    checks=CHECKS,
    unit="shards",
)
