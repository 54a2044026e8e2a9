"""What makes the two of a pair alike, from their contents: read again, and held against what was embedded."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from semdedup_assets.algorithm.pair_bands import Kind
from semdedup_assets.analyses.gallery_items import head, thumbnail
from semdedup_assets.analyses.source_items import ImageReader, ReadLimit, Unavailable
from semdedup_assets.baselines.fingerprints import (
    decoded_hash,
    hamming_distance,
    image_phash,
    minhash_jaccard,
    text_minhash,
)
from semdedup_assets.encoders.decoding import MAX_PIXELS, UndecodableImageError, rgb_image
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import item_keys, read_items
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.records import content_hash, id_rows, positions_by_shard
from semdedup_assets.rendering.gallery import ItemCard
from semdedup_assets.stages.embeddings import content_hashes

_LIMIT = "analyses.pruned_pairs.mib"
_CHANGED = "the source changed since the item was embedded"


def hashes_of(context: StageContext, ids: np.ndarray) -> np.ndarray:
    """(n,) uint64: the content hash of each item as it was embedded; 0 where there is none.

    Args:
        context: of the pipeline.
        ids: (n,) uint64, in any order.
    """
    found, names = np.zeros(len(ids), np.uint64), {shard.index: shard.name for shard in context.shard_index.shards}
    for shard, positions in positions_by_shard(ids):
        if shard in names:
            hashes = content_hashes(context.index.require("embeddings", Partition(shard=names[shard])))
            rows = id_rows(ids[positions])
            there = rows < len(hashes)
            found[positions[there]] = hashes[rows[there]]
    return found


@dataclass
class Contents:
    """What identifies the contents of some items, and what there is to see of a few.

    Attributes:
        decoded: hash after decoding, by id.
        near: perceptual hash of an image, or MinHash signature of a text, by id.
        cards: of the items that are shown.
        files_read: source files that were read.
    """

    decoded: dict[int, int] = field(default_factory=dict)
    near: dict[int, Any] = field(default_factory=dict)
    cards: dict[int, ItemCard] = field(default_factory=dict)
    files_read: int = 0

    @classmethod
    def read(cls, context: StageContext, ids: np.ndarray, *, shown: np.ndarray) -> "Contents":
        """Read some items again: of a source of images at most `analyses.pruned_pairs.mib`.

        Args:
            context: of the pipeline.
            ids: (n,) uint64, ascending and distinct.
            shown: (m,) uint64, those of which there will be a card.
        """
        found, wanted = cls(), set(shown.tolist())
        keys = item_keys(context, ids.tolist())
        if context.pipeline.source.content == "image":
            found._read_images(context, keys, wanted)
        else:
            found._read_texts(context, ids, wanted)
        for item in wanted - found.cards.keys():
            found.cards[item] = ItemCard(keys[item], unavailable=_CHANGED)
        return found

    def _read_images(self, context: StageContext, keys: dict[int, str], shown: set[int]) -> None:
        reader = ImageReader(context, keys, ReadLimit(context.pipeline.analyses.pruned_pairs.mib, _LIMIT))
        max_pixels = getattr(context.pipeline.encoder, "max_pixels", MAX_PIXELS)
        for item, payload in reader:
            if isinstance(payload, Unavailable):
                self.cards[item] = ItemCard(keys[item], unavailable=payload.reason)
                continue
            try:
                image = rgb_image(payload, shortest_side=None, max_pixels=max_pixels)
            except UndecodableImageError as error:
                self.cards[item] = ItemCard(keys[item], unavailable=str(error))
                continue
            self.decoded[item], self.near[item] = decoded_hash(image), image_phash(image)
            if item in shown:
                self.cards[item] = ItemCard(keys[item], image=thumbnail(image))
        self.files_read = reader.files_read

    def _read_texts(self, context: StageContext, ids: np.ndarray, shown: set[int]) -> None:
        for rows in embedded_texts(context, ids):
            signatures = text_minhash([text for _, _, text in rows], context.pipeline.analyses.fingerprints)
            for (item, key, text), signature in zip(rows, signatures, strict=True):
                self.decoded[item], self.near[item] = decoded_hash(text), signature
                if item in shown:
                    self.cards[item] = ItemCard(key, text=head(text))

    def nearness(self, context: StageContext, removed: int, kept: int) -> float | None:
        """Differing bits of two images' perceptual hashes, or Jaccard similarity of two texts; None where unknown."""
        if removed not in self.near or kept not in self.near:
            return None
        if context.pipeline.source.content == "image":
            one, other = (np.array([self.near[item]], np.uint64) for item in (removed, kept))
            return float(hamming_distance(one, other)[0])
        return float(minhash_jaccard(self.near[removed], self.near[kept]))

    def kind(self, context: StageContext, removed: int, kept: int) -> Kind:
        """What makes two items of different bytes alike."""
        nearness, settings = self.nearness(context, removed, kept), context.pipeline.analyses.fingerprints
        if nearness is None:
            return "unknown"
        if self.decoded[removed] == self.decoded[kept]:
            return "decoded"
        is_image = context.pipeline.source.content == "image"
        is_near = nearness <= settings.hamming if is_image else nearness >= settings.jaccard
        return "perceptual" if is_near else "semantic"


def embedded_texts(context: StageContext, ids: np.ndarray) -> Iterator[list[tuple[int, str, str]]]:
    """Id, key and text of some items, a row group at a time; of those whose text is the one that was embedded."""
    for table in read_items(context, ids, ["id", "key", "text"]):
        rows = list(zip(*(table.column(name).to_pylist() for name in ("id", "key", "text")), strict=True))
        embedded = hashes_of(context, np.array([item for item, _, _ in rows], np.uint64)).tolist()
        yield [
            (item, str(key), text)
            for (item, key, text), expected in zip(rows, embedded, strict=True)
            if text is not None and content_hash(text) == expected
        ]
