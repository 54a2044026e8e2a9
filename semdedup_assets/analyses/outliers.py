"""List the items that stand out, and the typical ones: by similarity to their centroid, and to any other item."""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.analyses.galleries import page_input_version
from semdedup_assets.analyses.gallery_items import ItemCards, read_cards
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import Progress
from semdedup_assets.execution.stage import ANALYSE, Column, Link, Picture, Rows, Shown, Stage, Worker
from semdedup_assets.rendering.contact_sheet import section_picture
from semdedup_assets.rendering.gallery import Gallery, Group, Row, RowItem, Section, gallery_page, section_table
from semdedup_assets.stages.cluster_batches import AssignedClusters
from semdedup_assets.storage.results import ResultRecord, ResultWriter
from semdedup_assets.storage.tables import write_table

if TYPE_CHECKING:
    from semdedup_assets.algorithm.outliers import ExtremeItems, RankedItems

PAGE, TABLE = "index.html", "outliers.parquet"
"""The page and the table, in the record of a clustering's outliers."""

_LISTS = {
    "least_similar_to_centroid": ("Least similar to their centroid", "to the centroid"),
    "most_similar_to_centroid": ("Most similar to their centroid", "to the centroid"),
    "most_isolated": ("Most isolated", "to the most similar other item of the cluster"),
}


def _worker(context: StageContext) -> Worker:
    return lambda partition: find_outliers(context, partition)


def find_outliers(context: StageContext, partition: Partition) -> ResultRecord:
    """List and show the outliers and the typical items of one clustering.

    Similarities to centroids are those of all items. The most isolated items, of which the greatest similarity to any
    other item of their cluster is least, are looked for in all clusters or, of much data, in a seeded choice of whole
    ones.

    Args:
        context: of the pipeline.
        partition: a clustering.

    Raises:
        MissingResultError: assignments or items are missing, or are made from other inputs than there are now.
    """
    with context.writing("outliers", partition) as result:
        context.index.require_all("items")
        found = _Found(context, AssignedClusters(context, partition.required_clustering))
        with usage.phase("read"):
            found.rank_by_centroid()
        with usage.phase("compare"):
            found.rank_by_isolation()
        with usage.phase("draw"):
            cards = _write(found, result)
        result.details = found.details() | cards.details()
    return result.committed


@dataclass
class _Found:
    """The lists of one clustering, as its clusters pass by.

    Attributes:
        context: of the pipeline.
        assigned: the clusters.
        lists: by name, those of `_LISTS`.
        sizes: (k,) int64, items of each cluster.
    """

    context: StageContext
    assigned: AssignedClusters
    lists: "dict[str, ExtremeItems]" = field(init=False)
    sizes: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        from semdedup_assets.algorithm.outliers import ExtremeItems

        most = self.context.pipeline.analyses.outliers.items
        self.lists = {name: ExtremeItems(most, greatest=name == "most_similar_to_centroid") for name in _LISTS}
        self.sizes = np.zeros(self.assigned.ranges[-1].stop, np.int64)

    def rank_by_centroid(self) -> None:
        """Pass over all items once."""
        ranges = len(self.assigned.ranges)
        with Progress(f"outliers {self.assigned.clustering}", total=ranges, unit="ranges") as progress:
            for index in range(ranges):
                for batch in self.assigned.batches(index):
                    self.sizes[batch.first : batch.first + len(batch.offsets) - 1] += np.diff(batch.offsets)
                    for name in ("least_similar_to_centroid", "most_similar_to_centroid"):
                        self.lists[name].add(batch.ids, batch.cluster, batch.centroid_similarity)
                progress.advance()

    def rank_by_isolation(self) -> None:
        """Compare the items of whole clusters: of all, or of a seeded choice."""
        from semdedup_assets.algorithm.epsilon_curves import choose_clusters
        from semdedup_assets.algorithm.outliers import greatest_similarity_to_another
        from semdedup_assets.algorithm.unit_rows import as_tensor

        compute = self.context.compute
        for index, wanted in choose_clusters(self.sizes, self.assigned.ranges).items() if self.sizes.any() else ():
            clusters = self.assigned.ranges[index]
            # Clusters one by one are slow to read where all are wanted.
            only = None if len(wanted) == np.count_nonzero(self.sizes[clusters.start : clusters.stop]) else wanted
            for batch in self.assigned.batches(index, only=only):
                vectors = as_tensor(batch.vectors).to(compute.torch_device)
                similarity = greatest_similarity_to_another(vectors, batch.offsets, budget=compute.budget)
                self.lists["most_isolated"].add(batch.ids, batch.cluster, similarity)

    @property
    def items(self) -> int:
        """All items."""
        return int(self.sizes.sum())

    @property
    def compared(self) -> str:
        """Among which items the most isolated ones were looked for."""
        seen = self.lists["most_isolated"].seen
        return f"all {seen:,} items" if seen == self.items else f"{seen:,} of {self.items:,} items, in whole clusters"

    def details(self) -> dict[str, Any]:
        """What the record says of them."""
        return {"items": self.items, "items_compared": self.lists["most_isolated"].seen} | {
            f"{name}_{end}": float(found.found.similarity[row])
            for name, found in self.lists.items()
            for end, row in (("first", 0), ("last", -1))
            if len(found.found.ids) and np.isfinite(found.found.similarity[row])
        }


def _write(found: _Found, result: ResultWriter) -> ItemCards:
    """Write the table, the page, and each list as a small picture or table; returns what was read for them."""
    context, lists = found.context, {name: each.found for name, each in found.lists.items()}
    read = read_cards(context, [item for each in lists.values() for item in each.ids.tolist()])
    cards = read.by_id
    sections = tuple(_section(name, each, found) for name, each in lists.items())
    pipeline, clustering = context.pipeline, found.assigned.clustering
    facts = {
        "clustering": clustering.label,
        "items": f"{found.items:,}",
        "clusters with items": f"{np.count_nonzero(found.sizes):,}",
        "isolation looked for among": found.compared,
    }
    title = f"Outliers and typical items of {pipeline.dataset} ({pipeline.model_name})"
    gallery = Gallery(title, facts, sections, cards, pipeline.source.content)
    with result.open(TABLE) as stream:
        write_table(stream, _table(lists, {item: card.key for item, card in cards.items()}))
    with result.open(PAGE) as stream:
        stream.write(gallery_page(gallery))
    for section in sections:
        name, content = _part(gallery, section)
        with result.open(name) as stream:
            stream.write(content)
    return read


def _section(name: str, ranked: "RankedItems", found: _Found) -> Section:
    title, similar = _LISTS[name]
    similarity = [value if np.isfinite(value) else None for value in ranked.similarity.tolist()]
    items = tuple(
        RowItem(item, kept=None, similarity=value) for item, value in zip(ranked.ids.tolist(), similarity, strict=True)
    )
    label = f"cosine similarity {similar}{'; none where it is alone in it' if None in similarity else ''}"
    order = "falling" if name == "most_similar_to_centroid" else "rising"
    row = Row(label, "", items, found.lists[name].seen)
    groups = (Group(f"By {order} similarity", None, (row,)),) if items else ()
    return Section(name, title, _note(name, found), groups)


def _note(name: str, found: _Found) -> str:
    if name == "most_isolated":
        return (
            "Items whose most similar other item of their cluster is the least similar: nothing in the data resembles "
            f"them. Looked for among {found.compared}."
        )
    if name == "most_similar_to_centroid":
        return "Typical items: the ones that the strategy “easy” keeps first. Of all items."
    return (
        "Items that fit their cluster worst: rare ones, also broken or mislabelled ones. The strategy “hard” keeps "
        "them first. Of all items."
    )


def _part(gallery: Gallery, section: Section) -> tuple[str, bytes]:
    """Name and content of a section's small picture or table."""
    if gallery.content == "image":
        return f"{section.name}.png", section_picture(section, cards=gallery.cards)
    return f"{section.name}.json", json.dumps(section_table(gallery, section), indent=1).encode()


def _table(lists: "dict[str, RankedItems]", keys: dict[int, str]) -> dict[str, np.ndarray]:
    found = list(lists.values())
    ids = np.concatenate([each.ids for each in found])
    similarity = np.concatenate([each.similarity for each in found])
    return {
        "list": np.array([name for name, each in lists.items() for _ in each.ids], dtype=object),
        "rank": np.concatenate([np.arange(1, len(each.ids) + 1) for each in found]),
        "id": ids,
        "key": np.array([keys[item] for item in ids.tolist()], dtype=object),
        "cluster": np.concatenate([each.cluster for each in found]),
        "similarity": np.ma.masked_array(similarity, mask=~np.isfinite(similarity)),
    }


def _shown(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    shown: dict[str, Shown] = {"outliers": Link(record.file(PAGE).path)}
    for name, (title, _similar) in _LISTS.items():
        if f"{name}.png" in record.files:
            shown[name] = Picture(record.file(f"{name}.png").content(), title)
        elif rows := json.loads(record.file(f"{name}.json").content()):
            shown[name] = Rows(rows, brief=True)
    return shown


STAGE = Stage(
    name="outliers",
    step=ANALYSE,
    description="The items that are least and most similar to their centroid, and the most isolated ones, whose most "
    "similar other item of their cluster is the least similar: as a table, with pictures. Beyond the paper.",
    dimensions=("k",),
    inputs=("assignments", "items"),
    input_version=page_input_version,
    settings=lambda context: {
        "items": context.pipeline.analyses.outliers.items,
        "mib": context.pipeline.galleries.mib,
    },
    location=lambda layout, partition, _: layout.of_clustering(partition.required_clustering, "outliers"),
    worker=_worker,
    kinds=frozenset({"html", "parquet"}),
    columns=lambda _: (
        Column("list", "string", "`least_similar_to_centroid`, `most_similar_to_centroid` or `most_isolated`."),
        Column("rank", "int64", "From 1."),
        Column("id", "uint64", "The item: shard (32 bits) and row in the shard (32 bits)."),
        Column("key", "string", "Its own name."),
        Column("cluster", "int64", "Index of its cluster."),
        Column("similarity", "float64", "To the centroid, or to the most similar other item; null where it is alone."),
    ),
    shown=_shown,
    on_demand=True,
    unit="clusterings",
)
