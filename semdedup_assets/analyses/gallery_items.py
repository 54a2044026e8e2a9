"""Read some items again to look at them: keys, captions and texts from the items' tables, images from the source."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from semdedup_assets.analyses.source_items import ImageReader, Unavailable, beyond_limit
from semdedup_assets.encoders.decoding import UndecodableImageError, rgb_image
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import find_items, item_keys
from semdedup_assets.records import id_shards
from semdedup_assets.rendering.gallery import ItemCard

if TYPE_CHECKING:
    from PIL import Image

# Of a thumbnail: pixels of its longer side, and JPEG quality.
_SIDE, _QUALITY = 160, 88
_MAX_TEXT, _MAX_CAPTION = 4000, 200
LIMIT = "galleries.files"
"""The setting that bounds what is read."""


@dataclass
class ItemCards:
    """What there is to see of some items.

    Attributes:
        by_id: one card for every item that was asked for.
        files_read: source files that were read.
    """

    by_id: dict[int, ItemCard] = field(default_factory=dict)
    files_read: int = 0


def read_cards(context: StageContext, ids: Sequence[int]) -> ItemCards:
    """Fetch what there is to see of some items.

    Texts come from the items' tables of at most `galleries.files` shards. Images come from at most so many source
    files, each read up to the last image wanted of it and kept as a thumbnail. Where one cannot be had, its card says
    why.

    Args:
        context: of the pipeline.
        ids: of the items; where the limit is reached, the first ones are read.
    """
    wanted = list(dict.fromkeys(ids))
    found = ItemCards(_cards(context, wanted))
    if context.pipeline.source.content == "image":
        keys = {item: card.key for item, card in found.by_id.items()}
        reader = ImageReader(context, keys, context.pipeline.galleries.files, LIMIT)
        for item, payload in reader:
            found.by_id[item] = with_content(found.by_id[item], payload)
        found.files_read = reader.files_read
    return found


def _cards(context: StageContext, ids: list[int]) -> dict[int, ItemCard]:
    """Cards with keys, captions and texts, in the order of the ids."""
    source, limit = context.pipeline.source, context.pipeline.galleries.files
    shard_of = dict(zip(ids, id_shards(np.array(ids, dtype=np.uint64)).tolist(), strict=True))
    first_shards = set(list(dict.fromkeys(shard_of.values()))[:limit])
    beyond = [item for item in ids if source.content == "text" and shard_of[item] not in first_shards]
    column = "text" if source.content == "text" else "caption"
    columns = [column] if column in source.column_types else []
    rows = find_items(context, set(ids) - set(beyond), columns)
    cards = {
        item: ItemCard(str(row["key"]), caption=_line(row.get("caption")), text=head(row.get("text")))
        for item, row in rows.items()
    }
    reason = beyond_limit(limit, "shards", LIMIT)
    cards |= {item: ItemCard(str(row["key"]), unavailable=reason) for item, row in find_items(context, beyond).items()}
    names = item_keys(context, [item for item in ids if item not in cards])
    cards |= {item: ItemCard(name, unavailable="the source no longer has it") for item, name in names.items()}
    return {item: cards[item] for item in ids}


def _line(caption: str | None) -> str | None:
    return None if caption is None else " ".join(caption.split())[:_MAX_CAPTION]


def head(text: str | None) -> str | None:
    """The first 4,000 characters of a text, and how many more there are."""
    if text is None or len(text) <= _MAX_TEXT:
        return text
    return f"{text[:_MAX_TEXT]}… ({len(text) - _MAX_TEXT:,} characters more)"


def with_content(card: ItemCard, payload: bytes | str | Unavailable) -> ItemCard:
    """A card with an image as a thumbnail, or with a text's head; or with why its content cannot be had."""
    if isinstance(payload, Unavailable):
        return replace(card, image=None, unavailable=payload.reason)
    if isinstance(payload, str):
        return replace(card, text=head(payload))
    try:
        return replace(card, image=thumbnail(rgb_image(payload, shortest_side=None)))
    except UndecodableImageError as error:
        return replace(card, unavailable=str(error))


def thumbnail(image: "Image.Image") -> bytes:
    """An image as a small JPEG, 160 pixels at its longer side; the image itself is made small."""
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
