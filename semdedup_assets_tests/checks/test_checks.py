"""Every check passes on a sound store, and fails on one that is really wrong."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from semdedup_assets.checks import assignments, centroids, duplicate_scores, embeddings, items, keep_masks, manifests
from semdedup_assets.checks.up_to_date import up_to_date
from semdedup_assets.execution.context import SETTINGS, StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import CheckResult
from semdedup_assets.kept_sets import Clustering
from semdedup_assets.records import Embedded
from semdedup_assets.stages.assignments import FittedClustering, assign_shard
from semdedup_assets.stages.centroids import read_centroids
from semdedup_assets.stages.cluster_batches import AssignedClusters
from semdedup_assets.stages.duplicate_scores import score_range
from semdedup_assets.stages.embeddings import embed_shard
from semdedup_assets_tests.stage_runs import METHOD, SoundStore, StageRuns, record_path, small_pipeline
from semdedup_assets_tests.tampering import change_details, change_record, change_table, lose_a_cluster
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard, write_table

KS = ["3", "40"]
EPSILONS = ["0.01", "0.05", "keep=50%"]
CHECKS = [(stage.name, check) for stage in METHOD.stages for check in stage.checks]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> SoundStore:
    folder = tmp_path_factory.mktemp("sound")
    runs = small_pipeline(
        folder, clustering={"k": KS}, epsilons=EPSILONS, refresh={"attempts": 1}, training_sample={"per_cluster": "all"}
    )
    return SoundStore.made_by(runs, folder)


@pytest.fixture
def runs(sound: SoundStore, tmp_path: Path) -> StageRuns:
    """The same store, to be spoilt."""
    return sound.copy(tmp_path)


def found(runs: StageRuns, check: Callable[[StageContext], CheckResult]) -> dict[str, str]:
    """What is measured on the failing partitions."""
    return {problem.partition: problem.measured for problem in check(runs.context()).problems}


class Faulty:
    """The pipeline's model, whose batches something happens to."""

    def __init__(self, context: StageContext, fault: Callable[[Embedded], Embedded]) -> None:
        self._model, self._fault = context.pipeline.encoder.load(context.compute), fault
        self.dimension = None

    def embed(self, records: Iterable[Any]) -> Iterator[Embedded]:
        return (self._fault(batch) for batch in self._model.embed(records))


def embed(runs: StageRuns, shard: str, fault: Callable[[Embedded], Embedded]) -> None:
    runs.observe()
    context = runs.context()
    embed_shard(context, Partition(shard=shard), model=Faulty(context, fault))


@pytest.mark.parametrize(("stage", "check"), CHECKS, ids=[f"{stage}-{check.name}" for stage, check in CHECKS])
def test_each_passes_on_a_sound_store(sound: SoundStore, stage: str, check: Any) -> None:
    result = check.evaluate(sound.runs.context())
    assert result.problems == []
    assert result.fault
    assert check.description
    assert stage in METHOD


@pytest.mark.parametrize(("stage", "check"), CHECKS, ids=[f"{stage}-{check.name}" for stage, check in CHECKS])
def test_an_empty_store_has_nothing_wrong(tmp_path: Path, stage: str, check: Any) -> None:
    empty = StageRuns(vectors_settings(tmp_path))
    assert check.evaluate(empty.context()).problems == []
    assert stage in METHOD


def test_every_check_is_here() -> None:
    """A check that is added must get a test of its fault below."""
    assert sorted({check.name for _, check in CHECKS}) == [
        "columns_are_there",
        "counts_are_conserved",
        "every_cluster_keeps_one",
        "every_item_in_one_cluster",
        "every_item_masked_once",
        "every_item_scored_once",
        "files_are_whole",
        "files_can_be_named",
        "ids_are_unique",
        "items_and_vectors_agree",
        "largest_cluster",
        "masks_are_monotone",
        "no_empty_clusters",
        "no_shard_excluded",
        "one_dimension",
        "partitions_are_few",
        "reference_files_unchanged",
        "reference_items_embedded",
        "references_are_removed",
        "repair_reaches_all_targets",
        "sample_is_large_enough",
        "similarity_has_not_drifted",
        "skipped_share",
        "skipped_share_of_shards",
        "values_are_valid",
        "vectors_are_finite_unit",
        "vectors_tell_items_apart",
    ]


def test_a_sound_store_was_really_looked_at(sound: SoundStore) -> None:
    context = sound.runs.context()
    assert assignments.every_item_in_one_cluster(context).measured["items"] == 180 * len(KS)
    assert keep_masks.every_item_masked_once(context).measured["items"] == 180 * len(KS) * len(EPSILONS)
    assert keep_masks.masks_are_monotone(context).measured == {"pairs_of_masks": 4, "rows_compared": 4 * 180}
    assert manifests.counts_are_conserved(context).measured == {"manifests": 6, "records": 180}
    assert duplicate_scores.every_item_scored_once(context).measured == {"k=3 items": 180, "k=40 items": 180}
    assert embeddings.vectors_are_finite_unit(context).measured["vectors"] == 180
    assert items.values_are_valid(context).measured == {"items": 180, "invalid_values": 0}
    assert embeddings.items_and_vectors_agree(context).measured == {"shards": 3}
    for stage in ("assignments", "duplicate_scores", "keep_masks", "manifests"):
        assert freshness_of(sound.runs, stage).measured["partitions"] > 0


# Items and embeddings


def test_values_of_another_type_than_declared_are_reported(tmp_path: Path) -> None:
    write_table(tmp_path, "0", near_duplicates(0), {"quality": ["good", "0.5"] * 30})
    write_table(tmp_path, "1", near_duplicates(1), {"quality": [0.5] * 60})
    settings = vectors_settings(tmp_path)
    settings["source"] |= {"key": "name", "columns": {"quality": "float"}}
    runs = StageRuns(settings)
    runs.run(until="items")
    problems = found(runs, items.values_are_valid)
    assert list(problems) == ["s000000"]
    assert "60 values" in problems["s000000"]
    assert "'good' is not a float" in problems["s000000"]


def text_settings(folder: Path, columns: dict[str, str]) -> dict[str, Any]:
    """Of a pipeline on JSON lines; only its items are made."""
    lines = [{"text": f"text {row}", "meta": {"score": float(row)}, "language": None} for row in range(5)]
    (folder / "source").mkdir()
    (folder / "source" / "0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {"kind": "jsonl", "path": str(folder / "source"), "columns": columns}
    return vectors_settings(folder, source=source, encoder={"kind": "transformers", "model": "unused"})


def test_a_column_that_no_item_has_is_reported_with_near_names(tmp_path: Path) -> None:
    runs = StageRuns(text_settings(tmp_path, {"meta.score": "float", "meta.scores": "float", "language": "string"}))
    runs.run(until="items")
    assert found(runs, items.columns_are_there) == {
        "column 'meta.scores'": f"no item has it; {tmp_path}/source/0.jsonl has meta.score",
        "column 'language'": "it is null in every item",
    }
    (tmp_path / "source" / "1.jsonl").write_text('{"text": "a", "language": "en", "meta": {"scores": 1}}\n')
    runs.run(until="items")
    assert found(runs, items.columns_are_there) == {}


def test_a_key_that_no_item_has_is_reported_with_near_names(tmp_path: Path) -> None:
    settings = text_settings(tmp_path, {})
    settings["source"]["key"] = "texts"
    runs = StageRuns(settings)
    runs.run(until="items")
    path = f"{tmp_path}/source/0.jsonl"
    assert found(runs, items.columns_are_there) == {"key 'texts'": f"no item has it; {path} has text"}
    assert found(runs.changed(source={**settings["source"], "key": "text"}), items.columns_are_there) == {}


def test_more_partitions_than_dagster_is_quick_with_are_reported(sound: SoundStore) -> None:
    many = sound.runs.changed(clustering={"k": list(range(2, 5_004))})
    assert found(many, items.partitions_are_few) == {"assignments": "15,006 partitions of 3 shards"}


@pytest.mark.parametrize(
    ("factor", "words"), [(0.5, "0 vectors not finite, norms up to 0.5 off"), (np.nan, "60 vectors not finite")]
)
def test_vectors_off_unit_norm_or_not_finite_are_reported(runs: StageRuns, factor: float, words: str) -> None:
    embed(runs, "s000001", lambda batch: replace(batch, vectors=batch.vectors * np.float32(factor)))
    problems = found(runs, embeddings.vectors_are_finite_unit)
    assert list(problems) == ["s000001"]
    assert words in problems["s000001"]


def test_rounding_to_float16_is_no_fault_of_norm(sound: SoundStore) -> None:
    errors = [record.details["norm_error"] for record in sound.runs.context().index.records("embeddings").values()]
    assert 1e-5 < max(errors) < 5e-4


def test_embeddings_of_other_settings_are_stale_and_not_wrong(runs: StageRuns) -> None:
    embed(runs, "s000001", lambda batch: replace(batch, vectors=batch.vectors * 2))
    assert found(runs, embeddings.vectors_are_finite_unit)
    assert found(runs.changed(vectors="float32"), embeddings.vectors_are_finite_unit) == {}


def test_a_shard_of_another_dimension_than_the_centroids_is_reported(runs: StageRuns) -> None:
    def narrower(batch: Embedded) -> Embedded:
        vectors = batch.vectors[:, :8]
        return replace(batch, vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    for shard in ("s000000", "s000002"):
        embed(runs, shard, narrower)
    problems = {"s000000": "8 numbers where 16 should be", "s000002": "8 numbers where 16 should be"}
    assert found(runs, embeddings.one_dimension) == problems


def test_repeated_ids_are_reported(runs: StageRuns) -> None:
    def repeated(batch: Embedded) -> Embedded:
        rows = batch.rows.copy()
        rows[7] = rows[6]
        return replace(batch, rows=rows)

    embed(runs, "s000002", repeated)
    assert found(runs, embeddings.ids_are_unique) == {"s000002": "1 ids repeated or out of order"}


def test_a_shard_with_the_ids_of_another_is_reported(runs: StageRuns) -> None:
    first = runs.record("embeddings", "s000000")
    change_details(runs.record("embeddings", "s000001"), id_checksum=first.details["id_checksum"])
    assert found(runs, embeddings.ids_are_unique) == {"s000001": "the same ids as s000000"}


@pytest.mark.parametrize(("limit", "fails"), [(0.016, True), (0.017, False)])
def test_too_many_invalid_items_are_reported(runs: StageRuns, sound: SoundStore, limit: float, fails: bool) -> None:
    vectors = near_duplicates(0)
    vectors[:3] = 0
    write_shard(sound.folder, "0", vectors)
    runs.run(until="embeddings")
    strict = runs.changed(max_skipped=limit)
    result = embeddings.skipped_share(strict.context())
    assert [problem.partition for problem in result.problems] == (["s000000"] if fails else [])
    assert result.measured["skipped"] == 3
    assert result.measured["share"] == pytest.approx(3 / 180, abs=1e-6)
    shards = embeddings.skipped_share_of_shards(strict.context())
    assert shards.measured["shards_above"] == {"s000000": 0.05}
    for problem in [*result.problems, *shards.problems]:
        assert "5.00%, 3 of 60: [['0.npy:0', 'zero vector" in problem.measured


def test_items_that_the_source_itself_has_no_payload_of_are_no_invalid_ones(runs: StageRuns) -> None:
    record = runs.record("embeddings", "s000001")
    change_details(record, records=100, skipped=42, expected_missing=40)
    for check in (embeddings.skipped_share, embeddings.skipped_share_of_shards):
        assert found(runs, check)["s000001"].startswith("3.33%, 2 of 60:")
    change_details(record, records=100, skipped=40, expected_missing=40)
    for check in (embeddings.skipped_share, embeddings.skipped_share_of_shards):
        assert found(runs, check) == {}
    assert embeddings.skipped_share(runs.context()).measured["expected_missing"] == 40


def test_an_excluded_shard_is_reported_with_the_reason(runs: StageRuns, sound: SoundStore) -> None:
    np.save(sound.folder / "source" / "1.npy", np.zeros(3))  # One dimension: no table of vectors.
    runs.run(until="embeddings")
    problems = found(runs, embeddings.no_shard_excluded)
    assert list(problems) == ["s000001"]
    assert "1.npy" in problems["s000001"]
    assert "none could be read" in found(runs, items.values_are_valid)["s000001"]
    assert found(runs, embeddings.items_and_vectors_agree) == {}


def test_a_shard_that_changed_between_reading_items_and_vectors_is_reported(runs: StageRuns) -> None:
    record = runs.record("items", "s000001")
    change_details(record, items=59)
    assert found(runs, embeddings.items_and_vectors_agree) == {"s000001": "59 items where 60 records were read"}
    change_record(record, inputs={"shards": "others"}, details={**record.details, "items": 59})
    assert found(runs, embeddings.items_and_vectors_agree) == {}  # of other files: stale, and not wrong


# Centroids and assignments


def test_empty_clusters_are_reported(tmp_path: Path) -> None:
    write_shard(tmp_path, "0", np.repeat(near_duplicates(0, groups=2, copies=1), 30, axis=0))
    runs = StageRuns(vectors_settings(tmp_path)).changed(clustering={"k": [5]})
    runs.run(until="centroids")
    assert found(runs, centroids.no_empty_clusters) == {"5": "3 of 5 clusters"}


def test_a_sample_too_small_for_its_clusters_is_reported_only_while_there_are_more_items(runs: StageRuns) -> None:
    assert found(runs, centroids.sample_is_large_enough) == {}  # 4.5 a cluster at k = 40, but these are all items
    smaller = runs.changed(training_sample={"size": 60})
    smaller.run(until="centroids")
    assert found(smaller, centroids.sample_is_large_enough) == {
        "3": "20.0 sampled vectors a cluster of 60.0 items, 39 are wanted",
        "40": "1.5 sampled vectors a cluster of 4.5 items, 39 are wanted",
    }


def without_last_cluster(ranges: list[range]) -> list[range]:
    """Ranges that forget a cluster."""
    *most, last = ranges
    return [*most, range(last.start, last.stop - 1)]


def test_items_that_assignments_lose_are_reported(runs: StageRuns) -> None:
    context = runs.context()
    fitted = FittedClustering(context, Clustering("3"))
    fitted.__dict__["ranges"] = without_last_cluster(fitted.ranges)
    assign_shard(context, Partition(clustering=Clustering("3"), shard="s000001"), fitted=fitted)
    problems = found(runs, assignments.every_item_in_one_cluster)
    assert list(problems) == ["3|s000001"]
    assert "items where 60 should be" in problems["3|s000001"]


def test_other_items_of_the_same_number_are_reported(runs: StageRuns) -> None:
    other = runs.record("assignments", "3|s000000")
    change_details(runs.record("assignments", "3|s000001"), id_checksum=other.details["id_checksum"])
    expected = {"3|s000001": "60 items, as there should be, but others"}
    assert found(runs, assignments.every_item_in_one_cluster) == expected


def test_assignments_of_what_was_embedded_before_are_stale_and_not_wrong(runs: StageRuns, sound: SoundStore) -> None:
    write_shard(sound.folder, "1", near_duplicates(7, groups=10))
    runs.run(until="embeddings")
    result = assignments.every_item_in_one_cluster(runs.context())
    assert result.problems == []
    assert result.measured == {"items": 120 * len(KS), "stale_partitions": len(KS)}


def test_drift_is_the_loss_of_mean_similarity_and_names_the_worst_shards(runs: StageRuns, sound: SoundStore) -> None:
    quiet = assignments.similarity_has_not_drifted(runs.context())
    assert quiet.problems == []
    assert "no shard was embedded since" in quiet.measured["k=3"]
    far = [near_duplicates(50, groups=30), near_duplicates(51, groups=10)]
    for number, vectors in enumerate(far):
        write_shard(sound.folder, f"new-{number}", vectors)
    runs.run(until="assignments")
    result = assignments.similarity_has_not_drifted(runs.context())
    assert [problem.partition for problem in result.problems] == KS
    assert "refit" in result.problems[0].remedy
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in far]
    for k in KS:
        nearest = [(vectors @ read_centroids(runs.context(), Clustering(k)).T).max(axis=1) for vectors in unit]
        baseline = runs.record("centroids", k).details["objective"][-1]
        expected = baseline - np.concatenate(nearest).mean()
        assert result.measured[f"k={k} drift"] == pytest.approx(expected, abs=1e-3)
        worst = {"s000003": nearest[0].mean(), "s000004": nearest[1].mean()}
        assert result.measured[f"k={k} worst_shards"] == pytest.approx(worst, abs=1e-3)


def test_new_items_like_the_old_are_no_drift(runs: StageRuns, sound: SoundStore) -> None:
    write_shard(sound.folder, "new", np.concatenate([near_duplicates(seed) for seed in range(3)]))
    runs.run(until="assignments")
    result = assignments.similarity_has_not_drifted(runs.context())
    assert result.problems == []
    assert result.measured["k=3 new_shards"] == 1
    assert abs(result.measured["k=3 drift"]) < 0.01


# Scores


def test_items_that_scores_lose_are_reported(runs: StageRuns) -> None:
    context = runs.context()
    assigned = AssignedClusters(context, Clustering("3"))
    assigned.__dict__["ranges"] = without_last_cluster(assigned.ranges)
    score_range(Partition(clustering=Clustering("3"), cluster_range=2), [assigned])
    problems = found(runs, duplicate_scores.every_item_scored_once)
    assert list(problems) == ["all buckets of k=3"]
    assert "items where 180 should be" in problems["all buckets of k=3"]


def test_scores_of_other_items_than_were_assigned_are_reported(runs: StageRuns) -> None:
    record = next(iter(runs.context().index.records("duplicate_scores").values()))
    change_details(record, id_checksum=record.details["id_checksum"] ^ 1)
    problems = found(runs, duplicate_scores.every_item_scored_once)
    assert problems == {"all buckets of k=3": "180 items, as there should be, but others"}


def test_scores_of_which_some_are_stale_are_not_checked(runs: StageRuns, sound: SoundStore) -> None:
    write_shard(sound.folder, "new", near_duplicates(9))
    runs.run(until="assignments")
    runs.make("duplicate_scores", "b0000|3")
    result = duplicate_scores.every_item_scored_once(runs.context())
    assert result.problems == []
    assert "not all buckets" in result.measured["k=3"]


def test_a_cluster_far_above_the_average_is_reported_with_an_item_of_it(tmp_path: Path) -> None:
    write_shard(tmp_path, "0", near_duplicates(1, groups=40))
    write_shard(tmp_path, "1", np.repeat(near_duplicates(0, groups=1, copies=1), 1500, axis=0))
    runs = StageRuns(vectors_settings(tmp_path)).changed(clustering={"k": [40]})
    runs.run(until="duplicate_scores")
    problems = found(runs, duplicate_scores.largest_cluster)
    assert list(problems) == ["40"]
    assert "times the average" in problems["40"]
    assert "1.npy:" in problems["40"]


# Masks


def test_a_mask_that_keeps_what_a_lower_epsilon_removes_is_reported(runs: StageRuns) -> None:
    for name in runs.record("keep_masks", "keep=50%|3").files:
        record = runs.record("keep_masks", "keep=50%|3")
        change_table(record, name, lambda table: table.with_columns(kept=pl.lit(value=True)))
    problems = found(runs, keep_masks.masks_are_monotone)
    assert list(problems) == ["keep=50%|3"]
    assert "items kept that are removed, against 0.05" in problems["keep=50%|3"]


def test_more_kept_than_at_a_lower_epsilon_is_reported_and_only_warned_of_by_the_greedy_rule(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, epsilons=["0.01", "0.05"])
    for rule, certain in (("chain", True), ("greedy", False)):
        chosen = runs.changed(selection={"rule": rule})
        chosen.run()
        change_details(chosen.record("keep_masks", "0.05|3"), kept=181)
        result = keep_masks.masks_are_monotone(chosen.context())
        assert [problem.partition for problem in result.problems] == ["0.05|3"]
        assert "181 items kept, not at most" in result.problems[0].measured
        assert result.certain is certain
        (check,) = (check for check in keep_masks.CHECKS if check.name == "masks_are_monotone")
        assert check.only_warns(chosen.context()) is not certain


def test_masks_from_different_scores_are_not_compared(runs: StageRuns) -> None:
    record = change_details(runs.record("keep_masks", "0.05|40"), kept=181)
    assert list(found(runs, keep_masks.masks_are_monotone)) == ["0.05|40"]
    change_record(record, inputs={"duplicate_scores": "others"})
    assert found(runs, keep_masks.masks_are_monotone) == {}
    assert keep_masks.every_item_masked_once(runs.context()).measured["stale_partitions"] == 1


def test_a_cluster_of_which_nothing_is_kept_is_reported(runs: StageRuns) -> None:
    lose_a_cluster(runs, "40")
    runs.make("keep_masks", "0.05|40")
    problems = found(runs, keep_masks.every_cluster_keeps_one)
    assert list(problems) == ["0.05|40"]
    assert problems["0.05|40"].startswith("1 clusters of ")


def test_items_that_masks_lose_are_reported(runs: StageRuns) -> None:
    record = next(iter(runs.context().index.records("duplicate_scores").values()))
    change_table(record, "scores.parquet", lambda table: table.head(-2))
    runs.make("keep_masks", "0.05|3")
    assert found(runs, keep_masks.every_item_masked_once) == {"0.05|3": "178 items where 180 should be"}


# Manifests


def test_a_manifest_of_other_items_than_the_masks_keep_is_reported(runs: StageRuns) -> None:
    record = runs.record("keep_masks", "0.05|3")
    change_table(record, "r0000.parquet", lambda table: table.with_columns(kept=pl.lit(value=True)))
    runs.make("manifests", "0.05|3")
    problems = found(runs, manifests.counts_are_conserved)
    assert list(problems) == ["0.05|3"]
    assert f"kept where {record.details['kept']} should be" in problems["0.05|3"]


def test_rows_that_a_format_lacks_are_reported(runs: StageRuns) -> None:
    record = runs.record("items", "s000001")
    change_table(record, "items.parquet", lambda table: table.head(30))
    runs.make("manifests", "0.01|3")
    problems = found(runs, manifests.counts_are_conserved)
    assert list(problems) == ["0.01|3"]
    assert "rows in parquet" in problems["0.01|3"]
    assert "rows in keep_lists" in problems["0.01|3"]


def test_a_manifest_that_does_not_add_up_is_reported(runs: StageRuns) -> None:
    record = runs.record("manifests", "0.05|40")
    change_details(record, skipped=1)
    assert found(runs, manifests.counts_are_conserved) == {
        "0.05|40": "kept, removed, held out and skipped are 181, records 180"
    }


def test_groups_that_do_not_hold_each_item_once_are_reported(runs: StageRuns) -> None:
    masks = runs.record("keep_masks", "0.05|3")
    removed = pl.read_parquet(masks.file("r0000.parquet").path).filter(~pl.col("kept"))["id"][0]
    # Its group becomes that of a removed item: nobody's.
    change_table(masks, "r0000.parquet", lambda table: table.with_columns(pl.col("kept_neighbour") * 0 + removed))
    runs.make("manifests", "0.05|3")
    problems = found(runs, manifests.counts_are_conserved)
    assert re.search(r"the kept items stand for \d+, 180 belong to one", problems["0.05|3"])


def test_removed_rows_that_are_missing_are_reported(runs: StageRuns) -> None:
    details = runs.record("manifests", "0.05|40").details
    change_details(runs.record("manifests", "0.05|40"), rows_written={**details["rows_written"], "removed": 2})
    problems = found(runs, manifests.counts_are_conserved)
    assert problems == {"0.05|40": f"2 rows in removed, {details['removed']} removed"}


def test_files_that_a_format_cannot_name_are_reported(runs: StageRuns) -> None:
    record = runs.record("manifests", "0.05|40")
    change_details(record, unnameable=3, unnameable_examples=["not \\udcff.npy"])
    assert found(runs, manifests.files_can_be_named) == {
        "0.05|40": "3 kept items of files whose names are not UTF-8 (not \\udcff.npy): Parquet holds escaped names"
    }


# Whether all is up to date


def freshness_of(runs: StageRuns, stage: str, *, refreshed: bool = True) -> CheckResult:
    return up_to_date(stage, refreshed=refreshed, remedy="refresh").evaluate(runs.context())


def stale(runs: StageRuns, stage: str, *, refreshed: bool = True) -> dict[str, str]:
    problems = freshness_of(runs, stage, refreshed=refreshed).problems
    return {problem.partition: problem.measured for problem in problems}


def test_what_another_run_publishes_meanwhile_is_no_problem(runs: StageRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    read_many, remade = manifests.read_many, list[str]()

    def overtaken(paths: list[str]) -> list[bytes | None]:
        if not remade:
            remade.append(runs.make("manifests", "0.05|3")[0].details["manifest"])
        return read_many(paths)

    monkeypatch.setattr(manifests, "read_many", overtaken)
    assert found(runs, manifests.counts_are_conserved) == {}
    assert remade == [runs.record("manifests", "0.05|3").details["manifest"]]


def test_what_was_made_from_other_results_or_from_what_is_stale_is_reported(runs: StageRuns, sound: SoundStore) -> None:
    write_shard(sound.folder, "1", near_duplicates(7))
    runs.run(until="embeddings")
    changed, below = "changed since: embeddings", "made from what is stale: assignments"
    assert stale(runs, "assignments") == {"3|s000001": changed, "40|s000001": changed}
    scores = {f"b000{bucket}|{k}": below for bucket in range(2) for k in KS}
    assert stale(runs, "duplicate_scores") == scores
    runs.make("assignments", "3|s000001")
    assert stale(runs, "assignments") == {"40|s000001": changed}
    now = {each: "changed since: assignments" if each.endswith("|3") else below for each in scores}
    assert stale(runs, "duplicate_scores") == now
    record_path(runs.record("assignments", "40|s000001")).unlink()
    assert stale(runs, "assignments") == {"40|s000001": "missing"}
    now = {each: "what it is made from is missing" if each.endswith("|40") else why for each, why in now.items()}
    assert stale(runs, "duplicate_scores") == now
    assert not freshness_of(runs, "duplicate_scores").certain


def test_other_settings_are_named_and_what_nobody_asked_for_is_not_missing(runs: StageRuns) -> None:
    changed = runs.changed(manifests=["parquet"])
    found = stale(changed, "manifests")
    assert len(found) == len(KS) * len(EPSILONS)
    assert all(why.startswith("settings changed: formats was [") for why in found.values()), found
    assert stale(changed, "keep_masks") == {}
    never = runs.changed(selection={"keep": "easy"})
    assert set(stale(never, "keep_masks").values()) == {"missing"}
    assert stale(never, "keep_masks", refreshed=False) == {}
    assert freshness_of(never, "keep_masks", refreshed=False).measured == {"partitions": 0}


def test_records_of_earlier_versions_do_not_say_which_setting_changed(runs: StageRuns) -> None:
    record = runs.record("items", "s000001")
    settings = record.details[SETTINGS]
    for then, now in (
        (None, "made with other settings"),
        ({**settings, "version": 0}, "settings changed: version was 0"),
    ):
        change_details(record, settings=then)
        change_record(runs.record("items", "s000001"), code_version="another")
        assert stale(runs, "items")["s000001"].startswith(now)
