"""Both views of a file, `read` and `read_items`, have the same items in the same order, whatever is invalid or cut."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pydantic import TypeAdapter

from semdedup_assets.records import Item, VectorBatch
from semdedup_assets.sources import Folder, JsonLines, Parquet, Source, Vectors, WebDataset
from semdedup_assets_tests.sources.cut_files import until_cut

ANY: TypeAdapter[Source] = TypeAdapter(Source)
COLUMNS = {"score": "int"}
SCORES = [1, "x", None, 2.5, 3, True]


def keys_of_read(
    source: Folder | WebDataset | Parquet | JsonLines | Vectors, path: str
) -> tuple[list[str], str | None]:
    items, cut = until_cut(source.read(path))
    return [key for item in items for key in (item.keys if isinstance(item, VectorBatch) else [item.key])], cut


def lines(count: int) -> bytes:
    rows = [{"text": ["fine", "", 5][n % 3], "id": [n, None][n % 2], "score": SCORES[n % 6]} for n in range(count)]
    return b"\n".join(json.dumps(row).encode() if n % 7 else b"{not json" for n, row in enumerate(rows))


def tar(count: int) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for n in range(count):
            sidecar = json.dumps({"score": SCORES[n % 6]}).encode() if n % 4 else b"{"
            for suffix, data in {
                "jpg": bytes(700 * (n % 5)),
                "json": sidecar,
                "txt": b"\xff" if n % 3 else b"t",
            }.items():
                if (suffix, n % 6) != ("jpg", 5):
                    member = tarfile.TarInfo(f"{n:03}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def parquet(count: int) -> bytes:
    vectors = [[float(n), 1.0] if n % 5 else [1.0] * (n % 3) for n in range(count)]
    table = {
        "text": ["fine" if n % 4 else None for n in range(count)],
        "image": [b"image" if n % 4 else None for n in range(count)],
        "embedding": vectors,
        "id": [f"k{n}" if n % 3 else None for n in range(count)],
        "score": ["1" if n % 2 else None for n in range(count)],
    }
    content = io.BytesIO()
    pq.write_table(pa.table(table), content, row_group_size=7)
    return content.getvalue()


def npy(count: int) -> bytes:
    content = io.BytesIO()
    np.save(content, np.ones((count, 4), np.float32))
    return content.getvalue()


def npz(count: int) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, vectors=np.ones((count, 4), np.float32))
    return content.getvalue()


KINDS: dict[str, tuple[str, Callable[[int], bytes], dict[str, object]]] = {
    "folder": ("a.png", lambda count: bytes(count), {"kind": "folder", "columns": COLUMNS}),
    "webdataset": ("a.tar", tar, {"kind": "webdataset", "columns": COLUMNS}),
    "webdataset zst": ("a.tar.zst", lambda count: zstandard.compress(tar(count)), {"kind": "webdataset"}),
    "webdataset xz": ("a.tar.xz", lambda count: lzma.compress(tar(count)), {"kind": "webdataset"}),
    "webdataset bz2": ("a.tar.bz2", lambda count: bz2.compress(tar(count)), {"kind": "webdataset"}),
    "webdataset gz": ("a.tar.gz", lambda count: gzip.compress(tar(count)), {"kind": "webdataset"}),
    "jsonl": ("a.jsonl", lines, {"kind": "jsonl", "key": "id", "columns": COLUMNS}),
    "jsonl gz": ("a.jsonl.gz", lambda count: gzip.compress(lines(count)), {"kind": "jsonl", "columns": COLUMNS}),
    "parquet texts": ("a.parquet", parquet, {"kind": "parquet", "text": "text", "key": "id", "columns": COLUMNS}),
    "parquet images": ("a.parquet", parquet, {"kind": "parquet", "image": "image"}),
    "parquet vectors": ("a.parquet", parquet, {"kind": "vectors", "key": "id", "columns": COLUMNS}),
    "npy": ("a.npy", npy, {"kind": "vectors"}),
    "npz": ("a.npz", npz, {"kind": "vectors"}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0, 0.02, 0.4, 0.8, 0.99, 1])
def test_items_are_those_that_are_read_however_much_of_a_file_there_is(tmp_path: Path, kind: str, share: float) -> None:
    name, written, settings = KINDS[kind]
    content = written(40)
    path = tmp_path / name
    path.write_bytes(content[: int(len(content) * share)])
    source = ANY.validate_python({"path": str(tmp_path), **settings})
    items, cut = until_cut(source.read_items(str(path)))
    keys, records_cut = keys_of_read(source, str(path))
    assert [item.key for item in items] == keys
    # Where a file ends is the same; what is missing there is an image for the one, and a caption for the other.
    assert (cut is None) == (records_cut is None)
    assert cut is None or cut.startswith(str(path))
    assert all(list(item.columns) == list(source.column_types) for item in items)
    assert all(isinstance(item, Item) for item in items)
    if share == 1:
        assert (len(items), cut) == (1 if kind == "folder" else 40, None)


# A folder's file is always one item; an empty Parquet table is tested with its own kinds.
@pytest.mark.parametrize("kind", ["webdataset", "webdataset gz", "jsonl", "jsonl gz", "npy", "npz"])
def test_a_file_of_nothing_has_no_items(tmp_path: Path, kind: str) -> None:
    name, written, settings = KINDS[kind]
    path = tmp_path / name
    path.write_bytes(written(0))
    source = ANY.validate_python({"path": str(tmp_path), **settings})
    assert list(source.read_items(str(path))) == list(source.read(str(path))) == []
