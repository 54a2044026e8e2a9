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


def greedy_keep(vectors: np.ndarray, epsilon: float, protected: np.ndarray | None = None) -> np.ndarray:
    similarity = unit(vectors) @ unit(vectors).T
    kept: list[int] = []
    for row in range(len(vectors)):
        spared = protected is not None and protected[row]
        if spared or not any(similarity[row, other] > 1 - epsilon for other in kept):
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


def lloyd_objective(vectors: np.ndarray, k: int, iterations: int, seed: int) -> float:
    """Mean similarity to the nearest centroid that plain spherical k-means reaches from k random rows."""
    rows = unit(vectors)
    centroids = rows[np.random.default_rng(seed).choice(len(rows), k, replace=False)]
    for _ in range(iterations):
        nearest = (rows @ centroids.T).argmax(axis=1)
        members = [rows[nearest == c] for c in range(k)]
        centroids = unit(np.stack([m.sum(axis=0) if len(m) else centroids[c] for c, m in enumerate(members)]))
    return float((rows @ centroids.T).max(axis=1).mean())


def epsilon_in_gap(vectors: np.ndarray, epsilon: float) -> float:
    """The epsilon in [0, 2] nearest to the given one whose threshold lies 1e-5 or more from every pair's similarity."""
    similarity = unit(vectors) @ unit(vectors).T
    pairs = np.sort(similarity[np.triu_indices(len(vectors), k=1)])
    edges = np.concatenate([[-1 - 1e-5], pairs, [1 + 1e-5]])
    wide = np.flatnonzero(np.diff(edges) > 2.1e-5)
    nearest = np.clip(1 - epsilon, edges[wide] + 1e-5, edges[wide + 1] - 1e-5)
    return float(1 - nearest[np.abs(nearest - (1 - epsilon)).argmin()])
