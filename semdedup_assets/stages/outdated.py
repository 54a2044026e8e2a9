"""Which results are gone, or were made from other inputs or settings than there are now, by what their recipes say."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial

from semdedup_assets.stages.duplicate_scores import AssignedShards
from semdedup_assets.stages.training_sample import frozen_sample
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.results import MissingResultError, Recipe, fingerprint, read_recipe

# Of an object store each recipe is a wait and no work.
_READERS = 16

BEFORE = {
    "embeddings": (),
    "training_sample": ("embeddings",),
    "centroids": ("training_sample",),
    "assignments": ("embeddings", "training_sample", "centroids"),
    "duplicate_scores": ("embeddings", "training_sample", "centroids", "assignments"),
    "keep_masks": ("embeddings", "training_sample", "centroids", "assignments", "duplicate_scores"),
    "manifests": ("embeddings", "training_sample", "centroids", "assignments", "duplicate_scores", "keep_masks"),
    "figures": ("embeddings", "training_sample", "centroids", "assignments", "duplicate_scores"),
    "galleries": ("embeddings", "training_sample", "centroids", "assignments", "duplicate_scores", "keep_masks"),
}
"""The stages that must be up to date before a stage can be."""

Judged = Iterator[tuple[str | None, Callable[[], bool]]]
"""Partitions, each with the question whether its result is there and made from what there is now."""


def outdated_partitions(work: Work, stage: str) -> list[str | None]:
    """Partitions of a stage that the store tells to be made again, as Dagster spells them.

    Dagster's own mark does not tell all: it passes over dependencies on 100 or more partitions, a shard that
    vanished leaves no event, and a store may lose files or be another one.

    Args:
        work: the pipeline at work.
        stage: one of `BEFORE`; all stages before it are up to date.

    Raises:
        MissingResultError: a stage before it is not complete.
    """
    return _Store(work).outdated(stage)


def is_ready(work: Work, stage: str) -> bool:
    """Whether all stages before one are up to date."""
    store = _Store(work)
    try:
        return not any(store.outdated(before) for before in BEFORE[stage])
    except MissingResultError:
        return False


def _in_parallel(questions: Iterable[Callable[[], Recipe]]) -> list[Recipe]:
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda ask: ask(), questions))


@dataclass(frozen=True)
class _Store:
    """What the store holds now; each recipe is read once."""

    work: Work

    def outdated(self, stage: str) -> list[str | None]:
        judges: dict[str, Callable[[], Judged]] = {
            "embeddings": self._embeddings,
            "training_sample": self._training_sample,
            "centroids": self._centroids,
            "assignments": self._assignments,
            "duplicate_scores": self._duplicate_scores,
            "keep_masks": self._keep_masks,
            "manifests": self._manifests,
            "figures": self._figures,
            "galleries": self._galleries,
        }
        judged = list(judges[stage]())
        with ThreadPoolExecutor(_READERS) as pool:
            same = list(pool.map(lambda pair: pair[1](), judged))
        return [partition for (partition, _), is_same in zip(judged, same, strict=True) if not is_same]

    def _same(self, stage: str, recipe: Callable[[], Recipe], now: dict[str, str]) -> bool:
        try:
            found = recipe()
        except MissingResultError:
            return False
        return found.made_from == now and found.code_version == self.work.code_version(stage)

    @cached_property
    def embeddings(self) -> dict[str, str]:
        """Version of each shard's embeddings."""
        shards = [shard.name for shard in self.work.shards()]
        recipes = _in_parallel(partial(self.work.embeddings, shard) for shard in shards)
        return {shard: recipe.version for shard, recipe in zip(shards, recipes, strict=True)}

    @cached_property
    def scores(self) -> dict[str, str]:
        """One version of all scores, by k."""
        found = {}
        for k in self.work.pipeline.clustering.k:
            recipes = _in_parallel(partial(self.work.scores, k, bucket) for bucket in self.work.buckets)
            versions = {bucket: recipe.version for bucket, recipe in zip(self.work.buckets, recipes, strict=True)}
            found[k] = fingerprint(versions)
        return found

    def _embeddings(self) -> Judged:
        for shard in self.work.shards():
            read = partial(self.work.embeddings, shard.name)
            yield shard.name, partial(self._same, "embeddings", read, {"shards": shard.fingerprint})

    def _training_sample(self) -> Judged:
        yield None, lambda: frozen_sample(self.work) is not None

    def _centroids(self) -> Judged:
        sample = frozen_sample(self.work)
        now = {"training_sample": "" if sample is None else sample.version}
        for k in self.work.pipeline.clustering.k:
            yield k, partial(self._same, "centroids", partial(self.work.centroids, k), now)

    def _assignments(self) -> Judged:
        for k in self.work.pipeline.clustering.k:
            centroids = self.work.centroids(k).version
            for shard, version in self.embeddings.items():
                now = {"embeddings": version, "centroids": centroids}
                read = partial(self.work.assignments, k, shard)
                yield f"{k}|{shard}", partial(self._same, "assignments", read, now)

    def _duplicate_scores(self) -> Judged:
        for k in self.work.pipeline.clustering.k:
            now = {"assignments": AssignedShards(self.work, k).version}
            for bucket in self.work.buckets:
                read = partial(self.work.scores, k, bucket)
                yield f"{bucket}|{k}", partial(self._same, "duplicate_scores", read, now)

    def _keep_masks(self) -> Judged:
        for k, scores in self.scores.items():
            for epsilon in self.work.pipeline.epsilons:
                read = partial(self.work.masks, k, epsilon)
                yield f"{epsilon}|{k}", partial(self._same, "keep_masks", read, {"duplicate_scores": scores})

    def _figures(self) -> Judged:
        for k, scores in self.scores.items():
            read = partial(read_recipe, self.work.layout.figures(k), cure=self.work.cure("figures", k))
            yield k, partial(self._same, "figures", read, {"duplicate_scores": scores})

    def _manifests(self) -> Judged:
        for k, epsilon, now in self._selected():
            read = partial(self.work.manifest, k, epsilon)
            yield f"{epsilon}|{k}", partial(self._same, "manifests", read, now)

    def _galleries(self) -> Judged:
        for k, epsilon, now in self._selected():
            cure = self.work.cure("galleries", f"{epsilon}|{k}")
            read = partial(read_recipe, self.work.layout.gallery(k, epsilon), cure=cure)
            yield f"{epsilon}|{k}", partial(self._same, "galleries", read, now)

    def _selected(self) -> Iterator[tuple[str, str, dict[str, str]]]:
        """Each k and epsilon, with the versions that a manifest or gallery is to be made from."""
        embeddings = fingerprint(self.embeddings)
        for k in self.work.pipeline.clustering.k:
            for epsilon in self.work.pipeline.epsilons:
                yield k, epsilon, {"keep_masks": self.work.masks(k, epsilon).version, "embeddings": embeddings}
