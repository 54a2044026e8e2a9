"""A run for each group of partitions, by a setting: which runs a backfill launches, and what they make."""

from dataclasses import replace
from itertools import product

import dagster as dg
import pytest
from dagster._core.definitions.automation_tick_evaluation_context import build_run_requests_with_backfill_policies
from dagster._core.definitions.events import AssetKeyPartitionKey
from dagster._core.definitions.partitions.context import partition_loading_context

from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets_tests.pipeline_runs import PipelineRuns

# What the job that refits, and checks, name.
BEGINNING = StageGraph(tuple(GRAPH[name] for name in ("items", "embeddings", "training_sample", "centroids")))
SHARDS = ["s000000", "s000001", "s000002"]


def launched(runs: PipelineRuns, asset: str, partitions: list[str]) -> list[tuple[str, str]]:
    """First and last partition of each run that a backfill, or the automation's, launches: what both call."""
    key = runs.key(asset)
    with partition_loading_context(dynamic_partitions_store=runs.instance):
        requests = build_run_requests_with_backfill_policies(
            [AssetKeyPartitionKey(key, partition) for partition in partitions],
            runs.definitions.resolve_asset_graph(),
            runs.instance,
        )
    ends = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
    first, last = ([request.tags[end] for request in requests] for end in ends)
    return list(zip(first, last, strict=True))


@pytest.mark.parametrize("partitions_per_run", [1, 2, 3, 5])
def test_runs_of_so_many_partitions_make_each_once(unmade: PipelineRuns, partitions_per_run: int) -> None:
    runs = unmade.changed(refresh={"partitions_per_run": partitions_per_run}, clustering={"k": [3, 5]})
    runs.observe()
    made = list[str]()
    dimensions = runs.builder.partitions_def(runs.graph["assignments"])
    assert dimensions is not None
    with partition_loading_context(dynamic_partitions_store=runs.instance):
        wanted = list(dimensions.get_partition_keys())
        for first, last in launched(runs, "assignments", wanted):
            within = dimensions.get_partition_keys_in_range(dg.PartitionKeyRange(first, last))
            assert 1 <= len(within) <= partitions_per_run
            made += within
    assert sorted(made) == sorted(wanted) == [f"{k}|{shard}" for k, shard in product("35", SHARDS)]


def test_without_the_setting_one_run_makes_them_all(unmade: PipelineRuns) -> None:
    unmade.observe()
    assert launched(unmade, "embeddings", SHARDS) == [("s000000", "s000002")]
    assert launched(unmade, "embeddings", SHARDS[::2]) == [("s000000", "s000000"), ("s000002", "s000002")]


def test_what_such_runs_make_is_up_to_date_for_the_refresh_and_for_dagster(unmade: PipelineRuns) -> None:
    without = replace(unmade, graph=BEGINNING)
    runs = without.changed(refresh={"partitions_per_run": 2})
    runs.observe()
    for asset in ("items", "embeddings"):
        for first, last in launched(runs, asset, SHARDS):
            runs.materialise(asset, first, last)
    assert runs.stale() == {"training_sample": [None], "centroids": ["3"]}
    # The setting is in no code version: what was made with it is up to date without it.
    assert without.refresh() == {"training_sample": [None], "centroids": ["3"]}
    assert without.stale() == {}
