"""Tables and vectors come back as they were written."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from semdedup_assets.records import Embedded, Skipped, item_ids
from semdedup_assets.storage.results import ResultRecord, ResultWriter, StoredFile, commit
from semdedup_assets.storage.tables import TableWriter, read_arrow, read_table, read_tables, write_table
from semdedup_assets.storage.vectors import (
    EmbeddingsWriter,
    PartWriter,
    assignment_batch,
    assignment_schema,
    clusters_of_rows,
    part_count,
    read_ids,
    read_part,
    read_vectors,
    sample_batch,
    sample_schema,
    write_skipped,
)

LARGE = np.array([0, 2**53 + 1, 2**53 + 3, 2**63 - 1, 2**64 - 1], dtype=np.uint64)


def committed(writer: ResultWriter, name: str) -> StoredFile:
    return commit(writer, code_version="c", inputs={}).file(name)


def test_ids_above_2_to_the_53_survive_a_table_with_nulls(tmp_path: Path) -> None:
    writer = ResultWriter(f"{tmp_path}/table")
    mask = np.array([True, False, False, False, False])
    with writer.open("t.parquet") as stream:
        write_table(stream, {"id": LARGE, "duplicate_of": np.ma.masked_array(LARGE, mask=mask)})
    file = committed(writer, "t.parquet")
    read = read_table(file, ["duplicate_of", "id"])
    assert list(read) == ["duplicate_of", "id"]
    assert read["id"].dtype == read["duplicate_of"].dtype == np.uint64
    assert read["id"].tolist() == LARGE.tolist()
    assert read["duplicate_of"].tolist() == [0, *LARGE.tolist()[1:]]
    assert pl.read_parquet(file.path)["duplicate_of"].to_list() == [None, *LARGE.tolist()[1:]]


def test_a_table_is_read_as_one_or_row_group_by_row_group(tmp_path: Path) -> None:
    writer = ResultWriter(f"{tmp_path}/table")
    with writer.open("t.parquet") as stream, TableWriter(stream) as table:
        for start in (0, 3):
            table.write({"id": LARGE[start : start + 3], "similarity": np.float32([-np.inf, 0.5, 1])[: 5 - start]})
    file = committed(writer, "t.parquet")
    assert read_table(file, ["id"])["id"].tolist() == LARGE.tolist()
    similarities = [part["similarity"].tolist() for part in read_tables(file, ["similarity"])]
    assert similarities == [[-np.inf, 0.5, 1], [-np.inf, 0.5]]
    assert [table.column_names for table in read_arrow(file)] == [["id", "similarity"]] * 2
    assert [table.num_rows for table in read_arrow(file, ["similarity"])] == [3, 2]


def test_a_table_without_rows_keeps_its_columns(tmp_path: Path) -> None:
    writer = ResultWriter(f"{tmp_path}/table")
    with writer.open("t.parquet") as stream:
        write_table(stream, {"id": LARGE[:0], "kept": np.zeros(0, bool)})
    file = committed(writer, "t.parquet")
    assert {name: len(values) for name, values in read_table(file, ["id", "kept"]).items()} == {"id": 0, "kept": 0}
    assert pl.read_parquet(file.path).columns == ["id", "kept"]


def batch(rows: list[int], seed: int) -> Embedded:
    vectors = np.random.default_rng(seed).normal(size=(len(rows), 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Embedded(np.array(rows, dtype=np.int64), [str(row) for row in rows], vectors, [])


def embedded(location: str, batches: list[Embedded], *, shard: int = 5, dtype: str = "float16") -> ResultRecord:
    result = ResultWriter(location)
    writer: EmbeddingsWriter | None = None
    with result.open("v.arrow", ranges=lambda: writer.ranges if writer else "") as stream:
        writer = EmbeddingsWriter(stream, shard, dtype)  # type: ignore[arg-type]
        for one in batches:
            writer.write(one)
        writer.close()
    result.details = {"audit": [writer.audit.not_finite, writer.audit.norm_error, writer.audit.repeated_rows]}
    return commit(result, code_version="c", inputs={})


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_embeddings_come_back_as_they_were_written(tmp_path: Path, dtype: str) -> None:
    batches = [batch([0, 2], 0), batch([], 1), batch([3, 9, 10], 2)]
    file = embedded(f"{tmp_path}/s5", batches, dtype=dtype).file("v.arrow")
    tables = list(read_vectors(file))
    expected = np.concatenate([one.vectors for one in batches if one.keys]).astype(dtype)
    assert np.array_equal(np.concatenate([table.vectors for table in tables]), expected)
    assert tables[0].vectors.dtype == dtype
    ids = item_ids(5, np.array([0, 2, 3, 9, 10])).tolist()
    assert np.concatenate([table.ids for table in tables]).tolist() == ids
    assert np.concatenate(list(read_ids(file))).tolist() == ids
    with pa.memory_map(file.path) as source:  # for anybody's tools
        assert pa.ipc.open_file(source).read_all()["id"].to_pylist() == ids


def test_the_model_s_batches_leave_no_trace_in_the_file(tmp_path: Path) -> None:
    n = (1 << 14) + 300
    vectors = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
    records = []
    for size in (7, 4096, 1 << 14, n):
        parts = [slice(start, start + size) for start in range(0, n, size)]
        batches = [Embedded(np.arange(n)[part], [""] * len(vectors[part]), vectors[part], []) for part in parts]
        records.append(embedded(f"{tmp_path}/{size}", batches))
    assert len({record.version for record in records}) == 1
    assert len({record.files["v.arrow"].ranges for record in records}) == 1
    tables = list(read_vectors(records[0].file("v.arrow")))
    assert [len(table.ids) for table in tables] == [1 << 14, 300]
    assert np.array_equal(np.concatenate([table.vectors for table in tables]), vectors.astype(np.float16))


def test_the_audit_sees_what_is_stored(tmp_path: Path) -> None:
    whole = batch(list(range(4)), 0)
    whole.vectors[1] = np.nan
    whole.vectors[2] *= 1.5
    whole.rows[3] = 2
    not_finite, norm_error, repeated = embedded(f"{tmp_path}/s", [whole]).details["audit"]
    assert (not_finite, repeated) == (1, 1)
    assert norm_error == pytest.approx(0.5, abs=2e-3)


def test_a_shard_without_an_item_gives_a_file_without_a_row(tmp_path: Path) -> None:
    file = embedded(f"{tmp_path}/s", []).file("v.arrow")
    assert part_count(file) == 0
    assert list(read_vectors(file)) == []
    assert list(read_ids(file)) == []


def test_skipped_items_are_a_parquet_with_reasons(tmp_path: Path) -> None:
    with (tmp_path / "skipped.parquet").open("wb") as stream:
        write_skipped(stream, [Skipped(2**31, "a", "zero vector")], shard=3)
    assert pl.read_parquet(tmp_path / "skipped.parquet").rows() == [((3 << 32) + 2**31, "a", "zero vector")]


def test_a_sample_comes_back_as_it_was_written(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float16)
    result, ranges = ResultWriter(f"{tmp_path}/sample"), ""
    with result.open("s.arrow", ranges=lambda: ranges) as stream:
        writer = PartWriter(stream, schema := sample_schema(4, "float16"))
        writer.write(sample_batch(schema, LARGE, vectors))
        ranges = writer.close()
    (table,) = read_vectors(committed(result, "s.arrow"))
    assert table.ids.tolist() == LARGE.tolist()
    assert np.array_equal(table.vectors, vectors)


def test_a_range_reads_its_own_clusters_and_no_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cluster = np.sort(rng.integers(0, 7, 50)).astype(np.int32)
    cluster = cluster[cluster != 3]  # an empty cluster in the middle of a range
    ids = rng.permutation(len(cluster)).astype(np.uint64) + np.uint64(2**60)
    vectors = rng.normal(size=(len(cluster), 4)).astype(np.float16)
    similarity = np.linspace(0, 1, len(cluster))
    ranges = [range(2), range(2, 5), range(5, 5), range(5, 7)]
    result, noted = ResultWriter(f"{tmp_path}/assignments"), ""
    with result.open("a.arrow", ranges=lambda: noted) as stream:
        schema = assignment_schema(4, "float16")
        writer = PartWriter(stream, schema)
        for clusters in ranges:
            rows = np.isin(cluster, list(clusters))
            writer.write(assignment_batch(schema, ids[rows], cluster[rows], similarity[rows], vectors[rows]))
        noted = writer.close()
    file = committed(result, "a.arrow")
    assert part_count(file) == len(ranges)
    for index, clusters in enumerate(ranges):
        part, wanted = read_part(file, index), np.isin(cluster, list(clusters))
        assert part.ids.tolist() == ids[wanted].tolist()
        assert np.array_equal(part.vectors, vectors[wanted])
        assert part.column("cluster").tolist() == cluster[wanted].tolist()
        assert part.column("centroid_similarity").tolist() == similarity[wanted].tolist()


def test_clusters_of_rows_follow_from_offsets() -> None:
    assert clusters_of_rows(np.array([0, 2, 2, 5])).tolist() == [0, 0, 2, 2, 2]
