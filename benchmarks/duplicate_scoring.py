"""Scoring within clusters: ours against Algorithm A7 as the paper prints it, on the same vectors, in one run.

    python benchmarks/duplicate_scoring.py [--repeats 3] [--json FILE]

Prints the ratio first, then seconds, useful GFLOP/s (n² d over all clusters: the triangle), and the machine's own
float32 product rate. Both answers are held against each other.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import machine
from text_vectors import text_vectors

from semdedup_assets.algorithm.assignment import assign
from semdedup_assets.algorithm.kmeans import spherical_kmeans
from semdedup_assets.algorithm.similarity import EarlierSimilarity, score_clusters

DIMENSION = 512
SHAPES = {
    "4,000 clusters of 50": (4000, 50),
    "200 of 1,000": (200, 1000),
    "8 of 5,000": (8, 5000),
    "1 of 20,000": (1, 20000),
    "texts, 2,000 of 50": (2000, 50),
    "texts, 100 of 1,000": (100, 1000),
    "texts, 20 of 5,000": (20, 5000),
    "texts, 2 of 20,000": (2, 20000),
}


def literal(vectors: torch.Tensor, offsets: np.ndarray) -> EarlierSimilarity:
    """Algorithm A7, line by line: the whole matrix of each cluster, its upper triangle, the greatest of each column."""
    similarity = np.full(len(vectors), -np.inf, dtype=np.float32)
    for start, stop in itertools.pairwise(offsets):
        rows = vectors[start:stop].float()
        greatest = torch.triu(rows @ rows.T, diagonal=1).max(dim=0)[0]
        similarity[start + 1 : stop] = greatest[1:].numpy()
    return EarlierSimilarity(similarity, np.full(len(vectors), -1))


def ours(vectors: torch.Tensor, offsets: np.ndarray) -> EarlierSimilarity:
    """The package's way."""
    return score_clusters(vectors, offsets, budget=1 << 30)


def seconds(work: Callable[[], EarlierSimilarity]) -> tuple[float, EarlierSimilarity]:
    """How long a call takes, and its result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def clustered(clusters: int, size: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """float16 unit rows around a direction for each cluster."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, 1, DIMENSION, generator=random)
    rows = centres + torch.randn(clusters, size, DIMENSION, generator=random)
    unit = torch.nn.functional.normalize(rows.reshape(-1, DIMENSION)).half()
    return unit, np.arange(clusters + 1) * size


def of_texts(clusters: int, size: int) -> tuple[torch.Tensor, np.ndarray]:
    """float16 unit rows of real texts, those in the direction of one of sixty centroids together."""
    vectors = text_vectors()[1]
    centroids = spherical_kmeans(vectors[::4], k=60, iterations=10, seed=0, engine="faiss").vectors
    nearest = assign(torch.from_numpy(vectors), torch.from_numpy(centroids), budget=1 << 28).cluster
    chosen = np.argsort(nearest, kind="stable")[: clusters * size]
    return torch.from_numpy(vectors[chosen]), np.arange(clusters + 1) * size


def compare(name: str, repeats: int) -> dict[str, float | str]:
    """One row of the table: medians of alternating runs."""
    vectors, offsets = (of_texts if name.startswith("texts") else clustered)(*SHAPES[name])
    times: dict[str, list[float]] = {"ours": [], "literal": []}
    for _ in range(repeats):
        for label, function in (("literal", literal), ("ours", ours)):
            spent, result = seconds(lambda f=function: f(vectors, offsets))  # type: ignore[misc]
            times[label].append(spent)
            if label == "literal":
                expected = result.similarity
    later = ~np.isin(np.arange(len(vectors)), offsets)
    difference = float(np.abs(result.similarity[later] - np.maximum(expected[later], 0)).max())
    mine, theirs = (float(np.median(times[label])) for label in ("ours", "literal"))
    work = float((np.diff(offsets).astype(float) ** 2).sum()) * vectors.shape[1]
    return {"clusters": name, "ratio": theirs / mine, "ours_s": mine, "literal_s": theirs,
            "useful_gflops": work / mine / 1e9, "greatest_difference": difference}  # fmt: skip


def main() -> None:
    """Compare, print, and keep the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    here = machine()
    rate = here["gflops"]["float32"]
    print(here)
    print(f"{'clusters':<22} {'ratio':>6} {'ours s':>8} {'A7 s':>8} {'GFLOP/s':>8} {'of product':>10}")
    rows = [compare(name, arguments.repeats) for name in SHAPES]
    for row in rows:
        share = float(row["useful_gflops"]) / rate
        print(f"{row['clusters']:<22} {row['ratio']:>6.1f} {row['ours_s']:>8.3f} {row['literal_s']:>8.3f} ", end="")
        print(f"{row['useful_gflops']:>8.0f} {share:>10.0%}")
    if arguments.json:
        content = {"machine": here, "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
