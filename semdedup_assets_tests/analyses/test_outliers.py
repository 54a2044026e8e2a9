"""Lists of outliers and typical items against all pairs, and how they are shown."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from semdedup_assets.execution.stage import Link, Picture, Rows
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets_tests.analyses.small_pipelines import image_settings, read_table, write_tar
from semdedup_assets_tests.oracle import unit
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    folder = tmp_path_factory.mktemp("outliers")
    for seed in range(3):
        write_shard(folder, f"{seed}", near_duplicates(seed))
    found = StageRuns(vectors_settings(folder) | {"analyses": {"outliers": {"items": 9}}}, GRAPH)
    found.run(until="keep_masks")
    return found


def similarities(runs: StageRuns) -> pl.DataFrame:
    """Each item with its cluster, its similarity to the centroid, and the greatest one to another of its cluster."""
    scores = runs.scores("3").select("id", "cluster", "centroid_similarity")
    source = Path(runs.settings["source"]["path"])
    rows = unit(np.concatenate([np.load(source / f"{shard}.npy") for shard in range(3)]).astype(np.float64))
    ids = [shard << 32 | row for shard in range(3) for row in range(60)]
    place = {item: index for index, item in enumerate(ids)}
    order = [place[item] for item in scores["id"].to_list()]
    exact = rows[order] @ rows[order].T
    exact[scores["cluster"].to_numpy()[:, None] != scores["cluster"].to_numpy()[None, :]] = -np.inf
    np.fill_diagonal(exact, -np.inf)
    return scores.with_columns(nearest=pl.Series(exact.max(axis=1)))


def test_lists_are_the_extremes_of_all_items(runs: StageRuns) -> None:
    (record,) = runs.make("outliers", "3")
    table, expected = read_table(record, "outliers.parquet"), similarities(runs)
    for name, column, descending in (
        ("least_similar_to_centroid", "centroid_similarity", False),
        ("most_similar_to_centroid", "centroid_similarity", True),
        ("most_isolated", "nearest", False),
    ):
        found = table.filter(pl.col("list") == name)
        first = expected.sort(column, "id", descending=[descending, False]).head(9)
        assert found["rank"].to_list() == list(range(1, 10))
        assert found["similarity"].to_list() == pytest.approx(first[column].to_list(), abs=2e-3)
        assert found["id"].to_list() == first["id"].to_list()
        assert found["cluster"].to_list() == first["cluster"].to_list()
        assert found["key"].to_list() == [f"{item >> 32}.npy:{item & 0xFFFFFFFF}" for item in found["id"].to_list()]
    assert record.details["items_compared"] == record.details["items"] == 180


def test_of_much_data_the_most_isolated_are_looked_for_in_whole_clusters(
    runs: StageRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semdedup_assets.algorithm.epsilon_curves._SAMPLE_ITEMS", 80)
    (record,) = runs.make("outliers", "3")
    sizes = dict(runs.scores("3")["cluster"].value_counts().iter_rows())
    table = read_table(record, "outliers.parquet").filter(pl.col("list") == "most_isolated")
    clusters = set(table["cluster"].to_list())
    seen = record.details["items_compared"]
    assert seen < 180
    assert seen in {sum(sizes[each] for each in chosen) for chosen in ([0], [1], [2], [0, 1], [0, 2], [1, 2])}
    within = similarities(runs).filter(pl.col("cluster").is_in(clusters)).sort("nearest", "id")
    assert table["id"].to_list() == within["id"].to_list()[:9]
    assert f"{seen} of 180 items, in whole clusters" in record.file("index.html").content().decode()


def test_an_item_alone_in_its_cluster_is_the_most_isolated_and_an_empty_source_gives_empty_lists(
    tmp_path: Path,
) -> None:
    write_shard(tmp_path, "a", np.eye(4, dtype=np.float32)[[0, 0, 1]])
    lonely = StageRuns(vectors_settings(tmp_path, clustering={"k": [2], "buckets": 1}), GRAPH)
    lonely.run(until="assignments")
    (record,) = lonely.make("outliers", "2")
    table = read_table(record, "outliers.parquet").filter(pl.col("list") == "most_isolated")
    assert table["similarity"].to_list() == [None, 1.0, 1.0]
    assert table["id"].to_list() == [2, 0, 1]
    shown = (
        lonely.context()
        .graph["outliers"]
        .shown(lonely.context(), lonely.context().index.partitions("outliers")[0], record)
    )
    assert isinstance(shown["most_isolated"], Rows)


def test_images_are_shown(tmp_path: Path) -> None:
    write_tar(tmp_path / "source" / "0.tar", first=0)
    images = StageRuns(image_settings(tmp_path, "webdataset"), GRAPH)
    images.run(until="assignments")
    (record,) = images.make("outliers", "1")
    shown = GRAPH["outliers"].shown(images.context(), images.context().index.partitions("outliers")[0], record)
    assert isinstance(shown["outliers"], Link)
    page = Path(shown["outliers"].path).read_text()
    assert page.count("<img") == len(read_table(record, "outliers.parquet")) == 27
    assert sum(isinstance(each, Picture) for each in shown.values()) == 3
    # Nothing was selected: no item is called kept or removed.
    assert 'class="kept"' not in page
    assert 'class="removed"' not in page
