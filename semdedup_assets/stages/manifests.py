"""Write what a training job reads: the kept items, in the order of the source."""

import json
from typing import Any

import numpy as np

from semdedup_assets.records import id_rows, id_shards
from semdedup_assets.sources.catalogue import Shard
from semdedup_assets.stages.duplicate_scores import AssignedShards
from semdedup_assets.stages.embeddings import left_out_shards
from semdedup_assets.stages.manifest_formats import WRITERS, KeptShard
from semdedup_assets.stages.manifest_rows import rows_written
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.files import join, write_bytes
from semdedup_assets.storage.results import MissingResultError, Recipe, fingerprint, read_recipe
from semdedup_assets.storage.tables import read_tables


def write_manifest(work: Work, epsilon: str, *, assigned: AssignedShards) -> Recipe:
    """Write the manifest of one k and epsilon; a manifest that is there already is never changed.

    Args:
        work: the pipeline at work.
        epsilon: as the partition spells it: `0.05` or `keep=50%`.
        assigned: the assignments of one k.

    Returns:
        The manifest's recipe: what it holds, and all that it was made from.

    Raises:
        MissingResultError: the masks are missing, or were made from other embeddings than there are now.
    """
    work.measures.restart()
    k, shards = assigned.k, work.shards()
    embeddings = {shard.name: work.embeddings(shard.name) for shard in shards}
    masks = checked_masks(work, epsilon, assigned, embeddings)
    made_from = {
        "keep_masks": masks.version,
        "embeddings": fingerprint({name: e.version for name, e in embeddings.items()}),
    }
    version = fingerprint([made_from, work.code_version("manifests")])[:16]
    folder = work.layout.manifest(k, epsilon, version)
    recipe = _complete(folder)
    if recipe is None:
        with work.measures.phase("gather"):
            kept = _kept_shards(work, k, epsilon, shards, embeddings)
        with work.writing("manifests", join(folder, "manifest"), made_from=made_from) as result:
            with work.progress(f"manifests {epsilon}", total=len(work.pipeline.manifests), unit="formats") as progress:
                for name in work.pipeline.manifests:
                    with work.measures.phase(f"write {name}"):
                        WRITERS[name](work, kept, folder, result)
                    progress.advance(1)
            with work.measures.phase("count"):
                rows = rows_written(folder, result.files)
            result.details = {**_details(work, masks, kept, version=version, k=k), "rows_written": rows}
        recipe = result.recipe()
    # The folder lies beside the pointer: named so, the pointer holds wherever the store is moved to.
    pointer = {"version": version, "folder": version, "epsilon": epsilon, "k": k}
    write_bytes(work.layout.current_manifest(k, epsilon), json.dumps(pointer, indent=1).encode())
    return recipe


def _complete(folder: str) -> Recipe | None:
    try:
        return read_recipe(join(folder, "manifest"), cure="")
    except MissingResultError:
        return None


def checked_masks(work: Work, epsilon: str, assigned: AssignedShards, embeddings: dict[str, Recipe]) -> Recipe:
    """The masks' recipe, once the whole chain from the embeddings to them is seen to fit together."""
    k = assigned.k
    masks = work.masks(k, epsilon)
    if masks.made_from["duplicate_scores"] != assigned.scores_version:
        _refuse(work.layout.masks(k, epsilon), "scores", work.cure("keep_masks", f"{epsilon}|{k}"))
    for shard, recipe in embeddings.items():
        if assigned.recipes[shard].made_from["embeddings"] != recipe.version:
            _refuse(work.layout.assignments(k, shard), "embeddings", work.cure("assignments", f"{k}|{shard}"))
    return masks


def _refuse(path: str, what: str, cure: str) -> None:
    message = f"{path}: made from other {what} than there are now; {cure}"
    raise MissingResultError(message)


def _kept_shards(
    work: Work, k: str, epsilon: str, shards: tuple[Shard, ...], embeddings: dict[str, Recipe]
) -> list[KeptShard]:
    """One byte an item: the masks, which lie by cluster, brought into the order of the source."""
    bits = {shard.index: np.zeros(embeddings[shard.name].details["records"], dtype=bool) for shard in shards}
    items = 0
    for bucket in work.buckets:
        for part in read_tables(work.layout.mask(k, epsilon, bucket), ["id", "kept"]):
            items += len(part["id"])
            _set(bits, part["id"][part["kept"]])
    embedded = sum(recipe.details["items"] for recipe in embeddings.values())
    if items != embedded:
        message = (
            f"{work.layout.masks(k, epsilon)}: {items} items are masked, {embedded} embedded; "
            f"{work.cure('assignments')} and what follows"
        )
        raise MissingResultError(message)
    return [KeptShard(shard, embeddings[shard.name].details["files"], bits[shard.index]) for shard in shards]


def _set(bits: dict[int, np.ndarray], ids: np.ndarray) -> None:
    if len(ids) == 0:
        return
    ids = np.sort(ids)
    shards, rows = id_shards(ids), id_rows(ids)
    present, starts = np.unique(shards, return_index=True)
    for shard, start, stop in zip(present, starts, [*starts[1:], len(ids)], strict=True):
        bits[int(shard)][rows[start:stop]] = True


def _details(work: Work, masks: Recipe, kept: list[KeptShard], *, version: str, k: str) -> dict[str, Any]:
    pipeline = work.pipeline
    records = sum(len(shard.kept) for shard in kept)
    count = sum(int(shard.kept.sum()) for shard in kept)
    return {
        "manifest": version,
        "kept": count,
        "removed": masks.details["items"] - count,
        "skipped": records - masks.details["items"],
        "records": records,
        "recipe": {
            "dataset": pipeline.dataset,
            "dataset_fingerprint": fingerprint([shard.shard.fingerprint for shard in kept]),
            "model": pipeline.model_name,
            "encoder": pipeline.encoder.identity(),
            "k": k,
            "clustering": pipeline.clustering.model_dump(mode="json", exclude={"k"}),
            "iterations": pipeline.iterations,
            "training_sample": pipeline.training_sample.model_dump(mode="json"),
            "selection": pipeline.selection.model_dump(mode="json"),
            "epsilon": masks.details["epsilon"],
            "left_out": left_out_shards(work),
        },
    }
