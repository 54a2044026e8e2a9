import contextlib
import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterator

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from semdedup_assets.records import Invalid, Record
from semdedup_assets.sources import Folder, JsonLines, Parquet, Vectors, WebDataset
from semdedup_assets.sources.reading import ReadLimitError, ReadMeter
from semdedup_assets.storage.files import write_bytes
from semdedup_assets_tests.object_store import ObjectStore


def png(color: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(content, "PNG")
    return content.getvalue()


def tar_bytes(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def test_tars_are_listed_and_read_from_s3(bucket: str) -> None:
    for shard in range(3):
        members = {
            f"{shard}{n}.{suffix}": png("red") if suffix == "png" else b"red"
            for n in range(5)
            for suffix in ("png", "txt")
        }
        write_bytes(f"{bucket}/laion/part/0000{shard}.tar", tar_bytes(members))
    write_bytes(f"{bucket}/laion/part/00000_stats.json", b"{}")
    for path in (f"{bucket}/laion", f"{bucket}/laion/*/0000?.tar", f"{bucket}/laion/part/"):
        source = WebDataset(path=path)
        files = source.files()
        assert [file.path for file in files] == [f"{bucket}/laion/part/0000{shard}.tar" for shard in range(3)]
        assert len({file.stamp for file in files}) == 3
        records = [record for file in files for record in source.read(file.path)]
        assert [record.key for record in records] == [f"{shard}{n}" for shard in range(3) for n in range(5)]
        assert {record.payload for record in records} == {png("red")}
    before = WebDataset(path=f"{bucket}/laion").files()
    write_bytes(f"{bucket}/laion/part/00001.tar", tar_bytes({"1.png": png("blue")}))
    after = WebDataset(path=f"{bucket}/laion").files()
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True]


def test_what_is_read_of_a_few_items_is_counted_as_the_store_sends_it(served_store: ObjectStore) -> None:
    pictures = {f"{number:02d}.png": os.urandom(3 << 20) for number in range(8)}
    path = f"{served_store.url}/large.tar"
    write_bytes(path, tar_bytes(pictures))
    source, wanted = WebDataset(path=path), {1, 6}

    def read(meter: ReadMeter) -> int:
        with served_store.counted() as requests, contextlib.suppress(ReadLimitError):
            for _, record in source.read_rows(path, wanted, meter):
                found.append(record)
        return sum(each.sent for each in requests if each.kind == "GET")

    found = list[Record | Invalid]()
    meter = ReadMeter(1 << 30)
    assert read(meter) == meter.read
    assert found == [Record("01", pictures["01.png"]), Record("06", pictures["06.png"])]
    found.clear()
    meter = ReadMeter(14 << 20)
    # One read of the store is begun below the limit.
    assert meter.most < read(meter) == meter.read < meter.most + (5 << 20)
    assert found == [Record("01", pictures["01.png"])]


def test_json_lines_are_read_from_s3(bucket: str) -> None:
    lines = b"".join(json.dumps({"text": f"text {n}", "url": f"u{n}"}).encode() + b"\n" for n in range(1000))
    write_bytes(f"{bucket}/c4/c4-train.00000.json.gz", gzip.compress(lines))
    source = JsonLines(path=f"{bucket}/c4/*.json.gz")
    (file,) = source.files()
    records = list(source.read(file.path))
    assert [record.payload for record in records] == [f"text {n}" for n in range(1000)]
    assert list(source.read_items(file.path))[3].columns == {"url": "u3", "text": "text 3"}
    assert b"\n".join(source.lines(file.path)) + b"\n" == lines


def test_parquet_is_read_from_s3(bucket: str) -> None:
    table = io.BytesIO()
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(1000)]}), table, row_group_size=300)
    write_bytes(f"{bucket}/hf/train.parquet", table.getvalue())
    source = Parquet(path=f"{bucket}/hf/train.parquet", text="text")
    (file,) = source.files()
    assert [record.payload for record in source.read(file.path)] == [f"text {n}" for n in range(1000)]


def test_what_is_not_on_s3_is_named(bucket: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"s3://data/none: no file here ends in \.tar"):
        WebDataset(path=f"{bucket}/none").files()
    with pytest.raises(FileNotFoundError, match=r"s3://data/none\.tar: cannot be opened"):
        list(WebDataset(path=bucket).read(f"{bucket}/none.tar"))


@pytest.fixture
def memory() -> Iterator[str]:
    root = "memory://sources"
    yield root
    fsspec.filesystem("memory").rm("/sources", recursive=True)


def test_a_folder_in_memory_has_keys_below_its_root(memory: str) -> None:
    write_bytes(f"{memory}/photos/a/1.png", png("red"))
    write_bytes(f"{memory}/photos/a/1.txt", b"red")
    write_bytes(f"{memory}/photos/2.png", png("blue"))
    for path in (f"{memory}/photos", f"{memory}/photos/", f"{memory}/photos/**"):
        source = Folder(path=path)
        items = [item for file in source.files() for item in source.read_items(file.path)]
        assert [(item.key, item.columns["caption"]) for item in items] == [("2.png", None), ("a/1.png", "red")]
        records = [record for file in source.files() for record in source.read(file.path)]
        assert [record.key for record in records] == [item.key for item in items]


def test_arrays_with_metadata_are_read_from_memory(memory: str) -> None:
    vectors = np.arange(12, dtype=np.float16).reshape(4, 3)
    array, table = io.BytesIO(), io.BytesIO()
    np.save(array, vectors)
    pq.write_table(pa.table({"url": list("abcd")}), table)
    write_bytes(f"{memory}/img_emb/img_emb_0.npy", array.getvalue())
    write_bytes(f"{memory}/metadata/metadata_0.parquet", table.getvalue())
    source = Vectors(path=f"{memory}/img_emb", metadata=f"{memory}/metadata", key="url")
    (file,) = source.files()
    (batch,) = source.read(file.path)
    np.testing.assert_array_equal(batch.vectors, vectors)
    assert batch.keys == [item.key for item in source.read_items(file.path)] == list("abcd")
