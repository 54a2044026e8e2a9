"""Read some items again to look at them: keys, captions and texts from the items' tables, images from the source."""

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.analyses.source_items import ImageReader, ReadLimit, Unavailable
from semdedup_assets.encoders.decoding import UndecodableImageError, rgb_image
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import columns_version, find_items, item_keys, items_file
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.records import ColumnValue, id_shards
from semdedup_assets.rendering.gallery import CardColumn, ItemCard, shown_details, web_address
from semdedup_assets.settings import Pipeline
from semdedup_assets.sources.reading import ReadLimitError
from semdedup_assets.storage.results import ResultRecord

if TYPE_CHECKING:
    from PIL import Image

# Of a thumbnail: pixels of its longer side, and JPEG quality.
_SIDE, _QUALITY = 160, 88
_MAX_TEXT, _MAX_CAPTION, _MAX_VALUE = 4000, 200, 120
# Of a card, so that a page's size stays bounded.
_MAX_COLUMNS = 20


@dataclass
class ItemCards:
    """What there is to see of some items.

    Attributes:
        by_id: one card for every item that was asked for.
        files_read: source files that were read.
        bytes_read: of the source, or of the items' tables where those hold the texts.
    """

    by_id: dict[int, ItemCard] = field(default_factory=dict)
    files_read: int = 0
    bytes_read: int = 0

    def details(self) -> dict[str, Any]:
        """What a record says of them: how many there are, what was read, and why some show nothing."""
        read = {"files_read": self.files_read, "mib_read": self.bytes_read / (1 << 20)}
        return {**shown_details(self.by_id), **read}


def card_columns(pipeline: Pipeline) -> tuple[str, ...]:
    """The columns of the items' tables that cards show."""
    return ("key", *pipeline.source.column_types)


def cards_version(context: StageContext, record: ResultRecord) -> str:
    """One version for what cards show of a shard's items; for `Stage.input_version`."""
    return columns_version(record, card_columns(context.pipeline))


def read_cards(context: StageContext, ids: Sequence[int]) -> ItemCards:
    """Fetch what there is to see of some items.

    Keys, columns and texts come from the items' tables. Images come from the source, of which at most `galleries.mib` are
    read: each is kept as a thumbnail. Where one cannot be had, its card says why.

    Args:
        context: of the pipeline.
        ids: of the items; where the limit is reached, the first ones are read.
    """
    limit = ReadLimit.of_galleries(context)
    found = ItemCards(_cards(context, list(dict.fromkeys(ids)), limit))
    if context.pipeline.source.content == "image":
        keys = {item: card.key for item, card in found.by_id.items()}
        reader = ImageReader(context, keys, limit)
        for item, payload in reader:
            found.by_id[item] = with_content(found.by_id[item], payload)
        found.files_read = reader.files_read
    found.bytes_read = limit.meter.read
    return found


def _cards(context: StageContext, ids: list[int], limit: ReadLimit) -> dict[int, ItemCard]:
    """Cards with keys, columns, captions and texts, in the order of the ids."""
    tables = _tables(context, ids)
    beyond = _beyond(ids, tables, limit) if context.pipeline.source.content == "text" else set[int]()
    columns = _stored_columns(context, tables.values())
    rows = find_items(context, set(ids) - beyond, columns)
    rows |= find_items(context, beyond, [name for name in columns if name != "text"])
    names = item_keys(context, [item for item in ids if item not in rows])
    shown = _shown_columns(context, columns, rows.values())
    cards = {item: _card(row, shown) for item, row in rows.items()}
    cards |= {item: replace(cards[item], unavailable=limit.reason) for item in beyond & rows.keys()}
    cards |= {item: ItemCard(name, unavailable="the source no longer has it") for item, name in names.items()}
    return {item: cards[item] for item in ids}


def _beyond(ids: list[int], tables: Mapping[int, ResultRecord], limit: ReadLimit) -> set[int]:
    """The items whose texts are not read: those of the tables after the limit is reached, in the order of the ids."""
    shards = id_shards(np.array(ids, dtype=np.uint64)).tolist()
    unread = set[int]()
    for shard in dict.fromkeys(shards):
        if limit.meter.is_spent:
            unread.add(shard)
        elif shard in tables:
            # The last one may go beyond, so that there is something to see of a single large table too.
            with suppress(ReadLimitError):
                limit.meter.count(items_file(tables[shard]).entry.size)
    return {item for item, shard in zip(ids, shards, strict=True) if shard in unread}


def _tables(context: StageContext, ids: list[int]) -> dict[int, ResultRecord]:
    """The records of the items' tables, by the index of their shard; of those that are there."""
    names = {shard.index: shard.name for shard in context.shard_index.shards}
    shards = np.unique(id_shards(np.array(ids, dtype=np.uint64))).tolist()
    found = {shard: context.index.record("items", Partition(shard=names[shard])) for shard in shards if shard in names}
    return {shard: record for shard, record in found.items() if record is not None}


def _stored_columns(context: StageContext, tables: Iterable[ResultRecord]) -> list[str]:
    """The carried columns that all tables have: one of new settings may not be read yet."""
    stored = [record.details.get("column_versions", {}).keys() for record in tables]
    return [name for name in context.pipeline.source.column_types if all(name in names for names in stored)]


def _shown_columns(context: StageContext, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The columns that are listed: those with any value that no other part of a card shows."""
    apart = {"image": {"caption"}, "text": {"text"}, "vector": set[str]()}[context.pipeline.source.content]
    filled = {name for row in rows for name, value in row.items() if value is not None}
    return [name for name in columns if name in filled - apart][:_MAX_COLUMNS]


def _card(row: Mapping[str, Any], shown: Sequence[str]) -> ItemCard:
    columns = tuple(CardColumn(name, _value(row[name])) for name in shown)
    caption = row.get("caption") if "caption" not in shown else None
    return ItemCard(str(row["key"]), caption=_line(caption, _MAX_CAPTION), text=head(row.get("text")), columns=columns)


def _value(value: ColumnValue) -> str | None:
    """A column's value as it is shown: a long text is cut, but for a web address, which would lead elsewhere."""
    if isinstance(value, str):
        return value if web_address(value) else _line(value, _MAX_VALUE)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else None if value is None else str(value)


def _line(text: str | None, most: int) -> str | None:
    """A text in one line, of at most so many characters."""
    if text is None:
        return None
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


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
