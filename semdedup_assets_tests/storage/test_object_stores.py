"""Results on an S3-compatible server, started by the test."""

import gc
import json
from pathlib import Path

import dagster as dg
import fsspec
import polars as pl
import pytest

from semdedup_assets.storage.files import atomic_write, exists, is_local, list_files, open_file, read_bytes, write_bytes
from semdedup_assets.storage.results import MissingResultError, read_recipe, writing
from semdedup_assets_tests.pipeline_runs import PipelineRuns, near_duplicates, vectors_settings, write_shard


def stop() -> None:
    message = "stop"
    raise RuntimeError(message)


@pytest.mark.parametrize("size", [10, 12 << 20], ids=["one put", "multipart"])
def test_an_error_in_the_writer_leaves_nothing_on_s3(bucket: str, size: int) -> None:
    url = f"{bucket}/never-{size}"
    with pytest.raises(RuntimeError, match="stop"), atomic_write(url) as stream:  # noqa: PT012
        stream.write(b"x" * size)
        stop()
    del stream
    gc.collect()
    assert not exists(url)


def test_an_interrupted_rewrite_on_s3_is_never_read(bucket: str) -> None:
    path = f"{bucket}/rewritten/result"
    with writing(path, code_version="c", made_from={}) as result, result.open(path) as stream:
        stream.write(b"content")
    assert read_recipe(path, cure="").files == {"result": 7}
    with pytest.raises(RuntimeError, match="stop"), writing(path, code_version="c", made_from={}) as result:  # noqa: PT012
        with result.open(path) as stream:
            stream.write(b"something else")
        stop()
    with pytest.raises(MissingResultError, match="materialise it"):
        read_recipe(path, cure="materialise it")


def test_a_lost_object_is_told(bucket: str) -> None:
    path = f"{bucket}/lost/result"
    with writing(path, code_version="c", made_from={}) as result, result.open(path) as stream:
        stream.write(b"content")
    fsspec.filesystem("s3").rm(path)
    with pytest.raises(MissingResultError, match="None bytes where 7 were written"):
        read_recipe(path, cure="")


def test_a_whole_pipeline_from_s3_to_s3(bucket: str, tmp_path: Path) -> None:
    for seed in range(2):
        local = write_shard(tmp_path, f"{seed}", near_duplicates(seed))
        write_bytes(f"{bucket}/source/{local.name}", local.read_bytes())
    settings = vectors_settings(tmp_path)
    with dg.DagsterInstance.ephemeral() as instance:
        here = PipelineRuns(instance, {**settings, "model": "here"})
        there = PipelineRuns(
            instance,
            {
                **settings,
                "dataset": "remote",
                "store": f"{bucket}/store",
                "source": {"kind": "vectors", "path": f"{bucket}/source"},
            },
        )
        here.refresh()
        there.refresh()
        assert there.refresh() == {}
        layout = there.work.layout
        assert not is_local(layout.root)
        assert there.work.centroids("3").version == here.work.centroids("3").version
        assert there.work.scores("3", "b0000").version == here.work.scores("3", "b0000").version
        assert kept_keys(layout.current_manifest("3", "0.05")) == kept_keys(
            here.work.layout.current_manifest("3", "0.05")
        )
        write_bytes(f"{bucket}/source/1.npy", write_shard(tmp_path, "9", near_duplicates(9)).read_bytes())
        assert there.refresh()["assignments"] == ["3|s000001"]


def kept_keys(pointer: str) -> list[str]:
    folder = f"{pointer.rpartition('/')[0]}/{json.loads(read_bytes(pointer))['folder']}"
    keys: list[str] = []
    for file in list_files(f"{folder}/parquet/*.parquet"):
        with open_file(file.path) as stream:
            keys += pl.read_parquet(stream)["key"].to_list()
    assert keys
    return keys
