"""What would become of protected items if nothing protected them."""

import numpy as np
import torch
from torch import Tensor

from semdedup_assets.algorithm.similarity import EarlierSimilarity, greatest_similarity


def unprotected_similarity(
    vectors: Tensor, offsets: np.ndarray, *, earlier: EarlierSimilarity, overtaken: np.ndarray, budget: int
) -> np.ndarray:
    """Greatest similarity of each protected row to those that would come before it if no row were protected.

    These are the protected rows that come before it, whose similarity is known, and the unprotected rows that it overtakes.

    Args:
        vectors: (n, d) unit rows by cluster, in each the protected ones first, and both parts in keep-order.
        offsets: (clusters + 1,) int64, where each cluster starts.
        earlier: of these rows, by `score_clusters`.
        overtaken: (n,) int64, how many unprotected rows of its cluster a protected one overtakes; -1 of others.
        budget: bytes the tiles may take on the vectors' device.

    Returns:
        (n,) float32: -inf where a protected row would be the first, NaN of unprotected rows.
    """
    protected = overtaken >= 0
    found = np.where(protected, earlier.similarity, np.float32(np.nan)).astype(np.float32)
    counts = np.add.reduceat(np.append(protected, False), offsets[:-1]) * (np.diff(offsets) > 0)
    for start, stop, count in zip(offsets[:-1].tolist(), offsets[1:].tolist(), counts.tolist(), strict=True):
        # In keep-order, a later protected row overtakes no fewer.
        rows = np.arange(start, start + count)
        rows = rows[overtaken[rows] > 0]
        if len(rows):
            queries, candidates = vectors[torch.as_tensor(rows, device=vectors.device)], vectors[start + count : stop]
            overtook = greatest_similarity(queries, candidates, visible=overtaken[rows], budget=budget)
            found[rows] = np.maximum(found[rows], overtook.similarity)
    return found


def protect(earlier: EarlierSimilarity, protected: np.ndarray) -> EarlierSimilarity:
    """Scores under which no epsilon removes a protected row.

    Args:
        earlier: of n rows.
        protected: (n,) bool.
    """
    return EarlierSimilarity(
        np.where(protected, np.float32(-np.inf), earlier.similarity), np.where(protected, -1, earlier.position)
    )
