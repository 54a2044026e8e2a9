"""The stages of a repair: all clusters give Alg. A7 on the whole data set; masks that know items of other clusters."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.kept_sets import Clustering, Repair, Selection
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets.stages.duplicate_scores import REPAIRED_SCORES
from semdedup_assets.stages.embeddings import VECTORS
from semdedup_assets.stages.repaired_masks import KeptItems
from semdedup_assets.storage.vectors import read_vectors
from semdedup_assets_tests import oracle
from semdedup_assets_tests.stage_runs import METHOD, StageRuns, small_pipeline
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard, write_table

ROOT = Path(__file__).parents[2]
REPAIR = {"clusters": "all", "epsilon": 0.3}


def _repaired(runs: StageRuns, key: str, selection: str | None = None) -> pl.DataFrame:
    record = runs.record(REPAIRED_SCORES, key, selection)
    return pl.concat([pl.read_parquet(record.file(name).path) for name in sorted(record.files)])


def _with_vectors(runs: StageRuns, scores: pl.DataFrame) -> pl.DataFrame:
    """The scores with the float64 unit vector of each item."""
    tables = [
        table
        for record in runs.context().index.require_all("embeddings").values()
        for table in read_vectors(record.file(VECTORS))
    ]
    unit = oracle.unit(np.concatenate([table.vectors for table in tables]))
    ids = np.concatenate([table.ids for table in tables])
    return scores.join(pl.DataFrame({"id": ids, "unit": unit}), on="id", maintain_order="left")


def _assert_exact(scores: pl.DataFrame, order: np.ndarray, reach: float) -> int:
    """Scores in an order of the whole data set against Alg. A7; returns how many earlier items lie in another cluster."""
    ordered = scores[order]
    vectors = ordered["unit"].to_numpy()
    expected = oracle.chain_scores(vectors)
    near = expected > 1 - reach
    found = ordered["similarity"].to_numpy()
    np.testing.assert_allclose(found[near], expected[near], atol=1e-6)
    assert (found <= expected + 1e-6).all()
    place = {item: index for index, item in enumerate(ordered["id"].to_list())}
    earlier = [None if each is None else place[each] for each in ordered["duplicate_of"].to_list()]
    known = np.array([index for index, each in enumerate(earlier) if each is not None])
    target = np.array([each for each in earlier if each is not None])
    assert (target < known).all()
    np.testing.assert_allclose((vectors[known] * vectors[target]).sum(1), found[known], atol=1e-6)
    cluster = ordered["cluster"].to_numpy()
    return int((cluster[known] != cluster[target]).sum())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repair")
    for seed in range(3):
        write_shard(folder, f"{seed}", near_duplicates(4, groups=30, copies=4, dimension=4)[seed::3])
    return folder


def _settings(folder: Path, **changes: Any) -> dict[str, Any]:
    return vectors_settings(folder, clustering={"k": [14], "buckets": 3, "iterations": 10}, **changes)


@pytest.fixture(scope="module")
def runs(folder: Path) -> StageRuns:
    """Selections that search all clusters, in several orders, and two that do not."""
    repair = {"repair": REPAIR}
    selections = {
        "hard": repair,
        "random": {"keep": "random", "seed": 3, **repair},
        "one": {"repair": {"clusters": 1, "epsilon": 0.3}},
        "within": {},
    }
    runs = StageRuns(_settings(folder, selections=selections, epsilons=["0.25", "keep=60%"]))
    runs.run(until="keep_masks")
    return runs


@pytest.mark.parametrize("name", ["hard", "random"])
def test_all_clusters_give_the_scores_of_the_whole_data_set(runs: StageRuns, name: str) -> None:
    scores = _with_vectors(runs, _repaired(runs, "14", name))
    ids, similarity = scores["id"].to_numpy(), scores["centroid_similarity"].to_numpy()
    if name == "random":
        from semdedup_assets.algorithm.sampling import id_hash

        key = id_hash(ids, seed=3)
    else:
        key = similarity
    assert _assert_exact(scores, np.lexsort((ids, key)), 0.3) > 10


def test_what_is_kept_is_what_the_chain_rule_keeps_of_the_whole(runs: StageRuns) -> None:
    scores = _with_vectors(runs, _repaired(runs, "14", "hard"))
    order = np.lexsort((scores["id"].to_numpy(), scores["centroid_similarity"].to_numpy()))
    vectors = scores["unit"].to_numpy()[order]
    similarity = vectors @ vectors.T
    assert np.abs(similarity[np.triu_indices(len(vectors), 1)] - 0.75).min() > 1e-7
    kept = scores["id"].to_numpy()[order][oracle.chain_keep(vectors, 0.25)]
    assert set(runs.masks("0.25|14", "hard").filter("kept")["id"]) == set(kept.tolist())
    # A share is solved from the repaired scores.
    record = runs.record("keep_masks", "keep=60%|14", "hard")
    assert record.details["kept_fraction"] >= 0.6
    assert record.details["epsilon"] < runs.record("keep_masks", "keep=60%|14", "within").details["epsilon"]


@pytest.mark.parametrize("name", ["hard", "one"])
@pytest.mark.parametrize("epsilon", ["0.25", "keep=60%"])
def test_groups_partition_the_items(runs: StageRuns, name: str, epsilon: str) -> None:
    masks, scores = runs.masks(f"{epsilon}|14", name), _with_vectors(runs, _repaired(runs, "14", name))
    assert masks["id"].to_list() == scores["id"].to_list()
    kept = set(masks.filter("kept")["id"])
    removed = masks.filter(~pl.col("kept"))
    assert set(removed["kept_neighbour"]) <= kept
    assert masks.filter("kept")["kept_neighbour"].null_count() == len(kept)
    unit = dict(zip(scores["id"], scores["unit"].to_numpy(), strict=True))
    for item, neighbour, similarity in removed.select("id", "kept_neighbour", "kept_similarity").iter_rows():
        if similarity is not None:
            assert similarity == pytest.approx(unit[item] @ unit[neighbour], abs=1e-6)
    # The nearest earlier item stands for an item where it is kept.
    both = removed.join(scores.select("id", "duplicate_of", "similarity"), on="id")
    direct = both.filter(pl.col("duplicate_of").is_in(list(kept)))
    assert direct["kept_neighbour"].equals(direct["duplicate_of"])
    assert direct["kept_similarity"].equals(direct["similarity"])
    assert len(direct) > 0
    groups = runs.record("keep_masks", f"{epsilon}|14", name).details["largest_groups"]
    sizes = removed.group_by("kept_neighbour").len().sort("len", "kept_neighbour", descending=[True, False])
    assert [(group["kept"], group["removed"]) for group in groups] == sizes.head(len(groups)).rows()


def test_some_clusters_keep_nothing_and_their_items_have_stand_ins(runs: StageRuns) -> None:
    record = runs.record("keep_masks", "0.25|14", "hard")
    assert record.details["clusters_without_kept"] > 0
    context = runs.context("hard")
    failed = [
        (check.name, result.problems)
        for stage in ("boundary_items", "duplicate_scores", "cross_cluster_scores", REPAIRED_SCORES, "keep_masks")
        for check in context.graph[stage].checks
        if (result := check.evaluate(context)).problems
    ]
    assert failed == []


def test_a_share_beyond_the_reach_is_warned_of(tmp_path: Path) -> None:
    for share, problems in (("keep=99%", []), ("keep=30%", ["keep=30%|3"])):
        runs = small_pipeline(
            tmp_path, shards=1, epsilons=[share], selection={"repair": {"clusters": 1, "epsilon": 0.05}}
        )
        runs.run(until="keep_masks")
        found = GRAPH[REPAIRED_SCORES].checks[0].evaluate(runs.context())
        assert [problem.partition for problem in found.problems] == problems


def test_more_clusters_remove_more(runs: StageRuns) -> None:
    removed = [runs.record("keep_masks", "0.25|14", name).details["removed"] for name in ("within", "one", "hard")]
    assert removed == sorted(set(removed))
    details = runs.record(REPAIRED_SCORES, "14", "hard").details
    assert details["duplicates_by_epsilon"]["0.2"] > details["within_clusters_by_epsilon"]["0.2"]


def test_selections_of_one_repair_share_the_boundary_items(runs: StageRuns) -> None:
    shared = {runs.record("boundary_items", "14|" + shard, "hard").location for shard in runs.observe()}
    assert shared == {runs.record("boundary_items", "14|" + shard, "random").location for shard in runs.observe()}
    scores = {runs.record("duplicate_scores", "b0000|14", name).location for name in ("hard", "one", "within")}
    assert len(scores) == 1
    assert runs.record("keep_masks", "0.25|14", "hard").location != runs.record("keep_masks", "0.25|14", "one").location


def test_results_depend_on_neither_budget_nor_buckets(runs: StageRuns, tmp_path: Path) -> None:
    shutil.copytree(runs.pipeline.store, tmp_path / "store")
    other = runs.changed(store=str(tmp_path / "store"), compute={"memory_mib": 16}, clustering={"buckets": 1})
    for stage in ("boundary_items", "cross_cluster_scores", REPAIRED_SCORES, "keep_masks"):
        before = [record.version for record in runs.context("one").index.records(stage).values()]
        other.make(stage, selection="one")
        assert [record.version for record in other.context("one").index.records(stage).values()] == before
        assert before


def test_a_repair_goes_stale_with_what_it_is_made_from(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, shards=2, selection={"repair": {"clusters": 1, "epsilon": 0.2}})
    runs.run()
    stages = ("boundary_items", "cross_cluster_scores", REPAIRED_SCORES, "keep_masks")
    assert [stage for stage in stages if runs.stale(stage)] == []
    assert runs.run() == {}
    more = runs.changed(selection={"repair": {"clusters": 2, "epsilon": 0.2}})
    made = more.run()
    assert all(stage in made for stage in stages)
    # What was made before is found again.
    assert runs.run() == {}
    write_shard(tmp_path, "later", near_duplicates(9))
    made = runs.run()
    assert len(made["boundary_items"]) == 1
    assert all(stage in made for stage in stages)


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("clusters", [1, "all"])
def test_of_hardly_an_item_everything_is_kept(tmp_path: Path, rows: int, clusters: int | str) -> None:
    write_shard(tmp_path, "a", np.eye(4, dtype=np.float32)[:1])
    write_shard(tmp_path, "b", np.eye(4, dtype=np.float32)[1 : 1 + rows])
    repair = {"clusters": clusters, "epsilon": 0.2}
    runs = small_pipeline(tmp_path, shards=0, clustering={"k": [1 + min(rows, 1)]}, selection={"repair": repair})
    runs.run(until="keep_masks")
    masks = runs.masks(f"0.05|{1 + min(rows, 1)}")
    assert len(masks) == 1 + rows
    assert masks["kept"].all()


def test_equal_vectors_in_a_row_keep_one(tmp_path: Path) -> None:
    rows = np.repeat(near_duplicates(1, groups=4, copies=1), 5, axis=0)
    write_shard(tmp_path, "a", rows)
    runs = small_pipeline(tmp_path, shards=0, clustering={"k": [6]}, selection={"repair": {"clusters": "all"}})
    runs.run(until="keep_masks")
    assert runs.masks("0.05|6")["kept"].sum() == 4


def test_whoever_reads_scores_reads_the_repaired_ones() -> None:
    pipeline = Pipeline.model_validate(vectors_settings(Path("nowhere")))
    repairing = Selection(repair=Repair())
    own = {"boundary_items", "cross_cluster_scores", REPAIRED_SCORES}
    readers = [
        stage
        for stage in GRAPH.stages
        if "duplicate_scores" in stage.all_inputs(pipeline, repairing)
        and stage.name not in own
        # Of what the stages took, not of scores.
        and stage.name != "cost"
        and stage.applies(pipeline, repairing)
    ]
    assert {"keep_masks", "figures", "galleries"} <= {stage.name for stage in readers}
    for stage in readers:
        assert REPAIRED_SCORES in stage.all_inputs(pipeline, repairing), stage.name
        assert REPAIRED_SCORES not in stage.all_inputs(pipeline, Selection()), stage.name


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"rule": "greedy", "repair": {}}, r"selection.repair: the rule `greedy` needs all pairs"),
        ({"repair": {"epsilon": 0.04}}, r"selection.repair.epsilon: 0.05 of `epsilons` exceed it"),
        ({"repair": {"clusters": 0}}, r"selection.repair.clusters"),
        ({"repair": {"clusters": "most"}}, r"selection.repair.clusters"),
    ],
)
def test_what_a_repair_cannot_do_is_refused(tmp_path: Path, selection: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pipeline.model_validate(vectors_settings(tmp_path, selection=selection))


def test_names_of_a_repair() -> None:
    repaired = Selection(repair=Repair(clusters=2, epsilon=0.15))
    assert repaired.path == "hard-repair2-0.15"
    assert repaired.keep_order == "hard"
    assert Selection().identity() == {"keep_order": "hard", "rule": "chain"}
    assert Selection(repair=Repair(clusters="all")).path == "hard-repairall-0.1"
    assert Clustering("3") == Clustering.parse("3")


@settings(max_examples=25, deadline=None)
@given(chain=st.integers(1, 30), shards=st.integers(1, 3), seed=st.integers(0, 99))
def test_stand_ins_are_what_earlier_items_lead_to(
    tmp_path_factory: pytest.TempPathFactory, chain: int, shards: int, seed: int
) -> None:
    """A forest of items by files: roots are kept, every other item has an earlier one."""
    rng = np.random.default_rng(seed)
    ids = np.array([(index % shards) << 32 | 1000 - index for index in range(chain)], dtype=np.uint64)
    parent = np.array([-1] + [int(rng.integers(0, index)) for index in range(1, chain)])
    parent[rng.random(chain) < 0.1] = -1
    root = list(range(chain))
    for index in range(chain):
        root[index] = index if parent[index] < 0 else root[parent[index]]
    # Kept items are alone in cluster 0, so all the others are lost.
    cluster = np.where(parent < 0, 0, 1 + np.arange(chain) % 2)
    similarity = np.where(parent < 0, -np.inf, 0.99).astype(np.float32)
    kept = KeptItems.of(_files(tmp_path_factory.mktemp("scores"), ids, cluster, similarity, parent), 0.1)
    assert kept.contains(ids).tolist() == (parent < 0).tolist()
    assert not kept.contains(np.array([5 << 32, 1 << 31], dtype=np.uint64)).any()
    lost = ids[parent >= 0]
    assert kept.stand_ins(lost).tolist() == [int(ids[root[index]]) for index in np.flatnonzero(parent >= 0)]


def _files(folder: Path, ids: np.ndarray, cluster: np.ndarray, similarity: np.ndarray, parent: np.ndarray) -> list[Any]:
    """Scores in three files, a cluster in each."""
    from semdedup_assets.stages.duplicate_scores import range_name
    from semdedup_assets.storage.results import ResultWriter
    from semdedup_assets.storage.tables import write_table

    writer = ResultWriter(str(folder / "scores"))
    for index in range(3):
        here = cluster == index
        duplicate_of = np.ma.masked_array(ids[np.maximum(parent, 0)], mask=parent < 0)[here]
        columns = {
            "id": ids[here],
            "cluster": cluster[here],
            "similarity": similarity[here],
            "duplicate_of": duplicate_of,
        }
        with writer.open(range_name(index)) as stream:
            write_table(stream, columns)
    from semdedup_assets.storage.results import commit

    record = commit(writer, code_version="", inputs={})
    return [record.file(name) for name in sorted(record.files)]


def test_real_texts_are_repaired_exactly(tmp_path: Path) -> None:
    """A shard of docstrings, by the demo's model."""
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(sorted((ROOT / "examples/docstrings/shards").iterdir())[0], source)
    runs = StageRuns(
        {
            "dataset": "docstrings",
            "store": str(tmp_path / "store"),
            "source": {"kind": "jsonl", "path": str(source)},
            "encoder": {"kind": "sentence_transformers", "model": str(ROOT / "examples/docstrings/encoder")},
            "clustering": {"k": [8], "buckets": 2},
            "epsilons": ["0.1"],
            "selection": {"repair": {"clusters": "all", "epsilon": 0.1}},
            "compute": {"device": "cpu"},
        },
        StageGraph(METHOD.stages),
    )
    runs.run(until=REPAIRED_SCORES)
    scores = _with_vectors(runs, _repaired(runs, "8"))
    order = np.lexsort((scores["id"].to_numpy(), scores["centroid_similarity"].to_numpy()))
    assert _assert_exact(scores, order, 0.1) > 0


def test_protected_items_and_distance_to_medians_order_the_whole_data_set(tmp_path: Path) -> None:
    vectors = near_duplicates(4, groups=30, copies=4, dimension=4)
    flags = (np.random.default_rng(0).random(len(vectors)) < 0.2).tolist()
    for part in range(2):
        write_table(tmp_path, f"{part}", vectors[part::2], {"precious": flags[part::2]})
    runs = StageRuns(
        vectors_settings(
            tmp_path,
            source={"kind": "vectors", "path": str(tmp_path / "source"), "columns": {"precious": "bool"}},
            clustering={"k": [8], "buckets": 1},
            selection={"keep": "middle", "protect": "precious", "repair": REPAIR},
            epsilons=["0.25"],
        )
    )
    runs.run(until="keep_masks")
    scores = _with_vectors(runs, _repaired(runs, "8"))
    items = pl.concat(
        [
            pl.DataFrame({"id": table["id"], "precious": table["precious"]})
            for record in runs.context().index.require_all("items").values()
            for table in [pl.read_parquet(record.file("items.parquet").path)]
        ]
    )
    scores = scores.join(items, on="id", maintain_order="left")
    median = pl.col("centroid_similarity").sort().get((pl.len() - 1) // 2).over("cluster")
    scores = scores.with_columns(key=(pl.col("centroid_similarity") - median).abs())
    order = scores.with_row_index("row").sort(~pl.col("precious"), "key", "id")["row"].to_numpy()
    ordered = scores[order]
    expected = oracle.chain_scores(ordered["unit"].to_numpy())
    free = ~ordered["precious"].to_numpy()
    near = free & (expected > 0.7)
    found = ordered["similarity"].to_numpy()
    np.testing.assert_allclose(found[near], expected[near], atol=1e-6)
    assert np.isneginf(found[~free]).all()
    assert near.sum() > 50
    masks = runs.masks("0.25|8").join(items, on="id")
    assert masks.filter("precious")["kept"].all()
    assert not masks["kept"].all()
    assert set(masks["kept_neighbour"].drop_nulls()) <= set(masks.filter("kept")["id"])
