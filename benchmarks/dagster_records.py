"""What Dagster's record costs a partition: on SQLite and on Postgres, Dagster's own events one by one and in batches.

    python benchmarks/dagster_records.py [--partitions 50] [--json FILE]

A private Postgres server that waits for the disk, on loopback, and SQLite, both by this repository's `dagster.yaml`. A run
over a range records three events a partition: ours as it ends, Dagster's own, and ours once more, because the last counts.
`DAGSTER_EVENT_BATCH_SIZE` is about the second kind alone. Events outside any run are what
`refresh()` outside a run and the adoption of a store write. One to two minutes.
"""

import argparse
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_shared.utils.warnings import BetaWarning
from machine import machine

from semdedup_assets_tests.dagster_process import ROOT, configured_instance
from semdedup_assets_tests.postgres import PostgresServer, running_postgres

BATCH = "DAGSTER_EVENT_BATCH_SIZE"
METADATA = {
    "items": 88_000,
    "skipped": 3,
    "seconds": 12.5,
    "dagster/uri": "s3://bucket/laion/vit-b-16/embeddings/s000000",
}
TAGS = {
    "dagster/code_version": "0123456789abcdef",
    "dagster/data_version": "0123456789abcdef",
    "dagster/data_version_is_user_provided": "true",
    "dagster/input_data_version/laion/shards": "0123456789abcdef",
    "dagster/input_event_pointer/laion/shards": "1234567",
}


@contextmanager
def opened(name: str, server: PostgresServer) -> Iterator[dg.DagsterInstance]:
    """A new instance on SQLite or Postgres."""
    text = (ROOT / "dagster.yaml").read_text()
    if name == "Postgres":
        os.environ.update(server.new_database())
        text = server.dagster_yaml(text)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "dagster.yaml").write_text(text)
        with configured_instance(Path(folder)) as instance:
            yield instance


def materialization(partition: str) -> dg.AssetMaterialization:
    """An event as large as ours."""
    return dg.AssetMaterialization("shards_of_ours", partition=partition, metadata=METADATA, tags=TAGS)


def seconds_of_run(instance: dg.DagsterInstance, partitions: int, *, ours: bool) -> float:
    """Seconds of a step over all partitions, which logs our events first, or leaves it to Dagster's own."""
    keys = [f"s{index:06d}" for index in range(partitions)]
    took = {}

    @dg.asset(
        name="shards_of_ours",
        partitions_def=dg.StaticPartitionsDefinition(keys),
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def shards(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        if ours:
            begun = time.perf_counter()
            for key in keys:
                context.log_event(materialization(key))
            took["ours"] = time.perf_counter() - begun
        took["begun"] = time.perf_counter()
        return dg.MaterializeResult()

    tags = {"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]}
    job = dg.Definitions(assets=[shards]).resolve_implicit_global_asset_job_def()
    job.execute_in_process(instance=instance, tags=tags)
    return took["ours"] if ours else time.perf_counter() - took["begun"]


def seconds_outside_runs(instance: dg.DagsterInstance, partitions: int) -> float:
    """Seconds of events that belong to no run."""
    begun = time.perf_counter()
    for index in range(partitions):
        instance.report_runless_asset_event(materialization(f"s{index:06d}"))
    return time.perf_counter() - begun


def measure(partitions: int) -> Iterator[dict[str, Any]]:
    """Milliseconds an event, of each kind on each database; the lesser of two turns."""
    with running_postgres(durable=True) as server:
        for name in ("SQLite", "Postgres"):
            with opened(name, server) as instance:
                kinds: dict[str, tuple[str, Callable[[], float]]] = {
                    "ours, in a run": ("0", lambda: seconds_of_run(instance, partitions, ours=True)),
                    "ours, in a run, batches of 1,000": (
                        "1000",
                        lambda: seconds_of_run(instance, partitions, ours=True),
                    ),
                    "ours, outside runs": ("0", lambda: seconds_outside_runs(instance, partitions)),
                    "Dagster's own": ("0", lambda: seconds_of_run(instance, partitions, ours=False)),
                    "Dagster's own, batches of 1,000": (
                        "1000",
                        lambda: seconds_of_run(instance, partitions, ours=False),
                    ),
                }
                for kind, (size, seconds) in kinds.items():
                    os.environ[BATCH] = size
                    least = min(seconds() for _ in range(2))
                    row = {"record": name, "event": kind, "ms_each": round(1000 * least / partitions, 2)}
                    print(row, flush=True)
                    yield row


def main() -> None:
    """Measure, print, and keep the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--partitions", type=int, default=50)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    target = arguments.json.resolve() if arguments.json else None
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore", BetaWarning)
    conditions = {"partitions": arguments.partitions, "cores": os.cpu_count(), "load_before": os.getloadavg()[0],
                  "dagster": dg.__version__, "machine": machine()}  # fmt: skip
    print(conditions)
    rows = list(measure(arguments.partitions))
    if target:
        target.write_text(json.dumps({**conditions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
