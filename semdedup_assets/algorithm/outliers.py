"""The items that stand out of their clusters, and those that are typical of them, chosen as their clusters pass by."""

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from semdedup_assets.algorithm.similarity import score_clusters


@dataclass(frozen=True, slots=True)
class RankedItems:
    """Items in the order of a similarity: (m,) each.

    Attributes:
        ids: uint64.
        cluster: int64.
        similarity: float64; -inf where an item is alone in its cluster.
    """

    ids: np.ndarray
    cluster: np.ndarray
    similarity: np.ndarray


def _nothing() -> RankedItems:
    return RankedItems(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.float64))


@dataclass
class ExtremeItems:
    """The few items of a stream with the least, or greatest, similarity; of equal ones, the lower ids.

    Attributes:
        most: how many.
        greatest: whether those with the greatest similarity are wanted.
        found: the first of what has arrived, whatever the order in which it did.
        seen: how many items have arrived.
    """

    most: int
    greatest: bool = False
    found: RankedItems = field(default_factory=_nothing)
    seen: int = 0

    def add(self, ids: np.ndarray, cluster: np.ndarray, similarity: np.ndarray) -> None:
        """Add items.

        Args:
            ids: (n,) uint64.
            cluster: (n,) integers.
            similarity: (n,) floats.
        """
        self.seen += len(ids)
        joined = RankedItems(
            np.concatenate([self.found.ids, ids]),
            np.concatenate([self.found.cluster, cluster.astype(np.int64)]),
            np.concatenate([self.found.similarity, similarity.astype(np.float64)]),
        )
        key = -joined.similarity if self.greatest else joined.similarity
        order = np.lexsort((joined.ids, key))[: self.most]
        self.found = RankedItems(joined.ids[order], joined.cluster[order], joined.similarity[order])


def greatest_similarity_to_another(vectors: Tensor, offsets: np.ndarray, *, budget: int) -> np.ndarray:
    """Greatest similarity of each row to another of its cluster: (n,) float32, -inf for a row that is alone.

    Args:
        vectors: (n, d) unit rows by cluster.
        offsets: (clusters + 1,) int64, where each cluster starts.
        budget: bytes the tiles may take on the vectors' device.
    """
    earlier = score_clusters(vectors, offsets, budget=budget).similarity
    # In reversed order, later items come earlier.
    later = score_clusters(vectors.flip(0), len(vectors) - offsets[::-1], budget=budget).similarity[::-1]
    found: np.ndarray = np.maximum(earlier, later)
    return found
