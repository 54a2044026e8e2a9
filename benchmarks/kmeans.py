"""Spherical k-means: products of 8-bit integers against faiss, on the same vectors, at the same number of iterations.

    python benchmarks/kmeans.py [--texts 120000] [--iterations 20] [--json FILE]

Prints the ratio of the times, and both objectives: the mean cosine similarity of all vectors to their nearest
centroids, as a last exact assignment gives it.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from machine import machine, timed
from text_vectors import MOST, text_vectors

from semdedup_assets.algorithm.assignment import assign
from semdedup_assets.algorithm.kmeans import Centroids, Engine, spherical_kmeans

KS = (200, 1000, 4000)


def synthetic(count: int, dimension: int = 512) -> np.ndarray:
    """(n, d) float16: clusters that overlap."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(2000, dimension)).astype(np.float32)
    rows = centres[random.integers(len(centres), size=count)] + random.normal(size=(count, dimension)).astype(
        np.float32
    )
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def compare(name: str, vectors: np.ndarray, k: int, iterations: int) -> dict[str, object]:
    """One row of the table."""
    row: dict[str, object] = {"vectors": name, "n": len(vectors), "d": vectors.shape[1], "k": k}
    fits: dict[Engine, list[Centroids]] = {"faiss": [], "int8": []}
    for engine, kept in fits.items():
        seconds = timed(
            lambda kept=kept, engine=engine: kept.append(
                spherical_kmeans(vectors, k=k, iterations=iterations, seed=0, engine=engine)
            )
        )
        nearest = assign(torch.from_numpy(vectors), torch.from_numpy(kept[0].vectors), budget=1 << 28)
        row[f"{engine}_s"], row[f"{engine}_objective"] = round(seconds, 2), round(float(nearest.similarity.mean()), 5)
        row[f"{engine}_iterations"] = len(kept[0].objective)
    return row


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
    print(f"{'vectors':<10} {'k':>5} {'ratio':>6} {'int8 s':>7} {'faiss s':>8}  objectives, iterations")
    for name, vectors in sets.items():
        for k in KS:
            row = compare(name, vectors, k, arguments.iterations)
            ratio = float(str(row["faiss_s"])) / float(str(row["int8_s"]))
            rows.append({**row, "ratio": round(ratio, 2)})
            print(f"{name:<10} {k:>5} {ratio:>6.1f} {row['int8_s']:>7} {row['faiss_s']:>8}", end="  ")
            print(
                f"{row['int8_objective']} {row['faiss_objective']}, {row['int8_iterations']} {row['faiss_iterations']}"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": here, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
