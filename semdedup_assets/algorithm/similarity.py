"""Greatest cosine similarities by tiles: every pair is compared, no matrix is ever whole."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from semdedup_assets.algorithm.budget import COLUMN_GROUP, rows_within, tile_shape
from semdedup_assets.algorithm.screening import (
    QUERY_BLOCK,
    REFUSALS,
    Screen,
    can_screen,
    centre_of,
    encode,
    first_of_greatest,
)
from semdedup_assets.algorithm.unit_rows import IN_CACHE, UnitRows, full_float32, row_cosine

# Equal rows may differ by a few float32 steps in a matrix product. What lies within this of the greatest is
# held for equal, and the earliest of equals wins: groups of exact duplicates then do not hang on rounding.
_TIE = 1e-6
# Clusters of at most this many rows are scored in batches, of about this many numbers in their tiles.
_SMALL = 256
_BATCH_FLOATS = 1 << 19
# Against fewer candidates than this, finding the few that matter costs more than screening saves.
_SCREENED = 1024


@dataclass(frozen=True, slots=True)
class EarlierSimilarity:
    """For each row: its greatest similarity to an earlier row, and which.

    Attributes:
        similarity: (n,) float32 in [-1, 1], -inf where there is no earlier row.
        position: (n,) int64, the earlier row, -1 where there is none.
    """

    similarity: np.ndarray
    position: np.ndarray


def max_earlier_similarity(vectors: Tensor, *, budget: int) -> EarlierSimilarity:
    """Greatest cosine similarity of each row to an earlier row (SemDeDup, Alg. A7).

    Only the upper triangle of the similarity matrix is computed, by tiles.

    Args:
        vectors: (n, d) unit rows in keep-order, float16 or float32, on any device.
        budget: bytes the tiles may take on the vectors' device.

    Returns:
        Similarities within 1e-5 of float64; among equals (within 1e-6) the earliest row.

    Raises:
        ValueError: a row is not finite or not of unit norm (within 1e-2); names the row.
    """
    return score_clusters(vectors, np.array([0, len(vectors)]), budget=budget)


def score_clusters(vectors: Tensor, offsets: np.ndarray, *, budget: int) -> EarlierSimilarity:
    """`max_earlier_similarity` within each of many clusters at once.

    Args:
        vectors: (n, d) unit rows, sorted by cluster and within each in keep-order.
        offsets: (clusters + 1,) int64, where each cluster starts.
        budget: bytes the tiles may take on the vectors' device.

    Returns:
        `EarlierSimilarity` with n entries; positions are rows of `vectors`.

    Raises:
        ValueError: a row is not finite or not of unit norm (within 1e-2); names the row.
    """
    rows = UnitRows(vectors, budget=budget // 2)
    position = torch.full((len(vectors),), -1, dtype=torch.int64, device=vectors.device)
    sizes = np.diff(offsets)
    with full_float32():
        for clusters in _alike(sizes, budget=budget, dimension=vectors.shape[1]):
            _place_small(rows, offsets[clusters], sizes[clusters], position)
        for cluster in np.flatnonzero(sizes > _SMALL):
            start, stop = int(offsets[cluster]), int(offsets[cluster + 1])
            members = rows.part(start, stop)
            found = _positions(members, members, np.arange(stop - start), budget)
            position[start:stop] = torch.where(found < 0, found, found + start)
        return EarlierSimilarity(_rescored(rows, rows, position), position.cpu().numpy())


def _alike(sizes: np.ndarray, *, budget: int, dimension: int) -> Iterator[np.ndarray]:
    """Small clusters in batches of about equal size, so that little of a batch is padding."""
    small = np.flatnonzero((sizes > 1) & (sizes <= _SMALL))
    order = small[np.argsort(sizes[small], kind="stable")]
    start = 0
    while start < len(order):
        width = int(sizes[order[start]]) * 5 // 4
        stop = int(np.searchsorted(sizes[order], width, side="right"))
        most = rows_within(
            budget // 4, row_bytes=4 * width * (dimension + 2 * width), most=_BATCH_FLOATS // width**2 + 1
        )
        stop = min(stop, start + most)
        yield order[start:stop]
        start = stop


def _place_small(vectors: UnitRows, starts: np.ndarray, sizes: np.ndarray, position: Tensor) -> None:
    """Fill in the positions of small clusters by one batched product: one call where a loop would need thousands."""
    device, width = position.device, int(sizes.max())
    start, size = torch.as_tensor(starts, device=device), torch.as_tensor(sizes, device=device)
    place = torch.arange(width, device=device)
    inside = place < size[:, None]  # (c, m)
    index = torch.where(inside, start[:, None] + place, start[:, None])
    rows = vectors.take(index.reshape(-1)).view(*index.shape, -1)  # (c, m, d)
    tile = torch.bmm(rows, rows.transpose(1, 2))  # (c, m, m)
    # An earlier row of a cluster is never padding: padding comes last.
    tile.masked_fill_(place >= place[:, None], -torch.inf)
    greatest = tile.amax(2, keepdim=True)
    first = (tile >= greatest - _TIE).to(torch.uint8).argmax(2)
    found = inside & (place > 0)
    position[index[found]] = (start[:, None] + first)[found]


def greatest_similarity(
    queries: Tensor, candidates: Tensor, *, visible: np.ndarray | None = None, budget: int
) -> EarlierSimilarity:
    """Greatest cosine similarity of each query to the candidates that it sees.

    Args:
        queries: (q, d) unit rows.
        candidates: (c, d) unit rows, on the same device.
        visible: (q,) integers, ascending: query i sees the first `visible[i]` candidates; None: all of them.
        budget: bytes the tiles may take.

    Returns:
        `EarlierSimilarity` with q entries; positions are rows of `candidates`.
    """
    with full_float32():
        rows, columns = UnitRows(queries, budget=budget // 4), UnitRows(candidates, budget=budget // 4)
        position = _positions(rows, columns, visible, budget)
        return EarlierSimilarity(_rescored(rows, columns, position), position.cpu().numpy())


def _positions(queries: UnitRows, candidates: UnitRows, visible: np.ndarray | None, budget: int) -> Tensor:
    """(q,) int64: the most similar visible candidate, the earliest of equals, -1 where none is visible."""
    many = min(len(queries), len(candidates)) >= _SCREENED
    if many and can_screen(candidates, budget=budget // 2):
        return _screened_positions(queries, candidates, visible, budget)
    return _tiled_positions(queries, candidates, visible, budget)


def _screened_positions(queries: UnitRows, candidates: UnitRows, visible: np.ndarray | None, budget: int) -> Tensor:
    """`_positions`, where only the pairs are compared in float32 that 8-bit integers leave."""
    centre = centre_of(candidates)
    codes = encode(candidates, centre)
    screen = Screen(codes, tie=_TIE)
    position = torch.full((len(queries),), -1, dtype=torch.int64)
    stop, refused = 0, 0
    while stop < len(queries):
        start, stop = stop, min(stop + QUERY_BLOCK, len(queries)) if refused < REFUSALS else len(queries)
        rows, seen = queries.part(start, stop), None if visible is None else visible[start:stop]
        pairs = None
        if refused < REFUSALS:
            block = codes.part(start, stop) if queries is candidates else encode(rows, centre)
            pairs = screen.pairs(block, None if seen is None else torch.as_tensor(seen))
        if pairs is None:
            # Where many are about equally similar, such as copies of one item, there is little to screen out.
            refused += 1
            position[start:stop] = _tiled_positions(rows, candidates, seen, budget)
        else:
            refused = 0
            position[start:stop] = _best(rows, candidates, *pairs)
    return position


def _best(queries: UnitRows, candidates: UnitRows, query: Tensor, candidate: Tensor) -> Tensor:
    """(q,) int64: of some pairs, the most similar candidate of each query in float32, the earliest of equals."""
    rows, similarity = queries[:], torch.empty(len(query))
    for start in range(0, len(query), IN_CACHE):
        part = slice(start, start + IN_CACHE)
        similarity[part] = (rows.index_select(0, query[part]) * candidates.take(candidate[part])).sum(1)
    return first_of_greatest(query, candidate, similarity, queries=len(rows), tie=_TIE)


def _tiled_positions(queries: UnitRows, candidates: UnitRows, visible: np.ndarray | None, budget: int) -> Tensor:
    """`_positions`, where all pairs are compared in float32."""
    device = queries.device
    shape = tile_shape(budget // 2, dimension=queries.dimension, gpu=device.type != "cpu")
    seen = None if visible is None else torch.as_tensor(visible, device=device)
    best = torch.full((len(queries),), -torch.inf, device=device)
    position = torch.full((len(queries),), -1, dtype=torch.int64, device=device)
    width = min(shape.columns, -(-len(candidates) // COLUMN_GROUP) * COLUMN_GROUP)
    # One buffer for all tiles: fresh memory for each would cost as much as the product itself.
    buffer = torch.empty((min(shape.rows, len(queries)), width), device=device)
    for start in range(0, len(queries), shape.rows):
        part = slice(start, start + shape.rows)
        rows = queries[part]
        best_here = _Best(best[part], position[part], buffer[: len(rows)])
        _scan(rows, candidates, None if seen is None else seen[part], best_here)
    return position


@dataclass(frozen=True, slots=True)
class _Best:
    """The best that a tile's height of queries has met so far, (b,) each, and (b, m) memory for the next tile."""

    similarity: Tensor
    position: Tensor
    buffer: Tensor

    def take(self, tile: Tensor, left: int) -> None:
        """Take in a tile whose first column is candidate `left`."""
        groups = tile.view(len(tile), -1, COLUMN_GROUP)
        # A maximum costs a tenth of a search for where it stands: only the group that holds it is searched.
        in_group = groups.amax(2)
        greatest = in_group.amax(1)
        better = (greatest > self.similarity + _TIE).nonzero().squeeze(1)
        if len(better) == 0:
            return
        least = (greatest[better] - _TIE)[:, None]
        group = (in_group[better] >= least).to(torch.uint8).argmax(1)
        within = (groups[better, group] >= least).to(torch.uint8).argmax(1)
        self.similarity[better] = greatest[better]
        self.position[better] = left + group * COLUMN_GROUP + within


def _scan(rows: Tensor, candidates: UnitRows, seen: Tensor | None, best: _Best) -> None:
    """Hold (b, d) unit rows against the candidates they see, a tile at a time."""
    count = len(candidates)
    least, most = (count, count) if seen is None else (int(seen[0]), int(seen[-1]))
    width = best.buffer.shape[1]
    for left in range(0, most, width):
        right = min(left + width, most)
        tile = best.buffer[:, : -(-(right - left) // COLUMN_GROUP) * COLUMN_GROUP]
        torch.mm(rows, candidates[left:right].T, out=tile[:, : right - left])
        tile[:, right - left :] = -torch.inf
        if seen is not None and right > least:
            _hide(tile, seen, left, max(left, least))
        best.take(tile, left)


def _hide(tile: Tensor, seen: Tensor, left: int, first_hidden: int) -> None:
    """Rule out the candidates that a query does not see; those before `first_hidden` are seen by all."""
    part = tile[:, first_hidden - left :]
    index = torch.arange(first_hidden, left + tile.shape[1], device=tile.device)
    part.masked_fill_(index >= seen[:, None], -torch.inf)


def _rescored(queries: UnitRows, candidates: UnitRows, position: Tensor) -> np.ndarray:
    """(q,) float32: the similarity of each found pair, once more row by row, so that it hangs on no tile."""
    similarity = torch.full((len(queries),), -torch.inf, device=position.device)
    for start in range(0, len(queries), IN_CACHE):
        part = slice(start, start + IN_CACHE)
        found = candidates.take(position[part].clamp(min=0))
        similarity[part] = row_cosine(queries[part], found, products=torch.float32).float()
    similarity[position < 0] = -torch.inf
    result: np.ndarray = similarity.cpu().numpy()
    return result
