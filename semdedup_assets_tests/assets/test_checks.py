"""Checks in Dagster's runs: declared on their assets, evaluated by every run, blocking where going on is wrong."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from semdedup_assets.assets.checks import (
    check_event,
    check_result,
    evaluated_checks,
    failing_runs,
    freshness,
    lone_checks,
)
from semdedup_assets.execution import progress
from semdedup_assets.execution.evaluated_checks import evaluate, raise_failures
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import ANALYSE, EVALUATE
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets.stages.duplicate_scores import SCORES
from semdedup_assets.storage.results import RECORD
from semdedup_assets_tests.pipeline_runs import PipelineRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard

# Of each asset: what holds back what follows, and what only warns.
BLOCKING = {
    "estimate": set[str](),
    "items": {"columns_are_there"},
    "embeddings": {
        "vectors_are_finite_unit",
        "one_dimension",
        "ids_are_unique",
        "skipped_share",
        "items_and_vectors_agree",
    },
    "training_sample": set[str](),
    "centroids": set[str](),
    "assignments": {"every_item_in_one_cluster"},
    "duplicate_scores": {"every_item_scored_once"},
    "keep_masks": {"masks_are_monotone", "every_cluster_keeps_one", "every_item_masked_once"},
    "manifests": {"counts_are_conserved"},
    "figures": set[str](),
    "galleries": set[str](),
}
WARNING = {
    "items": {"values_are_valid", "partitions_are_few"},
    "embeddings": {"files_are_whole", "skipped_share_of_shards", "vectors_tell_items_apart", "no_shard_excluded"},
    "centroids": {"no_empty_clusters", "sample_is_large_enough"},
    "assignments": {"similarity_has_not_drifted"},
    "duplicate_scores": {"largest_cluster"},
    "keep_masks": {"references_are_removed"},
    "manifests": {"files_can_be_named"},
}
AUTOMATIC = set(BLOCKING) - {"estimate"}


def checks_of(asset: str) -> set[str]:
    return BLOCKING[asset] | WARNING.get(asset, set()) | {"up_to_date"}


def change_details(runs: PipelineRuns, stage: str, key: str, **details: Any) -> None:
    """Write a partition's record anew with other counts than its stage made."""
    partition = Partition.parse(key, runs.graph[stage].dimensions)
    record = runs.context.index.require(stage, partition)
    changed = replace(record, details={**record.details, **details})
    Path(f"{record.location}{RECORD}").write_bytes(changed.to_json())


def lose_a_cluster(runs: PipelineRuns) -> None:
    """Score a whole cluster as duplicates of an item of another one, so that masks keep nothing of it."""
    context = runs.context
    partition, record, table = next(
        (partition, record, table)
        for partition, record in context.index.records("duplicate_scores").items()
        if (table := pl.read_parquet(record.file(SCORES).path))["cluster"].n_unique() > 1
    )
    wrong = pl.col("cluster") == table["cluster"][-1]
    similarity = pl.when(wrong).then(pl.lit(1.0, pl.Float32)).otherwise("similarity")
    neighbour = pl.when(wrong).then(table["id"][0]).otherwise("duplicate_of")
    with context.writing("duplicate_scores", partition) as result:
        with result.open(SCORES) as stream:
            table.with_columns(similarity=similarity, duplicate_of=neighbour).write_parquet(stream)
        result.details = dict(record.details)


def evaluations(runs: PipelineRuns, asset: str) -> dict[str, dg.AssetCheckEvaluation]:
    """The last evaluation of each check of an asset, by its name."""
    found = {}
    for name in checks_of(asset):
        key = dg.AssetCheckKey(runs.key(asset), name)
        records = runs.instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
        event = records[0].event if records else None
        if event and event.asset_check_evaluation:
            found[name] = event.asset_check_evaluation
    return found


def failing(result: dg.AssetCheckResult | dg.AssetCheckEvaluation) -> list[dict[str, Any]]:
    """The rows of failing partitions that Dagster shows."""
    table = result.metadata["failing"]
    assert isinstance(table, dg.TableMetadataValue)
    return [dict(row.data) for row in table.records]


def result_of(runs: PipelineRuns, asset: str, check: str) -> dg.AssetCheckResult:
    found = next(
        each for each in evaluated_checks(runs.builder, runs.asset(asset), runs.context) if each.check.name == check
    )
    return check_result(runs.builder, runs.asset(asset), found)


def report(runs: PipelineRuns, asset: str) -> list[Any]:
    """Report an asset's checks as a refresh does; the events."""
    found, context = runs.asset(asset), runs.context
    evaluated = [evaluate(check, context) for check in found.stage.checks]
    events = [check_event(runs.builder, found, context, each) for each in evaluated]
    with failing_runs():
        raise_failures(evaluated)
    return events


def test_these_checks_are_declared_and_these_block(unmade: PipelineRuns) -> None:
    unmade = unmade.with_figures
    graph = unmade.definitions.resolve_asset_graph()
    for asset in BLOCKING:
        key = unmade.key(asset)
        specs = [graph.get_check_spec(check) for check in graph.asset_check_keys if check.asset_key == key]
        assert {spec.name for spec in specs} == checks_of(asset), asset
        assert {spec.name for spec in specs if spec.blocking} == BLOCKING[asset], asset
        assert all(spec.description for spec in specs)
    assert {check.name for check in graph.asset_check_keys if check.asset_key.path == ["toy", "shard_index"]} == {
        "shards_follow_settings",
        "source_has_files",
    }
    assert set(BLOCKING) == {str(asset) for asset in unmade.builder.assets}


def test_no_analysis_holds_anything_back() -> None:
    analyses = [stage for stage in GRAPH.stages if stage.step in (ANALYSE, EVALUATE)]
    assert len(analyses) > 15
    for stage in analyses:
        assert not [check.name for check in stage.checks if check.blocking and not stage.name.endswith("manifests")]


def test_a_refresh_evaluates_all_checks_and_on_a_sound_pipeline_all_pass(runs: PipelineRuns) -> None:
    runs = runs.with_figures
    runs.refresh()
    for asset in AUTOMATIC:
        found = evaluations(runs, asset)
        assert set(found) == checks_of(asset), asset
        assert all(evaluation.passed for evaluation in found.values()), asset
        assert all(evaluation.metadata["failing_partitions"].value == 0 for evaluation in found.values())


def test_a_run_evaluates_its_assets_checks(runs: PipelineRuns) -> None:
    result = runs.materialise("embeddings", "s000000")
    found = {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}
    assert set(found) >= checks_of("embeddings")
    assert all(evaluation.passed for evaluation in found.values())


def test_a_failing_check_stops_what_follows_in_the_same_run_and_in_a_refresh(runs: PipelineRuns) -> None:
    # So many that two clusters share a file of scores.
    many = runs.changed(clustering={"k": [40]})
    many.refresh()
    lose_a_cluster(many)
    before = many.last_record
    keys = {many.key("keep_masks"), many.key("manifests")}
    job = many.definitions.resolve_implicit_global_asset_job_def().get_subset(asset_selection=keys)
    one = {"dagster/asset_partition_range_start": "0.05|40", "dagster/asset_partition_range_end": "0.05|40"}
    result = job.execute_in_process(instance=many.instance, tags=one, raise_on_error=False)
    assert not result.success
    # The end of the run's log names the check, the partition and the remedy.
    (failure,) = (event.step_failure_data.user_failure_data for event in result.get_step_failure_events())
    assert "every_cluster_keeps_one: 1 of toy's keep masks keep nothing of a cluster: 0.05|40" in str(
        failure.description
    )
    assert "materialise toy/precomputed/duplicate_scores" in str(failure.description)
    assert many.materialised_since(before) == {"keep_masks": ["0.05|40"]}
    failed = evaluations(runs, "keep_masks")["every_cluster_keeps_one"]
    assert not failed.passed
    assert failed.severity == dg.AssetCheckSeverity.ERROR
    (row,) = failing(failed)
    assert row["partition"] == "0.05|40"
    assert "1 clusters of 40" in row["measured"]
    assert "materialise toy/precomputed/duplicate_scores" in row["remedy"]
    message = r"every_cluster_keeps_one: 1 of toy's keep masks keep nothing of a cluster: 0.05\|40 \(1 clusters of 40\)"
    with pytest.raises(dg.Failure, match=message):
        many.refresh()
    assert "manifests" not in many.materialised_since(before)


def test_each_failing_partition_is_reported_to_the_log(runs: PipelineRuns) -> None:
    change_details(runs, "embeddings", "s000001", not_finite=4)
    lines: list[str] = []
    with progress.reporting_to(lines.append):
        evaluated_checks(runs.builder, runs.asset("embeddings"), runs.context)
    (line,) = lines
    for words in ("vectors_are_finite_unit: s000001: 4 vectors not finite", "materialise toy/precomputed/embeddings"):
        assert words in line


def test_at_most_fifty_partitions_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    for seed in range(60):
        write_shard(tmp_path, f"{seed:02d}", near_duplicates(seed, groups=2))
    with dg.DagsterInstance.ephemeral() as instance:
        runs = PipelineRuns(instance, vectors_settings(tmp_path))
        runs.observe()
        runs.make("embeddings")
    for shard in runs.context.shards:
        change_details(runs, "embeddings", shard.name, repeated_ids=1)
    result = result_of(runs, "embeddings", "ids_are_unique")
    assert result.metadata["failing_partitions"].value == 60
    assert len(failing(result)) == 50


def test_by_the_greedy_rule_masks_that_are_not_monotone_are_warned_of_and_hold_nothing_back(
    runs: PipelineRuns,
) -> None:
    paper = runs.changed(epsilons=["0.01", "0.05"])
    greedy = paper.changed(selection={"rule": "greedy"})
    for each in (paper, greedy):
        each.refresh()
        change_details(each, "keep_masks", "0.05|3", kept=181)
    graph = greedy.definitions.resolve_asset_graph()
    assert not graph.get_check_spec(dg.AssetCheckKey(greedy.key("keep_masks"), "masks_are_monotone")).blocking
    failed = result_of(greedy, "keep_masks", "masks_are_monotone")
    assert not failed.passed
    assert failed.severity == dg.AssetCheckSeverity.WARN
    (event,) = (event for event in report(greedy, "keep_masks") if event.check_name == "masks_are_monotone")
    assert (event.passed, event.blocking) == (False, False)
    with pytest.raises(dg.Failure, match="masks_are_monotone: 1 of toy's keep masks"):
        report(paper, "keep_masks")


def reasons(runs: PipelineRuns, asset: str) -> dict[Any, Any]:
    """The partitions that are not up to date, each with the reason."""
    found = freshness(runs.builder, runs.asset(asset), runs.context)
    assert found.passed or found.severity == dg.AssetCheckSeverity.WARN
    return {} if found.passed else {row["partition"]: row["measured"] for row in failing(found)}


@pytest.mark.slow
def test_beyond_a_hundred_shards_what_was_made_from_other_results_is_reported(tmp_path: Path) -> None:
    for seed in range(102):
        write_shard(tmp_path, f"{seed:03d}", near_duplicates(seed, groups=2))
    with dg.DagsterInstance.ephemeral() as instance:
        runs = PipelineRuns(instance, vectors_settings(tmp_path))
        runs.observe()
        before = ("items", "embeddings", "training_sample", "centroids", "assignments")
        below = ("duplicate_scores", "keep_masks", "manifests")
        runs.make(*before, *below)
        assert all(reasons(runs, asset) == {} for asset in (*before, *below))
        write_shard(tmp_path, "050", near_duplicates(999, groups=3))
        runs.observe()
        runs.make("items", "embeddings")
        assert reasons(runs, "assignments") == {"3|s000050": "changed since: embeddings"}
        scores = dict.fromkeys(["b0000|3", "b0001|3"], "made from what is stale: assignments")
        assert reasons(runs, "duplicate_scores") == scores
        runs.make("assignments")
        assert reasons(runs, "assignments") == {}
        assert reasons(runs, "duplicate_scores") == dict.fromkeys(scores, "changed since: assignments")
        assert reasons(runs, "manifests") == {"0.05|3": "changed since: items"}
        runs.make(*below)
        assert all(reasons(runs, asset) == {} for asset in (*before, *below))


def test_the_source_check_reports_that_there_are_no_files(unmade: PipelineRuns) -> None:
    def evaluate() -> dg.AssetCheckEvaluation:
        key = dg.AssetCheckKey(unmade.builder.source_key("shard_index"), "source_has_files")
        job = unmade.definitions.resolve_implicit_global_asset_job_def().get_subset(asset_check_selection={key})
        (evaluation,) = job.execute_in_process(instance=unmade.instance).get_asset_check_evaluations()
        return evaluation

    found = evaluate()
    assert found.passed
    assert found.metadata["files"].value == 3
    for path in (unmade.folder / "source").iterdir():
        path.unlink()
    assert not evaluate().passed


def test_two_pipelines_have_checks_of_their_own(unmade: PipelineRuns) -> None:
    assert lone_checks(unmade.builder) == []
    with_reference = unmade.changed(references={"test": {"source": unmade.settings["source"], "epsilon": 0.05}})
    other = with_reference.changed(model="an-other.one")
    names = {found.node_def.name for runs in (with_reference, other) for found in lone_checks(runs.builder)}
    assert names == {"toy__precomputed__lone_checks", "toy__an_other_one__lone_checks"}
