"""Hold the captions of removed images against those of the kept images that they duplicate."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.analyses.galleries import PAGE, page_input_version, shown_page, write_page
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import item_texts
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import ANALYSE, Column, Link, Picture, Shown, Stage, Worker
from semdedup_assets.stages.caption_embeddings import caption_similarity, has_captions
from semdedup_assets.stages.keep_masks import mask_files
from semdedup_assets.storage.results import ResultRecord, StoredFile
from semdedup_assets.storage.tables import TableWriter, read_arrow, write_table

if TYPE_CHECKING:
    import polars as pl

    from semdedup_assets.rendering.gallery import Gallery, Group

PAIRS, COUNTS, PICTURE = "pairs.parquet", "counts.parquet", "similarities.png"
"""The files of the record: pairs whose captions disagree; all pairs counted by both similarities, and drawn."""

_EPSILONS = (0.001, 0.01, 0.05, 0.1, 0.2)
_CELLS = 40


def _worker(context: StageContext) -> Worker:
    return lambda partition: compare_captions(context, partition)


def compare_captions(context: StageContext, partition: Partition) -> ResultRecord:
    """Compare the captions of the removed pairs of a kept set, of images that agree; SemDeDup compares images only.

    Args:
        context: of the pipeline and the selection.
        partition: a kept set.

    Raises:
        MissingResultError: masks, captions or items are missing, or are made from other inputs than there are now.
    """
    with context.writing("caption_disagreement", partition) as result:
        masks = context.index.require_consistent("keep_masks", partition)[partition]
        context.index.require_consistent("caption_embeddings")
        pairs = _Pairs.of(context, masks)
        with usage.phase("join"):
            table = pairs.table(context)
        with result.open(PAIRS) as stream, TableWriter(stream) as writer:
            writer.write_frame(table)
        with result.open(COUNTS) as stream:
            write_table(stream, pairs.cells())
        with usage.phase("draw"):
            with result.open(PICTURE) as stream:
                stream.write(pairs.picture(_subject(context, partition)))
            gallery = _gallery(context, partition, table, pairs)
            parts = write_page(gallery, result)
        result.details = {**pairs.details(), **gallery.details(), "page": PAGE, "parts": parts}
    return result.committed


def _subject(context: StageContext, partition: Partition) -> str:
    return f"{context.pipeline.dataset}/{context.pipeline.model_name}, {partition.kept_set(context.selection).label}"


@dataclass
class _Pairs:
    """The removed items whose nearest kept item lies within epsilon, with the similarity of their captions.

    Attributes:
        epsilon: that the masks were made with.
        agree_from: similarity of captions below which they disagree.
        counts: (cells, cells) int64, pairs by similarity of images and of captions.
        bands: by the band's lower end in epsilon: pairs, pairs with two captions, pairs whose captions disagree.
        disagreeing: id, kept_id, image_similarity, caption_similarity of those.
    """

    epsilon: float
    agree_from: float
    counts: np.ndarray = field(default_factory=lambda: np.zeros((_CELLS, _CELLS), np.int64))
    bands: dict[float, np.ndarray] = field(default_factory=dict)
    disagreeing: list[dict[str, np.ndarray]] = field(default_factory=list)

    @classmethod
    def of(cls, context: StageContext, masks: ResultRecord) -> "_Pairs":
        """Compare all pairs, range by range of clusters."""
        pairs = cls(float(masks.details["epsilon"]), context.pipeline.analyses.captions.agree_from)
        pairs.bands = {low: np.zeros(3, np.int64) for low in pairs.band_edges[:-1]}
        for file in mask_files(masks):
            with usage.phase("compare"):
                for part in _duplicates(file, pairs.epsilon):
                    part["caption_similarity"] = caption_similarity(context, part["id"], part["kept_id"])
                    pairs.add(part)
        return pairs

    @property
    def band_edges(self) -> list[float]:
        """In epsilon, ascending: from 0 to the masks' own."""
        return [0.0, *(each for each in _EPSILONS if each < self.epsilon), self.epsilon]

    @property
    def image_edges(self) -> np.ndarray:
        """(cells + 1,) of the images' similarity: from the masks' threshold to 1."""
        return np.linspace(1.0 - max(self.epsilon, 1e-6), 1.0, _CELLS + 1)

    @property
    def caption_edges(self) -> np.ndarray:
        """(cells + 1,) of the captions' similarity."""
        return np.linspace(-1.0, 1.0, _CELLS + 1)

    def add(self, part: dict[str, np.ndarray]) -> None:
        image, caption = part["image_similarity"].astype(np.float64), part["caption_similarity"]
        present = ~np.isnan(caption)
        disagree = present & (np.nan_to_num(caption, nan=1.0) < self.agree_from)
        self.disagreeing.append({name: values[disagree] for name, values in part.items()})
        edges = np.array(self.band_edges)
        band = np.clip(np.searchsorted(edges, 1.0 - image, side="left") - 1, 0, len(edges) - 2)
        for index, counted in enumerate(self.bands.values()):
            here = band == index
            counted += [int(here.sum()), int((here & present).sum()), int((here & disagree).sum())]
        image, caption = np.clip(image[present], *self.image_edges[[0, -1]]), np.clip(caption[present], -1, 1)
        self.counts += np.histogram2d(image, caption, (self.image_edges, self.caption_edges))[0].astype(np.int64)

    def table(self, context: StageContext) -> "pl.DataFrame":
        """The pairs whose captions disagree, the least similar captions first, with keys and captions."""
        import polars as pl

        schema = {
            "id": pl.UInt64,
            "kept_id": pl.UInt64,
            "image_similarity": pl.Float32,
            "caption_similarity": pl.Float64,
        }
        found = pl.concat(
            [pl.DataFrame(schema=schema), *(pl.DataFrame(part, schema=schema) for part in self.disagreeing)]
        )
        ids = pl.concat([found["id"], found["kept_id"].rename("id")]).unique().sort().to_numpy()
        names = item_texts(context, ids, ["key", "caption"])
        return (
            found.join(names, on="id", how="left")
            .join(names.rename({each: f"kept_{each}" for each in names.columns}), on="kept_id", how="left")
            .sort("caption_similarity", "id")
            .select(
                "id", "key", "caption", "kept_id", "kept_key", "kept_caption", "image_similarity", "caption_similarity"
            )
        )

    def cells(self) -> dict[str, np.ndarray]:
        """The counts as a table, cells without pairs excluded."""
        image, caption = np.nonzero(self.counts)
        return {
            "image_low": self.image_edges[image],
            "image_high": self.image_edges[image + 1],
            "caption_low": self.caption_edges[caption],
            "caption_high": self.caption_edges[caption + 1],
            "pairs": self.counts[image, caption],
        }

    def picture(self, subject: str) -> bytes:
        from semdedup_assets.rendering.plots import caption_agreement

        note = f"{subject}: {self.totals[1]:,} removed images and the kept ones they duplicate, both with captions"
        return caption_agreement(
            self.counts, image=self.image_edges, caption=self.caption_edges, agree_from=self.agree_from, note=note
        )

    @property
    def totals(self) -> tuple[int, int, int]:
        """Pairs, pairs with two captions, pairs whose captions disagree."""
        pairs, both, disagree = np.sum(list(self.bands.values()), axis=0).tolist()
        return pairs, both, disagree

    def details(self) -> dict[str, Any]:
        pairs, both, disagree = self.totals
        edges = self.band_edges
        rows = [
            {
                "epsilon above": low,
                "up to": high,
                "pairs": int(counted[0]),
                "both with captions": int(counted[1]),
                "disagree": int(counted[2]),
            }
            for (low, counted), high in zip(self.bands.items(), edges[1:], strict=True)
        ]
        return {
            "epsilon": self.epsilon,
            "agree_from": self.agree_from,
            "pairs": pairs,
            "without_caption": pairs - both,
            "disagree": disagree,
            "disagreeing_share": disagree / both if both else None,
            "by_epsilon": rows,
        }


def _duplicates(file: StoredFile, epsilon: float) -> Iterator[dict[str, np.ndarray]]:
    """The removed items of a range whose nearest kept item lies within epsilon, row group by row group."""
    import polars as pl

    for table in read_arrow(file, ["id", "kept", "kept_neighbour", "kept_similarity"]):
        rows = pl.DataFrame(table).filter(
            ~pl.col("kept") & (pl.col("kept_similarity").cast(pl.Float64) > 1.0 - epsilon)
        )
        yield {
            "id": rows["id"].to_numpy(),
            "kept_id": rows["kept_neighbour"].cast(pl.UInt64).to_numpy(),
            "image_similarity": rows["kept_similarity"].to_numpy(),
        }


def _gallery(context: StageContext, partition: Partition, table: "pl.DataFrame", pairs: _Pairs) -> "Gallery":
    """Kept items with the removed ones whose captions disagree with theirs."""
    import polars as pl

    from semdedup_assets.analyses.gallery_items import read_cards
    from semdedup_assets.rendering.gallery import Gallery, Section

    settings, kept_set = context.pipeline.galleries, partition.kept_set(context.selection)
    queries = table["kept_id"].unique(maintain_order=True)[: settings.groups]
    groups = tuple(_group(table.filter(pl.col("kept_id") == query), settings.items) for query in queries)
    total, both, disagree = pairs.totals
    note = (
        f"{total:,} removed images lie within ε = {pairs.epsilon:.4g} of the kept one that is nearest; {both:,} of these pairs "
        f"have both captions, and in {disagree:,} of them the captions are less similar than {pairs.agree_from:g} to each "
        "other. The least similar captions come first. Numbers are the images' similarities. A selection's setting "
        "spare_captions_below keeps such items."
    )
    section = Section("captions_that_disagree", "Images that agree, captions that do not", note, groups)
    with usage.phase("read"):
        cards = read_cards(context, list(dict.fromkeys(item.id for item in section.items())))
    facts = {"kept set": kept_set.label, "pairs": f"{total:,}", "captions disagree": f"{disagree:,}"}
    title = f"Captions in {context.pipeline.dataset} ({context.pipeline.model_name})"
    return Gallery(title, facts, (section,), cards.by_id, context.pipeline.source.content)


def _group(rows: "pl.DataFrame", most: int) -> "Group":
    from semdedup_assets.rendering.gallery import Group, Row, RowItem

    columns = rows.head(most).select("id", "image_similarity").iter_rows()
    items = tuple(RowItem(item, kept=False, similarity=similarity) for item, similarity in columns)
    low, high = rows["caption_similarity"][0], rows["caption_similarity"][-1]
    between = f"{low:.2f}" if len(rows) == 1 else f"{low:.2f} to {high:.2f}"
    title = f"{len(rows):,} removed, captions' similarity {between}"
    return Group(title, RowItem(int(rows["kept_id"][0]), kept=True), (Row("removed", "", items, len(rows)),))


def _shown(context: StageContext, partition: Partition, record: ResultRecord) -> dict[str, Shown]:
    picture = Picture(record.file(PICTURE).content(), "similarity of images against that of captions")
    return {
        "similarities": picture,
        **shown_page(context, partition, record),
        "table": Link(record.file(PAIRS).path),
    }


STAGE = Stage(
    name="caption_disagreement",
    step=ANALYSE,
    description="Removed images whose captions say something else than those of the kept images that they duplicate: "
    "counted by epsilon, all pairs drawn by both similarities, the disagreeing ones as a table and a page. SemDeDup "
    "compares images only. Made on demand.",
    dimensions=("epsilon", "k"),
    inputs=("keep_masks", "caption_embeddings", "items"),
    input_version=page_input_version,
    settings=lambda context: {
        **context.pipeline.analyses.captions.model_dump(),
        "galleries": context.pipeline.galleries.model_dump(include={"groups", "items", "mib"}),
    },
    location=lambda layout, partition, selection: layout.of_kept_set(
        partition.kept_set(selection), "caption_disagreement"
    ),
    worker=_worker,
    applies=lambda pipeline, _: has_captions(pipeline),
    kinds=frozenset({"polars", "parquet", "html"}),
    columns=lambda _: (
        Column("id", "uint64", "The removed item: shard (32 bits) and row in the shard (32 bits)."),
        Column("key", "string", "Its own name."),
        Column("caption", "string", "Its caption."),
        Column("kept_id", "uint64", "The most similar kept item."),
        Column("kept_key", "string", "That item's own name."),
        Column("kept_caption", "string", "That item's caption."),
        Column("image_similarity", "float32", "Cosine similarity of the two images; above 1 - epsilon."),
        Column("caption_similarity", "float64", "Cosine similarity of the two captions; below `agree_from`."),
    ),
    shown=_shown,
    selected=True,
    on_demand=True,
    pool="cpu",
    unit="kept sets",
)
