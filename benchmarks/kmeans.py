"""Spherical k-means: products of 8-bit integers against faiss and SuperKMeans, on the same vectors.

    python benchmarks/kmeans.py [--texts 120000] [--iterations 20] [--json FILE]

Each may take the same number of iterations. Prints ratios of times to ours, and objectives: the mean cosine similarity of
all vectors to their nearest centroids, as a last exact assignment gives it.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from machine import machine
from text_vectors import MOST, text_vectors

from semdedup_assets.algorithm.assignment import assign
from semdedup_assets.algorithm.kmeans import Engine, spherical_kmeans

if TYPE_CHECKING:
    from collections.abc import Callable

KS = (200, 1000, 4000)


def synthetic(count: int, dimension: int = 512) -> np.ndarray:
    """(n, d) float16: clusters that overlap."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(2000, dimension)).astype(np.float32)
    rows = centres[random.integers(len(centres), size=count)] + random.normal(size=(count, dimension)).astype(
        np.float32
    )
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def ours(vectors: np.ndarray, k: int, iterations: int, engine: Engine) -> np.ndarray:
    """(k, d) float32 centroids by the package."""
    centroids: np.ndarray = spherical_kmeans(vectors, k=k, iterations=iterations, seed=0, engine=engine).vectors
    return centroids


def superkmeans(vectors: np.ndarray, k: int, iterations: int) -> np.ndarray:
    """(k, d) float32 centroids by SuperKMeans: flat, in float32, of all vectors."""
    from superkmeans import SuperKMeans

    rows = vectors.astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    fit = SuperKMeans(
        k, rows.shape[1], iters=iterations, seed=0, angular=True, hierarchical=False, sampling_fraction=1.0,
        max_points_per_cluster=len(rows),
    )  # fmt: skip
    centroids = np.asarray(fit.train(rows), dtype=np.float32).reshape(k, -1)
    unit: np.ndarray = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    return unit


def compare(name: str, vectors: np.ndarray, k: int, iterations: int) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {"vectors": name, "n": len(vectors), "d": vectors.shape[1], "k": k}
    fits: dict[str, Callable[[], np.ndarray]] = {
        "int8": lambda: ours(vectors, k, iterations, "int8"),
        "superkmeans": lambda: superkmeans(vectors, k, iterations),
        "faiss": lambda: ours(vectors, k, iterations, "faiss"),
    }
    for method, fit in fits.items():
        started = time.perf_counter()
        centroids = fit()
        row[f"{method}_s"] = round(time.perf_counter() - started, 2)
        nearest = assign(torch.from_numpy(vectors), torch.from_numpy(centroids), budget=1 << 28)
        row[f"{method}_objective"] = round(float(nearest.similarity.mean()), 5)
    return row | {f"{method}_ratio": round(row[f"{method}_s"] / row["int8_s"], 2) for method in fits}


def main() -> None:
    """Compare, print, and keep the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=MOST)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    here = machine()
    print(here)
    sets = {"texts": text_vectors(arguments.texts)[1], "synthetic": synthetic(arguments.texts)}
    rows = []
    for name, vectors in sets.items():
        for k in KS:
            rows.append(compare(name, vectors, k, arguments.iterations))
            print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": here, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
