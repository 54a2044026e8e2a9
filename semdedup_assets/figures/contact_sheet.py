"""Pairs of removed and kept images side by side."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

_CELL, _GAP, _LINE, _TITLE = 64, 12, 12, 26
_INK, _GREY, _RIGHT, _WRONG = "#222222", "#777777", "#3a7d44", "#c0392b"


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
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


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


def _thumbnail(content: bytes) -> "Image.Image":
    from PIL import Image

    image = Image.open(io.BytesIO(content)).convert("RGBA")
    image.thumbnail((_CELL, _CELL))
    cell = Image.new("RGBA", (_CELL, _CELL), "white")
    cell.alpha_composite(image, ((_CELL - image.width) // 2, (_CELL - image.height) // 2))
    return cell.convert("RGB")


def _shortened(text: str, most: int = 28) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
