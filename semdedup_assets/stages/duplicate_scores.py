"""Score the clusters of a bucket: the greatest similarity of each item to an earlier one."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.algorithm.sampling import CHECKSUM_MODULUS, id_checksum
from semdedup_assets.checks.duplicate_scores import CHECKS
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import columns_version
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Column, Stage, Worker
from semdedup_assets.kept_sets import Clustering, Selection
from semdedup_assets.settings import Pipeline
from semdedup_assets.stages.assignments import CENTROID_SIMILARITY
from semdedup_assets.stages.centroids import quantiles
from semdedup_assets.stages.cluster_batches import AssignedClusterings, AssignedClusters, ClusterBatch, ClusterRows
from semdedup_assets.stages.embeddings import ID
from semdedup_assets.storage.layout import Layout
from semdedup_assets.storage.results import MissingResultError, ResultRecord, ResultWriter, StoredFile, fingerprint
from semdedup_assets.storage.tables import TableWriter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from semdedup_assets.algorithm.similarity import EarlierSimilarity

SCORES = "scores.parquet"
"""The scores of a range of clusters, in its record: by cluster, and within each in keep-order."""

PROTECTED_SIMILARITY = "protected_similarity"
"""A column of the scores of selections that protect items."""

# Rows of a Parquet row group: large enough to compress well, small enough to be held a few times over.
_ROW_GROUP = 1 << 18
_EPSILONS = ("0.001", "0.01", "0.05", "0.1", "0.2")


def _worker(context: StageContext) -> Worker:
    together = [context.with_selection(selection) for selection in context.together]
    clusterings = [AssignedClusterings(each) for each in (context, *together)]
    return lambda partition: score_range(partition, [each[partition.required_clustering] for each in clusterings])


def score_range(partition: Partition, assigned: Sequence[AssignedClusters]) -> ResultRecord:
    """Score the clusters of a range (SemDeDup, Alg. A7): one pass that serves every epsilon.

    Args:
        partition: a clustering and a range of clusters.
        assigned: the clusters as the selection orders them, and as others do that are made together with it: those whose
            scores are stale are made from what is read for the first.

    Returns:
        The record of the first.

    Raises:
        MissingResultError: a shard is not assigned to today's centroids.
    """
    if partition.cluster_range is None:
        message = f"partition {partition} is no range of clusters"
        raise ValueError(message)
    wanted = _stale(partition, assigned)
    usage.share(len(wanted))
    with ExitStack() as stack:
        scoring = [stack.enter_context(_scoring(each, partition)) for each in wanted]
        for rows in usage.each("read", assigned[0].rows(partition.cluster_range)):
            for each in scoring:
                each.score(rows)
    return scoring[0].result.committed


def _stale(partition: Partition, assigned: Sequence[AssignedClusters]) -> list[AssignedClusters]:
    """The first, and of the others those whose scores are not up to date; of two that share scores one."""
    found = {assigned[0].context.location("duplicate_scores", partition): assigned[0]}
    for each in assigned[1:]:
        index = each.context.index
        with suppress(MissingResultError):  # What another selection lacks, its own turn reports.
            if not index.is_current("duplicate_scores", partition):
                found.setdefault(each.context.location("duplicate_scores", partition), each)
    return list(found.values())


@contextmanager
def _scoring(assigned: AssignedClusters, partition: Partition) -> "Iterator[_Scoring]":
    """Scores of one selection that are being written; they are committed when the block ends."""
    with assigned.context.writing("duplicate_scores", partition) as result:
        with result.open(SCORES) as stream, TableWriter(stream) as table:
            rows = _RowGroups(table, protects=assigned.context.selection.protect is not None)
            yield _Scoring(assigned, result, rows)
            rows.flush()
        result.details = rows.details()


@dataclass(frozen=True, slots=True)
class _Scoring:
    assigned: AssignedClusters
    result: ResultWriter
    rows: "_RowGroups"

    def score(self, clusters: ClusterRows) -> None:
        """Compare the items of some clusters in the selection's order."""
        from semdedup_assets.algorithm.protection import protect, unprotected_similarity
        from semdedup_assets.algorithm.similarity import score_clusters
        from semdedup_assets.algorithm.unit_rows import as_tensor

        compute = self.assigned.context.compute
        with usage.phase("order"):
            batch = clusters.in_keep_order(self.assigned.keep)
        with usage.phase("compare"):
            vectors, unprotected = as_tensor(batch.vectors).to(compute.torch_device), None
            earlier = score_clusters(vectors, batch.offsets, budget=compute.budget)
            if batch.overtaken is not None:
                unprotected = unprotected_similarity(
                    vectors, batch.offsets, earlier=earlier, overtaken=batch.overtaken, budget=compute.budget
                )
                earlier = protect(earlier, batch.overtaken >= 0)
        with usage.phase("write"):
            self.rows.add(batch, earlier, unprotected)


class _RowGroups:
    """Gathers the scores of clusters until they fill a row group, and counts them."""

    def __init__(self, table: TableWriter, *, protects: bool) -> None:
        self._table, self._protects = table, protects
        self._parts: list[dict[str, np.ndarray]] = []
        self._sizes: list[int] = []
        self._duplicates = Counter[str]()
        self._checksum = 0
        self._largest: dict[str, int] | None = None

    def add(self, batch: ClusterBatch, earlier: "EarlierSimilarity", unprotected: np.ndarray | None) -> None:
        sizes, similarity, position = np.diff(batch.offsets), earlier.similarity, earlier.position
        self._sizes += sizes[sizes > 0].tolist()
        for epsilon in _EPSILONS:
            self._duplicates[epsilon] += int((similarity.astype(np.float64) > 1.0 - float(epsilon)).sum())
        self._checksum = (self._checksum + id_checksum(batch.ids)) % CHECKSUM_MODULUS
        self._largest = max(self._largest or {"items": 0}, _largest_cluster(batch), key=lambda each: each["items"])
        part = {
            "id": batch.ids,
            "cluster": batch.cluster,
            "centroid_similarity": batch.centroid_similarity,
            "similarity": similarity,
            "duplicate_of": np.ma.masked_array(batch.ids[position], mask=position < 0),
        }
        if unprotected is not None:
            part[PROTECTED_SIMILARITY] = np.ma.masked_array(unprotected, mask=np.isnan(unprotected))
        self._parts.append(part)
        if sum(len(part["id"]) for part in self._parts) >= _ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        if not self._parts:
            types = {"id": np.uint64, "cluster": np.int32, "centroid_similarity": np.float64, "similarity": np.float32}
            columns = {name: np.empty(0, dtype=dtype) for name, dtype in types.items()}
            nullable = {"duplicate_of": np.uint64, **({PROTECTED_SIMILARITY: np.float32} if self._protects else {})}
            empty = {name: np.ma.masked_array(np.empty(0, dtype), mask=False) for name, dtype in nullable.items()}
            self._parts = [{**columns, **empty}]
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
    return ("items",) if selection.columns else ()


def _input_version(context: StageContext, name: str, record: ResultRecord) -> str:
    """Of the items only the columns count that order or protect them."""
    if name != "items":
        return record.version
    columns = context.selection.columns
    if len(columns) > 1:
        return columns_version(record, columns)
    versions: Mapping[str, str] = record.details["column_versions"]
    return "".join(versions.get(column, "") for column in columns)


def score_columns(pipeline: Pipeline) -> tuple[Column, ...]:
    """Of the scores, repaired or not."""
    protects = any(selection.protect is not None for selection in pipeline.named_selections.values())
    protected = Column(
        PROTECTED_SIMILARITY,
        "float32",
        "Of a protected item: the similarity that it would have without protection; null of others. Only where "
        "`selection.protect` is set.",
    )
    return (
        ID,
        Column("cluster", "int32", "Index of the item's cluster."),
        CENTROID_SIMILARITY,
        Column(
            "similarity",
            "float32",
            "Greatest cosine similarity to an earlier item; -inf for the first"
            + " and for protected ones" * protects
            + ".",
        ),
        Column("duplicate_of", "uint64", "That earlier item; null where there is none."),
        *([protected] if protects else []),
    )


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
    columns=score_columns,
    checks=CHECKS,
    selected=True,
    # Both rules select by the same scores.
    selection_settings=lambda selection: {"keep_order": selection.keep_order},
    by_range=True,
    together=True,
    unit="ranges",
)
