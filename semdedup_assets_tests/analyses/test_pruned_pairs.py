"""What is pruned: kinds and bands of pairs against the contents they were made with."""

import gzip
import io
import json
import re
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from semdedup_assets.baselines.fingerprints import MissingExtraError
from semdedup_assets.execution.stage import Link, Picture
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets_tests.analyses.small_pipelines import image_settings, read_table
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.test_examples_data import DOCSTRINGS

KINDS = ["bytes", "decoded", "perceptual", "semantic", "unknown"]
EDGES = [0.001, 0.01, 0.03, 0.05, 0.1, 0.2]
ENCODER = DOCSTRINGS / "encoder"


def encoded(pixels: np.ndarray, **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", **options)
    return content.getvalue()


def write_pictures(folder: Path) -> None:
    """Tars of 24 pictures, each with one copy; keys name the picture and how the copy was made."""
    rng, made = np.random.default_rng(0), dict[str, bytes]()
    for number in range(24):
        small = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(small).resize((48, 48), Image.Resampling.BICUBIC))
        noisy = (pixels.astype(int) + rng.integers(-2, 3, pixels.shape)).clip(0, 255).astype(np.uint8)
        copies = {"bytes": encoded(pixels), "decoded": encoded(pixels, compress_level=0), "perceptual": encoded(noisy)}
        kind = list(copies)[number % 3]
        made |= {f"{number}-original": encoded(pixels), f"{number}-{kind}": copies[kind]}
    (folder / "source").mkdir()
    for shard in range(3):
        with tarfile.open(folder / "source" / f"{shard}.tar", "w") as tar:
            # Hidden, so that it belongs to no sample: each tar has half a MiB, of which little is pictures.
            padding = tarfile.TarInfo(".padding.bin")
            padding.size = 1 << 19
            tar.addfile(padding, io.BytesIO(bytes(padding.size)))
            for key in sorted(made)[shard::3]:
                member = tarfile.TarInfo(f"{key}.png")
                member.size = len(made[key])
                tar.addfile(member, io.BytesIO(made[key]))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder)
    runs = StageRuns(image_settings(folder, "webdataset") | {"epsilons": ["0.02", "0.001", "0"]}, GRAPH)
    runs.run(until="keep_masks")
    return runs


def bands_of(similarity: np.ndarray, epsilon: float) -> list[str]:
    edges = [edge for edge in EDGES if edge < epsilon] + [epsilon]
    names = [f"{low:g}–{high:g}" for low, high in zip([0, *edges], edges, strict=False)] + [f"beyond {epsilon:g}"]
    return [
        next((name for name, edge in zip(names, edges, strict=False) if float(value) > 1 - edge), names[-1])
        for value in similarity
    ]


def kind_by_name(one: str, other: str) -> str:
    (picture, kind), (second, other_kind) = (key.split("-") for key in (one, other))
    return "different" if picture != second else kind if other_kind == "original" else other_kind


def keys_of(runs: StageRuns) -> dict[int, str]:
    tables = [
        pl.read_parquet(each.file("items.parquet").path) for each in runs.context().index.require_all("items").values()
    ]
    return dict(pl.concat(tables).select("id", "key").iter_rows())


@pytest.mark.parametrize("epsilon", [0.001, 0.02])
def test_kinds_and_bands_are_those_that_the_pictures_were_made_with(pictures: StageRuns, epsilon: float) -> None:
    key, keys = f"{epsilon}|1", keys_of(pictures)
    (record,) = pictures.make("pruned_pairs", key)
    masks = pictures.masks(key).filter(~pl.col("kept"))
    named = [kind_by_name(keys[a], keys[b]) for a, b in masks.select("id", "kept_neighbour").iter_rows()]
    bands = bands_of(masks["kept_similarity"].to_numpy(), epsilon)
    counts, pairs = read_table(record, "counts.parquet"), read_table(record, "pairs.parquet")
    found = {(band, kind): n for band, kind, n in counts.select("band", "kind", "pairs").iter_rows() if n}
    assert not counts["estimated"].any()
    assert "unknown" not in {kind for _, kind in found}
    for kind in ("bytes", "decoded"):
        made = Counter(band for band, name in zip(bands, named, strict=True) if name == kind)
        assert {band: n for (band, of), n in found.items() if of == kind} == made
    for band, number in Counter(bands).items():
        assert sum(n for (name, _), n in found.items() if name == band) == number
    # Copies with a little noise are found without a model, and among the others each by its hash.
    assert set(pairs["id"]) == {item for item, name in zip(masks["id"], named, strict=True) if name != "bytes"}
    for row in pairs.to_dicts():
        name = kind_by_name(row["key"], row["kept_key"])
        assert row["kind"] == (name if name != "different" else "perceptual" if row["hamming"] <= 4 else "semantic")
    if epsilon == 0.001:
        assert Counter(kind for (_, kind), n in found.items() for _ in range(n)) == dict.fromkeys(KINDS[:3], 8)
    else:
        assert len({band for band, _ in found}) > 1
        assert "semantic" in pairs["kind"].to_list()


def test_a_sample_is_scaled_and_few_files_give_pairs_of_these_alone(pictures: StageRuns) -> None:
    settings = {"pruned_pairs": {"sample": 2, "shown": 1, "bands": [0.01]}}
    (record,) = pictures.changed(analyses=settings).make("pruned_pairs", "0.02|1")
    counts, pairs = read_table(record, "counts.parquet"), read_table(record, "pairs.parquet")
    assert counts["pairs"].sum() == record.details["pairs"]
    assert pairs["band"].value_counts()["count"].max() == 2
    assert pairs.filter("shown")["band"].n_unique() == pairs.filter("shown").height
    assert counts.filter(pl.col("kind") != "bytes")["estimated"].any()
    assert not counts.filter(pl.col("kind") == "bytes")["estimated"].any()
    (record,) = pictures.changed(analyses={"pruned_pairs": {"mib": 1}}).make("pruned_pairs", "0.02|1")
    pairs, counts = read_table(record, "pairs.parquet"), read_table(record, "counts.parquet")
    assert len({each >> 32 for each in [*pairs["id"].to_list(), *pairs["kept_id"].to_list()]}) == 2
    assert record.details["files_read"] == 2
    assert counts["pairs"].sum() == record.details["pairs"] > len(pairs) + record.details["same_bytes"] > 0


def test_a_source_that_changed_is_not_told_and_nothing_is_no_kind(pictures: StageRuns, tmp_path: Path) -> None:
    (record,) = pictures.make("pruned_pairs", "0|1")
    assert record.details["pairs"] == 0
    shown = GRAPH["pruned_pairs"].shown(
        pictures.context(), pictures.context().index.partitions("pruned_pairs")[0], record
    )
    assert set(shown) == {"pairs_to_mark", "kinds"}
    write_pictures(tmp_path)
    runs = StageRuns(image_settings(tmp_path, "webdataset") | {"epsilons": ["0.001"]}, GRAPH)
    runs.run(until="keep_masks")
    for path in (tmp_path / "source").glob("*.tar"):
        path.write_bytes(path.read_bytes()[:1000])
    (record,) = runs.make("pruned_pairs", "0.001|1")
    by_kind = read_table(record, "counts.parquet").group_by("kind").agg(pl.col("pairs").sum())
    numbers = dict(by_kind.iter_rows())
    assert {kind: number for kind, number in numbers.items() if number} == {"bytes": 8, "unknown": 16}
    assert record.details["shown"] == 0


def test_what_a_person_sees_are_pictures_and_a_page_with_every_shown_pair(pictures: StageRuns) -> None:
    (record,) = pictures.make("pruned_pairs", "0.02|1")
    partition = pictures.context().index.partitions("pruned_pairs")[0]
    shown = GRAPH["pruned_pairs"].shown(pictures.context(), partition, record)
    sheets = [value for name, value in shown.items() if name.startswith("band ")]
    pairs = read_table(record, "pairs.parquet").filter("shown")
    assert len(sheets) == pairs["band"].n_unique()
    for picture in [*sheets, shown["kinds"]]:
        assert isinstance(picture, Picture)
        with Image.open(io.BytesIO(picture.png)) as opened:
            assert opened.format == "PNG"
    link = shown["pairs_to_mark"]
    assert isinstance(link, Link)
    page = Path(link.path).read_text()
    found = re.findall(r'data-removed="(\d+)" data-kept="(\d+)"', page)
    assert sorted((int(a), int(b)) for a, b in found) == sorted(pairs.select("id", "kept_id").iter_rows())
    assert page.count("data:image/jpeg") == 2 * len(pairs)


def test_it_is_stale_with_its_settings_and_contents_and_not_with_another_epsilon(pictures: StageRuns) -> None:
    pictures.make("pruned_pairs", "0.02|1")
    assert "0.02|1" not in pictures.stale("pruned_pairs")
    assert "0.02|1" in pictures.changed(analyses={"fingerprints": {"hamming": 8}}).stale("pruned_pairs")
    assert "0.02|1" in pictures.changed(analyses={"pruned_pairs": {"shown": 3}}).stale("pruned_pairs")
    assert "0.02|1" not in pictures.changed(analyses={"outliers": {"items": 3}}).stale("pruned_pairs")


def test_vectors_have_no_contents_to_compare_and_the_extra_is_named(
    pictures: StageRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, pipeline = GRAPH["pruned_pairs"], pictures.pipeline
    assert stage.applies(pipeline, pipeline.selection)
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(MissingExtraError, match="baselines"):
        stage.worker(pictures.context())


def real_texts(folder: Path, count: int) -> StageRuns:
    """Docstrings of installed packages, some with a twin that differs in case and spaces alone, and hostile keys."""
    (folder / "source").mkdir()
    with gzip.open(DOCSTRINGS / "shards" / "00000.jsonl.gz", "rt") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(count), strict=False)]
    texts += [f"  {text.upper()}\n" for text in texts[:40] if text.isascii()]
    rows = [{"text": text, "name": f"<script>alert({n})</script>\n|\t'\"{n}"} for n, text in enumerate(texts)]
    for part in range(2):
        content = "\n".join(json.dumps(row) for row in rows[part::2])
        (folder / "source" / f"{part}.jsonl").write_text(content)
    settings = {
        "dataset": "texts",
        "model": "static",
        "store": str(folder / "store"),
        "source": {"kind": "jsonl", "path": str(folder / "source"), "key": "name"},
        "encoder": {"kind": "sentence_transformers", "model": str(ENCODER)},
        "clustering": {"k": [4], "buckets": 1, "iterations": 5},
        "epsilons": ["0.2"],
        "compute": {"device": "cpu"},
    }
    runs = StageRuns(settings, GRAPH)
    runs.run(until="keep_masks")
    return runs


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    return real_texts(tmp_path_factory.mktemp("texts"), 700)


def ngrams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[start : start + 5]) for start in range(max(1, len(words) - 4))} if words else set()


def test_kinds_of_real_texts_are_those_of_their_words(texts: StageRuns) -> None:
    (record,) = texts.make("pruned_pairs", "0.2|4")
    items = [
        pl.read_parquet(each.file("items.parquet").path) for each in texts.context().index.require_all("items").values()
    ]
    text = dict(pl.concat(items).select("id", "text").iter_rows())
    pairs = read_table(record, "pairs.parquet")
    assert len(pairs) > 50
    same_bytes = texts.masks("0.2|4").filter(~pl.col("kept"))
    assert record.details["same_bytes"] == sum(
        text[a] == text[b] for a, b in same_bytes.select("id", "kept_neighbour").iter_rows()
    )
    kinds = set()
    for item, kept, kind in pairs.select("id", "kept_id", "kind").iter_rows():
        one, other = text[item], text[kept]
        first, second = ngrams(one), ngrams(other)
        jaccard = len(first & second) / max(1, len(first | second))
        if " ".join(one.casefold().split()) == " ".join(other.casefold().split()):
            assert kind == "decoded"
        elif abs(jaccard - 0.8) > 0.1:
            assert kind == ("perceptual" if jaccard > 0.8 else "semantic"), (one, other)
        kinds.add(kind)
    assert {"decoded", "semantic"} <= kinds


def test_a_hostile_key_is_text_on_the_page(texts: StageRuns) -> None:
    (record,) = texts.make("pruned_pairs", "0.2|4")
    page = record.file("pairs.html").content().decode()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(" in page
    assert "<ins>" in page
