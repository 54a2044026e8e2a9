"""Draw the paper's figures 3a to 3c, A7 and A8 for one clustering, each with its numbers as Parquet."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import Progress
from semdedup_assets.execution.stage import Picture, Rows, Shown, Stage, Worker
from semdedup_assets.kept_sets import Clustering
from semdedup_assets.rendering import plots
from semdedup_assets.stages.cluster_batches import AssignedClusters
from semdedup_assets.stages.duplicate_scores import PROTECTED_SIMILARITY, repaired_input, scores_files
from semdedup_assets.storage.results import ResultRecord, StoredFile
from semdedup_assets.storage.tables import read_table, read_tables, write_table

if TYPE_CHECKING:
    from semdedup_assets.algorithm.epsilon_curves import ClusterCounts, ClusterSample


def _worker(context: StageContext) -> Worker:
    return lambda partition: draw_figures(context, partition)


def draw_figures(context: StageContext, partition: Partition) -> ResultRecord:
    """Draw the figures of one clustering (SemDeDup, Fig. 3, A7, A8), with their numbers as Parquet.

    The scores of all items give the share kept at each epsilon, exactly. They do not show whether an item has a later
    duplicate, nor the similarities of pairs: those are counted on whole clusters, all or a seeded choice.

    Args:
        context: of the pipeline and the selection.
        partition: a clustering.

    Raises:
        MissingResultError: scores or masks are missing, or are made from other inputs than there are now.
    """
    clustering = partition.required_clustering
    # Entered first: the versions of the inputs are noted before anything is read.
    with context.writing("figures", partition) as result:
        assigned, scores = AssignedClusters(context, clustering), scores_files(context, clustering)
        epsilons = _epsilons(context, clustering)
        with usage.phase("count"):
            counts = _count(assigned, scores, epsilons)
        with usage.phase("compare"):
            sample = _sample(assigned, scores, counts)
        counted = _Counted(epsilons, counts, sample)
        for figure in usage.each("draw", counted.figures(_subject(context, clustering))):
            with result.open(f"{figure.name}.png") as stream:
                stream.write(figure.png)
            with result.open(f"{figure.name}.parquet") as stream:
                write_table(stream, figure.numbers)
        result.details = counted.details()
    return result.committed


def _epsilons(context: StageContext, clustering: Clustering) -> dict[str, float]:
    """The number of each target, by the target's name: the one that its masks were made with."""
    masks = context.index.require_consistent("keep_masks", Partition(clustering=clustering))
    return {str(partition.target): float(record.details["epsilon"]) for partition, record in masks.items()}


def _subject(context: StageContext, clustering: Clustering) -> str:
    pipeline = context.pipeline
    return f"{pipeline.dataset}/{pipeline.model_name}, {clustering.label} · {context.selection.label}"


def _count(assigned: AssignedClusters, scores: list[StoredFile], epsilons: dict[str, float]) -> "ClusterCounts":
    """Count the scores of all items, row group by row group."""
    from semdedup_assets.algorithm.epsilon_curves import ClusterCounts

    counts = ClusterCounts.empty(list(epsilons.values()), k=assigned.ranges[-1].stop)
    with Progress(f"figures {assigned.clustering}", total=len(scores), unit="ranges") as progress:
        for file in scores:
            for part in read_tables(file, ["cluster", "similarity"]):
                counts.add(part["cluster"], part["similarity"])
            progress.advance()
    return counts


def _sample(assigned: AssignedClusters, scores: list[StoredFile], counts: "ClusterCounts") -> "ClusterSample":
    """Compare the vectors of whole clusters."""
    from semdedup_assets.algorithm.epsilon_curves import ClusterSample
    from semdedup_assets.algorithm.unit_rows import as_tensor

    compute = assigned.context.compute
    sample = ClusterSample.choose(counts, assigned.ranges)
    protects = [PROTECTED_SIMILARITY] if assigned.context.selection.protect is not None else []
    items = int(counts.sizes[sample.cluster_indices].sum())
    with Progress(f"figures {assigned.clustering}", total=items, unit="sampled items") as progress:
        for index, wanted in sample.clusters.items():
            clusters = assigned.ranges[index]
            known = read_table(scores[index], ["cluster", "similarity", *protects])
            # A protected item, which no earlier one removes, may still have an earlier duplicate.
            earlier = np.fmax(known["similarity"], known[protects[0]]) if protects else known["similarity"]
            # Clusters one by one are slow to read where all are wanted.
            only = None if len(wanted) == np.count_nonzero(counts.sizes[clusters.start : clusters.stop]) else wanted
            for batch in assigned.batches(index, only=only):
                start = int(np.searchsorted(known["cluster"], batch.first))
                sample.add(
                    batch.first,
                    batch.offsets,
                    earlier=earlier[start : start + len(batch.ids)],
                    vectors=as_tensor(batch.vectors).to(compute.torch_device),
                    budget=compute.budget,
                )
                progress.advance(len(batch.ids))
    return sample


@dataclass(frozen=True, slots=True)
class _Figure:
    name: str
    png: bytes
    numbers: dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class _Counted:
    """What the figures of one clustering are drawn from.

    Attributes:
        epsilons: the pipeline's own, by the targets' names.
        counts: of all items; its `epsilons` are the same, in the same order.
        sample: of whole clusters.
    """

    epsilons: dict[str, float]
    counts: "ClusterCounts"
    sample: "ClusterSample"

    def figures(self, subject: str) -> Iterator[_Figure]:
        """The figures of `plots.TITLES`, one after the other.

        Args:
            subject: what they are of; begins the note of each.
        """
        items = self.counts.items
        yield self._kept_by_epsilon(f"{subject}: all {items:,} items, chain rule, exact at every epsilon")
        yield self._duplicates_by_epsilon(f"{subject}: {self._sampled_items()}")
        yield self._similarities(f"{subject}: {self._sampled_pairs()}")
        yield self._removed_by_cluster_size(f"{subject}: clusters of similar size, median and 10 to 90 %")
        clusters = f"{len(self.counts.sizes):,} clusters, {self.counts.empty_clusters:,} empty"
        yield self._cluster_sizes(f"{subject}: {items:,} items, {clusters}")

    def _labels(self, curve: np.ndarray) -> list[plots.EpsilonLabel]:
        """The pipeline's epsilons, with the values there of an (m,) curve over the grid."""
        named = zip(self.epsilons.items(), self.counts.at_epsilons(curve).tolist(), strict=True)
        return [plots.EpsilonLabel(name, epsilon, share) for (name, epsilon), share in named]

    def _sampled_items(self) -> str:
        if self.sample.items == self.counts.items:
            return f"all {self.counts.items:,} items, exact"
        clusters = len(self.sample.cluster_indices)
        return f"{self.sample.items:,} of {self.counts.items:,} items, of {clusters:,} clusters"

    def _sampled_pairs(self) -> str:
        if self.sample.pairs.sum() == self.sample.pairs_within:
            return f"all pairs of {self.sample.items:,} items"
        return f"a choice among {self.sample.pairs_within:,} pairs"

    def _kept_by_epsilon(self, note: str) -> _Figure:
        counts = self.counts
        share = counts.kept_fraction
        png = plots.kept_by_epsilon(counts.grid, share, labels=self._labels(share), note=note)
        numbers = {"epsilon": counts.grid, "kept": counts.kept.within, "kept_fraction": share}
        return _Figure("kept_by_epsilon", png, numbers)

    def _duplicates_by_epsilon(self, note: str) -> _Figure:
        counts, share = self.counts, self.sample.with_duplicate_fraction
        png = plots.duplicates_by_epsilon(
            counts.grid, share, removed=1 - counts.kept_fraction, labels=self._labels(share), note=note
        )
        numbers = {
            "epsilon": counts.grid,
            "with_duplicate": self.sample.with_duplicate,
            "with_duplicate_fraction": share,
        }
        return _Figure("duplicates_by_epsilon", png, numbers)

    def _similarities(self, note: str) -> _Figure:
        from semdedup_assets.algorithm.epsilon_curves import SIMILARITY_EDGES

        pairs, items = self.sample.pairs, self.counts.similarity
        labels = self._labels(self.counts.kept_fraction)
        png = plots.similarities(SIMILARITY_EDGES, pairs=pairs, items=items, labels=labels, note=note)
        numbers = {"low": SIMILARITY_EDGES[:-1], "high": SIMILARITY_EDGES[1:], "pairs": pairs, "items": items}
        return _Figure("similarities", png, numbers)

    def _removed_by_cluster_size(self, note: str) -> _Figure:
        sizes, removed = self.counts.sizes, self.counts.removed
        labels = self._labels(self.counts.kept_fraction)
        png = plots.removed_by_cluster_size(sizes, removed, labels=labels, note=note)
        by_epsilon = {f"removed_{name}": counts for name, counts in zip(self.epsilons, removed, strict=True)}
        numbers = {"cluster": np.arange(len(sizes)), "items": sizes, **by_epsilon}
        return _Figure("removed_by_cluster_size", png, numbers)

    def _cluster_sizes(self, note: str) -> _Figure:
        sizes = self.counts.sizes
        order = np.argsort(-sizes, kind="stable")
        sampled = np.isin(order, self.sample.cluster_indices)
        numbers = {"cluster": order, "items": sizes[order], "sampled": sampled}
        return _Figure("cluster_sizes", plots.cluster_sizes(sizes, note=note), numbers)

    def details(self) -> dict[str, Any]:
        """What the record says of them."""
        counts, sample = self.counts, self.sample
        largest = int(counts.sizes.argmax())
        kept = self._labels(counts.kept_fraction)
        with_duplicate = self._labels(sample.with_duplicate_fraction)
        return {
            "items": counts.items,
            "clusters": len(counts.sizes),
            "empty_clusters": counts.empty_clusters,
            "average_cluster_size": float(counts.sizes.mean()),
            "largest_cluster_size": int(counts.sizes[largest]),
            "largest_cluster": largest,
            "sampled_clusters": len(sample.cluster_indices),
            "sampled_items": sample.items,
            "sampled_pairs": int(sample.pairs.sum()),
            "by_epsilon": [
                {"epsilon": one.name, "number": one.epsilon, "kept": one.share, "with_duplicate": other.share}
                for one, other in zip(kept, with_duplicate, strict=True)
                if counts.items
            ],
        }


def _shown(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    """Each picture, and what each of the pipeline's epsilons keeps."""
    shown: dict[str, Shown] = {
        name: Picture(record.file(f"{name}.png").content(), title) for name, title in plots.TITLES.items()
    }
    rows = [
        {
            "epsilon": row["epsilon"],
            "as a number": row["number"],
            "items kept": f"{row['kept']:.2%}",
            "items with a duplicate": f"{row['with_duplicate']:.2%}",
        }
        for row in record.details["by_epsilon"]
    ]
    return {**shown, "by_epsilon": Rows(rows)} if rows else shown


STAGE = Stage(
    name="figures",
    step="3-compare",
    description="The paper's figures with their numbers: items kept and items with a duplicate by epsilon, similarities "
    "within clusters, clusters by size (SemDeDup, Fig. 3, A7, A8).",
    dimensions=("k",),
    inputs=("duplicate_scores", "keep_masks"),
    optional_inputs=repaired_input,
    settings=lambda context: {"epsilons": sorted(str(target) for target in context.pipeline.targets)},
    location=lambda layout, partition, selection: layout.of_selection(
        partition.required_clustering, selection, "figures"
    ),
    worker=_worker,
    version=3,
    kinds=frozenset({"matplotlib", "parquet"}),
    shown=_shown,
    selected=True,
    unit="clusterings",
)
