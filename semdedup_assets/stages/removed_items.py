"""Read back what was removed, and why."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from semdedup_assets.stages.work import Work
from semdedup_assets.storage.tables import read_tables


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
    work.masks(k, epsilon)
    parts = list(_removed_parts(work, k, epsilon))
    columns = [np.concatenate([part[name] for part in parts]) for name in ("id", "kept_neighbour", "kept_similarity")]
    order = np.lexsort((columns[0], -columns[2]))
    return RemovedItems(*(column[order] for column in columns))


def _removed_parts(work: Work, k: str, epsilon: str) -> Iterator[dict[str, np.ndarray]]:
    names = ["id", "kept", "kept_neighbour", "kept_similarity"]
    for bucket in work.buckets:
        for part in read_tables(work.layout.mask(k, epsilon, bucket), names):
            removed = ~part["kept"]
            yield {name: part[name][removed] for name in names}
