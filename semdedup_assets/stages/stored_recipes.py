"""The recipes of all results that are there, each read once however many checks look at it."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial

from semdedup_assets.algorithm.sampling import CHECKSUM_MODULUS
from semdedup_assets.sources.catalogue import Shard
from semdedup_assets.stages.training_sample import frozen_sample
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.results import MissingResultError, Recipe, fingerprint

# Of an object store each recipe is a wait and no work.
_READERS = 16


@dataclass(frozen=True, slots=True)
class Tally:
    """How many items some results hold together, and which.

    Attributes:
        items: their number.
        checksum: sum of their ids' hashes; None where an older result has none.
    """

    items: int
    checksum: int | None

    @classmethod
    def of(cls, recipes: Iterable[Recipe]) -> "Tally":
        """What results hold together."""
        details = [recipe.details for recipe in recipes]
        checksums = [int(found["id_checksum"]) for found in details if "id_checksum" in found]
        known = sum(checksums) % CHECKSUM_MODULUS if len(checksums) == len(details) else None
        return cls(sum(int(found["items"]) for found in details), known)

    def difference(self, other: "Tally") -> str | None:
        """How these items differ from those they should be, in words; None where they are the same."""
        if self.items != other.items:
            return f"{self.items:,} items where {other.items:,} should be"
        if None not in (self.checksum, other.checksum) and self.checksum != other.checksum:
            return f"{self.items:,} items, as there should be, but others"
        return None


@dataclass(frozen=True)
class StoredRecipes:
    """What is there of one pipeline; what is missing or half written is left out.

    Attributes:
        work: the pipeline at work.
    """

    work: Work

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """All shards of the catalogue."""
        return self.work.catalogue().shards

    @cached_property
    def embeddings(self) -> dict[str, Recipe]:
        """By shard."""
        return _found([shard.name for shard in self.shards], self.work.embeddings)

    @cached_property
    def current_embeddings(self) -> dict[str, Recipe]:
        """By shard, without those of other settings: they are not wrong, but on their way out."""
        version = self.work.code_version("embeddings")
        return {shard: recipe for shard, recipe in self.embeddings.items() if recipe.code_version == version}

    @cached_property
    def sample(self) -> Recipe | None:
        """The training sample of today's settings."""
        return frozen_sample(self.work)

    @cached_property
    def centroids(self) -> dict[str, Recipe]:
        """By k."""
        return _found(self._ks, self.work.centroids)

    @cached_property
    def assignments(self) -> dict[str, dict[str, Recipe]]:
        """By k and shard."""
        return self._by_k([shard.name for shard in self.shards], self.work.assignments)

    @cached_property
    def scores(self) -> dict[str, dict[str, Recipe]]:
        """By k and bucket."""
        return self._by_k(self.work.buckets, self.work.scores)

    @cached_property
    def masks(self) -> dict[str, dict[str, Recipe]]:
        """By k and epsilon."""
        return self._by_k(self.work.pipeline.epsilons, self.work.masks)

    @cached_property
    def manifests(self) -> dict[str, dict[str, Recipe]]:
        """The current ones, by k and epsilon."""
        return self._by_k(self.work.pipeline.epsilons, self.work.manifest)

    @property
    def _ks(self) -> tuple[str, ...]:
        return self.work.pipeline.clustering.k

    def _by_k(self, names: Sequence[str], read: Callable[[str, str], Recipe]) -> dict[str, dict[str, Recipe]]:
        return {k: _found(names, partial(read, k)) for k in self._ks}


def common_version(recipes: dict[str, Recipe]) -> str:
    """One version for several results, as what was made from all of them notes it."""
    return fingerprint({name: recipe.version for name, recipe in recipes.items()})


def _found(names: Sequence[str], read: Callable[[str], Recipe]) -> dict[str, Recipe]:
    with ThreadPoolExecutor(_READERS) as pool:
        recipes = pool.map(partial(_or_none, read), names)
        # What is not there cannot be wrong: Dagster shows it as missing.
        return {name: recipe for name, recipe in zip(names, recipes, strict=True) if recipe is not None}


def _or_none(read: Callable[[str], Recipe], name: str) -> Recipe | None:
    try:
        return read(name)
    except MissingResultError:
        return None
