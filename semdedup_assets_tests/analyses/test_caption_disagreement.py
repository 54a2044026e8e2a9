"""Captions of removed images against those of the kept ones, by whole matrices of OpenCLIP's own text features."""

import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from semdedup_assets.execution.stage import Picture, StageGraph
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets_tests.stage_runs import METHOD, StageRuns
from semdedup_assets_tests.toy_source import vectors_settings

EMOJI = Path(__file__).parents[2] / "examples" / "emoji"
STAGES = StageGraph((*METHOD.stages, GRAPH["caption_disagreement"]))
CAPTIONLESS, BLANK = 5, 7


def write_captioned(folder: Path) -> dict[str, str]:
    """Half a shard of the emoji; some captions are missing or blank, two belong to other pictures. Returns them by key."""
    folder.mkdir(parents=True)
    captions: dict[str, str] = {}
    with tarfile.open(EMOJI / "shards" / "00001.tar") as source, tarfile.open(folder / "0.tar", "w") as target:
        members = [member for member in source if member.isfile()][:600]
        keys = list(dict.fromkeys(member.name.partition(".")[0] for member in members))
        for member in members:
            content = source.extractfile(member)
            assert content is not None
            data, key = content.read(), member.name.partition(".")[0]
            if member.name.endswith(".txt"):
                if keys.index(key) % 10 == CAPTIONLESS:
                    continue
                data = b" \n" if keys.index(key) % 10 == BLANK else data
                captions[key] = data.decode()
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))
    return captions


def captioned_settings(folder: Path) -> dict[str, Any]:
    return {
        "dataset": "emoji",
        "store": str(folder / "store"),
        "source": {"kind": "webdataset", "path": str(folder / "source")},
        "encoder": {"kind": "openclip", "model": str(EMOJI / "encoder"), "precision": "float32"},
        "clustering": {"k": [4], "buckets": 2, "iterations": 10},
        "epsilons": ["0.02", "0.2"],
        "manifests": ["keep_lists"],
        "compute": {"device": "cpu"},
    }


def caption_similarities(captions: dict[str, str]) -> dict[tuple[str, str], float]:
    """Of every pair of keys, in float64, by OpenCLIP itself."""
    import open_clip
    import torch

    present = {key: text for key, text in captions.items() if text.strip()}
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{EMOJI / 'encoder'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{EMOJI / 'encoder'}")
    with torch.no_grad():
        rows = model.eval().encode_text(
            tokenizer([" ".join(text.split()) for text in present.values()]), normalize=True
        )
    similarity = rows.double().numpy() @ rows.double().numpy().T
    keys = list(present)
    return {(one, other): similarity[i, j] for i, one in enumerate(keys) for j, other in enumerate(keys)}


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> tuple[StageRuns, dict[str, str]]:
    folder = tmp_path_factory.mktemp("captions")
    captions = write_captioned(folder / "source")
    runs = StageRuns(captioned_settings(folder), STAGES)
    runs.run()
    runs.make("caption_embeddings")
    runs.make("caption_disagreement")
    return runs, captions


def removed_pairs(runs: StageRuns, key: str) -> pl.DataFrame:
    """Keys of each removed item and its kept one, with the images' similarity."""
    items = pl.read_parquet(runs.record("items", "s000000").file("items.parquet").path).select("id", "key")
    masks = runs.masks(key).filter(~pl.col("kept"))
    return masks.join(items, on="id").join(
        items.rename({"id": "kept_neighbour", "key": "kept_key"}), on="kept_neighbour"
    )


@pytest.mark.parametrize("key", ["0.02|4", "0.2|4"])
def test_disagreeing_captions_are_counted_and_listed(captions: tuple[StageRuns, dict[str, str]], key: str) -> None:
    runs, texts = captions
    record, similarity = runs.record("caption_disagreement", key), caption_similarities(texts)
    epsilon = float(key.partition("|")[0])
    pairs = [row for row in removed_pairs(runs, key).iter_rows(named=True) if row["kept_similarity"] > 1 - epsilon]
    both = [row for row in pairs if (row["key"], row["kept_key"]) in similarity]
    disagree = {
        (row["key"], row["kept_key"]): similarity[row["key"], row["kept_key"]]
        for row in both
        if similarity[row["key"], row["kept_key"]] < 0.5
    }
    details = record.details
    assert (details["pairs"], details["without_caption"]) == (len(pairs), len(pairs) - len(both))
    assert 0 < len(both) < len(pairs)
    assert details["disagree"] == len(disagree)
    table = pl.read_parquet(record.file("pairs.parquet").path)
    found = {(row["key"], row["kept_key"]): row["caption_similarity"] for row in table.iter_rows(named=True)}
    assert found.keys() == disagree.keys()
    # Captions' vectors are stored in float16.
    np.testing.assert_allclose([found[pair] for pair in disagree], list(disagree.values()), atol=2e-3)
    assert table["caption_similarity"].is_sorted()
    for row in table.iter_rows(named=True):
        assert (row["caption"], row["kept_caption"]) == (texts[row["key"]], texts[row["kept_key"]])
    for band in details["by_epsilon"]:
        low, high = 1 - band["up to"], 1 - band["epsilon above"]
        inside = [row for row in pairs if low <= row["kept_similarity"] < high + (high == 1)]
        assert band["pairs"] == len(inside)
    assert sum(band["disagree"] for band in details["by_epsilon"]) == len(disagree)
    counts = pl.read_parquet(record.file("counts.parquet").path)
    assert counts["pairs"].sum() == len(both)


def test_some_captions_disagree_here_and_are_shown(captions: tuple[StageRuns, dict[str, str]]) -> None:
    runs, _ = captions
    record = runs.record("caption_disagreement", "0.2|4")
    assert record.details["disagree"] > 3
    page = Path(record.file("index.html").path).read_text()
    assert page.count("data:image/jpeg") > 3
    context = runs.context()
    shown = GRAPH["caption_disagreement"].shown(context, context.index.partitions("caption_disagreement")[0], record)
    assert isinstance(shown["similarities"], Picture)


def test_missing_captions_are_counted(captions: tuple[StageRuns, dict[str, str]]) -> None:
    runs, texts = captions
    details = runs.record("caption_embeddings", "s000000").details
    items = runs.record("items", "s000000").details["items"]
    present = sum(bool(text.strip()) for text in texts.values())
    assert (details["items"], details["without_caption"], details["skipped"]) == (present, items - present, 0)


def test_only_captioned_images_of_clip_have_them(tmp_path: Path) -> None:
    of_images = Pipeline.model_validate(captioned_settings(tmp_path))
    of_vectors = Pipeline.model_validate(vectors_settings(tmp_path))
    for name in ("caption_embeddings", "caption_disagreement"):
        stage = GRAPH[name]
        assert stage.applies(of_images, of_images.selection)
        assert not stage.applies(of_vectors, of_vectors.selection)


def test_other_columns_embed_no_caption_again(captions: tuple[StageRuns, dict[str, str]], tmp_path: Path) -> None:
    runs, _ = captions
    shutil.copytree(Path(runs.settings["store"]), tmp_path / "store")
    source = {**runs.settings["source"], "columns": {"width": "int"}}
    other = runs.changed(store=str(tmp_path / "store"), source=source)
    other.make("items")
    assert other.stale("caption_embeddings") == []
