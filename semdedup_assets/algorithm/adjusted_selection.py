"""What else decides which rows stay, once the scores have: rows that must go, and rows that are spared."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from semdedup_assets.algorithm.protection import protect
from semdedup_assets.algorithm.selection import Selection, SelectionRule, VectorsOf, greedy_keep_mask, select
from semdedup_assets.algorithm.similarity import max_earlier_similarity

DecideRest = Callable[[Tensor, np.ndarray, np.ndarray], Selection]
"""Given the vectors of a cluster's other rows, which rows they are, and which the scores keep, says what is kept."""


def without_rows(
    selection: Selection, cluster: np.ndarray, gone: np.ndarray, *, vectors_of: VectorsOf, decide: DecideRest
) -> Selection:
    """Remove rows as if something outside came before all of them, and see what that means for the others.

    They have no nearest kept row, and are none. Vectors are asked for only of clusters that lose a kept row.

    Args:
        selection: complete, of many clusters.
        cluster: (n,) integers; the rows of a cluster lie together, in keep-order.
        gone: (n,) bool, the rows to be removed.
        vectors_of: gives the vectors of the clusters that need them.
        decide: decides on the other rows of such a cluster; see `decide_rest`.

    Returns:
        A new selection; a removed row has no nearest kept row where its whole cluster is removed.
    """
    keep = selection.keep & ~gone
    neighbour = np.where(gone, -1, selection.kept_neighbour)
    similarity = np.where(gone, np.float32(np.nan), selection.kept_similarity).astype(np.float32)
    for rows, vectors in vectors_of(set(np.unique(cluster[gone & selection.keep]).tolist())):
        rest = np.flatnonzero(~gone[rows])
        if len(rest) == 0:
            continue
        here = rows.start + rest
        found = decide(vectors[rest], here, keep[here])
        keep[here], similarity[here] = found.keep, found.kept_similarity
        # Of no row, -1, there is none at all.
        neighbour[here] = np.where(found.kept_neighbour < 0, -1, here[np.maximum(found.kept_neighbour, 0)])
    return Selection(keep, neighbour, similarity)


def decide_rest(  # noqa: PLR0913  # rows, what is known of them and three settings
    vectors: Tensor,
    rows: np.ndarray,
    keep: np.ndarray,
    *,
    protected: np.ndarray,
    rule: SelectionRule,
    epsilon: float,
    budget: int,
) -> Selection:
    """What is kept of the rows of a cluster from which others were removed.

    Under the chain rule these have suppressed what they suppressed, as any removed row has. Under the greedy rule only a
    kept row suppresses, and they were none.

    Args:
        vectors: (m, d) unit rows in keep-order.
        rows: (m,) int64, which rows they are.
        keep: (m,) bool, what the scores keep of them.
        protected: (n,) bool, of all rows, those that always stay.
        rule: `chain` or `greedy`.
        epsilon: in [0, 2]; a higher one removes more.
        budget: bytes the tiles may take on the vectors' device.
    """
    if rule == "greedy":
        earlier = protect(max_earlier_similarity(vectors, budget=budget), protected[rows])
        keep = greedy_keep_mask(vectors, earlier, epsilon, budget=budget)
    if not keep.any():
        return Selection(keep, np.full(len(keep), -1, np.int64), np.full(len(keep), np.nan, np.float32))
    return select(vectors, keep, budget=budget)


def with_spared(selection: Selection, spared: np.ndarray) -> Selection:
    """Keep rows that the scores remove; the others' nearest kept rows stay those that they were removed for.

    Args:
        selection: complete.
        spared: (n,) bool.
    """
    return Selection(
        selection.keep | spared,
        np.where(spared, -1, selection.kept_neighbour),
        np.where(spared, np.float32(np.nan), selection.kept_similarity).astype(np.float32),
    )
