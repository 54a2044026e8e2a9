"""Every format of a manifest is read back by those who read it, over hostile keys, captions and file names."""

import csv
import gzip
import importlib.util
import io
import json
import os
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import open_clip
import pandas as pd
import polars as pl
import pytest
import webdataset
from open_clip_train.data import CsvDataset
from pandas._libs.parsers import STR_NA_VALUES
from PIL import Image

from semdedup_assets.checks.manifests import counts_are_conserved, files_can_be_named
from semdedup_assets.stages.manifest_names import caption_cell
from semdedup_assets_tests.assets.test_images_and_texts import checkpoint, read_by
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.stages.hostile_sources import (
    CAPTIONS,
    FILES,
    LINES,
    TAR_MEMBERS,
    image,
    write_folder,
    write_lines,
    write_tar,
)
from semdedup_assets_tests.toy_source import STATIC_TEXTS, near_duplicates, vectors_settings, write_table

KEPT = "0.000001|1"
EXAMPLE = Path(__file__).parents[2] / "examples" / "read_manifests" / "keep_lists.py"


def _example() -> Any:
    spec = importlib.util.spec_from_file_location("keep_lists", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


read_table = _example().read_table


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("models") / "clip", seed=0)


def pipeline(folder: Path, source: dict[str, Any], encoder: dict[str, Any], formats: list[str]) -> StageRuns:
    return StageRuns(
        vectors_settings(folder)
        | {
            "source": {"path": str(folder / "source"), **source},
            "encoder": encoder,
            "model": "small",
            "clustering": {"k": [1], "buckets": 1, "iterations": 2},
            "shards": {"files_per_shard": 7},
            "epsilons": ["0.000001"],
            "manifests": formats,
            "max_skipped": 1,
        }
    )


def clip(model: Path) -> dict[str, Any]:
    return {"kind": "openclip", "model": str(model), "precision": "float32"}


def kept_by_masks(runs: StageRuns) -> int:
    return int(runs.masks(KEPT)["kept"].sum())


def items(runs: StageRuns) -> dict[str, dict[str, Any]]:
    """The items' tables by key; keys of these sources are distinct."""
    rows = [
        row
        for record in runs.context().index.records("items").values()
        for row in pl.read_parquet(record.file("items.parquet").path).to_dicts()
    ]
    return {row["key"]: row for row in rows}


# A folder of images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[StageRuns, dict[str, tuple[bytes, str]]]:
    folder = tmp_path_factory.mktemp("images")
    written = write_folder(folder / "source")
    (folder / "source" / "zz copy.png").write_bytes(image(0))
    runs = pipeline(folder, {"kind": "folder"}, clip(model), ["parquet", "removed", "keep_lists", "csv", "webdataset"])
    runs.run()
    return runs, written


def test_every_format_holds_what_the_masks_keep(images: tuple[StageRuns, dict[str, tuple[bytes, str]]]) -> None:
    runs, written = images
    _, details = runs.manifest(KEPT)
    assert details["kept"] == kept_by_masks(runs) == len(written) == len(FILES) >= len(CAPTIONS)
    assert details["unnameable"] == 2
    all_kept = dict.fromkeys(("parquet", "keep_lists", "webdataset", "samples"), details["kept"])
    assert details["rows_written"] == {**all_kept, "open_clip.csv": details["kept"] - 2, "removed": details["removed"]}
    assert details["changed"]["shortened_captions"] == 1
    assert counts_are_conserved(runs.context()).problems == []
    (problem,) = files_can_be_named(runs.context()).problems
    assert "2 kept items of files whose names are not UTF-8" in problem.measured
    assert "not \\udcff utf-8.png" in problem.measured
    assert not files_can_be_named(runs.context()).certain


def test_openclip_reads_every_image_and_every_caption_as_its_words(
    images: tuple[StageRuns, dict[str, tuple[bytes, str]]],
) -> None:
    runs, written = images
    folder, _ = runs.manifest(KEPT)
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    data = CsvDataset(str(folder / "open_clip.csv"), opened, "filepath", "title", tokenizer=tokenizer)
    assert sorted(data.images) == sorted(path for path in written if path.isprintable() or "utf-8" not in path)
    of_items = {row["key"]: row["caption"] for row in items(runs).values()}
    for index, path in enumerate(data.images):
        size, tokens = data[index]
        assert size == (40, 40)
        assert Path(path).read_bytes() == written[path][0]
        caption = of_items[os.path.relpath(path, runs.settings["source"]["path"])]
        assert isinstance(data.captions[index], str)
        assert tokens.tolist() == tokenizer([caption])[0].tolist()
    with (folder / "open_clip.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream, delimiter="\t"))
    assert rows == [["filepath", "title"], *map(list, zip(data.images, data.captions, strict=True))]
    assert not any(title.startswith(tuple("=+-@\t\r")) for _, title in rows)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("word", [*sorted(STR_NA_VALUES), "True", "false", "7", "007", " 1e5 ", "-.5", "inf", "=1"])
def test_pandas_takes_no_caption_for_anything_but_a_text(tmp_path: Path, word: str, alone: bool) -> None:
    """Alone, it decides the type of the column; among others, it could be a gap."""
    cells = [caption_cell(word)] * (1 if alone else 2) + ([] if alone else ["a cat"])
    (tmp_path / "a.csv").write_text("title\n" + "\n".join(cells) + "\n", encoding="utf-8")
    assert pd.read_csv(tmp_path / "a.csv", sep="\t")["title"].tolist() == cells
    assert all(isinstance(cell, str) and cell.split() == word.split() for cell in cells[:1])


def test_keep_lists_name_every_file_and_key(images: tuple[StageRuns, dict[str, tuple[bytes, str]]]) -> None:
    runs, written = images
    folder, _ = runs.manifest(KEPT)
    rows = [row for path in sorted((folder / "keep_lists").iterdir()) for row in read_table(path)]
    assert {file for file, _, _ in rows} == set(written)
    assert all(Path(file).is_file() and row == "0" for file, row, _ in rows)
    assert {key for _, _, key in rows} == set(items(runs)) - {"zz copy.png"}
    lines = [line for path in (folder / "keep_lists").iterdir() for line in path.read_text("utf-8").splitlines()]
    assert [line.count("\t") for line in lines] == [2] * len(rows)
    for path in (folder / "keep_lists").iterdir():
        assert len(pd.read_csv(path, sep="\t", header=None)) == len(list(read_table(path)))
        assert len(pl.read_csv(path, separator="\t", has_header=False)) == len(list(read_table(path)))


def test_parquet_names_every_item_and_all_files_that_it_can(
    images: tuple[StageRuns, dict[str, tuple[bytes, str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs, written = images
    folder, _ = runs.manifest(KEPT)
    table = pl.read_parquet(f"{folder}/parquet/*.parquet")
    assert set(table["key"]) == set(items(runs)) - {"zz copy.png"}
    assert sum(Path(path).is_file() for path in table["file"]) == len(written) - 2
    assert len(read_by_datasets("parquet", sorted((folder / "parquet").iterdir()), tmp_path)) == len(written)


def test_webdataset_reads_every_image_of_a_folder(images: tuple[StageRuns, dict[str, tuple[bytes, str]]]) -> None:
    runs, written = images
    folder, _ = runs.manifest(KEPT)
    samples = read_by_webdataset(folder)
    assert len(samples) == len(written)
    listed = sample_lists(folder)
    captions = items(runs)
    for name, sample in samples.items():
        path, row, key = listed[name]
        assert row == "0"
        assert sample[path.rpartition(".")[2].lower()] == written[path][0]
        assert sample["txt"].decode() == captions[key]["caption"]
    safe_to_unpack(folder)


def opened(image: Image.Image) -> tuple[int, int]:
    return image.convert("RGB").size


def read_by_webdataset(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Samples by shard and key."""
    samples = []
    for path in sorted((folder / "webdataset").iterdir()):
        with path.open("rb") as stream:
            files = webdataset.tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
            samples += list(webdataset.tariterators.group_by_keys(files))
    found = {(Path(sample["__url__"]).stem, sample["__key__"]): sample for sample in samples}
    assert len(found) == len(samples)
    return found


def sample_lists(folder: Path) -> dict[tuple[str, str], list[str]]:
    """File, row in the file and key of each sample, by shard and key in the tar."""
    rows = [(path.stem, row) for path in sorted((folder / "samples").iterdir()) for row in read_table(path)]
    found = {(shard, row[0]): row[1:] for shard, row in rows}
    assert len(found) == len(rows)
    return found


def safe_to_unpack(folder: Path) -> None:
    """No tar writes outside the folder where it is unpacked, nor one file over another, whether or not case counts."""
    for path in (folder / "webdataset").iterdir():
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        for member in members:
            assert not member.name.startswith("/")
            assert not {"", ".", ".."} & set(member.name.split("/"))
            assert max(len(part.encode()) for part in member.name.split("/")) <= 255
        folded = {unicodedata.normalize("NFC", member.name).casefold() for member in members}
        assert len(folded) == len(members)


def read_by_datasets(kind: str, files: list[Path], tmp_path: Path) -> list[dict[str, Any]]:
    import datasets

    return list(
        datasets.load_dataset(
            kind, data_files=[str(path) for path in files], split="train", streaming=True, cache_dir=str(tmp_path)
        )
    )


# Tars


def test_webdataset_reads_every_sample_of_hostile_tars(tmp_path: Path, model: Path) -> None:
    (tmp_path / "source").mkdir()
    for number in range(4):
        write_tar(tmp_path / "source" / f"{number}.tar", ["image.png"], seed=number)
    write_tar(tmp_path / "source" / "4.tar", TAR_MEMBERS, seed=4)
    formats = ["parquet", "keep_lists", "webdataset"]
    runs = pipeline(tmp_path, {"kind": "webdataset"}, clip(model), formats)
    runs.run()
    folder, details = runs.manifest(KEPT)
    assert details["kept"] == kept_by_masks(runs) == 4 + len(TAR_MEMBERS)
    assert details["rows_written"] == dict.fromkeys([*formats, "samples"], details["kept"])
    assert counts_are_conserved(runs.context()).problems == []
    samples, listed = read_by_webdataset(folder), sample_lists(folder)
    assert samples.keys() == listed.keys()
    assert [tuple(sample) for sample in samples] == list(listed)
    source = {path: list(runs.pipeline.source.samples(path)) for path, _, _ in listed.values()}
    for name, sample in samples.items():
        path, row, key = listed[name]
        original, members = source[path][int(row)]
        assert key == original
        assert {suffix: sample[suffix] for suffix in members} == members
    # Keys that trip nobody are left as they are.
    assert {key for _, key in samples} >= {"image", "a", "B", "k", "dir.v1/k", "é" * 60, "l" * 120}
    safe_to_unpack(folder)
    assert f"{len(samples)} items" in read_by("open_clip_webdataset.py", folder)


def test_tars_on_an_object_store_are_counted_as_they_are_written(tmp_path: Path, model: Path) -> None:
    (tmp_path / "source").mkdir()
    write_tar(tmp_path / "source" / "0.tar", TAR_MEMBERS, seed=4)
    runs = pipeline(tmp_path, {"kind": "webdataset"}, clip(model), ["webdataset"])
    remote = runs.changed(store=f"memory://{tmp_path.name}")
    remote.run()
    details = remote.record("manifests", KEPT).details
    assert details["rows_written"] == {"webdataset": len(TAR_MEMBERS), "samples": len(TAR_MEMBERS)}
    assert counts_are_conserved(remote.context()).problems == []


# JSON lines


def test_datasets_and_json_read_every_line(tmp_path: Path) -> None:
    texts = write_lines(tmp_path / "source")
    runs = pipeline(tmp_path, {"kind": "jsonl"}, STATIC_TEXTS, ["parquet", "jsonl", "keep_lists"])
    runs.run()
    folder, details = runs.manifest(KEPT)
    assert details["kept"] == kept_by_masks(runs) == len(texts)
    assert details["skipped"] == 2 * len(LINES) - len(texts)
    assert details["rows_written"] == dict.fromkeys(("parquet", "jsonl", "keep_lists"), len(texts))
    assert details["changed"]["repaired_lines"] == 4
    files = sorted((folder / "jsonl").iterdir())
    assert [row["text"] for row in read_by_datasets("json", files, tmp_path / "cache")] == texts
    with io.TextIOWrapper(gzip.open(files[0]), encoding="utf-8") as lines:  # type: ignore[arg-type]
        read = [json.loads(line) for line in lines]
    assert [row["text"] for row in read] == texts
    assert [row["url"] for row in read if "url" in row] == [
        "u",
        "\ufffd",
        "v\n"[:1],
        "\ufffd\ufffd\ufffd"[:1],
        None,
    ] * 2
    assert pl.read_ndjson(gzip.decompress(files[0].read_bytes()))["text"].to_list() == texts


# Tables


def test_keys_of_tables_are_read_back(tmp_path: Path) -> None:
    keys = [f"{caption} {number}" for number, caption in enumerate(CAPTIONS)]
    write_table(tmp_path, "0", near_duplicates(0)[: len(keys)], {"title": keys})
    settings = vectors_settings(tmp_path, epsilons=["0.000001"], clustering={"k": [1]})
    settings["source"]["key"] = "title"
    runs = StageRuns(settings)
    runs.run()
    folder, details = runs.manifest(KEPT)
    assert details["rows_written"] == {
        "parquet": len(keys),
        "keep_lists": len(keys),
        "removed": details["removed"],
    }
    assert [key for _, _, key in read_table(folder / "keep_lists" / "s000000.tsv")] == keys
    assert pl.read_parquet(folder / "parquet" / "s000000.parquet")["key"].to_list() == keys
    assert len(pd.read_csv(folder / "keep_lists" / "s000000.tsv", sep="\t", header=None)) == len(keys)


def test_a_folder_that_is_opened_by_its_image_library(images: tuple[StageRuns, dict[str, tuple[bytes, str]]]) -> None:
    runs, _ = images
    for sample in read_by_webdataset(runs.manifest(KEPT)[0]).values():
        content = next(sample[suffix] for suffix in ("png", "jpg") if suffix in sample)
        assert Image.open(io.BytesIO(content)).size == (40, 40)
