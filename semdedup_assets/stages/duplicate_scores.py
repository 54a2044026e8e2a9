"""Score the clusters of a bucket: the greatest similarity of each item to an earlier one."""

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.algorithm.sampling import CHECKSUM_MODULUS, id_checksum
from semdedup_assets.checks.duplicate_scores import CHECKS
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Column, Stage, Worker
from semdedup_assets.kept_sets import Clustering, Selection
from semdedup_assets.settings import Pipeline
from semdedup_assets.stages.assignments import CENTROID_SIMILARITY
from semdedup_assets.stages.centroids import quantiles
from semdedup_assets.stages.cluster_batches import AssignedClusterings, AssignedClusters, ClusterBatch
from semdedup_assets.stages.embeddings import ID
from semdedup_assets.storage.layout import Layout
from semdedup_assets.storage.results import ResultRecord, StoredFile, fingerprint
from semdedup_assets.storage.tables import TableWriter

if TYPE_CHECKING:
    from collections.abc import Mapping

SCORES = "scores.parquet"
"""The scores of a range of clusters, in its record: by cluster, and within each in keep-order."""

COLUMNS = (
    ID,
    Column("cluster", "int32", "Index of the item's cluster."),
    CENTROID_SIMILARITY,
    Column("similarity", "float32", "Greatest cosine similarity to an earlier item; -inf for the first."),
    Column("duplicate_of", "uint64", "That earlier item; null for the first."),
)
"""Of the scores, repaired or not."""

# Rows of a Parquet row group: large enough to compress well, small enough to be held a few times over.
_ROW_GROUP = 1 << 18
_EPSILONS = ("0.001", "0.01", "0.05", "0.1", "0.2")


def _worker(context: StageContext) -> Worker:
    clusterings = AssignedClusterings(context)
    return lambda partition: score_range(context, partition, assigned=clusterings[partition.required_clustering])


def score_range(context: StageContext, partition: Partition, *, assigned: AssignedClusters) -> ResultRecord:
    """Score the clusters of a range (SemDeDup, Alg. A7): one pass that serves every epsilon.

    Args:
        context: of the pipeline and the selection.
        partition: a clustering and a range of clusters.
        assigned: the clusters.

    Raises:
        MissingResultError: a shard is not assigned to today's centroids.
    """
    from semdedup_assets.algorithm.similarity import score_clusters
    from semdedup_assets.algorithm.unit_rows import as_tensor

    if partition.cluster_range is None:
        message = f"partition {partition} is no range of clusters"
        raise ValueError(message)
    with context.writing("duplicate_scores", partition) as result:
        with result.open(SCORES) as stream, TableWriter(stream) as table:
            rows = _RowGroups(table)
            for batch in usage.each("read", assigned.batches(partition.cluster_range)):
                with usage.phase("compare"):
                    vectors = as_tensor(batch.vectors).to(context.compute.torch_device)
                    earlier = score_clusters(vectors, batch.offsets, budget=context.compute.budget)
                with usage.phase("write"):
                    rows.add(batch, earlier.similarity, earlier.position)
            rows.flush()
        result.details = rows.details()
    return result.committed


class _RowGroups:
    """Gathers the scores of clusters until they fill a row group, and counts them."""

    def __init__(self, table: TableWriter) -> None:
        self._table = table
        self._parts: list[dict[str, np.ndarray]] = []
        self._sizes: list[int] = []
        self._duplicates = Counter[str]()
        self._checksum = 0
        self._largest: dict[str, int] | None = None

    def add(self, batch: ClusterBatch, similarity: np.ndarray, position: np.ndarray) -> None:
        sizes = np.diff(batch.offsets)
        self._sizes += sizes[sizes > 0].tolist()
        for epsilon in _EPSILONS:
            self._duplicates[epsilon] += int((similarity.astype(np.float64) > 1.0 - float(epsilon)).sum())
        self._checksum = (self._checksum + id_checksum(batch.ids)) % CHECKSUM_MODULUS
        self._largest = max(self._largest or {"items": 0}, _largest_cluster(batch), key=lambda each: each["items"])
        self._parts.append(
            {
                "id": batch.ids,
                "cluster": batch.cluster,
                "centroid_similarity": batch.centroid_similarity,
                "similarity": similarity,
                "duplicate_of": np.ma.masked_array(batch.ids[position], mask=position < 0),
            }
        )
        if sum(len(part["id"]) for part in self._parts) >= _ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        if not self._parts:
            types = {"id": np.uint64, "cluster": np.int32, "centroid_similarity": np.float64, "similarity": np.float32}
            columns = {name: np.empty(0, dtype=dtype) for name, dtype in types.items()}
            self._parts = [{**columns, "duplicate_of": np.ma.masked_array(np.empty(0, np.uint64), mask=False)}]
        self._table.write({name: _joined([part[name] for part in self._parts]) for name in self._parts[0]})
        self._parts = []

    def details(self) -> dict[str, Any]:
        counts = np.array(self._sizes, dtype=np.int64)
        return {
            "items": int(counts.sum()),
            "id_checksum": self._checksum,
            "clusters": len(counts),
            "cluster_sizes": quantiles(counts),
            "largest_cluster": self._largest,
            "pairs_compared": int((counts * (counts - 1) // 2).sum()),
            "duplicates_by_epsilon": {epsilon: self._duplicates[epsilon] for epsilon in _EPSILONS},
        }


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """One array; the plain concatenation would lose masks."""
    plain = np.concatenate([np.ma.getdata(part) for part in parts])
    if not isinstance(parts[0], np.ma.MaskedArray):
        return plain
    return np.ma.masked_array(plain, mask=np.concatenate([np.ma.getmaskarray(part) for part in parts]))


def _largest_cluster(batch: ClusterBatch) -> dict[str, int]:
    """The largest cluster of a batch, and its item that is nearest to the centroid: the one to look at."""
    within = int(np.diff(batch.offsets).argmax())
    start, stop = batch.offsets[within : within + 2]
    item = batch.ids[start:stop][batch.centroid_similarity[start:stop].argmax()]
    return {"cluster": batch.first + within, "items": int(stop - start), "item": int(item)}


def _bucket_record(context: StageContext, partition: Partition, records: list[ResultRecord]) -> ResultRecord:
    """A bucket as the sum of its ranges, whatever they were grouped to when they were made."""
    details = [record.details for record in records]
    counted = {name: sum(int(each[name]) for each in details) for name in ("items", "clusters", "pairs_compared")}
    largest = [each["largest_cluster"] for each in details if each.get("largest_cluster")]
    duplicates = Counter[str]()
    for each in details:
        duplicates.update(each["duplicates_by_epsilon"])
    location = context.location("duplicate_scores", partition)
    folder = location.rpartition("/")[2]
    return ResultRecord(
        location,
        fingerprint({str(index): record.version for index, record in enumerate(records)}),
        context.code_version("duplicate_scores"),
        records[0].inputs if records else {},
        {
            record.location.rpartition("/")[2]: replace(
                record.files[SCORES], path=f"{folder}/{record.files[SCORES].path}"
            )
            for record in records
        },
        {
            **usage.added(details),
            **counted,
            "id_checksum": sum(int(each["id_checksum"]) for each in details) % CHECKSUM_MODULUS,
            "largest_cluster": max(largest, key=lambda each: each["items"], default=None),
            "duplicates_by_epsilon": dict(duplicates),
            "ranges": len(records),
            "bytes": sum(record.size for record in records),
            "device": details[0]["device"] if details else "",
        },
    )


REPAIRED_SCORES = "repaired_scores"
"""The stage whose results take the place of these, of selections that repair."""


def range_name(cluster_range: int) -> str:
    """A file of a range of clusters, in records that hold all ranges."""
    return f"r{cluster_range:04d}.parquet"


def scores_files(context: StageContext, clustering: Clustering) -> list[StoredFile]:
    """The scores of each range of a clustering, once they are seen to be up to date; the repaired ones where there are.

    Raises:
        MissingResultError: a range is not scored, or was scored from other assignments than there are now.
    """
    if context.selection.repair is None:
        return scores_within_clusters(context, clustering)
    (record,) = context.index.require_consistent(REPAIRED_SCORES, Partition(clustering=clustering)).values()
    return [record.file(name) for name in sorted(record.files)]


def scores_within_clusters(context: StageContext, clustering: Clustering) -> list[StoredFile]:
    """The scores of each range, by the items of the own cluster alone.

    Raises:
        MissingResultError: a range is not scored, or was scored from other assignments than there are now.
    """
    records = context.index.require_consistent("duplicate_scores", Partition(clustering=clustering))
    return [record.file(SCORES) for record in records.values()]


def scores_of_range(context: StageContext, clustering: Clustering, cluster_range: int) -> StoredFile:
    """The scores of one range, repaired ones where there are, as they lie there.

    Raises:
        MissingResultError: it is not scored.
    """
    whole = Partition(clustering=clustering)
    if context.selection.repair is None:
        return context.index.require("duplicate_scores", whole.of_range(cluster_range)).file(SCORES)
    return context.index.require(REPAIRED_SCORES, whole).file(range_name(cluster_range))


def repaired_input(_: Pipeline, selection: Selection) -> tuple[str, ...]:
    """The further input of whoever reads `scores_files`, for `Stage.optional_inputs`."""
    return () if selection.repair is None else (REPAIRED_SCORES,)


def _location(layout: Layout, partition: Partition, selection: Selection) -> str:
    # A bucket has no result of its own: its folder stands for it.
    if partition.cluster_range is None:
        return layout.of_clustering(partition.required_clustering, "scores", selection.keep_order)
    return layout.scores(partition.required_clustering, selection, partition.cluster_range)


def _column_inputs(_: Pipeline, selection: Selection) -> tuple[str, ...]:
    return () if selection.column is None else ("items",)


def _input_version(context: StageContext, name: str, record: ResultRecord) -> str:
    """Of the items only the column counts that orders them."""
    if name != "items":
        return record.version
    versions: Mapping[str, str] = record.details["column_versions"]
    return versions.get(context.selection.column or "", "")


STAGE = Stage(
    name="duplicate_scores",
    step="3-compare",
    description="For each item its greatest cosine similarity to an earlier item of its cluster, and which (SemDeDup, "
    "Alg. A7). A bucket is a group of consecutive ranges of clusters. One pass serves every epsilon.",
    dimensions=("bucket", "k"),
    inputs=("assignments",),
    optional_inputs=_column_inputs,
    input_version=_input_version,
    settings=lambda _: {},
    location=_location,
    worker=_worker,
    finish=_bucket_record,
    kinds=frozenset({"torch", "parquet"}),
    columns=lambda _: COLUMNS,
    checks=CHECKS,
    selected=True,
    # Both rules select by the same scores.
    selection_settings=lambda selection: {"keep_order": selection.keep_order},
    by_range=True,
    unit="ranges",
)
