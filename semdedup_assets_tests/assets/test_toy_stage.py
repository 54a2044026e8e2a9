"""A new asset is one record: the stage defined here, and one line in the graph, are all there is to it."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import dagster as dg
import pytest

from semdedup_assets.assets.checks import freshness
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Check, CheckResult, Problem, Stage, StageGraph, Worker
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets.stages.duplicate_scores import scores_files
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.tables import read_table
from semdedup_assets_tests.pipeline_runs import UNDRAWN, PipelineRuns
from semdedup_assets_tests.toy_source import near_duplicates, write_shard

# The whole of the new stage


def _count(context: StageContext, partition: Partition) -> ResultRecord:
    inputs, sizes = context.index.input_versions("cluster_sizes", partition), Counter[int]()
    for file in scores_files(context, partition.required_clustering):
        sizes.update(read_table(file, ["cluster"])["cluster"].tolist())
    with context.writing("cluster_sizes", partition, inputs=inputs) as result:
        with result.open("sizes.json") as stream:
            stream.write(json.dumps(sizes.most_common(context.pipeline.galleries.groups)).encode())
        result.details = {"items": sizes.total(), "clusters": len(sizes)}
    return result.committed


def _worker(context: StageContext) -> Worker:
    return lambda partition: _count(context, partition)


def not_too_many_items(context: StageContext) -> CheckResult:
    """No clustering holds more items than a toy should."""
    counts = {each: record.details["items"] for each, record in context.index.records("cluster_sizes").items()}
    problems = [Problem(str(each), f"{count} items", "remove some") for each, count in counts.items() if count > 200]
    return CheckResult("clusterings are no toys", problems)


TOY = Stage(
    name="cluster_sizes",
    step="3-compare",
    description="Items by cluster, the largest first.",
    dimensions=("k",),
    inputs=("duplicate_scores",),
    settings=lambda context: {"groups": context.pipeline.galleries.groups},
    location=lambda layout, partition, selection: layout.of_selection(
        partition.required_clustering, selection, "cluster_sizes"
    ),
    worker=_worker,
    selected=True,
    checks=(Check(not_too_many_items, "No clustering has too many items."),),
)

# What follows from it

WITH_TOY = StageGraph((*UNDRAWN.stages, TOY))


@pytest.fixture
def toy(runs: PipelineRuns) -> PipelineRuns:
    """Everything is made but what the new stage makes."""
    return replace(runs, graph=WITH_TOY)


def sizes(runs: PipelineRuns, k: str) -> Any:
    partition = Partition.parse(k, ("k",))
    return json.loads(runs.context.index.require("cluster_sizes", partition).file("sizes.json").content())


def test_it_is_an_asset_with_its_key_dependencies_and_place_in_the_graph(toy: PipelineRuns) -> None:
    toy = replace(toy, graph=StageGraph((*GRAPH.stages, TOY)))
    node = toy.definitions.resolve_asset_graph().get(dg.AssetKey(["toy", "precomputed", "cluster_sizes"]))
    assert node.parent_keys == {dg.AssetKey(["toy", "precomputed", "duplicate_scores"])}
    assert node.group_name == "toy__precomputed"
    assert node.tags["semdedup/step"] == "3-compare"
    assert node.description == TOY.description
    assert node.partitions_def is not None
    assert node.partitions_def.get_partition_keys() == ["3"]
    assert "cluster_sizes" in map(str, toy.builder.automatic)
    dg.Definitions.validate_loadable(toy.definitions)


def test_a_refresh_makes_it_after_what_it_is_made_from_and_nothing_else(toy: PipelineRuns) -> None:
    assert toy.refresh() == {"cluster_sizes": ["3"]}
    counts = dict(sizes(toy, "3"))
    assert sum(counts.values()) == toy.last_materialisation("cluster_sizes").metadata["items"].value == 180
    assert toy.refresh() == {}
    assert toy.stale() == {}


def test_in_a_new_pipeline_it_is_made_in_its_turn(unmade: PipelineRuns) -> None:
    made = replace(unmade, graph=WITH_TOY).refresh()
    assert made["cluster_sizes"] == ["3"]
    assert list(made).index("cluster_sizes") > list(made).index("duplicate_scores")


def test_a_new_k_is_a_new_partition_and_a_change_of_its_own_setting_makes_only_it_and_those_that_use_it(
    toy: PipelineRuns,
) -> None:
    toy.refresh()
    more = toy.changed(clustering={"k": [3, 5]})
    assert more.stale()["cluster_sizes"] == ["5"]
    assert more.refresh()["cluster_sizes"] == ["5"]
    assert len(sizes(more, "5")) == 5
    fewer = toy.changed(galleries={"groups": 2})
    assert fewer.stale()["cluster_sizes"] == ["3"]
    # The galleries show as many groups.
    assert fewer.refresh() == {"galleries": ["0.05|3"], "cluster_sizes": ["3"]}
    assert len(sizes(fewer, "3")) == 2
    assert fewer.stale() == {}


def test_another_version_of_its_code_makes_it_again(toy: PipelineRuns) -> None:
    toy.refresh()
    newer = replace(toy, graph=StageGraph((*UNDRAWN.stages, replace(TOY, version=2))))
    assert newer.stale() == {"cluster_sizes": ["3"]}
    assert newer.refresh() == {"cluster_sizes": ["3"]}


def test_its_checks_are_shown_and_evaluated_and_say_when_it_is_stale(toy: PipelineRuns) -> None:
    key = toy.key("cluster_sizes")
    declared = {
        check.name for check in toy.definitions.resolve_asset_graph().asset_check_keys if check.asset_key == key
    }
    assert declared == {"not_too_many_items", "up_to_date"}
    toy.refresh()
    for name in declared:
        check = dg.AssetCheckKey(key, name)
        (last,) = toy.instance.event_log_storage.get_asset_check_execution_history(check, limit=1)
        assert last.event is not None
        evaluation = last.event.asset_check_evaluation
        assert evaluation is not None
        assert evaluation.passed
    other = toy.changed(galleries={"groups": 2})
    found = freshness(other.builder, other.asset("cluster_sizes"), other.context)
    assert "1 of toy's 1 cluster_sizes are stale" in str(found.description).replace("\\", "")


def test_its_blocking_check_ends_a_refresh(toy: PipelineRuns) -> None:
    write_shard(toy.folder, "3", near_duplicates(3))
    with pytest.raises(dg.Failure, match=r"not_too_many_items: 1 of toy's clusterings are no toys: 3 \(240 items\)"):
        toy.refresh()


def test_the_button_makes_it_and_a_new_instance_adopts_it(toy: PipelineRuns) -> None:
    before = toy.last_record
    toy.materialise("cluster_sizes", "3")
    assert toy.events_since(before) == {"cluster_sizes": {"3": 1}}
    assert toy.stale() == {}
    with dg.DagsterInstance.ephemeral() as instance:
        new = replace(toy, instance=instance)
        before = new.last_record
        assert new.refresh() == {}
        assert new.materialised_since(before)["cluster_sizes"] == ["3"]
        assert new.stale() == {}
