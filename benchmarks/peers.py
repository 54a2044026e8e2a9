"""Removing near-duplicates: ours and its peers on the same vectors, in the order of the input, in one run.

    python benchmarks/peers.py [--texts 120000] [--epsilon 0.05] [--json FILE]

Each method runs in a process of its own, from vectors in memory to the list of removed items. Recall and precision are
against all pairs in float32 by the method's own rule: *chain* removes an item that is similar to any earlier one,
*greedy* one that is similar to an earlier kept one. imagededup holds all pairs at once, and gets fewer items.
"""

import argparse
import gc
import json
import multiprocessing
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from machine import machine
from text_vectors import MOST, text_vectors

_IMAGEDEDUP_ITEMS = 10_000
_BLOCK = 2048

Removed = np.ndarray
"""(n,) bool."""

Row = dict[str, object]
"""A method's figures, by name."""


def ours(vectors: np.ndarray, texts: list[str], epsilon: float) -> Removed:
    """This package, with the k that it suggests."""
    from semdedup_assets import semdedup

    return ~semdedup(vectors, keep=np.arange(len(vectors))).keep_mask(epsilon)


def ours_all_pairs(vectors: np.ndarray, texts: list[str], epsilon: float) -> Removed:
    """This package in one cluster: no pair is missed."""
    from semdedup_assets import semdedup

    return ~semdedup(vectors, k=1, keep=np.arange(len(vectors))).keep_mask(epsilon)


def literal(vectors: np.ndarray, texts: list[str], epsilon: float) -> Removed:
    """Faiss' k-means, and Algorithm A7 as the paper prints it."""
    import faiss
    import torch

    from semdedup_assets.algorithm.kmeans import suggest_k

    rows = vectors.astype(np.float32)
    k = suggest_k(len(rows))
    kmeans = faiss.Kmeans(rows.shape[1], k, niter=100, seed=0, spherical=True)
    kmeans.train(rows)
    cluster = kmeans.index.search(rows, 1)[1][:, 0]
    removed = np.zeros(len(rows), dtype=bool)
    for label in range(k):
        members = np.flatnonzero(cluster == label)
        if len(members):
            part = torch.from_numpy(rows[members])
            greatest = torch.triu(part @ part.T, diagonal=1).max(dim=0)[0]
            removed[members] = (greatest > 1 - epsilon).numpy()
    return removed


def range_search(vectors: np.ndarray, texts: list[str], epsilon: float) -> Removed:
    """Faiss' exact range search over all pairs."""
    import faiss

    rows = vectors.astype(np.float32)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    removed = np.zeros(len(rows), dtype=bool)
    for start in range(0, len(rows), _BLOCK):
        limits, _, found = index.range_search(rows[start : start + _BLOCK], 1 - epsilon)
        query = start + np.repeat(np.arange(len(limits) - 1), np.diff(limits.astype(np.int64)))
        removed[query[found < query]] = True
    return removed


def semhash(vectors: np.ndarray, texts: list[str], epsilon: float) -> Removed:
    """SemHash on ready vectors; the numbers make the texts distinct, so that it sees every item."""
    from semhash import SemHash

    records = [f"{index} {text}" for index, text in enumerate(texts)]
    hashed = SemHash.from_embeddings(vectors.astype(np.float32), records, model=None)
    kept = {str(record) for record in hashed.self_deduplicate(threshold=1 - epsilon).selected}
    return np.array([record not in kept for record in records])


def imagededup(vectors: np.ndarray, texts: list[str], epsilon: float) -> Removed:
    """Imagededup's CNN path from its encodings on."""
    import torch
    from imagededup.methods import CNN
    from imagededup.utils.models import CustomModel

    model = CustomModel(name="none", model=torch.nn.Identity(), transform=lambda image: image)
    names = [f"{index:09d}" for index in range(len(vectors))]
    encodings = dict(zip(names, vectors.astype(np.float32), strict=True))
    found = CNN(verbose=False, model_config=model).find_duplicates_to_remove(
        encoding_map=encodings, min_similarity_threshold=1 - epsilon
    )
    removed = np.zeros(len(vectors), dtype=bool)
    removed[[int(name) for name in found]] = True
    return removed


METHODS: dict[str, tuple[Callable[[np.ndarray, list[str], float], Removed], str]] = {
    "ours": (ours, "chain"),
    "ours, all pairs": (ours_all_pairs, "chain"),
    "Algorithm A7, faiss": (literal, "chain"),
    "faiss range search": (range_search, "chain"),
    "SemHash": (semhash, "greedy"),
    "imagededup": (imagededup, "greedy"),
}


def exact(vectors: np.ndarray, epsilon: float) -> dict[str, Removed]:
    """What each rule removes, from all pairs in float32."""
    rows = vectors.astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    chain, kept = np.zeros(len(rows), dtype=bool), np.ones(len(rows), dtype=bool)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        similar = np.tril(block @ rows[: start + len(block)].T > 1 - epsilon, k=start - 1)
        chain[start : start + len(block)] = similar.any(axis=1)
        for row in np.flatnonzero(similar.any(axis=1)):
            kept[start + row] = not kept[np.flatnonzero(similar[row])].any()
    return {"chain": chain, "greedy": ~kept}


def _run(name: str, vectors: np.ndarray, texts: list[str], epsilon: float, reply: Connection) -> None:
    warnings.simplefilter("ignore")
    method = METHODS[name][0]
    # Imports, and whatever a library sets up at its first call, are not what is compared.
    method(vectors[:2000], texts[:2000], epsilon)
    gc.collect()
    # The greatest memory so far is forgotten: what the process took before is not the method's.
    Path("/proc/self/clear_refs").write_text("5")
    before, started = _status("VmRSS"), time.perf_counter()
    removed = method(vectors, texts, epsilon)
    seconds = time.perf_counter() - started
    reply.send((removed, seconds, _status("VmHWM") - before))


def _status(name: str) -> float:
    """MiB of this process, as Linux tells them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def measure(name: str, vectors: np.ndarray, texts: list[str], epsilon: float) -> tuple[Removed, float, float]:
    """What a method removes, its seconds, and the MiB it took beyond its libraries and input."""
    context = multiprocessing.get_context("spawn")
    reply, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(name, vectors, texts, epsilon, theirs))
    process.start()
    theirs.close()
    removed, seconds, memory = reply.recv()
    process.join()
    return removed, seconds, memory


def compare(name: str, vectors: np.ndarray, texts: list[str], epsilon: float, by_rule: dict[str, Removed]) -> Row:
    """One row of the table."""
    # What an item has before it does not depend on what comes after it: the first items are held against the same answer.
    most = _IMAGEDEDUP_ITEMS if name == "imagededup" else len(vectors)
    vectors, texts, wanted = vectors[:most], texts[:most], by_rule[METHODS[name][1]][:most]
    removed, seconds, memory = measure(name, vectors, texts, epsilon)
    right = int((removed & wanted).sum())
    return {
        "method": name,
        "items": len(vectors),
        "seconds": round(seconds, 2),
        "memory_mib": round(memory),
        "rule": METHODS[name][1],
        "removed": int(removed.sum()),
        "recall": round(right / max(1, int(wanted.sum())), 5),
        "precision": round(right / max(1, int(removed.sum())), 5),
    }


def main() -> None:
    """Compare, print, and keep the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=MOST)
    parser.add_argument("--epsilon", type=float, default=0.05)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    here = machine()
    texts, vectors = text_vectors(arguments.texts)
    print(f"{here}\n{len(texts):,} texts, epsilon {arguments.epsilon}")
    print(
        f"{'method':<20} {'items':>7} {'seconds':>8} {'MiB':>6} {'rule':>7} {'removed':>8} {'recall':>8} {'precision':>9}"
    )
    rows, by_rule = [], exact(vectors, arguments.epsilon)
    for name in METHODS:
        row = compare(name, vectors, texts, arguments.epsilon, by_rule)
        rows.append(row)
        print(f"{name:<20} {row['items']:>7} {row['seconds']:>8} {row['memory_mib']:>6} {row['rule']:>7} ", end="")
        print(f"{row['removed']:>8} {row['recall']:>8} {row['precision']:>9}", flush=True)
    if arguments.json:
        content = {"machine": here, "epsilon": arguments.epsilon, "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
