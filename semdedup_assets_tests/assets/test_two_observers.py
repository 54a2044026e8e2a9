"""The sensor and a refresh, or two refreshes, may observe a source at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import dagster as dg
import pytest

from semdedup_assets.assets.source import observe_source
from semdedup_assets_tests.pipeline_runs import PipelineRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard


def test_two_who_observe_at_once_register_every_shard_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    barrier = Barrier(2)
    names = [[f"{dataset}-{shard}" for shard in range(2)] for dataset in range(12)]
    for shards in names:
        for name in shards:
            write_shard(tmp_path, name, near_duplicates(0, groups=2))
    with (
        dg.DagsterInstance.from_config(str(tmp_path)) as first,
        dg.DagsterInstance.from_config(str(tmp_path)) as second,
    ):

        def observe(instance: dg.DagsterInstance) -> None:
            for dataset in range(12):
                settings = vectors_settings(tmp_path, dataset=f"toy{dataset}")
                runs = PipelineRuns(instance, settings)
                barrier.wait()
                try:
                    observe_source(runs.builder, instance)
                except BaseException:
                    barrier.abort()  # The other would wait for ever.
                    raise

        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(observe, instance) for instance in (first, second)]:
                done.result()
        for dataset in range(12):
            assert len(first.get_dynamic_partitions(f"toy{dataset}/shard")) == 24
