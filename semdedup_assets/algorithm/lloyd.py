"""Lloyd's iterations of spherical k-means, with nearest centroids found by products of 8-bit integers."""

import warnings

import numpy as np
import torch
from torch import Tensor

from semdedup_assets.algorithm.screening import QUERY_BLOCK, Codes, Rows, Screen, centre_of, encode

# Rows whose sums are taken together: as float32, they and their sums are held at once.
_SUMMED = 1 << 16
# A centroid that is split becomes two, so far apart in each number (faiss does the same).
_SPLIT = 1 / 1024


def fit_by_integers(rows: Rows, *, k: int, iterations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit k centroids; sums are taken in float32, only which centroid is nearest is told from 8 bits.

    A row that 8 bits give to another centroid than float32 would is as good as equally near to both, so that the
    objective stays the same to about a thousandth.

    Args:
        rows: n unit rows of d numbers, n >= k, on the CPU; read once at first and once in each iteration.
        k: clusters.
        iterations: at most; ends as soon as no row changes its cluster.
        seed: of the rows that are the first centroids.

    Returns:
        (k, d) float32 unit rows, and (i,) float64, the mean cosine similarity of the rows to their centroids in each
        iteration.
    """
    centre = centre_of(rows)
    codes = encode(rows, centre)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:k])
    centroids = torch.cat([rows[index : index + 1] for index in chosen.tolist()])
    labels = torch.full((len(rows),), -1, dtype=torch.int64)
    objective = []
    for _ in range(iterations):
        before, labels = labels, _nearest(codes, centroids, centre)
        sums = _sums(rows, labels, k)
        objective.append(float((sums * centroids).sum(dtype=torch.float64)) / len(rows))
        if torch.equal(before, labels):
            break
        centroids = _moved(centroids, sums)
        _split_for_empty(centroids, torch.bincount(labels, minlength=k))
    return centroids.numpy(), np.asarray(objective)


def _nearest(codes: Codes, centroids: Tensor, centre: Tensor) -> Tensor:
    """(n,) int64: the nearest centroid of each row, as far as 8 bits tell."""
    screen, count = Screen(encode(centroids, centre)), len(codes.norm)
    labels = torch.empty(count, dtype=torch.int64)
    for start in range(0, count, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, count)
        labels[start:stop] = screen.nearest(codes.part(start, stop))
    return labels


def _sums(rows: Rows, labels: Tensor, k: int) -> Tensor:
    """(k, d) float32: the sum of each cluster's rows; a product with a sparse matrix, because it uses all cores."""
    sums = torch.zeros((k, rows[:1].shape[1]))
    for start in range(0, len(rows), _SUMMED):
        part = labels[start : start + _SUMMED]
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(part, minlength=k).cumsum(0)])
        order = torch.argsort(part, stable=True)
        with warnings.catch_warnings():
            # PyTorch calls its sparse matrices beta; a product is all that is asked of them.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
            members = torch.sparse_csr_tensor(
                ends, order, torch.ones(len(part)), (k, len(part)), check_invariants=False
            )
        sums += members @ rows[start : start + _SUMMED]
    return sums


def _moved(centroids: Tensor, sums: Tensor) -> Tensor:
    """Unit rows in the direction of the sums; a cluster that is empty, or cancels out, keeps its centroid."""
    norms = torch.linalg.vector_norm(sums, dim=1, keepdim=True)
    return torch.where(norms > 1e-6, sums / norms.clamp_min(1e-6), centroids)


def _split_for_empty(centroids: Tensor, sizes: Tensor) -> None:
    """Give each empty cluster half of the largest one there is."""
    signs = torch.ones(centroids.shape[1])
    signs[1::2] = -1
    for empty in (sizes == 0).nonzero().flatten().tolist():
        largest = int(sizes.argmax())
        if sizes[largest] < 2:
            return
        for cluster, sign in ((empty, _SPLIT), (largest, -_SPLIT)):
            moved = centroids[largest] * (1 + sign * signs)
            centroids[cluster] = moved / torch.linalg.vector_norm(moved)
        sizes[empty] = sizes[largest] // 2
        sizes[largest] -= sizes[empty]
