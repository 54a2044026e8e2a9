"""How far k-means on one machine goes: what a fit takes, the law it follows, and how large its sample should be.

    python benchmarks/kmeans_scale.py [--texts 30000] [--only rates|sample|table] [--json FILE]

`rates` times iterations at several sizes on one core, and holds them against 2 n k d operations at the rate of the
largest. `sample`
fits centroids to samples of several sizes and measures them on all vectors. `table` is arithmetic: bytes, operations
and hours at k = 50,000 and 500,000, for rates that are assumed (GPUs) or were measured (a core of this machine). Each
part replaces only its own figures in the file.
"""

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from machine import machine
from text_vectors import text_vectors

from semdedup_assets.algorithm.assignment import assign
from semdedup_assets.algorithm.kmeans import Engine, spherical_kmeans

PER_CLUSTER, ITERATIONS, ITEMS = 256, (20, 100), 5_000_000_000
# Operations a second of one GPU in products of float32, and of float16 with the search for the greatest: assumed.
GPUS, FLOAT32, FLOAT16, CORES = 8, 40e12, 400e12, 64
SHAPES = [(n, d, k) for d in (128, 384) for n, k in ((32_768, 250), (32_768, 1000), (32_768, 4000), (65_536, 1000))]
SAMPLES, KS, EPSILON = (256, 128, 64, 39, 16), (50, 100), 0.05


def synthetic(count: int, dimension: int) -> np.ndarray:
    """(n, d) float16 unit rows: clusters that overlap."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(2000, dimension)).astype(np.float32)
    noise = random.normal(size=(count, dimension)).astype(np.float32)
    rows = centres[random.integers(len(centres), size=count)] + noise
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def rates(engines: tuple[Engine, ...] = ("faiss", "torch")) -> list[dict[str, Any]]:
    """Seconds of an iteration by engine and shape."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    rows = []
    for engine in engines:
        own = []
        for n, d, k in SHAPES:
            vectors = synthetic(n, d)
            few, more = (fit_seconds(vectors, k, count, engine) for count in (1, 2))
            own.append({"engine": engine, "n": n, "d": d, "k": k, "iteration_s": more - few})
            own[-1]["gflops"] = 2e-9 * n * k * d / own[-1]["iteration_s"]
        rows += own
    return rows


def against_law(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same, with what 2 n k d operations at the rate of the engine's largest fit predict."""
    for row in rows:
        largest = max((each for each in rows if each["engine"] == row["engine"]), key=operations_of)
        yield row | {"predicted_to_measured": row["gflops"] / largest["gflops"]}


def operations_of(row: dict[str, Any]) -> float:
    """Of an iteration."""
    return 2.0 * row["n"] * row["k"] * row["d"]


def fit_seconds(vectors: np.ndarray, k: int, iterations: int, engine: Engine) -> float:
    """Of the processor, for a whole fit with the last assignment: what else runs on the machine counts little."""
    started = time.process_time()
    spherical_kmeans(vectors, k=k, iterations=iterations, seed=0, engine=engine)
    return time.process_time() - started


def samples(most: int, seeds: int = 3) -> Iterator[dict[str, Any]]:
    """Of centroids that were fitted to some of the texts: what they are worth on all of them, means of several seeds."""
    vectors = text_vectors(most)[1]
    left, right = near_pairs(vectors)
    for k, size in product(KS, (None, *SAMPLES)):
        found = []
        for seed in range(seeds):
            count = len(vectors) if size is None else size * k
            sample = vectors[np.sort(np.random.default_rng(seed).permutation(len(vectors))[:count])]
            centroids = spherical_kmeans(sample, k=k, iterations=20, seed=seed).vectors
            nearest = assign(torch.from_numpy(vectors), torch.from_numpy(centroids), budget=1 << 28)
            together = float((nearest.cluster[left] == nearest.cluster[right]).mean())
            found.append((float(nearest.similarity.mean()), together))
        objective, kept = np.mean(found, axis=0).tolist()
        per_cluster = len(vectors) / k if size is None else size
        yield {"items": len(vectors), "k": k, "per_cluster": per_cluster, "all": size is None, "seeds": seeds,
               "objective": objective, "pairs": len(left), "pairs_in_one_cluster": kept}  # fmt: skip


def near_pairs(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of different vectors within epsilon, each once."""
    unit = torch.from_numpy(vectors).float()
    unit /= torch.linalg.vector_norm(unit, dim=1, keepdim=True)
    found = []
    for start in range(0, len(unit), 1024):
        similarity = unit[start : start + 1024] @ unit[start:].T
        row, column = ((similarity > 1 - EPSILON) & (similarity < 1 - 1e-4)).nonzero(as_tuple=True)
        found.append(torch.stack([row, column])[:, column > row] + start)
    left, right = torch.cat(found, 1).numpy()
    return left, right


def table(core_rate: float) -> Iterator[dict[str, Any]]:
    """What a fit and the stages after it take, by arithmetic alone.

    Args:
        core_rate: operations a second of one core in float32.
    """
    for k in (50_000, 500_000):
        for d in (512, 1024):
            n = PER_CLUSTER * k
            operations, assignments = 2.0 * n * k * d, 2.0 * ITEMS * k * d
            hours = {
                f"{kind}_{count}_iterations": count * operations / rate / 3600
                for kind, rate in (("gpu_float32", GPUS * FLOAT32), ("gpu_float16", GPUS * FLOAT16),
                                   ("cpu", CORES * core_rate))
                for count in ITERATIONS
            }  # fmt: skip
            yield {
                "k": k, "d": d, "sample": n, "gb_float16": 2e-9 * n * d, "gb_float32": 4e-9 * n * d,
                "centroids_gb": 4e-9 * k * d, "operations": operations, "hours": hours,
                "last_assignment_hours": {"gpus": operations / (GPUS * FLOAT32) / 3600,
                                          "cpu": operations / (CORES * core_rate) / 3600},
                "assignment_gpu_hours": assignments / FLOAT32 / 3600,
            }  # fmt: skip


def main() -> None:
    """Measure, print, and keep the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=30_000)
    parser.add_argument("--only", choices=("rates", "sample", "table"))
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    kept: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    if arguments.only in (None, "rates"):
        kept |= {"machine": machine(), "rates": list(against_law(rates()))}
    if arguments.only in (None, "sample"):
        kept["sample"] = list(samples(arguments.texts))
    if arguments.only in (None, "table"):
        kept["table"] = list(table(1e9 * max(kept["rates"], key=operations_of)["gflops"]))
    for part in ("rates", "sample", "table"):
        for row in kept.get(part, []) if arguments.only in (None, part) else []:
            print(json.dumps(row))
    arguments.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
