"""Results with one file of each kind, written as stages write them, and ways to spoil them."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from semdedup_assets.storage.results import ResultRecord, ResultWriter, StoredFile, attempting, commit
from semdedup_assets.storage.tables import TableWriter, read_table
from semdedup_assets.storage.vectors import PartWriter, read_ids, read_vectors, sample_batch, sample_schema

ROWS = 40


def nothing() -> None:
    return


def write_result(
    location: str,
    contents: Mapping[str, bytes],
    *,
    before_commit: Callable[[], object] = nothing,
    **details: Any,
) -> ResultRecord:
    """Write a result whose files hold some bytes."""
    with attempting(ResultWriter(location)) as writer:
        for name, content in contents.items():
            with writer.open(name) as stream:
                stream.write(content)
        writer.details = dict(details)
        before_commit()
        return commit(writer, code_version="c", inputs={"input": "1"})


def contents_of(record: ResultRecord) -> dict[str, bytes]:
    """What the files of a result hold, once each is seen to be what was written."""
    return {name: record.file(name).content() for name in record.files}


def vectors_of(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and vectors of a vector file."""
    rng = np.random.default_rng(seed)
    return rng.permutation(ROWS).astype(np.uint64) + np.uint64(2**60), rng.normal(size=(ROWS, 8)).astype(np.float16)


def write_kinds(location: str, *, parts: int = 3) -> ResultRecord:
    """Write a result with a file of each kind: vectors in parts, a table in row groups, an array."""
    ids, vectors = vectors_of(0)
    ranges = ""
    with attempting(ResultWriter(location)) as writer:
        with writer.open("vectors.arrow", ranges=lambda: ranges) as stream:
            schema = sample_schema(8, "float16")
            part_writer = PartWriter(stream, schema)
            for rows in np.array_split(np.arange(ROWS), parts):
                part_writer.write(sample_batch(schema, ids[rows], vectors[rows]))
            ranges = part_writer.close()
        with writer.open("table.parquet") as stream, TableWriter(stream) as table:
            for rows in np.array_split(np.arange(ROWS), parts):
                table.write({"id": ids[rows], "number": vectors[rows, 0].astype(np.float32)})
        with writer.open("array.npy") as stream:
            content = io.BytesIO()
            np.save(content, vectors)
            stream.write(content.getvalue())
        return commit(writer, code_version="c", inputs={})


def read_vector_file(file: StoredFile) -> list[list[float]]:
    tables = list(read_vectors(file))
    return [[float(i), *v] for t in tables for i, v in zip(t.ids.tolist(), t.vectors.tolist(), strict=True)]


def read_id_column(file: StoredFile) -> list[int]:
    return np.concatenate(list(read_ids(file))).tolist()


def read_table_file(file: StoredFile) -> list[list[float]]:
    return [column.tolist() for column in read_table(file, ["id", "number"]).values()]


def read_array(file: StoredFile) -> list[list[float]]:
    return np.load(io.BytesIO(file.content())).tolist()


READERS: dict[str, tuple[str, Callable[[StoredFile], Any]]] = {
    "vectors": ("vectors.arrow", read_vector_file),
    "ids of vectors": ("vectors.arrow", read_id_column),
    "table": ("table.parquet", read_table_file),
    "array": ("array.npy", read_array),
}
"""How each kind of file is read."""


def flip(path: str | Path, offset: int, *, bits: int = 0xFF) -> None:
    """Change one byte of a file."""
    content = bytearray(Path(path).read_bytes())
    content[offset] ^= bits
    Path(path).write_bytes(content)


def with_own_checksum(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A record that is whole by its checksum, and yet no record of ours."""
    import xxhash

    record = json.loads(content)["record"]
    change(record)
    body = json.dumps(record, separators=(",", ":"))
    checksum = xxhash.xxh3_128_hexdigest(body.encode())
    return f'{{"checksum":"{checksum}","record":{body}}}\n'.encode()
