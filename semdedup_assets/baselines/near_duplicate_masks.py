"""Keep one text of each group of near duplicates (Lee et al. 2021, NearDup)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from semdedup_assets.baselines.choices import (
    COLUMNS,
    EmbeddedShard,
    embedded_shards,
    has_texts,
    items_version,
    write_groups,
)
from semdedup_assets.baselines.text_signatures import SIGNATURES
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import ANALYSE, Stage, Worker
from semdedup_assets.storage.results import MissingResultError, ResultRecord
from semdedup_assets.storage.scratch import scratch_array
from semdedup_assets.storage.vectors import read_vectors


def _worker(context: StageContext) -> Worker:
    return lambda partition: mask_near_duplicates(context, partition)


def mask_near_duplicates(context: StageContext, partition: Partition) -> ResultRecord:
    """Keep the first text, by id, of each connected component of near-duplicate pairs.

    Signatures and their bands lie in memory where they fit a quarter of the budget each, else in temporary files: with
    256 permutations about 1.4 kB a text together. Memory holds about 60 bytes a text beside them.

    Args:
        context: of the pipeline.
        partition: the only one.

    Raises:
        MissingResultError: signatures or embeddings are missing, or are of other items; names what to materialise.
        OSError: there is no room for the temporary files.
    """
    from semdedup_assets.algorithm.near_duplicates import near_texts

    settings = context.pipeline.analyses.fingerprints
    with context.writing("near_duplicate_masks", partition) as result:
        shards = list(embedded_shards(context))
        ids = np.concatenate([np.zeros(0, np.uint64), *(shard.ids for shard in shards)])
        with usage.phase("gather"):
            signatures, bands = _gathered(context, shards)
        with usage.phase("compare"):
            first = near_texts(signatures, bands, threshold=settings.jaccard, budget=context.compute.budget // 4)
        with usage.phase("write"):
            result.details = write_groups(result, ids, first)
        result.details["bands"] = len(bands)
        result.details["made_with"] = {"baseline": "near_duplicates", **_determining(context)}
    return result.committed


def _gathered(context: StageContext, shards: Sequence[EmbeddedShard]) -> tuple[np.ndarray, np.ndarray]:
    """The signatures of all items that have a vector: (n, p) uint32; and the hashes of their bands: (b, n) uint64."""
    from semdedup_assets.algorithm.near_duplicates import band_hashes, band_rows

    settings, items, start = context.pipeline.analyses.fingerprints, sum(len(shard.ids) for shard in shards), 0
    rows = band_rows(settings.permutations, threshold=settings.jaccard)
    budget = context.compute.budget // 4
    signatures = scratch_array((items, settings.permutations), np.dtype(np.uint32), budget=budget)
    bands = scratch_array((settings.permutations // rows, items), np.dtype(np.uint64), budget=budget)
    for shard in shards:
        record, found = shard.require_same_source(context, "text_signatures"), start
        for part in read_vectors(record.file(SIGNATURES)):
            chosen = part.vectors[np.isin(part.ids, shard.ids)]
            signatures[found : found + len(chosen)] = chosen
            bands[:, found : found + len(chosen)] = band_hashes(chosen, rows=rows)
            found += len(chosen)
        if found - start != len(shard.ids):
            message = (
                f"{record.location}: has signatures of {found - start:,} of {len(shard.ids):,} items with a vector; "
                f"{context.remedy('text_signatures', shard.partition)}"
            )
            raise MissingResultError(message)
        start = found
    return signatures, bands


def _determining(context: StageContext) -> dict[str, Any]:
    names = ("ngram_words", "permutations", "seed", "jaccard")
    return {name: getattr(context.pipeline.analyses.fingerprints, name) for name in names}


STAGE = Stage(
    name="near_duplicate_masks",
    step=ANALYSE,
    description="A baseline: NearDup (Lee et al. 2021, section 4.2). Texts whose n-grams of words have a Jaccard "
    "similarity of `analyses.fingerprints.jaccard` or more, as MinHash estimates it, are connected; of each connected "
    "group the first is kept. Without the check by edit distance that the paper adds.",
    dimensions=(),
    inputs=("text_signatures", "embeddings"),
    input_version=items_version,
    settings=lambda context: {"jaccard": context.pipeline.analyses.fingerprints.jaccard},
    location=lambda layout, _, __: layout.of_baseline("near_duplicates", "masks"),
    worker=_worker,
    kinds=frozenset({"numpy", "parquet"}),
    columns=lambda _: COLUMNS,
    applies=has_texts,
    on_demand=True,
    pool="cpu",
)
