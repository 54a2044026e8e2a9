"""Which items are removed at an epsilon, and which kept item each of them duplicates."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from semdedup_assets.algorithm.arguments import check_number
from semdedup_assets.algorithm.similarity import EarlierSimilarity, greatest_similarity

SelectionRule = Literal["chain", "greedy"]
"""`chain` (Alg. A7): any earlier item suppresses. `greedy`: only a kept earlier item does."""

VectorsOf = Callable[[set[int]], Iterator[tuple[slice, Tensor]]]
"""Gives the vectors of some clusters, one cluster at a time: its slice of rows, and its (m, d) rows in keep-order."""

_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Selection:
    """What is kept of one or more clusters.

    Attributes:
        keep: (n,) bool.
        kept_neighbour: (n,) int64, for each removed row the most similar kept row (any, earlier or later), else -1.
        kept_similarity: (n,) float32, the similarity to it, NaN for kept rows.
    """

    keep: np.ndarray
    kept_neighbour: np.ndarray
    kept_similarity: np.ndarray


def check_epsilon(epsilon: float) -> None:
    """Check that an epsilon is one that cosine similarities can be compared with.

    Raises:
        TypeError: no number.
        ValueError: outside [0, 2].
    """
    check_number(epsilon, name="epsilon", wanted="one in [0, 2], such as 0.05")
    if not 0 <= epsilon <= 2:
        message = (
            f"epsilon: {epsilon} is outside [0, 2]; items more similar than 1 - epsilon are duplicates, "
            "so a higher epsilon removes more (the paper uses 0.001 to 0.1)"
        )
        raise ValueError(message)


def check_rule(rule: SelectionRule) -> None:
    """Check that a rule is known.

    Raises:
        ValueError: neither `chain` nor `greedy`.
    """
    if rule not in get_args(SelectionRule):
        message = f"rule: {rule!r} is not one of 'chain', 'greedy'"
        raise ValueError(message)


def keep_mask(similarity: np.ndarray, epsilon: float) -> np.ndarray:
    """Which items are kept by the chain rule (Alg. A7): those with similarity <= 1 - epsilon.

    Args:
        similarity: (n,) greatest similarity to an earlier item, -inf for the first of a cluster.
        epsilon: in [0, 2]; a higher one removes more.

    Returns:
        (n,) bool, True = kept.

    Raises:
        ValueError: epsilon is outside [0, 2].
    """
    check_epsilon(epsilon)
    kept: np.ndarray = np.asarray(similarity, dtype=np.float64) <= 1.0 - epsilon
    return kept


def select(vectors: Tensor, keep: np.ndarray, *, budget: int) -> Selection:
    """The nearest kept row of each removed row of one cluster.

    Args:
        vectors: (n, d) unit rows in keep-order.
        keep: (n,) bool, from `keep_mask` or `greedy_keep_mask`.
        budget: bytes the tiles may take on the vectors' device.

    Returns:
        Keep mask and, for each removed row, its nearest kept row.
    """
    neighbour = np.full(len(keep), -1, dtype=np.int64)
    similarity = np.full(len(keep), np.nan, dtype=np.float32)
    wanted, there = np.flatnonzero(~keep), np.flatnonzero(keep)
    if len(wanted):
        found = greatest_similarity(_rows(vectors, wanted), _rows(vectors, there), budget=budget)
        neighbour[wanted], similarity[wanted] = there[found.position], found.similarity
    return Selection(keep, neighbour, similarity)


def chain_selection(earlier: EarlierSimilarity, keep: np.ndarray) -> tuple[Selection, bool]:
    """The nearest kept rows under the chain rule, as far as they follow from the scores.

    No later kept row can be nearer than 1 - epsilon, or the removed row would have suppressed it. So where the nearest
    earlier row is kept, it is the nearest kept row of all, and no vector needs to be read.

    Args:
        earlier: scores of one or more clusters, positions into the same arrays.
        keep: (n,) bool, from `keep_mask`.

    Returns:
        The selection, and whether it is complete; where it is not, `select` completes it.
    """
    known = ~keep & keep[np.maximum(earlier.position, 0)]
    neighbour = np.where(known, earlier.position, -1)
    similarity = np.where(known, earlier.similarity, np.float32(np.nan)).astype(np.float32)
    return Selection(keep, neighbour, similarity), bool((known | keep).all())


def select_clusters(  # noqa: PLR0913  # scores, their clusters and three settings
    earlier: EarlierSimilarity,
    cluster: np.ndarray,
    epsilon: float,
    *,
    rule: SelectionRule,
    vectors_of: VectorsOf,
    budget: int,
) -> Selection:
    """What is kept of many clusters, and the nearest kept row of each removed one.

    Vectors are asked for only of clusters in which a removed row's nearest earlier row is removed too. In all others
    both rules keep the same rows, and the scores name the nearest kept ones.

    Args:
        earlier: scores of all clusters, n entries; positions are rows of the same arrays.
        cluster: (n,) integers; the rows of a cluster lie together, in keep-order.
        epsilon: in [0, 2]; a higher one removes more.
        rule: `chain` or `greedy`.
        vectors_of: gives the vectors of the clusters that need them, as unit rows on the device that does the work.
        budget: bytes the tiles may take there.

    Returns:
        Selection with n entries.

    Raises:
        ValueError: epsilon is outside [0, 2], or an unknown rule.
    """
    check_rule(rule)
    selection, _ = chain_selection(earlier, keep_mask(earlier.similarity, epsilon))
    for rows, vectors in vectors_of(_undecided(selection, cluster)):
        if rule == "greedy":
            within = _within(earlier, rows)
            selection.keep[rows] = greedy_keep_mask(vectors, within, epsilon, budget=budget)
        found = select(vectors, selection.keep[rows], budget=budget)
        neighbour = found.kept_neighbour
        selection.kept_neighbour[rows] = np.where(neighbour < 0, -1, neighbour + rows.start)
        selection.kept_similarity[rows] = found.kept_similarity
    return selection


def select_across(
    earlier: EarlierSimilarity, cluster: np.ndarray, epsilon: float, *, vectors_of: VectorsOf, budget: int
) -> Selection:
    """The kept row that stands for each removed one under the chain rule, where an earlier row may be of any cluster.

    It is the nearest earlier row if that is kept, else the nearest kept row of the own cluster. Where the own cluster
    keeps none, it is found by going from earlier row to earlier row; the similarity to it is not known then.

    Args:
        earlier: scores of all clusters; positions are rows of the same arrays, of any cluster.
        cluster: (n,) integers; the rows of a cluster lie together, in keep-order.
        epsilon: in [0, 2].
        vectors_of: gives the vectors of the clusters that need them.
        budget: bytes the tiles may take.

    Returns:
        Selection with n entries.

    Raises:
        ValueError: epsilon is outside [0, 2].
    """
    selection, _ = chain_selection(earlier, keep_mask(earlier.similarity, epsilon))
    keep, neighbour = selection.keep, selection.kept_neighbour
    keeping = set(np.unique(cluster[keep]).tolist())
    for rows, vectors in vectors_of(_undecided(selection, cluster) & keeping):
        open_rows = rows.start + np.flatnonzero(~keep[rows] & (neighbour[rows] < 0))
        there = rows.start + np.flatnonzero(keep[rows])
        found = greatest_similarity(
            _rows(vectors, open_rows - rows.start), _rows(vectors, there - rows.start), budget=budget
        )
        neighbour[open_rows], selection.kept_similarity[open_rows] = there[found.position], found.similarity
    lost = np.flatnonzero(~keep & (neighbour < 0))
    target = earlier.position[lost]
    while not keep[target].all():
        target = np.where(keep[target], target, earlier.position[target])
    neighbour[lost] = target
    return selection


def greedy_keep_clusters(
    earlier: EarlierSimilarity, cluster: np.ndarray, epsilon: float, *, vectors_of: VectorsOf, budget: int
) -> np.ndarray:
    """What the greedy rule keeps of many clusters.

    Args:
        earlier: scores of all clusters, n entries; positions are rows of the same arrays.
        cluster: (n,) integers; the rows of a cluster lie together, in keep-order.
        epsilon: in [0, 2]; a higher one removes more.
        vectors_of: gives the vectors of the clusters in which the two rules can differ, as unit rows.
        budget: bytes the tiles may take on their device.

    Returns:
        (n,) bool, True = kept.

    Raises:
        ValueError: epsilon is outside [0, 2].
    """
    selection, _ = chain_selection(earlier, keep_mask(earlier.similarity, epsilon))
    for rows, vectors in vectors_of(_undecided(selection, cluster)):
        selection.keep[rows] = greedy_keep_mask(vectors, _within(earlier, rows), epsilon, budget=budget)
    return selection.keep


def _undecided(selection: Selection, cluster: np.ndarray) -> set[int]:
    """The clusters with a removed row whose nearest kept row does not follow from the scores."""
    unknown = ~selection.keep & (selection.kept_neighbour < 0)
    return set(np.unique(cluster[unknown]).tolist())


def _within(earlier: EarlierSimilarity, rows: slice) -> EarlierSimilarity:
    """The scores of one cluster, with positions counted from its first row."""
    position = earlier.position[rows]
    return EarlierSimilarity(earlier.similarity[rows], np.where(position < 0, -1, position - rows.start))


def earlier_positions(ids: np.ndarray, duplicate_of: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """The row of each item's earlier item, from ids.

    Args:
        ids: (n,) uint64, distinct.
        duplicate_of: (n,) uint64, the id of each item's earlier item; any number where there is none.
        similarity: (n,) float32, the similarity to it, -inf where there is none.

    Returns:
        (n,) int64, -1 where there is no earlier item.

    Raises:
        ValueError: an earlier item is not among the ids; names both.
    """
    none = np.isneginf(similarity)
    if none.all():
        return np.full(len(ids), -1, dtype=np.int64)
    order = np.argsort(ids)
    rank = np.searchsorted(ids, duplicate_of, sorter=order)
    found = order[np.minimum(rank, len(order) - 1)]
    unknown = ~none & (ids[found] != duplicate_of)
    if unknown.any():
        row = int(unknown.argmax())
        message = f"duplicate_of: item {ids[row]} names {duplicate_of[row]}, which is not among the ids; score it again"
        raise ValueError(message)
    return np.where(none, -1, found)


def orphans(selection: Selection, epsilon: float, *, gone: np.ndarray | None = None) -> np.ndarray:
    """Removed items that no kept item stands for: the nearest kept one is not within epsilon, or there is none.

    Only the chain rule makes orphans: an item that was removed itself suppressed them. Where a kept item stands for
    one, and the similarity to it is not known (NaN), it counts as none.

    Args:
        selection: complete; of its neighbours only the sign matters here.
        epsilon: the one that it was made with.
        gone: (n,) bool, rows that something outside removed, which are none; None: there are none.

    Returns:
        (n,) bool.

    Raises:
        ValueError: epsilon is outside [0, 2].
    """
    removed = ~selection.keep if gone is None else ~selection.keep & ~gone
    orphan: np.ndarray = removed & ((selection.kept_neighbour < 0) | keep_mask(selection.kept_similarity, epsilon))
    return orphan


def _rows(vectors: Tensor, index: np.ndarray) -> Tensor:
    return vectors[torch.as_tensor(index, device=vectors.device)]


def greedy_keep_mask(vectors: Tensor, earlier: EarlierSimilarity, epsilon: float, *, budget: int) -> np.ndarray:
    """Which rows of one cluster the greedy rule keeps: those with no earlier kept row within epsilon.

    What the chain rule keeps has no earlier row at all within epsilon, so only the others are in doubt; most of
    them fall to a row that is certain, and few are left to be decided one after the other.

    Args:
        vectors: (n, d) unit rows in keep-order.
        earlier: as `max_earlier_similarity` gives it for these rows.
        epsilon: in [0, 2]; a higher one removes more.
        budget: bytes the tiles may take on the vectors' device.

    Returns:
        (n,) bool, True = kept.

    Raises:
        ValueError: epsilon is outside [0, 2].
    """
    chain = keep_mask(earlier.similarity, epsilon)
    keep = chain.copy()
    doubt = np.flatnonzero(~chain)
    if len(doubt) == 0:
        return keep
    certain = np.flatnonzero(chain)
    found = greatest_similarity(
        _rows(vectors, doubt), _rows(vectors, certain), visible=np.searchsorted(certain, doubt), budget=budget
    )
    doubt = doubt[keep_mask(found.similarity, epsilon)]
    revived = np.empty(0, dtype=np.int64)
    for start in range(0, len(doubt), _BLOCK):
        block = doubt[start : start + _BLOCK]
        if len(revived):
            found = greatest_similarity(_rows(vectors, block), _rows(vectors, revived), budget=budget)
            block = block[keep_mask(found.similarity, epsilon)]
        revived = np.concatenate([revived, block[_greedy_block(_rows(vectors, block), epsilon)]])
    keep[revived] = True
    return keep


def _greedy_block(rows: Tensor, epsilon: float) -> np.ndarray:
    """(b,) bool: the greedy rule by its definition, on rows few enough for their whole matrix."""
    exact = rows.double()
    exact = exact / torch.linalg.vector_norm(exact, dim=1, keepdim=True)
    within = (exact @ exact.T).clamp(-1, 1).float().double().cpu().numpy() > 1.0 - epsilon  # (b, b)
    keep = np.zeros(len(rows), dtype=bool)
    for row in range(len(rows)):
        keep[row] = not (within[row, :row] & keep[:row]).any()
    return keep
