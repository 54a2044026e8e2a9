"""Whoever changes a setting and changes it back makes nothing a second time."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semdedup_assets.stage_graph import GRAPH
from semdedup_assets_tests.stage_runs import METHOD, Made, StageRuns, small_pipeline
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_table

SHARDS = ["s000000", "s000001", "s000002"]
BUCKETS = ["b0000|3", "b0001|3"]


def of_selection(selection: str = "", *, k: str = "3", epsilon: str = "0.05") -> Made:
    """What is made of a new order of items."""
    below = f"{selection}/" if selection else ""
    return {
        f"{below}duplicate_scores": [f"b0000|{k}", f"b0001|{k}"],
        f"{below}keep_masks": [f"{epsilon}|{k}"],
        f"{below}manifests": [f"{epsilon}|{k}"],
    }


def of_clustering(k: str) -> Made:
    """What is made of a new clustering."""
    return {"centroids": [k], "assignments": [f"{k}|{shard}" for shard in SHARDS], **of_selection(k=k)}


def everything() -> Made:
    """What is made at first."""
    return {"items": SHARDS, "embeddings": SHARDS, "training_sample": [""], **of_clustering("3")}


KEPT = {"keep_masks": ["0.05|3"], "manifests": ["0.05|3"]}
JOURNEYS: dict[str, list[tuple[dict[str, Any], Made]]] = {
    "keep": [
        ({"selection": {"keep": "easy"}}, of_selection()),
        ({}, {}),
        ({"selection": {"keep": "random", "seed": 1}}, of_selection()),
        ({"selection": {"keep": "random", "seed": 2}}, of_selection()),
        ({"selection": {"keep": "easy"}}, {}),
        ({"selection": {"keep": "random", "seed": 1}}, {}),
    ],
    "the rule, which selects from the same scores": [
        ({"selection": {"rule": "greedy"}}, KEPT),
        ({"selection": {"rule": "chain"}}, {}),
        ({"selection": {"keep": "easy", "rule": "greedy"}}, of_selection()),
        ({"selection": {"keep": "easy", "rule": "chain"}}, KEPT),
        ({"selection": {"rule": "greedy"}}, {}),
    ],
    "a seed that is not used": [({"selection": {"keep": "hard", "seed": 7}}, {}), ({}, {})],
    "the seed of a clustering": [
        ({"clustering": {"seed": 1}}, of_clustering("3-seed1")),
        ({"clustering": {"seed": 0}}, {}),
        ({"clustering": {"seed": [1, 0]}}, {}),
    ],
    "k": [
        ({"clustering": {"k": [4]}}, of_clustering("4")),
        ({}, {}),
        ({"clustering": {"k": [4, 3]}}, {}),
    ],
    "buckets": [({"clustering": {"buckets": buckets}}, {}) for buckets in (3, 2, 1, 20, 2)],
    "another epsilon": [
        ({"epsilons": ["0.05", "0.1"]}, {"keep_masks": ["0.1|3"], "manifests": ["0.1|3"]}),
        ({"epsilons": ["0.1"]}, {}),
        ({"epsilons": [0.05, "0.1", "keep=50%"]}, {"keep_masks": ["keep=50%|3"], "manifests": ["keep=50%|3"]}),
        ({}, {}),
    ],
    "selections by name beside each other": [
        ({"selections": {"first": {}, "second": {"keep": "easy"}}}, of_selection("second")),
        ({"selections": {"one": {"keep": "easy"}, "two": {}}}, {}),
        ({"selection": {"keep": "easy"}}, {}),
        (
            {"selections": {"a": {"rule": "greedy"}, "b": {"keep": "random"}}},
            {f"a/{stage}": keys for stage, keys in KEPT.items()} | of_selection("b"),
        ),
        ({}, {}),
    ],
    "what changes no result": [
        ({"compute": {"device": "cpu", "memory_mib": 64, "batch_size": 7}}, {}),
        ({"refresh": {"attempts": 1, "max_drift": 0.5}}, {}),
        ({"galleries": {"groups": 3}, "owners": ["team:data"], "max_skipped": 0.5}, {}),
        ({"shards": {"files_per_shard": 2}}, {}),
    ],
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    runs = small_pipeline(tmp_path_factory.mktemp("source"))
    assert runs.run() == everything()
    return runs


@pytest.mark.parametrize("journey", JOURNEYS)
def test_going_back_and_forth_makes_nothing_twice(small: StageRuns, tmp_path: Path, journey: str) -> None:
    runs = small.changed(store=str(tmp_path / "store"))
    shutil.copytree(small.settings["store"], runs.settings["store"])
    assert runs.run() == {}
    before = runs.kept_keys("0.05|3")
    for changes, made in JOURNEYS[journey]:
        changed = runs.changed(**changes)
        assert changed.run() == made, changes
        assert changed.run() == {}
    assert runs.run() == {}
    assert runs.kept_keys("0.05|3") == before


def test_buckets_group_the_same_ranges(tmp_path: Path) -> None:
    """Whatever the buckets, their sum is that of the ranges, and each range is in one of them."""
    runs = small_pipeline(tmp_path, shards=2, clustering={"k": [7]})
    runs.run()
    ranges = runs.context().index.range_count(runs.pipeline.clusterings[0])
    assert ranges == 7
    for buckets in (1, 2, 3, 7, 9):
        grouped = runs.changed(clustering={"buckets": buckets})
        records = [grouped.record("duplicate_scores", f"b{bucket:04d}|7") for bucket in range(buckets)]
        assert [sum(int(record.details[name]) for record in records) for name in ("items", "ranges")] == [120, 7]
        assert grouped.run() == {}


def with_columns(folder: Path, columns: dict[str, str], **changes: Any) -> StageRuns:
    settings = vectors_settings(folder)
    settings["source"] |= {"key": "name", "columns": columns}
    return StageRuns(settings).changed(**changes)


def columns_of(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"quality": rng.random(60).tolist(), "views": rng.integers(0, 9, 60).tolist(), "title": [f"t{seed}"] * 60}


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    for shard in range(3):
        write_table(tmp_path, f"{shard}", near_duplicates(shard), columns_of(shard))
    return tmp_path


def test_a_column_more_or_less_reads_items_and_writes_manifests_and_nothing_between(tables: Path) -> None:
    runs = with_columns(tables, {"quality": "float"})
    assert runs.run() == everything()
    only = {"items": SHARDS, "manifests": ["0.05|3"]}
    for columns in ({"quality": "float", "views": "int"}, {}, {"title": "string"}, {"quality": "float"}):
        assert with_columns(tables, columns).run() == only, columns


def test_another_key_reads_items_and_writes_manifests_and_nothing_between(tables: Path) -> None:
    runs = with_columns(tables, {})
    runs.run()
    by_title = runs.changed(source={**runs.settings["source"], "key": "title"})
    assert by_title.run() == {"items": SHARDS, "manifests": ["0.05|3"]}
    assert set(by_title.kept_keys("0.05|3")) == {"t0", "t1", "t2"}


def test_a_column_more_draws_galleries_which_show_it_and_no_figures_again(tables: Path) -> None:
    whole = StageRuns(with_columns(tables, {"quality": "float"}).settings, GRAPH)
    whole.run()
    assert whole.run() == {}
    more = StageRuns(with_columns(tables, {"quality": "float", "title": "string"}).settings, GRAPH).run()
    assert more == {"items": SHARDS, "galleries": ["0.05|3"], "manifests": ["0.05|3"]}


BY_QUALITY = {"keep": {"column": "quality"}}


def test_keep_by_a_column_scores_again_only_where_that_column_changes(tables: Path) -> None:
    columns = {"quality": "float", "views": "int"}
    runs = with_columns(tables, columns, selection=BY_QUALITY)
    assert runs.run() == everything()
    # Another column changes nothing that was scored.
    more = with_columns(tables, {**columns, "title": "string"}, selection=BY_QUALITY)
    assert more.run() == {"items": SHARDS, "manifests": ["0.05|3"]}
    less = with_columns(tables, {"quality": "float"}, selection=BY_QUALITY)
    assert less.run() == {"items": SHARDS, "manifests": ["0.05|3"]}
    assert runs.run() == {"items": SHARDS, "manifests": ["0.05|3"]}
    # Nor do its values, in a file that was written anew with the same vectors.
    write_table(tables, "1", near_duplicates(1), {**columns_of(1), "views": [1] * 60})
    one = {"items": ["s000001"], "embeddings": ["s000001"]}
    assert runs.run() == {**one, "manifests": ["0.05|3"]}
    before = runs.kept_keys("0.05|3")
    # Those of the column do: the scores, and what follows.
    write_table(tables, "1", near_duplicates(1), {**columns_of(9), "views": [1] * 60})
    assert runs.run() == {**one, **of_selection()}
    assert runs.kept_keys("0.05|3") != before
    assert runs.run() == {}


def test_a_selection_that_looks_at_no_column_is_not_scored_again_when_one_changes(tables: Path) -> None:
    selections = {"best": BY_QUALITY, "hard": {}}
    runs = with_columns(tables, {"quality": "float"}, selections=selections)
    runs.run()
    write_table(tables, "1", near_duplicates(1), columns_of(9))
    one = {"items": ["s000001"], "embeddings": ["s000001"]}
    assert runs.run() == {**one, **of_selection("best"), "hard/manifests": ["0.05|3"]}
    # Another column orders items another way.
    views = {"best": {"keep": {"column": "views"}}, "hard": {}}
    both = with_columns(tables, {"quality": "float", "views": "int"}, selections=views)
    assert both.run() == {"items": SHARDS, **of_selection("best"), "hard/manifests": ["0.05|3"]}


def test_every_stage_of_the_method_is_in_the_graph() -> None:
    assert [stage.name for stage in METHOD.stages] == [stage.name for stage in GRAPH.stages if stage in METHOD.stages]
