"""Assign a shard's items to their nearest centroids, and lay them out by cluster."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from semdedup_assets.algorithm.assignment import NearestCentroids
from semdedup_assets.algorithm.keep_order import cluster_offsets
from semdedup_assets.algorithm.sampling import CHECKSUM_MODULUS, id_checksum
from semdedup_assets.algorithm.unit_rows import as_tensor
from semdedup_assets.stages.centroids import bucket_ranges, read_centroids
from semdedup_assets.stages.work import Work, quantiles
from semdedup_assets.storage.results import Recipe
from semdedup_assets.storage.vectors import (
    VectorTable,
    assignment_batch,
    assignment_schema,
    read_vectors,
    write_assignments,
)

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class FittedClusters:
    """The clusters that the shards of one k are assigned to, read once for many shards.

    Attributes:
        work: the pipeline at work.
        k: number of clusters, as the partition spells it.
    """

    work: Work
    k: str

    @cached_property
    def version(self) -> str:
        """Version of the centroids."""
        return self.work.centroids(self.k).version

    @cached_property
    def centroids(self) -> torch.Tensor:
        """(k, d) float32, on the device that does the work."""
        return torch.from_numpy(read_centroids(self.work, self.k)).to(self.work.compute.torch_device)

    @cached_property
    def nearest(self) -> NearestCentroids:
        """The same, ready to be assigned to."""
        return NearestCentroids(self.centroids, budget=self.work.compute.budget)

    @cached_property
    def buckets(self) -> list[range]:
        """The clusters of each bucket."""
        return bucket_ranges(self.work, self.k)


def assign_shard(work: Work, shard: str, *, clusters: FittedClusters) -> Recipe:
    """Assign a shard to the centroids of one k (SemDeDup, section 3), rows in the order of their clusters.

    Args:
        work: the pipeline at work.
        shard: name of the shard.
        clusters: what to assign to.

    Raises:
        MissingResultError: the shard is not embedded, or the centroids are not fitted.
        ValueError: embeddings and centroids differ in dimension.
    """
    work.measures.restart()
    embeddings = work.embeddings(shard)
    tables = list(work.measures.each("read", read_vectors(work.layout.embeddings(shard))))
    with work.measures.phase("assign"):
        parts = [clusters.nearest.assign(as_tensor(table.vectors)) for table in tables]
    rows = _Rows(
        ids=_joined([table.ids for table in tables], np.uint64),
        cluster=_joined([part.cluster for part in parts], np.int32),
        similarity=_joined([part.similarity for part in parts], np.float64),
        keep_value=None if work.pipeline.keep_column is None else _column(tables, work.pipeline.keep_column),
    )
    offsets = cluster_offsets(rows.cluster, k=len(clusters.centroids))
    schema = assignment_schema(
        clusters.centroids.shape[1], work.pipeline.vectors, keep_column=rows.keep_value is not None
    )
    path = work.layout.assignments(clusters.k, shard)
    made_from = {"embeddings": embeddings.version, "centroids": clusters.version}
    written = _Written()
    with work.writing("assignments", path, made_from=made_from) as result:
        with work.measures.phase("write"), result.open(path) as stream:
            batches = written.counted(_batches(rows, tables, offsets, clusters.buckets, schema))
            write_assignments(stream, batches, schema=schema, offsets=offsets)
        result.details = _details(rows, offsets, written)
    return result.recipe()


@dataclass(frozen=True, slots=True)
class _Rows:
    """A shard's rows in the order of the source: (n,) each."""

    ids: np.ndarray
    cluster: np.ndarray
    similarity: np.ndarray
    keep_value: np.ndarray | None


@dataclass
class _Written:
    """How many items were written, and their checksum: what the checks hold against the embeddings'."""

    items: int = 0
    checksum: int = 0

    def counted(self, batches: Iterable["pa.RecordBatch"]) -> Iterator["pa.RecordBatch"]:
        for batch in batches:
            self.items += len(batch)
            self.checksum = (self.checksum + id_checksum(batch.column("id").to_numpy())) % CHECKSUM_MODULUS
            yield batch


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype=dtype)


def _column(tables: list[VectorTable], name: str) -> np.ndarray:
    """(n,) float64, NaN where the source has no value."""
    import pyarrow as pa

    return _joined(
        [table.columns.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False) for table in tables], np.float64
    )


def _batches(
    rows: _Rows, tables: list[VectorTable], offsets: np.ndarray, buckets: list[range], schema: "pa.Schema"
) -> Iterator["pa.RecordBatch"]:
    """One record batch a bucket, so that memory holds one bucket's rows at a time."""
    order = np.lexsort((rows.ids, rows.cluster))
    starts = np.concatenate([[0], np.cumsum([len(table.ids) for table in tables])]).astype(np.int64)
    width = schema.field("vector").type.list_size
    dtype = schema.field("vector").type.value_type.to_pandas_dtype()
    for clusters in buckets:
        chosen = order[offsets[clusters.start] : offsets[clusters.stop]]
        vectors = np.empty((len(chosen), width), dtype=dtype)
        for table, start, stop in zip(tables, starts[:-1], starts[1:], strict=True):
            here = (chosen >= start) & (chosen < stop)
            vectors[here] = table.vectors[chosen[here] - start]
        value = None if rows.keep_value is None else rows.keep_value[chosen]
        yield assignment_batch(schema, rows.ids[chosen], rows.similarity[chosen], value, vectors)


def _details(rows: _Rows, offsets: np.ndarray, written: _Written) -> dict[str, Any]:
    sizes = np.diff(offsets)
    return {
        "items": written.items,
        "id_checksum": written.checksum,
        "clusters_met": int((sizes > 0).sum()),
        "largest_cluster": int(sizes.max(initial=0)),
        "similarity_to_centroid": quantiles(rows.similarity),
        "similarity_to_centroid_mean": float(rows.similarity.mean()) if len(rows.ids) else None,
    }
