"""Draw the vectors that centroids are fitted to."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from semdedup_assets.algorithm.sampling import UniformSample
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import Progress
from semdedup_assets.execution.stage import Stage, Worker
from semdedup_assets.stages.embeddings import ID, VECTOR, VECTORS
from semdedup_assets.stages.embeddings import STAGE as EMBEDDINGS
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.scratch import scratch_array
from semdedup_assets.storage.vectors import PartWriter, VectorType, read_ids, read_vectors, sample_batch, sample_schema

SAMPLE = "sample.arrow"
"""The sampled vectors, in the sample's record."""

_NAMED = 3
_EARLIER_DEFAULT = 1_000_000


def _worker(context: StageContext) -> Worker:
    return lambda partition: draw_sample(context, partition)


def draw_sample(context: StageContext, partition: Partition) -> ResultRecord:
    """Draw a seeded, uniform sample of all embeddings, the same whatever the shards' order.

    Raises:
        MissingResultError: a shard is not embedded yet.
        ValueError: there are no items at all, or shards differ in dimension.
    """
    records = context.index.require_consistent("embeddings")
    size = sample_size(context, sum(int(record.details["items"]) for record in records.values()))
    sample = UniformSample(size, context.pipeline.training_sample.seed)
    with Progress("training_sample", total=2 * len(records), unit="shards") as progress:
        for record in records.values():
            with usage.phase("draw"):
                for ids in read_ids(record.file(VECTORS)):
                    sample.add(ids)
            progress.advance()
        with usage.phase("gather"):
            vectors = _vectors_of(context, records, sample.ids, progress)
    versions = {str(shard): record.version for shard, record in records.items()}
    ranges = ""
    with context.writing("training_sample", partition) as result:
        with result.open(SAMPLE, ranges=lambda: ranges) as stream:
            dtype: VectorType = "float16" if vectors.dtype == np.float16 else "float32"
            writer = PartWriter(stream, schema := sample_schema(vectors.shape[1], dtype))
            # One batch: mapped, it is copied only as far as a fit uses it.
            writer.write(sample_batch(schema, sample.ids, vectors))
            ranges = writer.close()
        result.details = {
            "vectors": len(vectors),
            "items": sample.seen,
            "shards": len(versions),
            "share": len(vectors) / sample.seen,
            "sampled_shards": versions,
        }
    return result.committed


def sample_size(context: StageContext, items: int) -> int:
    """How many vectors are drawn of some items: by default, enough for the greatest k that is asked for."""
    from semdedup_assets.algorithm.kmeans import suggest_k

    ks = [suggest_k(items) if each.k == "auto" else int(each.k) for each in context.pipeline.clusterings]
    return context.pipeline.training_sample.drawn(items, k=max(ks))


def _vectors_of(
    context: StageContext, records: Mapping[Partition, ResultRecord], chosen: np.ndarray, progress: Progress
) -> np.ndarray:
    """(m, d) vectors of the chosen items, in the order of their ids, which ascend.

    Raises:
        ValueError: the shards have vectors of several lengths, or no shard has an item; names the remedy.
    """
    _require_one_width(context, records)
    sample: np.ndarray | None = None
    for record in records.values():
        for table in read_vectors(record.file(VECTORS)):
            if sample is None:
                shape = (len(chosen), table.vectors.shape[1])
                sample = scratch_array(shape, table.vectors.dtype, budget=context.compute.budget)
            index = np.minimum(np.searchsorted(chosen, table.ids), len(chosen) - 1)
            wanted = chosen[index] == table.ids
            sample[index[wanted]] = table.vectors[wanted]
        progress.advance()
    if sample is None:
        message = (
            f"{context.pipeline.dataset}: no shard holds a single item that could be embedded; see the skipped items"
        )
        raise ValueError(message)
    return sample


def _require_one_width(context: StageContext, records: Mapping[Partition, ResultRecord]) -> None:
    widths = {shard: int(record.details["dimension"]) for shard, record in records.items() if record.details["items"]}
    if len(set(widths.values())) <= 1:
        return
    usual = max(widths.values(), key=list(widths.values()).count)
    odd = {shard: width for shard, width in widths.items() if width != usual}
    named = ", ".join(
        f"{width} in {shard} ({context.shard(shard.required_shard).files[0].path})"
        for shard, width in list(odd.items())[:_NAMED]
    )
    message = (
        f"{context.pipeline.dataset}: most shards hold vectors of {usual} numbers, and {len(odd)} of others: {named}; mend "
        f"their files, or set `encoder.dimension: {usual}`, which makes other vectors invalid items"
    )
    raise ValueError(message)


def _settings(context: StageContext) -> dict[str, Any]:
    setting = context.pipeline.training_sample
    # `auto` counts as the size that was the default before it: a frozen sample that has been drawn stays. Which k there
    # are does not count either, for another k must not make the others again.
    size = _EARLIER_DEFAULT if setting.size == "auto" else setting.size
    # The sample belongs to the model: its vectors are the model's.
    return {
        "size": size,
        "seed": setting.seed,
        "embeddings": dict(EMBEDDINGS.settings(context)),
        "version": EMBEDDINGS.version,
    }


def _accepts(context: StageContext, record: ResultRecord) -> bool:
    """Whether a sample has the size that is set: one that was drawn by `auto` has the same settings as one of a million."""
    size = context.pipeline.training_sample.size
    return size != _EARLIER_DEFAULT or record.details["vectors"] == min(size, record.details["items"])


STAGE = Stage(
    name="training_sample",
    step="2-cluster",
    description="A seeded, uniform sample of all vectors, to which the centroids are fitted. It is frozen: new data never "
    "re-clusters the old. Materialising it keeps it as it is, unless the model has changed or `refit` is set.",
    dimensions=(),
    inputs=("embeddings",),
    settings=_settings,
    location=lambda layout, _, __: layout.training_sample,
    worker=_worker,
    kinds=frozenset({"arrow"}),
    columns=lambda _: (ID, VECTOR),
    frozen=True,
    accepts=_accepts,
    pool=None,
    unit="samples",
)
