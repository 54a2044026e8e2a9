"""Epsilon estimated and its error, clusterings compared, redundancy by size, cost: against brute force on the same data."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from semdedup_assets.analyses import clustering_comparison, cost, epsilon_estimate_errors, epsilon_estimates
from semdedup_assets.analyses.redundancy_by_size import EXTRAPOLATED, FITS, SUBSAMPLES
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.kept_sets import Clustering
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets.stages.assignments import ASSIGNMENTS
from semdedup_assets.storage.results import MissingResultError, ResultRecord
from semdedup_assets.storage.vectors import read_vectors
from semdedup_assets_tests import oracle
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard, write_table

CLUSTERINGS = ("4", "4-seed1", "8", "8-seed1")
ESTIMATED = {"clusters": 0.3, "fewest_clusters": 3, "targets": [0.8, 0.5, 100], "start": [0.05, 0.4]}
ANALYSES = {"epsilon_estimates": ESTIMATED, "clustering_comparison": {"shares": [0.8, 0.5, 0.3]}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    folder = tmp_path_factory.mktemp("choosing")
    for seed in range(2):
        write_shard(folder, f"{seed}", near_duplicates(seed, groups=60, copies=6))
    settings = vectors_settings(folder, selection={"keep": "random", "seed": 5}, analyses=ANALYSES) | {
        "clustering": {"k": [4, 8], "seed": [0, 1], "buckets": 2, "iterations": 10},
        "epsilons": ["0.1", "keep=60%"],
    }
    made = StageRuns(settings, GRAPH)
    made.run(until="assignments")
    # Before anything is scored.
    made.make("epsilon_estimates")
    with pytest.raises(MissingResultError, match="materialise toy/precomputed/duplicate_scores"):
        made.make("cost")
    made.run(until="keep_masks")
    return made


def table(record: ResultRecord, name: str) -> pl.DataFrame:
    return pl.read_parquet(record.file(name).path)


def kept_share(scores: pl.DataFrame, epsilon: float) -> float:
    return float((scores["similarity"].to_numpy().astype(np.float64) <= 1 - epsilon).mean())


def exact_epsilon(scores: pl.DataFrame, share: float) -> float:
    ordered = np.sort(scores["similarity"].to_numpy().astype(np.float64))
    return min(2.0, 1 - ordered[max(1, int(np.ceil(share * len(ordered) - 1e-9))) - 1])


@pytest.mark.parametrize("key", CLUSTERINGS)
def test_estimates_are_solved_on_whole_clusters_and_their_errors_counted_on_all(runs: StageRuns, key: str) -> None:
    record, scores = runs.record("epsilon_estimates", key), runs.scores(key)
    estimates = table(record, epsilon_estimates.ESTIMATES)
    assert estimates["target"].to_list() == ["0.8", "0.5", "100 items"]
    assert estimates["share"].to_list() == [0.8, 0.5, 100 / 720]
    details, k = record.details, int(key.partition("-")[0])
    assert (details["items"], details["clusters"]) == (720, k)
    assert details["sampled_clusters"] == max(3, round(0.3 * k))
    chosen = sampled_clusters(runs, key)
    own = scores.filter(pl.col("cluster").is_in(chosen))
    assert details["sampled_items"] == len(own)
    assert details["kept_at_start"] == pytest.approx([kept_share(own, each) for each in ESTIMATED["start"]])
    errors = table(runs.make("epsilon_estimate_errors", key)[0], epsilon_estimate_errors.ERRORS)
    for row, error in zip(estimates.iter_rows(named=True), errors.iter_rows(named=True), strict=True):
        assert row["epsilon"] == pytest.approx(exact_epsilon(own, row["share"]), abs=1e-6)
        assert row["epsilon_low"] <= row["epsilon"] + 1e-6
        assert row["epsilon"] <= row["epsilon_high"] + 1e-6
        first, second = (kept_share(own, each) for each in ESTIMATED["start"])
        line = 0.05 + (row["share"] - first) * 0.35 / (second - first)
        assert row["interpolated"] == pytest.approx(min(2, max(0, line)))
        assert row["interpolated_keeps"] == pytest.approx(kept_share(own, row["interpolated"]))
        assert error["exact"] == pytest.approx(exact_epsilon(scores, row["share"]), abs=1e-6)
        assert error["exact_keeps"] == pytest.approx(kept_share(scores, error["exact"]))
        for name in ("interpolated", "epsilon"):
            assert error[f"{name}_keeps"] == pytest.approx(kept_share(scores, row[name]))
            assert error[f"{name}_error"] == pytest.approx(error[f"{name}_keeps"] - error["exact_keeps"])


def sampled_clusters(runs: StageRuns, key: str) -> list[int]:
    """The clusters whose scores are in the sample: by their own seeded choice, over the stored ranges."""
    from semdedup_assets.algorithm.epsilon_estimate import sample_clusters
    from semdedup_assets.stages.centroids import cluster_ranges

    ranges = cluster_ranges(runs.context(), Clustering.parse(key))
    chosen = sample_clusters(ranges, share=0.3, fewest=3, seed=0)
    return sorted(cluster for clusters in chosen.values() for cluster in clusters)


def test_a_check_names_estimates_that_keep_another_share(runs: StageRuns) -> None:
    runs.make("epsilon_estimate_errors")
    (check,) = (each for each in GRAPH["epsilon_estimate_errors"].checks if each.name == "estimates_are_near")

    def problems(most: float) -> list[str]:
        changed = runs.changed(analyses={"epsilon_estimates": {**ESTIMATED, "max_error": most}})
        assert not changed.stale("epsilon_estimate_errors")
        found = check.evaluate(changed.context())
        assert not found.certain
        return [problem.measured for problem in found.problems]

    errors = [
        abs(row["epsilon_error"])
        for key in CLUSTERINGS
        for row in runs.record("epsilon_estimate_errors", key).details["errors"]
    ]
    most = float(np.median([each for each in errors if each]))
    assert len(problems(most)) == sum(each > most for each in errors) > 0
    assert problems(1) == []


def test_clusterings_are_compared_by_the_sets_they_keep(runs: StageRuns) -> None:
    (record,) = runs.make("clustering_comparison")
    found = table(record, clustering_comparison.INTERSECTIONS)
    assert len(found) == 3 * len(CLUSTERINGS) ** 2
    sets = {}
    for key in CLUSTERINGS:
        scores = runs.scores(key)
        for share in (0.8, 0.5, 0.3):
            kept = scores["similarity"].to_numpy() <= 1 - exact_epsilon(scores, share) + 1e-9
            sets[key, share] = set(scores["id"].to_numpy()[kept].tolist())
    for row in found.iter_rows(named=True):
        own, other = sets[row["clustering"], row["share"]], sets[row["other"], row["share"]]
        assert (row["kept"], row["other_kept"], row["kept_by_both"]) == (len(own), len(other), len(own & other))
        assert row["intersection"] == len(own & other) / len(own)
        assert row["by_chance"] == len(other) / 720
        assert row["clustering"] != row["other"] or row["intersection"] == 1
    curves = table(record, clustering_comparison.CURVES)
    for key in CLUSTERINGS:
        some = curves.filter(pl.col("clustering") == key).gather_every(200)
        assert some["kept"].to_list() == [kept_share(runs.scores(key), each) for each in some["epsilon"].to_list()]


def test_the_intersections_do_not_depend_on_the_budget(runs: StageRuns) -> None:
    shares = np.array([0.8, 0.5, 0.3])
    context = runs.context()
    found = [clustering_comparison.scores_of(context, Clustering.parse(key), shares) for key in CLUSTERINGS]
    both = clustering_comparison.kept_by_both(found, budget=1 << 30)
    for budget in (1, 360 * len(CLUSTERINGS)):
        assert (clustering_comparison.kept_by_both(found, budget=budget) == both).all()


@pytest.mark.parametrize("key", ["4", "8"])
def test_the_counts_of_a_subsample_are_those_of_scoring_it_anew(runs: StageRuns, key: str) -> None:
    (record,) = runs.make("redundancy_by_size", key)
    counted = table(record, SUBSAMPLES)
    items = assigned_items(runs, key)
    priority = np.array([splitmix(splitmix(5) ^ each) for each in items["id"].to_list()], dtype=object)
    for halvings in range(5):
        inside = items.filter(pl.Series([each < 1 << (64 - halvings) for each in priority]))
        scores = [
            oracle.chain_scores(own["vector"].to_numpy()[order_of(own["id"].to_list())])
            for _, own in inside.group_by("cluster")
        ]
        similarity = np.concatenate(scores)
        rows = counted.filter((pl.col("items") == len(inside)) & pl.col("epsilon").is_between(0.001, 1))
        assert len(rows) > 500
        expected = [int((similarity > 1 - each).sum()) for each in rows["epsilon"].to_list()]
        # Float32 decides as float64 does where no similarity lies at the threshold.
        clear = [np.abs(similarity[np.isfinite(similarity)] - (1 - e)).min(initial=1) > 2e-6 for e in rows["epsilon"]]
        assert sum(clear) > 0.9 * len(rows)
        assert [a for a, sure in zip(rows["removed"].to_list(), clear, strict=True) if sure] == [
            b for b, sure in zip(expected, clear, strict=True) if sure
        ]


def order_of(ids: list[int]) -> list[int]:
    return sorted(range(len(ids)), key=lambda row: splitmix(splitmix(5) ^ ids[row]))


def splitmix(x: int) -> int:
    """SplitMix64 in exact integers."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def assigned_items(runs: StageRuns, key: str) -> pl.DataFrame:
    records = runs.context().index.require_all("assignments", Partition(clustering=Clustering.parse(key))).values()
    tables = [found for record in records for found in read_vectors(record.file(ASSIGNMENTS)) if len(found.ids)]
    return pl.DataFrame(
        {
            "id": np.concatenate([each.ids for each in tables]),
            "cluster": np.concatenate([each.column("cluster") for each in tables]),
            "vector": np.concatenate([each.vectors for each in tables]).astype(np.float64),
        }
    )


@pytest.mark.parametrize("key", ["4", "8-seed1"])
def test_the_whole_dataset_loses_what_the_masks_remove_and_the_law_goes_through_it(runs: StageRuns, key: str) -> None:
    (record,) = runs.make("redundancy_by_size", key)
    fits, beyond = table(record, FITS), table(record, EXTRAPOLATED)
    assert fits["target"].to_list() == ["0.1", "keep=60%"]
    for row in fits.iter_rows(named=True):
        masks = runs.record("keep_masks", f"{row['target']}|{key}").details
        assert row["epsilon"] == masks["epsilon"]
        assert row["removed_share"] == masks["removed"] / masks["items"]
        shares = beyond.filter(pl.col("target") == row["target"])
        assert shares["items"].to_list() == [1440, 3600, 7200]
        odds = [row["removed_share"] / (1 - row["removed_share"]) * times ** row["slope"] for times in (2, 5, 10)]
        assert shares["removed_share"].to_list() == pytest.approx([each / (1 + each) for each in odds])


def test_only_a_random_order_has_subsamples(runs: StageRuns) -> None:
    applies = GRAPH["redundancy_by_size"].applies
    for selection, wanted in (({"keep": "random"}, True), ({"keep": "hard"}, False), ({"keep": "easy"}, False)):
        pipeline = runs.changed(selection=selection).pipeline
        assert applies(pipeline, pipeline.selection) == wanted


def test_costs_add_up_to_what_the_records_say_and_name_what_is_missing(runs: StageRuns) -> None:
    (record,) = runs.make("cost")
    costs = table(record, cost.COST)
    index = runs.context().index
    for row in costs.filter(pl.col("measured") > 0).iter_rows(named=True):
        within = Partition(clustering=Clustering.parse(row["clustering"])) if row["clustering"] else Partition()
        details = [each.details for each in index.records(row["stage"], within).values()]
        assert row["measured"] == row["results"] == len(details)
        assert row["seconds"] == pytest.approx(sum(each["seconds"] for each in details))
        assert row["device_hours"] == pytest.approx(row["seconds"] / 3600)
        assert row["bytes"] == sum(each["bytes"] for each in details)
        assert row["device"] == "cpu"
    missing = costs.filter(pl.col("measured") == 0)
    assert missing["stage"].unique().to_list() == ["manifests"]
    assert missing["seconds"].null_count() == missing["projected_seconds"].null_count() == len(missing) == 4


def test_a_projection_to_what_there_is_is_what_was_measured(runs: StageRuns) -> None:
    (record,) = runs.changed(analyses={**ANALYSES, "cost": {"items": 720, "k": 8}}).make("cost")
    costs = table(record, cost.COST).filter(
        pl.col("clustering").is_in(["8", ""]) & pl.col("projected_seconds").is_not_null()
    )
    for name in ("embeddings", "centroids", "assignments", "duplicate_scores", "keep_masks"):
        (row,) = costs.filter((pl.col("stage") == name) & (pl.col("clustering") != "4")).iter_rows(named=True)
        assert row["projected_seconds"] == pytest.approx(row["seconds"])


def test_pairs_grow_with_the_square_of_the_items_and_fall_with_k(runs: StageRuns) -> None:
    (record,) = runs.changed(analyses={**ANALYSES, "cost": {"items": 7200, "k": 4}}).make("cost")
    index = runs.context().index.records("duplicate_scores", Partition(clustering=Clustering("8")))
    compare = sum(each.details["seconds_by_phase"]["compare"] for each in index.values())
    others = sum(each.details["seconds"] for each in index.values()) - compare
    costs = table(record, cost.COST)
    (row,) = costs.filter((pl.col("stage") == "duplicate_scores") & (pl.col("clustering") == "8")).iter_rows(named=True)
    assert row["projected_seconds"] == pytest.approx(compare * 10**2 * 2 + others * 10)


def test_the_papers_hours_stand_beside_ours(runs: StageRuns) -> None:
    (record,) = runs.make("cost")
    sums = table(record, cost.BESIDE_PAPER)
    paper = sums.filter(pl.col("source").str.starts_with("SemDeDup"))
    assert paper.filter(pl.col("k") == 50_000)["total"].to_list() == pytest.approx(
        [110.3, 8 * 5.9833 + 64 * 1.3667], abs=0.1
    )
    epoch = 440e6 / 330 / 3600
    assert paper["share_of_epoch"].to_list() == pytest.approx([each / epoch for each in paper["total"].to_list()])
    own = sums.filter(pl.col("source").str.starts_with("this"))
    assert own["clustering"].unique().sort().to_list() == sorted(CLUSTERINGS)
    assert own["total"].to_list() == pytest.approx((own["clusters"] + own["comparing"]).to_list())


def test_what_is_shown_are_pictures_and_rows(runs: StageRuns, tmp_path: Path) -> None:
    context = runs.context()
    for name in ("epsilon_estimates", "epsilon_estimate_errors", "clustering_comparison", "redundancy_by_size", "cost"):
        stage = GRAPH[name]
        (record, *_) = runs.make(name, *([] if not stage.dimensions else ["4"]))
        shown = stage.shown(context, Partition(), record)
        lists = {each: value for each, value in record.details.items() if isinstance(value, list) and value}
        # Beside a table in words its raw numbers would stand again.
        assert {each for each, value in lists.items() if isinstance(value[0], dict)} <= shown.keys()
        for value in shown.values():
            if hasattr(value, "png"):
                path = tmp_path / "picture.png"
                path.write_bytes(value.png)
                with Image.open(path) as image:
                    assert image.size == (600, 380)
            elif hasattr(value, "rows"):
                assert value.rows


def test_estimated_from_all_clusters_it_is_exact_also_where_items_are_protected(tmp_path: Path) -> None:
    write_table(tmp_path, "0", near_duplicates(0), {"chosen": [row % 3 == 0 for row in range(60)]})
    settings = vectors_settings(
        tmp_path, selection={"protect": "chosen"}, analyses={"epsilon_estimates": {"clusters": 1.0}}
    )
    settings["source"] |= {"key": "name", "columns": {"chosen": "bool"}}
    runs = StageRuns(settings, GRAPH)
    runs.run(until="keep_masks")
    runs.make("epsilon_estimates")
    (record,) = runs.make("epsilon_estimate_errors")
    errors = table(record, epsilon_estimate_errors.ERRORS)
    assert errors["epsilon"].to_list() == errors["exact"].to_list()
    assert errors["inside"].all()
    # The protected third is kept at any epsilon.
    assert errors["exact_keeps"].min() >= 20 / 60


SETTING_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"epsilon_estimates": {"targets": [1.5]}}, "1.5 is neither a share in .0, 1. nor a whole number of items"),
    ({"epsilon_estimates": {"targets": [0]}}, "0.0 is neither a share"),
    ({"epsilon_estimates": {"start": [0.2, 0.1]}}, "0.2 is not less than 0.1"),
    ({"clustering_comparison": {"shares": [0.5, 0.5]}}, "0.5: listed more than once"),
]


@pytest.mark.parametrize(("analyses", "message"), SETTING_ERRORS)
def test_a_wrong_setting_is_refused_with_the_reason(tmp_path: Path, analyses: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ = StageRuns(vectors_settings(tmp_path, analyses=analyses)).pipeline


def test_one_item_and_many_empty_clusters_give_results_without_a_line(tmp_path: Path) -> None:
    write_shard(tmp_path, "0", np.ones((1, 4), dtype=np.float32))
    settings = vectors_settings(tmp_path, selection={"keep": "random"})
    runs = StageRuns(settings | {"clustering": {"k": [1], "buckets": 2, "iterations": 2}}, GRAPH)
    runs.run(until="keep_masks")
    (estimated,), (errors,) = runs.make("epsilon_estimates"), runs.make("epsilon_estimate_errors")
    assert table(estimated, epsilon_estimates.ESTIMATES)["interpolated"].null_count() == 5
    assert table(errors, epsilon_estimate_errors.ERRORS)["epsilon_error"].to_list() == [0.0] * 5
    (compared,) = runs.make("clustering_comparison")
    assert table(compared, clustering_comparison.INTERSECTIONS)["intersection"].to_list() == [1.0] * 5
    (sized,) = runs.make("redundancy_by_size")
    assert table(sized, FITS)["slope"].null_count() == 1
    assert table(sized, EXTRAPOLATED)["removed_share"].null_count() == 3
    runs.make("cost")
