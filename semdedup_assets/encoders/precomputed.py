"""Ready embeddings, checked and normalised."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from semdedup_assets.compute import Compute
from semdedup_assets.encoders.unit_norm import check_unit_rows, normalise_rows
from semdedup_assets.records import Content, Embedded, Invalid, Skipped, VectorBatch

_CHUNK_ROWS = 16_384
_DECIDING_ROWS = 8192  # whose usual length is that of a shard


class Precomputed(BaseModel, frozen=True, extra="forbid"):
    """Embeddings that were computed elsewhere."""

    kind: Literal["precomputed"] = "precomputed"
    normalise: bool = Field(
        default=True,
        description="Divide each vector by its L2 norm. With false, those of another norm are listed as invalid.",
    )
    dimension: int | None = Field(
        None,
        ge=1,
        description="Numbers of a vector; others are listed as invalid. Empty: as many as most of the first 8192 in each "
        "shard have.",
    )

    @property
    def accepts(self) -> Content:
        """What its records carry."""
        return "vector"

    @property
    def name(self) -> str:
        """Short, path-safe name."""
        return "precomputed"

    def identity(self) -> dict[str, Any]:
        """What can change the vectors."""
        return self.model_dump()

    def problems(self) -> list[str]:
        """Nothing can be missing."""
        return []

    def configuration_problems(self) -> list[str]:
        """There is no model whose configuration could contradict the settings."""
        return []

    def load(self, compute: Compute) -> "VectorCheck":
        """Nothing is loaded: checking vectors needs no model and no device."""
        del compute
        return VectorCheck(self)


class VectorCheck:
    """Checks ready embeddings, and normalises them.

    Attributes:
        dimension: length of a vector: the setting; where that is empty, None until the first batch is embedded.
    """

    dimension: int | None

    def __init__(self, settings: Precomputed) -> None:
        """Take the settings; there is nothing else."""
        self.dimension = settings.dimension
        self._settings = settings

    def embed(self, records: Iterable[VectorBatch | Invalid]) -> Iterator[Embedded]:
        """Unit vectors in the source's order, in batches of at most 16,384 rows.

        Args:
            records: batches of ready embeddings, and invalid items. Without a `dimension` setting, it is the length
                that most of the first 8192 vectors of each call have, so that a damaged first one decides nothing.

        Yields:
            A batch per chunk of an incoming batch; rows that are not finite, zero, of another length or (with
            `normalise: false`) of another norm are in its `skipped`. Invalid items come with the next batch.
        """
        first, others = _first_rows(records)
        dimension = self.dimension = self._settings.dimension or _usual_length(first)
        row = 0
        waiting: list[Skipped] = []
        for item in chain(first, others):
            if isinstance(item, Invalid):
                waiting.append(Skipped(row, item.key, item.reason))
                row += 1
                continue
            for chunk in _chunks(item):
                if dimension is None:
                    dimension = self.dimension = chunk.vectors.shape[1]
                yield self._embedded(chunk, first_row=row, waiting=waiting, dimension=dimension)
                row, waiting = row + len(chunk.keys), []
        if waiting:
            yield _only_skipped(waiting, dimension=dimension or 0)

    def _embedded(self, batch: VectorBatch, *, first_row: int, waiting: list[Skipped], dimension: int) -> Embedded:
        length = batch.vectors.shape[1]
        if length != dimension:
            reason = f"{length} numbers, expected {dimension}"
            skipped = [Skipped(first_row + at, key, reason) for at, key in enumerate(batch.keys)]
            return _only_skipped(waiting + skipped, dimension=dimension)
        unit = normalise_rows(batch.vectors) if self._settings.normalise else check_unit_rows(batch.vectors)
        invalid = [Skipped(first_row + at, batch.keys[at], reason) for at, reason in sorted(unit.invalid.items())]
        valid = np.delete(np.arange(len(batch.keys), dtype=np.int64), list(unit.invalid))
        vectors = unit.vectors[valid] if invalid else unit.vectors
        return Embedded(first_row + valid, [batch.keys[at] for at in valid], vectors, waiting + invalid)


def _first_rows(
    records: Iterable[VectorBatch | Invalid],
) -> tuple[list[VectorBatch | Invalid], Iterator[VectorBatch | Invalid]]:
    """Some thousand rows at the start of a stream, and what follows."""
    stream, first, rows = iter(records), list[VectorBatch | Invalid](), 0
    while rows < _DECIDING_ROWS and (item := next(stream, None)) is not None:
        first.append(item)
        rows += len(item.keys) if isinstance(item, VectorBatch) else 1
    return first, stream


def _usual_length(records: list[VectorBatch | Invalid]) -> int | None:
    """How many numbers most vectors have; None where there is none."""
    lengths = Counter[int]()
    for item in records:
        if isinstance(item, VectorBatch):
            lengths[item.vectors.shape[1]] += len(item.keys)
    return max(lengths, key=lengths.__getitem__, default=None)


def _chunks(batch: VectorBatch) -> Iterator[VectorBatch]:
    for start in range(0, len(batch.keys), _CHUNK_ROWS):
        chunk = slice(start, start + _CHUNK_ROWS)
        yield VectorBatch(batch.keys[chunk], np.asarray(batch.vectors[chunk]))


def _only_skipped(skipped: list[Skipped], *, dimension: int) -> Embedded:
    return Embedded(np.empty(0, np.int64), [], np.empty((0, dimension), np.float32), skipped)
