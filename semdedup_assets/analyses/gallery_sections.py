"""Choose the sections of a gallery from the scores, masks and vectors of one kept set."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np

from semdedup_assets.algorithm.gallery_choice import (
    ClusterLoss,
    GalleryRow,
    Neighbours,
    NeighbourSearch,
    SeedItem,
    SelectedItems,
    before_and_after,
    choose_seeds,
    gallery_thresholds,
    group_rows,
    joined_group,
    merge_seeds,
    most_removed,
    neighbour_search,
)
from semdedup_assets.algorithm.selection import Selection, orphans
from semdedup_assets.records import Content
from semdedup_assets.rendering.gallery import Group, Row, RowItem, Section
from semdedup_assets.settings import Galleries
from semdedup_assets.stages.cluster_batches import AssignedClusters
from semdedup_assets.stages.duplicate_scores import scores_files
from semdedup_assets.stages.keep_masks import REMOVED_BY, mask_name, vectors_of
from semdedup_assets.storage.results import ResultRecord, StoredFile
from semdedup_assets.storage.tables import read_table

# Of the cluster before and after, for each of `galleries.items`.
_CLUSTER_ITEMS = 4
_CONTENT_NOTES: dict[Content, str] = {
    "image": "",
    "text": " Red words that are struck out stand only in the item above; green ones only in this one.",
    "vector": " The source holds vectors, so there are only keys and carried columns to show.",
}
_ORPHAN_NOTE = (
    " Orphan: removed, although no kept item lies within ε of it; the items that do were all removed themselves. "
    "The rule “greedy” keeps such items."
)


@dataclass(frozen=True)
class SelectedClusters:
    """The clusters of one kept set, with what was scored and selected.

    Attributes:
        assigned: the clusters.
        scores: of each range of clusters.
        masks: record of the keep masks.
    """

    assigned: AssignedClusters
    scores: list[StoredFile]
    masks: ResultRecord

    @classmethod
    def of(cls, assigned: AssignedClusters, masks: ResultRecord) -> "SelectedClusters":
        """Find the scores that belong to the masks.

        Raises:
            MissingResultError: scores are missing, or are made from other assignments than there are now.
        """
        return cls(assigned, scores_files(assigned.context, assigned.clustering), masks)

    @property
    def epsilon(self) -> float:
        """The number that the masks were made with."""
        return float(self.masks.details["epsilon"])

    def items(self, cluster_range: int) -> SelectedItems:
        """The items of one range; scores and masks hold the same rows in the same order."""
        scores = read_table(self.scores[cluster_range], ["id", "cluster", "centroid_similarity", "similarity"])
        file = self.masks.file(mask_name(cluster_range))
        removing = [REMOVED_BY.name] if "removed_by_reference" in self.masks.details else []
        masks = read_table(file, ["kept", "kept_neighbour", "kept_similarity", *removing])
        gone = np.array([name is not None for name in masks.pop(REMOVED_BY.name)], bool) if removing else None
        # Only after a repair is a similarity not known where there is a kept item.
        without = np.isnan(masks["kept_similarity"]) & (self.assigned.context.selection.repair is None)
        selection = Selection(masks["kept"], np.where(without, -1, 0), masks["kept_similarity"])
        return SelectedItems(
            ids=scores["id"],
            cluster=scores["cluster"],
            centroid_similarity=scores["centroid_similarity"],
            similarity=scores["similarity"],
            orphan=orphans(selection, self.epsilon, gone=gone),
            **masks,
        )

    def range_of(self, cluster: int) -> int:
        """Index of the range that a cluster lies in."""
        return next(index for index, clusters in enumerate(self.assigned.ranges) if cluster in clusters)


@dataclass
class _Choice:
    """What one pass over all items finds worth showing."""

    groups: dict[int, GalleryRow]
    seeds: list[SeedItem]
    cluster: ClusterLoss | None = None


def choose_sections(selected: SelectedClusters, settings: Galleries) -> tuple[Section, ...]:
    """The largest groups of duplicates; seed items with their neighbours; the cluster that lost most.

    Args:
        selected: clusters of one kept set.
        settings: how much is shown.
    """
    queries = [int(group["kept"]) for group in selected.masks.details["largest_groups"]][: settings.groups]
    thresholds = gallery_thresholds(selected.epsilon)
    choice = _choose(selected, settings, queries, greatest=thresholds[-1])
    return (
        _group_section(selected, queries, choice.groups),
        _neighbour_section(selected, settings, choice.seeds, thresholds),
        _cluster_section(selected, settings, choice.cluster),
    )


def _choose(selected: SelectedClusters, settings: Galleries, queries: Sequence[int], *, greatest: float) -> _Choice:
    choice = _Choice({}, [])
    for index in range(len(selected.scores)):
        items = selected.items(index)
        for query, row in group_rows(items, queries, most=settings.items).items():
            known = choice.groups.get(query)
            choice.groups[query] = row if known is None else joined_group(known, row, most=settings.items)
        seeds = choose_seeds(items, epsilon=greatest, most=settings.seeds, seed=settings.seed)
        choice.seeds = merge_seeds([*choice.seeds, *seeds], most=settings.seeds)
        loss = most_removed(items)
        if loss is not None:
            choice.cluster = loss if choice.cluster is None else max(choice.cluster, loss)
    return choice


def _row(label: str, row: GalleryRow, *, short_label: str = "") -> Row:
    similarity = [None if isnan(each) else each for each in row.similarity.tolist()]
    columns = (row.ids.tolist(), row.kept.tolist(), similarity, row.orphan.tolist())
    return Row(label, short_label, tuple(RowItem(*values) for values in zip(*columns, strict=True)), row.total)


def _group_section(selected: SelectedClusters, queries: list[int], rows: dict[int, GalleryRow]) -> Section:
    groups = tuple(
        Group(
            f"{rows[query].total:,} removed, 1 kept in their place",
            RowItem(query, kept=True),
            (_row("removed", rows[query]),),
        )
        for query in queries
        if query in rows
    )
    note = (
        "The kept items that the most removed ones duplicate: of each removed item, the kept one is the most similar of "
        "its cluster. Numbers are cosine similarities to the kept item. Of a larger group than is shown, the items are "
        "taken evenly from the most to the least similar."
    )
    note += _CONTENT_NOTES[selected.assigned.context.pipeline.source.content] + _orphan_note(groups)
    return Section("largest_groups_of_duplicates", "Largest groups of duplicates", note, groups)


def _orphan_note(groups: Sequence[Group]) -> str:
    return _ORPHAN_NOTE if any(item.is_orphan for group in groups for item in group.items()) else ""


def _neighbour_section(
    selected: SelectedClusters, settings: Galleries, seeds: list[SeedItem], thresholds: tuple[float, ...]
) -> Section:
    context = selected.assigned.context
    by_range: dict[int, list[SeedItem]] = {}
    for seed in seeds:
        by_range.setdefault(selected.range_of(seed.cluster), []).append(seed)
    found: dict[int, Neighbours] = {}
    for index, here in sorted(by_range.items()):
        items = selected.items(index)
        wanted = {seed.cluster for seed in here}
        for rows, vectors in vectors_of(selected.assigned, index, items.cluster, wanted):
            cluster = int(items.cluster[rows.start])
            search = neighbour_search(
                items.in_cluster(cluster),
                vectors,
                thresholds=thresholds,
                most=settings.items,
                budget=context.compute.budget,
            )
            found |= _around(search, [seed.item for seed in here if seed.cluster == cluster])
    groups = tuple(_neighbour_group(found[seed.item], selected.epsilon, thresholds) for seed in seeds)
    note = (
        "Items drawn at random among those that duplicate another within the greatest ε here, each with the rest of its "
        "cluster by falling cosine similarity (SemDeDup, figures 2 and A9). The labels give the ε from which on "
        "neighbours count as duplicates, and the similarity that they must exceed: this gallery's own ε, a quarter, a "
        "half and twice of it."
    )
    note += _CONTENT_NOTES[context.pipeline.source.content] + _orphan_note(groups)
    return Section("neighbours_at_rising_epsilon", "Neighbours at rising ε", note, groups, "seed")


def _around(search: NeighbourSearch, seeds: Sequence[int]) -> dict[int, Neighbours]:
    return {seed: search.around(seed) for seed in seeds}


def _neighbour_group(neighbours: Neighbours, epsilon: float, thresholds: tuple[float, ...]) -> Group:
    labels = [(f"ε {each:.4g}: over {1 - each:.4g}", f"{each:.2g}") for each in thresholds]
    labels.append(("beyond every ε", "none"))
    rows = zip(labels, neighbours.rows, strict=True)
    others = sum(row.total for row in neighbours.rows)
    within = neighbours.within[thresholds.index(epsilon)]
    return Group(
        f"{within:,} of the {others:,} others in its cluster lie within ε = {epsilon:.4g}",
        RowItem(int(neighbours.query.ids[0]), kept=bool(neighbours.query.kept[0])),
        tuple(_row(label, row, short_label=short) for (label, short), row in rows if len(row.ids)),
    )


def _cluster_section(selected: SelectedClusters, settings: Galleries, loss: ClusterLoss | None) -> Section:
    groups: tuple[Group, ...] = ()
    title = "A cluster before and after"
    if loss is not None:
        title = f"Cluster {loss.cluster} before and after"
        items = selected.items(selected.range_of(loss.cluster)).in_cluster(loss.cluster)
        rows = before_and_after(items, most=_CLUSTER_ITEMS * settings.items)
        groups = tuple(
            Group(f"{name}: {row.total:,} items", None, (_row("most similar to the centroid first", row),))
            for name, row in zip(("Before", "After"), rows, strict=True)
        )
    note = (
        "The cluster that lost the most items, by falling cosine similarity to its centroid (SemDeDup, figures A10 and "
        f"A11). Before: all its items, removed ones dimmed. After: those that are kept.{_orphan_note(groups)}"
    )
    return Section("cluster_before_and_after", title, note, groups, dimmed=True)
