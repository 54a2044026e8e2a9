"""The measured share of duplicates found within clusters, against whole matrices, on real pictures and on near duplicates."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from semdedup_assets.analyses import detection_efficiency
from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.vectors import read_vectors
from semdedup_assets_tests import oracle
from semdedup_assets_tests.stage_runs import METHOD, StageRuns, small_pipeline
from semdedup_assets_tests.toy_source import write_shard

GRAPH = StageGraph((*METHOD.stages, detection_efficiency.STAGE))
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    """The emoji demo on some of its shards."""
    folder = tmp_path_factory.mktemp("emoji")
    (folder / "source").mkdir()
    for path in sorted((ROOT / "examples/emoji/shards").iterdir())[:2]:
        shutil.copy(path, folder / "source")
    runs = StageRuns(
        {
            "dataset": "emoji",
            "store": str(folder / "store"),
            "source": {"kind": "webdataset", "path": str(folder / "source")},
            "encoder": {
                "kind": "openclip",
                "model": str(ROOT / "examples/emoji/encoder"),
                "precision": "float32",
            },
            "clustering": {"k": [12], "buckets": 2},
            "epsilons": ["0.02", "0.1", "keep=70%"],
            "compute": {"device": "cpu"},
        },
        GRAPH,
    )
    runs.run(until="assignments")
    return runs


def _table(record: ResultRecord, name: str = "efficiency.parquet") -> pl.DataFrame:
    return pl.read_parquet(record.file(name).path)


def _assigned(runs: StageRuns, k: str) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors in float64, and clusters, of all items."""
    context = runs.context()
    parts = [
        table
        for partition, record in context.index.records("assignments").items()
        if str(partition.clustering) == k
        for table in read_vectors(record.file("assignments.arrow"))
    ]
    vectors = oracle.unit(np.concatenate([part.vectors for part in parts]))
    return vectors, np.concatenate([part.column("cluster") for part in parts])


def test_of_real_pictures_all_pairs_are_counted(emoji: StageRuns) -> None:
    (record,) = emoji.make("detection_efficiency")
    vectors, cluster = _assigned(emoji, "12")
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -2)
    within = cluster[:, None] == cluster
    table = _table(record).filter(pl.col("method") == "all pairs")
    assert {0.02, 0.1} < set(table["epsilon"])
    for row in table.iter_rows(named=True):
        # What lies at a threshold may fall on either side.
        low, high = (_found(similarity > 1 - row["epsilon"] + step, within, row["counted"]) for step in (1e-6, -1e-6))
        assert low[0] <= row["found_within"] <= high[0]
        assert low[1] <= row["found_in_total"] <= high[1]
        assert row["eta"] == (row["found_within"] / row["found_in_total"] if row["found_in_total"] else None)
    assert record.details["largest_epsilon"] == 0.1
    assert 0.5 < record.details["eta_at_largest_epsilon"] < 1


def _found(pairs: np.ndarray, within: np.ndarray, counted: str) -> tuple[int, int]:
    if counted == "pairs":
        return int((pairs & within).sum()), int(pairs.sum())
    return int((pairs & within).any(1).sum()), int(pairs.any(1).sum())


def test_it_depends_on_neither_budget_nor_the_sampled_clusters_order(emoji: StageRuns) -> None:
    sampled = emoji.changed(analyses={"detection_efficiency": {"clusters": 5, "neighbours": 3}})
    small = sampled.changed(compute={"device": "cpu", "memory_mib": 16})
    (one,), (other,) = sampled.make("detection_efficiency"), small.make("detection_efficiency")
    assert one.details["sampled_clusters"] == 5
    assert _table(one).equals(_table(other))
    assert _table(one, "next_clusters.parquet").equals(_table(other, "next_clusters.parquet"))
    shares = _table(one).filter(pl.col("method") == "neighbours")
    assert (shares["low"] <= shares["eta"]).all()
    assert (shares["eta"] <= shares["high"]).all()


def test_too_many_items_are_only_sampled(emoji: StageRuns) -> None:
    runs = emoji.changed(analyses={"detection_efficiency": {"all_pairs_up_to": 10}})
    (record,) = runs.make("detection_efficiency")
    assert set(_table(record)["method"]) == {"neighbours"}
    assert record.details["method"] == "neighbours"


def test_a_check_warns_where_little_is_found(emoji: StageRuns) -> None:
    emoji.make("detection_efficiency")
    for least, problems in ((1.0, ["12"]), (0.1, [])):
        runs = emoji.changed(analyses={"detection_efficiency": {"warn_below": least}})
        found = detection_efficiency.STAGE.checks[0].evaluate(runs.context())
        assert [problem.partition for problem in found.problems] == problems
        assert runs.stale("detection_efficiency") == []


@pytest.mark.parametrize("rows", [1, 2])
def test_of_an_item_or_two_there_may_be_nothing_to_find(tmp_path: Path, rows: int) -> None:
    write_shard(tmp_path, "a", np.eye(4, dtype=np.float32)[:rows])
    runs = StageRuns(small_pipeline(tmp_path, shards=0, clustering={"k": [1]}).settings, GRAPH)
    runs.run(until="assignments")
    (record,) = runs.make("detection_efficiency")
    assert _table(record)["eta"].null_count() == len(_table(record))
    assert record.details["eta_at_largest_epsilon"] is None
    shown = detection_efficiency.STAGE.shown(runs.context(), runs.context().index.partitions("assignments")[0], record)
    assert set(shown) == {"efficiency", "next_clusters", "by_epsilon"}
    assert {row["items, sampled"] for row in shown["by_epsilon"].rows} == {"none to find"}


def test_it_goes_stale_with_the_assignments_and_with_its_settings(tmp_path: Path) -> None:
    runs = StageRuns(small_pipeline(tmp_path).settings, GRAPH)
    runs.run(until="assignments")
    runs.make("detection_efficiency")
    assert runs.stale("detection_efficiency") == []
    assert runs.changed(analyses={"detection_efficiency": {"seed": 1}}).stale("detection_efficiency") == ["3"]
    write_shard(tmp_path, "later", np.eye(16, dtype=np.float32))
    runs.run(until="assignments")
    assert runs.stale("detection_efficiency") == ["3"]
