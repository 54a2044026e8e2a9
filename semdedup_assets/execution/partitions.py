"""Which part of a stage's results is meant."""

from dataclasses import dataclass, replace
from typing import Literal

from semdedup_assets.kept_sets import Clustering, KeptSet, Selection, Target

Dimension = Literal["bucket", "epsilon", "k", "shard"]


@dataclass(frozen=True, slots=True)
class Partition:
    """One part of a stage's results; fields of which the stage has no dimension are None.

    `str()` gives the partition key. Dagster joins two dimensions in the order of their names: bucket, epsilon, k, shard.

    Attributes:
        bucket: index of a bucket: a group of consecutive ranges of clusters that are scored together.
        target: an epsilon, or a share to keep.
        clustering: a k and a seed.
        shard: name of a shard.
        cluster_range: index of a range of clusters, of results that are stored by range and not by bucket.
    """

    bucket: int | None = None
    target: Target | None = None
    clustering: Clustering | None = None
    shard: str | None = None
    cluster_range: int | None = None

    @classmethod
    def parse(cls, key: str, dimensions: tuple[Dimension, ...]) -> "Partition":
        """The partition of a key.

        Raises:
            ValueError: the key does not have these dimensions.
        """
        parts = key.split("|") if dimensions else []
        if len(parts) != len(dimensions):
            message = f"partition {key!r} has not the dimensions {' × '.join(dimensions)}"
            raise ValueError(message)
        named = dict(zip(sorted(dimensions), parts, strict=True))
        return cls(
            bucket=int(named["bucket"].removeprefix("b")) if "bucket" in named else None,
            target=Target.parse(named["epsilon"]) if "epsilon" in named else None,
            clustering=Clustering.parse(named["k"]) if "k" in named else None,
            shard=named.get("shard"),
        )

    def __str__(self) -> str:
        parts = [
            None if self.bucket is None else bucket_name(self.bucket),
            self.target,
            self.clustering,
            self.shard,
            None if self.cluster_range is None else f"r{self.cluster_range:04d}",
        ]
        return "|".join(str(part) for part in parts if part is not None)

    def only(self, dimensions: tuple[Dimension, ...]) -> "Partition":
        """The same without what lies in other dimensions."""
        return Partition(
            bucket=self.bucket if "bucket" in dimensions else None,
            target=self.target if "epsilon" in dimensions else None,
            clustering=self.clustering if "k" in dimensions else None,
            shard=self.shard if "shard" in dimensions else None,
        )

    def of_range(self, cluster_range: int) -> "Partition":
        """The stored result of one range of its clusters."""
        return replace(self, bucket=None, cluster_range=cluster_range)

    def kept_set(self, selection: Selection) -> KeptSet:
        """The kept set of a clustering and a target.

        Raises:
            ValueError: it has not both.
        """
        if self.clustering is None or self.target is None:
            message = f"partition {str(self)!r} is no kept set"
            raise ValueError(message)
        return KeptSet(self.clustering, selection, self.target)

    @property
    def required_clustering(self) -> Clustering:
        """Its clustering.

        Raises:
            ValueError: it has none.
        """
        if self.clustering is None:
            message = f"partition {str(self)!r} has no clustering"
            raise ValueError(message)
        return self.clustering

    @property
    def required_shard(self) -> str:
        """Name of its shard.

        Raises:
            ValueError: it has none.
        """
        if self.shard is None:
            message = f"partition {str(self)!r} has no shard"
            raise ValueError(message)
        return self.shard


def bucket_name(index: int) -> str:
    """The key of a bucket."""
    return f"b{index:04d}"
