"""Small pictures of many images: pairs side by side, and the panels of a gallery."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from semdedup_assets.figures.gallery import Exhibit, Panel, Section, Shown, shares

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

_CELL, _GAP, _LINE, _TITLE = 64, 12, 12, 26
_INK, _GREY, _LEAD, _RIGHT, _WRONG = "#222222", "#6b6b6b", "#2b6cd4", "#3a7d44", "#c0392b"

# Of a gallery's picture: nine cells of 56 pixels fill 600, and 72 cells of 32 fit the limit in bytes at the worst.
_COLUMNS, _LINES, _PANELS, _WIDEST = 9, 8, 6, 600
_SIDES = (56, 48, 40, 32)
# Smaller letters cannot be read; a line of them takes more than they are high.
_LETTERS, _ROW = 11, 14
_CHAIN = "#b8860b"


@dataclass(frozen=True, slots=True)
class Pair:
    """A removed image and the kept one that it duplicates.

    Attributes:
        removed: encoded image.
        kept: encoded image.
        similarity: cosine similarity of their embeddings.
        caption: a line below the pair.
        wrong: whether the two are known to show different things; None where nothing is known.
    """

    removed: bytes
    kept: bytes
    similarity: float
    caption: str
    wrong: bool | None = None


def contact_sheet(pairs: Sequence[Pair], *, title: str, columns: int = 6) -> bytes:
    """Draw pairs in a grid, wrong ones framed in red.

    Args:
        pairs: in the order in which they are drawn, row by row.
        title: a line above them.
        columns: pairs in a row.

    Returns:
        PNG; 160 pixels wide for each column, about 110 high for each row.
    """
    from PIL import Image, ImageDraw

    width, height = 2 * _CELL + 2 * _GAP + 8, _CELL + 3 * _LINE + 2 * _GAP
    rows = -(-len(pairs) // columns)
    sheet = Image.new("RGB", (columns * width, _TITLE + max(1, rows) * height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP // 2), title, fill=_INK, font_size=13)
    for index, pair in enumerate(pairs):
        _draw_pair(sheet, draw, pair, (index % columns * width, _TITLE + index // columns * height))
    return _png(sheet)


def _draw_pair(sheet: "Image.Image", draw: "ImageDraw.ImageDraw", pair: Pair, corner: tuple[int, int]) -> None:
    x, y = corner[0] + _GAP, corner[1] + _GAP
    for offset, content in ((0, pair.removed), (_CELL + 8, pair.kept)):
        sheet.paste(_thumbnail(content), (x + offset, y))
    if pair.wrong is not None:
        frame = (x - 4, y - 4, x + 2 * _CELL + 12, y + _CELL + 4)
        draw.rectangle(frame, outline=_WRONG if pair.wrong else _RIGHT, width=3 if pair.wrong else 1)
    below = y + _CELL + 7
    draw.text((x, below), _shortened(pair.caption), fill=_WRONG if pair.wrong else _INK, font_size=10)
    draw.text((x, below + _LINE), f"removed | kept   {pair.similarity:.3f}", fill=_GREY, font_size=10)


def gallery_picture(section: Section, *, exhibits: Mapping[int, Exhibit], most_bytes: int = 70_000) -> bytes:
    """Draw the first panels of a section, small enough for an event log.

    Args:
        section: its first six panels are drawn, of each band as many items as there is room for.
        exhibits: by id; one without an image is an empty frame.
        most_bytes: the images are made smaller until the picture fits.

    Returns:
        PNG of 256 colours, at most 600 pixels wide.
    """
    picture = b""
    for side in _SIDES:
        picture = _panels_picture(section, exhibits, side)
        if len(picture) <= most_bytes:
            break
    return picture


def _panels_picture(section: Section, exhibits: Mapping[int, Exhibit], side: int) -> bytes:
    from PIL import Image, ImageDraw

    panels = section.panels[:_PANELS]
    lines = max(1, _LINES // max(1, len(panels)))
    rows = [_Cells(panel, most=lines * _COLUMNS, faint=section.fade) for panel in panels]
    ruler, words = ImageDraw.Draw(Image.new("RGB", (1, 1))), _legend(section, panels)
    lengths = [ruler.textlength(cells.title, font_size=_LETTERS) for cells in rows]
    lengths += [_COLUMNS * (side + 6), sum(ruler.textlength(word, font_size=_LETTERS) + _GAP for word, _ in words)]
    height = sum(cells.height(side) for cells in rows) + _TITLE
    sheet = Image.new("RGB", (min(_WIDEST, round(max(lengths)) + 2 * _GAP), height), "white")
    draw, x, y = ImageDraw.Draw(sheet), float(_GAP), _TITLE
    for word, colour in words:
        draw.text((x, _GAP // 2), word, fill=colour, font_size=_LETTERS)
        x += ruler.textlength(word, font_size=_LETTERS) + _GAP
    for cells in rows:
        cells.draw(sheet, draw, exhibits, (y, side))
        y += cells.height(side)
    return _png(sheet.quantize(256))


def _legend(section: Section, panels: Sequence[Panel]) -> list[tuple[str, str]]:
    """What the colours of frames and the numbers mean, of those that occur."""
    if not panels:
        return [("none", _GREY)]
    bands = [band for panel in panels for band in panel.bands]
    words = [(f"{section.lead} item", _LEAD)] if any(panel.lead for panel in panels) else []
    words += [("kept", _RIGHT), ("removed", _WRONG)]
    if any(place.by_chain for band in bands for place in band.items):
        words.append(("removed by chain", _CHAIN))
    above = "above: from which epsilon on, " if any(band.mark for band in bands) else ""
    return [*words, (f"({above}below: similarity{'' if panels[0].lead else ' to the centroid'})", _GREY)]


class _Cells:
    """The images of a panel that there is room for, each with the mark of the band it begins."""

    def __init__(self, panel: Panel, *, most: int, faint: bool) -> None:
        self._lead, self._faint = panel.lead, faint
        self._places: list[tuple[Shown, str | None]] = [] if panel.lead is None else [(panel.lead, None)]
        room = most - len(self._places)
        taken = shares([len(band.items) for band in panel.bands], most=room)
        for band, count in zip(panel.bands, taken, strict=True):
            self._places += [(place, None if i else band.mark) for i, place in enumerate(band.items[:count])]
        total = sum(band.total for band in panel.bands)
        # The item they are compared with is none of them.
        cut = "" if sum(taken) == total else f" ({sum(taken):,} of {total:,} shown)"
        self.title = _ascii(f"{panel.title}{cut}")

    def height(self, side: int) -> int:
        """Pixels that the panel takes."""
        return _ROW + _GAP + -(-len(self._places) // _COLUMNS) * self._pitch(side)

    def _pitch(self, side: int) -> int:
        """Pixels from one line of images to the next: above an image its band's mark, below it its similarity."""
        marked = any(mark for _, mark in self._places)
        return side + _ROW + 6 + (_ROW if marked else 0)

    def draw(
        self, sheet: "Image.Image", pen: "ImageDraw.ImageDraw", exhibits: Mapping[int, Exhibit], at: tuple[int, int]
    ) -> None:
        """Draw the panel at a height, with images of a size."""
        top, side = at
        pen.text((_GAP, top), self.title, fill=_INK, font_size=_LETTERS)
        for index, (place, mark) in enumerate(self._places):
            x = _GAP + 3 + index % _COLUMNS * (side + 6)
            y = top + _ROW + self._pitch(side) - side - _ROW - 1 + index // _COLUMNS * self._pitch(side)
            image = exhibits[place.item].image
            if image is not None:
                sheet.paste(_thumbnail(image, side, faint=self._faint and not place.kept), (x, y))
            pen.rectangle((x - 2, y - 2, x + side + 1, y + side + 1), outline=self._colour(place), width=2)
            if mark:
                pen.line((x - 5, y - _ROW, x - 5, y + side + 4), fill=_GREY)
                pen.text((x - 2, y - _ROW - 3), mark, fill=_GREY, font_size=_LETTERS)
            if place.similarity is not None:
                pen.text((x, y + side + 2), f"{place.similarity:.3f}", fill=_GREY, font_size=_LETTERS)

    def _colour(self, place: Shown) -> str:
        if place is self._lead:
            return _LEAD
        return _RIGHT if place.kept else _CHAIN if place.by_chain else _WRONG


def _png(image: "Image.Image") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _thumbnail(content: bytes, side: int = _CELL, *, faint: bool = False) -> "Image.Image":
    from PIL import Image

    image = Image.open(io.BytesIO(content)).convert("RGBA")
    image.thumbnail((side, side))
    white = Image.new("RGBA", (side, side), "white")
    cell = white.copy()
    cell.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return Image.blend(cell, white, 0.6 if faint else 0.0).convert("RGB")


def _ascii(text: str) -> str:
    """What the built-in font can draw."""
    return text.replace("ε", "epsilon").encode("ascii", "replace").decode()


def _shortened(text: str, most: int = 28) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
