"""A changed number of files in a shard: what it does to known shards, and how to start over with it."""

import re
import shutil
from pathlib import Path

import dagster as dg

from semdedup_assets.assets.source import observe_source
from semdedup_assets.defs_yaml.source_check import checked_source
from semdedup_assets.sources.shard_index import ShardIndex
from semdedup_assets_tests.pipeline_runs import UNDRAWN, PipelineRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard


def shards_of(runs: PipelineRuns) -> dict[str, list[str]]:
    return {shard.name: [Path(file.path).stem for file in shard.files] for shard in runs.context.shard_index.shards}


def check_of(runs: PipelineRuns) -> dg.AssetCheckEvaluation:
    """What the check of the shards says."""
    key = dg.AssetCheckKey(runs.builder.source_key("shard_index"), "shards_follow_settings")
    job = runs.definitions.resolve_implicit_global_asset_job_def().get_subset(asset_check_selection={key})
    (evaluation,) = job.execute_in_process(instance=runs.instance).get_asset_check_evaluations()
    return evaluation


def test_a_changed_setting_says_that_known_shards_stay_and_how_to_start_over(tmp_path: Path) -> None:
    for number in range(4):
        write_shard(tmp_path, f"{number}", near_duplicates(number))
    with dg.DagsterInstance.ephemeral() as instance:
        runs = PipelineRuns(instance, vectors_settings(tmp_path), UNDRAWN)
        runs.refresh()
        assert len(shards_of(runs)) == 4
        assert check_of(runs).passed

        joined = runs.changed(shards={"files_per_shard": 2})
        assert joined.refresh() == {}
        assert len(shards_of(joined)) == 4
        said = check_of(joined)
        assert not said.passed
        folder = f"{tmp_path}/store/toy"
        assert f"remove {folder} with everything" in re.sub(r"\\(.)", r"\1", str(said.description))
        (problem,) = checked_source(joined.pipeline)
        assert problem.warning
        assert problem.setting == "attributes.shards.files_per_shard"
        assert "the 4 shards there are were made with automatic" in str(observe_source(joined.builder, instance))

        shutil.rmtree(folder)
        joined.refresh()
        assert shards_of(joined) == {"s000000": ["0", "1"], "s000001": ["2", "3"]}
        assert set(instance.get_dynamic_partitions("toy/shard")) == {"s000000", "s000001"}
        assert check_of(joined).passed
        assert joined.refresh() == {}
        assert len(list(Path(folder).rglob("current.json"))) == 1


def test_new_files_follow_the_new_setting_and_then_nothing_is_left_to_say(tmp_path: Path) -> None:
    write_shard(tmp_path, "0", near_duplicates(0))
    with dg.DagsterInstance.ephemeral() as instance:
        runs = PipelineRuns(instance, vectors_settings(tmp_path, shards={"files_per_shard": 1}), UNDRAWN)
        observe_source(runs.builder, instance)
        joined = runs.changed(shards={"files_per_shard": 2})
        for number in (1, 2):
            write_shard(tmp_path, f"{number}", near_duplicates(number))
        assert not check_of(joined).passed
        observe_source(joined.builder, instance)
        assert shards_of(joined) == {"s000000": ["0"], "s000001": ["1", "2"]}
        assert check_of(joined).passed
        index = joined.context.shard_index
        assert ShardIndex.from_json(index.to_json()) == index
