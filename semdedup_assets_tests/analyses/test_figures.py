"""The figures' numbers against whole matrices, on a small pipeline."""

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from semdedup_assets.algorithm import epsilon_curves
from semdedup_assets.execution.stage import Picture, Rows
from semdedup_assets.execution.staleness import stale_partitions
from semdedup_assets.rendering.plots import TITLES
from semdedup_assets.storage.results import MissingResultError, ResultRecord
from semdedup_assets_tests import oracle
from semdedup_assets_tests.analyses.small_pipelines import (
    GRAPH,
    MASKS,
    SmallPipeline,
    analysed_settings,
    made,
    read_table,
)
from semdedup_assets_tests.toy_source import near_duplicates, write_shard, write_table

EPSILONS = ["0", "0.01", "0.1", "0.3", "keep=50%"]
# What float32 may differ from float64.
STEP = 2e-5


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> SmallPipeline:
    folder = tmp_path_factory.mktemp("figures")
    first = near_duplicates(0, groups=30, copies=4)
    write_shard(folder, "a", first)
    # Exact duplicates across shards.
    write_shard(folder, "b", np.concatenate([near_duplicates(1, groups=30, copies=3), first[:7]]))
    clustering = {"k": [5, 1, 150], "buckets": 3, "iterations": 10}
    return made(analysed_settings(folder) | {"clustering": clustering, "epsilons": EPSILONS}, "figures")


@dataclass(frozen=True)
class Truth:
    """What whole matrices tell of each item, by cluster: (n,) each."""

    earlier: dict[int, np.ndarray]
    any_other: dict[int, np.ndarray]
    pairs: dict[int, np.ndarray]

    def all(self, of: dict[int, np.ndarray], clusters: list[int] | None = None) -> np.ndarray:
        return np.concatenate([values for c, values in of.items() if clusters is None or c in clusters])


@cache
def known(pipeline: SmallPipeline, k: str) -> Truth:
    items = pipeline.items(f"0|{k}")
    order = oracle.order_in_clusters(*(items[name].to_numpy() for name in ("cluster", "centroid_similarity", "id")))
    rows = items["unit"].to_numpy()
    members = {c: rows[found] for c, found in order.items()}
    pairs = {c: (own @ own.T)[np.triu_indices(len(own), k=1)] for c, own in members.items()}
    return Truth(
        {c: oracle.chain_scores(own) for c, own in members.items()},
        {c: oracle.nearest_kept(own, np.ones(len(own), dtype=bool)) for c, own in members.items()},
        pairs,
    )


def assert_counts(found: np.ndarray, values: np.ndarray, thresholds: np.ndarray, *, sure: float) -> None:
    """That `found` counts the values at most each threshold, up to those that lie at it; few lie at any."""
    least = np.array([(values <= threshold - STEP).sum() for threshold in thresholds])
    most = np.array([(values <= threshold + STEP).sum() for threshold in thresholds])
    assert (least <= found).all()
    assert (found <= most).all()
    assert (least == most).mean() > sure


@pytest.fixture(scope="module", params=["5", "150"])
def k(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def record(pipeline: SmallPipeline, k: str) -> ResultRecord:
    return pipeline.record("figures", k)


def test_the_kept_curve_is_exact_at_every_epsilon(pipeline: SmallPipeline, k: str, record: ResultRecord) -> None:
    table = read_table(record, "kept_by_epsilon.parquet")
    epsilons = table["epsilon"].to_numpy()
    similarity = pipeline.items(f"0|{k}")["similarity"].to_numpy().astype(np.float64)
    by_scores = [(similarity <= 1.0 - epsilon).sum() for epsilon in epsilons.tolist()]
    assert table["kept"].to_list() == by_scores
    assert_counts(table["kept"].to_numpy(), known(pipeline, k).all(known(pipeline, k).earlier), 1 - epsilons, sure=0.7)
    assert table["kept_fraction"].to_numpy() == pytest.approx(np.array(by_scores) / len(similarity))


def test_the_curve_agrees_with_the_masks_at_the_pipeline_s_epsilons(
    pipeline: SmallPipeline, k: str, record: ResultRecord
) -> None:
    rows = {row["epsilon"]: row for row in record.details["by_epsilon"]}
    assert list(rows) == EPSILONS
    for name, row in rows.items():
        masks = pipeline.record("keep_masks", f"{name}|{k}").details
        assert row["number"] == masks["epsilon"]
        assert row["kept"] == pytest.approx(masks["kept_fraction"], abs=1e-12)
    assert rows["keep=50%"]["kept"] >= 0.5


def test_items_with_a_duplicate_are_those_of_the_whole_matrix(
    pipeline: SmallPipeline, k: str, record: ResultRecord
) -> None:
    table, truth = read_table(record, "duplicates_by_epsilon.parquet"), known(pipeline, k)
    others = truth.all(truth.any_other)
    without = len(others) - table["with_duplicate"].to_numpy()
    assert_counts(without, others, 1 - table["epsilon"].to_numpy(), sure=0.7)
    assert table["with_duplicate_fraction"].to_numpy() == pytest.approx(1 - without / len(others))
    # Who is removed has a duplicate; and of each group of duplicates one is not removed.
    removed = len(others) - read_table(record, "kept_by_epsilon.parquet")["kept"].to_numpy()
    assert (table["with_duplicate"].to_numpy() >= removed).all()
    assert (table["with_duplicate"].to_numpy() > removed).any()


def test_protection_changes_who_is_kept_and_not_who_has_a_duplicate(tmp_path: Path) -> None:
    vectors = near_duplicates(0, groups=30, copies=4)
    write_table(tmp_path, "a", vectors, {"chosen": (np.arange(len(vectors)) % 3 == 0).tolist()})
    settings = analysed_settings(tmp_path) | {"epsilons": ["0.01", "0.1", "0.3"]}
    settings["source"] |= {"columns": {"chosen": "bool"}}
    plain = made(settings, "figures").record("figures", "3")
    protected = made(settings | {"selection": {"protect": "chosen"}}, "figures").record("figures", "3")
    names = ("duplicates_by_epsilon.parquet", "kept_by_epsilon.parquet")
    duplicates, kept = ([read_table(record, name) for record in (plain, protected)] for name in names)
    assert duplicates[0].equals(duplicates[1])
    assert (kept[0]["kept"] <= kept[1]["kept"]).all()
    assert (kept[0]["kept"] < kept[1]["kept"]).any()


def test_all_pairs_and_all_items_are_in_the_histogram(pipeline: SmallPipeline, k: str, record: ResultRecord) -> None:
    table, truth = read_table(record, "similarities.parquet"), known(pipeline, k)
    edges = table["high"].to_numpy()
    pairs, earlier = truth.all(truth.pairs), truth.all(truth.earlier)
    assert_counts(table["pairs"].cum_sum().to_numpy(), pairs, edges, sure=0.7)
    assert_counts(table["items"].cum_sum().to_numpy(), earlier[np.isfinite(earlier)], edges, sure=0.7)
    assert record.details["sampled_pairs"] == len(pairs)
    # Of each cluster the first has no earlier item.
    assert table["items"].sum() == len(earlier) - len(truth.earlier)


def test_clusters_lose_what_the_rule_removes(pipeline: SmallPipeline, k: str, record: ResultRecord) -> None:
    table, truth = read_table(record, "removed_by_cluster_size.parquet"), known(pipeline, k)
    for name in EPSILONS:
        masks = pipeline.record("keep_masks", f"{name}|{k}").details
        for cluster, count in table.select("cluster", f"removed_{name}").iter_rows():
            earlier = truth.earlier.get(cluster, np.empty(0))
            limit = 1 - masks["epsilon"]
            assert (earlier > limit + STEP).sum() <= count <= (earlier > limit - STEP).sum()
        assert table[f"removed_{name}"].sum() == masks["removed"]


def test_cluster_sizes_are_those_of_the_assignments(pipeline: SmallPipeline, k: str, record: ResultRecord) -> None:
    table, truth, details = read_table(record, "cluster_sizes.parquet"), known(pipeline, k), record.details
    sizes = {c: len(values) for c, values in truth.earlier.items()}
    assert dict(table.select("cluster", "items").filter(pl.col("items") > 0).iter_rows()) == sizes
    assert table["items"].is_sorted(descending=True)
    assert details["largest_cluster_size"] == max(sizes.values()) == sizes[details["largest_cluster"]]
    assert details["clusters"] == len(table) == len(sizes) + details["empty_clusters"]
    assert details["average_cluster_size"] == pytest.approx(sum(sizes.values()) / len(table))


def test_what_is_shown_are_small_pictures_and_the_pipeline_s_epsilons(
    pipeline: SmallPipeline, k: str, record: ResultRecord
) -> None:
    shown = GRAPH["figures"].shown(pipeline.context, pipeline.partition("figures", k), record)
    assert list(shown) == [*TITLES, "by_epsilon"]
    for name, title in TITLES.items():
        picture = shown[name]
        assert isinstance(picture, Picture)
        assert (picture.title, len(picture.png) < 100_000) == (title, True)
        assert Image.open(io.BytesIO(picture.png)).width <= 600
    table = shown["by_epsilon"]
    assert isinstance(table, Rows)
    assert [row["epsilon"] for row in table.rows] == EPSILONS
    kept = pipeline.record("keep_masks", f"0.1|{k}").details["kept_fraction"]
    assert table.rows[2]["items kept"] == f"{kept:.2%}"


def test_drawn_again_they_are_the_same(pipeline: SmallPipeline, k: str, record: ResultRecord) -> None:
    assert len(record.files) == 2 * len(TITLES)
    assert record.inputs.keys() == {"duplicate_scores", "keep_masks"}
    assert pipeline.make("figures") == {}
    again = pipeline.changed().make_partition("figures", k)
    assert (again.version, again.inputs) == (record.version, record.inputs)


@pytest.mark.parametrize("items", [80, 1])
def test_a_sample_is_of_whole_clusters_and_exact_on_them(
    pipeline: SmallPipeline, monkeypatch: pytest.MonkeyPatch, items: int
) -> None:
    monkeypatch.setattr(epsilon_curves, "_SAMPLE_ITEMS", items)
    found, truth = pipeline.make_partition("figures", "150"), known(pipeline, "150")
    sizes = read_table(found, "cluster_sizes.parquet")
    chosen = sizes.filter(pl.col("sampled"))["cluster"].to_list()
    others, pairs = truth.all(truth.any_other, chosen), truth.all(truth.pairs, chosen)
    assert found.details["sampled_clusters"] == len(chosen) < len(truth.earlier)
    assert found.details["sampled_items"] == len(others)
    if items == 80:
        assert 40 < len(others) <= 80
    table = read_table(found, "duplicates_by_epsilon.parquet")
    assert_counts(len(others) - table["with_duplicate"].to_numpy(), others, 1 - table["epsilon"].to_numpy(), sure=0.7)
    histogram = read_table(found, "similarities.parquet")
    assert histogram["pairs"].sum() == len(pairs)
    # What the scores alone tell is still told of all.
    assert found.details["items"] == len(truth.all(truth.earlier))
    assert histogram["items"].sum() == found.details["items"] - len(truth.earlier)


@pytest.mark.parametrize("k", ["1", "5"])
def test_a_choice_of_pairs_is_like_all_pairs(pipeline: SmallPipeline, monkeypatch: pytest.MonkeyPatch, k: str) -> None:
    pairs = known(pipeline, k).all(known(pipeline, k).pairs)
    wanted = len(pairs) // 3
    monkeypatch.setattr(epsilon_curves, "_SAMPLE_PAIRS", wanted)
    found = pipeline.make_partition("figures", k)
    table = read_table(found, "similarities.parquet")
    # Each cluster is divided into so many parts that their pairs are no more than wanted.
    wanted = len(pairs) / -(-len(pairs) // wanted)
    items = found.details["items"] / 6
    assert found.details["sampled_pairs"] == pytest.approx(wanted, rel=4 / np.sqrt(items))
    middle = (table["low"] + table["high"]).to_numpy() / 2
    mean = float((middle * table["pairs"].to_numpy()).sum() / table["pairs"].sum())
    assert mean == pytest.approx(pairs.mean(), abs=0.005 + 4 * pairs.std() / np.sqrt(items))
    # No item is paired with itself: in the last bin lie exact duplicates alone.
    expected = wanted * float((pairs > table["low"][-1] - STEP).mean())
    assert table["pairs"][-1] <= 2 * expected + 8


def test_figures_of_missing_or_stale_inputs_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", near_duplicates(0))
    pipeline = SmallPipeline(analysed_settings(tmp_path))
    pipeline.observe()
    pipeline.make(*MASKS[:-2])
    with pytest.raises(MissingResultError, match="materialise toy/precomputed/duplicate_scores"):
        pipeline.make_partition("figures", "3")
    pipeline.make("duplicate_scores")
    with pytest.raises(MissingResultError, match=r"materialise toy/precomputed/keep_masks, partition 0.05\|3"):
        pipeline.make_partition("figures", "3")
    pipeline.make("keep_masks")
    pipeline.make_partition("figures", "3")
    easy = pipeline.changed(selection={"keep": "easy"})
    with pytest.raises(MissingResultError, match="materialise toy/precomputed/duplicate_scores"):
        easy.make_partition("figures", "3")
    write_shard(tmp_path, "b", near_duplicates(1))
    pipeline.observe()
    grown = pipeline.changed()
    grown.make(*MASKS[:-1])
    with pytest.raises(MissingResultError, match=r"made from other inputs .* materialise toy/precomputed/keep_masks"):
        grown.make_partition("figures", "3")


def test_another_epsilon_makes_the_figures_stale_and_another_order_of_epsilons_does_not(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", near_duplicates(0))
    pipeline = made(analysed_settings(tmp_path) | {"epsilons": ["0.05", "0.1"]}, "figures")
    assert pipeline.changed(epsilons=["0.1", "0.05"]).make("keep_masks", "figures") == {}
    more = pipeline.changed(epsilons=["0.05", "0.1", "0.2"])
    assert more.make("keep_masks") == {"keep_masks": ["0.2|3"]}
    assert list(map(str, stale_partitions(more.context, "figures"))) == ["3"]
    assert more.make("figures") == {"figures": ["3"]}
    assert stale_partitions(more.context, "figures") == {}


@pytest.mark.parametrize(
    ("vectors", "kept"),
    [(np.ones((1, 8)), 1.0), (np.ones((20, 8)), 0.05), (np.eye(8), 1.0)],
    ids=["one item", "all the same", "all unlike"],
)
def test_odd_datasets_have_figures_too(tmp_path: Path, vectors: np.ndarray, kept: float) -> None:
    write_shard(tmp_path, "a", vectors.astype(np.float32))
    settings = analysed_settings(tmp_path) | {"clustering": {"k": [1], "buckets": 2}, "epsilons": ["0.05", "keep=90%"]}
    found = made(settings, "figures").record("figures", "1")
    row = found.details["by_epsilon"][0]
    assert row["kept"] == pytest.approx(kept)
    assert row["with_duplicate"] == (1.0 if kept < 1 else 0.0)


def test_of_no_items_the_figures_say_so(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", near_duplicates(0))
    pipeline = made(analysed_settings(tmp_path) | {"epsilons": ["0.05", "keep=50%"]})
    write_shard(tmp_path, "a", np.empty((0, 16), dtype=np.float32))
    pipeline.observe()
    empty = pipeline.changed()
    empty.make(*MASKS, "figures")
    found = empty.record("figures", "3")
    assert found.details["items"] == 0
    assert found.details["by_epsilon"] == []
    assert read_table(found, "kept_by_epsilon.parquet")["kept"].sum() == 0
    assert read_table(found, "removed_by_cluster_size.parquet")["items"].to_list() == [0, 0, 0]
    shown = GRAPH["figures"].shown(empty.context, empty.partition("figures", "3"), found)
    assert list(shown) == list(TITLES)
