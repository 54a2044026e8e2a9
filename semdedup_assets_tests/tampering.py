"""Spoil what is stored so that it fits together, and a check must find the fault."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from semdedup_assets.storage.files import write_bytes
from semdedup_assets.storage.results import RECORD, HashingStream, ResultRecord
from semdedup_assets_tests.stage_runs import StageRuns


def change_record(record: ResultRecord, **changes: Any) -> ResultRecord:
    """Put a record with other fields in place of one, sound by its own checksum."""
    changed = replace(record, **changes)
    write_bytes(f"{record.location}{RECORD}", changed.to_json())
    return changed


def change_details(record: ResultRecord, **details: Any) -> ResultRecord:
    """Put a record with other counts in place of one."""
    return change_record(record, details={**record.details, **details})


def change_table(record: ResultRecord, name: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> ResultRecord:
    """Write a table of a result anew; its record names the new content, and has the version of the old."""
    path = Path(record.file(name).path)
    schema = pq.read_schema(path)
    changed = change(pl.read_parquet(path)).to_arrow().cast(schema)
    with path.open("wb") as file:
        stream = HashingStream(file)
        pq.write_table(changed, pa.PythonFile(stream, mode="w"))
    entry = replace(record.files[name], size=stream.size, checksum=stream.checksum)
    return change_record(record, files={**record.files, name: entry})


def lose_a_cluster(runs: StageRuns, k: str) -> None:
    """Score a whole cluster as duplicates of another cluster's item, so that masks keep nothing of it."""
    records = runs.context().index.records("duplicate_scores").items()
    mine = [record for partition, record in records if str(partition.clustering) == k]
    record = next(each for each in mine if each.details["clusters"] > 1)

    def of_another_cluster(table: pl.DataFrame) -> pl.DataFrame:
        lost = pl.col("cluster") == table["cluster"][-1]
        similarity = pl.when(lost).then(pl.lit(1.0, pl.Float32)).otherwise("similarity")
        neighbour = pl.when(lost).then(table["id"][0]).otherwise("duplicate_of")
        return table.with_columns(similarity=similarity, duplicate_of=neighbour)

    change_table(record, "scores.parquet", of_another_cluster)
