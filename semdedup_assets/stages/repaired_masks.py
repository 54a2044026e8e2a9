"""Which kept item stands for a removed one, where that may lie in another range of clusters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from semdedup_assets.records import id_rows, positions_by_shard
from semdedup_assets.storage.results import StoredFile
from semdedup_assets.storage.tables import read_table, read_tables

if TYPE_CHECKING:
    from semdedup_assets.algorithm.selection import Selection, VectorsOf


@dataclass(frozen=True)
class KeptItems:
    """What one epsilon keeps of all ranges: a bit for each item, and stand-ins where a cluster keeps nothing.

    Attributes:
        bits: by shard index, one bit for each row.
        lost: (l,) uint64, ascending, removed items of clusters that keep nothing.
        stand_in: (l,) uint64, the kept item that is reached from each, going from earlier item to earlier item.
    """

    bits: dict[int, np.ndarray]
    lost: np.ndarray
    stand_in: np.ndarray

    @classmethod
    def of(cls, scores: Sequence[StoredFile], epsilon: float) -> "KeptItems":
        """Read the scores of all ranges once, and once more for each step from earlier item to earlier item.

        Args:
            scores: repaired, of all ranges.
            epsilon: of the kept set.
        """
        from semdedup_assets.algorithm.selection import keep_mask

        bits: dict[int, np.ndarray] = {}
        lost, earlier = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for file in scores:
            table = read_table(file, ["id", "cluster", "similarity", "duplicate_of"])
            keep = keep_mask(table["similarity"], epsilon)
            _set_bits(bits, table["id"][keep])
            without = ~np.isin(table["cluster"], np.unique(table["cluster"][keep]))
            lost.append(table["id"][without])
            earlier.append(table["duplicate_of"][without])
        ids, targets = np.concatenate(lost), np.concatenate(earlier)
        order = np.argsort(ids)
        kept = cls(bits, ids[order], targets[order])
        return cls(bits, kept.lost, kept._followed(scores))

    def contains(self, ids: np.ndarray) -> np.ndarray:
        """(n,) bool: which of (n,) uint64 items are kept."""
        found = np.zeros(len(ids), dtype=bool)
        rows = id_rows(ids)
        for shard, positions in positions_by_shard(ids):
            bits = self.bits.get(shard, np.zeros(0, np.uint8))
            here = rows[positions]
            inside = here >> 3 < len(bits)
            found[positions[inside]] = (bits[here[inside] >> 3] >> (here[inside] & 7).astype(np.uint8)) & 1
        return found

    def stand_ins(self, ids: np.ndarray) -> np.ndarray:
        """(n,) uint64: the kept item that stands for each of (n,) lost ones."""
        found: np.ndarray = self.stand_in[np.searchsorted(self.lost, ids)]
        return found

    def _followed(self, scores: Sequence[StoredFile]) -> np.ndarray:
        """The stand-ins, from the earlier item of each lost one on."""
        target = self.stand_in.copy()
        while len(wanted := np.unique(target[~self.contains(target)])):
            following, known = np.zeros(len(wanted), dtype=np.uint64), np.zeros(len(wanted), dtype=bool)
            for file in scores:
                for part in read_tables(file, ["id", "duplicate_of"]):
                    here = np.isin(part["id"], wanted)
                    index = np.searchsorted(wanted, part["id"][here])
                    following[index], known[index] = part["duplicate_of"][here], True
            if not known.all():
                message = f"duplicate_of: item {wanted[~known][0]} is not among the scores; make repaired_scores again"
                raise ValueError(message)
            open_ones = np.isin(target, wanted)
            target[open_ones] = following[np.searchsorted(wanted, target[open_ones])]
        return target


def _set_bits(bits: dict[int, np.ndarray], ids: np.ndarray) -> None:
    rows = id_rows(ids)
    for shard, positions in positions_by_shard(ids):
        here = rows[positions]
        old, size = bits.get(shard, np.zeros(0, np.uint8)), (int(here.max()) >> 3) + 1
        if len(old) < size:
            # Twice as large each time, so that a shard's bits are copied few times.
            bits[shard] = np.concatenate([old, np.zeros(max(size, 2 * len(old)) - len(old), np.uint8)])
        np.bitwise_or.at(bits[shard], here >> 3, np.left_shift(1, here & 7).astype(np.uint8))


def repaired_selection(
    scores: dict[str, np.ndarray], kept: KeptItems, epsilon: float, *, vectors_of: "VectorsOf", budget: int
) -> tuple["Selection", np.ndarray]:
    """What is kept of a range, and the kept item that stands for each removed one (`algorithm.selection.select_across`).

    Args:
        scores: repaired ones of the range: id, cluster, similarity, duplicate_of.
        kept: of all ranges, at the same epsilon.
        epsilon: in [0, 2].
        vectors_of: gives the vectors of clusters whose items' nearest earlier ones are removed.
        budget: bytes the tiles may take.

    Returns:
        The selection, whose `kept_neighbour` only says whether there is one; and (n,) uint64, the id of the kept item.
    """
    import torch

    from semdedup_assets.algorithm.selection import Selection, keep_mask
    from semdedup_assets.algorithm.similarity import greatest_similarity

    keep = keep_mask(scores["similarity"], epsilon)
    neighbour, similarity = scores["duplicate_of"].copy(), scores["similarity"].copy()
    is_open = ~keep & ~kept.contains(neighbour)
    lost = is_open & ~np.isin(scores["cluster"], np.unique(scores["cluster"][keep]))
    neighbour[lost], similarity[lost] = kept.stand_ins(scores["id"][lost]), np.nan
    within = is_open & ~lost
    for rows, vectors in vectors_of(set(np.unique(scores["cluster"][within]).tolist())):
        wanted, there = np.flatnonzero(within[rows]), np.flatnonzero(keep[rows])
        queries, candidates = (vectors[torch.as_tensor(each, device=vectors.device)] for each in (wanted, there))
        found = greatest_similarity(queries, candidates, budget=budget)
        neighbour[rows.start + wanted] = scores["id"][rows.start + there[found.position]]
        similarity[rows.start + wanted] = found.similarity
    similarity[keep] = np.nan
    # Each removed item has one; which, its id says.
    return Selection(keep, np.where(keep, -1, 0), similarity), neighbour
