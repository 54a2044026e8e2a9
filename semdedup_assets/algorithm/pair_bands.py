"""Pairs of a removed item and its nearest kept one, by how similar they are, and by what makes them alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from semdedup_assets.algorithm.sampling import id_hash

Kind = Literal["bytes", "decoded", "perceptual", "semantic", "unknown"]
"""What makes the two of a pair alike: equal bytes; equal after decoding; near by a hash that needs no model; only the
model; or what could not be read."""

KINDS: tuple[Kind, ...] = ("bytes", "decoded", "perceptual", "semantic", "unknown")


@dataclass(frozen=True, slots=True)
class PairBands:
    """Bands of epsilon, 1 - similarity: each from one edge to the next.

    Attributes:
        edges: where each band within epsilon ends, ascending; the last is epsilon itself. One more band follows: pairs
            beyond epsilon, whose removed item is an orphan.
    """

    edges: tuple[float, ...]

    @classmethod
    def within(cls, epsilon: float, edges: Sequence[float]) -> "PairBands":
        """The bands below an epsilon.

        Args:
            epsilon: that the items were removed at.
            edges: ascending; those at or above epsilon do not count.
        """
        return cls((*(edge for edge in edges if edge < epsilon), epsilon))

    @property
    def limits(self) -> list[tuple[float, float]]:
        """(low, high) of each band; of the last, for orphans, from epsilon to 2."""
        return list(zip((0.0, *self.edges), (*self.edges, 2.0), strict=True))

    @property
    def names(self) -> list[str]:
        """Of each band: `0.01–0.03`; the last: `beyond 0.05`."""
        within = [f"{low:.6g}–{high:.6g}" for low, high in self.limits[:-1]]
        return [*within, f"beyond {self.edges[-1]:.6g}"]

    def of(self, similarity: np.ndarray) -> np.ndarray:
        """The band of each pair: (n,) uint8; a pair is within an edge by the rule that removes items.

        Args:
            similarity: (n,) float32.
        """
        band = np.zeros(len(similarity), np.uint8)
        for edge in self.edges:
            band += similarity.astype(np.float64) <= 1.0 - edge
        return band


def sample_by_band(ids: np.ndarray, band: np.ndarray, *, most: int, seed: int) -> np.ndarray:
    """A seeded choice of pairs from each band; it depends on the removed items' ids alone.

    Args:
        ids: (n,) uint64, of the removed items, distinct.
        band: (n,) integers.
        most: pairs of a band.
        seed: of the choice.

    Returns:
        (m,) int64 positions, by band, and within each in the order of the draw: its first ones are a smaller choice.
    """
    draws = id_hash(ids, seed=seed)
    chosen = [np.zeros(0, np.int64)]
    for each in np.unique(band):
        positions = np.flatnonzero(band == each)
        if len(positions) > most:
            positions = positions[np.argpartition(draws[positions], most - 1)[:most]]
        chosen.append(positions[np.argsort(draws[positions])])
    return np.concatenate(chosen)


def among_files(removed: np.ndarray, kept: np.ndarray, *, ids: np.ndarray, most: int, seed: int) -> np.ndarray:
    """The pairs that lie in few files, each pair with the same probability.

    A seeded choice of the files decides. A pair within one file would be found more often than one across two, so such
    pairs are thinned by as much as the others are.

    Args:
        removed: (n,) uint64, what identifies the file of each removed item; 0 where it is not there.
        kept: (n,) uint64, the same of the kept items.
        ids: (n,) uint64, of the removed items.
        most: files.
        seed: of the choice.

    Returns:
        (n,) bool.
    """
    files = np.unique(np.concatenate([removed, kept]))
    files = files[files != 0]
    there: np.ndarray = (removed != 0) & (kept != 0)
    if len(files) <= most:
        return there
    chosen = files[np.argsort(id_hash(files, seed=seed))[:most]]
    rate = (most - 1) / (len(files) - 1)
    across = (removed != kept) | (id_hash(ids, seed=seed + 1) < rate * 2.0**64)
    found: np.ndarray = there & np.isin(removed, chosen) & np.isin(kept, chosen) & across
    return found


@dataclass(frozen=True, slots=True)
class KindCounts:
    """How many pairs of each band are of each kind.

    Attributes:
        pairs: (bands, kinds) int64, in the order of `KINDS`: counted, or scaled from a sample.
        estimated: (bands,) bool, whether a band's kinds but `bytes` are scaled from a sample.
        compared: (bands,) int64, pairs whose contents were compared.
    """

    pairs: np.ndarray
    estimated: np.ndarray
    compared: np.ndarray

    @classmethod
    def scaled(cls, total: np.ndarray, same_bytes: np.ndarray, sampled: np.ndarray) -> "KindCounts":
        """Scale what a sample shows to all pairs; whole numbers that add up to the pairs of each band.

        Args:
            total: (bands,) pairs.
            same_bytes: (bands,) pairs of equal bytes, known of all.
            sampled: (bands, 3) compared pairs of other bytes: equal after decoding, perceptual, semantic.
        """
        rest, compared = total - same_bytes, sampled.sum(axis=1)
        share = np.cumsum(sampled, axis=1) / np.maximum(compared, 1)[:, None]
        cumulative = np.rint(share * rest[:, None]).astype(np.int64)
        told = np.diff(cumulative, axis=1, prepend=0)
        unknown = rest - told.sum(axis=1)
        return cls(np.column_stack([same_bytes, told, unknown]), (compared > 0) & (compared < rest), compared)
