"""Greatest cosine similarities by tiles: every pair is compared, no matrix is ever whole."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from semdedup_assets.algorithm.budget import TileShape, tile_shape
from semdedup_assets.algorithm.unit_rows import check_rows, row_cosine, unit_rows

# Equal rows may differ by a few float32 steps in a matrix product. What lies within this of the greatest is
# held for equal, and the earliest of equals wins: groups of exact duplicates then do not hang on rounding.
_TIE = 1e-6


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
    check_rows(vectors, unit=True)
    return greatest_similarity(vectors, vectors, visible=np.arange(len(vectors)), budget=budget)


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
    d, gpu = queries.shape[1], queries.is_cuda
    shape = tile_shape(budget // 2, dimension=d, gpu=gpu)
    if 4 * d * len(candidates) <= budget // 2:
        candidates = unit_rows(candidates)
    seen = None if visible is None else torch.as_tensor(visible, device=queries.device)
    best = torch.full((len(queries),), -torch.inf, device=queries.device)
    position = torch.full((len(queries),), -1, dtype=torch.int64, device=queries.device)
    for start in range(0, len(queries), shape.rows):
        rows = slice(start, start + shape.rows)
        _scan(queries[rows], candidates, None if seen is None else seen[rows], shape, best[rows], position[rows])
    return EarlierSimilarity(_rescored(queries, candidates, position), position.cpu().numpy())


def _scan(
    queries: Tensor, candidates: Tensor, seen: Tensor | None, shape: TileShape, best: Tensor, position: Tensor
) -> None:
    """Fill (b,) best and position for one tile's height of queries."""
    rows = unit_rows(queries)
    least, most = (len(candidates), len(candidates)) if seen is None else (int(seen[0]), int(seen[-1]))
    for left in range(0, most, shape.columns):
        right = min(left + shape.columns, most)
        columns = candidates[left:right]
        columns = columns if columns.dtype == torch.float32 and len(candidates) > 0 else unit_rows(columns)
        tile = rows @ columns.T  # (b, m)
        if seen is not None and right > least:
            _hide(tile, seen, left, max(left, least))
        _take_better(tile, left, best, position)


def _hide(tile: Tensor, seen: Tensor, left: int, first_hidden: int) -> None:
    """Rule out the candidates that a query does not see; those before `first_hidden` are seen by all."""
    part = tile[:, first_hidden - left :]
    index = torch.arange(first_hidden, left + tile.shape[1], device=tile.device)
    part.masked_fill_(index >= seen[:, None], -torch.inf)


def _take_better(tile: Tensor, left: int, best: Tensor, position: Tensor) -> None:
    greatest = tile.amax(1)
    better = (greatest > best + _TIE).nonzero().squeeze(1)
    if len(better) == 0:
        return
    greatest = greatest[better]
    within = tile if len(better) == len(tile) else tile[better]
    first = (within >= (greatest - _TIE)[:, None]).to(torch.uint8).argmax(1)
    best[better] = greatest
    position[better] = left + first


def _rescored(queries: Tensor, candidates: Tensor, position: Tensor) -> np.ndarray:
    """(q,) float32: the similarity of each found pair, once more row by row in float64."""
    similarity = torch.full((len(queries),), -torch.inf, dtype=torch.float64, device=queries.device)
    chunk = max(1, (16 << 20) // (4 * queries.shape[1]))
    for start in range(0, len(queries), chunk):
        found = (position[start : start + chunk] >= 0).nonzero().squeeze(1) + start
        similarity[found] = row_cosine(queries[found], candidates[position[found]])
    result: np.ndarray = similarity.float().cpu().numpy()
    return result
