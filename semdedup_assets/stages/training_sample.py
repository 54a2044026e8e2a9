"""Draw the vectors that centroids are fitted to."""

from typing import Any

import numpy as np

from semdedup_assets.algorithm.sampling import UniformSample
from semdedup_assets.stages.work import Progress, Work
from semdedup_assets.storage.results import MissingResultError, Recipe, fingerprint, read_recipe
from semdedup_assets.storage.scratch import scratch_array
from semdedup_assets.storage.vectors import read_ids, read_vectors, write_sample


def frozen_sample(work: Work) -> Recipe | None:
    """The sample that was drawn before, if it is complete and of these settings and this model."""
    try:
        recipe = read_recipe(work.layout.training_sample, cure="")
    except MissingResultError:
        return None
    return recipe if recipe.code_version == work.code_version("training_sample") else None


def draw_sample(work: Work) -> Recipe:
    """Draw a seeded, uniform sample of all embeddings, the same whatever the shards' order.

    Raises:
        MissingResultError: a shard is not embedded yet.
        ValueError: there are no items at all, or shards differ in dimension.
    """
    work.measures.restart()
    shards = work.shards()
    recipes = {shard.name: work.embeddings(shard.name) for shard in shards}
    setting = work.pipeline.training_sample
    sample = UniformSample(None if setting.size == "all" else setting.size, setting.seed)
    with work.progress("training_sample", total=2 * len(shards), unit="shards") as progress:
        for shard in shards:
            with work.measures.phase("draw"):
                for ids in read_ids(work.layout.embeddings(shard.name)):
                    sample.add(ids)
            progress.advance(1)
        with work.measures.phase("gather"):
            vectors = _vectors_of(work, list(recipes), sample.ids, progress)
    versions = {name: recipe.version for name, recipe in recipes.items()}
    made_from = {"embeddings": fingerprint(versions)}
    with work.writing("training_sample", work.layout.training_sample, made_from=made_from) as result:
        with result.open(work.layout.training_sample) as stream:
            write_sample(stream, sample.ids, vectors)
        result.details = _details(vectors, sample.seen, versions)
    return result.recipe()


def _details(vectors: np.ndarray, seen: int, versions: dict[str, str]) -> dict[str, Any]:
    return {
        "vectors": len(vectors),
        "items": seen,
        "shards": len(versions),
        "share": len(vectors) / seen,
        "sampled_shards": versions,
    }


def _vectors_of(work: Work, shards: list[str], chosen: np.ndarray, progress: Progress) -> np.ndarray:
    """(m, d) vectors of the chosen items, in the order of their ids, which ascend."""
    sample: np.ndarray | None = None
    for name in shards:
        for table in read_vectors(work.layout.embeddings(name)):
            if sample is None:
                shape = (len(chosen), table.vectors.shape[1])
                sample = scratch_array(shape, table.vectors.dtype, budget=work.compute.budget)
            if table.vectors.shape[1] != sample.shape[1]:
                widths = sorted([sample.shape[1], table.vectors.shape[1]])
                message = (
                    f"{work.pipeline.dataset}: shards hold vectors of {widths} numbers; {work.cure('embeddings')} anew"
                )
                raise ValueError(message)
            place = np.minimum(np.searchsorted(chosen, table.ids), len(chosen) - 1)
            wanted = chosen[place] == table.ids
            sample[place[wanted]] = table.vectors[wanted]
        progress.advance(1)
    if sample is None:
        message = f"{work.pipeline.dataset}: no shard holds a single item that could be embedded; see the skipped items"
        raise ValueError(message)
    return sample
