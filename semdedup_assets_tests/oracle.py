"""SemDeDup by its definition: whole matrices, float64, loops. Shares no code with the package."""

import numpy as np


def unit(vectors: np.ndarray) -> np.ndarray:
    v = vectors.astype(np.float64)
    return v / np.sqrt((v * v).sum(1, keepdims=True))


def chain_scores(vectors: np.ndarray) -> np.ndarray:
    """Alg. A7 on one cluster in keep-order: the column-wise greatest value of the strict upper triangle."""
    similarity = unit(vectors) @ unit(vectors).T
    upper = np.where(np.triu(np.ones_like(similarity, dtype=bool), k=1), similarity, -np.inf)
    return upper.max(axis=0, initial=-np.inf)


def chain_keep(vectors: np.ndarray, epsilon: float) -> np.ndarray:
    return chain_scores(vectors) <= 1 - epsilon


def greedy_keep(vectors: np.ndarray, epsilon: float) -> np.ndarray:
    similarity, kept = unit(vectors) @ unit(vectors).T, []
    for row in range(len(vectors)):
        if not any(similarity[row, other] > 1 - epsilon for other in kept):
            kept.append(row)
    return np.isin(np.arange(len(vectors)), kept)


def nearest_kept(vectors: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Similarity of each row to its most similar kept row other than itself."""
    similarity = unit(vectors) @ unit(vectors).T
    np.fill_diagonal(similarity, -np.inf)
    return np.where(keep[None, :], similarity, -np.inf).max(axis=1)


def order_in_clusters(cluster: np.ndarray, centroid_similarity: np.ndarray, ids: np.ndarray) -> dict[int, list[int]]:
    """Rows of each cluster, least similar to the centroid first, then by id."""
    return {
        int(c): sorted(np.flatnonzero(cluster == c).tolist(), key=lambda r: (centroid_similarity[r], ids[r]))
        for c in np.unique(cluster)
    }
