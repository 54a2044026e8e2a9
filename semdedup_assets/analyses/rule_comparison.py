"""Compare what the two rules keep: any earlier item suppresses (chain), or only a kept one does (greedy)."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import Progress
from semdedup_assets.execution.stage import ANALYSE, Column, Stage, Worker
from semdedup_assets.stages.cluster_batches import AssignedClusterings, AssignedClusters
from semdedup_assets.stages.duplicate_scores import scores_files
from semdedup_assets.stages.keep_masks import vectors_of
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.tables import TableWriter, read_table

COMPARISON = "comparison.parquet"
"""The table by cluster, in the record."""


def _worker(context: StageContext) -> Worker:
    clusterings = AssignedClusterings(context)
    return lambda partition: compare_rules(context, partition, assigned=clusterings[partition.required_clustering])


def compare_rules(context: StageContext, partition: Partition, *, assigned: AssignedClusters) -> ResultRecord:
    """Count by cluster what the chain rule (SemDeDup, Alg. A7) and the greedy rule keep at one epsilon.

    Args:
        context: of the pipeline and the selection, whose own rule does not matter here.
        partition: a kept set.
        assigned: the clusters, whose vectors decide where the two rules may differ.

    Raises:
        MissingResultError: masks or scores are missing, or are made from other inputs than there are now.
    """
    with context.writing("rule_comparison", partition) as result:
        # The number that the partition's target stands for, as its masks were made with.
        masks = context.index.require_consistent("keep_masks", partition)[partition]
        epsilon = float(masks.details["epsilon"])
        items = chain = greedy = 0
        with result.open(COMPARISON) as stream, TableWriter(stream) as table:
            for part in usage.each("compare", _by_range(partition, assigned, epsilon)):
                table.write(part)
                items += int(part["items"].sum())
                chain += int(part["kept_by_chain"].sum())
                greedy += int(part["kept_by_greedy"].sum())
        result.details = {
            "epsilon": epsilon,
            "items": items,
            "kept_by_chain": chain,
            "kept_by_greedy": greedy,
            "difference": greedy - chain,
            "share": (greedy - chain) / items if items else None,
        }
    return result.committed


def _by_range(partition: Partition, assigned: AssignedClusters, epsilon: float) -> Iterator[dict[str, np.ndarray]]:
    """The table's rows of each range of clusters; empty clusters have none."""
    from semdedup_assets.algorithm.selection import earlier_positions, greedy_keep_clusters, keep_mask
    from semdedup_assets.algorithm.similarity import EarlierSimilarity

    files = scores_files(assigned.context, assigned.clustering)
    with Progress(f"rule_comparison {partition}", total=len(files), unit="ranges") as progress:
        for index, file in enumerate(files):
            scores = read_table(file, ["id", "cluster", "similarity", "duplicate_of"])
            cluster, similarity = scores["cluster"], scores["similarity"]
            greedy = greedy_keep_clusters(
                EarlierSimilarity(similarity, earlier_positions(scores["id"], scores["duplicate_of"], similarity)),
                cluster,
                epsilon,
                vectors_of=partial(vectors_of, assigned, index, cluster),
                budget=assigned.context.compute.budget,
            )
            clusters, rank, counts = np.unique(cluster, return_inverse=True, return_counts=True)
            kept = {"kept_by_chain": keep_mask(similarity, epsilon), "kept_by_greedy": greedy}
            counted = {name: np.bincount(rank[keep], minlength=len(clusters)) for name, keep in kept.items()}
            yield {"cluster": clusters, "items": counts, **counted}
            progress.advance()


STAGE = Stage(
    name="rule_comparison",
    step=ANALYSE,
    description="How many items of each cluster the paper's chain rule (SemDeDup, Alg. A7) and the greedy rule keep at "
    "one epsilon. The difference are items that only removed ones are similar to. Made on demand: it reads the vectors "
    "of every cluster in which the rules may differ.",
    dimensions=("epsilon", "k"),
    inputs=("keep_masks",),
    settings=lambda _: {},
    location=lambda layout, partition, selection: layout.of_kept_set(partition.kept_set(selection), "rule_comparison"),
    worker=_worker,
    kinds=frozenset({"torch", "parquet"}),
    columns=lambda _: (
        Column("cluster", "int32", "Index of the cluster; empty clusters have no row."),
        Column("items", "int64", "Its items."),
        Column("kept_by_chain", "int64", "Items that no earlier item is within epsilon of."),
        Column("kept_by_greedy", "int64", "Items that no earlier kept item is within epsilon of."),
    ),
    selected=True,
    on_demand=True,
    # Of pairs within clusters.
    applies=lambda _, selection: selection.repair is None,
    unit="kept sets",
)
