"""Whether everything is up to date in a bucket is seen by few requests, however many shards there are."""

import pickle
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import dagster as dg
import pytest

from semdedup_assets.assets.automation import find_wanted
from semdedup_assets.assets.refresh import refresh
from semdedup_assets.checks.up_to_date import NAME
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.storage import collected_records
from semdedup_assets.storage.collected_records import COLLECTED, MANY
from semdedup_assets.storage.files import exists, filesystem
from semdedup_assets.storage.results import RECORD
from semdedup_assets_tests.object_store import ObjectStore
from semdedup_assets_tests.pipeline_runs import PipelineRuns
from semdedup_assets_tests.stage_runs import PLAIN, StageRuns, small_pipeline, stored_files
from semdedup_assets_tests.toy_source import near_duplicates, write_shard

FEW, MORE = 3, MANY + 2


@pytest.fixture(scope="module")
def finished(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, StageRuns]:
    """Finished pipelines in a bucket by their number of shards; made here, and moved."""
    found = {}
    for shards in (FEW, MORE):
        folder = tmp_path_factory.mktemp(f"shards{shards}")
        for seed in range(shards):
            write_shard(folder, f"{seed:02d}", near_duplicates(seed, groups=5, copies=2))
        runs = small_pipeline(folder, shards=0, manifests=["parquet"])
        runs.run()
        found[shards] = runs.changed(store=f"{bucket}/shards{shards}")
        root = filesystem(bucket)[1]
        files = stored_files(folder / "store")
        # Records come last, as where a store is made: what is newer than its record is read again.
        for wanted in (False, True):
            chosen = {name: content for name, content in files.items() if name.endswith(RECORD) == wanted}
            filesystem(bucket)[0].pipe({f"{root}/shards{shards}/{name}": each for name, each in chosen.items()})
            next_second_of(bucket)
        # Whoever looks first leaves copies of the records.
        assert stale(found[shards]) == []
    return found


def next_second_of(bucket: str) -> None:
    """Return once the store's clock, which counts seconds, has moved on."""
    fs, root = filesystem(bucket)

    def now() -> datetime:
        fs.pipe_file(f"{root}/clock", b"")
        fs.invalidate_cache()
        moment: datetime = fs.info(f"{root}/clock")["LastModified"]
        return moment

    before = now()
    while now() <= before:
        pass


@contextmanager
def as_new_process(runs: StageRuns) -> Iterator[PipelineRuns]:
    """The same pipeline where nothing has been read yet, with a new instance."""
    collected_records._known.clear()
    with dg.DagsterInstance.ephemeral() as instance:
        yield PipelineRuns(instance, runs.settings, PLAIN)


def stale(runs: StageRuns) -> list[str]:
    collected_records._known.clear()
    index = runs.context().index
    return [stage.name for stage in PLAIN.stages if index.stale(stage.name)]


def test_staleness_of_everything_costs_as_much_for_many_shards_as_for_few(
    finished: dict[int, StageRuns], served_store: ObjectStore
) -> None:
    sent = {}
    for shards, runs in finished.items():
        with served_store.counted_kinds() as sent[shards]:
            assert stale(runs) == []
    # Of few shards each record is read by itself; of more, the copies of the items', embeddings' and assignments'.
    assert sent[MORE].total() <= sent[FEW].total() <= 40
    assert sent[MORE]["GET"] < MORE


def test_a_refresh_with_nothing_to_do_costs_as_much_for_many_shards_and_evaluates_each_check_once(
    finished: dict[int, StageRuns], served_store: ObjectStore
) -> None:
    sent = {}
    checks = Counter(name for stage in PLAIN.stages for name in (*(check.name for check in stage.checks), NAME))
    for shards, runs in finished.items():
        events = list[Any]()
        with as_new_process(runs) as new, served_store.counted_kinds() as sent[shards]:
            made = list(refresh(new.pipeline, new.instance, graph=PLAIN, sink=events.append))
        assert [run.asset for run in made if run.partitions] == []
        assert Counter(each.check_name for each in events if isinstance(each, dg.AssetCheckEvaluation)) == checks
    assert sent[MORE].total() <= sent[FEW].total() <= 120


def test_each_check_is_evaluated_once_a_run(finished: dict[int, StageRuns]) -> None:
    with as_new_process(finished[FEW]) as new:
        result = new.materialise("keep_masks", "0.05|3")
        evaluated = Counter(check.check_name for check in result.get_asset_check_evaluations())
    (stage,) = (stage for stage in PLAIN.stages if stage.name == "keep_masks")
    assert evaluated == Counter([*(check.name for check in stage.checks), NAME])


def test_one_look_of_the_automation_lists_the_store_once_for_all_assets(
    finished: dict[int, StageRuns], served_store: ObjectStore
) -> None:
    with as_new_process(finished[MORE]) as new:
        builder = new.builder
    with served_store.counted_kinds() as sent:
        assert find_wanted(builder, builder.context(builder.assets[0])).partitions == {}
    assert sent["LIST"] <= 2 * len({asset.stage.name for asset in builder.automatic})


def test_a_worker_elsewhere_finds_its_inputs_by_few_requests(
    finished: dict[int, StageRuns], served_store: ObjectStore
) -> None:
    runs = finished[MORE]
    collected_records._known.clear()
    context = pickle.loads(pickle.dumps(runs.context()))
    with served_store.counted_kinds() as sent:
        for partition in context.index.partitions("assignments"):
            assert set(context.index.input_versions("assignments", partition)) == {"centroids", "embeddings"}
    assert sent.total() <= 10


def test_what_a_refresh_has_made_can_be_read_together_before_the_next_stage_begins(
    finished: dict[int, StageRuns], served_store: ObjectStore
) -> None:
    runs = finished[MORE]
    folder = f"{runs.settings['store']}/toy/precomputed/items"
    filesystem(folder)[0].rm(filesystem(folder)[1], recursive=True)
    graph = StageGraph(tuple(stage for stage in PLAIN.stages if stage.name == "items"))
    with as_new_process(runs) as new:
        (made,) = refresh(new.pipeline, new.instance, graph=graph)
    assert len(made.partitions) == MORE
    assert exists(f"{folder}/{COLLECTED}")
    collected_records._known.clear()
    index = runs.context().index
    shards = index.partitions("items")
    with served_store.counted_kinds() as sent:
        assert all(index.record("items", Partition(shard=shard.shard)) for shard in shards)
    assert sent == {"LIST": 1, "GET": 1}
    assert stale(runs) == []
