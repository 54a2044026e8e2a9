"""Greatest cosine similarities by tiles: every pair is compared, no matrix is ever whole."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from semdedup_assets.algorithm.budget import COLUMN_GROUP, rows_within, tile_shape
from semdedup_assets.algorithm.parallel import PerThread, in_parallel
from semdedup_assets.algorithm.prefilter import (
    QUERY_BLOCK,
    Prefilter,
    bytes_at_work,
    can_prefilter,
    centre_of,
    encode,
    first_of_greatest,
    hide,
)
from semdedup_assets.algorithm.sparse import products_at
from semdedup_assets.algorithm.unit_rows import IN_CACHE, UnitRows, check_kind, full_float32, row_cosine

# Equal rows may differ by a few float32 steps in a matrix product. What lies within this of the greatest is
# counted as equal, and the earliest of equals wins: groups of exact duplicates then do not depend on rounding.
_TIE = 1e-6
# Clusters of at most this many rows are scored in batches, of about this many numbers in their tiles: of fewer
# candidates than these, finding the few that matter costs more than the prefilter saves.
_SMALL = 640
_BATCH_FLOATS = 1 << 19
# A cluster of at most this many rows has too few blocks of queries for many cores to share.
_ONE_CORES = 4096
# What a cluster needs while it is scored, beside its tile: as stored, as float32, and while it is encoded.
_BYTES_PER_NUMBER = 20
# Rows of small clusters that are compared together with the earlier ones: fewer of the pairs are then useless.
_HEIGHT = 128


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
    """`max_earlier_similarity` within each of many clusters.

    Args:
        vectors: (n, d) unit rows, sorted by cluster and within each in keep-order.
        offsets: (clusters + 1,) int64, where each cluster starts.
        budget: bytes the tiles may take on the vectors' device.

    Returns:
        `EarlierSimilarity` with n entries; positions are rows of `vectors`.

    Raises:
        ValueError: a row is not finite or not of unit norm (within 1e-2); names the row.
    """
    check_kind(vectors)
    count, sizes = len(vectors), np.diff(offsets)
    found = EarlierSimilarity(np.full(count, -np.inf, dtype=np.float32), np.full(count, -1, dtype=np.int64))
    cores = torch.get_num_threads() if vectors.device.type == "cpu" else 1

    def score(clusters: np.ndarray, budget: int) -> None:
        if sizes[clusters[0]] <= _SMALL:
            _score_small(vectors, offsets[clusters], sizes[clusters], found)
        else:
            _score_large(vectors, int(offsets[clusters[0]]), int(offsets[clusters[0] + 1]), budget, found)

    with full_float32():
        for clusters, concurrent in _alone(sizes, dimension=vectors.shape[1], cores=cores, budget=budget):
            in_parallel(partial(score, budget=budget // concurrent), np.split(clusters, len(clusters)), most=concurrent)
        small = list(_alike(sizes, budget=budget // cores, dimension=vectors.shape[1]))
        in_parallel(partial(score, budget=budget // cores), small, most=cores)
    return found


def _alone(sizes: np.ndarray, *, dimension: int, cores: int, budget: int) -> Iterator[tuple[np.ndarray, int]]:
    """Clusters that are scored one by one, the largest first, and how many concurrently: those of about equal size."""
    order = np.argsort(-sizes, kind="stable")[: int((sizes > _SMALL).sum())]
    pairs = sizes[order].astype(np.float64) ** 2
    # Many cores share a cluster that would keep one of them busy after the others are done.
    shared = (sizes[order] > _ONE_CORES) & (pairs > pairs.sum() / cores)
    start = 0
    while start < len(order):
        largest = int(sizes[order[start]])
        needed = _BYTES_PER_NUMBER * largest * dimension + 4 * bytes_at_work(largest)
        concurrent = 1 if shared[start] else min(cores, max(1, budget // needed))
        alike = (sizes[order] <= largest) & (sizes[order] > largest // 2) & (shared == shared[start])
        yield order[alike], concurrent
        start += int(alike.sum())


def _alike(sizes: np.ndarray, *, budget: int, dimension: int) -> Iterator[np.ndarray]:
    """Small clusters in batches of about equal size, so that little of a batch is padding."""
    small = np.flatnonzero((sizes > 0) & (sizes <= _SMALL))
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


def _score_small(vectors: Tensor, starts: np.ndarray, sizes: np.ndarray, found: EarlierSimilarity) -> None:
    """Score small clusters by one batched product: one call where a loop would need thousands."""
    device, width = vectors.device, int(sizes.max())
    start, size = torch.as_tensor(starts, device=device), torch.as_tensor(sizes, device=device)
    column = torch.arange(width, device=device)
    inside = column < size[:, None]  # (c, m)
    index = torch.where(inside, start[:, None] + column, start[:, None]).reshape(-1)
    members = vectors.index_select(0, index)
    rows = UnitRows(members, budget=4 * members.numel(), names=index)
    each = rows[:].view(len(starts), width, -1)
    parts = [_first_of_greatest_earlier(each, top, min(top + _HEIGHT, width)) for top in range(0, width, _HEIGHT)]
    first = torch.cat(parts, 1)
    earlier = torch.where(column > 0, first, -1)
    to_batch = width * torch.arange(len(starts), device=device)[:, None]
    similarity = _rescored(rows, rows, torch.where(earlier < 0, -1, earlier + to_batch).view(-1))
    to_all = torch.where(earlier < 0, -1, earlier + start[:, None])
    known = inside.view(-1).cpu()
    where = index.cpu()[known].numpy()
    found.similarity[where] = similarity[known.numpy()]
    found.position[where] = to_all.view(-1).cpu()[known].numpy()


def _first_of_greatest_earlier(rows: Tensor, top: int, bottom: int) -> Tensor:
    """(c, b) int64: for (c, m, d) rows from `top` to `bottom`, the most similar earlier one, 0 for the very first."""
    # An earlier row of a cluster is never padding: padding comes last.
    tile = torch.bmm(rows[:, top:bottom], rows[:, :bottom].transpose(1, 2))  # (c, b, m')
    tile[:, :, top:] += torch.full((bottom - top, bottom - top), -torch.inf, device=rows.device).triu_()
    least = tile.amax(2, keepdim=True) - _TIE
    # The first that reaches it, by two operations that are several times faster than a comparison to bits and argmax.
    weight = torch.arange(bottom, 0, -1, dtype=torch.float32, device=rows.device)
    return (bottom - torch.ge(tile, least, out=tile).mul_(weight).amax(2)).long()


def _score_large(vectors: Tensor, start: int, stop: int, budget: int, found: EarlierSimilarity) -> None:
    """Score the cluster from row `start` to row `stop`."""
    rows = UnitRows(vectors[start:stop], budget=budget // 2, names=torch.arange(start, stop))
    position = _positions(rows, rows, np.arange(stop - start), budget)
    found.similarity[start:stop] = _rescored(rows, rows, position)
    found.position[start:stop] = torch.where(position < 0, -1, position + start).cpu().numpy()


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
    many = min(len(queries), len(candidates)) > _SMALL
    if many and can_prefilter(candidates, budget=budget // 2):
        return _prefiltered_positions(queries, candidates, visible, budget)
    return _tiled_positions(queries, candidates, visible, budget)


def _prefiltered_positions(queries: UnitRows, candidates: UnitRows, visible: np.ndarray | None, budget: int) -> Tensor:
    """`_positions`, where only the pairs are compared in float32 that 8-bit integers leave."""
    centre = centre_of(candidates)
    codes = encode(candidates, centre)
    prefilter = Prefilter(codes, tie=_TIE)
    height = QUERY_BLOCK if visible is None or len(candidates) > 2 * QUERY_BLOCK else QUERY_BLOCK // 2

    def prefiltered(start: int) -> Tensor | None:
        stop = min(start + height, len(queries))
        block = codes.part(start, stop) if queries is candidates else encode(queries.part(start, stop), centre)
        pairs = prefilter.pairs(block, None if visible is None else torch.as_tensor(visible[start:stop]))
        return None if pairs is None else _best(queries.part(start, stop), candidates, *pairs)

    def search(start: int) -> Tensor:
        position, stop = prefiltered(start), min(start + height, len(queries))
        if position is None:
            seen = None if visible is None else visible[start:stop]
            position = _tiled_positions(queries.part(start, stop), candidates, seen, budget)
        return position

    # The last queries see the most: where even they fall back to float32, all candidates are about equally similar.
    *others, last = range(0, len(queries), height)
    position = prefiltered(last)
    if position is None:
        return _tiled_positions(queries, candidates, visible, budget)
    blocks = in_parallel(search, others[::-1], most=budget // 2 // bytes_at_work(len(candidates)))
    return torch.cat([*blocks[::-1], position])


def _best(queries: UnitRows, candidates: UnitRows, query: Tensor, candidate: Tensor) -> Tensor:
    """(q,) int64: of some pairs, the most similar candidate of each query in float32, the earliest of equals."""
    rows = queries[:]
    if candidates.ready:
        similarity = products_at(rows, candidates[:], query, candidate)
    else:
        similarity = torch.empty(len(query))
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
    height = min(shape.rows, len(queries))
    # One buffer for all tiles: fresh memory for each would cost as much as the product itself.
    buffer = PerThread(lambda: torch.empty((height, width), device=device))

    def search(start: int) -> None:
        part = slice(start, start + height)
        rows = queries[part]
        best_here = _Best(best[part], position[part], buffer.get()[: len(rows)])
        _scan(rows, candidates, None if seen is None else seen[part], best_here)

    starts = range(0, len(queries), height)[::-1]
    in_parallel(search, starts, most=budget // 2 // (4 * height * width) if device.type == "cpu" else 1)
    return position


@dataclass(frozen=True, slots=True)
class _Best:
    """The best that a tile's height of queries has found so far, (b,) each, and (b, m) memory for the next tile."""

    similarity: Tensor
    position: Tensor
    buffer: Tensor

    def update(self, tile: Tensor, left: int) -> None:
        """Compare a tile whose first column is candidate `left`."""
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
    """Compare (b, d) unit rows with the candidates they see, a tile at a time."""
    count = len(candidates)
    least, most = (count, count) if seen is None else (int(seen[0]), int(seen[-1]))
    width = best.buffer.shape[1]
    for left in range(0, most, width):
        right = min(left + width, most)
        tile = best.buffer[:, : -(-(right - left) // COLUMN_GROUP) * COLUMN_GROUP]
        torch.mm(rows, candidates[left:right].T, out=tile[:, : right - left])
        tile[:, right - left :] = -torch.inf
        if seen is not None and right > least:
            hide(tile, seen - left, -torch.inf)
        best.update(tile, left)


def _rescored(queries: UnitRows, candidates: UnitRows, position: Tensor) -> np.ndarray:
    """(q,) float32: the similarity of each found pair, once more row by row, so that it depends on no tile."""
    similarity = torch.full((len(queries),), -torch.inf, device=position.device)
    for start in range(0, len(queries), IN_CACHE):
        part = slice(start, start + IN_CACHE)
        found = candidates.take(position[part].clamp(min=0))
        similarity[part] = row_cosine(queries[part], found, products=torch.float32).float()
    similarity[position < 0] = -torch.inf
    result: np.ndarray = similarity.cpu().numpy()
    return result
