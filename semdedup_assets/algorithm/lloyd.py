"""Lloyd's iterations of spherical k-means, with nearest centroids found by products of 8-bit integers."""

from collections.abc import Iterator
from heapq import heapify, heappush, heapreplace

import numpy as np
import torch
from torch import Tensor

from semdedup_assets.algorithm.prefilter import QUERY_BLOCK, Codes, Prefilter, Rows, centre_of, encode
from semdedup_assets.algorithm.sparse import sparse_rows

# Rows that are read together: they are held as float32, with the sums of their clusters.
_BLOCK = 1 << 16
# A centroid that is split becomes two, so far apart in each number (faiss does the same).
_SPLIT = 1 / 1024


def fit_by_integers(rows: Rows, *, k: int, iterations: int, seed: int, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit k centroids: sums are float32, only the choice of the nearest centroid uses 8 bits.

    A row that 8 bits give to another centroid than float32 would is as good as equally near to both, so that the
    objective stays the same to about a thousandth.

    Args:
        rows: n unit rows of d numbers, n >= k, on the CPU; read once at first and once in each iteration, so that they
            need not be in memory.
        k: clusters.
        iterations: at most; ends as soon as no row changes its cluster.
        seed: of the rows that are the first centroids.
        budget: bytes that the rows' codes may take; where they do not fit, they are made again in each iteration, with
            the same result.

    Returns:
        (k, d) float32 unit rows, and (i,) float64, the mean cosine similarity of the rows to their centroids in each
        iteration.
    """
    centre = centre_of(rows)
    blocks = _Blocks(rows, centre, budget=budget)
    centroids = torch.cat([rows[index : index + 1] for index in first_rows(len(rows), k=k, seed=seed).tolist()])
    labels = torch.full((len(rows),), -1, dtype=torch.int64)
    objective = []
    for _ in range(iterations):
        before, labels = labels, torch.empty_like(labels)
        prefilter, sums = Prefilter(encode(centroids, centre)), torch.zeros_like(centroids)
        for part, unit, codes in blocks:
            labels[part] = _nearest(codes, prefilter)
            _add_sums(sums, unit, labels[part])
        objective.append(float((sums * centroids).sum(dtype=torch.float64)) / len(rows))
        if torch.equal(before, labels):
            break
        _move(centroids, sums)
        split_for_empty(centroids, torch.bincount(labels, minlength=k))
    return centroids.numpy(), np.asarray(objective)


def first_rows(count: int, *, k: int, seed: int) -> Tensor:
    """(k,) int64, ascending: which of some rows are the first centroids."""
    return torch.from_numpy(np.sort(np.random.default_rng(seed).permutation(count)[:k]))


class _Blocks:
    """Rows and their codes, some at a time; codes are kept where they fit a budget."""

    def __init__(self, rows: Rows, centre: Tensor, *, budget: int) -> None:
        self._rows, self._centre = rows, centre
        # A number each, and norm, error and bias of a row.
        self._keep = len(rows) * (len(centre) + 12) <= budget
        self._kept: dict[int, Codes] = {}

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Codes]]:
        for start in range(0, len(self._rows), _BLOCK):
            part = slice(start, min(start + _BLOCK, len(self._rows)))
            unit = self._rows[part]
            codes = self._kept.get(start) or encode(unit, self._centre)
            if self._keep:
                self._kept[start] = codes
            yield part, unit, codes


def _nearest(codes: Codes, prefilter: Prefilter) -> Tensor:
    """(b,) int64: the nearest centroid of each row, by products of 8 bits."""
    count = len(codes.norm)
    parts = (codes.part(start, min(start + QUERY_BLOCK, count)) for start in range(0, count, QUERY_BLOCK))
    return torch.cat([prefilter.nearest(part) for part in parts])


def _add_sums(sums: Tensor, unit: Tensor, labels: Tensor) -> None:
    """Add rows to the sums of their clusters; by a product with a sparse matrix, because it uses all cores."""
    found, cluster = torch.unique(labels, return_inverse=True)
    order = torch.argsort(cluster, stable=True)
    members = sparse_rows(cluster[order], order, torch.ones(len(labels)), (len(found), len(labels)))
    sums[found] += members @ unit


def _move(centroids: Tensor, sums: Tensor) -> None:
    """Move centroids to the direction of their sums; one that is empty, or cancels out, stays. Overwrites the sums."""
    norms = torch.linalg.vector_norm(sums, dim=1, keepdim=True)
    torch.where(norms > 1e-6, sums.div_(norms.clamp_min(1e-6)), centroids, out=centroids)


def split_for_empty(centroids: Tensor, sizes: Tensor) -> None:
    """Give each empty cluster half of the largest one there is.

    Args:
        centroids: (k, d) float32 unit rows, changed in place.
        sizes: (k,) int64, rows of each cluster.
    """
    signs = torch.ones(centroids.shape[1], device=centroids.device)
    signs[1::2] = -1
    largest_first = [(-size, cluster) for cluster, size in enumerate(sizes.tolist())]
    heapify(largest_first)
    for empty in (sizes == 0).nonzero().flatten().tolist():
        size, largest = -largest_first[0][0], largest_first[0][1]
        if size < 2:
            return
        for cluster, sign in ((empty, _SPLIT), (largest, -_SPLIT)):
            moved = centroids[largest] * (1 + sign * signs)
            centroids[cluster] = moved / torch.linalg.vector_norm(moved)
        heapreplace(largest_first, (-(size - size // 2), largest))
        heappush(largest_first, (-(size // 2), empty))
