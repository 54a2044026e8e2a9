"""Decide what is kept at an epsilon, and which kept item each removed one duplicates."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from semdedup_assets.algorithm.sampling import CHECKSUM_MODULUS, id_checksum
from semdedup_assets.algorithm.selection import (
    Selection,
    chain_selection,
    check_epsilon,
    greedy_keep_mask,
    keep_mask,
    select,
)
from semdedup_assets.algorithm.similarity import EarlierSimilarity
from semdedup_assets.algorithm.tuning import epsilon_for
from semdedup_assets.algorithm.unit_rows import as_tensor
from semdedup_assets.stages.clusters import ClusterRun, bucket_runs
from semdedup_assets.stages.duplicate_scores import AssignedShards
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.results import Recipe
from semdedup_assets.storage.tables import TableWriter, read_table, read_tables


@dataclass
class _Totals:
    """What all buckets add up to."""

    items: int = 0
    kept: int = 0
    kept_by_chain: int = 0
    kept_by_greedy: int = 0
    orphans: int = 0
    clusters: int = 0
    clusters_without_kept: int = 0
    checksum: int = 0
    groups: list[tuple[int, int]] = field(default_factory=list)

    def add_groups(self, neighbours: np.ndarray) -> None:
        """Remember the kept items that the most removed ones duplicate."""
        if len(neighbours):
            ids, counts = np.unique(neighbours, return_counts=True)
            pairs = [(int(count), int(item)) for count, item in zip(counts, ids, strict=True)]
            self.groups = sorted([*self.groups, *pairs], reverse=True)[:20]


def resolve_epsilon(work: Work, k: str, epsilon: str) -> float:
    """The number that a partition stands for: an epsilon itself, or the one that keeps a wanted share.

    Raises:
        MissingResultError: a bucket is not scored yet.
    """
    if not epsilon.startswith("keep="):
        check_epsilon(float(epsilon))
        return float(epsilon)
    share = float(epsilon.removeprefix("keep=").removesuffix("%")) / 100
    paths = [work.layout.scores(k, bucket) for bucket in work.buckets]
    return epsilon_for(
        lambda: (part["similarity"] for path in paths for part in read_tables(path, ["similarity"])), keep=share
    )


def select_items(work: Work, epsilon: str, *, assigned: AssignedShards) -> Recipe:
    """Write the keep masks of one k and epsilon (SemDeDup, Alg. A7), by bucket.

    Args:
        work: the pipeline at work.
        epsilon: as the partition spells it: `0.05` or `keep=50%`.
        assigned: the assignments of one k, whose vectors find the nearest kept items.

    Raises:
        MissingResultError: a bucket is not scored, or was scored from other assignments than there are now.
    """
    work.measures.restart()
    k = assigned.k
    made_from = {"duplicate_scores": assigned.scores_version}
    number, totals = resolve_epsilon(work, k, epsilon), _Totals()
    with work.writing("keep_masks", work.layout.masks(k, epsilon), made_from=made_from) as result:
        with work.progress(f"keep_masks {epsilon}", total=len(work.buckets), unit="buckets") as progress:
            for bucket in range(len(work.buckets)):
                path = work.layout.mask(k, epsilon, work.buckets[bucket])
                with result.open(path) as stream, TableWriter(stream) as table:
                    _write_bucket(work, number, _Bucket(assigned, bucket), table, totals)
                progress.advance(1)
        result.details = _details(number, totals, rule=work.pipeline.selection.rule)
    return result.recipe()


@dataclass(frozen=True, slots=True)
class _Bucket:
    assigned: AssignedShards
    index: int

    @property
    def clusters(self) -> range:
        return self.assigned.clusters.buckets[self.index]


def _write_bucket(work: Work, epsilon: float, bucket: _Bucket, table: TableWriter, totals: _Totals) -> None:
    path = work.layout.scores(bucket.assigned.k, work.buckets[bucket.index])
    scores = read_table(path, ["id", "cluster", "similarity", "duplicate_of"])
    selection = _select_bucket(work, epsilon, bucket, scores, totals)
    removed = ~selection.keep
    neighbour = scores["id"][np.maximum(selection.kept_neighbour, 0)]
    table.write(
        {
            "id": scores["id"],
            "kept": selection.keep,
            "kept_neighbour": np.ma.masked_array(neighbour, mask=selection.keep),
            "kept_similarity": np.ma.masked_array(selection.kept_similarity, mask=selection.keep),
        }
    )
    totals.items += len(selection.keep)
    totals.kept += int(selection.keep.sum())
    totals.orphans += int((removed & keep_mask(selection.kept_similarity, epsilon)).sum())
    clusters = len(np.unique(scores["cluster"]))
    totals.clusters += clusters
    totals.clusters_without_kept += clusters - len(np.unique(scores["cluster"][selection.keep]))
    totals.checksum = (totals.checksum + id_checksum(scores["id"])) % CHECKSUM_MODULUS
    totals.add_groups(neighbour[removed])


def _select_bucket(
    work: Work, epsilon: float, bucket: _Bucket, scores: dict[str, np.ndarray], totals: _Totals
) -> Selection:
    """The selection of a whole bucket, positions into its score rows."""
    earlier = EarlierSimilarity(scores["similarity"], _positions(scores))
    chain = keep_mask(earlier.similarity, epsilon)
    selection, complete = chain_selection(earlier, chain)
    keep, greedy = chain.copy(), chain.copy()
    if not complete:
        # Only clusters in which a removed item's nearest earlier item is removed too need their vectors.
        open_rows = ~chain & (selection.kept_neighbour < 0)
        for rows, run in _clusters_with(work, bucket, scores["cluster"], open_rows):
            vectors = as_tensor(run.vectors).to(work.compute.torch_device)
            inner = EarlierSimilarity(earlier.similarity[rows], _relative(earlier.position[rows], rows.start))
            greedy[rows] = greedy_keep_mask(vectors, inner, epsilon, budget=work.compute.budget)
            wanted = greedy[rows] if work.pipeline.selection.rule == "greedy" else chain[rows]
            found = select(vectors, wanted, budget=work.compute.budget)
            keep[rows] = wanted
            selection.kept_neighbour[rows] = np.where(wanted, -1, found.kept_neighbour + rows.start)
            selection.kept_similarity[rows] = found.kept_similarity
    totals.kept_by_chain += int(chain.sum())
    totals.kept_by_greedy += int(greedy.sum())
    return Selection(keep, selection.kept_neighbour, selection.kept_similarity)


def _relative(position: np.ndarray, start: int) -> np.ndarray:
    return np.where(position < 0, -1, position - start)


def _positions(scores: dict[str, np.ndarray]) -> np.ndarray:
    """(n,) int64: the row of each item's earlier item, -1 where there is none."""
    order = np.argsort(scores["id"])
    place = np.searchsorted(scores["id"], scores["duplicate_of"], sorter=order)
    found = order[np.minimum(place, len(order) - 1)] if len(order) else place
    return np.where(np.isneginf(scores["similarity"]), -1, found)


def _clusters_with(
    work: Work, bucket: _Bucket, cluster: np.ndarray, wanted: np.ndarray
) -> Iterator[tuple[slice, ClusterRun]]:
    """The clusters that hold a wanted row, with their score rows; both are in keep-order."""
    needed = set(np.unique(cluster[wanted]).tolist())
    for run in bucket_runs(work, bucket.assigned.k, bucket=bucket.index, clusters=bucket.clusters, only=needed):
        start, stop = np.searchsorted(cluster, [run.first, run.first + 1])
        yield slice(int(start), int(stop)), run


def _details(epsilon: float, totals: _Totals, *, rule: str) -> dict[str, Any]:
    removed = totals.items - totals.kept
    return {
        "epsilon": epsilon,
        "rule": rule,
        "items": totals.items,
        "id_checksum": totals.checksum,
        "kept": totals.kept,
        "removed": removed,
        "kept_fraction": totals.kept / totals.items if totals.items else None,
        "kept_by_chain": totals.kept_by_chain,
        "kept_by_greedy": totals.kept_by_greedy,
        "orphans": totals.orphans,
        "clusters": totals.clusters,
        "clusters_without_kept": totals.clusters_without_kept,
        "largest_groups": [{"kept": item, "removed": count} for count, item in totals.groups],
    }
