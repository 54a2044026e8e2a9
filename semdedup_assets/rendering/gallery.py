"""A gallery as one self-contained HTML page and as short tables."""

import base64
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from semdedup_assets.rendering.text_diff import highlighted_diff

if TYPE_CHECKING:
    from jinja2 import Template

_MAX_TABLE_ROWS, _MAX_TABLE_TEXT = 50, 160
_MAX_REASONS = 5
# Characters; browsers and servers refuse much longer addresses.
_MAX_ADDRESS = 2000


@dataclass(frozen=True, slots=True)
class CardColumn:
    """A carried column of an item.

    Attributes:
        name: of the column.
        value: as it is shown; None where it is null.
    """

    name: str
    value: str | None

    @property
    def link(self) -> str | None:
        """Where the value leads; None where it is no address."""
        return web_address(self.value or "")


def web_address(text: str) -> str | None:
    """The text if it is an address of the web that a page may link to: `http` or `https`, a host, and no user's name."""
    if not text.lower().startswith(("http://", "https://")) or len(text) > _MAX_ADDRESS:
        return None
    try:
        parts = urlsplit(text)
        is_plain = text.isprintable() and " " not in text and "@" not in parts.netloc
        return text if is_plain and parts.hostname else None
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class ItemCard:
    """What there is to see of an item.

    Attributes:
        key: the item's own name.
        caption: one line from the source about the item.
        image: PNG or JPEG, no larger than it is shown.
        text: the full text, or its first part.
        unavailable: why the image or text is missing although the source has one.
        columns: carried columns, the same ones for every card of a page.
    """

    key: str
    caption: str | None = None
    image: bytes | None = None
    text: str | None = None
    unavailable: str | None = None
    columns: tuple[CardColumn, ...] = ()


@dataclass(frozen=True, slots=True)
class RowItem:
    """An item in a row of a gallery.

    Attributes:
        id: the item's id.
        kept: whether the gallery's epsilon keeps the item; None in a gallery of no selection.
        similarity: cosine similarity to the query item or, in a group without one, to the centroid; None for the
            query item itself.
        is_orphan: whether the item is removed and has no kept neighbour within epsilon.
    """

    id: int
    kept: bool | None
    similarity: float | None = None
    is_orphan: bool = False

    @property
    def state(self) -> Literal["kept", "removed", "orphan", ""]:
        """What the page calls the item, and the class that colours it; nothing where nothing was selected."""
        if self.kept is None:
            return ""
        return "kept" if self.kept else "orphan" if self.is_orphan else "removed"


@dataclass(frozen=True, slots=True)
class Row:
    """Items of a group between two thresholds.

    Attributes:
        label: what the items have in common.
        short_label: the same in a few ASCII letters, for pictures; may be empty.
        items: the items that are shown.
        total: number of items, with those that are not shown.
    """

    label: str
    short_label: str
    items: tuple[RowItem, ...]
    total: int


@dataclass(frozen=True, slots=True)
class Group:
    """A query item and the items compared with it, or the items of a cluster.

    Attributes:
        title: heading of the group.
        query: the item that the others are compared with; None for a cluster.
        rows: from top to bottom.
    """

    title: str
    query: RowItem | None
    rows: tuple[Row, ...]

    def items(self) -> Iterator[RowItem]:
        """The query item, if there is one, then the items of each row."""
        if self.query is not None:
            yield self.query
        for row in self.rows:
            yield from row.items


@dataclass(frozen=True, slots=True)
class Section:
    """Groups of one kind.

    Attributes:
        name: name of the section's anchor and of its file.
        title: heading of the section.
        note: explains what the section shows.
        groups: from top to bottom.
        query_label: what the page calls a group's query item.
        dimmed: whether removed items are dimmed.
        item_label: what the page calls the other items; None: kept, removed or orphan.
    """

    name: str
    title: str
    note: str
    groups: tuple[Group, ...]
    query_label: str = "kept"
    dimmed: bool = False
    item_label: str | None = None

    def items(self) -> Iterator[RowItem]:
        """Every shown item, group by group; an item may occur more than once."""
        for group in self.groups:
            yield from group.items()


@dataclass(frozen=True, slots=True)
class Gallery:
    """The content of a gallery page.

    Attributes:
        title: heading of the page.
        facts: a few numbers or words, by name.
        sections: from top to bottom.
        cards: by id, one for every item of the sections.
        content: what the items are.
    """

    title: str
    facts: Mapping[str, str]
    sections: tuple[Section, ...]
    cards: Mapping[int, ItemCard] = field(repr=False)
    content: Literal["image", "text", "vector"]

    def details(self) -> dict[str, Any]:
        """How many items the page shows, and how many it only names, by reason; for a result's record."""
        return shown_details(self.cards)

    @property
    def has_links(self) -> bool:
        """Whether anything on the page leads to the web."""
        return any(web_address(card.key) or any(column.link for column in card.columns) for card in self.cards.values())


def shown_details(cards: Mapping[int, ItemCard]) -> dict[str, Any]:
    """How many items a page shows, and how many it only names, by its five most frequent reasons.

    Args:
        cards: by id.
    """
    reasons = Counter(card.unavailable for card in cards.values() if card.unavailable is not None)
    return {
        "items_shown": len(cards) - reasons.total(),
        "items_unavailable": reasons.total(),
        "unavailable_because": dict(reasons.most_common(_MAX_REASONS)),
    }


def gallery_page(gallery: Gallery) -> bytes:
    """Render a gallery as one HTML page that needs no network: it holds all images, and everything else is escaped.

    Returns:
        UTF-8; the same bytes for the same gallery.
    """
    page = page_template("gallery.html.jinja").render(
        gallery=gallery, data_uri=data_uri, highlighted_diff=highlighted_diff, web_address=web_address
    )
    # A key may hold lone surrogates, which UTF-8 cannot encode.
    return page.encode("utf-8", "backslashreplace")


def section_table(gallery: Gallery, section: Section) -> list[dict[str, str]]:
    """A section as a short table, for a run's log.

    Returns:
        At most 50 rows with the same columns: group, state, similarity (empty for a query item), key and, in a
        gallery of texts, text (at most 160 characters).
    """
    table: list[dict[str, str]] = []
    for number, group in enumerate(section.groups, start=1):
        for item in group.items():
            card = gallery.cards[item.id]
            table_row = {
                # A cluster has two groups, whose titles begin with "Before:" and "After:".
                "group": str(number) if group.query is not None else group.title.partition(":")[0].lower(),
                "state": section.query_label if item is group.query else section.item_label or item.state,
                "similarity": "" if item.similarity is None else f"{item.similarity:.4f}",
                "key": card.key,
            }
            if gallery.content == "text":
                text = " ".join((card.text or card.unavailable or "").split())
                table_row["text"] = text if len(text) <= _MAX_TABLE_TEXT else f"{text[: _MAX_TABLE_TEXT - 1]}…"
            table.append(table_row)
    return table[:_MAX_TABLE_ROWS]


@cache
def page_template(name: str) -> "Template":
    """A template of this folder, which escapes all that it is given; to compile one takes longer than to fill it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def data_uri(image: bytes) -> str:
    """A PNG or JPEG as a URL that holds its bytes."""
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
