"""The same analyses with results on an object store."""

from pathlib import Path

from semdedup_assets.execution.stage import Link
from semdedup_assets.stages.manifest_tables import removed_rows
from semdedup_assets_tests.analyses.small_pipelines import GRAPH, analysed_settings, made
from semdedup_assets_tests.toy_source import near_duplicates, write_shard

ANALYSES = {"figures": "3", "galleries": "0.1|3", "removed_items": "0.1|3", "rule_comparison": "0.1|3"}


def test_analyses_on_an_object_store_are_byte_for_byte_those_on_a_disk(tmp_path: Path, bucket: str) -> None:
    for seed in range(2):
        write_shard(tmp_path, f"{seed}", near_duplicates(seed))
    settings = analysed_settings(tmp_path) | {"epsilons": ["0.1", "keep=50%"]}
    local, remote = (made(settings | {"store": store}, *ANALYSES) for store in (settings["store"], f"{bucket}/store"))
    for stage, key in ANALYSES.items():
        assert remote.record(stage, key).version == local.record(stage, key).version
        shown = GRAPH[stage].shown(remote.context, remote.partition(stage, key), remote.record(stage, key))
        assert all(not isinstance(each, Link) or each.path.startswith(bucket) for each in shown.values())
    one, other = (list(removed_rows(each.context, each.partition("keep_masks", "0.1|3"))) for each in (local, remote))
    assert sum(map(len, one)) > 0
    assert one == other
