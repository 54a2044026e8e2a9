"""Each different content of a stream goes through the model once; its copies share the vector."""

import unicodedata
from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xxhash

from semdedup_assets.compute import Compute
from semdedup_assets.encoders.decoding import MAX_PIXELS, UndecodableImageError, rgb_image
from semdedup_assets.records import Embedded, Invalid, Record, Skipped, content_bytes
from semdedup_assets.storage.scratch import ScratchRows

Sameness = Literal["bytes", "decoded", "normalised"]
"""What makes two items one content."""

_PIECE = 4096
# About 150 bytes each. What comes after so many different contents is embedded, seen before or not.
_MOST_REMEMBERED = 1 << 22
# Of the budget of working arrays: a model and its batches need memory beside them.
_PART_OF_BUDGET = 4


@dataclass
class EmbedOnce:
    """A model that is given no content a second time.

    The batches are those that the model would give, up to the rounding of its own batches: rows in the stream's order,
    and a content that cannot be embedded is listed wherever it stands.

    Attributes:
        model: a loaded encoder.
        sameness: equal `bytes`; images of equal pixels (`decoded`), which are equal to the model; or texts that are
            equal but for white space and Unicode's composition (`normalised`), which may not be equal to it.
        dtype: of the vectors as they will be stored; they are rounded to it.
        compute: threads that decode, and the budget beyond which vectors lie in temporary files.
        max_pixels: of a picture that is decoded.
        shared: how many items were given the vector of an earlier one.
    """

    model: Any
    sameness: Sameness
    dtype: np.dtype
    compute: Compute
    max_pixels: int = MAX_PIXELS
    shared: int = 0

    @property
    def dimension(self) -> int | None:
        """Length of a vector."""
        found: int | None = getattr(self.model, "dimension", None)
        return found

    def embed(self, records: Iterable[Record | Invalid]) -> Iterator[Embedded]:
        """Embed records in the source's order.

        Args:
            records: images or texts, and invalid items.

        Raises:
            OSError: there is no room for the vectors of the contents that were seen; names the folder and the remedy.
        """
        copies = _Copies(ScratchRows(self.dtype, budget=self.compute.budget // _PART_OF_BUDGET))
        for batch in self.model.embed(copies.first_ones(self._with_keys(records))):
            yield from copies.with_copies(batch)
        yield from copies.remaining()
        self.shared += copies.shared

    def _with_keys(self, records: Iterable[Record | Invalid]) -> Iterator[tuple[Record | Invalid, bytes | None]]:
        """Each record with what identifies its content; None for invalid ones."""
        if self.sameness == "decoded":
            return _in_threads(self._key, records, threads=self.compute.worker_count)
        return ((record, self._key(record)) for record in records)

    def _key(self, record: Record | Invalid) -> bytes | None:
        if isinstance(record, Invalid) or not isinstance(record.payload, bytes | str):
            return None
        payload = record.payload
        if isinstance(payload, str) and self.sameness == "normalised":
            return _digest(content_bytes(" ".join(unicodedata.normalize("NFC", payload).split())))
        if isinstance(payload, bytes) and self.sameness == "decoded":
            try:
                image = rgb_image(payload, shortest_side=None, max_pixels=self.max_pixels)
                return _digest(image.tobytes()) + b"%dx%d" % image.size
            except UndecodableImageError:
                pass  # The model says why, of each such content once.
        return _digest(content_bytes(payload))


def _digest(content: bytes) -> bytes:
    """Length and 128 bits: contents that differ have one in less than 1e-25 of all pairs."""
    return len(content).to_bytes(8, "little") + xxhash.xxh3_128_digest(content)


def _in_threads(
    key: Callable[[Record | Invalid], bytes | None], records: Iterable[Record | Invalid], *, threads: int
) -> Iterator[tuple[Record | Invalid, bytes | None]]:
    """Keys found by several threads, some records ahead of who reads them."""
    ahead: deque[tuple[Record | Invalid, Future[bytes | None]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for record in records:
            ahead.append((record, pool.submit(key, record)))
            if len(ahead) > 2 * threads:
                first, found = ahead.popleft()
                yield first, found.result()
        for first, found in ahead:
            yield first, found.result()


@dataclass(frozen=True, slots=True)
class _Entry:
    """An item: its row among all records, its key, and the number of the first item of its content."""

    row: int
    key: str
    first: int


@dataclass
class _Copies:
    """The stream of first ones that a model is given, and the copies that were left out of it.

    A model's own threads read the stream ahead of its batches; only `first_ones` runs in them, and only adds.

    Attributes:
        vectors: of each first one, by its number in the stream of first ones.
        shared: copies that were given a vector.
    """

    vectors: ScratchRows
    shared: int = 0
    _rows: "array[int]" = field(default_factory=lambda: array("q"))
    _waiting: deque[_Entry] = field(default_factory=deque)
    _reasons: dict[int, str] = field(default_factory=dict)

    def first_ones(
        self, records: Iterable[tuple[Record | Invalid, bytes | None]]
    ) -> Generator[Record | Invalid, None, None]:
        """The records whose content was not seen before, and the invalid ones."""
        seen: dict[bytes, int] = {}
        for row, (record, content) in enumerate(records):
            first = None if content is None else seen.get(content)
            if first is not None:
                self._waiting.append(_Entry(row, record.key, first))
                continue
            if content is not None and len(seen) < _MOST_REMEMBERED:
                seen[content] = len(self._rows)
            self._rows.append(row)
            yield record

    def with_copies(self, batch: Embedded) -> Iterator[Embedded]:
        """What a model made of some first ones, with the copies that stand before the last of them."""
        self.vectors.put(batch.rows, batch.vectors)
        self._reasons |= {item.row: item.reason for item in batch.skipped}
        own = [*zip(batch.rows.tolist(), batch.keys, strict=True), *((item.row, item.key) for item in batch.skipped)]
        entries = [_Entry(self._rows[first], key, first) for first, key in own]
        last = max((entry.row for entry in entries), default=-1)
        while self._waiting and self._waiting[0].row < last:
            entries.append(self._waiting.popleft())
        yield from self._pieces(sorted(entries, key=lambda entry: entry.row))

    def remaining(self) -> Iterator[Embedded]:
        """The copies after the last first one, once the model has made all batches."""
        entries = list(self._waiting)
        self._waiting.clear()
        yield from self._pieces(entries)

    def _pieces(self, entries: list[_Entry]) -> Iterator[Embedded]:
        """Items in the order of their rows, so few at a time that a content of a million copies fills no memory."""
        for start in range(0, len(entries), _PIECE):
            piece = entries[start : start + _PIECE]
            good = [entry for entry in piece if entry.first not in self._reasons]
            self.shared += sum(self._rows[entry.first] != entry.row for entry in good)
            yield Embedded(
                rows=np.array([entry.row for entry in good], np.int64),
                keys=[entry.key for entry in good],
                vectors=self.vectors.take(np.array([entry.first for entry in good], np.int64)).astype(np.float32),
                skipped=[
                    Skipped(entry.row, entry.key, self._reasons[entry.first])
                    for entry in piece
                    if entry.first in self._reasons
                ],
            )
