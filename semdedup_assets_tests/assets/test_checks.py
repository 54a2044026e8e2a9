"""Checks in Dagster's runs: declared on their assets, evaluated by every run, blocking where going on is wrong."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from semdedup_assets.assets.checks import check_specs, checks_of, current_checks, refuse_failed
from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.stages.assignments import FittedClusters, assign_shard
from semdedup_assets.stages.centroids import fit_centroids
from semdedup_assets.stages.duplicate_scores import AssignedShards, score_bucket
from semdedup_assets.stages.embeddings import embed_shards
from semdedup_assets.stages.keep_masks import select_items
from semdedup_assets.stages.manifests import write_manifest
from semdedup_assets.stages.shards import update_catalogue
from semdedup_assets.stages.training_sample import draw_sample
from semdedup_assets.stages.work import Work
from semdedup_assets_tests.pipeline_runs import PipelineRuns, near_duplicates, vectors_settings, write_shard
from semdedup_assets_tests.tampering import change_recipe, lose_a_cluster

BLOCKING = {
    "embeddings": {"vectors_are_finite_unit", "one_dimension", "ids_are_unique", "skipped_share"},
    "centroids": set[str](),
    "assignments": {"every_item_in_one_cluster"},
    "duplicate_scores": {"every_item_scored_once"},
    "keep_masks": {"masks_are_monotone", "every_cluster_keeps_one", "every_item_masked_once"},
    "manifests": {"counts_are_conserved"},
}
WARNING = {
    "embeddings": {"no_shard_left_out"},
    "centroids": {"no_empty_clusters", "sample_is_large_enough"},
    "assignments": {"similarity_has_not_drifted"},
    "duplicate_scores": {"largest_cluster"},
    "keep_masks": set[str](),
    "manifests": set[str](),
}
MADE_OF_MANY = ["assignments", "duplicate_scores", "figures", "galleries", "keep_masks", "manifests"]


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[PipelineRuns]:
    """Two shards, everything made."""
    for seed in range(2):
        write_shard(tmp_path, f"{seed}", near_duplicates(seed))
    with dg.DagsterInstance.ephemeral() as instance:
        made = PipelineRuns(instance, {**vectors_settings(tmp_path), "epsilons": ["0.01", "0.05"]})
        made.refresh()
        yield made


def evaluations(runs: PipelineRuns, asset: str) -> dict[str, dg.AssetCheckEvaluation]:
    """The last evaluation of each check of an asset, by its name."""
    found = {}
    for name in BLOCKING[asset] | WARNING[asset]:
        key = dg.AssetCheckKey(runs.key(asset), name)
        records = runs.instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
        event = records[0].event if records else None
        if event and event.asset_check_evaluation:
            found[name] = event.asset_check_evaluation
    return found


def test_these_checks_are_declared_and_these_block(runs: PipelineRuns) -> None:
    declaration = Declaration(runs.pipeline)
    for asset in BLOCKING:
        specs = check_specs(declaration, asset)
        assert {spec.name for spec in specs if spec.blocking} == BLOCKING[asset]
        assert {spec.name for spec in specs if not spec.blocking} == WARNING[asset]
        assert all(spec.description and spec.asset_key == runs.key(asset) for spec in specs)


def test_every_run_evaluates_its_assets_checks_and_on_a_sound_pipeline_all_pass(runs: PipelineRuns) -> None:
    for asset in BLOCKING:
        found = evaluations(runs, asset)
        assert set(found) == BLOCKING[asset] | WARNING[asset]
        assert all(evaluation.passed for evaluation in found.values())
        assert all(evaluation.metadata["failing_partitions"].value == 0 for evaluation in found.values())
        refuse_failed(runs.work, asset)


def test_a_failing_check_stops_what_follows_in_the_same_run(runs: PipelineRuns) -> None:
    lose_a_cluster(runs.work, "3")
    before = runs.instance.event_log_storage.get_maximum_record_id() or 0
    keys = {runs.key("keep_masks"), runs.key("manifests")}
    job = runs.definitions.resolve_implicit_global_asset_job_def().get_subset(asset_selection=keys)
    both = {"dagster/asset_partition_range_start": "0.01|3", "dagster/asset_partition_range_end": "0.05|3"}
    result = job.execute_in_process(instance=runs.instance, tags=both, raise_on_error=False)
    assert not result.success
    assert runs.materialised_since(before) == {"keep_masks": ["0.01|3", "0.05|3"]}
    failed = evaluations(runs, "keep_masks")["every_cluster_keeps_one"]
    assert not failed.passed
    assert failed.severity == dg.AssetCheckSeverity.ERROR
    assert failed.metadata["failing_partitions"].value == 2
    table = failed.metadata["failing"]
    assert isinstance(table, dg.TableMetadataValue)
    assert [row.data["partition"] for row in table.records] == ["0.01|3", "0.05|3"]
    assert "1 clusters of 3" in str(table.records[0].data["measured"])
    assert "materialise toy/precomputed/duplicate_scores" in str(table.records[0].data["cure"])
    message = r"every_cluster_keeps_one: 2 of toy's keep masks keep nothing of a cluster: 0.01\|3 \(1 clusters of 3\)"
    with pytest.raises(dg.Failure, match=message):
        refuse_failed(runs.work, "keep_masks")


def test_each_failing_partition_is_told_in_the_log(runs: PipelineRuns) -> None:
    change_recipe(runs.work.layout.embeddings("s000001"), lambda recipe: recipe["details"].update(not_finite=4))
    lines: list[str] = []
    checks_of(Work(runs.pipeline, log=lines.append), "embeddings")
    (line,) = lines
    for words in ("vectors_are_finite_unit: s000001: 4 vectors not finite", "materialise toy/precomputed/embeddings"):
        assert words in line


def test_at_most_fifty_partitions_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    for seed in range(60):
        write_shard(tmp_path, f"{seed:02d}", near_duplicates(seed, groups=2))
    with dg.DagsterInstance.ephemeral() as instance:
        runs = PipelineRuns(instance, vectors_settings(tmp_path))
        embed_all(runs.work)
    for shard in runs.work.shards():
        change_recipe(runs.work.layout.embeddings(shard.name), lambda recipe: recipe["details"].update(repeated_ids=1))
    result = next(found for found in checks_of(runs.work, "embeddings") if found.check_name == "ids_are_unique")
    assert result.metadata["failing_partitions"].value == 60
    table = result.metadata["failing"]
    assert isinstance(table, dg.TableMetadataValue)
    assert len(table.records) == 50


def embed_all(work: Work) -> None:
    shards = update_catalogue(work).shards
    assert len(list(embed_shards(work, shards, model=work.pipeline.encoder.load(work.compute)))) == len(shards)


def test_by_the_greedy_rule_masks_that_are_not_monotone_are_warned_of_and_hold_nothing_back(
    runs: PipelineRuns,
) -> None:
    greedy = runs.changed(selection={"rule": "greedy"})
    specs = {spec.name: spec for spec in check_specs(Declaration(greedy.pipeline), "keep_masks")}
    assert not specs["masks_are_monotone"].blocking
    greedy.refresh()
    change_recipe(greedy.work.layout.masks("3", "0.05"), lambda recipe: recipe["details"].update(kept=121))
    (failed,) = (result for result in checks_of(greedy.work, "keep_masks") if not result.passed)
    assert failed.check_name == "masks_are_monotone"
    assert failed.severity == dg.AssetCheckSeverity.WARN
    refuse_failed(greedy.work, "keep_masks")


def evaluate_current(runs: PipelineRuns, *assets: str) -> dict[str, dg.AssetCheckEvaluation]:
    """Run the check by itself, as its button does; by asset."""
    checks = current_checks(Declaration(runs.pipeline))
    keys = [dg.AssetCheckKey(runs.key(asset), "made_from_current") for asset in assets]
    job = dg.define_asset_job("by_button", selection=dg.AssetSelection.checks(*keys))
    definitions = dg.Definitions(asset_checks=[checks], jobs=[job])
    result = definitions.resolve_job_def("by_button").execute_in_process(instance=runs.instance)
    assert result.success
    return {evaluation.asset_key.path[-1]: evaluation for evaluation in result.get_asset_check_evaluations()}


def failing(evaluation: dg.AssetCheckEvaluation) -> list[str]:
    table = evaluation.metadata["failing"]
    assert isinstance(table, dg.TableMetadataValue)
    return [str(row.data["partition"]) for row in table.records]


def test_beyond_a_hundred_shards_what_was_made_from_other_results_is_told(tmp_path: Path) -> None:
    for seed in range(150):
        write_shard(tmp_path, f"{seed:03d}", near_duplicates(seed, groups=2))
    with dg.DagsterInstance.ephemeral() as instance:
        runs = PipelineRuns(instance, vectors_settings(tmp_path))
        embed_all(runs.work)
        draw_sample(runs.work)
        fit_centroids(runs.work, "3")
        for shard in runs.work.shards():
            assign_shard(runs.work, shard.name, clusters=FittedClusters(runs.work, "3"))
        make_below_centroids(runs.work)
        sound = evaluate_current(runs, *MADE_OF_MANY)
        assert sorted(sound) == MADE_OF_MANY
        assert all(evaluation.passed for evaluation in sound.values())
        assert sound["assignments"].metadata["made"].value == 150
        write_shard(tmp_path, "050", near_duplicates(999, groups=2))
        shard = update_catalogue(runs.work).shards[50]
        list(embed_shards(runs.work, [shard], model=runs.pipeline.encoder.load(runs.work.compute)))
        found = evaluate_current(runs, "assignments", "duplicate_scores")
        assert sorted(found) == ["assignments", "duplicate_scores"]
        assert failing(found["assignments"]) == ["3|s000050"]
        assert found["assignments"].severity == dg.AssetCheckSeverity.WARN
        assert found["duplicate_scores"].passed
        assign_shard(runs.work, "s000050", clusters=FittedClusters(runs.work, "3"))
        found = evaluate_current(runs, *MADE_OF_MANY)
        assert found["assignments"].passed
        assert failing(found["duplicate_scores"]) == ["b0000|3", "b0001|3"]
        assert failing(found["manifests"]) == ["0.05|3"]  # made from other embeddings
        assert found["figures"].metadata["made"].value == 0  # never made, and so not outdated
        make_below_centroids(runs.work)
        assert all(evaluation.passed for evaluation in evaluate_current(runs, *MADE_OF_MANY).values())


def make_below_centroids(work: Work) -> None:
    """Make scores, masks and manifests of k = 3."""
    for bucket in range(len(work.buckets)):
        score_bucket(work, bucket, assigned=AssignedShards(work, "3"))
    select_items(work, "0.05", assigned=AssignedShards(work, "3"))
    write_manifest(work, "0.05", assigned=AssignedShards(work, "3"))


def test_two_pipelines_have_checks_of_their_own(runs: PipelineRuns) -> None:
    other = runs.changed(model="an-other.one")
    names = {current_checks(Declaration(found.pipeline)).node_def.name for found in (runs, other)}
    assert names == {"toy__precomputed__made_from_current", "toy__an_other_one__made_from_current"}
