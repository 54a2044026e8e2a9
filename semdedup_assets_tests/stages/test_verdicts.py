"""Every verdict passes on a sound store, and fails on one that is really wrong."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from semdedup_assets.records import Embedded
from semdedup_assets.settings import Pipeline
from semdedup_assets.stages import verdicts
from semdedup_assets.stages.assignments import FittedClusters, assign_shard
from semdedup_assets.stages.centroids import fit_centroids, read_centroids
from semdedup_assets.stages.duplicate_scores import AssignedShards, score_bucket
from semdedup_assets.stages.embeddings import embed_shards
from semdedup_assets.stages.keep_masks import select_items
from semdedup_assets.stages.manifests import write_manifest
from semdedup_assets.stages.shards import update_catalogue
from semdedup_assets.stages.stored_recipes import StoredRecipes
from semdedup_assets.stages.training_sample import draw_sample
from semdedup_assets.stages.verdicts import Verdict, made_from_current
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.layout import recipe_path
from semdedup_assets_tests.pipeline_runs import PipelineRuns, near_duplicates, vectors_settings, write_shard
from semdedup_assets_tests.tampering import change_recipe, change_table, lose_a_cluster

KS = ["3", "5"]
EPSILONS = ["0.01", "0.05", "keep=50%"]
JUDGES = [
    verdicts.vectors_are_finite_unit,
    verdicts.one_dimension,
    verdicts.ids_are_unique,
    verdicts.skipped_share,
    verdicts.no_shard_left_out,
    verdicts.no_empty_clusters,
    verdicts.sample_is_large_enough,
    verdicts.every_item_in_one_cluster,
    verdicts.similarity_has_not_drifted,
    verdicts.every_item_scored_once,
    verdicts.largest_cluster,
    verdicts.masks_are_monotone,
    verdicts.every_cluster_keeps_one,
    verdicts.every_item_masked_once,
    verdicts.counts_are_conserved,
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with source and store of three shards, made by the pipeline itself."""
    folder = tmp_path_factory.mktemp("sound")
    for seed in range(3):
        write_shard(folder, f"{seed}", near_duplicates(seed))
    with dg.DagsterInstance.ephemeral() as instance:
        PipelineRuns(instance, settings(folder)).refresh()
    return folder


def settings(folder: Path) -> dict[str, Any]:
    chosen = vectors_settings(folder)
    chosen["clustering"]["k"] = KS
    return {**chosen, "epsilons": EPSILONS, "refresh": {"attempts": 1}}


@pytest.fixture
def work(sound: Path, tmp_path: Path) -> Work:
    """The same store, to be spoilt."""
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    catalogue = tmp_path / "store" / "toy" / "catalogue.json"
    catalogue.write_text(catalogue.read_text().replace(str(sound), str(tmp_path)))
    return Work(Pipeline.model_validate(settings(tmp_path)))


def judged(work: Work, judge: Callable[[StoredRecipes], Verdict]) -> dict[str, str]:
    """What is measured on the failing partitions."""
    return {problem.partition: problem.measured for problem in judge(StoredRecipes(work)).problems}


class Faulty:
    """The pipeline's model, whose batches something happens to."""

    def __init__(self, work: Work, fault: Callable[[Embedded], Embedded]) -> None:
        self._model, self._fault = work.pipeline.encoder.load(work.compute), fault
        self.dimension = None

    def embed(self, records: Iterable[Any]) -> Iterator[Embedded]:
        return (self._fault(batch) for batch in self._model.embed(records))


def unchanged(batch: Embedded) -> Embedded:
    return batch


def embed(work: Work, name: str, fault: Callable[[Embedded], Embedded] = unchanged) -> None:
    shards = {shard.name: shard for shard in update_catalogue(work).shards}
    assert len(list(embed_shards(work, [shards[name]], model=Faulty(work, fault)))) == 1


def test_all_pass_on_a_sound_store(work: Work) -> None:
    stored = StoredRecipes(work)
    for judge in JUDGES:
        assert judge(stored).problems == [], judge.__name__
    for stage in ("assignments", "duplicate_scores", "keep_masks", "manifests", "figures", "galleries"):
        verdict = made_from_current(work, stage)
        assert verdict.problems == []
        assert verdict.measured["made"] > 0


def test_a_sound_store_was_really_looked_at(work: Work) -> None:
    stored = StoredRecipes(work)
    assert verdicts.every_item_in_one_cluster(stored).measured["items"] == 180 * len(KS)
    assert verdicts.every_item_masked_once(stored).measured["items"] == 180 * len(KS) * len(EPSILONS)
    monotone = verdicts.masks_are_monotone(stored).measured
    assert monotone == {"pairs_of_masks": 4, "rows_compared": 4 * 180}
    assert verdicts.counts_are_conserved(stored).measured["records"] == 180
    assert all("id_checksum" in recipe.details for recipe in stored.embeddings.values())


def test_an_empty_store_has_nothing_wrong(tmp_path: Path) -> None:
    empty = Work(Pipeline.model_validate(settings(tmp_path)))
    assert all(judge(StoredRecipes(empty)).problems == [] for judge in JUDGES)
    assert made_from_current(empty, "keep_masks").problems == []


@pytest.mark.parametrize(
    ("factor", "words"), [(0.5, "0 vectors not finite, norms up to 0.5 off"), (np.nan, "60 vectors not finite")]
)
def test_vectors_off_unit_norm_or_not_finite_are_told(work: Work, factor: float, words: str) -> None:
    embed(work, "s000001", lambda batch: replace(batch, vectors=batch.vectors * np.float32(factor)))
    found = judged(work, verdicts.vectors_are_finite_unit)
    assert list(found) == ["s000001"]
    assert words in found["s000001"]


def test_rounding_to_float16_is_no_fault_of_norm(work: Work) -> None:
    errors = [recipe.details["norm_error"] for recipe in StoredRecipes(work).embeddings.values()]
    assert 1e-5 < max(errors) < 5e-4


def test_a_shard_of_another_dimension_than_the_centroids_is_told(work: Work) -> None:
    def narrower(batch: Embedded) -> Embedded:
        vectors = batch.vectors[:, :8]
        return replace(batch, vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    for shard in ("s000000", "s000002"):
        embed(work, shard, narrower)
    assert judged(work, verdicts.one_dimension) == {
        "s000000": "8 numbers where 16 should be",
        "s000002": "8 numbers where 16 should be",
    }


def test_embeddings_of_other_settings_are_outdated_and_not_wrong(work: Work) -> None:
    embed(work, "s000001", lambda batch: replace(batch, vectors=batch.vectors * 2))
    other = Work(work.pipeline.model_copy(update={"vectors": "float32"}))
    assert judged(other, verdicts.vectors_are_finite_unit) == {}


def test_ids_that_come_twice_are_told(work: Work) -> None:
    def repeated(batch: Embedded) -> Embedded:
        rows = batch.rows.copy()
        rows[7] = rows[6]
        return replace(batch, rows=rows)

    embed(work, "s000002", repeated)
    assert judged(work, verdicts.ids_are_unique) == {"s000002": "1 ids twice or out of order"}


def test_a_shard_with_the_ids_of_another_is_told(work: Work) -> None:
    for suffix in ("", ".recipe.json"):
        place = Path(f"{work.layout.embeddings('s000000')}{suffix}")
        shutil.copy(place, f"{work.layout.embeddings('s000001')}{suffix}")
    change_recipe(work.layout.embeddings("s000001"), as_s000001)
    assert judged(work, verdicts.ids_are_unique) == {"s000001": "the same ids as s000000"}


def as_s000001(recipe: dict[str, Any]) -> None:
    recipe["files"] = {name.replace("s000000", "s000001"): size for name, size in recipe["files"].items()}


def test_a_shard_that_was_left_out_is_told_with_the_reason(work: Work, tmp_path: Path) -> None:
    np.save(tmp_path / "source" / "1.npy", np.zeros(3))  # One dimension: no table of vectors.
    embed(work, "s000001")
    found = judged(work, verdicts.no_shard_left_out)
    assert list(found) == ["s000001"]
    assert "1.npy" in found["s000001"]


def test_empty_clusters_are_told(tmp_path: Path) -> None:
    write_shard(tmp_path, "0", np.repeat(near_duplicates(0, groups=2, copies=1), 30, axis=0))
    work = Work(Pipeline.model_validate(settings(tmp_path)))
    embed(work, "s000000")
    draw_sample(work)
    fit_centroids(work, "5")
    assert judged(work, verdicts.no_empty_clusters) == {"5": "3 of 5 clusters"}


def test_a_sample_too_small_for_its_clusters_is_told_only_while_there_are_more_items(work: Work) -> None:
    assert judged(work, verdicts.sample_is_large_enough) == {}  # 36 a cluster at k = 5, but these are all items
    sample = work.pipeline.training_sample.model_copy(update={"size": 60})
    smaller = Work(work.pipeline.model_copy(update={"training_sample": sample}))
    draw_sample(smaller)
    fit_centroids(smaller, "3")
    assert judged(smaller, verdicts.sample_is_large_enough) == {"3": "20.0 sampled vectors a cluster of 60.0 items"}


def without_last_cluster(clusters: FittedClusters) -> FittedClusters:
    """A plan of buckets that forgets a cluster."""
    first, last = clusters.buckets
    clusters.__dict__["buckets"] = [first, range(last.start, last.stop - 1)]
    return clusters


def test_items_that_assignments_lose_are_told(work: Work) -> None:
    assign_shard(work, "s000001", clusters=without_last_cluster(FittedClusters(work, "3")))
    found = judged(work, verdicts.every_item_in_one_cluster)
    assert list(found) == ["3|s000001"]
    assert "items where 60 should be" in found["3|s000001"]


def test_other_items_of_the_same_number_are_told(work: Work) -> None:
    shutil.copy(work.layout.assignments("3", "s000000"), work.layout.assignments("3", "s000001"))
    shutil.copy(
        recipe_path(work.layout.assignments("3", "s000000")), recipe_path(work.layout.assignments("3", "s000001"))
    )
    version = work.embeddings("s000001").version

    def taken(recipe: dict[str, Any]) -> None:
        as_s000001(recipe)
        recipe["made_from"]["embeddings"] = version

    change_recipe(work.layout.assignments("3", "s000001"), taken)
    expected = {"3|s000001": "60 items, as there should be, but others"}
    assert judged(work, verdicts.every_item_in_one_cluster) == expected
    change_recipe(work.layout.embeddings("s000001"), lambda recipe: recipe["details"].pop("id_checksum"))
    assert judged(work, verdicts.every_item_in_one_cluster) == {}  # an older store: only numbers can be compared


def test_assignments_of_what_was_embedded_before_are_outdated_and_not_wrong(work: Work, tmp_path: Path) -> None:
    write_shard(tmp_path, "1", near_duplicates(7, groups=10))
    embed(work, "s000001")
    verdict = verdicts.every_item_in_one_cluster(StoredRecipes(work))
    assert verdict.problems == []
    assert verdict.measured == {"items": 120 * len(KS), "outdated_partitions": len(KS)}


def new_shard(work: Work, folder: Path, name: str, vectors: np.ndarray) -> None:
    write_shard(folder, name, vectors)
    shard = update_catalogue(work).shards[-1].name
    embed(work, shard)
    for k in KS:
        assign_shard(work, shard, clusters=FittedClusters(work, k))


def test_drift_is_the_loss_of_mean_similarity_and_names_the_worst_shards(work: Work, tmp_path: Path) -> None:
    quiet = verdicts.similarity_has_not_drifted(StoredRecipes(work))
    assert quiet.problems == []
    assert "no shard was embedded since" in quiet.measured["k=3"]
    far = [near_duplicates(50, groups=30), near_duplicates(51, groups=10)]
    for number, vectors in enumerate(far):
        new_shard(work, tmp_path, f"new-{number}", vectors)
    verdict = verdicts.similarity_has_not_drifted(StoredRecipes(work))
    assert [problem.partition for problem in verdict.problems] == KS
    assert "refit" in verdict.problems[0].cure
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in far]
    for k in KS:
        nearest = [(vectors @ read_centroids(work, k).T).max(axis=1) for vectors in unit]
        baseline = work.centroids(k).details["objective"][-1]
        assert verdict.measured[f"k={k} drift"] == pytest.approx(baseline - np.concatenate(nearest).mean(), abs=1e-3)
        worst = {"s000003": nearest[0].mean(), "s000004": nearest[1].mean()}
        assert verdict.measured[f"k={k} worst_shards"] == pytest.approx(worst, abs=1e-3)


def test_new_items_like_the_old_are_no_drift(work: Work, tmp_path: Path) -> None:
    new_shard(work, tmp_path, "new", np.concatenate([near_duplicates(seed) for seed in range(3)]))
    verdict = verdicts.similarity_has_not_drifted(StoredRecipes(work))
    assert verdict.problems == []
    assert verdict.measured["k=3 new_shards"] == 1
    assert abs(verdict.measured["k=3 drift"]) < 0.01


def test_items_that_scores_lose_are_told(work: Work) -> None:
    assigned = AssignedShards(work, "3")
    without_last_cluster(assigned.clusters)
    score_bucket(work, 1, assigned=assigned)
    found = judged(work, verdicts.every_item_scored_once)
    assert list(found) == ["all buckets of k=3"]
    assert "items where 180 should be" in found["all buckets of k=3"]


def test_scores_of_which_some_buckets_are_outdated_are_not_judged(work: Work, tmp_path: Path) -> None:
    new_shard(work, tmp_path, "new", near_duplicates(9))
    score_bucket(work, 0, assigned=AssignedShards(work, "3"))
    verdict = verdicts.every_item_scored_once(StoredRecipes(work))
    assert verdict.problems == []
    assert "not all buckets" in verdict.measured["k=3"]


def test_a_cluster_far_above_the_average_is_told_with_an_item_of_it(tmp_path: Path) -> None:
    flags = np.repeat(near_duplicates(0, groups=1, copies=1), 1500, axis=0)
    write_shard(tmp_path, "0", near_duplicates(1, groups=40))
    write_shard(tmp_path, "1", flags)
    with dg.DagsterInstance.ephemeral() as instance:
        runs = PipelineRuns(instance, settings(tmp_path)).changed(clustering={"k": [40]})
        runs.refresh()
    (found,) = judged(runs.work, verdicts.largest_cluster).items()
    assert found[0] in {"b0000|40", "b0001|40"}
    assert "times the average" in found[1]
    assert "1.npy:" in found[1]
    assert "(s000001)" in found[1]


def test_a_mask_that_keeps_what_a_lower_epsilon_removes_is_told(work: Work) -> None:
    path = work.layout.mask("3", "keep=50%", "b0001")
    recipe = work.layout.masks("3", "keep=50%")
    change_table(path, recipe, lambda table: table.with_columns(kept=pl.lit(value=True)))
    found = judged(work, verdicts.masks_are_monotone)
    assert list(found) == ["keep=50%|3"]
    assert "items kept that are removed, against 0.05" in found["keep=50%|3"]


def test_a_mask_that_keeps_more_than_a_lower_epsilon_is_told_and_only_warned_of_by_the_greedy_rule(
    work: Work,
) -> None:
    change_recipe(work.layout.masks("5", "0.05"), lambda recipe: recipe["details"].update(kept=181))
    found = judged(work, verdicts.masks_are_monotone)
    assert list(found) == ["0.05|5"]
    assert "181 items kept, not at most" in found["0.05|5"]
    assert verdicts.masks_are_monotone(StoredRecipes(work)).certain
    greedy = work.pipeline.selection.model_copy(update={"rule": "greedy"})
    verdict = verdicts.masks_are_monotone(StoredRecipes(Work(work.pipeline.model_copy(update={"selection": greedy}))))
    assert not verdict.certain


def test_masks_from_different_scores_are_not_compared(work: Work) -> None:
    change_recipe(work.layout.masks("5", "0.05"), lambda recipe: recipe["details"].update(kept=181))
    change_recipe(work.layout.masks("5", "0.05"), lambda recipe: recipe["made_from"].update(duplicate_scores="others"))
    assert judged(work, verdicts.masks_are_monotone) == {}
    assert verdicts.every_item_masked_once(StoredRecipes(work)).measured["outdated_partitions"] == 1


def test_a_cluster_of_which_nothing_is_kept_is_told(work: Work) -> None:
    lose_a_cluster(work, "5")
    select_items(work, "0.05", assigned=AssignedShards(work, "5"))
    assert judged(work, verdicts.every_cluster_keeps_one) == {"0.05|5": "1 clusters of 5"}


def test_items_that_masks_lose_are_told(work: Work) -> None:
    path = work.layout.scores("3", "b0000")
    change_table(path, path, lambda table: table.head(-2))
    select_items(work, "0.05", assigned=AssignedShards(work, "3"))
    assert judged(work, verdicts.every_item_masked_once) == {"0.05|3": "178 items where 180 should be"}


def test_a_manifest_of_other_items_than_the_masks_keep_is_told(work: Work) -> None:
    path = work.layout.mask("3", "0.05", "b0000")
    change_table(path, work.layout.masks("3", "0.05"), lambda table: table.with_columns(kept=pl.lit(value=True)))
    change_recipe(work.layout.masks("3", "0.05"), lambda recipe: recipe.update(version="tampered"))
    write_manifest(work, "0.05", assigned=AssignedShards(work, "3"))
    found = judged(work, verdicts.counts_are_conserved)
    assert list(found) == ["0.05|3"]
    kept = work.masks("3", "0.05").details["kept"]
    assert f"kept where {kept} should be" in found["0.05|3"]


def test_rows_that_a_format_lacks_are_told(work: Work) -> None:
    path = work.layout.embeddings("s000001")
    with pa.memory_map(path) as source:
        table = pa.ipc.open_file(source).read_all()
        content = table.slice(0, 30).combine_chunks()
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, content.schema) as writer:
        writer.write_table(content)
    size = Path(path).stat().st_size
    change_recipe(path, lambda recipe: recipe["files"].update({Path(path).name: size}))
    change_recipe(work.layout.masks("3", "0.01"), lambda recipe: recipe.update(version="another"))
    write_manifest(work, "0.01", assigned=AssignedShards(work, "3"))
    found = judged(work, verdicts.counts_are_conserved)
    assert list(found) == ["0.01|3"]
    assert "rows in parquet" in found["0.01|3"]
    assert "rows in keep_lists" in found["0.01|3"]


def outdated(work: Work, stage: str) -> list[str]:
    return [problem.partition for problem in made_from_current(work, stage).problems]


def test_what_was_made_from_other_results_is_told_and_what_was_never_made_is_not(work: Work, tmp_path: Path) -> None:
    write_shard(tmp_path, "1", near_duplicates(7))
    embed(work, "s000001")
    assert outdated(work, "assignments") == ["3|s000001", "5|s000001"]
    assert outdated(work, "duplicate_scores") == []
    assert len(outdated(work, "manifests")) == len(KS) * len(EPSILONS)
    assign_shard(work, "s000001", clusters=FittedClusters(work, "3"))
    assert outdated(work, "assignments") == ["5|s000001"]
    assert outdated(work, "duplicate_scores") == ["b0000|3", "b0001|3"]
    Path(recipe_path(work.layout.assignments("5", "s000001"))).unlink()
    assert outdated(work, "assignments") == []
    verdict = made_from_current(work, "duplicate_scores")
    assert [problem.partition for problem in verdict.problems] == ["all"]
    assert "it cannot be told" in verdict.problems[0].measured
    assert "partition 5|s000001" in verdict.problems[0].measured
    assert not verdict.certain
