"""How time and memory grow with n and k, from vector files to manifests, through the assets.

    python benchmarks/scale.py [--largest 1000000] [--json FILE] [--plot FILE]
    python benchmarks/scale.py --from-disk 10000000 [--json FILE]

Synthetic vectors, 512 numbers in float16, a fifth of them near copies, and the texts' real ones lie in shards; each case
is refreshed in a process of its own, on a Dagster instance of its own. Seconds are those of each asset with what Dagster
adds. Memory is what is resident beyond a first refresh of 2,000 items in the same process, which has loaded all
libraries; *own* leaves out pages of mapped files, which the system takes back when it needs them. Vectors that are read
are counted as they are taken from the files, whether from disk or the system's cache. The growth is fitted as a power.
About six minutes on two cores. `--from-disk` takes three times the vectors' bytes on disk (15 GB for ten million).
"""

import argparse
import json
import logging
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dagster as dg
import numpy as np
from machine import machine
from text_vectors import MOST, text_vectors

from semdedup_assets.assets.refresh import refresh
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets.storage import vectors as vector_files

SHARD_ROWS, EPSILON, WARM_UP = 62_500, "0.05", 2_000
MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """What is refreshed."""

    name: str
    n: int
    d: int
    k: int
    cold: bool = False
    """Whether no file is in the system's cache when an asset begins."""


@dataclass
class Figures:
    """What a case took."""

    seconds: dict[str, float] = field(default_factory=dict)
    read_mib: dict[str, float] = field(default_factory=dict)
    stored_mib: float = 0.0
    peak_mib: float = 0.0
    own_peak_mib: float = 0.0
    removed: int = 0


def cases(largest: int) -> list[Case]:
    """Four sizes at one k, then other k at half the largest size, then real vectors."""
    by_n = [Case("synthetic", largest // share, 512, 1000) for share in (8, 4, 2, 1)]
    by_k = [Case("synthetic", largest // 2, 512, k) for k in (250, 4000)]
    return [*by_n, *by_k, Case("texts", MOST, 384, 1000)]


def write_source(folder: Path, case: Case) -> None:
    """Shards of float16 rows: clusters that overlap, where every fifth row is nearly the one before it."""
    folder.mkdir(parents=True)
    if case.name == "texts":
        _, vectors = text_vectors(case.n)
        for index, start in enumerate(range(0, case.n, SHARD_ROWS)):
            np.save(folder / f"{index:06d}.npy", vectors[start : start + SHARD_ROWS].astype(np.float16))
        return
    centres = np.random.default_rng(0).standard_normal((2000, case.d), dtype=np.float32)
    for index, start in enumerate(range(0, case.n, SHARD_ROWS)):
        random = np.random.default_rng(index + 1)
        rows = random.standard_normal((min(SHARD_ROWS, case.n - start), case.d), dtype=np.float32)
        rows += centres[random.integers(len(centres), size=len(rows))]
        copies = np.arange(1, len(rows), 5)
        rows[copies] = rows[copies - 1] + 0.1 * rows[copies]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        np.save(folder / f"{index:06d}.npy", rows.astype(np.float16))


class Watch:
    """The greatest resident memory, looked at every 20 ms."""

    def __init__(self) -> None:
        self.all = self.own = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            resident, own = memory()
            self.all, self.own = max(self.all, resident), max(self.own, own)


def memory() -> tuple[float, float]:
    """MiB that are resident, and those of them that are no file's."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024, int(lines["RssAnon"].split()[0]) / 1024


@contextmanager
def counted_reads() -> Iterator[list[int]]:
    """Bytes of each batch of vectors that is taken from a file of embeddings, assignments or the sample."""
    taken: list[int] = []
    original = vector_files._batch

    def counting(content: Any, schema: Any) -> Any:
        batch = original(content, schema)
        taken.append(batch.column("vector").nbytes)
        return batch

    with patch.object(vector_files, "_batch", counting):
        yield taken


def refreshed(folder: Path, case: Case, *, iterations: int) -> Figures:
    """Everything through the manifests, an asset's partitions as one run."""
    write_source(folder / "source", case)
    pipeline = Pipeline.model_validate(
        {
            "dataset": "scale",
            "store": str(folder / "store"),
            "source": {"kind": "vectors", "path": str(folder / "source")},
            "encoder": {"kind": "precomputed"},
            "clustering": {"k": [case.k], "iterations": iterations},
            "epsilons": [EPSILON],
            "manifests": ["keep_lists"],
            "compute": {"device": "cpu"},
        }
    )
    figures = Figures()
    (folder / "dagster").mkdir()
    if case.cold:
        evict(folder)
    with dg.instance_for_test(temp_dir=str(folder / "dagster")) as instance, Watch() as watch, counted_reads() as taken:
        started, before = time.perf_counter(), 0
        for stage in refresh(pipeline, instance):
            figures.seconds[stage.asset] = round(time.perf_counter() - started, 2)
            figures.read_mib[stage.asset] = round((sum(taken) - before) / MIB, 1)
            if stage.asset == "manifests":
                break
            if case.cold:
                evict(folder)
            started, before = time.perf_counter(), sum(taken)
        masks = dg.AssetKey(["scale", "precomputed", "keep_masks"])
        (made,) = instance.fetch_materializations(masks, limit=1).records
        removed = made.asset_materialization.metadata["removed"].value if made.asset_materialization else 0
    figures.removed = int(removed) if isinstance(removed, int) else 0
    figures.stored_mib = round(case.n * case.d * 2 / MIB, 1)
    figures.peak_mib, figures.own_peak_mib = watch.all, watch.own
    return figures


def evict(folder: Path) -> None:
    """Have the system forget what it holds of these files, so that they are read from disk."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _child(folder: str, case: Case, iterations: int, answers: Any) -> None:
    logging.disable(logging.INFO)
    refreshed(Path(folder) / "warm", Case("synthetic", WARM_UP, case.d, 10), iterations=2)
    resident, own = memory()
    figures = refreshed(Path(folder) / "case", case, iterations=iterations)
    figures.peak_mib = round(figures.peak_mib - resident, 1)
    figures.own_peak_mib = round(figures.own_peak_mib - own, 1)
    answers.put(asdict(figures))


def measured(case: Case, iterations: int) -> dict[str, Any]:
    """A case in a process of its own, so that its memory is its own."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_child, args=(folder, case, iterations, answers))
        process.start()
        process.join()
        if process.exitcode:
            message = f"{case}: the process ended with {process.exitcode}"
            raise RuntimeError(message)
        figures: dict[str, Any] = answers.get()
    return {**asdict(case), **figures, "total_s": round(sum(figures["seconds"].values()), 2)}


def growth(rows: Sequence[dict[str, Any]], by: str) -> dict[str, float]:
    """Exponents p of seconds ~ by^p, and of memory, by least squares on logarithms."""
    sizes = np.log([row[by] for row in rows])
    names = [stage.name for stage in GRAPH.stages]
    stages = [name for name in names if all(row["seconds"].get(name, 0) > 0 for row in rows)]
    series = {name: [row["seconds"][name] for row in rows] for name in stages}
    series |= {"total": [row["total_s"] for row in rows], "own memory": [max(row["own_peak_mib"], 1) for row in rows]}
    return {name: round(float(np.polyfit(sizes, np.log(values), 1)[0]), 2) for name, values in series.items()}


def plot(rows: Sequence[dict[str, Any]], target: Path) -> None:
    """Seconds by asset above, own memory below; against n on the left, against k on the right."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", height_ratios=(3, 1))
    for column, (by, chosen) in enumerate(series_of(rows).items()):
        sizes, (times, taken) = [row[by] for row in chosen], panels[:, column]
        for name in ("embeddings", "centroids", "assignments", "duplicate_scores", "keep_masks", "manifests"):
            times.loglog(sizes, [row["seconds"][name] for row in chosen], marker="o", label=name)
        times.loglog(sizes, [row["total_s"] for row in chosen], "k--", label="total")
        taken.plot(sizes, [row["own_peak_mib"] for row in chosen], color="tab:gray", marker="s")
        fixed = "k" if by == "n" else "n"
        times.set_title(f"{fixed} = {chosen[0][fixed]:,}", fontsize=10)
        taken.set_xticks(sizes)
        taken.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
        taken.xaxis.set_minor_locator(NullLocator())
        taken.set_xlabel(by)
        taken.set_ylim(0, 1.15 * max(row["own_peak_mib"] for row in chosen))
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].set_ylabel("own memory, MiB")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    figure.savefig(target, dpi=110)


def series_of(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The synthetic cases that differ in n alone, and those that differ in k alone."""
    synthetic = [row for row in rows if row["name"] == "synthetic"]
    half = sorted({row["n"] for row in synthetic})[-2]
    by_k = sorted((row for row in synthetic if row["n"] == half), key=lambda row: row["k"])
    return {"n": [row for row in synthetic if row["k"] == 1000], "k": by_k}


def main() -> None:
    """Measure, print, and keep the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=1_000_000)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--from-disk", type=int, metavar="N", help="instead: N x 256, k = 2,000, no file cached")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    conditions = {"iterations": arguments.iterations, "epsilon": EPSILON, "shard_rows": SHARD_ROWS, "cores": os.cpu_count(), "machine": machine()}  # fmt: skip
    print(conditions)
    rows = []
    disk = arguments.from_disk
    for case in [Case("synthetic", disk, 256, 2000, cold=True)] if disk else cases(arguments.largest):
        rows.append(measured(case, arguments.iterations))
        print(json.dumps(rows[-1]), flush=True)
    fitted = {} if disk else {by: growth(chosen, by) for by, chosen in series_of(rows).items()}
    print(fitted)
    if arguments.plot and not disk:
        plot(rows, arguments.plot)
    if arguments.json:
        arguments.json.write_text(json.dumps({**conditions, "rows": rows, "exponents": fitted}, indent=1) + "\n")


if __name__ == "__main__":
    main()
