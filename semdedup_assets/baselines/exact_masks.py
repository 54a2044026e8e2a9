"""Keep one item of each content: what deduplication by equal bytes alone would do."""

import numpy as np

from semdedup_assets.baselines.choices import COLUMNS, embedded_shards, has_content, write_groups
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import ANALYSE, Stage, Worker
from semdedup_assets.records import id_rows
from semdedup_assets.stages.embeddings import CONTENTS, stored_contents
from semdedup_assets.storage.results import ResultRecord, fingerprint

# Of an item whose content is compared: two hashes, its position, and what sorting takes.
_ITEM_BYTES = 64


def _worker(context: StageContext) -> Worker:
    return lambda partition: mask_exact(context, partition)


def mask_exact(context: StageContext, partition: Partition) -> ResultRecord:
    """Keep the first item, by id, of each content; content is equal where size and 128 bits of hash are.

    Items are compared in parts by their hash, so that these fit the budget; what is held of all is 24 bytes each.

    Args:
        context: of the pipeline.
        partition: the only one.

    Raises:
        MissingResultError: embeddings are missing, or were made by a version that noted no second hash.
    """
    with context.writing("exact_masks", partition) as result:
        shards = list(embedded_shards(context))
        ids = np.concatenate([np.zeros(0, np.uint64), *(shard.ids for shard in shards)])
        parts, first = max(1, -(-len(ids) * _ITEM_BYTES // context.compute.budget)), np.arange(len(ids))
        for part in range(parts):
            with usage.phase("compare"):
                _unite(context, first, part=part, parts=parts)
        with usage.phase("write"):
            result.details = write_groups(result, ids, first)
        result.details["made_with"] = {"baseline": "exact"}
    return result.committed


def _unite(context: StageContext, first: np.ndarray, *, part: int, parts: int) -> None:
    """Find the first of equal items among those whose hash belongs to a part."""
    from semdedup_assets.algorithm.near_duplicates import first_of_equal

    positions, contents, start = [np.zeros(0, np.int64)], [np.zeros((0, 3), np.uint64)], 0
    for shard in embedded_shards(context):
        stored, rows = stored_contents(shard.record), id_rows(shard.ids)
        hashes = stored.hashes[rows]
        here = np.flatnonzero(hashes[:, 0] % np.uint64(parts) == part)
        sizes = stored.sizes["bytes"][rows[here]].astype(np.uint64)
        positions.append(here + start)
        contents.append(np.column_stack([hashes[here], sizes]))
        start += len(rows)
    found = np.concatenate(positions)
    first[found] = found[first_of_equal(np.concatenate(contents))]


def _input_version(_: StageContext, __: str, record: ResultRecord) -> str:
    """The contents do not count for the version of embeddings: other bytes of an equal vector do here."""
    return fingerprint([record.files[CONTENTS].checksum, record.details["id_checksum"]])


STAGE = Stage(
    name="exact_masks",
    step=ANALYSE,
    description="A baseline: the first item of each content is kept, its byte-equal copies in all shards are removed.",
    dimensions=(),
    inputs=("embeddings",),
    input_version=_input_version,
    settings=lambda _: {},
    location=lambda layout, _, __: layout.of_baseline("exact", "masks"),
    worker=_worker,
    kinds=frozenset({"numpy", "parquet"}),
    columns=lambda _: COLUMNS,
    applies=has_content,
    on_demand=True,
    pool="cpu",
)
