import gzip
import io
import json
import tarfile
from collections.abc import Iterator

import boto3
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from semdedup_assets.sources import Folder, JsonLines, Parquet, Vectors, WebDataset
from semdedup_assets.storage.files import write_bytes


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """URL of a bucket on a real S3-compatible server, which fsspec is told of by its configuration."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    access = {"endpoint_url": f"http://{host}:{port}", "key": "test", "secret": "test"}
    saved = fsspec.config.conf.get("s3")
    fsspec.config.conf["s3"] = access
    client = boto3.client(
        "s3",
        endpoint_url=access["endpoint_url"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="data")
    client.close()
    yield "s3://data"
    server.stop()
    fsspec.config.conf.pop("s3")
    if saved is not None:
        fsspec.config.conf["s3"] = saved


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


def test_tars_are_listed_and_read_from_s3(s3: str) -> None:
    for shard in range(3):
        members = {
            f"{shard}{n}.{suffix}": png("red") if suffix == "png" else b"red"
            for n in range(5)
            for suffix in ("png", "txt")
        }
        write_bytes(f"{s3}/laion/part/0000{shard}.tar", tar_bytes(members))
    write_bytes(f"{s3}/laion/part/00000_stats.json", b"{}")
    for path in (f"{s3}/laion", f"{s3}/laion/*/0000?.tar", f"{s3}/laion/part/"):
        source = WebDataset(path=path)
        files = source.files()
        assert [file.path for file in files] == [f"{s3}/laion/part/0000{shard}.tar" for shard in range(3)]
        assert len({file.stamp for file in files}) == 3
        records = [record for file in files for record in source.read(file.path)]
        assert [record.key for record in records] == [f"{shard}{n}" for shard in range(3) for n in range(5)]
        assert {record.payload for record in records} == {png("red")}
    before = WebDataset(path=f"{s3}/laion").files()
    write_bytes(f"{s3}/laion/part/00001.tar", tar_bytes({"1.png": png("blue")}))
    after = WebDataset(path=f"{s3}/laion").files()
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True]


def test_json_lines_are_read_from_s3(s3: str) -> None:
    lines = b"".join(json.dumps({"text": f"text {n}", "url": f"u{n}"}).encode() + b"\n" for n in range(1000))
    write_bytes(f"{s3}/c4/c4-train.00000.json.gz", gzip.compress(lines))
    source = JsonLines(path=f"{s3}/c4/*.json.gz")
    (file,) = source.files()
    records = list(source.read(file.path))
    assert [record.payload for record in records] == [f"text {n}" for n in range(1000)]
    assert records[3].columns == {"url": "u3", "text": "text 3"}
    assert b"\n".join(source.lines(file.path)) + b"\n" == lines


def test_parquet_is_read_from_s3(s3: str) -> None:
    table = io.BytesIO()
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(1000)]}), table, row_group_size=300)
    write_bytes(f"{s3}/hf/train.parquet", table.getvalue())
    source = Parquet(path=f"{s3}/hf/train.parquet", text="text")
    (file,) = source.files()
    assert [record.payload for record in source.read(file.path)] == [f"text {n}" for n in range(1000)]


def test_what_is_not_on_s3_is_named(s3: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"s3://data/none: no file here ends in \.tar"):
        WebDataset(path=f"{s3}/none").files()
    with pytest.raises(FileNotFoundError, match=r"s3://data/none\.tar: cannot be opened"):
        list(WebDataset(path=s3).read(f"{s3}/none.tar"))


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
        records = [record for file in source.files() for record in source.read(file.path)]
        assert [(record.key, record.columns["caption"]) for record in records] == [("2.png", None), ("a/1.png", "red")]


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
    assert batch.keys == list("abcd")
