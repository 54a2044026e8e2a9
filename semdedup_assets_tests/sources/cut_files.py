"""What a source gives of a file that ends early."""

from collections.abc import Iterable
from typing import TypeVar

from semdedup_assets.sources import TruncatedFile

T = TypeVar("T")


def until_cut(items: Iterable[T]) -> tuple[list[T], str | None]:
    """The items of a file, and why it ends early; None where it does not."""
    found: list[T] = []
    try:
        for item in items:
            found.append(item)  # what comes before an error must not be lost
    except TruncatedFile as cut:
        return found, str(cut)
    return found, None
