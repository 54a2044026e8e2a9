"""How large a working array may be: one budget in bytes, divided here."""

from typing import NamedTuple


class TileShape(NamedTuple):
    """Rows and columns of the largest tile of a similarity matrix that is held in memory."""

    rows: int
    columns: int


COLUMN_GROUP = 64
"""Columns that are searched together for where their greatest value stands; tiles are whole groups wide."""

# Tiles that stay in a core's cache are reduced several times faster than they are read back from memory;
# a GPU wants products large enough to fill it.
_CPU_TILE = TileShape(256, 2048)
_GPU_TILE = TileShape(4096, 16384)


def rows_within(budget: int, *, row_bytes: int, most: int | None = None) -> int:
    """Rows of `row_bytes` bytes that fit a budget: at least one, at most `most`."""
    rows = max(1, budget // max(1, row_bytes))
    return min(rows, most) if most else rows


def tile_shape(budget: int, *, dimension: int, gpu: bool) -> TileShape:
    """The tile of a similarity matrix that fits a budget.

    Args:
        budget: bytes that a tile and its two float32 operands may take together.
        dimension: d, numbers in a row of the operands.
        gpu: whether the tile lies on a GPU.

    Returns:
        Rows, at least 1, and columns, a multiple of `COLUMN_GROUP`.
    """
    rows, columns = _GPU_TILE if gpu else _CPU_TILE
    while rows > 1 and 4 * (dimension * (rows + columns) + 2 * rows * columns) > budget:
        rows, columns = rows // 2, max(COLUMN_GROUP, columns // 2)
    return TileShape(rows, columns)
