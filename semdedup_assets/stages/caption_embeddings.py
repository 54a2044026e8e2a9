"""Embed the captions of a shard's images by the text tower of the model that embeds the images."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from semdedup_assets.encoders import OpenClip
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.item_lookup import columns_version, items_file
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import ANALYSE, Stage, Worker
from semdedup_assets.records import Invalid, Record, positions_by_shard
from semdedup_assets.settings import Pipeline
from semdedup_assets.stages.embeddings import ID, VECTOR
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.tables import read_arrow
from semdedup_assets.storage.vectors import EmbeddingsWriter, read_vectors

if TYPE_CHECKING:
    from semdedup_assets.encoders.text_tower import TextTower

CAPTIONS = "captions.arrow"
"""Ids and vectors of the items that have a caption, in the record."""

# Whose vectors are held together.
_PAIRS = 1 << 17


def has_captions(pipeline: Pipeline) -> bool:
    """Whether the images of a pipeline come with captions that their own model can embed."""
    return isinstance(pipeline.encoder, OpenClip) and pipeline.source.column_types.get("caption") == "string"


def _worker(context: StageContext) -> Worker:
    encoder = context.pipeline.encoder
    if not isinstance(encoder, OpenClip):
        message = f"encoder.kind: {encoder.kind!r} has no text tower; captions need `openclip`"
        raise TypeError(message)
    tower = encoder.load_text(context.compute)
    return lambda partition: embed_captions(context, partition, tower=tower)


def embed_captions(context: StageContext, partition: Partition, *, tower: "TextTower") -> ResultRecord:
    """Embed the captions of a shard.

    Args:
        context: of the pipeline.
        partition: a shard.
        tower: the text tower of the pipeline's encoder.

    Raises:
        MissingResultError: the shard's items are missing.
    """
    shard = context.shard(partition.required_shard)
    with context.writing("caption_embeddings", partition) as result:
        (items,) = context.index.require_consistent("items", partition).values()
        counts, ranges = Counter[str](), ""
        with result.open(CAPTIONS, ranges=lambda: ranges) as stream:
            writer = EmbeddingsWriter(stream, shard.index, context.pipeline.vectors)
            for batch in usage.each("embed", tower.embed(_captions(items, counts))):
                writer.write(batch)
                counts["items"] += len(batch.rows)
                counts["skipped"] += len(batch.skipped)
            writer.dimension = writer.dimension or tower.dimension
            writer.close()
            ranges = writer.ranges
        skipped = counts["skipped"] - counts["without_caption"]
        result.details = {
            "items": counts["items"],
            "without_caption": counts["without_caption"],
            "skipped": skipped,
        }
    return result.committed


def _captions(items: ResultRecord, counts: Counter[str]) -> Iterator[Record | Invalid]:
    """The captions of a shard, one record for each of its rows; null and blank ones are none."""
    for table in read_arrow(items_file(items), ["key", "caption"]):
        for key, caption in zip(table["key"].to_pylist(), table["caption"].to_pylist(), strict=True):
            if caption is None or not caption.strip():
                counts["without_caption"] += 1
                yield Invalid(key, "no caption", expected=True)
            else:
                yield Record(key, caption)


def caption_similarity(context: StageContext, ids: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Cosine similarity of the captions of pairs of items.

    Args:
        context: of the pipeline.
        ids: (n,) uint64.
        others: (n,) uint64.

    Returns:
        (n,) float64, NaN where one of the two has no caption.

    Raises:
        MissingResultError: the captions of a shard are not embedded.
    """
    parts = [
        _similarity(context, ids[start : start + _PAIRS], others[start : start + _PAIRS])
        for start in range(0, len(ids), _PAIRS)
    ]
    return np.concatenate([np.empty(0), *parts])


def _similarity(context: StageContext, ids: np.ndarray, others: np.ndarray) -> np.ndarray:
    from semdedup_assets.algorithm.unit_rows import as_tensor, row_cosine

    wanted, position = np.unique(np.concatenate([ids, others]), return_inverse=True)
    vectors, present = _vectors(context, wanted)
    left, right = position[: len(ids)], position[len(ids) :]
    both = np.flatnonzero(present[left] & present[right])
    similarity = np.full(len(ids), np.nan)
    if len(both):
        similarity[both] = row_cosine(as_tensor(vectors[left[both]]), as_tensor(vectors[right[both]])).numpy()
    return similarity


def _vectors(context: StageContext, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The captions' vectors of some items, (n, d) as stored, and (n,) bool, which of them have one.

    Args:
        context: of the pipeline.
        ids: (n,) uint64, ascending and distinct.
    """
    records = context.index.require_all("caption_embeddings")
    names = {shard.index: Partition(shard=shard.name) for shard in context.shards}
    vectors, present = np.zeros((0, 0), np.float32), np.zeros(len(ids), dtype=bool)
    for shard, positions in positions_by_shard(ids):
        # An item whose shard vanished since has no caption left to compare.
        if shard not in names:
            continue
        for table in read_vectors(records[names[shard]].file(CAPTIONS)):
            at = np.searchsorted(table.ids, ids[positions])
            found = np.flatnonzero(table.ids[np.minimum(at, len(table.ids) - 1)] == ids[positions])
            if vectors.shape[1] == 0:
                vectors = np.zeros((len(ids), table.vectors.shape[1]), table.vectors.dtype)
            vectors[positions[found]] = table.vectors[at[found]]
            present[positions[found]] = True
    return vectors, present


def _input_version(_: StageContext, __: str, record: ResultRecord) -> str:
    return columns_version(record, ("caption",))


STAGE = Stage(
    name="caption_embeddings",
    step=ANALYSE,
    description="One unit vector for the caption of each image that has one, by the text tower of the model that embeds "
    "the images: whether two captions agree is their cosine similarity. Made on demand, or where a selection spares by it.",
    dimensions=("shard",),
    inputs=("items",),
    input_version=_input_version,
    settings=lambda context: {
        "encoder": context.pipeline.encoder.text_identity() if isinstance(context.pipeline.encoder, OpenClip) else None,
        "vectors": context.pipeline.vectors,
    },
    location=lambda layout, partition, _: layout.caption_embeddings(partition.required_shard),
    worker=_worker,
    applies=lambda pipeline, _: has_captions(pipeline),
    kinds=frozenset({"torch", "arrow"}),
    columns=lambda _: (ID, VECTOR),
    on_demand=True,
    unit="shards",
)
