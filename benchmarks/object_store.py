"""Requests and bytes of each stage on an object store, beside those that are necessary, and a projection.

    python benchmarks/object_store.py [--latency-ms 30] [--json FILE]

Pipelines of several sizes run on an S3-compatible server on loopback, which counts what it is asked. Requests are fitted to
a + b·shards + c·ranges + d·shards·ranges; bytes are held against those that are necessary in a case with shards of a real
size, where what comes with each file no longer counts. Both are projected to 5,000 shards of 88,000 × 512 in 450 ranges.
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
from semdedup_assets.storage.files import write_bytes
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets_tests.object_store import ObjectStore, Request, object_store
from semdedup_assets_tests.stage_runs import PLAIN, StageRuns

STAGES = StageGraph((*PLAIN.stages, GRAPH["figures"]))
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

SHARDS, RANGES, SHARD_ROWS, DIMENSION = 5000, 450, 88_000, 512
LATENCY_S, AT_ONCE, MIB = 0.03, 64, 1 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """One pipeline: shards of `rows` vectors of `dimension` numbers, and a cluster for each range."""

    shards: int
    ranges: int
    rows: int = 40
    dimension: int = 16


CASES = [Case(shards, ranges) for shards in (10, 30) for ranges in (4, 12)]
LARGE = Case(shards=6, ranges=45, rows=8_800, dimension=DIMENSION)


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


def projected(terms: Sequence[float]) -> int:
    """Requests at 5,000 shards and 450 ranges."""
    return round(float(np.dot(terms, [1, SHARDS, RANGES, SHARDS * RANGES])))


def main() -> None:
    """Measure, print, and keep the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="before each answer of the largest case")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    found = [measured(case, 0.0) for case in CASES]
    large = measured(LARGE, arguments.latency_ms / 1000)
    rows = []
    for stage, *same in zip(large, *found, strict=True):
        terms = fitted(CASES, [row.total for row in same])
        least = fitted(CASES, [row.necessary_requests for row in same])
        rows.append(
            {
                "stage": stage.stage,
                "requests": dict(
                    zip([f"{case.shards}x{case.ranges}" for case in CASES], [row.total for row in same], strict=True)
                ),
                "kinds": same[-1].requests,
                "source_requests": same[-1].source_requests,
                "terms": terms,
                "projected": projected(terms),
                "necessary_projected": projected(least),
                "read_ratio": round(stage.read / stage.necessary_read, 3) if stage.necessary_read else None,
                "written_ratio": round(stage.written / stage.necessary_written, 3) if stage.necessary_written else None,
                "large": asdict(stage),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        document = {
            "cases": [asdict(case) for case in CASES],
            "large": asdict(LARGE),
            "machine": machine(),
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
