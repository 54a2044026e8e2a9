from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from semdedup_assets.records import Embedded, Skipped, id_rows, id_shards, item_ids
from semdedup_assets.storage.tables import TableWriter, read_table, read_tables, write_table
from semdedup_assets.storage.vectors import (
    EmbeddingsWriter,
    assignment_batch,
    assignment_schema,
    clusters_of_rows,
    read_bucket,
    read_columns,
    read_ids,
    read_vectors,
    write_assignments,
    write_sample,
    write_skipped,
)

LARGE = np.array([0, 2**53 + 1, 2**53 + 3, 2**63 - 1, 2**64 - 1], dtype=np.uint64)


def test_ids_above_2_to_the_53_survive_a_table_with_nulls(tmp_path: Path) -> None:
    path = str(tmp_path / "table.parquet")
    mask = np.array([True, False, False, False, False])
    with Path(path).open("wb") as stream:
        write_table(stream, {"id": LARGE, "duplicate_of": np.ma.masked_array(LARGE, mask=mask)})
    read = read_table(path, ["duplicate_of", "id"])
    assert read["id"].dtype == np.uint64
    assert read["id"].tolist() == LARGE.tolist()
    assert read["duplicate_of"].tolist() == LARGE.tolist()
    assert pl.read_parquet(path)["duplicate_of"].to_list() == [None, *LARGE.tolist()[1:]]


def test_a_table_written_in_pieces_reads_as_one_and_piece_by_piece(tmp_path: Path) -> None:
    path = str(tmp_path / "table.parquet")
    with Path(path).open("wb") as stream, TableWriter(stream) as writer:
        for start in (0, 3):
            writer.write({"id": LARGE[start : start + 3], "similarity": np.float32([-np.inf, 0.5, 1])[: 5 - start]})
    assert read_table(path, ["id"])["id"].tolist() == LARGE.tolist()
    assert [part["similarity"].tolist() for part in read_tables(path, ["similarity"])] == [
        [-np.inf, 0.5, 1],
        [-np.inf, 0.5],
    ]


@pytest.mark.parametrize("shard", [0, 7, 2**31 - 1])
def test_an_id_tells_shard_and_row(shard: int) -> None:
    rows = np.array([0, 1, 2**31, 2**32 - 1], dtype=np.int64)
    ids = item_ids(shard, rows)
    assert ids.dtype == np.uint64
    assert id_rows(ids).tolist() == rows.tolist()
    assert id_shards(ids).tolist() == [shard] * 4
    assert ids.max() < 2**63  # so that they fit signed integers of other tools


def batch(rows: list[int], keys: list[str], seed: int) -> Embedded:
    vectors = np.random.default_rng(seed).normal(size=(len(rows), 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    columns = {"score": [float(row) if row % 2 else None for row in rows], "text": [f"é {key}\n" for key in keys]}
    return Embedded(np.array(rows, dtype=np.int64), keys, vectors, columns, [])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_embeddings_come_back_as_they_were_written(tmp_path: Path, dtype: str) -> None:
    path = str(tmp_path / "s000005.arrow")
    long_key = "https://example.org/" + "x" * 3000
    batches = [batch([0, 2], ["a", long_key], 0), batch([], [], 1), batch([3, 9, 10], ["c", "a", "d"], 2)]
    with Path(path).open("wb") as stream:
        writer = EmbeddingsWriter(stream, 5, dtype, {"score": "float", "text": "string"}, None)
        for one in batches:
            writer.write(one)
        writer.close()
    tables = list(read_vectors(path))
    expected = np.concatenate([one.vectors for one in batches if one.keys]).astype(dtype)
    assert np.array_equal(np.concatenate([table.vectors for table in tables]), expected)
    assert np.concatenate(list(read_ids(path))).tolist() == item_ids(5, np.array([0, 2, 3, 9, 10])).tolist()
    columns = pa.Table.from_batches(list(read_columns(path)))
    assert columns.column_names == ["id", "key", "score", "text"]
    assert columns["key"].to_pylist() == ["a", long_key, "c", "a", "d"]
    assert columns["score"].to_pylist() == [None, None, 3.0, 9.0, None]
    assert columns["text"].to_pylist()[0] == "é a\n"


def test_the_model_s_batches_leave_no_trace_in_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = (1 << 14) + 300
    vectors = rng.normal(size=(n, 2)).astype(np.float32)
    columns = {"text": [f"item {row}" for row in range(n)]}
    contents = []
    for size in (7, 4096, n):
        path = tmp_path / f"{size}.arrow"
        with path.open("wb") as stream:
            writer = EmbeddingsWriter(stream, 0, "float16", {"text": "string"}, None)
            for start in range(0, n, size):
                part = slice(start, start + size)
                rows = np.arange(n)[part]
                keys = [str(row) for row in rows]
                writer.write(Embedded(rows, keys, vectors[part], {"text": columns["text"][part]}, []))
            writer.close()
        contents.append(path.read_bytes())
    assert contents[0] == contents[1] == contents[2]
    tables = list(read_vectors(str(tmp_path / "7.arrow")))
    assert [len(table.ids) for table in tables] == [1 << 14, 300]
    assert np.array_equal(np.concatenate([table.vectors for table in tables]), vectors.astype(np.float16))
    assert pa.Table.from_batches(read_columns(str(tmp_path / "7.arrow")))["text"].to_pylist() == columns["text"]


def test_a_shard_without_an_item_gives_a_file_without_a_row(tmp_path: Path) -> None:
    path = str(tmp_path / "empty.arrow")
    with Path(path).open("wb") as stream:
        EmbeddingsWriter(stream, 0, "float16", {}, None).close()
    assert list(read_vectors(path)) == []
    assert list(read_ids(path)) == []


def test_skipped_items_are_a_parquet_with_reasons(tmp_path: Path) -> None:
    with (tmp_path / "skipped.parquet").open("wb") as stream:
        write_skipped(stream, [Skipped(2**31, "a", "zero vector")], shard=3)
    table = pl.read_parquet(tmp_path / "skipped.parquet")
    assert table.rows() == [((3 << 32) + 2**31, "a", "zero vector")]


def test_a_sample_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = str(tmp_path / "sample.arrow")
    vectors = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float16)
    with Path(path).open("wb") as stream:
        write_sample(stream, LARGE, vectors)
    (table,) = read_vectors(path)
    assert table.ids.tolist() == LARGE.tolist()
    assert np.array_equal(table.vectors, vectors)


def test_a_bucket_reads_its_own_clusters_and_no_others(tmp_path: Path) -> None:
    path = str(tmp_path / "assignments.arrow")
    rng = np.random.default_rng(0)
    cluster = np.sort(rng.integers(0, 7, 50))
    cluster = cluster[cluster != 3]  # an empty cluster in the middle of a bucket
    offsets = np.searchsorted(cluster, np.arange(8)).astype(np.int64)
    ids = rng.permutation(len(cluster)).astype(np.uint64) + np.uint64(2**60)
    vectors = rng.normal(size=(len(cluster), 4)).astype(np.float16)
    buckets = [range(0, 2), range(2, 5), range(5, 5), range(5, 7)]
    schema = assignment_schema(4, "float16", keep_column=True)

    def rows(start: int, stop: int) -> pa.RecordBatch:
        part = slice(start, stop)
        similarity = np.linspace(0, 1, len(cluster))[part]
        return assignment_batch(schema, ids[part], similarity, -similarity, vectors[part])

    batches = [rows(offsets[clusters.start], offsets[clusters.stop]) for clusters in buckets]
    with Path(path).open("wb") as stream:
        write_assignments(stream, batches, schema=schema, offsets=offsets)
    for index, clusters in enumerate(buckets):
        found = read_bucket(path, bucket=index, clusters=clusters)
        wanted = np.isin(cluster, list(clusters))
        assert found.table.ids.tolist() == ids[wanted].tolist()
        assert np.array_equal(found.table.vectors, vectors[wanted])
        assert (clusters_of_rows(found.offsets) + clusters.start).tolist() == cluster[wanted].tolist()
