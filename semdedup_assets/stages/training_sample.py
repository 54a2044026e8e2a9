"""Draw the vectors that centroids are fitted to."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from semdedup_assets.algorithm.sampling import UniformSample, candidate_limit, id_hash, smallest, with_spare
from semdedup_assets.execution import usage
from semdedup_assets.execution.chunks import contiguous_chunks
from semdedup_assets.execution.context import PartOfResult, StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import Progress
from semdedup_assets.execution.stage import Stage, Worker
from semdedup_assets.stages.embeddings import ID, VECTOR, VECTORS
from semdedup_assets.stages.embeddings import STAGE as EMBEDDINGS
from semdedup_assets.storage.files import join
from semdedup_assets.storage.overlap import calls_at_once, overlapped
from semdedup_assets.storage.results import MissingResultError, ResultRecord, ResultWriter, StoredFile
from semdedup_assets.storage.scratch import scratch_array
from semdedup_assets.storage.vectors import (
    PartWriter,
    VectorType,
    read_ids,
    read_vectors,
    sample_batch,
    sample_schema,
)

SAMPLE = "sample.arrow"
"""The sampled vectors, in the sample's record."""

_CANDIDATES = "candidates.arrow"
_NAMED = 3
_BLOCK_BYTES = 64 << 20
_SHARDS_AT_ONCE = 4
_EARLIER_DEFAULT = 1_000_000

Rows = tuple[np.ndarray, np.ndarray]
"""(n,) uint64 ids, and their (n, d) vectors."""


@dataclass(frozen=True, slots=True)
class _SampleTask:
    """The candidates of some shards; of the only task, the sample.

    Attributes:
        versions: of the shards' embeddings, by their names.
        limit: what a candidate's hash does not exceed.
        alone: whether these are all shards.
    """

    partition: Partition
    versions: dict[str, str]
    limit: int
    alone: bool
    inputs: dict[str, str]


def _tasks(context: StageContext, partition: Partition) -> Sequence[_SampleTask]:
    """Tasks over contiguous shards, as many as workers make them.

    Raises:
        MissingResultError: a shard is not embedded yet.
        ValueError: there are no items at all, or shards differ in dimension.
    """
    inputs = context.index.input_versions("training_sample", partition)
    records = context.index.require_consistent("embeddings")
    counts = [int(record.details["items"]) for record in records.values()]
    if not any(counts):
        message = (
            f"{context.pipeline.dataset}: no shard holds a single item that could be embedded; see the skipped items"
        )
        raise ValueError(message)
    _require_one_width(context, records)
    limit = candidate_limit(sample_size(context, sum(counts)), sum(counts))
    chunks = contiguous_chunks(list(records.items()), counts, most=context.parallelism)
    return [
        _SampleTask(
            partition,
            {shard.required_shard: record.version for shard, record in chunk},
            limit,
            len(chunks) == 1,
            inputs,
        )
        for chunk in chunks
    ]


def sample_size(context: StageContext, items: int) -> int:
    """How many vectors are drawn of some items: by default, enough for the greatest k that is asked for."""
    from semdedup_assets.algorithm.kmeans import suggest_k

    ks = [suggest_k(items) if each.k == "auto" else int(each.k) for each in context.pipeline.clusterings]
    return context.pipeline.training_sample.drawn(items, k=max(ks))


def _worker(context: StageContext) -> Worker:
    def worker(task: _SampleTask) -> ResultRecord | PartOfResult:
        records = _planned(context, task)
        return _draw(context, task, records) if task.alone else _write_candidates(context, task, records)

    return worker


def _planned(context: StageContext, task: _SampleTask) -> list[ResultRecord]:
    """The records of a task's shards, as they were when it was planned."""
    locations = [context.location("embeddings", Partition(shard=name)) for name in task.versions]
    records = [record for record in context.index.cache.get(locations) if record is not None]
    if [record.version for record in records] != list(task.versions.values()):
        location = context.location("training_sample", task.partition)
        message = f"{location}: its inputs were made again meanwhile; run again"
        raise MissingResultError(message)
    return records


def _draw(context: StageContext, task: _SampleTask, records: Sequence[ResultRecord]) -> ResultRecord:
    """Draw a seeded, uniform sample of all embeddings, the same whatever the shards' order; vectors are read once."""
    wanted = sample_size(context, _items(records))
    room = with_spare(with_spare(wanted))
    with usage.phase("draw"):
        tables = _candidates(context, records, task.limit)
        candidates = _gathered(tables, min(room, _items(records)), budget=context.compute.budget)
        if len(candidates[0]) < wanted:
            candidates = _by_ids(context, records)
    return _write_sample(context, task.partition, candidates, inputs=task.inputs)


def _items(records: Iterable[ResultRecord]) -> int:
    return sum(int(record.details["items"]) for record in records)


def _write_candidates(context: StageContext, task: _SampleTask, records: Sequence[ResultRecord]) -> PartOfResult:
    """Write the candidates of some shards, some megabytes at a time; of shards without any, no file."""
    with context.writing_part("training_sample", task.partition) as part:
        with usage.phase("draw"):
            blocks = _blocks(_candidates(context, records, task.limit))
            first = next(blocks, None)
            count = 0 if first is None else _write_blocks(part, first, blocks)
        part.details = {"candidates": count}
    return PartOfResult(task.inputs, part.files, part.details)


def _write_blocks(part: ResultWriter, first: Rows, others: Iterable[Rows]) -> int:
    ranges, count = "", 0
    with part.open(_CANDIDATES, ranges=lambda: ranges) as stream:
        schema = sample_schema(first[1].shape[1], _vector_type(first[1]))
        writer = PartWriter(stream, schema)
        for ids, vectors in chain([first], others):
            writer.write(sample_batch(schema, ids, vectors))
            count += len(ids)
        ranges = writer.close()
    return count


def _write_sample(
    context: StageContext,
    partition: Partition,
    candidates: Rows,
    *,
    inputs: Mapping[str, str],
    used: Mapping[str, Any] | None = None,
) -> ResultRecord:
    """Write the sample among its candidates; `used` is what the tasks used that found them, where they were several."""
    records = context.index.require_all("embeddings")
    items, ranges = _items(records.values()), ""
    size = sample_size(context, items)
    ids, vectors = _chosen(candidates, size, seed=context.pipeline.training_sample.seed)
    with context.writing("training_sample", partition, inputs=inputs) as result:
        with result.open(SAMPLE, ranges=lambda: ranges) as stream:
            writer = PartWriter(stream, schema := sample_schema(vectors.shape[1], _vector_type(vectors)))
            # One batch: mapped, it is copied only as far as a fit uses it.
            writer.write(sample_batch(schema, ids, vectors))
            ranges = writer.close()
        result.details = {
            "vectors": len(vectors),
            "items": items,
            "shards": len(records),
            "share": len(vectors) / items,
            "sampled_shards": {str(shard): record.version for shard, record in records.items()},
            **(used or {}),
        }
    return result.committed


def _vector_type(vectors: np.ndarray) -> VectorType:
    return "float16" if vectors.dtype == np.float16 else "float32"


def _blocks(tables: Iterable[Rows]) -> Iterator[Rows]:
    """The same rows in few parts, of which each is read at a time."""
    waiting, held = list[Rows](), 0
    for rows in tables:
        waiting.append(rows)
        held += rows[1].nbytes
        if held >= _BLOCK_BYTES:
            yield _joined(waiting)
            waiting, held = [], 0
    if held:
        yield _joined(waiting)


def _joined(tables: list[Rows]) -> Rows:
    return np.concatenate([ids for ids, _ in tables]), np.concatenate([vectors for _, vectors in tables])


def _candidates(context: StageContext, records: Sequence[ResultRecord], limit: int) -> Iterator[Rows]:
    """The items of some shards whose hashes do not exceed a limit, in the order of their ids."""
    seed = context.pipeline.training_sample.seed

    def of_shard(record: ResultRecord) -> list[Rows]:
        return [near(each.ids, each.vectors) for each in read_vectors(record.file(VECTORS))]

    def near(ids: np.ndarray, vectors: np.ndarray) -> Rows:
        chosen = id_hash(ids, seed=seed) <= np.uint64(limit)
        return ids[chosen], vectors[chosen]

    # Of a remote shard two reads are in memory, and the few of its rows that are candidates.
    most = min(_SHARDS_AT_ONCE, calls_at_once(context.pipeline.store))
    with Progress("training_sample", total=len(records), unit="shards") as progress:
        for found in overlapped(of_shard, records, most=most):
            yield from found
            progress.advance()


def _gathered(tables: Iterable[Rows], room: int, *, budget: int) -> Rows:
    """Rows together, their vectors in memory or in a temporary file.

    Args:
        tables: at least one.
        room: rows to make room for at first.
        budget: bytes that the vectors may take in memory.
    """
    ids, rows, count = [np.empty(0, np.uint64)], np.empty((0, 0)), 0
    for found, vectors in tables:
        stop = count + len(found)
        if rows.shape[1] == 0 or stop > len(rows):
            larger = scratch_array((max(room, 2 * stop), vectors.shape[1]), vectors.dtype, budget=budget)
            if count:
                larger[:count] = rows[:count]
            rows = larger
        rows[count:stop] = vectors
        ids.append(found)
        count = stop
    return np.concatenate(ids), rows[:count]


def _chosen(candidates: Rows, size: int, *, seed: int) -> Rows:
    """The sample among its candidates, in the same place."""
    ids, rows = candidates
    keep, count = smallest(id_hash(ids, seed=seed), size), 0
    step = max(1, _BLOCK_BYTES // max(1, rows.shape[1] * rows.itemsize))
    for start in range(0, len(rows), step):
        part = rows[start : start + step][keep[start : start + step]]
        rows[count : count + len(part)] = part
        count += len(part)
    return ids[keep], rows[:count]


def _by_ids(context: StageContext, records: Sequence[ResultRecord]) -> Rows:
    """The sample where there were too few candidates: ids show the greatest hash, and vectors are read once more."""
    setting = context.pipeline.training_sample
    sample = UniformSample(sample_size(context, _items(records)), setting.seed)
    for record in records:
        for ids in read_ids(record.file(VECTORS)):
            sample.add(ids)
    limit = int(id_hash(sample.ids, seed=setting.seed).max())
    return _gathered(_candidates(context, records, limit), len(sample.ids), budget=context.compute.budget)


def _finish(context: StageContext, partition: Partition, results: list[Any]) -> ResultRecord:
    """The sample of what the tasks wrote, which is removed then."""
    if len(results) == 1 and isinstance(results[0], ResultRecord):
        return results[0]
    try:
        return _merged(context, partition, results)
    finally:
        context.discard_parts("training_sample", partition, results)


def _merged(context: StageContext, partition: Partition, parts: list[PartOfResult]) -> ResultRecord:
    location = context.location("training_sample", partition)
    folder = location.rpartition("/")[0]
    files = [StoredFile(join(folder, entry.path), entry, location) for part in parts for entry in part.files.values()]
    records = list(context.index.require_all("embeddings").values())
    count = sum(part.details["candidates"] for part in parts)
    if count < sample_size(context, _items(records)):
        candidates = _by_ids(context, records)
    else:
        tables = ((each.ids, each.vectors) for file in files for each in read_vectors(file))
        candidates = _gathered(tables, count, budget=context.compute.budget)
    used = usage.added(part.details["usage"] for part in parts)
    return _write_sample(context, partition, candidates, inputs=parts[0].inputs, used=used)


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
    tasks=_tasks,
    finish=_finish,
    kinds=frozenset({"arrow"}),
    columns=lambda _: (ID, VECTOR),
    frozen=True,
    accepts=_accepts,
    pool="cpu",
    unit="samples",
)
