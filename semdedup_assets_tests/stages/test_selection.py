"""Scores and masks of the whole pipeline, cluster by cluster, against the oracle."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semdedup_assets.algorithm.deduplication import semdedup
from semdedup_assets.stages.centroids import bucket_ranges, read_centroids
from semdedup_assets.storage.vectors import clusters_of_rows, read_bucket, read_vectors
from semdedup_assets_tests import oracle
from semdedup_assets_tests.pipeline_runs import PipelineRuns, near_duplicates, vectors_settings

EPSILONS = ["0", "0.01", "0.1", "0.3", "keep=50%", "keep=75%"]
SELECTIONS: dict[str, dict[str, Any]] = {
    "hard": {"keep": "hard"},
    "easy": {"keep": "easy"},
    "random": {"keep": "random", "seed": 3},
    "descending": {"keep": {"column": "quality"}},
    "ascending": {"keep": {"column": "quality", "order": "ascending"}},
    "greedy": {"rule": "greedy"},
    "greedy easy": {"keep": "easy", "rule": "greedy"},
}
K = "4"


def write_table(folder: Path, shard: int) -> None:
    """A shard with a quality that has gaps and ties, and exact duplicates of the first shard's rows."""
    rng = np.random.default_rng(shard)
    vectors = near_duplicates(shard, groups=25, copies=4)
    vectors[:5] = near_duplicates(0, groups=25, copies=4)[:5]
    quality = [None if value == 0 else float(value) for value in rng.integers(0, 6, len(vectors))]
    table = {"embedding": list(vectors), "quality": quality, "name": [f"{shard}-{row}" for row in range(len(vectors))]}
    (folder / "source").mkdir(exist_ok=True)
    pq.write_table(pa.table(table), folder / "source" / f"{shard}.parquet")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipelineRuns]:
    folder = tmp_path_factory.mktemp("selection")
    for shard in range(3):
        write_table(folder, shard)
    settings = vectors_settings(folder) | {
        "source": {
            "kind": "vectors",
            "path": str(folder / "source"),
            "key": "name",
            "columns": {"quality": "float"},
        },
        "clustering": {"k": [K], "buckets": 3, "iterations": 100},
        "epsilons": EPSILONS,
    }
    with dg.DagsterInstance.ephemeral() as instance:
        yield PipelineRuns(instance, settings)


@dataclass(frozen=True)
class Selected:
    """What the pipeline wrote under one selection: all files read, joined by id."""

    runs: PipelineRuns
    vectors: dict[int, np.ndarray]
    quality: dict[int, float]
    cluster: dict[int, int]
    similarity: dict[int, float]
    scores: pl.DataFrame
    masks: dict[str, pl.DataFrame]

    @property
    def clusters(self) -> dict[int, list[int]]:
        return {c: [i for i, own in self.cluster.items() if own == c] for c in set(self.cluster.values())}

    def epsilon(self, partition: str) -> float:
        return float(self.runs.work.masks(K, partition).details["epsilon"])


def by_assignments(runs: PipelineRuns) -> tuple[dict[int, int], dict[int, float], dict[int, np.ndarray]]:
    cluster: dict[int, int] = {}
    similarity: dict[int, float] = {}
    vectors: dict[int, np.ndarray] = {}
    for shard in runs.work.shards():
        for bucket, clusters in enumerate(bucket_ranges(runs.work, K)):
            part = read_bucket(runs.work.layout.assignments(K, shard.name), bucket=bucket, clusters=clusters)
            ids = part.table.ids.tolist()
            cluster |= dict(zip(ids, (clusters_of_rows(part.offsets) + clusters.start).tolist(), strict=True))
            similarity |= dict(zip(ids, part.table.columns.column("centroid_similarity").to_pylist(), strict=True))
            vectors |= dict(zip(ids, np.array(part.table.vectors), strict=True))
    return cluster, similarity, vectors


@pytest.fixture(scope="module", params=SELECTIONS)
def selected(request: pytest.FixtureRequest, base: PipelineRuns) -> Selected:
    # Each in a model of its own, so that all results lie beside each other.
    model = str(request.param).replace(" ", "-")
    runs = base.changed(selection=SELECTIONS[request.param], model=model)
    runs.refresh()
    cluster, similarity, vectors = by_assignments(runs)
    embedded = [
        table for shard in runs.work.shards() for table in read_vectors(runs.work.layout.embeddings(shard.name))
    ]
    quality = {
        i: value
        for table in embedded
        for i, value in zip(table.ids.tolist(), table.columns.column("quality").to_pylist(), strict=True)
    }
    layout, buckets = runs.work.layout, runs.work.buckets
    scores = pl.concat([pl.read_parquet(layout.scores(K, bucket)) for bucket in buckets])
    masks = {e: pl.concat([pl.read_parquet(layout.mask(K, e, bucket)) for bucket in buckets]) for e in EPSILONS}
    return Selected(runs, vectors, quality, cluster, similarity, scores, masks)


def order(selected: Selected, cluster: int) -> list[int]:
    """Ids of a cluster in keep-order, by the definition of each strategy."""
    keep = selected.runs.pipeline.selection.keep
    ids = selected.clusters[cluster]
    if keep == "hard":
        return sorted(ids, key=lambda i: (selected.similarity[i], i))
    if keep == "easy":
        return sorted(ids, key=lambda i: (-selected.similarity[i], i))
    if keep == "random":
        return selected.scores.filter(pl.col("cluster") == cluster)["id"].to_list()
    sign = -1 if keep.order == "descending" else 1  # type: ignore[union-attr]
    quality = selected.quality
    return sorted(ids, key=lambda i: (quality[i] is None, sign * quality[i] if quality[i] is not None else 0, i))


def test_every_item_is_assigned_once_to_its_nearest_centroid(selected: Selected) -> None:
    embedded = {
        i
        for s in selected.runs.work.shards()
        for t in read_vectors(selected.runs.work.layout.embeddings(s.name))
        for i in t.ids.tolist()
    }
    assert set(selected.cluster) == embedded
    centroids = oracle.unit(read_centroids(selected.runs.work, K))
    for i, vector in selected.vectors.items():
        similarities = centroids @ oracle.unit(vector[None])[0]
        assert similarities[selected.cluster[i]] == pytest.approx(similarities.max(), abs=1e-6)
        assert selected.similarity[i] == pytest.approx(similarities[selected.cluster[i]], abs=1e-6)


def test_scores_are_those_of_the_paper_in_keep_order(selected: Selected) -> None:
    assert sorted(selected.scores["id"]) == sorted(selected.cluster)
    for cluster in selected.clusters:
        ids = order(selected, cluster)
        found = selected.scores.filter(pl.col("cluster") == cluster)
        assert found["id"].to_list() == ids
        expected = oracle.chain_scores(np.array([selected.vectors[i] for i in ids]))
        np.testing.assert_allclose(found["similarity"].to_numpy(), expected, atol=1e-5)
        assert found["duplicate_of"].is_null().to_list() == [True] + [False] * (len(ids) - 1)
        for row, duplicate_of in enumerate(found["duplicate_of"].to_list()[1:], 1):
            assert duplicate_of in ids[:row]
            pair = oracle.unit(np.array([selected.vectors[ids[row]], selected.vectors[duplicate_of]]))
            assert pair[0] @ pair[1] == pytest.approx(expected[row], abs=1e-5)


@pytest.mark.parametrize("partition", EPSILONS)
def test_masks_are_those_of_the_oracle(selected: Selected, partition: str) -> None:
    epsilon, mask = selected.epsilon(partition), selected.masks[partition]
    kept = dict(zip(mask["id"].to_list(), mask["kept"].to_list(), strict=True))
    rule = oracle.greedy_keep if selected.runs.pipeline.selection.rule == "greedy" else oracle.chain_keep
    if epsilon == 0:  # Nothing is more similar than 1; the oracle's rounding would say otherwise.
        assert all(kept.values())
        return
    doubtful = 0
    for cluster in selected.clusters:
        ids = order(selected, cluster)
        vectors = np.array([selected.vectors[i] for i in ids])
        # float32 decides: at the very border float64 may differ, by less than 1e-6.
        wanted = {bool_list(rule(vectors, epsilon + shift)) for shift in (0, 2e-6, -2e-6) if epsilon + shift >= 0}
        assert bool_list([kept[i] for i in ids]) in wanted
        doubtful += len(wanted) > 1
    assert doubtful <= 2


def bool_list(values: Any) -> tuple[bool, ...]:
    return tuple(bool(value) for value in values)


@pytest.mark.parametrize("partition", EPSILONS)
def test_each_removed_item_names_its_nearest_kept_one(selected: Selected, partition: str) -> None:
    mask = selected.masks[partition]
    rows = {row["id"]: row for row in mask.iter_rows(named=True)}
    orphans = 0
    for ids in selected.clusters.values():
        vectors = np.array([selected.vectors[i] for i in ids])
        keep = np.array([rows[i]["kept"] for i in ids])
        nearest = oracle.nearest_kept(vectors, keep)
        for i, similarity in zip(ids, nearest, strict=True):
            row = rows[i]
            if row["kept"]:
                assert row["kept_neighbour"] is None
                assert row["kept_similarity"] is None
                continue
            assert rows[row["kept_neighbour"]]["kept"]
            assert row["kept_similarity"] == pytest.approx(similarity, abs=1e-5)
            orphans += not row["kept_similarity"] > 1 - selected.epsilon(partition)
    details = selected.runs.work.masks(K, partition).details
    assert details["orphans"] == orphans
    if selected.runs.pipeline.selection.rule == "greedy":
        assert orphans == 0
    assert details["kept"] == int(mask["kept"].sum())
    assert details["kept"] + details["removed"] == len(rows) == 300


@pytest.mark.parametrize(("partition", "share"), [("keep=50%", 0.5), ("keep=75%", 0.75)])
def test_a_target_is_met_exactly_by_the_scores(selected: Selected, partition: str, share: float) -> None:
    scores = np.sort(selected.scores["similarity"].to_numpy())
    details = selected.runs.work.masks(K, partition).details
    wanted = int(np.ceil(share * len(scores)))
    ties = int((scores <= scores[wanted - 1]).sum())
    assert details["kept_by_chain"] == ties
    if scores[wanted - 1] < scores[wanted]:
        assert ties == wanted
    if selected.runs.pipeline.selection.rule == "chain":
        assert details["kept"] == details["kept_by_chain"]
    else:
        assert details["kept"] == details["kept_by_greedy"] >= details["kept_by_chain"]


def test_exact_duplicates_across_shards_keep_one_under_the_greedy_rule(selected: Selected) -> None:
    mask = selected.masks["0.01"]
    kept = set(mask.filter("kept")["id"].to_list())
    for row in range(5):
        copies = [(shard << 32) + row for shard in range(3)]
        assert len({selected.cluster[i] for i in copies}) == 1
        assert len(kept.intersection(copies)) <= 1


def test_the_library_call_agrees_with_the_pipeline_where_the_centroids_are_the_same(selected: Selected) -> None:
    keep = selected.runs.pipeline.selection.keep
    if not isinstance(keep, str) or keep == "random":
        pytest.skip("the library takes columns as numbers")
    ids = np.array(sorted(selected.cluster), dtype=np.uint64)
    vectors = np.array([selected.vectors[int(i)] for i in ids])
    result = semdedup(vectors, k=int(K), keep=keep, ids=ids)
    np.testing.assert_allclose(result.centroids, read_centroids(selected.runs.work, K), atol=1e-6)
    assert result.cluster.tolist() == [selected.cluster[int(i)] for i in ids]
    scores = dict(zip(selected.scores["id"].to_list(), selected.scores["similarity"].to_list(), strict=True))
    np.testing.assert_allclose(result.similarity, [scores[int(i)] for i in ids], atol=1e-6)
    if selected.runs.pipeline.selection.rule == "chain":
        kept = {int(i) for i in ids[result.keep_mask(selected.epsilon("0.1"))]}
        assert kept == set(selected.masks["0.1"].filter("kept")["id"].to_list())
        assert result.epsilon_for(keep=0.5) == pytest.approx(selected.epsilon("keep=50%"), abs=1e-6)


def test_masks_shrink_as_epsilon_grows(selected: Selected) -> None:
    if selected.runs.pipeline.selection.rule == "greedy":
        pytest.skip("the greedy rule does not promise it")
    kept = [set(selected.masks[e].filter("kept")["id"].to_list()) for e in ("0", "0.01", "0.1", "0.3")]
    assert all(more >= less for more, less in pairwise(kept))
    assert len(kept[0]) > len(kept[-1])


def test_manifests_hold_the_kept_items_in_the_order_of_the_source(selected: Selected) -> None:
    for partition in EPSILONS:
        pointer = selected.runs.work.layout.current_manifest(K, partition)
        folder = Path(pointer).parent / json.loads(Path(pointer).read_text())["folder"]
        tables = [pl.read_parquet(path) for path in sorted((folder / "parquet").iterdir())]
        found = [i for table in tables for i in table["id"].to_list()]
        assert found == sorted(selected.masks[partition].filter("kept")["id"].to_list())
        expected = [(shard, i & 0xFFFFFFFF) for i in found for shard in [i >> 32]]
        assert [key for table in tables for key in table["key"].to_list()] == [f"{s}-{row}" for s, row in expected]
        assert [v for table in tables for v in table["quality"].to_list()] == [selected.quality[i] for i in found]
