"""How long the encoder takes with an item, by embedding some of the source's own."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from semdedup_assets.estimate.item_counts import FileHead, Payload, row_count, spread
from semdedup_assets.execution.context import StageContext
from semdedup_assets.records import Record

# Time for a batch that is large enough to be like the pipeline's own, after a few items that warm the model up.
_EMBED_SECONDS, _WARM_UP, _FIRST = 6.0, 8, 32


@dataclass(frozen=True, slots=True)
class EncoderTiming:
    """The vectors' dimension, and seconds: to load the encoder, and to read and embed an item."""

    dimension: int
    load_seconds: float
    item_seconds: float


def time_encoder(context: StageContext, heads: Sequence[FileHead]) -> EncoderTiming:
    """Load the pipeline's encoder and embed some of the source's items.

    Raises:
        ValueError: none of the items can be embedded; names the dataset and the remedy.
    """
    # By length, for the time of a text depends on it: spread over this order, few records are like all.
    records = sorted((record for head in heads for record in head.records), key=_length)
    started = time.perf_counter()
    model: Any = context.pipeline.encoder.load(context.compute)
    load_seconds, wanted = time.perf_counter() - started, _FIRST
    _embed(model, spread(records, _WARM_UP))
    seconds, items, dimension = _embed(model, spread(records, wanted))
    wanted = int(_EMBED_SECONDS / max(seconds, 1e-6) * _FIRST)
    if min(wanted, len(records)) > 2 * _FIRST:
        seconds, items, dimension = _embed(model, spread(records, wanted))
    if items == 0:
        paths = ", ".join(head.file.path for head in heads[:3])
        message = f"{context.pipeline.dataset}: no item of {paths} can be embedded; check `source` in the settings"
        raise ValueError(message)
    read = sum(head.item_seconds * row_count(head.records) for head in heads) / row_count(records)
    return EncoderTiming(dimension, load_seconds, seconds / items + read)


def _length(record: Payload) -> int:
    return len(record.payload if isinstance(record, Record) else record.keys)


def _embed(model: Any, records: list[Payload]) -> tuple[float, int, int]:
    """Seconds, items that were embedded, and the dimension of their vectors."""
    started = time.perf_counter()
    made = [batch for batch in model.embed(records) if len(batch.rows)]
    seconds = time.perf_counter() - started
    return seconds, sum(len(batch.rows) for batch in made), made[0].vectors.shape[1] if made else 0
