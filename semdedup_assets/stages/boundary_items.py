"""Find a shard's items that can have duplicates in other clusters, and lay them out by the clusters that they search."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Column, Stage, Worker
from semdedup_assets.kept_sets import Clustering, Repair
from semdedup_assets.stages.assignments import ASSIGNMENTS, CENTROID_SIMILARITY, FittedClustering
from semdedup_assets.stages.embeddings import ID, VECTOR
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.vectors import PartWriter, VectorTable, read_vectors, visitor_batch, visitor_schema

if TYPE_CHECKING:
    import pyarrow as pa

    from semdedup_assets.algorithm.cross_clusters import Visits

BOUNDARY = "boundary.arrow"
"""The items with the clusters that they search, in the record; one part for each range of these clusters."""

REPAIR = "3-compare"
"""The step of the stages of a repair."""


def _worker(context: StageContext) -> Worker:
    fitted: dict[Clustering, FittedClustering] = {}

    def worker(partition: Partition) -> ResultRecord:
        clustering = partition.required_clustering
        found = fitted.setdefault(clustering, FittedClustering(context, clustering))
        return find_boundary_items(context, partition, fitted=found)

    return worker


def find_boundary_items(context: StageContext, partition: Partition, *, fitted: FittedClustering) -> ResultRecord:
    """Lay out the items of a shard by the other clusters in which they search for duplicates.

    Args:
        context: of the pipeline and a selection that repairs.
        partition: a clustering and a shard.
        fitted: the centroids.

    Raises:
        MissingResultError: the shard is not assigned to today's centroids.
    """
    repair = required_repair(context)
    with context.writing("boundary_items", partition) as result:
        (assigned,) = context.index.require_consistent("assignments", partition).values()
        tables = [table for table in read_vectors(assigned.file(ASSIGNMENTS)) if len(table.ids)]
        with usage.phase("assign"):
            visits = [_visits(table, fitted, repair) for table in tables]
        schema = visitor_schema(fitted.centroids.shape[1], context.pipeline.vectors)
        ranges, rows, searched = "", 0, 0
        with usage.phase("write"), result.open(BOUNDARY, ranges=lambda: ranges) as stream:
            writer = PartWriter(stream, schema)
            for clusters in fitted.ranges:
                batch, pairs = _visitors(tables, visits, clusters, schema)
                writer.write(batch)
                rows, searched = rows + len(batch), searched + pairs
            ranges = writer.close()
        items = sum(len(table.ids) for table in tables)
        result.details = {"items": items, "rows": rows, "clusters_searched": searched}
        if items:
            result.details["clusters_searched_per_item"] = searched / items
    return result.committed


def required_repair(context: StageContext) -> Repair:
    """The repair of a context's selection.

    Raises:
        ValueError: it has none.
    """
    if context.selection.repair is None:
        message = f"selection {context.selection.label!r} has no repair; set `selection.repair`"
        raise ValueError(message)
    return context.selection.repair


def _visits(table: VectorTable, fitted: FittedClustering, repair: Repair) -> "Visits":
    from semdedup_assets.algorithm.cross_clusters import Reach, Visits
    from semdedup_assets.algorithm.unit_rows import as_tensor

    compute = fitted.context.compute
    return Visits(
        as_tensor(table.vectors).to(compute.torch_device),
        table.column("cluster"),
        fitted.centroids,
        reach=Reach(repair.most, repair.epsilon),
        budget=compute.budget,
    )


def _visitors(
    tables: list[VectorTable], visits: "list[Visits]", clusters: range, schema: "pa.Schema"
) -> "tuple[pa.RecordBatch, int]":
    """The items that search a range of clusters, each once, and how many pairs of item and cluster these are."""
    parts = list(_parts(tables, visits, clusters))
    vectors = [table.vectors[rows] for table, rows, _, _ in parts]
    width = schema.field("vector").type.list_size
    dtype = schema.field("vector").type.value_type.to_pandas_dtype()
    columns: dict[str, Any] = {
        "id": _joined([table.ids[rows] for table, rows, _, _ in parts], np.uint64),
        "cluster": _joined([table.column("cluster")[rows] for table, rows, _, _ in parts], np.int32),
        "centroid_similarity": _joined(
            [table.column("centroid_similarity")[rows] for table, rows, _, _ in parts], np.float64
        ),
    }
    counts = _joined([counts for _, _, counts, _ in parts], np.int64)
    visited = _joined([cluster for _, _, _, cluster in parts], np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    stacked = np.concatenate(vectors) if vectors else np.empty((0, width), dtype)
    return visitor_batch(schema, columns, (offsets, visited), stacked), len(visited)


def _parts(
    tables: list[VectorTable], visits: "list[Visits]", clusters: range
) -> Iterator[tuple[VectorTable, np.ndarray, np.ndarray, np.ndarray]]:
    """Of each table: it, the rows that search, how many clusters each of them, and these clusters."""
    for table, of_table in zip(tables, visits, strict=True):
        row, cluster = of_table.of(clusters)
        rows, counts = np.unique(row, return_counts=True)
        yield table, rows, counts, cluster


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype=dtype)


STAGE = Stage(
    name="boundary_items",
    step=REPAIR,
    description="A shard's items that search other clusters for duplicates: their next-nearest ones, as far as an item so "
    "near to the boundary can have a duplicate within epsilon behind it. Laid out by the clusters that they search, for one "
    "sequential read a range. Repairs what the search within clusters misses (SemDeDup, appendix A.2).",
    dimensions=("k", "shard"),
    inputs=("assignments", "centroids"),
    settings=lambda _: {},
    location=lambda layout, partition, selection: layout.boundary_items(
        partition.required_clustering, selection.repair, partition.required_shard
    ),
    worker=_worker,
    kinds=frozenset({"torch", "arrow"}),
    columns=lambda _: (
        ID,
        Column("cluster", "int32", "Index of the item's own cluster."),
        CENTROID_SIMILARITY,
        Column("visited", "list<int32>", "The other clusters that it searches, of this range."),
        VECTOR,
    ),
    selected=True,
    # Selections that search the same clusters share them.
    selection_settings=lambda selection: {"repair": str(selection.repair)},
    applies=lambda _, selection: selection.repair is not None,
    unit="shards",
)
