"""From a stream of records to batches for a model, and back to the stream's order."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from semdedup_assets.encoders.unit_norm import normalise_rows
from semdedup_assets.records import Embedded, Invalid, Record, Skipped

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Numbered:
    """A record with its row among all items of the stream."""

    row: int
    record: Record

    def skip(self, reason: str) -> Skipped:
        """The record as an item that cannot be embedded."""
        return Skipped(self.row, self.record.key, reason)


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive items of the stream: those to embed, and those that cannot be."""

    items: list[Numbered]
    skipped: list[Skipped]


def windows(stream: Iterable[Record | Invalid], *, size: int, payload: int) -> Iterator[Window]:
    """Cut a stream into windows.

    Args:
        stream: records in the source's order.
        size: items of a window at most, the invalid ones counted.
        payload: bytes or characters after which a window ends early, so that memory stays bounded.
    """
    window, weight = Window([], []), 0
    for row, item in enumerate(stream):
        if isinstance(item, Invalid):
            window.skipped.append(Skipped(row, item.key, item.reason))
        else:
            window.items.append(Numbered(row, item))
            weight += len(item.payload)
        if len(window.items) + len(window.skipped) == size or weight >= payload:
            yield window
            window, weight = Window([], []), 0
    if window.items or window.skipped:
        yield window


def prefetch(items: Generator[T, None, None], *, depth: int) -> Iterator[T]:
    """Run a generator in a background thread, ahead of who reads it; what it raises is raised here.

    Args:
        items: closed when the reader stops early.
        depth: items that may be ready and not yet read.
    """
    end = object()
    thread = ThreadPoolExecutor(1)
    try:
        ahead: deque[Future[T | object]] = deque(thread.submit(next, items, end) for _ in range(depth))
        while (item := ahead.popleft().result()) is not end:
            ahead.append(thread.submit(next, items, end))
            yield item  # type: ignore[misc]  # the sentinel is not a T, and is excluded above
    finally:
        thread.shutdown(cancel_futures=True)
        items.close()


def embedded_window(window: Window, outputs: np.ndarray) -> Embedded:
    """A window's vectors in the stream's order, of unit norm.

    Args:
        window: n items and the skipped ones around them.
        outputs: (n, d) float32, the model's output for each item.

    Returns:
        The window; an item whose output is zero or not finite is skipped.
    """
    unit = normalise_rows(outputs)
    skipped = [window.items[at].skip(f"model output: {reason}") for at, reason in unit.invalid.items()]
    kept = [at for at in range(len(window.items)) if at not in unit.invalid]
    items = [window.items[at] for at in kept]
    return Embedded(
        rows=np.array([item.row for item in items], dtype=np.int64),
        keys=[item.record.key for item in items],
        vectors=unit.vectors[kept] if skipped else unit.vectors,
        skipped=sorted(window.skipped + skipped, key=lambda item: item.row),
    )


def split_window(window: Window, reasons: list[str | None]) -> Window:
    """Move items that turned out not to be embeddable to the skipped ones.

    Args:
        window: n items.
        reasons: why the item cannot be embedded, or None where it can; n of them.
    """
    pairs = list(zip(window.items, reasons, strict=True))
    skipped = [item.skip(reason) for item, reason in pairs if reason is not None]
    return replace(window, items=[item for item, reason in pairs if reason is None], skipped=window.skipped + skipped)
