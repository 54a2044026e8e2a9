"""Galleries of small pipelines: they show what was selected, and say what they cannot show."""

import io
import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image

from semdedup_assets.analyses.gallery_items import ItemCards, read_cards
from semdedup_assets.analyses.gallery_sections import SelectedClusters, choose_sections
from semdedup_assets.execution.stage import Link, Picture, Rows
from semdedup_assets.records import id_rows, id_shards
from semdedup_assets.rendering.gallery import Group, Section
from semdedup_assets.stages.cluster_batches import AssignedClusters
from semdedup_assets.stages.embeddings import VECTORS
from semdedup_assets.storage.files import write_bytes
from semdedup_assets.storage.results import MissingResultError, ResultRecord
from semdedup_assets.storage.vectors import read_vectors
from semdedup_assets_tests.analyses.small_pipelines import (
    GRAPH,
    MASKS,
    SmallPipeline,
    analysed_settings,
    image_settings,
    made,
    png,
    write_tar,
)
from semdedup_assets_tests.toy_source import STATIC_TEXTS, near_duplicates, write_shard, write_table

EPSILONS = ["0.01", "keep=60%", "0.2"]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> SmallPipeline:
    """Two shards of near-duplicates in three clusters."""
    folder = tmp_path_factory.mktemp("vectors")
    for seed in range(2):
        write_shard(folder, f"{seed}", near_duplicates(seed, groups=12, copies=6))
    return made(analysed_settings(folder) | {"epsilons": EPSILONS}, "galleries")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> SmallPipeline:
    """Two tars of random pictures, each with a damaged one and copies."""
    folder = tmp_path_factory.mktemp("images")
    for shard in range(2):
        write_tar(folder / "source" / f"{shard}.tar", first=100 * shard)
    return made(image_settings(folder, "webdataset"))


def drawn(pipeline: SmallPipeline, key: str) -> tuple[ResultRecord, str]:
    """The gallery of a kept set: its record and its page."""
    record = pipeline.make_partition("galleries", key)
    return record, record.file("index.html").content().decode()


def chosen(pipeline: SmallPipeline, key: str) -> dict[str, Section]:
    clustering = pipeline.partition("keep_masks", key).required_clustering
    assigned = AssignedClusters(pipeline.context, clustering)
    selected = SelectedClusters.of(assigned, pipeline.record("keep_masks", key))
    return {section.name: section for section in choose_sections(selected, pipeline.context.pipeline.galleries)}


def of(group: Group) -> list[tuple[int, float]]:
    return [(item.id, item.similarity or 0.0) for row in group.rows for item in row.items]


def query(group: Group) -> int:
    assert group.query is not None
    return group.query.id


def similarity(items: pl.DataFrame, one: int, other: int) -> float:
    vector = {row["id"]: np.array(row["unit"]) for row in items.filter(pl.col("id").is_in([one, other])).to_dicts()}
    return float(vector[one] @ vector[other])


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_groups_are_the_kept_items_with_the_most_removed_ones(vectors: SmallPipeline, epsilon: str) -> None:
    items = vectors.items(f"{epsilon}|3")
    removed = items.filter(~pl.col("kept"))
    counts = sorted(removed.group_by("kept_neighbour").len()["len"].to_list(), reverse=True)
    groups = chosen(vectors, f"{epsilon}|3")["largest_groups_of_duplicates"].groups
    assert len(groups) == min(12, len(counts)) > 2
    assert [group.rows[0].total for group in groups] == counts[: len(groups)]
    for group in groups:
        members = removed.filter(pl.col("kept_neighbour") == query(group))["id"].to_list()
        shown = of(group)
        assert len(shown) == min(8, len(members))
        assert {item for item, _ in shown} <= set(members)
        assert [s for _, s in shown] == sorted((s for _, s in shown), reverse=True)
        for item, shown_similarity in shown:
            assert shown_similarity == pytest.approx(similarity(items, item, query(group)), abs=1e-5)


def test_a_large_group_is_shown_from_its_most_to_its_least_similar_item(vectors: SmallPipeline) -> None:
    few = vectors.changed(galleries={"items": 2})
    items = few.items("0.2|3")
    group = chosen(few, "0.2|3")["largest_groups_of_duplicates"].groups[0]
    members = items.filter(~pl.col("kept") & (pl.col("kept_neighbour") == query(group)))["kept_similarity"]
    assert group.rows[0].total == len(members) > 2
    assert [s for _, s in of(group)] == [members.max(), members.min()]


@pytest.mark.parametrize("key", ["0.01|3", "0.2|3"])
def test_neighbours_are_the_nearest_between_two_thresholds_of_the_gallery_s_own_epsilon(
    vectors: SmallPipeline, key: str
) -> None:
    items, epsilon = vectors.items(key), vectors.record("keep_masks", key).details["epsilon"]
    edges = [1 - epsilon * factor for factor in (0.25, 0.5, 1, 2)]
    limits = zip(edges, [2.0, *edges], strict=False)
    ranges = {f"{1 - low:.2g}": (low, high) for low, high in limits} | {"none": (-2.0, edges[-1])}
    groups = chosen(vectors, key)["neighbours_at_rising_epsilon"].groups
    assert len(groups) == 6
    for group in groups:
        seed = items.filter(pl.col("id") == query(group))
        assert seed["similarity"][0] > edges[-1]
        others = items.filter((pl.col("cluster") == seed["cluster"][0]) & (pl.col("id") != query(group)))
        exact = {row["id"]: float(np.array(row["unit"]) @ seed["unit"][0].to_numpy()) for row in others.to_dicts()}
        within = sum(value > 1 - epsilon for value in exact.values())
        assert group.title.startswith(f"{within} of the {len(exact)} others in its cluster lie within")
        assert len(of(group)) == 8
        assert any(row.short_label != "none" for row in group.rows)
        for row in group.rows:
            low, high = ranges[row.short_label]
            inside = sorted((value for value in exact.values() if low < value <= high), reverse=True)
            assert row.total == len(inside)
            assert [item.similarity for item in row.items] == pytest.approx(inside[: len(row.items)], abs=1e-5)
            assert all(exact[item.id] == pytest.approx(item.similarity, abs=1e-5) for item in row.items)


def test_seeds_come_from_every_cluster_and_depend_on_their_seed_alone(vectors: SmallPipeline) -> None:
    cluster = dict(vectors.items("0.2|3").select("id", "cluster").iter_rows())

    def seeds(seed: int) -> list[int]:
        pipeline = vectors.changed(galleries={"seed": seed})
        return [query(group) for group in chosen(pipeline, "0.2|3")["neighbours_at_rising_epsilon"].groups]

    assert {cluster[item] for item in seeds(0)} == {0, 1, 2}
    assert seeds(0) == seeds(0)
    assert seeds(0) != seeds(1)


def test_the_cluster_that_lost_most_is_sorted_by_similarity_to_its_centroid(vectors: SmallPipeline) -> None:
    items = vectors.items("0.2|3")
    lost = items.group_by("cluster").agg((~pl.col("kept")).sum().alias("removed"), pl.len()).sort("removed", "len")
    section = chosen(vectors, "0.2|3")["cluster_before_and_after"]
    worst = items.filter(pl.col("cluster") == lost["cluster"][-1]).sort("centroid_similarity", descending=True)
    kept = worst.filter(pl.col("kept"))
    before, after = section.groups
    assert before.title == f"Before: {len(worst)} items"
    assert after.title == f"After: {len(kept)} items"
    assert [item for item, _ in of(before)] == worst["id"].to_list()[:32]
    assert [item.kept for item in before.rows[0].items] == worst["kept"].to_list()[:32]
    assert [item for item, _ in of(after)] == kept["id"].to_list()[:32]
    assert [s for _, s in of(after)] == pytest.approx(kept["centroid_similarity"].to_list()[:32], abs=1e-6)


def test_items_without_a_kept_one_within_epsilon_are_orphans_and_are_explained(vectors: SmallPipeline) -> None:
    items = vectors.items("0.2|3")
    orphans = items.filter(~pl.col("kept") & (pl.col("kept_similarity") <= 1 - 0.2))["id"].to_list()
    assert len(orphans) == vectors.record("keep_masks", "0.2|3").details["orphans"] > 0
    shown = set[int]()
    for section in chosen(vectors, "0.2|3").values():
        found = {item.id for item in section.items() if item.is_orphan}
        assert found == {item.id for item in section.items()} & set(orphans)
        assert ("Orphan: removed, although no kept item lies within ε of it; " in section.note) == bool(found)
        shown |= found
    assert shown


def test_facts_tell_the_kept_set_and_its_numbers(vectors: SmallPipeline) -> None:
    masks = vectors.record("keep_masks", "keep=60%|3").details
    _, page = drawn(vectors, "keep=60%|3")
    facts = dict(re.findall(r"<dt>(.*?)</dt>\s*<dd>(.*?)</dd>", page))
    assert facts == {
        "clustering": "k = 3",
        "selection": "hard",
        "target": f"keep 60 % (ε = {masks['epsilon']:.6g})",
        "clusters with items": "3",
        "items": "144",
        "kept": str(masks["kept"]),
        "removed": str(masks["removed"]),
        "orphans among them": str(masks["orphans"]),
    }


def test_of_vectors_there_are_tables_of_keys_and_a_second_drawing_is_the_same(vectors: SmallPipeline) -> None:
    record, page = drawn(vectors, "0.2|3")
    assert "<img" not in page
    assert record.details["files_read"] == record.details["items_unavailable"] == 0
    shown = GRAPH["galleries"].shown(vectors.context, vectors.partition("galleries", "0.2|3"), record)
    assert list(shown) == ["gallery", *record.details["parts"]]
    assert isinstance(shown["gallery"], Link)
    assert Path(shown["gallery"].path).read_text() == page
    table = shown["largest_groups_of_duplicates"]
    assert isinstance(table, Rows)
    assert table.brief
    first = chosen(vectors, "0.2|3")["largest_groups_of_duplicates"].groups[0]
    ids = np.array([query(first), *(item for item, _ in of(first))], dtype=np.uint64)
    keys = [f"{shard}.npy:{row}" for shard, row in zip(id_shards(ids), id_rows(ids), strict=True)]
    assert [row["key"] for row in table.rows[: len(keys)]] == keys
    assert all(key in page for key in keys)
    again, _ = drawn(vectors, "0.2|3")
    assert again.version == record.version
    assert again.inputs["keep_masks"] == vectors.record("keep_masks", "0.2|3").version


def test_another_epsilon_draws_no_other_gallery_again_and_another_setting_draws_all(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", near_duplicates(0))
    pipeline = made(analysed_settings(tmp_path) | {"epsilons": ["0.05", "keep=70%"]}, "galleries")
    before = {key: pipeline.record("galleries", key) for key in ("0.05|3", "keep=70%|3")}
    more = pipeline.changed(epsilons=["0.02", "0.05", "keep=70%"])
    assert more.make("keep_masks", "galleries") == {"keep_masks": ["0.02|3"], "galleries": ["0.02|3"]}
    assert {key: more.record("galleries", key) for key in before} == before
    assert len(more.changed(galleries={"items": 3}).make("galleries")["galleries"]) == 3


def test_a_gallery_of_missing_or_stale_masks_says_what_to_materialise(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", near_duplicates(0))
    pipeline = made(analysed_settings(tmp_path))
    with pytest.raises(MissingResultError, match=r"materialise toy/precomputed/keep_masks, partition 0.3\|3"):
        drawn(pipeline, "0.3|3")
    write_shard(tmp_path, "b", near_duplicates(1))
    pipeline.observe()
    grown = pipeline.changed()
    grown.make(*MASKS[:-1])
    with pytest.raises(MissingResultError, match=r"made from other inputs .* materialise toy/precomputed/keep_masks"):
        drawn(grown, "0.05|3")


def test_where_nothing_is_removed_the_gallery_says_so(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", np.eye(8, dtype=np.float32))
    pipeline = made(analysed_settings(tmp_path) | {"clustering": {"k": [1]}, "epsilons": ["0"]}, "galleries")
    record = pipeline.record("galleries", "0|1")
    groups = {"largest_groups_of_duplicates": 0, "neighbours_at_rising_epsilon": 0, "cluster_before_and_after": 2}
    assert record.details["groups"] == groups
    shown = GRAPH["galleries"].shown(pipeline.context, pipeline.partition("galleries", "0|1"), record)
    assert list(shown) == ["gallery", "cluster_before_and_after"]


def mean_colour(image: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(image)) as opened:
        return np.asarray(opened.convert("RGB").resize((4, 4), Image.Resampling.BOX), dtype=float)


def cards_of_all(pipeline: SmallPipeline) -> ItemCards:
    records = pipeline.context.index.require_all("embeddings").values()
    ids = [int(item) for record in records for part in read_vectors(record.file(VECTORS)) for item in part.ids]
    return read_cards(pipeline.context, ids)


def test_every_image_is_that_of_its_item_though_a_damaged_one_lies_before_it(images: SmallPipeline) -> None:
    found = cards_of_all(images)
    assert len(found.by_id) == 18
    assert found.files_read == 2
    for item, card in found.by_id.items():
        shard, row = item >> 32, item & 0xFFFFFFFF
        assert card.key == f"{100 * shard + row:05d}"
        assert card.caption == f'a caption, "{100 * shard + row}" of two words'
        assert card.image is not None
        assert np.abs(mean_colour(card.image) - mean_colour(png(100 * shard + row % 8))).max() < 12


def test_the_page_and_the_pictures_show_the_images(images: SmallPipeline) -> None:
    record, page = drawn(images, "0.000001|1")
    assert record.details["items_unavailable"] == 0
    sections = chosen(images, "0.000001|1").values()
    assert page.count("<img") == sum(len(list(section.items())) for section in sections) > 8
    shown = GRAPH["galleries"].shown(images.context, images.partition("galleries", "0.000001|1"), record)
    for section in sections:
        picture = shown[section.name]
        assert isinstance(picture, Picture)
        with Image.open(io.BytesIO(picture.png)) as opened:
            assert (opened.format, opened.width <= 600) == ("PNG", True)


def noise(seed: int, side: int) -> bytes:
    """A picture of 3 * side² bytes, which nothing makes smaller."""
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "PNG", compress_level=0)
    return content.getvalue()


def test_items_beyond_the_limit_are_only_named_and_counted(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for number in range(5):
        (tmp_path / "source" / f"{number}.png").write_bytes(noise(number, 350))
    found = cards_of_all(made(image_settings(tmp_path, "folder") | {"galleries": {"mib": 1}}))
    # Of pictures of 0.35 MiB each two are read, and the third is more than may be.
    reason = "not read: 1 MiB of the source were read before it (`galleries.mib`)"
    assert [card.unavailable for card in found.by_id.values()] == [None, None, *[reason] * 3]
    details = found.details()
    assert (details["items_shown"], details["items_unavailable"]) == (2, 3)
    assert details["unavailable_because"] == {reason: 3}


def test_of_a_folder_every_picture_is_shown_however_many_files_there_are(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for number in range(87):
        (tmp_path / "source" / f"{number}.png").write_bytes(png(number))
    found = cards_of_all(made(image_settings(tmp_path, "folder")))
    assert len(found.by_id) == found.files_read == 87
    assert found.details()["items_unavailable"] == 0


def write_large_tar(path: Path, pictures: list[bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, content in enumerate(pictures):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_image_table(path: Path, pictures: list[bytes]) -> None:
    import pyarrow.parquet as pq

    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": pictures}), path, row_group_size=4, use_dictionary=False)


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
@pytest.mark.parametrize("row", [0, 13, 19])
def test_of_a_large_file_little_more_is_read_than_the_items_that_are_wanted(
    tmp_path: Path, kind: str, row: int
) -> None:
    pictures = [noise(number, 100) for number in range(20)]
    if kind == "webdataset":
        write_large_tar(tmp_path / "source" / "0.tar", pictures)
        settings = image_settings(tmp_path, kind)
    else:
        write_image_table(tmp_path / "source" / "0.parquet", pictures)
        settings = image_settings(tmp_path, kind)
        settings["source"] |= {"image": "image"}
    pipeline = made(settings)
    found = read_cards(pipeline.context, [row])
    assert found.by_id[row].image is not None
    # Of a tar the headers before it, in pieces of 4 KiB; of a table its row group of four, and some 64 KiB of its end.
    at_most = 2 * len(pictures[row]) + 4096 * (row + 4) if kind == "webdataset" else 4 * len(pictures[row]) + (72 << 10)
    assert len(pictures[row]) <= found.bytes_read <= at_most < 20 * len(pictures[row])
    assert np.abs(mean_colour(found.by_id[row].image or b"") - mean_colour(pictures[row])).max() < 12


@pytest.mark.parametrize("kind", ["folder", "webdataset", "parquet"])
def test_images_of_an_object_store_are_those_of_the_disk(tmp_path: Path, bucket: str, kind: str) -> None:
    pictures = [noise(number, 60) for number in range(12)]
    if kind == "folder":
        (tmp_path / "source").mkdir()
        for number, content in enumerate(pictures):
            (tmp_path / "source" / f"{number:02d}.png").write_bytes(content)
    else:
        write = write_large_tar if kind == "webdataset" else write_image_table
        write(tmp_path / "source" / f"0.{'tar' if kind == 'webdataset' else 'parquet'}", pictures)
    for path in (tmp_path / "source").iterdir():
        write_bytes(f"{bucket}/{kind}/{path.name}", path.read_bytes())
    settings = image_settings(tmp_path, kind)
    if kind == "parquet":
        settings["source"] |= {"image": "image"}
    local = cards_of_all(made(settings))
    remote = made(settings | {"source": settings["source"] | {"path": f"{bucket}/{kind}"}, "dataset": "remote"})
    found = cards_of_all(remote)
    assert [card.image for card in found.by_id.values()] == [card.image for card in local.by_id.values()]
    assert found.details()["items_unavailable"] == 0
    assert found.files_read == local.files_read


def test_cards_show_carried_columns_and_lead_to_addresses(tmp_path: Path) -> None:
    vectors = near_duplicates(0, groups=2, copies=3)
    columns = {
        "url": [f"https://example.org/{row}.jpg" if row else "javascript:alert(1)" for row in range(6)],
        "note": ["<b>bold</b>", None, "多言語 \u202e", "word " * 100, "", "x"],
        "score": [0.123456789, None, 1e12, -1.0, 0.0, 2.5],
        "safe": [True, False, None, True, True, False],
        "nothing": pa.nulls(6, pa.string()),
    }
    write_table(tmp_path, "a", vectors, columns)
    settings = analysed_settings(tmp_path)
    types = {"url": "string", "note": "string", "score": "float", "safe": "bool", "nothing": "string"}
    settings["source"] |= {"key": "name", "columns": types}
    settings |= {"clustering": {"k": [1], "buckets": 1}, "epsilons": ["0.5"]}
    pipeline = made(settings)
    cards = list(cards_of_all(pipeline).by_id.values())
    # A column without a value in any card is not listed.
    assert [column.name for column in cards[0].columns] == ["url", "note", "score", "safe"]
    values = [[column.value for column in card.columns] for card in cards]
    assert values[0] == ["javascript:alert(1)", "<b>bold</b>", "0.123457", "true"]
    assert values[1] == ["https://example.org/1.jpg", None, None, "false"]
    assert values[2][2] == "1e+12"
    assert [len(value or "") for _, value, *_ in values] == [11, 0, 5, 120, 0, 1]
    _, page = drawn(pipeline, "0.5|1")
    assert 'href="https://example.org/1.jpg" rel="noreferrer noopener"' in page
    assert "javascript:alert(1)" in page
    assert 'href="javascript' not in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "<img" not in page


def test_another_carried_column_draws_the_gallery_again(tmp_path: Path) -> None:
    write_table(tmp_path, "a", near_duplicates(0), {"rank": list(range(60))})
    settings = analysed_settings(tmp_path)
    settings["source"] |= {"key": "name"}
    pipeline = made(settings, "galleries")
    carried = pipeline.changed(source={"columns": {"rank": "int"}})
    made_again = carried.make("items", "embeddings", "galleries")
    assert set(made_again) == {"items", "galleries"}
    assert ">rank<" in carried.record("galleries", "0.05|3").file("index.html").content().decode()


def saved(path: Path) -> tuple[bytes, int]:
    return path.read_bytes(), path.stat().st_mtime_ns


def restore(path: Path, content: tuple[bytes, int]) -> None:
    path.write_bytes(content[0])
    os.utime(path, ns=(content[1], content[1]))


@pytest.mark.parametrize("damage", ["gone", "rewritten", "rewritten unnoticed", "cut off unnoticed"])
def test_a_card_says_where_the_source_no_longer_holds_what_was_embedded(images: SmallPipeline, damage: str) -> None:
    path = Path(images.settings["source"]["path"]) / "1.tar"
    content = saved(path)
    try:
        if damage == "gone":
            path.unlink()
        else:
            # Digits that change place leave a header's check sum, so that this is a good tar of other keys.
            path.write_bytes(content[0].replace(b"0010", b"0100"))
            if damage == "cut off unnoticed":
                path.write_bytes(content[0][:6000] + bytes(len(content[0]) - 6000))
            if "unnoticed" in damage:
                os.utime(path, ns=(content[1], content[1]))
        record, page = drawn(images, "0.000001|1")
        reasons = {
            "gone": "1.tar is no longer there",
            "rewritten": "1.tar was changed since it was observed",
            "rewritten unnoticed": "1.tar changed since it was embedded: it holds another item here",
            "cut off unnoticed": "1.tar changed since it was embedded: it ends before this item",
        }
        assert reasons[damage] in page
        assert record.details["items_unavailable"] > 0
        assert re.search(r'<img alt="000\d\d"', page)
    finally:
        restore(path, content)


@pytest.mark.parametrize("read_again", [[], ["items"]], ids=["nothing", "items alone"])
def test_of_a_shard_observed_anew_but_not_embedded_no_image_is_read(tmp_path: Path, read_again: list[str]) -> None:
    write_tar(tmp_path / "source" / "0.tar", first=0)
    pipeline = made(image_settings(tmp_path, "webdataset"))
    os.utime(tmp_path / "source" / "0.tar", ns=(1, 1))
    pipeline.observe()
    renewed = pipeline.changed()
    renewed.make(*read_again)
    found = cards_of_all(renewed)
    assert found.files_read == 0
    reason = f"{tmp_path}/source/0.tar changed since it was embedded"
    assert {card.unavailable for card in found.by_id.values()} == {reason}


def test_an_item_whose_shard_vanished_is_named_by_shard_and_row(images: SmallPipeline) -> None:
    cards = read_cards(images.context, [7 << 32 | 3, 0])
    assert [card.key for card in cards.by_id.values()] == ["shard 7, row 3", "00000"]
    assert cards.by_id[7 << 32 | 3].unavailable == "the source no longer has it"


def test_a_folder_of_images_is_read_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for number in range(5):
        (tmp_path / "source" / f"{number}[a].png").write_bytes(png(number))
        (tmp_path / "source" / f"{number}[a].txt").write_text("a caption")
    found = cards_of_all(made(image_settings(tmp_path, "folder") | {"shards": {"files_per_shard": 2}}))
    assert found.files_read == 5
    assert all(card.image is not None for card in found.by_id.values())


def text_settings(folder: Path) -> dict[str, Any]:
    return analysed_settings(folder) | {
        "dataset": "texts",
        "source": {"kind": "jsonl", "path": str(folder / "source"), "key": "name"},
        "encoder": STATIC_TEXTS,
        "model": "static",
        "clustering": {"k": [1], "buckets": 1, "iterations": 5},
        "epsilons": ["0.3"],
    }


TEXTS = [
    "The black cat sat on the <script>alert(1)</script> mat & slept.",
    "The grey cat sat on the <script>alert(1)</script> mat & slept.",
    "Rain falls in spring. " + "It is wet. " * 1000,
]


def write_texts(folder: Path, name: str, texts: list[str]) -> Path:
    (folder / "source").mkdir(exist_ok=True)
    path = folder / "source" / name
    lines = ({"text": text, "name": f"<b>{name}</b> {number}"} for number, text in enumerate(texts))
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_texts_are_compared_word_by_word_without_their_source_and_are_no_markup(tmp_path: Path) -> None:
    path = write_texts(tmp_path, "0.jsonl", TEXTS)
    pipeline = made(text_settings(tmp_path))
    path.unlink()
    record, page = drawn(pipeline, "0.3|1")
    assert record.details["items_unavailable"] == record.details["files_read"] == 0
    rest = r"cat sat on the &lt;script&gt;alert\(1\)&lt;/script&gt; mat &amp; slept\."
    pairs = re.findall(rf"The <del>(\w+) </del><ins>(\w+) </ins>{rest}", page)
    assert pairs
    assert set(pairs) <= {("grey", "black"), ("black", "grey")}
    assert f"… ({len(TEXTS[2]) - 4000:,} characters more)" in page
    assert "<script>alert" not in page
    assert "<b>0.jsonl" not in page
    assert "&lt;b&gt;0.jsonl&lt;/b&gt; 1" in page
    rows = json.loads(record.file("largest_groups_of_duplicates.json").content())
    assert [row["state"] for row in rows] == ["kept", "removed"]
    assert {row["text"] for row in rows} == set(TEXTS[:2])


def test_texts_of_tables_beyond_the_limit_are_only_named(tmp_path: Path) -> None:
    # Random digits pack to about half a byte each; the model has no word for them, so that this item is in the table alone.
    digits = np.random.default_rng(0).integers(0, 10, 3_000_000).astype("U1")
    for number in range(2):
        write_texts(tmp_path, f"{number}.jsonl", [*TEXTS[:2], "".join(digits)])
    cards = cards_of_all(made(text_settings(tmp_path) | {"galleries": {"mib": 1}})).by_id
    assert [card.text is None for card in cards.values()] == [False] * 2 + [True] * 2
    assert {card.unavailable for item, card in cards.items() if item >> 32 == 1} == {
        "not read: 1 MiB of the source were read before it (`galleries.mib`)"
    }
    assert [card.key for card in cards.values()][2:] == [f"<b>1.jsonl</b> {number}" for number in range(2)]
