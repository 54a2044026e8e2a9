"""How many rows a file has, as far as its format states that."""

from semdedup_assets.sources.parquet import PARQUET
from semdedup_assets.sources.tables import parquet_table
from semdedup_assets.sources.vectors import ARRAYS, array_rows


def stated_rows(path: str) -> int | None:
    """How many rows a file says it has: 0 where it is damaged, None where only reading tells.

    Raises:
        OSError: it cannot be opened; names it.
    """
    try:
        if path.lower().endswith(PARQUET):
            with parquet_table(path) as table:
                return table.rows
        if path.lower().endswith(ARRAYS):
            return array_rows(path)
    except ValueError:
        return 0  # Reading it says what is wrong, or lists it as invalid.
    return None
