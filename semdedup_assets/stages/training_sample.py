"""Draw the vectors that centroids are fitted to."""

from typing import Any

import numpy as np

from semdedup_assets.algorithm.sampling import UniformSample
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.results import MissingResultError, Recipe, fingerprint, read_recipe, writing
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
    shards = work.shards()
    recipes = {shard.name: work.embeddings(shard.name) for shard in shards}
    setting = work.pipeline.training_sample
    sample = UniformSample(None if setting.size == "all" else setting.size, setting.seed)
    for shard in shards:
        for ids in read_ids(work.layout.embeddings(shard.name)):
            sample.add(ids)
    ids, vectors = _vectors_of(work, list(recipes), sample.ids)
    with writing(
        work.layout.training_sample,
        code_version=work.code_version("training_sample"),
        made_from={"embeddings": fingerprint({name: recipe.version for name, recipe in recipes.items()})},
    ) as result:
        with result.open(work.layout.training_sample) as stream:
            write_sample(stream, ids, vectors)
        result.details = _details(ids, sample.seen, len(shards))
    return result.recipe()


def _details(ids: np.ndarray, seen: int, shards: int) -> dict[str, Any]:
    return {"vectors": len(ids), "items": seen, "shards": shards, "share": len(ids) / seen}


def _vectors_of(work: Work, shards: list[str], chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids (m,) ascending and vectors (m, d) of the chosen items."""
    ids, vectors = [], []
    for name in shards:
        for table in read_vectors(work.layout.embeddings(name)):
            # Ascending ids make membership a binary search.
            place = np.searchsorted(chosen, table.ids)
            wanted = chosen[np.minimum(place, len(chosen) - 1)] == table.ids
            ids.append(table.ids[wanted])
            vectors.append(table.vectors[wanted])
    if not ids:
        message = f"{work.pipeline.dataset}: no shard holds a single item that could be embedded; see the skipped items"
        raise ValueError(message)
    widths = sorted({part.shape[1] for part in vectors})
    if len(widths) > 1:
        message = f"{work.pipeline.dataset}: shards hold vectors of {widths} numbers; {work.cure('embeddings')} anew"
        raise ValueError(message)
    all_ids = np.concatenate(ids)
    order = np.argsort(all_ids)
    return all_ids[order], np.concatenate(vectors)[order]
