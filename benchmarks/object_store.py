"""Requests and bytes of each stage on an object store, beside those that are necessary, and a projection.

    python benchmarks/object_store.py [--json FILE]

Pipelines of several sizes run on an S3-compatible server on loopback, which counts what it is asked. Requests are fitted to
a + b·shards + c·ranges + d·shards·ranges, and projected to 5,000 shards in 450 ranges. Bytes are held against those that
are necessary in a case with larger shards, where what comes with each file no longer counts. A last case has an answer wait
30 ms.
"""

import argparse
import json
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow.parquet as pq
from machine import machine

from semdedup_assets.assets.refresh import refresh
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.runner import run_partitions
from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets.stages.assignments import ASSIGNMENTS
from semdedup_assets.stages.duplicate_scores import SCORES
from semdedup_assets.stages.embeddings import VECTORS
from semdedup_assets.storage import collected_records
from semdedup_assets.storage.files import write_bytes
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets_tests.object_store import ObjectStore, Request, object_store
from semdedup_assets_tests.stage_runs import PLAIN, StageRuns

STAGES = StageGraph((*PLAIN.stages, GRAPH["figures"]))
SHARDS, RANGES, LATENCY_S = 5000, 450, 0.03
# Small cases read all ranges for the figures, large ones the four that are enough.
PAIRS, AT_ONCE = {"figures": 4 * SHARDS}, 64
MASKS = ("id", "kept", "kept_neighbour", "kept_similarity")
READS: dict[str, tuple[tuple[str, str, Sequence[str] | None], ...]] = {
    "training_sample": (("embeddings", VECTORS, None),),
    "centroids": (("training_sample", "", None),),
    "assignments": (("embeddings", VECTORS, None),),
    "duplicate_scores": (("assignments", ASSIGNMENTS, None),),
    "keep_masks": (("duplicate_scores", SCORES, ("id", "cluster", "similarity", "duplicate_of")),),
    "manifests": (("keep_masks", "", MASKS), ("items", "", None)),
    "figures": (("duplicate_scores", SCORES, ("cluster", "similarity")),),
}
"""What a stage cannot do without: files of other stages, and which columns of them; `""` stands for all files."""


@dataclass(frozen=True, slots=True)
class Case:
    """One pipeline: shards of `rows` vectors of `dimension` numbers, and a cluster for each range."""

    shards: int
    ranges: int
    rows: int = 40
    dimension: int = 16


CASES = [Case(shards, ranges) for shards in (10, 30) for ranges in (4, 12)]
LARGE = Case(shards=6, ranges=4, rows=8_800, dimension=512)
WAITING = Case(shards=60, ranges=8)


@dataclass(frozen=True, slots=True)
class Row:
    """What one stage asked of the store, and what it had to.

    Attributes:
        requests: of the results, by kind and kind of file.
        source_requests: of the source's files.
        necessary_requests: one for each file or part that is read, each file and each record that is written.
        read: bytes of results that were fetched.
        necessary_read: bytes that were needed of them.
        written: bytes.
        necessary_written: bytes of files and records.
        seconds: of the stage.
        busiest: requests that the server answered at once.
    """

    stage: str
    requests: dict[str, int]
    source_requests: int
    necessary_requests: int
    read: int
    necessary_read: int
    written: int
    necessary_written: int
    seconds: float
    busiest: int

    @property
    def total(self) -> int:
        """Requests of results."""
        return sum(self.requests.values())


def write_source(store: ObjectStore, case: Case) -> None:
    """Shards of float16 unit rows, some of them nearly alike."""
    for shard in range(case.shards):
        random = np.random.default_rng(shard)
        rows = random.standard_normal((case.rows, case.dimension), dtype=np.float32)
        rows[1::5] = rows[: len(rows[1::5]) * 5 : 5] + 0.1 * rows[1::5]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        with tempfile.TemporaryFile() as file:
            np.save(file, rows.astype(np.float16))
            file.seek(0)
            write_bytes(f"{store.url}/source/{shard:06d}.npy", file.read())


def pipeline(store: ObjectStore, case: Case) -> StageRuns:
    """Its settings."""
    settings = {
        "dataset": "requests",
        "store": f"{store.url}/store",
        "source": {"kind": "vectors", "path": f"{store.url}/source"},
        "encoder": {"kind": "precomputed"},
        "clustering": {"k": [case.ranges], "buckets": min(8, case.ranges), "iterations": 3},
        "epsilons": ["0.05"],
        "manifests": ["parquet"],
        "compute": {"device": "cpu"},
    }
    return StageRuns(settings, STAGES)


def measured(case: Case, latency: float) -> list[Row]:
    """A first refresh, stage by stage, and then a round of another one, which finds all up to date."""
    with object_store() as store:
        write_source(store, case)
        runs = pipeline(store, case)
        runs.observe()
        store.latency = latency
        context = runs.context()
        rows = [_stage_row(store, context, stage) for stage in STAGES.stages]
        with tempfile.TemporaryDirectory() as folder, dg.instance_for_test(temp_dir=folder) as instance:
            list(refresh(runs.pipeline, instance, graph=STAGES))
            collected_records._known.clear()  # As a process has it that begins.
            store.busiest, started = 0, time.perf_counter()
            with store.counted() as requests:
                list(refresh(runs.pipeline, instance, graph=STAGES))
            seconds = time.perf_counter() - started
    listed = len(STAGES.stages) + 1
    return [*rows, _row("a round, all up to date", requests, ((listed, 0), (0, 0)), (seconds, store.busiest))]


def _stage_row(store: ObjectStore, context: StageContext, stage: Any) -> Row:
    store.busiest, started = 0, time.perf_counter()
    with store.counted() as requests:
        wanted = context.index.stale(stage.name)
        list(run_partitions(context, stage, wanted))
    seconds = time.perf_counter() - started
    return _row(stage.name, requests, necessary(context, stage.name), (seconds, store.busiest))


def _row(
    stage: str,
    requests: Sequence[Request],
    least: tuple[tuple[int, int], tuple[int, int]],
    time_taken: tuple[float, int],
) -> Row:
    ours = [each for each in requests if not each.key.startswith("source/")]
    (reads, read), (writes, written) = least
    return Row(
        stage,
        dict(Counter(f"{each.kind} {each.file}".strip() for each in ours)),
        len(requests) - len(ours),
        reads + writes,
        sum(each.sent for each in ours if each.kind == "GET"),
        read,
        sum(each.received for each in ours if each.kind in ("PUT", "PART")),
        written,
        round(time_taken[0], 2),
        time_taken[1],
    )


def necessary(context: StageContext, stage: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Requests and bytes that a stage must read, and write: ((requests, bytes), (requests, bytes))."""
    records = context.index.records(stage).values()
    entries = [entry for record in records for entry in record.files.values()]
    written = sum(entry.size for entry in entries) + sum(len(record.to_json()) for record in records)
    reads, read = 0, 0
    for name, file, columns in READS.get(stage, ()):
        for found in context.index.records(name).values():
            parts, size = _needed(found, file, columns)
            reads, read = reads + (parts if stage == "duplicate_scores" else len(_files(found, file))), read + size
    return (reads, read), (len(entries) + len(records), written)


def _files(record: ResultRecord, name: str) -> list[str]:
    return [each for each in record.files if each == name or not name]


def _needed(record: ResultRecord, name: str, columns: Sequence[str] | None) -> tuple[int, int]:
    """Parts, and bytes of some columns, of files of a record."""
    import s3fs

    from semdedup_assets.storage.vectors import part_count

    parts, size = 0, 0
    for each in _files(record, name):
        file = record.file(each)
        parts += part_count(file) if file.entry.ranges else 1
        if columns is None:
            size += file.entry.size
            continue
        with s3fs.S3FileSystem().open(file.path, "rb", cache_type="all") as stream:
            metadata = pq.ParquetFile(stream).metadata
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        chunks = [group.column(index) for group in groups for index in range(metadata.num_columns)]
        size += metadata.serialized_size
        size += sum(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema in columns)
    return parts, size


def fitted(cases: Sequence[Case], counts: Iterable[int]) -> list[float]:
    """Requests = a + b·shards + c·ranges + d·shards·ranges, exactly through four cases."""
    terms = [[1, case.shards, case.ranges, case.shards * case.ranges] for case in cases]
    return [
        round(float(each), 4) + 0.0 for each in np.linalg.lstsq(np.array(terms, float), list(counts), rcond=None)[0]
    ]


def projected(stage: str, terms: Sequence[float]) -> int:
    """Requests at 5,000 shards and 450 ranges."""
    return round(float(np.dot(terms, [1, SHARDS, RANGES, PAIRS.get(stage, SHARDS * RANGES)])))


def hours(stage: str, terms: Sequence[float], at_once: int) -> float:
    """Hours of waiting at that size: parts of ranges so many at once, everything else one after the other."""
    pairs = terms[3] * PAIRS.get(stage, SHARDS * RANGES)
    return round(LATENCY_S * (projected(stage, terms) - pairs + pairs / at_once) / 3600, 2)


def summary(stage: Row, same: Sequence[Row], waiting: Row) -> dict[str, Any]:
    """Figures of one stage.

    Args:
        stage: of the case with larger shards.
        same: of the cases that requests are fitted to.
        waiting: of the case in which answers wait.
    """
    terms = fitted(CASES, [row.total for row in same])
    least = fitted(CASES, [row.necessary_requests for row in same])
    sizes = [f"{case.shards}x{case.ranges}" for case in CASES]
    return {
        "stage": stage.stage,
        "requests": dict(zip(sizes, [row.total for row in same], strict=True)),
        "kinds": same[-1].requests,
        "source_requests": same[-1].source_requests,
        "terms": terms,
        "projected": projected(stage.stage, terms),
        "necessary_projected": projected(stage.stage, least),
        "hours_one_by_one": hours(stage.stage, terms, 1),
        "hours_64_at_once": hours(stage.stage, terms, AT_ONCE),
        "read_ratio": round(stage.read / stage.necessary_read, 3) if stage.necessary_read else None,
        "written_ratio": round(stage.written / stage.necessary_written, 3) if stage.necessary_written else None,
        "waiting": {"requests": waiting.total, "seconds": waiting.seconds, "busiest": waiting.busiest},
        "large": asdict(stage),
    }


def main() -> None:
    """Measure, print, and keep the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    found = [measured(case, 0.0) for case in CASES]
    large, waiting = measured(LARGE, 0.0), measured(WAITING, LATENCY_S)
    rows = []
    for stage, waited, *same in zip(large, waiting, *found, strict=True):
        rows.append(summary(stage, same, waited))
        print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        cases = {"cases": [asdict(case) for case in CASES], "large": asdict(LARGE), "waiting": asdict(WAITING)}
        arguments.json.write_text(json.dumps({**cases, "machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
