"""Which items a gallery shows: the largest groups, neighbours of seed items, and the cluster that lost most."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from semdedup_assets.algorithm.sampling import id_hash
from semdedup_assets.algorithm.selection import check_epsilon, keep_mask
from semdedup_assets.algorithm.unit_rows import IN_CACHE, UnitRows, full_float32


@dataclass(frozen=True, slots=True)
class SelectedItems:
    """Scores and selection of some whole clusters; all columns are of the same n rows.

    Attributes:
        ids: (n,) uint64.
        cluster: (n,) integers, ascending.
        centroid_similarity: (n,) float64, cosine similarity to the cluster's centroid.
        similarity: (n,) float32, greatest similarity to an earlier item, -inf for the first of a cluster.
        kept: (n,) bool.
        kept_neighbour: (n,) uint64, id of the nearest kept item; any number where there is none.
        kept_similarity: (n,) float32, similarity to it; any number for kept items.
        orphan: (n,) bool, whether an item is removed though no kept item stands for it (`selection.orphans`).
    """

    ids: np.ndarray
    cluster: np.ndarray
    centroid_similarity: np.ndarray
    similarity: np.ndarray
    kept: np.ndarray
    kept_neighbour: np.ndarray
    kept_similarity: np.ndarray
    orphan: np.ndarray

    def in_cluster(self, cluster: int) -> "SelectedItems":
        """The rows of one cluster."""
        start, stop = np.searchsorted(self.cluster, [cluster, cluster + 1])
        rows = slice(int(start), int(stop))
        return SelectedItems(
            self.ids[rows], self.cluster[rows], self.centroid_similarity[rows], self.similarity[rows],
            self.kept[rows], self.kept_neighbour[rows], self.kept_similarity[rows], self.orphan[rows],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class GalleryRow:
    """Items that are shown next to one another.

    Attributes:
        ids: (m,) uint64.
        similarity: (m,) floats, to the query item or to the centroid.
        kept: (m,) bool.
        orphan: (m,) bool.
        total: how many items there are, of which these m are shown.
    """

    ids: np.ndarray
    similarity: np.ndarray
    kept: np.ndarray
    orphan: np.ndarray
    total: int


@dataclass(frozen=True, slots=True)
class GroupSize:
    """A kept item, and how many removed ones it is the nearest kept item of."""

    kept: int
    removed: int


@dataclass(frozen=True, slots=True, order=True)
class SeedItem:
    """A candidate for a query item; the first in this order are shown.

    Attributes:
        turn: how many seeds of its cluster come before it, so that every cluster has its turn.
        draw: a pseudo-random number.
        item: its id.
        cluster: its cluster.
    """

    turn: int
    draw: int
    item: int
    cluster: int


@dataclass(frozen=True, slots=True, order=True)
class ClusterLoss:
    """What a cluster lost; the greatest in this order is shown."""

    removed: int
    size: int
    cluster: int


@dataclass(frozen=True, slots=True)
class Neighbours:
    """An item and the rest of its cluster, divided by thresholds.

    Attributes:
        query: the item alone, a row of one.
        rows: of each threshold, the items within it and within no smaller one; then those beyond all. The most similar
            come first. A row may be empty.
        within: of each threshold, how many items are within it.
    """

    query: GalleryRow
    rows: tuple[GalleryRow, ...]
    within: tuple[int, ...]


def gallery_thresholds(epsilon: float) -> tuple[float, ...]:
    """The epsilons that divide the neighbours in the gallery of one epsilon: e/4, e/2, e and 2e.

    They depend on this epsilon alone, so that a gallery does not change when a pipeline gets another epsilon.

    Args:
        epsilon: in [0, 2].

    Returns:
        Distinct, ascending, at most 2; only 0 for an epsilon of 0.

    Raises:
        ValueError: epsilon is outside [0, 2].
    """
    check_epsilon(epsilon)
    return tuple(sorted({min(2.0, epsilon * factor) for factor in (0.25, 0.5, 1.0, 2.0)}))


def largest_groups(kept_neighbour: np.ndarray, *, most: int) -> list[GroupSize]:
    """The kept items that the most removed ones have as their nearest kept item.

    Args:
        kept_neighbour: (r,) uint64, id of the nearest kept item of each removed item.
        most: how many to return.

    Returns:
        The largest group first, of equal ones the lower id.
    """
    ids, counts = np.unique(kept_neighbour, return_counts=True)
    order = np.lexsort((ids, -counts))[:most]
    return [GroupSize(int(ids[index]), int(counts[index])) for index in order]


def merge_groups(parts: Iterable[GroupSize], *, most: int) -> list[GroupSize]:
    """The largest of the groups of several parts, in the order of `largest_groups`; a group of several parts is one."""
    removed = Counter[int]()
    for part in parts:
        removed[part.kept] += part.removed
    groups = [GroupSize(kept, count) for kept, count in removed.items()]
    return sorted(groups, key=lambda group: (-group.removed, group.kept))[:most]


def group_rows(items: SelectedItems, queries: Sequence[int], *, most: int) -> dict[int, GalleryRow]:
    """The removed items of some groups.

    Args:
        items: some whole clusters.
        queries: ids of kept items; those that have no removed item here are skipped.
        most: items of a group; of a larger one, they are taken evenly from the most to the least similar.

    Returns:
        Of each query found here, removed items by falling similarity to it.
    """
    found = {}
    # Where no kept item is near, the neighbour is any number.
    grouped = ~items.kept & ~np.isnan(items.kept_similarity)
    removed = np.flatnonzero(grouped & np.isin(items.kept_neighbour, np.array(list(queries), dtype=np.uint64)))
    for query in queries:
        group = removed[items.kept_neighbour[removed] == np.uint64(query)]
        if len(group):
            order = group[np.lexsort((items.ids[group], -items.kept_similarity[group]))]
            evenly = np.unique(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(np.int64))
            found[query] = _row(items, items.kept_similarity, order[evenly], total=len(group))
    return found


def joined_group(one: GalleryRow, other: GalleryRow, *, most: int) -> GalleryRow:
    """The removed items of a group that lies in two parts, as a repair's groups may; fewer where they are too many."""
    similarity = np.concatenate([one.similarity, other.similarity])
    order = np.lexsort((np.concatenate([one.ids, other.ids]), -similarity))
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(np.int64))]
    ids, kept, orphan = (
        np.concatenate(parts)[chosen]
        for parts in ((one.ids, other.ids), (one.kept, other.kept), (one.orphan, other.orphan))
    )
    return GalleryRow(ids, similarity[chosen], kept, orphan, one.total + other.total)


def choose_seeds(items: SelectedItems, *, epsilon: float, most: int, seed: int) -> list[SeedItem]:
    """Items with an earlier item within epsilon, drawn at random, one of each cluster before a second of any.

    Args:
        items: some whole clusters.
        epsilon: in [0, 2].
        most: how many to choose.
        seed: of the draw, which depends on ids alone.

    Returns:
        In the order in which they are shown; `merge_seeds` joins those of several parts.

    Raises:
        ValueError: epsilon is outside [0, 2].
    """
    candidates = np.flatnonzero(~keep_mask(items.similarity, epsilon))
    ids, clusters = items.ids[candidates], items.cluster[candidates]
    draws = id_hash(ids, seed=seed)
    order = np.lexsort((draws, clusters))
    first = np.searchsorted(clusters[order], clusters[order])
    turns = np.arange(len(order)) - first
    chosen = np.lexsort((draws[order], turns))[:most]
    return [
        SeedItem(int(turns[index]), int(draws[row]), int(ids[row]), int(clusters[row]))
        for index, row in zip(chosen, order[chosen], strict=True)
    ]


def merge_seeds(parts: Iterable[SeedItem], *, most: int) -> list[SeedItem]:
    """The first of the seeds of several parts, each of whole clusters."""
    return sorted(parts)[:most]


def most_removed(items: SelectedItems) -> ClusterLoss | None:
    """The cluster that lost most; of equal ones, and if none lost any, the largest.

    Args:
        items: some whole clusters.

    Returns:
        None without items. The greatest of several parts is their maximum.
    """
    if len(items.ids) == 0:
        return None
    clusters, index = np.unique(items.cluster, return_inverse=True)
    sizes, kept = np.bincount(index), np.bincount(index[items.kept], minlength=len(clusters))
    best = int(np.lexsort((sizes, sizes - kept))[-1])
    return ClusterLoss(int(sizes[best] - kept[best]), int(sizes[best]), int(clusters[best]))


def before_and_after(items: SelectedItems, *, most: int) -> tuple[GalleryRow, GalleryRow]:
    """All items of one cluster, and those that are kept; the most similar to the centroid first.

    Args:
        items: one cluster.
        most: items of a row.
    """
    order = np.lexsort((items.ids, -items.centroid_similarity))
    after = order[items.kept[order]]
    before_row, after_row = (
        _row(items, items.centroid_similarity, rows[:most], total=len(rows)) for rows in (order, after)
    )
    return before_row, after_row


@dataclass(frozen=True, slots=True)
class NeighbourSearch:
    """One cluster in which neighbours are looked for.

    Attributes:
        items: the cluster.
        vectors: n unit rows in the order of the items.
        thresholds: ascending epsilons, as from `gallery_thresholds`.
        most: neighbours of an item that are shown, of all rows together.
    """

    items: SelectedItems
    vectors: UnitRows
    thresholds: tuple[float, ...]
    most: int

    def around(self, item: int) -> Neighbours:
        """The neighbours of one item by falling similarity, divided by the thresholds.

        Raises:
            ValueError: the item is not in this cluster; names it.
        """
        ids = self.items.ids
        found = np.flatnonzero(ids == np.uint64(item))
        if len(found) == 0:
            message = f"item {item} is not among the {len(ids)} items of the cluster; choose the seeds again"
            raise ValueError(message)
        row = int(found[0])
        similarity = similarities_to(self.vectors, row)
        order = np.lexsort((ids, -similarity))
        order = order[order != row]
        within = [int((~keep_mask(similarity[order], epsilon)).sum()) for epsilon in self.thresholds]
        parts = np.split(order, within)
        counts = divide_evenly([len(part) for part in parts], most=self.most)
        return Neighbours(
            _row(self.items, similarity, found, total=1),
            tuple(
                _row(self.items, similarity, part[:count], total=len(part))
                for part, count in zip(parts, counts, strict=True)
            ),
            tuple(within),
        )


def neighbour_search(
    items: SelectedItems, vectors: Tensor, *, thresholds: tuple[float, ...], most: int, budget: int
) -> NeighbourSearch:
    """Prepare one cluster for `NeighbourSearch.around`.

    Args:
        items: the cluster.
        vectors: (n, d) unit rows in the order of the items.
        thresholds: ascending epsilons, as from `gallery_thresholds`.
        most: neighbours of an item that are shown, of all rows together.
        budget: bytes that the rows as float32 may take on their device.

    Raises:
        ValueError: a row is not finite or not of unit norm (within 1e-2); names the row.
    """
    return NeighbourSearch(items, UnitRows(vectors, budget=budget), thresholds, most)


def similarities_to(vectors: UnitRows, row: int) -> np.ndarray:
    """Cosine similarity of each row to one of them: (n,) float32, at most 1."""
    query = vectors[row : row + 1].T  # (d, 1)
    with full_float32():
        parts = [
            (vectors[start : start + IN_CACHE] @ query).squeeze(1).clamp(-1, 1).cpu().numpy()
            for start in range(0, len(vectors), IN_CACHE)
        ]
    return np.concatenate(parts)


def divide_evenly(counts: Sequence[int], *, most: int) -> list[int]:
    """How many to show of each of several lists: at most `most` together, from all as evenly as they allow."""
    shown = [0] * len(counts)
    for _ in range(min(most, sum(counts))):
        fewest = min((index for index, count in enumerate(counts) if shown[index] < count), key=lambda i: shown[i])
        shown[fewest] += 1
    return shown


def _row(items: SelectedItems, similarity: np.ndarray, rows: np.ndarray, *, total: int) -> GalleryRow:
    return GalleryRow(items.ids[rows], similarity[rows], items.kept[rows], items.orphan[rows], total)
