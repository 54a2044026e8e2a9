"""What a count-based language model learns of kept texts, of as many bytes of random ones, and of all of them."""

from dataclasses import dataclass

import numpy as np

from semdedup_assets.algorithm.ngram_model import IndexedTexts
from semdedup_assets.algorithm.random_choice import random_choice
from semdedup_assets.algorithm.sampling import id_hash, smallest
from semdedup_assets.analyses.pair_contents import embedded_texts
from semdedup_assets.analyses.screened_items import ScreenedItems
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.records import content_bytes, id_rows, id_shards, positions_by_shard
from semdedup_assets.stages.embeddings import stored_contents

RANDOM_SEEDS = 5
"""Random choices that the kept texts are held against."""

RANDOM, NOVEL = "random", "novel"
"""The validation sets: a tenth of the texts at random, and those of them that have no duplicate."""

_HELD_OUT = 10
# Of fewer held-out texts the bits say little.
_FEWEST = 20
# Row groups of texts are large, and a shard is read by row groups.
_MOST_SHARDS = 64
# Choices of shards, groups, held-out items and random items are unrelated.
_SHARDS, _GROUPS, _HELD, _CHOSEN = range(4)


@dataclass(frozen=True, slots=True)
class TextSample:
    """Some texts of a kept set, and what becomes of each: (s,) each, by id.

    Attributes:
        ids: uint64, ascending.
        texts: UTF-8.
        held_out: bool, a tenth of them.
        novel: bool, held-out ones that are kept and that no other item was removed for.
        kept: bool, of the others, those that deduplication keeps: the kept item of each group or, where that is held out
            or not in the sample, the most similar one to it. Otherwise a group would lose its last text to the
            validation set, which deduplicating the rest would not do.
        cut: share of the removed texts whose kept one is not in the sample.
    """

    ids: np.ndarray
    texts: list[bytes]
    held_out: np.ndarray
    novel: np.ndarray
    kept: np.ndarray
    cut: float

    @classmethod
    def read(cls, context: StageContext, items: ScreenedItems) -> "TextSample":
        """Choose whole groups by a hash of their kept item's id until their texts fill the settings' `mib`, and read them.

        Single items would leave no duplicates in a small sample of many items. At most 64 shards are read, a seeded
        choice; of more, groups are cut, and the sample is less redundant than all items (`cut`).
        """
        seed = _seed(context, _HELD)
        positions, texts = _read(context, items, _choose(context, items))
        ids, groups = items.ids[positions], items.groups[positions]
        held_out = smallest(id_hash(ids, seed=seed), len(ids) // _HELD_OUT) if len(ids) >= _HELD_OUT else ids < 0
        members = np.bincount(items.groups, minlength=len(items.ids))[groups]
        novel = held_out & items.kept[positions] & (members == 1)
        pairs = ~items.kept[positions] & (items.head[positions] >= 0)
        cut = ~np.isin(items.head[positions[pairs]], positions)
        kept = _represent(items, positions, among=~held_out)
        return cls(ids, texts, held_out, novel, kept, float(cut.mean()) if len(cut) else 0.0)


def _seed(context: StageContext, purpose: int) -> int:
    return 8 * context.pipeline.analyses.data_screen.seed + purpose


def _choose(context: StageContext, items: ScreenedItems) -> np.ndarray:
    """(s,) int64 positions, ascending, of the sampled items."""
    shards = id_shards(items.ids)
    there = np.unique(shards)
    read = there[smallest(id_hash(there.astype(np.uint64), seed=_seed(context, _SHARDS)), _MOST_SHARDS)]
    candidates = np.flatnonzero(np.isin(shards, read))
    groups = items.groups[candidates]
    order = candidates[np.lexsort((candidates, id_hash(items.ids[groups], seed=_seed(context, _GROUPS))))]
    limit = context.pipeline.analyses.data_screen.mib << 20
    inside = np.cumsum(_sizes(context, items.ids[order])) <= limit
    return np.sort(order[inside])


def _sizes(context: StageContext, ids: np.ndarray) -> np.ndarray:
    """(n,) int64: bytes of each text as it was embedded."""
    found, names = np.zeros(len(ids), np.int64), {shard.index: shard.name for shard in context.shards}
    for shard, positions in positions_by_shard(ids):
        record = context.index.require("embeddings", Partition(shard=names[shard]))
        found[positions] = stored_contents(record).sizes["bytes"][id_rows(ids[positions])]
    return found


def _read(context: StageContext, items: ScreenedItems, positions: np.ndarray) -> tuple[np.ndarray, list[bytes]]:
    """The positions whose texts could be read as they were embedded, and these."""
    read = {
        item: content_bytes(text) for rows in embedded_texts(context, items.ids[positions]) for item, _, text in rows
    }
    found = [
        (position, read[item])
        for position, item in zip(positions, items.ids[positions].tolist(), strict=True)
        if item in read
    ]
    return np.array([position for position, _ in found], np.int64), [text for _, text in found]


def _represent(items: ScreenedItems, positions: np.ndarray, *, among: np.ndarray) -> np.ndarray:
    """(s,) bool: of each group the kept item, or else the most similar one to it, of some sampled items."""
    rank = np.where(items.kept[positions], np.inf, np.nan_to_num(items.similarity[positions], nan=-np.inf))
    # What a reference removed, no kept item stands for.
    able = np.flatnonzero(among & (items.head[positions] >= 0))
    order = able[np.lexsort((items.ids[positions[able]], -rank[able], items.groups[positions[able]]))]
    first = np.unique(items.groups[positions[order]], return_index=True)[1]
    kept = np.zeros(len(positions), bool)
    kept[order[first]] = True
    return kept


@dataclass(frozen=True, slots=True)
class Fit:
    """What a model of some texts needs for a validation set.

    Attributes:
        validation: `random` or `novel`.
        trained_on: `everything`, `kept` or `random`.
        seed: of a random choice, else -1.
        texts: that the model was fitted to.
        bytes: of these.
        tested_texts: of the validation set.
        tested_bytes: of these.
        bits_per_byte: of these, with their ends.
    """

    validation: str
    trained_on: str
    seed: int
    texts: int
    bytes: int
    tested_texts: int
    tested_bytes: int
    bits_per_byte: float


def fit_models(context: StageContext, sample: TextSample) -> list[Fit]:
    """Fit the language model to everything, to the kept texts and to as many random bytes, and test each.

    Args:
        context: of the pipeline.
        sample: whose held-out texts are the validation sets; those with fewer than 20 texts are left out.
    """
    indexed = IndexedTexts(sample.texts, context.pipeline.analyses.data_screen.order)
    rest = np.flatnonzero(~sample.held_out)
    kept, seed = sample.kept[rest], _seed(context, _CHOSEN)
    trained = [("everything", -1, rest), ("kept", -1, rest[kept])]
    for number in range(RANDOM_SEEDS):
        chosen = random_choice(sample.ids[rest], kept=kept, sizes=indexed.lengths[rest], seed=(number << 32) + seed)
        trained.append(("random", number, rest[chosen]))
    tested = [(RANDOM, np.flatnonzero(sample.held_out)), (NOVEL, np.flatnonzero(sample.novel))]
    return [
        Fit(
            validation=name,
            trained_on=trained_on,
            seed=number,
            texts=len(texts),
            bytes=int(indexed.lengths[texts].sum()),
            tested_texts=len(test),
            tested_bytes=int(indexed.lengths[test].sum()),
            bits_per_byte=indexed.bits_per_byte(texts, test),
        )
        for name, test in tested
        if len(test) >= _FEWEST and int(indexed.lengths[test].sum())
        for trained_on, number, texts in trained
    ]


@dataclass(frozen=True, slots=True)
class Bits:
    """Bits per byte of one validation set.

    Attributes:
        validation: its name.
        everything: by the model of all training texts.
        kept: by that of the kept ones.
        random: mean of those of random ones.
        random_sd: their standard deviation.
    """

    validation: str
    everything: float
    kept: float
    random: float
    random_sd: float

    @property
    def change(self) -> float:
        """Of the kept texts' bits against the random ones'; less than 0 is better."""
        return self.kept / self.random - 1

    @property
    def clear(self) -> bool:
        """Whether the difference is more than two standard deviations of random choices."""
        return abs(self.kept - self.random) > 2 * self.random_sd


def by_validation_set(fits: list[Fit]) -> list[Bits]:
    """The fits of each validation set, in their order."""
    found = []
    for name in dict.fromkeys(fit.validation for fit in fits):
        own = [fit for fit in fits if fit.validation == name]
        everything, kept, random = (
            np.array([fit.bits_per_byte for fit in own if fit.trained_on == what])
            for what in ("everything", "kept", "random")
        )
        found.append(Bits(name, float(everything[0]), float(kept[0]), float(random.mean()), float(random.std(ddof=1))))
    return found
