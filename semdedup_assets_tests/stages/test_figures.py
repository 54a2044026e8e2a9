"""The figures' numbers against whole matrices, on a small pipeline."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest
from PIL import Image

from semdedup_assets.figures.plots import TITLES
from semdedup_assets.stages import figures
from semdedup_assets.stages.centroids import bucket_ranges
from semdedup_assets.stages.figures import draw_figures, read_figure
from semdedup_assets.storage.results import MissingResultError, Recipe
from semdedup_assets.storage.vectors import clusters_of_rows, read_bucket
from semdedup_assets_tests import oracle
from semdedup_assets_tests.pipeline_runs import PipelineRuns, near_duplicates, vectors_settings, write_shard

EPSILONS = ["0", "0.01", "0.1", "0.3", "keep=50%"]
# What float32 may differ from float64.
STEP = 2e-5


def numbers(runs: PipelineRuns, k: str, name: str) -> pl.DataFrame:
    return pl.read_parquet(io.BytesIO(read_figure(runs.work, k, f"{name}.parquet")))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipelineRuns]:
    folder = tmp_path_factory.mktemp("figures")
    first = near_duplicates(0, groups=30, copies=4)
    write_shard(folder, "a", first)
    # Exact duplicates across shards.
    write_shard(folder, "b", np.concatenate([near_duplicates(1, groups=30, copies=3), first[:7]]))
    settings = vectors_settings(folder) | {
        "clustering": {"k": [5, 1, 150], "buckets": 3, "iterations": 10},
        "epsilons": EPSILONS,
    }
    with dg.DagsterInstance.ephemeral() as instance:
        made = PipelineRuns(instance, settings)
        made.refresh()
        yield made


@dataclass(frozen=True)
class Truth:
    """What whole matrices tell of each item, by cluster: (n,) each."""

    earlier: dict[int, np.ndarray]
    any_other: dict[int, np.ndarray]
    pairs: dict[int, np.ndarray]

    def all(self, of: dict[int, np.ndarray], clusters: list[int] | None = None) -> np.ndarray:
        return np.concatenate([values for c, values in of.items() if clusters is None or c in clusters])


def truth(runs: PipelineRuns, k: str) -> Truth:
    ids, clusters, similarity, vectors = [], [], [], []
    for shard in runs.work.shards():
        for bucket, inside in enumerate(bucket_ranges(runs.work, k)):
            part = read_bucket(runs.work.layout.assignments(k, shard.name), bucket=bucket, clusters=inside)
            ids.append(part.table.ids)
            clusters.append(clusters_of_rows(part.offsets) + inside.start)
            similarity.append(part.table.columns.column("centroid_similarity").to_numpy())
            vectors.append(np.array(part.table.vectors))
    rows = np.concatenate(vectors)
    order = oracle.order_in_clusters(np.concatenate(clusters), np.concatenate(similarity), np.concatenate(ids))
    members = {c: rows[found] for c, found in order.items()}
    pairs = {c: (oracle.unit(own) @ oracle.unit(own).T)[np.triu_indices(len(own), k=1)] for c, own in members.items()}
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
def recipe(runs: PipelineRuns, k: str) -> Recipe:
    return draw_figures(runs.work, k)


@pytest.mark.usefixtures("recipe")
def test_the_kept_curve_is_exact_at_every_epsilon(runs: PipelineRuns, k: str) -> None:
    table = numbers(runs, k, "kept_by_epsilon")
    epsilons = table["epsilon"].to_numpy()
    scores = pl.concat([pl.read_parquet(runs.work.layout.scores(k, bucket)) for bucket in runs.work.buckets])
    similarity = scores["similarity"].to_numpy().astype(np.float64)
    by_scores = [(similarity <= 1.0 - epsilon).sum() for epsilon in epsilons.tolist()]
    assert table["kept"].to_list() == by_scores
    assert_counts(table["kept"].to_numpy(), truth(runs, k).all(truth(runs, k).earlier), 1 - epsilons, sure=0.7)
    assert table["kept_fraction"].to_numpy() == pytest.approx(np.array(by_scores) / len(similarity))


def test_the_curve_agrees_with_the_masks_at_the_pipeline_s_epsilons(runs: PipelineRuns, k: str, recipe: Recipe) -> None:
    kept = {row["epsilon"]: row["kept"] for row in recipe.details["by_epsilon"]}
    assert list(kept) == EPSILONS
    for epsilon, fraction in kept.items():
        assert fraction == pytest.approx(runs.work.masks(k, epsilon).details["kept_fraction"], abs=1e-12)
    assert kept["keep=50%"] >= 0.5


@pytest.mark.usefixtures("recipe")
def test_items_with_a_duplicate_are_those_of_the_whole_matrix(runs: PipelineRuns, k: str) -> None:
    table, known = numbers(runs, k, "duplicates_by_epsilon"), truth(runs, k)
    others = known.all(known.any_other)
    lonely = len(others) - table["with_duplicate"].to_numpy()
    assert_counts(lonely, others, 1 - table["epsilon"].to_numpy(), sure=0.7)
    assert table["with_duplicate_fraction"].to_numpy() == pytest.approx(1 - lonely / len(others))
    # Who is removed has a duplicate; and of each group of duplicates one is not removed.
    removed = len(others) - numbers(runs, k, "kept_by_epsilon")["kept"].to_numpy()
    assert (table["with_duplicate"].to_numpy() >= removed).all()
    assert (table["with_duplicate"].to_numpy() > removed).any()


def test_all_pairs_and_all_items_are_in_the_histogram(runs: PipelineRuns, k: str, recipe: Recipe) -> None:
    table, known = numbers(runs, k, "similarities"), truth(runs, k)
    edges = table["high"].to_numpy()
    pairs, earlier = known.all(known.pairs), known.all(known.earlier)
    assert_counts(table["pairs"].cum_sum().to_numpy(), pairs, edges, sure=0.7)
    assert_counts(table["items"].cum_sum().to_numpy(), earlier[np.isfinite(earlier)], edges, sure=0.7)
    assert recipe.details["sampled_pairs"] == len(pairs)
    # Of each cluster the first has no earlier item.
    assert table["items"].sum() == len(earlier) - len(known.earlier)


@pytest.mark.usefixtures("recipe")
def test_clusters_lose_what_the_rule_removes(runs: PipelineRuns, k: str) -> None:
    table, known = numbers(runs, k, "removed_by_cluster_size"), truth(runs, k)
    for epsilon in EPSILONS:
        number = runs.work.masks(k, epsilon).details["epsilon"]
        for cluster, count in zip(table["cluster"].to_list(), table[f"removed_{epsilon}"].to_list(), strict=True):
            earlier = known.earlier.get(cluster, np.empty(0))
            assert (earlier > 1 - number + STEP).sum() <= count <= (earlier > 1 - number - STEP).sum()
        assert table[f"removed_{epsilon}"].sum() == runs.work.masks(k, epsilon).details["removed"]


def test_cluster_sizes_are_those_of_the_assignments(runs: PipelineRuns, k: str, recipe: Recipe) -> None:
    table, known = numbers(runs, k, "cluster_sizes"), truth(runs, k)
    sizes = {c: len(values) for c, values in known.earlier.items()}
    assert dict(table.select("cluster", "items").filter(pl.col("items") > 0).iter_rows()) == sizes
    assert table["items"].is_sorted(descending=True)
    assert recipe.details["largest_cluster_size"] == max(sizes.values()) == sizes[recipe.details["largest_cluster"]]
    assert recipe.details["clusters"] == len(table) == len(sizes) + recipe.details["empty_clusters"]
    assert recipe.details["average_cluster_size"] == pytest.approx(sum(sizes.values()) / len(table))


@pytest.mark.usefixtures("recipe")
def test_each_picture_lies_beside_its_numbers_and_is_small(runs: PipelineRuns, k: str) -> None:
    for name in TITLES:
        png = read_figure(runs.work, k, f"{name}.png")
        assert len(png) < 100_000
        assert Image.open(io.BytesIO(png)).width <= 600


def test_drawn_again_they_are_the_same(runs: PipelineRuns, k: str, recipe: Recipe) -> None:
    again = draw_figures(runs.work, k)
    assert (again.version, again.made_from, again.files) == (recipe.version, recipe.made_from, recipe.files)
    scores = [runs.work.scores(k, bucket).version for bucket in runs.work.buckets]
    assert len(recipe.files) == 2 * len(TITLES)
    assert recipe.made_from.keys() == {"duplicate_scores"}
    assert len(set(scores)) > 1


@pytest.mark.parametrize(("items", "buckets"), [(80, 4), (1, 4), (10_000, 1)])
def test_a_sample_is_of_whole_clusters_and_exact_on_them(
    runs: PipelineRuns, monkeypatch: pytest.MonkeyPatch, items: int, buckets: int
) -> None:
    monkeypatch.setattr(figures, "_SAMPLE_ITEMS", items)
    monkeypatch.setattr(figures, "_SAMPLE_BUCKETS", buckets)
    made, known = draw_figures(runs.work, "150"), truth(runs, "150")
    sizes = numbers(runs, "150", "cluster_sizes")
    chosen = sizes.filter(pl.col("sampled"))["cluster"].to_list()
    others, pairs = known.all(known.any_other, chosen), known.all(known.pairs, chosen)
    assert made.details["sampled_clusters"] == len(chosen) < len(known.earlier)
    assert made.details["sampled_items"] == len(others)
    if items == 80:
        assert 40 < len(others) <= 80
    if buckets == 1:
        inside = [set(clusters) for clusters in bucket_ranges(runs.work, "150")]
        assert set(chosen) in [clusters & set(known.earlier) for clusters in inside]
    table = numbers(runs, "150", "duplicates_by_epsilon")
    assert_counts(len(others) - table["with_duplicate"].to_numpy(), others, 1 - table["epsilon"].to_numpy(), sure=0.7)
    histogram = numbers(runs, "150", "similarities")
    assert histogram["pairs"].sum() == len(pairs)
    # What the scores alone tell is still told of all.
    assert made.details["items"] == len(known.all(known.earlier))
    assert histogram["items"].sum() == made.details["items"] - len(known.earlier)


@pytest.mark.parametrize("k", ["1", "5"])
def test_a_choice_of_pairs_is_like_all_pairs(runs: PipelineRuns, monkeypatch: pytest.MonkeyPatch, k: str) -> None:
    pairs = truth(runs, k).all(truth(runs, k).pairs)
    wanted = len(pairs) // 3
    monkeypatch.setattr(figures, "_SAMPLE_PAIRS", wanted)
    made = draw_figures(runs.work, k)
    table = numbers(runs, k, "similarities")
    assert abs(made.details["sampled_pairs"] - wanted) <= len(truth(runs, k).pairs)
    middle = (table["low"] + table["high"]).to_numpy() / 2
    mean = float((middle * table["pairs"].to_numpy()).sum() / table["pairs"].sum())
    assert mean == pytest.approx(pairs.mean(), abs=0.005 + 4 * pairs.std() / np.sqrt(wanted))
    # No item is paired with itself: in the last bin lie exact duplicates alone.
    expected = wanted * float((pairs > table["low"][-1] - STEP).mean())
    assert table["pairs"][-1] <= expected + 4 * np.sqrt(expected + 1)


def test_figures_of_scores_from_other_assignments_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", near_duplicates(0))
    with dg.DagsterInstance.ephemeral() as instance:
        runs = PipelineRuns(instance, vectors_settings(tmp_path))
        with pytest.raises(
            MissingResultError, match=r"b0000\.parquet: not there.*duplicate_scores, partition b0000\|3"
        ):
            draw_figures(runs.work, "3")
        runs.refresh()
        draw_figures(runs.work, "3")
        with pytest.raises(MissingResultError, match=r"b0000\.parquet: made from other settings .*duplicate_scores"):
            draw_figures(runs.changed(selection={"keep": "easy"}).work, "3")
        recipe = Path(f"{runs.work.layout.figures('3')}.recipe.json")
        recipe.unlink()
        with pytest.raises(MissingResultError, match="materialise toy/precomputed/figures, partition 3"):
            read_figure(runs.work, "3", "similarities.png")


@pytest.mark.parametrize(
    ("vectors", "kept"),
    [(np.ones((1, 8)), 1.0), (np.ones((20, 8)), 0.05), (np.eye(8), 1.0)],
    ids=["one item", "all the same", "all unlike"],
)
def test_odd_datasets_have_figures_too(tmp_path: Path, vectors: np.ndarray, kept: float) -> None:
    write_shard(tmp_path, "a", vectors.astype(np.float32))
    settings = vectors_settings(tmp_path) | {"clustering": {"k": [1], "buckets": 2}, "epsilons": ["0.05", "keep=90%"]}
    with dg.DagsterInstance.ephemeral() as instance:
        runs = PipelineRuns(instance, settings)
        runs.refresh()
        made = draw_figures(runs.work, "1")
    row = made.details["by_epsilon"][0]
    assert row["kept"] == pytest.approx(kept)
    assert row["with_duplicate"] == (1.0 if kept < 1 else 0.0)
    assert all(read_figure(runs.work, "1", f"{name}.png") for name in TITLES)


def test_of_no_items_the_figures_say_so(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", near_duplicates(0))
    with dg.DagsterInstance.ephemeral() as instance:
        runs = PipelineRuns(instance, vectors_settings(tmp_path))
        runs.refresh()
        write_shard(tmp_path, "a", np.empty((0, 16), dtype=np.float32))
        runs.refresh()
        made = draw_figures(runs.changed(epsilons=["0.05", "keep=50%"]).work, "3")
    assert made.details["items"] == 0
    assert made.details["by_epsilon"] == []
    assert numbers(runs, "3", "kept_by_epsilon")["kept"].sum() == 0
    assert numbers(runs, "3", "removed_by_cluster_size")["items"].to_list() == [0, 0, 0]
    assert all(read_figure(runs.work, "3", f"{name}.png") for name in TITLES)
