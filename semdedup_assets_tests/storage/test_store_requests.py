"""What reading and writing results asks of an object store: as few requests and bytes as they need."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from semdedup_assets.storage import remote_parts, vectors
from semdedup_assets.storage.files import read_bytes, remove, write_bytes
from semdedup_assets.storage.results import (
    DamagedResultError,
    ResultRecord,
    ResultWriter,
    StoredFile,
    attempting,
    commit,
    read_record,
)
from semdedup_assets.storage.tables import TableWriter, read_arrow, read_rows, read_table
from semdedup_assets.storage.vectors import PartWriter, read_ids, read_parts, read_vectors, sample_batch, sample_schema
from semdedup_assets_tests.object_store import ObjectStore, Request
from semdedup_assets_tests.stage_runs import small_pipeline
from semdedup_assets_tests.storage.written import contents_of, write_result

ROWS, DIMENSION, PARTS = 600, 64, 6


def write_vectors(location: str, *, seed: int, dimension: int = DIMENSION) -> ResultRecord:
    random = np.random.default_rng(seed)
    ids, rows = random.permutation(ROWS).astype(np.uint64), random.normal(size=(ROWS, dimension)).astype(np.float16)
    ranges = ""
    with attempting(ResultWriter(location)) as writer:
        with writer.open("vectors.arrow", ranges=lambda: ranges) as stream:
            part_writer = PartWriter(stream, schema := sample_schema(dimension, "float16"))
            for part in np.array_split(np.arange(ROWS), PARTS):
                part_writer.write(sample_batch(schema, ids[part], rows[part]))
            ranges = part_writer.close()
        return commit(writer, code_version="c", inputs={})


def vector_files(folder: str, count: int) -> list[StoredFile]:
    return [write_vectors(f"{folder}/{seed}", seed=seed).file("vectors.arrow") for seed in range(count)]


def kinds(requests: list[Request]) -> dict[str, int]:
    return dict(Counter(each.kind for each in requests))


def test_a_part_of_many_files_is_one_ranged_read_each_and_many_at_once(
    served_store: ObjectStore, tmp_path: Path
) -> None:
    there, here = vector_files(f"{served_store.url}/many", 30), vector_files(str(tmp_path), 30)
    served_store.busiest, served_store.latency = 0, 0.5
    with served_store.counted() as requests:
        found = read_parts(there, 2)
    served_store.latency = 0.0
    assert kinds(requests) == {"GET": 30}
    assert sum(each.sent for each in requests) < 1.2 * sum(table.columns.nbytes for table in found)
    assert 10 < served_store.busiest <= 64
    for table, local in zip(found, read_parts(here, 2), strict=True):
        assert table.columns.equals(local.columns)


def test_a_damaged_part_among_many_is_named_and_its_record_set_aside(bucket: str) -> None:
    files = vector_files(f"{bucket}/damaged", 5)
    content = bytearray(read_bytes(files[3].path))
    content[len(content) // 2] ^= 1
    write_bytes(files[3].path, bytes(content))
    assert len(read_parts(files, 0)) == 5  # In another part.
    with pytest.raises(DamagedResultError, match=f"{files[3].path} holds other bytes"):
        read_parts(files, PARTS // 2)
    assert [read_record(file.location) is None for file in files] == [False, False, False, True, False]


def test_a_file_that_is_lost_or_cut_among_many_is_named(bucket: str) -> None:
    files = vector_files(f"{bucket}/lost", 4)
    remove(files[2].path)
    with pytest.raises(DamagedResultError, match=f"{files[2].path} is missing"):
        read_parts(files, 1)
    write_bytes(files[2].path, b"short")
    with pytest.raises(DamagedResultError, match=f"{files[2].path} has 5 bytes"):
        read_parts(files, 1)


@pytest.mark.parametrize("window", [1, 30_000, 1 << 30])
def test_a_whole_vector_file_is_read_in_windows(
    served_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    there = write_vectors(f"{served_store.url}/windows-{window}/a", seed=1).file("vectors.arrow")
    here = write_vectors(f"{tmp_path}/a", seed=1).file("vectors.arrow")
    # A window smaller than a part: each part is put together of pieces.
    monkeypatch.setattr(remote_parts, "WINDOW", window)
    monkeypatch.setattr(vectors, "WINDOW", max(window, 1000))
    with served_store.counted() as requests:
        found = list(read_vectors(there))
    parts = {1: PARTS * -(-(there.entry.size // PARTS) // 1000), 30_000: PARTS / 2, 1 << 30: 1}[window]
    assert len(requests) == pytest.approx(parts, abs=PARTS if window == 1 else 0)
    assert sum(each.sent for each in requests) <= there.entry.size
    assert all(a.columns.equals(b.columns) for a, b in zip(found, read_vectors(here), strict=True))


def test_ids_are_read_without_vectors(served_store: ObjectStore) -> None:
    file = write_vectors(f"{served_store.url}/ids/a", seed=1, dimension=1024).file("vectors.arrow")
    tables = list(read_vectors(file))
    with served_store.counted() as requests:
        found = list(read_ids(file))
    assert all(np.array_equal(ids, table.ids) for ids, table in zip(found, tables, strict=True))
    assert kinds(requests) == {"GET": PARTS + 1}  # And the index.
    assert sum(each.sent for each in requests) < file.entry.size / 20


def write_numbers(location: str, rows: int) -> StoredFile:
    random = np.random.default_rng(0)
    with attempting(ResultWriter(location)) as writer:
        with writer.open("table.parquet") as stream, TableWriter(stream) as table:
            for _ in range(4):
                table.write({name: random.integers(0, 1 << 62, size=rows, dtype=np.uint64) for name in "abcde"})
        return commit(writer, code_version="c", inputs={}).file("table.parquet")


def stored_bytes(file: StoredFile, columns: list[str]) -> int:
    metadata = pq.ParquetFile(file.path).metadata
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(metadata.num_columns)]
    return sum(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema in columns)


def test_a_small_table_is_one_request(served_store: ObjectStore) -> None:
    file = write_numbers(f"{served_store.url}/small/table", 100)
    with served_store.counted() as requests:
        found = read_table(file, ["b", "d"])
    assert kinds(requests) == {"GET": 1}
    assert [len(column) for column in found.values()] == [400, 400]


def test_of_a_large_table_only_the_columns_that_are_needed_are_read(served_store: ObjectStore, tmp_path: Path) -> None:
    rows = 50_000
    there = write_numbers(f"{served_store.url}/large/table", rows)
    here = write_numbers(f"{tmp_path}/table", rows)
    for columns, ranges in ((["b"], 4), (["b", "c"], 4), (["a", "e"], 5)):
        with served_store.counted() as requests:
            found = read_table(there, columns)
        local = read_table(here, columns)
        assert all(np.array_equal(found[name], local[name]) for name in columns)
        # The index, and a range of each row group; the last column of one lies beside the first of the next.
        assert kinds(requests) == {"GET": 1 + ranges}
        assert sum(each.sent for each in requests) < 1.2 * stored_bytes(here, columns)
    with served_store.counted() as requests:
        assert sum(len(table) for table in read_arrow(there)) == 4 * rows
    assert kinds(requests) == {"GET": 1}


def test_of_rows_only_their_row_groups_are_read(served_store: ObjectStore, tmp_path: Path) -> None:
    rows = 50_000
    there, here = write_numbers(f"{served_store.url}/rows/table", rows), write_numbers(f"{tmp_path}/table", rows)
    wanted = np.array([3, 7, 2 * rows, 3 * rows - 1, 9 * rows])
    with served_store.counted() as requests:
        found = list(read_rows(there, wanted, ["d"]))
    assert [table.to_pydict() for table in found] == [table.to_pydict() for table in read_rows(here, wanted, ["d"])]
    assert [len(table) for table in found] == [2, 2]
    assert kinds(requests) == {"GET": 3}


def test_a_result_costs_one_request_for_each_file_and_its_record(served_store: ObjectStore) -> None:
    location, files = f"{served_store.url}/result/a", {"first": b"content", "second": b"more", "empty": b""}
    with served_store.counted() as requests:
        record = write_result(location, files)
    assert kinds(requests) == {"PUT": 4, "GET": 1}  # An earlier record is looked for.
    with served_store.counted() as requests:
        assert read_record(location) == record
    assert kinds(requests) == {"GET": 1}
    with served_store.counted() as requests:
        contents_of(record)
    assert kinds(requests) == {"GET": 3, "HEAD": 1}  # Of what is empty there is no range.
    with served_store.counted() as requests:
        write_result(location, {name: content + b"!" for name, content in files.items()})
    assert kinds(requests) == {"PUT": 4, "GET": 1, "DELETE": 1}  # The earlier files at once.


STAGE_FILES = {
    "assignments": ("vectors.arrow", "assignments.arrow", "centroids.npy", "clusters.parquet"),
    "duplicate_scores": ("assignments.arrow", "scores.parquet", "clusters.parquet"),
}


def test_stages_ask_for_little_more_than_they_need(served_store: ObjectStore, tmp_path: Path) -> None:
    shards, ranges = 4, 5
    here = small_pipeline(tmp_path, shards=shards, clustering={"k": [ranges]})
    for path in sorted((tmp_path / "source").iterdir()):
        write_bytes(f"{served_store.url}/source/{path.name}", path.read_bytes())
    source = {"kind": "vectors", "path": f"{served_store.url}/source"}
    there = here.changed(store=f"{served_store.url}/store", source=source)
    there.run(until="centroids")
    for stage, least in (("assignments", 2 * shards), ("duplicate_scores", shards * ranges + ranges)):
        with served_store.counted() as requests:
            there.run(until=stage)
        ours = [each for each in requests if each.file in STAGE_FILES[stage]]
        assert least <= len(ours) <= least + 2  # Centroids, and where ranges begin, once.
        assert {each.kind for each in ours} == {"GET", "PUT"}
