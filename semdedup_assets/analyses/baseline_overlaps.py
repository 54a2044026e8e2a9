"""Hold a kept set against the baselines: what both remove, and what only the method finds."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from semdedup_assets.algorithm.choice_overlap import Choice, ChoiceOverlap, choice_overlap, found_alone
from semdedup_assets.algorithm.random_choice import random_choice
from semdedup_assets.algorithm.sampling import id_hash
from semdedup_assets.analyses.gallery_items import cards_version, read_cards
from semdedup_assets.baselines import exact_masks, near_duplicate_masks, perceptual_masks
from semdedup_assets.baselines.random_choices import RANDOM, sized_mask, sizes_of, sizes_version
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import ANALYSE, Column, Link, Picture, Rows, Shown, Stage, Worker
from semdedup_assets.kept_sets import Selection
from semdedup_assets.rendering.contact_sheet import Pair, contact_sheet
from semdedup_assets.rendering.gallery import Gallery, Group, Row, RowItem, Section, gallery_page, section_table
from semdedup_assets.rendering.plots import RemovalBars, removal_bars
from semdedup_assets.settings import Pipeline
from semdedup_assets.stages.keep_masks import mask_files
from semdedup_assets.storage.results import MissingResultError, ResultRecord, ResultWriter
from semdedup_assets.storage.tables import read_arrow, write_table

OVERLAPS, PAIRS, PICTURE, PAGE = "overlaps.parquet", "pairs.parquet", "overlaps.png", "only_semdedup.html"
"""The tables by baseline and of pairs that no baseline finds, the picture, and the page of such pairs, in the record."""

_GROUPED = (exact_masks.STAGE, near_duplicate_masks.STAGE, perceptual_masks.STAGE)
"""The baselines that know which items belong together."""

_NO_SEED, _SHEET_COLUMNS = -1, 4
_COUNTS = (
    "items", "kept", "kept_by_other", "kept_by_both", "removed_by_both", "removed_only", "removed_only_by_other",
    "pairs_of_other", "other_pairs",
)  # fmt: skip
_REMOVED = {
    "removed_by_both": "removed by both",
    "removed_only": "only by SemDeDup",
    "removed_only_by_other": "only by the baseline",
}
# Of what is shown; too wide for one table with the counts of items.
_PAIRS_OF_OTHER, _OTHER_PAIRS = "SemDeDup's pairs found", "its pairs SemDeDup finds"


def grouped_baselines(pipeline: Pipeline, selection: Selection) -> tuple[str, ...]:
    """Names of the stages whose masks a kept set is held against."""
    return tuple(stage.name for stage in _GROUPED if stage.applies(pipeline, selection))


@dataclass(frozen=True)
class _Choices:
    """What the method and the baselines keep of the same items.

    Attributes:
        ids: (n,) uint64, ascending.
        similarity: (n,) float32 to the kept item for which each was removed; NaN where it is kept.
        method: the kept set's own.
        baselines: by name.
        random: by seed.
    """

    ids: np.ndarray
    similarity: np.ndarray
    method: Choice
    baselines: dict[str, Choice]
    random: dict[int, Choice]

    @cached_property
    def overlaps(self) -> list[tuple[str, int, ChoiceOverlap]]:
        """Name, seed and overlap of each baseline."""
        grouped = [(name, _NO_SEED, each) for name, each in self.baselines.items()]
        chosen = [("random", seed, each) for seed, each in self.random.items()]
        return [(name, seed, choice_overlap(self.method, each)) for name, seed, each in (*grouped, *chosen)]

    @cached_property
    def alone(self) -> np.ndarray:
        """(m,) int64: positions of the removed items that only the method finds."""
        return found_alone(self.method, list(self.baselines.values()))


def _worker(context: StageContext) -> Worker:
    return lambda partition: compare_baselines(context, partition)


def compare_baselines(context: StageContext, partition: Partition) -> ResultRecord:
    """Hold one kept set against all baselines that the data have.

    Memory holds about 30 bytes an item for each baseline.

    Args:
        context: of the pipeline and the selection.
        partition: a kept set.

    Raises:
        MissingResultError: masks of the method or of a baseline are missing, or are of other items; names what to
            materialise.
    """
    with context.writing("baseline_overlaps", partition) as result:
        masks = context.index.require_consistent("keep_masks", partition)[partition]
        with usage.phase("compare"):
            choices = _choices(context, masks)
            _write_tables(choices, result)
        with usage.phase("draw"):
            parts, shown = _draw(context, partition, choices, result)
        result.details = {
            "items": len(choices.ids),
            "removed": int((~choices.method.kept).sum()),
            "only_semdedup": len(choices.alone),
            "same": context.pipeline.analyses.random_pruning.same,
            "by_baseline": [_summary(*each) for each in choices.overlaps],
            **shown,
            "parts": parts,
        }
    return result.committed


def _choices(context: StageContext, masks: ResultRecord) -> _Choices:
    settings = context.pipeline.analyses.random_pruning
    sized = sized_mask(context, masks, same=settings.same)
    method, similarity = _choice(masks, sized.ids)
    names = grouped_baselines(context.pipeline, context.selection)
    records = {name: context.index.require_consistent(name)[Partition()] for name in names}
    own = np.arange(len(sized.ids))
    return _Choices(
        ids=sized.ids,
        similarity=similarity,
        method=method,
        baselines={name.removesuffix("_masks"): _choice(record, sized.ids)[0] for name, record in records.items()},
        random={
            seed: Choice(random_choice(sized.ids, kept=sized.kept, sizes=sized.sizes, seed=seed), own)
            for seed in settings.seeds
        },
    )


def _choice(masks: ResultRecord, ids: np.ndarray) -> tuple[Choice, np.ndarray]:
    """What masks keep of some items, for whose sake each other is removed, and the similarities that they hold.

    Raises:
        MissingResultError: they are of other items.
    """
    kept, group, found = np.zeros(len(ids), bool), np.arange(len(ids)), 0
    similarity = np.full(len(ids), np.nan, np.float32)
    for file in mask_files(masks):
        for table in read_arrow(file, ["id", "kept", "kept_neighbour", "kept_similarity"]):
            part, neighbour = table.column("id").to_numpy(), table.column("kept_neighbour")
            at = np.minimum(np.searchsorted(ids, part), max(0, len(ids) - 1))
            if len(part) and not (len(ids) and np.array_equal(ids[at], part)):
                break
            kept[at], found = table.column("kept").to_numpy(), found + len(at)
            similarity[at] = table.column("kept_similarity").to_numpy()
            # Whoever is removed for no item's sake is a group of its own.
            has_one = neighbour.is_valid().to_numpy()
            group[at[has_one]] = np.searchsorted(ids, neighbour.fill_null(0).to_numpy()[has_one])
    if found != len(ids):
        message = f"{masks.location}: made of other items than the kept set; materialise what is stale of both"
        raise MissingResultError(message)
    return Choice(kept, group), similarity


def _summary(name: str, seed: int, overlap: ChoiceOverlap) -> dict[str, Any]:
    removed, other = overlap.items - overlap.kept, overlap.items - overlap.kept_by_other
    return {
        "baseline": name if seed == _NO_SEED else f"{name}, seed {seed}",
        "removed": other,
        "by both": overlap.removed_by_both,
        "only by SemDeDup": overlap.removed_only,
        "only by it": overlap.removed_only_by_other,
        "Jaccard": f"{overlap.removed_jaccard:.3f}",
        _PAIRS_OF_OTHER: _share(overlap.pairs_of_other, removed) if seed == _NO_SEED else "–",
        _OTHER_PAIRS: _share(overlap.other_pairs, other) if seed == _NO_SEED else "–",
    }


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _write_tables(choices: _Choices, result: ResultWriter) -> None:
    names = [name for name, _, _ in choices.overlaps]
    seeds = np.array([seed for _, seed, _ in choices.overlaps], np.int64)
    overlaps = [overlap for _, _, overlap in choices.overlaps]
    counts = {field: np.array([getattr(each, field) for each in overlaps], np.int64) for field in _COUNTS}
    shares = {
        field: np.ma.masked_invalid(np.array([getattr(each, field) for each in overlaps], np.float64))
        for field in ("kept_jaccard", "removed_jaccard")
    }
    baselines = {"baseline": np.array(names, dtype=object), "seed": np.ma.masked_equal(seeds, _NO_SEED)}
    with result.open(OVERLAPS) as stream:
        write_table(stream, {**baselines, **counts, **shares})
    alone = choices.alone[np.argsort(-choices.similarity[choices.alone], kind="stable")]
    with result.open(PAIRS) as stream:
        write_table(
            stream,
            {
                "id": choices.ids[alone],
                "kept_id": choices.ids[choices.method.group[alone]],
                "similarity": choices.similarity[alone],
            },
        )


def _draw(
    context: StageContext, partition: Partition, choices: _Choices, result: ResultWriter
) -> tuple[dict[str, str], dict[str, Any]]:
    """Write the picture of all overlaps and the page of pairs.

    Returns:
        The file of each section's picture or table, and how many items the page shows.
    """
    pipeline, kept_set = context.pipeline, partition.kept_set(context.selection)
    labels = [name.replace("_", " ") if seed == _NO_SEED else f"random {seed}" for name, seed, _ in choices.overlaps]
    counts = np.array([[getattr(each, name) for name in _REMOVED] for *_, each in choices.overlaps], np.int64)
    bars = RemovalBars(labels, dict(zip(_REMOVED.values(), counts.T, strict=True)))
    note = f"{pipeline.dataset}/{pipeline.model_name}, {kept_set.label}: of {len(choices.ids):,} items"
    with result.open(PICTURE) as stream:
        stream.write(removal_bars(bars, title="Items that SemDeDup and the baselines remove", note=note))
    section = _section(context, choices)
    cards = read_cards(context, [item.id for item in section.items()])
    facts = {
        "clustering": kept_set.clustering.label,
        "selection": kept_set.selection.label,
        "target": kept_set.target.label,
        "removed": f"{int((~choices.method.kept).sum()):,}",
        "found by no baseline": f"{len(choices.alone):,}",
        "compared with": ", ".join(name.replace("_", " ") for name in choices.baselines) or "nothing",
    }
    title = f"What only SemDeDup finds in {pipeline.dataset} ({pipeline.model_name})"
    gallery = Gallery(title, facts, (section,), cards.by_id, pipeline.source.content)
    with result.open(PAGE) as stream:
        stream.write(gallery_page(gallery))
    name = f"{section.name}.{'png' if gallery.content == 'image' else 'json'}"
    with result.open(name) as stream:
        if gallery.content == "image":
            stream.write(_sheet(section, gallery))
        else:
            stream.write(json.dumps(section_table(gallery, section), indent=1).encode())
    return {section.name: name}, cards.details()


def _sheet(section: Section, gallery: Gallery) -> bytes:
    """The pairs of which both images could be read, in a grid."""
    pairs = []
    for group in section.groups:
        (kept, removed), similarity = group.items(), group.rows[0].items[0].similarity or 0.0
        cards = gallery.cards[removed.id], gallery.cards[kept.id]
        if cards[0].image is not None and cards[1].image is not None:
            pairs.append(Pair(cards[0].image, cards[1].image, similarity, cards[0].key))
    title = f"{section.title}: {len(pairs)} pairs, drawn at random"
    return contact_sheet(pairs, title=title, columns=_SHEET_COLUMNS)


def _section(context: StageContext, choices: _Choices) -> Section:
    """A seeded sample of the pairs that no baseline finds, the most similar first."""
    settings = context.pipeline.analyses.baseline_overlaps
    drawn = choices.alone[np.argsort(id_hash(choices.ids[choices.alone], seed=settings.seed))[: settings.pairs]]
    groups = []
    for position in sorted(drawn.tolist(), key=lambda each: (-float(choices.similarity[each]), each)):
        similarity = float(choices.similarity[position])
        removed = RowItem(int(choices.ids[position]), kept=False, similarity=similarity)
        kept = RowItem(int(choices.ids[choices.method.group[position]]), kept=True)
        row = Row(f"removed, similarity {similarity:.4f}", "", (removed,), 1)
        groups.append(Group(f"Similarity {similarity:.4f}", kept, (row,)))
    note = (
        f"{len(groups):,} of the {len(choices.alone):,} removed items that no baseline has in one group with the kept "
        "item for which they were removed, drawn at random."
    )
    return Section("only_semdedup", "Found by SemDeDup only", note, tuple(groups))


def _shown(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    both = (_PAIRS_OF_OTHER, _OTHER_PAIRS)
    rows = record.details["by_baseline"]
    pairs = [{name: row[name] for name in ("baseline", *both)} for row in rows if row[_OTHER_PAIRS] != "–"]
    shown: dict[str, Shown] = {
        "overlaps": Picture(record.file(PICTURE).content(), "Items that SemDeDup and the baselines remove"),
        "by_baseline": Rows([{name: value for name, value in row.items() if name not in both} for row in rows]),
        **({"pairs_by_baseline": Rows(pairs)} if pairs else {}),
        "only_semdedup_page": Link(record.file(PAGE).path),
    }
    for name, file in record.details["parts"].items():
        content = record.file(file).content()
        if file.endswith(".png"):
            shown[name] = Picture(content, name)
        elif rows := json.loads(content):
            shown[name] = Rows(rows, brief=True)
    return shown


def _optional_inputs(pipeline: Pipeline, selection: Selection) -> tuple[str, ...]:
    return (*grouped_baselines(pipeline, selection), *sizes_of(RANDOM)(pipeline, selection))


def _input_version(context: StageContext, name: str, record: ResultRecord) -> str:
    """Of the items only what the page shows counts, of embeddings only sizes."""
    if name == "items":
        return cards_version(context, record)
    return sizes_version(context, name, record)


def _settings(context: StageContext) -> dict[str, Any]:
    analyses, galleries = context.pipeline.analyses, context.pipeline.galleries
    return {
        "random_pruning": analyses.random_pruning.model_dump(mode="json"),
        "pairs": analyses.baseline_overlaps.model_dump(),
        "mib": galleries.mib,
    }


STAGE = Stage(
    name="baseline_overlaps",
    step=ANALYSE,
    description="What SemDeDup (Alg. A7) and the baselines remove, and what of it they have in common: exact "
    "deduplication, NearDup (Lee et al. 2021) of texts, perceptual hashes of images, and random pruning to the same "
    "size. With a page of pairs that only SemDeDup finds.",
    dimensions=("epsilon", "k"),
    inputs=("keep_masks", "items"),
    optional_inputs=_optional_inputs,
    input_version=_input_version,
    settings=_settings,
    location=lambda layout, partition, selection: layout.of_kept_set(
        partition.kept_set(selection), "baselines", "overlaps"
    ),
    worker=_worker,
    kinds=frozenset({"html", "matplotlib", "parquet"}),
    columns=lambda _: (
        Column("baseline", "string", "`exact`, `near_duplicate`, `perceptual` or `random`."),
        Column("seed", "int64", "Of a random choice; else null."),
        Column("items", "int64", "Items with a vector."),
        Column("kept", "int64", "Of them, kept by SemDeDup."),
        Column("kept_by_other", "int64", "Kept by the baseline."),
        Column("kept_by_both", "int64", "Kept by both."),
        Column("removed_by_both", "int64", "Removed by both."),
        Column("removed_only", "int64", "Removed by SemDeDup and kept by the baseline."),
        Column("removed_only_by_other", "int64", "Removed by the baseline and kept by SemDeDup."),
        Column(
            "pairs_of_other",
            "int64",
            "Items that SemDeDup removes and the baseline has in one group with their kept item.",
        ),
        Column("other_pairs", "int64", "Items that the baseline removes and SemDeDup has in one group with theirs."),
        Column("kept_jaccard", "float64", "Kept by both, of those that either keeps."),
        Column("removed_jaccard", "float64", "Removed by both, of those that either removes."),
    ),
    shown=_shown,
    selected=True,
    on_demand=True,
    pool="cpu",
    unit="kept sets",
)
