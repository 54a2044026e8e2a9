"""Which results are gone, or were made from other inputs than there are now, by what their recipes say."""

import json
from collections.abc import Callable, Iterator
from functools import partial

from semdedup_assets.stages.duplicate_scores import AssignedShards
from semdedup_assets.stages.training_sample import frozen_sample
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.files import exists, join, read_bytes
from semdedup_assets.storage.results import MissingResultError, Recipe, fingerprint, read_recipe

Judged = Iterator[tuple[str | None, bool]]
"""Partitions, each with whether its result is there and made from what there is now."""


def outdated_partitions(work: Work, stage: str) -> list[str | None]:
    """Partitions of a stage that the store tells to be made again, as Dagster spells them.

    Dagster's own mark does not tell all: it passes over dependencies on 100 or more partitions, a shard that
    vanished leaves no event, and a store may lose files or be another one.

    Args:
        work: the pipeline at work.
        stage: `embeddings`, `training_sample`, `centroids`, `assignments`, `duplicate_scores`, `keep_masks` or
            `manifests`; all stages before it are up to date.
    """
    return [partition for partition, same in _JUDGES[stage](work) if not same]


def _same(recipe: Callable[[], Recipe], now: dict[str, str]) -> bool:
    try:
        return recipe().made_from == now
    except MissingResultError:
        return False


def _embeddings(work: Work) -> Judged:
    for shard in work.shards():
        yield shard.name, _same(partial(work.embeddings, shard.name), {"shards": shard.fingerprint})


def _training_sample(work: Work) -> Judged:
    yield None, frozen_sample(work) is not None


def _centroids(work: Work) -> Judged:
    sample = frozen_sample(work)
    for k in work.pipeline.clustering.k:
        yield k, sample is not None and _same(partial(work.centroids, k), {"training_sample": sample.version})


def _assignments(work: Work) -> Judged:
    embeddings = {shard.name: work.embeddings(shard.name).version for shard in work.shards()}
    for k in work.pipeline.clustering.k:
        centroids = work.centroids(k).version
        for shard, version in embeddings.items():
            now = {"embeddings": version, "centroids": centroids}
            yield f"{k}|{shard}", _same(partial(work.assignments, k, shard), now)


def _duplicate_scores(work: Work) -> Judged:
    for k in work.pipeline.clustering.k:
        now = {"assignments": AssignedShards(work, k).version}
        for bucket in work.buckets:
            yield f"{bucket}|{k}", _same(partial(work.scores, k, bucket), now)


def _keep_masks(work: Work) -> Judged:
    for k in work.pipeline.clustering.k:
        now = {"duplicate_scores": fingerprint({bucket: work.scores(k, bucket).version for bucket in work.buckets})}
        for epsilon in work.pipeline.epsilons:
            yield f"{epsilon}|{k}", _same(partial(work.masks, k, epsilon), now)


def _manifests(work: Work) -> Judged:
    embeddings = fingerprint({shard.name: work.embeddings(shard.name).version for shard in work.shards()})
    for k in work.pipeline.clustering.k:
        for epsilon in work.pipeline.epsilons:
            now = {"keep_masks": work.masks(k, epsilon).version, "embeddings": embeddings}
            yield f"{epsilon}|{k}", _same(partial(_current_manifest, work, k, epsilon), now)


def _current_manifest(work: Work, k: str, epsilon: str) -> Recipe:
    pointer, cure = work.layout.current_manifest(k, epsilon), work.cure("manifests", f"{epsilon}|{k}")
    if not exists(pointer):
        message = f"{pointer}: no manifest yet; {cure}"
        raise MissingResultError(message)
    version = json.loads(read_bytes(pointer))["version"]
    return read_recipe(join(work.layout.manifest(k, epsilon, version), "manifest"), cure=cure)


_JUDGES: dict[str, Callable[[Work], Judged]] = {
    "embeddings": _embeddings,
    "training_sample": _training_sample,
    "centroids": _centroids,
    "assignments": _assignments,
    "duplicate_scores": _duplicate_scores,
    "keep_masks": _keep_masks,
    "manifests": _manifests,
}
