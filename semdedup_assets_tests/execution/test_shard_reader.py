from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semdedup_assets.execution.shard_reader import ShardReader
from semdedup_assets.records import MOST_ROWS, TooManyRowsError, VectorBatch
from semdedup_assets.sources.shard_index import Shard
from semdedup_assets.storage.files import FileStat, file_stat
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.toy_source import vectors_settings


class Keys:
    """Keys of a batch of so many rows, none of which is in memory."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows


def batch(rows: int) -> VectorBatch:
    return VectorBatch(Keys(rows), np.empty((0, 4)))  # type: ignore[arg-type]


def stat_of(path: Path) -> FileStat:
    found = file_stat(str(path))
    assert found is not None
    return found


def reader_of(tmp_path: Path, files: list[Path], batches: list[VectorBatch]) -> ShardReader[VectorBatch]:
    context = StageRuns(vectors_settings(tmp_path)).context()

    def read(_: str) -> Iterator[VectorBatch]:
        yield from batches

    return ShardReader(context, Shard(7, tuple(map(stat_of, files))), read)


def test_the_last_row_that_an_id_can_number_is_read_and_the_next_refused(tmp_path: Path) -> None:
    files = [tmp_path / "a.npy", tmp_path / "b.npy"]
    for file in files:
        file.write_bytes(b"rows")
    assert sum(len(each.keys) for each in reader_of(tmp_path, files, [batch(MOST_ROWS // 2)])) == MOST_ROWS
    message = (
        r"shard 7 \(2 files, the first is .*/a\.npy\) has 4,294,967,297 rows or more; .*lower `shards\.files_per_shard`"
    )
    with pytest.raises(TooManyRowsError, match=message):
        list(reader_of(tmp_path, files, [batch(MOST_ROWS // 2), batch(1)]))
    with pytest.raises(TooManyRowsError, match=r"shard 7 \(1 files.*split the file"):
        list(reader_of(tmp_path, files[:1], [batch(MOST_ROWS), batch(1)]))


def test_files_that_state_too_many_rows_are_refused_before_any_is_read(tmp_path: Path) -> None:
    array = tmp_path / "holes.npy"
    header = {"descr": "<f2", "fortran_order": False, "shape": (MOST_ROWS - 4, 1)}
    with array.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        stream.truncate(stream.tell() + 2 * header["shape"][0])  # a file of holes
    table = tmp_path / "five.parquet"
    pq.write_table(pa.table({"vector": list(repeat([1.0], 5))}), table)

    def unread(_: str) -> Iterator[VectorBatch]:
        message = "it was read"
        raise AssertionError(message)
        yield

    context = StageRuns(vectors_settings(tmp_path)).context()
    reader = ShardReader(context, Shard(0, (stat_of(array), stat_of(table))), unread)
    with pytest.raises(TooManyRowsError, match=r"shard 0 \(2 files, .* has 4,294,967,297 rows or more"):
        next(iter(reader))
