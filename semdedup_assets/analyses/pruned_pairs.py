"""Tell what is being pruned: pairs of a removed item and its nearest kept one, by kind and by band of epsilon."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from semdedup_assets.algorithm.pair_bands import KINDS, KindCounts, PairBands, among_files, sample_by_band
from semdedup_assets.algorithm.sampling import id_hash
from semdedup_assets.analyses.pair_contents import Contents, hashes_of
from semdedup_assets.analyses.source_items import file_hashes
from semdedup_assets.baselines.fingerprints import require_library
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import columns_version, item_keys, items_file
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import ANALYSE, Column, Link, Picture, Rows, Shown, Stage, Worker
from semdedup_assets.kept_sets import Selection
from semdedup_assets.records import id_shards
from semdedup_assets.rendering import plots
from semdedup_assets.rendering.contact_sheet import Pair, contact_sheet
from semdedup_assets.rendering.pair_page import LABEL_FORMAT, PairPage, ShownPair, pair_page
from semdedup_assets.settings import Pipeline
from semdedup_assets.stages.embeddings import CONTENTS
from semdedup_assets.stages.keep_masks import mask_files
from semdedup_assets.storage.results import ResultRecord, ResultWriter
from semdedup_assets.storage.tables import read_table, read_tables, write_table

COUNTS, PAIRS, PICTURE, PAGE = "counts.parquet", "pairs.parquet", "kinds.png", "pairs.html"
"""The files of a kept set's pruned pairs, in its record."""

_NAMES = {
    "bytes": "equal bytes",
    "decoded": "equal after decoding",
    "perceptual": "near without a model",
    "semantic": "semantic",
    "unknown": "not read",
}
_SHEET_COLUMNS = 4


@dataclass(frozen=True, slots=True)
class RemovedPairs:
    """Pairs of a removed item and its nearest kept one: (n,) each.

    Attributes:
        removed: uint64.
        kept: uint64.
        similarity: float32.
        band: uint8.
        contents: (2, n) uint64, content hashes of both as they were embedded.
    """

    removed: np.ndarray
    kept: np.ndarray
    similarity: np.ndarray
    band: np.ndarray
    contents: np.ndarray

    @property
    def same_bytes(self) -> np.ndarray:
        """(n,) bool, whether the two are equal byte by byte."""
        equal: np.ndarray = (self.contents[0] == self.contents[1]) & (self.contents[0] != 0)
        return equal

    def __getitem__(self, rows: np.ndarray) -> "RemovedPairs":
        return RemovedPairs(
            self.removed[rows], self.kept[rows], self.similarity[rows], self.band[rows], self.contents[:, rows]
        )


def _worker(context: StageContext) -> Worker:
    require_library(context.pipeline.source.content)
    return lambda partition: compare_pruned_pairs(context, partition)


def compare_pruned_pairs(context: StageContext, partition: Partition) -> ResultRecord:
    """Tell kinds and bands of the pairs of one kept set (SemDeDup, sections 4.3 and 5.3), and show some of each.

    Args:
        context: of the pipeline and the selection.
        partition: a kept set.

    Raises:
        MissingResultError: masks or items are missing, or are made from other inputs than there are now.
        MissingExtraError: the extra `baselines` is not installed.
    """
    with context.writing("pruned_pairs", partition) as result:
        masks = context.index.require_consistent("keep_masks", partition)[partition]
        context.index.require_all("items")
        bands = PairBands.within(float(masks.details["epsilon"]), context.pipeline.analyses.pruned_pairs.bands)
        with usage.phase("hash"):
            pairs = _removed_pairs(context, masks, bands)
        with usage.phase("read"):
            compared = _Compared.of(context, pairs)
        counts = compared.counts(pairs, bands)
        with usage.phase("draw"):
            _write(_Drawing(context, partition, bands, counts), compared, result)
        result.details = {
            "pairs": len(pairs.removed),
            "same_bytes": int(pairs.same_bytes.sum()),
            "compared": int(counts.compared.sum()),
            "not_read": int((compared.kinds == "unknown").sum()),
            "shown": int(compared.is_shown.sum()),
            "files_read": compared.contents.files_read,
            "epsilon": masks.details["epsilon"],
            "by_band": _by_band(bands, counts),
        }
    return result.committed


def _removed_pairs(context: StageContext, masks: ResultRecord, bands: PairBands) -> RemovedPairs:
    """All pairs: what memory holds of each are 38 bytes."""
    types = {"id": np.uint64, "kept_neighbour": np.uint64, "kept_similarity": np.float32}
    parts = list(_removed_rows(masks))
    removed, kept, similarity = (
        np.concatenate([np.zeros(0, dtype), *(part[name] for part in parts)]) for name, dtype in types.items()
    )
    contents = hashes_of(context, np.concatenate([removed, kept])).reshape(2, -1)
    return RemovedPairs(removed, kept, similarity, bands.of(similarity), contents)


def _removed_rows(masks: ResultRecord) -> Iterator[dict[str, np.ndarray]]:
    for file in mask_files(masks):
        for part in read_tables(file, ["id", "kept", "kept_neighbour", "kept_similarity"]):
            # What no kept item stands for, as what a reference removes, is half of no pair.
            removed = ~part["kept"].astype(bool) & ~np.isnan(part["kept_similarity"])
            yield {name: part[name][removed] for name in ("id", "kept_neighbour", "kept_similarity")}


@dataclass(frozen=True, slots=True)
class _Compared:
    """The pairs of other bytes whose contents were compared, by band and within each in the order of the draw.

    Attributes:
        pairs: m of them.
        kinds: (m,) strings.
        nearness: (m,) float64, NaN where nothing could be read.
        is_shown: (m,) bool.
        contents: of their items.
    """

    pairs: RemovedPairs
    kinds: np.ndarray
    nearness: np.ndarray
    is_shown: np.ndarray
    contents: Contents

    @classmethod
    def of(cls, context: StageContext, pairs: RemovedPairs) -> "_Compared":
        settings = context.pipeline.analyses.pruned_pairs
        rest = np.flatnonzero(~pairs.same_bytes)
        rest = rest[_readable(context, pairs.removed[rest], pairs.kept[rest])]
        most = max(settings.sample, settings.shown)
        chosen = pairs[rest[sample_by_band(pairs.removed[rest], pairs.band[rest], most=most, seed=settings.seed)]]
        first = np.searchsorted(chosen.band, chosen.band)
        is_shown = np.arange(len(first)) - first < settings.shown
        both = np.unique(np.concatenate([chosen.removed, chosen.kept]))
        shown = np.unique(np.concatenate([chosen.removed[is_shown], chosen.kept[is_shown]]))
        contents = Contents.read(context, both, shown=shown)
        ids = list(zip(chosen.removed.tolist(), chosen.kept.tolist(), strict=True))
        kinds = np.array([contents.kind(context, *each) for each in ids], dtype=object)
        nearness = np.array([contents.nearness(context, *each) for each in ids], dtype=np.float64)
        return cls(chosen, kinds, nearness, is_shown & (kinds != "unknown"), contents)

    def counts(self, pairs: RemovedPairs, bands: PairBands) -> KindCounts:
        """By band and kind, scaled to all pairs."""
        number = len(bands.limits)
        total, same_bytes = (np.bincount(band, minlength=number) for band in (pairs.band, pairs.band[pairs.same_bytes]))
        sampled = [np.bincount(self.pairs.band[self.kinds == kind], minlength=number) for kind in KINDS[1:4]]
        return KindCounts.scaled(total, same_bytes, np.column_stack(sampled))


def _readable(context: StageContext, removed: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """(n,) bool: the pairs for which few files, or shards of texts, are read: of a folder every image is a file."""
    settings, source = context.pipeline.analyses.pruned_pairs, context.pipeline.source
    if source.kind == "folder":
        return np.ones(len(removed), bool)
    both = np.concatenate([removed, kept])
    if source.content == "image":
        files = file_hashes(context, both)
    else:
        files = id_hash(id_shards(both).astype(np.uint64), seed=0)
    one, other = files.reshape(2, -1)
    return among_files(one, other, ids=removed, most=_most_files(context), seed=settings.seed)


def _most_files(context: StageContext) -> int:
    """How many files, or tables of texts, of mean size are as large as what may be read; a pair may need two."""
    if context.pipeline.source.content == "image":
        sizes = [file.size for shard in context.shard_index.shards for file in shard.files]
    else:
        sizes = [items_file(record).entry.size for record in context.index.records("items").values()]
    may_be_read = context.pipeline.analyses.pruned_pairs.mib << 20
    return max(2, may_be_read * len(sizes) // max(1, sum(sizes)))


@dataclass(frozen=True, slots=True)
class _Drawing:
    """What the pictures, tables and pages of one kept set are drawn from."""

    context: StageContext
    partition: Partition
    bands: PairBands
    counts: KindCounts

    @property
    def subject(self) -> str:
        pipeline = self.context.pipeline
        kept_set = self.partition.kept_set(self.context.selection)
        return f"{pipeline.dataset}/{pipeline.model_name}, {kept_set.label}"

    def picture(self) -> bytes:
        total, scaled = int(self.counts.pairs.sum()), bool(self.counts.estimated.any())
        note = f"{self.subject}: {total:,} removed items, each with its nearest kept one"
        parts = {_NAMES[kind]: self.counts.pairs[:, column] for column, kind in enumerate(KINDS)}
        bars = plots.BandBars(self.bands.names, parts, self.counts.estimated)
        note += "; * kinds scaled from a sample" if scaled else ""
        return plots.removed_by_band(bars, title="What is removed, by band of epsilon", note=note)

    def page(self, shown: list[ShownPair]) -> PairPage:
        pipeline, counts = self.context.pipeline, self.counts.pairs
        identity = {
            "format": LABEL_FORMAT,
            "dataset": pipeline.dataset,
            "model": pipeline.model_name,
            "kept_set": str(self.partition),
            "selection": self.context.selection.label,
        }
        kept_set = self.partition.kept_set(self.context.selection)
        facts = {
            "clustering": kept_set.clustering.label,
            "selection": kept_set.selection.label,
            "target": kept_set.target.label,
            "removed": f"{int(counts.sum()):,}",
            "of equal bytes": f"{int(counts[:, 0].sum()):,}",
            "pairs to look at": f"{len(shown):,}",
        }
        notes = [_note(row) for row in _by_band(self.bands, self.counts)]
        title = f"What is removed from {pipeline.dataset} ({pipeline.model_name})"
        return PairPage(title, facts, identity, dict(zip(self.bands.names, notes, strict=True)), shown)

    def shown(self, compared: _Compared) -> list[ShownPair]:
        rows, names = np.flatnonzero(compared.is_shown), self.bands.names
        pairs, cards = compared.pairs[rows], compared.contents.cards
        order = np.argsort(
            np.argsort(id_hash(pairs.removed, seed=self.context.pipeline.analyses.pruned_pairs.seed + 2))
        )
        return [
            ShownPair(
                removed=removed,
                kept=kept,
                band=names[band],
                similarity=similarity,
                kind=_NAMES[compared.kinds[row]],
                contents=contents_of(*hashes),
                order=turn,
                cards=(cards[removed], cards[kept]),
            )
            for row, removed, kept, band, similarity, hashes, turn in zip(
                rows.tolist(),
                pairs.removed.tolist(),
                pairs.kept.tolist(),
                pairs.band.tolist(),
                pairs.similarity.tolist(),
                pairs.contents.T.tolist(),
                order.tolist(),
                strict=True,
            )
        ]


def contents_of(removed: int, kept: int) -> str:
    """The contents of a pair in letters: a label holds as long as they are the same."""
    return f"{removed:016x}-{kept:016x}"


def _by_band(bands: PairBands, counts: KindCounts) -> list[dict[str, Any]]:
    rows = zip(bands.names, counts.pairs.tolist(), counts.compared.tolist(), counts.estimated.tolist(), strict=True)
    return [
        {"band": name, "pairs": sum(pairs), **dict(zip(KINDS, pairs, strict=True)), "compared": n, "estimated": scaled}
        for name, pairs, n, scaled in rows
    ]


def _note(row: dict[str, Any]) -> str:
    parts = [f"{row[kind]:,} {_NAMES[kind]}" for kind in KINDS if row[kind]]
    scaled = f", scaled from {row['compared']:,} compared" if row["estimated"] else ""
    hidden = " Pairs of equal bytes are not shown." if row["bytes"] else ""
    orphans = " Orphans: no kept item lies within epsilon of them." if row["band"].startswith("beyond") else ""
    return f"{row['pairs']:,} pairs: {'; '.join(parts)}{scaled}.{hidden}{orphans}" if parts else "No pairs."


def _write(drawing: _Drawing, compared: _Compared, result: ResultWriter) -> None:
    shown = drawing.shown(compared)
    contents = {PICTURE: drawing.picture(), PAGE: pair_page(drawing.page(shown))}
    if drawing.context.pipeline.source.content == "image":
        contents |= _sheets(drawing, shown)
    for name, content in contents.items():
        with result.open(name) as stream:
            stream.write(content)
    with result.open(COUNTS) as stream:
        write_table(stream, _counts_table(drawing.bands, drawing.counts))
    with result.open(PAIRS) as stream:
        write_table(stream, _pairs_table(drawing, compared))


def _sheets(drawing: _Drawing, shown: list[ShownPair]) -> dict[str, bytes]:
    """A contact sheet of each band with pairs to show."""
    sheets = {}
    for index, name in enumerate(drawing.bands.names):
        pairs = [
            Pair(removed.image, kept.image, pair.similarity, pair.kind)
            for pair in shown
            for removed, kept in [pair.cards]
            if pair.band == name and removed.image is not None and kept.image is not None
        ]
        if pairs:
            title = f"{name.replace('–', ' to ')}: {len(pairs)} pairs of other bytes, drawn at random"
            sheets[f"band{index}.png"] = contact_sheet(pairs, title=title, columns=_SHEET_COLUMNS, colours=256)
    return sheets


def _counts_table(bands: PairBands, counts: KindCounts) -> dict[str, np.ndarray]:
    number = len(KINDS)
    low, high = np.array(bands.limits).T
    total = np.maximum(counts.pairs.sum(axis=1), 1)
    return {
        "band": np.repeat(np.array(bands.names, dtype=object), number),
        "low": np.repeat(low, number),
        "high": np.repeat(high, number),
        "kind": np.tile(np.array(KINDS, dtype=object), len(bands.names)),
        "pairs": counts.pairs.reshape(-1),
        "share": (counts.pairs / total[:, None]).reshape(-1),
        "estimated": (counts.estimated[:, None] & (np.arange(number) > 0)).reshape(-1),
        "compared": np.repeat(counts.compared, number),
    }


def _pairs_table(drawing: _Drawing, compared: _Compared) -> dict[str, np.ndarray]:
    pairs, context = compared.pairs, drawing.context
    keys = item_keys(context, np.unique(np.concatenate([pairs.removed, pairs.kept])).tolist())
    nearness = np.ma.masked_invalid(compared.nearness)
    names = np.array(drawing.bands.names, dtype=object)
    contents = [contents_of(*hashes) for hashes in pairs.contents.T.tolist()]
    return {
        "id": pairs.removed,
        "key": np.array([keys[item] for item in pairs.removed.tolist()], dtype=object),
        "kept_id": pairs.kept,
        "kept_key": np.array([keys[item] for item in pairs.kept.tolist()], dtype=object),
        "similarity": pairs.similarity,
        "band": names[pairs.band],
        "kind": compared.kinds,
        _nearness_column(context.pipeline).name: nearness,
        "shown": compared.is_shown,
        "contents": np.array(contents, dtype=object),
    }


def _nearness_column(pipeline: Pipeline) -> Column:
    if pipeline.source.content == "image":
        return Column("hamming", "float64", "Differing bits of the perceptual hashes; null where one was not read.")
    return Column("jaccard", "float64", "Jaccard similarity of the n-grams, by MinHash; null where one was not read.")


def band_counts(record: ResultRecord) -> dict[str, np.ndarray]:
    """Pairs and pairs of equal bytes of each band, with its name and limits; the last band is that of orphans.

    Args:
        record: of a kept set's pruned pairs.
    """
    table, number = read_table(record.file(COUNTS), ["band", "low", "high", "pairs"]), len(KINDS)
    pairs = table["pairs"].reshape(-1, number)
    limits = {name: table[name][::number] for name in ("band", "low", "high")}
    return {**limits, "pairs": pairs.sum(axis=1), "same_bytes": pairs[:, KINDS.index("bytes")]}


def _shown(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    shown: dict[str, Shown] = {
        "pairs_to_mark": Link(record.file(PAGE).path),
        "kinds": Picture(record.file(PICTURE).content(), "What is removed, by band of epsilon"),
        "by_band": Rows([row for row in record.details["by_band"] if row["pairs"]]),
    }
    for row, name in ((row, f"band{index}.png") for index, row in enumerate(record.details["by_band"])):
        if name in record.files:
            shown[f"band {row['band']}"] = Picture(record.file(name).content(), f"Pairs of band {row['band']}")
    return shown if record.details["pairs"] else {name: shown[name] for name in ("pairs_to_mark", "kinds")}


def _input_version(_: StageContext, name: str, record: ResultRecord) -> str:
    """Of embeddings the content hashes, of items what is shown of them: no vector and no other column."""
    if name == "embeddings":
        return record.files[CONTENTS].checksum
    return record.version if name != "items" else columns_version(record, ("key", "text"))


def _settings(context: StageContext) -> dict[str, Any]:
    analyses = context.pipeline.analyses
    return {"pairs": analyses.pruned_pairs.model_dump(), "fingerprints": analyses.fingerprints.model_dump()}


def _applies(pipeline: Pipeline, _: Selection) -> bool:
    return pipeline.source.content != "vector"


STAGE = Stage(
    name="pruned_pairs",
    step=ANALYSE,
    description="What is being pruned (SemDeDup, sections 4.3 and 5.3): pairs of a removed item and its nearest kept one "
    "by band of epsilon, and by what makes them alike: equal bytes, equal after decoding, near by a hash without a model "
    "(perceptual hash of images, MinHash of texts), or only the model. With pairs to look at, and a page on which a "
    "person marks each as a duplicate or not.",
    dimensions=("epsilon", "k"),
    inputs=("embeddings", "items", "keep_masks"),
    input_version=_input_version,
    settings=_settings,
    location=lambda layout, partition, selection: layout.of_kept_set(partition.kept_set(selection), "pruned_pairs"),
    worker=_worker,
    kinds=frozenset({"html", "matplotlib", "parquet"}),
    columns=lambda pipeline: (
        Column("id", "uint64", "The removed item: shard (32 bits) and row in the shard (32 bits)."),
        Column("key", "string", "Its own name."),
        Column("kept_id", "uint64", "Its nearest kept item."),
        Column("kept_key", "string", "That item's own name."),
        Column("similarity", "float32", "Cosine similarity of the two."),
        Column("band", "string", "Of epsilon, 1 - similarity."),
        Column("kind", "string", "`decoded`, `perceptual`, `semantic`, or `unknown` where one could not be read."),
        _nearness_column(pipeline),
        Column("shown", "bool", "Whether the page shows it."),
        Column("contents", "string", "Content hashes of both, hexadecimal."),
    ),
    shown=_shown,
    selected=True,
    on_demand=True,
    applies=_applies,
    pool="cpu",
    unit="kept sets",
)
