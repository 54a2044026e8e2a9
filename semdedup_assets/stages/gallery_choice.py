"""Choose what a gallery shows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from semdedup_assets.algorithm.sampling import id_hash
from semdedup_assets.algorithm.selection import keep_mask
from semdedup_assets.algorithm.unit_rows import IN_CACHE, UnitRows, as_tensor, full_float32
from semdedup_assets.figures.gallery import Band, Panel, Section, Shown, shares
from semdedup_assets.stages.clusters import ClusterRun, bucket_runs
from semdedup_assets.stages.duplicate_scores import AssignedShards
from semdedup_assets.stages.keep_masks import resolve_epsilon
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.results import Recipe
from semdedup_assets.storage.tables import read_table

# The cluster's items that are shown before, and again after, for each of `galleries.items`.
_CLUSTER_ITEMS = 4
_MARKS = {
    "image": "",
    "text": " Words that only the other text has are struck out on red; words that it lacks stand on green.",
    "vector": " The source holds ready vectors: there is nothing to see but keys.",
}
_CHAIN = {
    "chain": (
        " Removed by chain: the items that are similar enough to it were all removed themselves; "
        "the rule “greedy” keeps such items."
    ),
    "greedy": "",
}

Rows = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class _Threshold:
    """An epsilon of the pipeline, under all names that come to it."""

    epsilon: float
    names: tuple[str, ...]

    @property
    def label(self) -> str:
        """What lies within it and not within a smaller one."""
        return f"ε {' = '.join(self.names)}: over {1 - self.epsilon:.4g}"


@dataclass(frozen=True, slots=True, order=True)
class _Seed:
    """An item with a neighbour within the greatest epsilon; the first in this order are shown.

    Attributes:
        turn: how many seeds of its cluster come before it, so that every cluster has its turn.
        draw: a pseudo-random number.
        item: its id.
        bucket: of its cluster.
        cluster: its index.
    """

    turn: int
    draw: int
    item: int
    bucket: int
    cluster: int


@dataclass(frozen=True, slots=True, order=True)
class _Cluster:
    """A cluster; the greatest in this order is shown."""

    removed: int
    size: int
    index: int
    bucket: int


@dataclass(frozen=True)
class _Selected:
    """What was selected at one k and epsilon."""

    work: Work
    assigned: AssignedShards
    epsilon: str
    number: float

    def rows(self, bucket: int) -> Rows:
        """A bucket's scores and masks, which are of the same rows: by cluster, and within each in keep-order.

        Also `by_chain`: whether an item is removed though no kept one is similar enough.
        """
        layout, k, name = self.work.layout, self.assigned.k, self.work.buckets[bucket]
        scores = read_table(layout.scores(k, name), ["id", "cluster", "centroid_similarity", "similarity"])
        masks = read_table(layout.mask(k, self.epsilon, name), ["kept", "kept_neighbour", "kept_similarity"])
        by_chain = ~masks["kept"] & keep_mask(masks["kept_similarity"], self.number)
        return scores | masks | {"by_chain": by_chain}

    def clusters(self, bucket: int, wanted: set[int]) -> Iterator[tuple[ClusterRun, Rows]]:
        """Some clusters of a bucket with their vectors, and their rows."""
        rows, ranges = self.rows(bucket), self.assigned.clusters.buckets
        for run in bucket_runs(self.work, self.assigned.k, bucket=bucket, clusters=ranges[bucket], only=wanted):
            start, stop = np.searchsorted(rows["cluster"], [run.first, run.first + 1])
            yield run, {name: column[start:stop] for name, column in rows.items()}


@dataclass
class _Found:
    """What one pass over all items finds worth showing, a bucket at a time."""

    groups: dict[int, Band] = field(default_factory=dict)
    seeds: list[_Seed] = field(default_factory=list)
    cluster: _Cluster | None = None


def chosen_sections(work: Work, epsilon: str, *, assigned: AssignedShards, masks: Recipe) -> tuple[Section, ...]:
    """The largest groups of duplicates; seed items with their neighbours; the cluster that lost most.

    Args:
        work: the pipeline at work.
        epsilon: as the partition spells it.
        assigned: the assignments of one k.
        masks: recipe of the keep masks.
    """
    selected = _Selected(work, assigned, epsilon, masks.details["epsilon"])
    thresholds = _thresholds(selected)
    leads = [group["kept"] for group in masks.details["largest_groups"]][: work.pipeline.galleries.groups]
    found = _look_through(selected, leads, greatest=thresholds[-1].epsilon)
    return (
        _group_section(work, leads, found.groups),
        _neighbour_section(selected, found.seeds, thresholds),
        _cluster_section(selected, found.cluster),
    )


def _thresholds(selected: _Selected) -> list[_Threshold]:
    """The pipeline's epsilons, rising."""
    names: dict[float, list[str]] = {}
    for name in selected.work.pipeline.epsilons:
        names.setdefault(resolve_epsilon(selected.work, selected.assigned.k, name), []).append(name)
    return [_Threshold(number, tuple(names[number])) for number in sorted(names)]


def _look_through(selected: _Selected, leads: list[int], *, greatest: float) -> _Found:
    work, found = selected.work, _Found()
    limits = work.pipeline.galleries
    for bucket in range(len(work.buckets)):
        rows = selected.rows(bucket)
        if len(rows["id"]) == 0:
            continue
        found.groups |= _groups(rows, leads, most=limits.items)
        candidates = np.flatnonzero(~keep_mask(rows["similarity"], greatest))
        seeds = _seeds(rows, candidates, bucket, most=limits.seeds, seed=limits.seed)
        found.seeds = sorted([*found.seeds, *seeds])[: limits.seeds]
        cluster = _most_removed(rows, bucket)
        found.cluster = cluster if found.cluster is None else max(found.cluster, cluster)
    return found


def _groups(rows: Rows, leads: list[int], *, most: int) -> dict[int, Band]:
    """Of each kept item that lies in these rows, removed items evenly from the most to the least similar."""
    found = {}
    for lead in leads:
        here = np.flatnonzero(~rows["kept"] & (rows["kept_neighbour"] == np.uint64(lead)))
        if len(here):
            order = here[np.lexsort((rows["id"][here], -rows["kept_similarity"][here]))]
            evenly = np.unique(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int))
            items = _shown(rows, rows["kept_similarity"], order[evenly])
            found[lead] = Band("removed", "", items, len(here))
    return found


def _shown(rows: Rows, similarity: np.ndarray, at: np.ndarray) -> tuple[Shown, ...]:
    return tuple(
        Shown(int(rows["id"][i]), bool(rows["kept"][i]), float(similarity[i]), bool(rows["by_chain"][i])) for i in at
    )


def _seeds(rows: Rows, candidates: np.ndarray, bucket: int, *, most: int, seed: int) -> list[_Seed]:
    ids, clusters = rows["id"][candidates], rows["cluster"][candidates]
    draws = id_hash(ids, seed=seed)
    order = np.lexsort((draws, clusters))
    first = np.searchsorted(clusters[order], clusters[order])
    turns = np.arange(len(order)) - first
    chosen = np.lexsort((draws[order], turns))[:most]
    return [
        _Seed(int(turns[i]), int(draws[order[i]]), int(ids[order[i]]), bucket, int(clusters[order[i]])) for i in chosen
    ]


def _most_removed(rows: Rows, bucket: int) -> _Cluster:
    """The cluster that lost most; if none lost any, the largest."""
    indices, place = np.unique(rows["cluster"], return_inverse=True)
    sizes, removed = np.bincount(place), np.bincount(place, weights=~rows["kept"]).astype(int)
    best = int(np.lexsort((sizes, removed))[-1])
    return _Cluster(int(removed[best]), int(sizes[best]), int(indices[best]), bucket)


def _group_section(work: Work, leads: list[int], groups: dict[int, Band]) -> Section:
    panels = [
        Panel(f"{groups[lead].total:,} removed, 1 kept in their place", Shown(lead, kept=True), (groups[lead],))
        for lead in leads
        if lead in groups
    ]
    note = (
        "Kept items for which the most others were removed: of each removed one, the kept item is the most similar of "
        "its cluster. Numbers are cosine similarities to the kept item. Where a group is larger than what is shown, "
        f"its items are taken evenly from the most to the least similar.{_CHAIN[work.pipeline.selection.rule]}"
        f"{_MARKS[work.pipeline.source.content]}"
    )
    return Section("largest_groups_of_duplicates", "Largest groups of duplicates", note, tuple(panels))


def _neighbour_section(selected: _Selected, seeds: list[_Seed], thresholds: list[_Threshold]) -> Section:
    work, panels = selected.work, dict[int, Panel]()
    for bucket in sorted({seed.bucket for seed in seeds}):
        within = [seed for seed in seeds if seed.bucket == bucket]
        for run, cluster in selected.clusters(bucket, {seed.cluster for seed in within}):
            vectors = as_tensor(run.vectors).to(work.compute.torch_device)
            cut = _Cut(cluster, UnitRows(vectors, budget=work.compute.budget))
            for seed in (seed for seed in within if seed.cluster == run.first):
                panels[seed.item] = _neighbours(work, seed.item, cut, thresholds)
    note = (
        "Items drawn at random among those that duplicate another within the greatest ε, each with the rest of its "
        "cluster by falling cosine similarity (SemDeDup, figures 2 and A9). Above them stand the ε from which on they "
        f"count as its duplicates, and the similarity that this asks for.{_MARKS[work.pipeline.source.content]}"
    )
    shown = tuple(panels[seed.item] for seed in seeds)
    return Section("neighbours_at_rising_epsilon", "Neighbours at rising ε", note, shown, "seed")


@dataclass(frozen=True, slots=True)
class _Cut:
    """A cluster: its n rows of scores and masks, and n unit rows."""

    rows: Rows
    vectors: UnitRows

    def similarities(self, row: int) -> np.ndarray:
        """(n,) float32: cosine similarity of each row to one."""
        seed = self.vectors[row : row + 1].T
        with full_float32():
            parts = [
                (self.vectors[start : start + IN_CACHE] @ seed).squeeze(1).clamp(-1, 1).cpu().numpy()
                for start in range(0, len(self.vectors), IN_CACHE)
            ]
        return np.concatenate(parts)


def _neighbours(work: Work, item: int, cluster: _Cut, thresholds: Sequence[_Threshold]) -> Panel:
    """An item's neighbours, of each band between two epsilons the most similar ones."""
    ids = cluster.rows["id"]
    row = int(np.flatnonzero(ids == np.uint64(item))[0])
    similarity = cluster.similarities(row)
    order = np.lexsort((ids, -similarity))
    order = order[order != row]
    ends = [int((~keep_mask(similarity[order], each.epsilon)).sum()) for each in thresholds]
    bands = np.split(order, ends)
    labels = [(each.label, f"{each.epsilon:.2g}") for each in thresholds] + [("beyond every ε", "none")]
    taken = shares([len(band) for band in bands], most=work.pipeline.galleries.items)
    return Panel(
        f"{ends[-1]:,} of the {len(order):,} others in its cluster lie within ε = {thresholds[-1].names[0]}",
        Shown(item, kept=bool(cluster.rows["kept"][row])),
        tuple(
            Band(*label, _shown(cluster.rows, similarity, band[:count]), len(band))
            for label, band, count in zip(labels, bands, taken, strict=True)
            if count
        ),
    )


def _cluster_section(selected: _Selected, cluster: _Cluster | None) -> Section:
    panels: tuple[Panel, ...] = ()
    title = "A cluster before and after"
    if cluster is not None:
        title = f"Cluster {cluster.index} before and after"
        rows = selected.rows(cluster.bucket)
        here = np.flatnonzero(rows["cluster"] == cluster.index)
        order = here[np.lexsort((rows["id"][here], -rows["centroid_similarity"][here]))]
        most = _CLUSTER_ITEMS * selected.work.pipeline.galleries.items
        panels = tuple(
            Panel(f"{name}: {len(among):,} items", None, (_sorted_band(rows, among, most=most),))
            for name, among in (("Before", order), ("After", order[rows["kept"][order]]))
        )
    note = (
        "The cluster that lost the most items, sorted by cosine similarity to its centroid, the most similar first "
        "(SemDeDup, figures A10 and A11). Before: everything, removed items faint. After: what is kept."
    )
    return Section("cluster_before_and_after", title, note, panels, fade=True)


def _sorted_band(rows: Rows, order: np.ndarray, *, most: int) -> Band:
    items = _shown(rows, rows["centroid_similarity"], order[:most])
    return Band("most similar to the centroid first", "", items, len(order))
