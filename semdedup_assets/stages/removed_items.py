"""Read back what was removed, and why."""

from dataclasses import dataclass

import numpy as np

from semdedup_assets.stages.work import Work
from semdedup_assets.storage.files import open_file


@dataclass(frozen=True, slots=True)
class RemovedItems:
    """Removed items with what they duplicate.

    Attributes:
        ids: (n,) uint64.
        kept_neighbour: (n,) uint64, the most similar kept item of the cluster.
        kept_similarity: (n,) float32, cosine similarity to it.
    """

    ids: np.ndarray
    kept_neighbour: np.ndarray
    kept_similarity: np.ndarray


def removed_items(work: Work, k: str, epsilon: str) -> RemovedItems:
    """What the masks of one k and epsilon remove, by descending similarity.

    Raises:
        MissingResultError: the masks have not been made.
    """
    import polars as pl

    work.masks(k, epsilon)
    columns = ["id", "kept", "kept_neighbour", "kept_similarity"]
    parts = []
    for bucket in work.buckets:
        with open_file(work.layout.mask(k, epsilon, bucket)) as stream:
            parts.append(pl.read_parquet(stream, columns=columns).filter(~pl.col("kept")))
    removed = pl.concat(parts).sort("kept_similarity", "id", descending=[True, False])
    return RemovedItems(*(removed[name].to_numpy() for name in ("id", "kept_neighbour", "kept_similarity")))
