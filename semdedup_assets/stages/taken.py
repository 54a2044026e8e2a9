"""What the stages took, by the recipes of their results."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from semdedup_assets.stages.work import Work
from semdedup_assets.storage.results import MissingResultError, Recipe, read_recipe


@dataclass(frozen=True, slots=True)
class Taken:
    """What the results of one stage, and of one k, took together.

    Attributes:
        results: how many there will be.
        done: how many are there.
        seconds: None where a result does not tell, or there is none.
        bytes: of their files.
        peak_memory_mib: of the process, at most; None where no result tells.
    """

    results: int
    done: int
    seconds: float | None
    bytes: int
    peak_memory_mib: float | None

    @property
    def complete(self) -> bool:
        """Whether every result is there, and tells how long it took."""
        return self.results == self.done and self.seconds is not None


def taken(work: Work) -> dict[tuple[str, str], Taken]:
    """What each stage took, by stage and k; the stages before the centroids have no k, and "" in its place.

    Raises:
        MissingResultError: the source has not been observed yet.
    """
    shards = [shard.name for shard in work.shards()]
    found = {
        ("embeddings", ""): _sum([partial(work.embeddings, shard) for shard in shards]),
        ("training_sample", ""): _sum([partial(read_recipe, work.layout.training_sample, cure="")]),
    }
    for k in work.pipeline.clustering.k:
        found |= {(stage, k): _sum(recipes) for stage, recipes in _of_k(work, k, shards)}
    return found


def _of_k(work: Work, k: str, shards: list[str]) -> Iterator[tuple[str, list[Callable[[], Recipe]]]]:
    epsilons = work.pipeline.epsilons
    yield "centroids", [partial(work.centroids, k)]
    yield "assignments", [partial(work.assignments, k, shard) for shard in shards]
    yield "duplicate_scores", [partial(work.scores, k, bucket) for bucket in work.buckets]
    yield "keep_masks", [partial(work.masks, k, epsilon) for epsilon in epsilons]
    yield "manifests", [partial(work.manifest, k, epsilon) for epsilon in epsilons]


def _sum(recipes: list[Callable[[], Recipe]]) -> Taken:
    there = list(_there(recipes))
    seconds = [recipe.details.get("seconds") for recipe in there]
    peaks = [float(recipe.details["peak_memory_mib"]) for recipe in there if "peak_memory_mib" in recipe.details]
    told = [float(value) for value in seconds if value is not None]
    return Taken(
        results=len(recipes),
        done=len(there),
        seconds=sum(told) if told and len(told) == len(there) else None,
        bytes=sum(sum(recipe.files.values()) for recipe in there),
        peak_memory_mib=max(peaks, default=None),
    )


def _there(recipes: list[Callable[[], Recipe]]) -> Iterator[Recipe]:
    for recipe in recipes:
        try:
            yield recipe()
        except MissingResultError:
            # Not made yet: the caller tells it by the count.
            continue
