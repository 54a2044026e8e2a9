"""Small pictures of many images: pairs side by side, and the groups of a gallery."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from semdedup_assets.image_formats import open_image
from semdedup_assets.rendering.gallery import Group, ItemCard, RowItem, Section

if TYPE_CHECKING:
    from PIL import Image

_INK, _GREY, _BLUE, _GREEN, _RED, _OCHRE = "#222222", "#6b6b6b", "#2b6cd4", "#3a7d44", "#c0392b", "#b8860b"
_FRAMES = {"kept": _GREEN, "removed": _RED, "orphan": _OCHRE, "": _GREY}

# All lengths are pixels. Of a contact sheet: the sides of an image, and the heights of a text line and of the title.
_SIDE, _GAP, _LINE, _TITLE = 64, 12, 12, 26

# Of a gallery's picture: 9 images of 56 pixels fill the width; 72 images of 32 pixels fit any sensible byte limit.
_COLUMNS, _IMAGE_LINES, _MAX_GROUPS, _MAX_WIDTH = 9, 8, 6, 600
_SIDES = (56, 48, 40, 32)
# Smaller letters are unreadable.
_FONT_SIZE, _TEXT_HEIGHT = 11, 14


@dataclass(frozen=True, slots=True)
class Pair:
    """A removed image and the kept image that it duplicates.

    Attributes:
        removed: encoded image.
        kept: encoded image.
        similarity: cosine similarity of their embeddings.
        caption: a line below the pair.
        wrong: whether the two are known to show different things; None if that is unknown.
    """

    removed: bytes
    kept: bytes
    similarity: float
    caption: str
    wrong: bool | None = None


def contact_sheet(pairs: Sequence[Pair], *, title: str, columns: int = 6, colours: int | None = None) -> bytes:
    """Draw pairs in a grid, with a red frame around wrong ones.

    Args:
        pairs: in drawing order, line by line.
        title: a line above the pairs.
        columns: pairs in a line.
        colours: of the picture, at most 256: a third of the bytes, for a run's log; None: all.

    Returns:
        PNG; 160 pixels wide for each column, about 110 high for each line.
    """
    from PIL import Image, ImageDraw

    width, height = 2 * _SIDE + 2 * _GAP + 8, _SIDE + 3 * _LINE + 2 * _GAP
    lines = max(1, -(-len(pairs) // columns))
    sheet = Image.new("RGB", (columns * width, _TITLE + lines * height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, _GAP // 2), title, fill=_INK, font_size=13)
    for index, pair in enumerate(pairs):
        x, y = index % columns * width + _GAP, _TITLE + index // columns * height + _GAP
        sheet.paste(_thumbnail(pair.removed, _SIDE), (x, y))
        sheet.paste(_thumbnail(pair.kept, _SIDE), (x + _SIDE + 8, y))
        if pair.wrong is not None:
            frame = (x - 4, y - 4, x + 2 * _SIDE + 12, y + _SIDE + 4)
            pen.rectangle(frame, outline=_RED if pair.wrong else _GREEN, width=3 if pair.wrong else 1)
        caption = pair.caption if len(pair.caption) <= 28 else f"{pair.caption[:27]}…"
        below = y + _SIDE + 7
        pen.text((x, below), caption, fill=_RED if pair.wrong else _INK, font_size=10)
        pen.text((x, below + _LINE), f"removed | kept   {pair.similarity:.3f}", fill=_GREY, font_size=10)
    return _png(sheet if colours is None else sheet.quantize(colours))


def section_picture(section: Section, *, cards: Mapping[int, ItemCard], max_bytes: int = 70_000) -> bytes:
    """Draw the first six groups of a gallery section, small enough for an event log.

    Each group shows as many items of each row as there is room for.

    Args:
        section: the section to draw.
        cards: by id, one for each item of the section; a card without an image becomes an empty frame.
        max_bytes: the images shrink until the picture fits or they are 32 pixels wide.

    Returns:
        PNG of 256 colours, at most 600 pixels wide.
    """
    groups = section.groups[:_MAX_GROUPS]
    limit = max(1, _IMAGE_LINES // max(1, len(groups))) * _COLUMNS
    grids = [_GroupGrid.fill(group, limit=limit, dimmed=section.dimmed) for group in groups]
    picture = b""
    for side in _SIDES:
        picture = _draw_section(grids, cards, legend=_legend(section, groups), side=side)
        if len(picture) <= max_bytes:
            break
    return picture


@dataclass(frozen=True, slots=True)
class _GroupGrid:
    """The items of a group that there is room for.

    Attributes:
        title: the group's title, with the number of items shown if some are not.
        query: the group's query item, which is also the first cell.
        cells: each item, with its row's label if it is the first of the row.
        dimmed: whether removed items are dimmed.
    """

    title: str
    query: RowItem | None
    cells: list[tuple[RowItem, str]]
    dimmed: bool

    @classmethod
    def fill(cls, group: Group, *, limit: int, dimmed: bool) -> "_GroupGrid":
        """Take at most `limit` items of a group."""
        from semdedup_assets.algorithm.gallery_choice import divide_evenly

        cells = [] if group.query is None else [(group.query, "")]
        counts = divide_evenly([len(row.items) for row in group.rows], most=limit - len(cells))
        for row, count in zip(group.rows, counts, strict=True):
            cells += [(item, "" if index else row.short_label) for index, item in enumerate(row.items[:count])]
        # Neither number counts the query item.
        shown, total = sum(counts), sum(row.total for row in group.rows)
        title = group.title if shown == total else f"{group.title} ({shown:,} of {total:,} shown)"
        # Pillow's built-in font has only ASCII letters.
        return cls(title.replace("ε", "epsilon").encode("ascii", "replace").decode(), group.query, cells, dimmed)

    @property
    def label_height(self) -> int:
        """Height of the labels above the images."""
        return _TEXT_HEIGHT if any(label for _, label in self.cells) else 0

    def line_height(self, side: int) -> int:
        """Height of a line of images, with the labels above and the similarities below."""
        return self.label_height + side + _TEXT_HEIGHT + 6

    def height(self, side: int) -> int:
        """Height of the title and all lines."""
        return _TEXT_HEIGHT + -(-len(self.cells) // _COLUMNS) * self.line_height(side) + _GAP

    def draw(self, sheet: "Image.Image", cards: Mapping[int, ItemCard], *, top: int, side: int) -> None:
        """Draw the title and all lines."""
        from PIL import ImageDraw

        pen = ImageDraw.Draw(sheet)
        pen.text((_GAP, top), self.title, fill=_INK, font_size=_FONT_SIZE)
        for index, (item, label) in enumerate(self.cells):
            line, column = divmod(index, _COLUMNS)
            x = _GAP + 3 + column * (side + 6)
            y = top + _TEXT_HEIGHT + line * self.line_height(side) + self.label_height + 5
            image = cards[item.id].image
            if image is not None:
                sheet.paste(_thumbnail(image, side, dimmed=self.dimmed and not item.kept), (x, y))
            frame = _BLUE if item is self.query else _FRAMES[item.state]
            pen.rectangle((x - 2, y - 2, x + side + 1, y + side + 1), outline=frame, width=2)
            if label:
                pen.line((x - 5, y - _TEXT_HEIGHT, x - 5, y + side + 4), fill=_GREY)
                pen.text((x - 2, y - _TEXT_HEIGHT - 3), label, fill=_GREY, font_size=_FONT_SIZE)
            if item.similarity is not None:
                pen.text((x, y + side + 2), f"{item.similarity:.3f}", fill=_GREY, font_size=_FONT_SIZE)


def _legend(section: Section, groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Texts with their colours: what the frames that occur and the numbers mean."""
    if not groups:
        return [("none", _GREY)]
    has_query = any(group.query is not None for group in groups)
    has_orphan = any(item.state == "orphan" for group in groups for row in group.rows for item in row.items)
    has_label = any(row.short_label for group in groups for row in group.rows)
    if section.item_label is not None:
        states = dict.fromkeys(item.state for group in groups for row in group.rows for item in row.items)
        shown = [(section.item_label, _FRAMES[state]) for state in states]
        return [(f"{section.query_label} item", _BLUE), *shown, ("(below: similarity)", _GREY)]
    if not any(item.state for group in groups for item in group.items()):
        return [(f"below: {groups[0].rows[0].label}", _GREY)]
    below = "below: similarity" if has_query else "below: similarity to the centroid"
    return [
        *([(f"{section.query_label} item", _BLUE)] if has_query else []),
        ("kept", _GREEN),
        ("removed", _RED),
        *([("orphan", _OCHRE)] if has_orphan else []),
        (f"(above: from which epsilon on, {below})" if has_label else f"({below})", _GREY),
    ]


def _draw_section(
    grids: Sequence[_GroupGrid], cards: Mapping[int, ItemCard], *, legend: Sequence[tuple[str, str]], side: int
) -> bytes:
    from PIL import Image, ImageDraw

    text_width = partial(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength, font_size=_FONT_SIZE)
    widths = [_COLUMNS * (side + 6), sum(text_width(text) + _GAP for text, _ in legend)]
    widths += [text_width(grid.title) for grid in grids]
    height = _TITLE + sum(grid.height(side) for grid in grids)
    sheet = Image.new("RGB", (min(_MAX_WIDTH, round(max(widths)) + 2 * _GAP), height), "white")
    pen, x, top = ImageDraw.Draw(sheet), float(_GAP), _TITLE
    for text, colour in legend:
        pen.text((x, _GAP // 2), text, fill=colour, font_size=_FONT_SIZE)
        x += text_width(text) + _GAP
    for grid in grids:
        grid.draw(sheet, cards, top=top, side=side)
        top += grid.height(side)
    return _png(sheet.quantize(256))


def _thumbnail(content: bytes, side: int, *, dimmed: bool = False) -> "Image.Image":
    """An encoded image in the middle of a white square; dimmed, only 40 % of it shows."""
    from PIL import Image

    image = open_image(content).convert("RGBA")
    image.thumbnail((side, side))
    white = Image.new("RGBA", (side, side), "white")
    square = white.copy()
    square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return Image.blend(square, white, 0.6 if dimmed else 0.0).convert("RGB")


def _png(image: "Image.Image") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
