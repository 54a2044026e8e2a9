"""The records of the store alone decide what is stale."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semdedup_assets.checks.counting import by_clustering
from semdedup_assets.execution import progress
from semdedup_assets.execution.engines.local import map_tasks
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.result_index import ResultIndex
from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.kept_sets import Clustering, Target
from semdedup_assets.storage.files import write_bytes
from semdedup_assets.storage.leftovers import remove_leftovers
from semdedup_assets.storage.results import DAMAGED, MissingResultError, ResultRecord, read_record
from semdedup_assets_tests.stage_runs import (
    METHOD,
    PLAIN,
    Made,
    SoundStore,
    StageRuns,
    record_path,
    small_pipeline,
    stored_files,
)
from semdedup_assets_tests.toy_source import near_duplicates, write_shard

SHARDS = ["s000000", "s000001", "s000002"]
SCORED: Made = {
    "duplicate_scores": ["b0000|3", "b0001|3"],
    "keep_masks": ["0.05|3"],
    "manifests": ["0.05|3"],
}
CLUSTERED: Made = {"assignments": [f"3|{shard}" for shard in SHARDS], **SCORED}
STAGES = [stage.name for stage in PLAIN.stages]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> SoundStore:
    folder = tmp_path_factory.mktemp("sound")
    return SoundStore.made_by(small_pipeline(folder), folder)


@pytest.fixture
def runs(sound: SoundStore, tmp_path: Path) -> StageRuns:
    return sound.copy(tmp_path)


def test_a_store_can_be_moved_as_a_whole(runs: StageRuns, sound: SoundStore) -> None:
    assert runs.run() == {}
    assert runs.kept_keys("0.05|3") == sound.runs.kept_keys("0.05|3")
    store = Path(runs.settings["store"])
    moved = runs.changed(store=str(store.with_name("elsewhere")))
    shutil.move(store, moved.settings["store"])
    assert moved.run() == {}
    assert moved.scores("3").equals(sound.runs.scores("3"))


@pytest.mark.parametrize(
    ("changes", "made"),
    [
        ({"manifests": ["parquet"]}, {"manifests": ["0.05|3"]}),
        # The sample is all items, whatever the seed: the same bytes, and nothing follows.
        ({"training_sample": {"seed": 1}}, {"training_sample": [""]}),
        ({"training_sample": {"size": 100}}, {"training_sample": [""], "centroids": ["3"], **CLUSTERED}),
        ({"training_sample": {"per_cluster": 20}}, {"centroids": ["3"], **CLUSTERED}),
        ({"clustering": {"iterations": 1}}, {"centroids": ["3"], **CLUSTERED}),
        (
            {"vectors": "float32"},
            {"embeddings": SHARDS, "training_sample": [""], "centroids": ["3"], **CLUSTERED},
        ),
        # Each vector is of the same dimension, so that only what could have changed is made again.
        ({"encoder": {"dimension": 16}}, {"embeddings": SHARDS, "training_sample": [""]}),
    ],
)
def test_a_setting_makes_stale_what_it_determines(runs: StageRuns, changes: dict[str, Any], made: Made) -> None:
    assert runs.changed(**changes).run() == made


def test_a_changed_file_makes_its_shard_again_and_what_compares_items(runs: StageRuns, sound: SoundStore) -> None:
    write_shard(sound.folder, "1", near_duplicates(7))
    one = {stage: ["s000001"] for stage in ("items", "embeddings")}
    assert runs.run() == {**one, "assignments": ["3|s000001"], **SCORED}


def test_a_new_file_is_a_new_shard_and_the_sample_stays(runs: StageRuns, sound: SoundStore) -> None:
    sample = runs.record("training_sample")
    write_shard(sound.folder, "9", near_duplicates(9))
    one = {stage: ["s000003"] for stage in ("items", "embeddings")}
    assert runs.run() == {**one, "assignments": ["3|s000003"], **SCORED}
    assert runs.record("training_sample") == sample
    assert runs.stale("training_sample") == []
    # Only who wants it draws it again, of all there is now.
    runs.make("training_sample")
    assert runs.record("training_sample").details["items"] == 240
    assert runs.run()["centroids"] == ["3"]


def test_a_file_that_vanishes_takes_its_items_out_of_scores_and_manifests(runs: StageRuns, sound: SoundStore) -> None:
    (sound.folder / "source" / "1.npy").unlink()
    assert runs.run() == SCORED
    assert {key.partition(".")[0] for key in runs.kept_keys("0.05|3")} == {"0", "2"}
    assert runs.run() == {}


def test_a_file_written_again_with_the_same_content_changes_nothing_further(runs: StageRuns, sound: SoundStore) -> None:
    path = sound.folder / "source" / "1.npy"
    os.utime(path, (1, 1))
    assert runs.run() == {"items": ["s000001"], "embeddings": ["s000001"]}


def first_files(runs: StageRuns) -> dict[str, tuple[str, Path]]:
    """A partition of each stage, and a file of it."""
    found = {}
    for stage in STAGES:
        partition = runs.context().index.partitions(stage)[0]
        stored = runs.context().index.stored(stage, partition)[0]
        record = runs.context().index.require(stage, stored)
        found[stage] = str(partition), Path(record.file(sorted(record.files)[0]).path)
    return found


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("spoil", ["deleted", "emptied", "cut"])
def test_a_partition_whose_file_is_not_there_whole_is_made_again_and_nothing_else(
    runs: StageRuns, stage: str, spoil: str
) -> None:
    key, path = first_files(runs)[stage]
    if spoil == "deleted":
        path.unlink()
    else:
        path.write_bytes(b"" if spoil == "emptied" else path.read_bytes()[:-1])
    assert runs.stale(stage) == [key]
    assert runs.run() == {stage: [key]}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("damage", [b"", b"garbage", b'{"checksum":"x","record":{}}', b"[]"])
def test_a_damaged_record_counts_as_missing_and_is_reported(runs: StageRuns, stage: str, damage: bytes) -> None:
    index = runs.context().index
    key = str(index.partitions(stage)[0])
    record = index.require(stage, index.stored(stage, index.partitions(stage)[0])[0])
    record_path(record).write_bytes(damage)
    messages: list[str] = []
    with progress.reporting_to(messages.append):
        fresh = runs.context().index
        assert [str(partition) for partition in fresh.stale(stage)] == [key]
        assert [str(partition) for partition in fresh.stale(stage)] == [key]
    (message,) = messages
    assert f"{record.location}.result.json" in message
    assert record_path(record).with_name(f"{record_path(record).name}{DAMAGED}").read_bytes() == damage
    assert runs.run() == {stage: [key]}


@pytest.mark.parametrize("stage", STAGES)
def test_a_record_whose_one_letter_changed_counts_as_missing(runs: StageRuns, stage: str) -> None:
    index = runs.context().index
    stored = index.stored(stage, index.partitions(stage)[0])[0]
    path = record_path(index.require(stage, stored))
    path.write_bytes(path.read_bytes().replace(b'"device":"cpu"', b'"device":"cqu"'))
    assert runs.run() == {stage: [str(index.partitions(stage)[0])]}


def test_only_the_range_that_is_missing_is_scored_again(runs: StageRuns) -> None:
    index = runs.context().index
    records = index.require_all("duplicate_scores")
    assert len(records) == 3
    lost = Partition(clustering=Clustering("3"), cluster_range=1)
    Path(records[lost].file("scores.parquet").path).unlink()
    (stale,) = runs.stale("duplicate_scores")
    tasks: list[Partition] = []

    def recording(make_worker: Any, wanted: Any) -> Any:
        for outcome in map_tasks(make_worker, wanted):
            tasks.append(outcome.task.content)
            yield outcome

    runs.make("duplicate_scores", stale, again=False, engine=recording)
    assert tasks == [lost]
    assert runs.run() == {}
    tasks.clear()
    runs.make("duplicate_scores", stale, again=True, engine=recording)
    assert lost in tasks
    assert len(tasks) == runs.record("duplicate_scores", stale).details["ranges"]


def test_a_record_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    """Also where it is as large as before, and written within one tick of the clock."""
    runs = small_pipeline(tmp_path, shards=1)
    runs.run(until="items")
    record = runs.record("items", "s000000")
    stat = record_path(record).stat()
    other = ResultRecord(
        record.location,
        record.version[::-1],
        record.code_version,
        record.inputs,
        record.files,
        record.details,
    )
    write_bytes(str(record_path(record)), other.to_json())
    os.utime(record_path(record), ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert record_path(record).stat().st_size == stat.st_size
    assert runs.record("items", "s000000").version == record.version[::-1]


def test_records_are_read_once_a_context(runs: StageRuns) -> None:
    context = runs.context()
    assert context.index.stale("manifests") == []
    record = context.index.require("items", Partition(shard="s000000"))
    record_path(record).unlink()
    assert context.index.require("items", Partition(shard="s000000")) is record
    with pytest.raises(MissingResultError, match=r"items/s000000: not there; materialise toy/precomputed/items, part"):
        runs.context().index.require("items", Partition(shard="s000000"))


def test_selections_share_what_is_known_of_the_store(runs: StageRuns) -> None:
    named = runs.changed(selections={"a": {}, "b": {"keep": "easy"}})
    context = named.context("a")
    other = context.with_selection(named.pipeline.named_selections["b"])
    assert isinstance(other.index, ResultIndex)
    assert other.index.cache is context.index.cache
    assert context.index.stale("duplicate_scores") == []
    assert len(other.index.stale("duplicate_scores")) == 2
    assert context.with_selection(context.selection) is context


def test_a_damaged_shard_index_is_named(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, shards=1)
    runs.observe()
    path = Path(runs.context().layout.shard_index)
    path.write_text("{")
    with pytest.raises(ValueError, match=rf"{path}: not a shard index .*restore it"):
        _ = runs.context().shard_index
    with pytest.raises(ValueError, match=rf"{path}: not a shard index .*restore it"):
        runs.observe()


def test_a_stage_that_is_asked_too_early_reports_what_to_materialise(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, shards=1)
    with pytest.raises(MissingResultError, match=r"shard_index.json: no shard is known; observe toy/shards first"):
        runs.make("training_sample")
    runs.observe()
    for stage, remedy in {
        "training_sample": "embeddings, partition s000000",
        "centroids": "training_sample",
        "assignments": "embeddings, partition s000000",
        "duplicate_scores": "centroids, partition 3",
        "keep_masks": "centroids, partition 3",
        "manifests": r"keep_masks, partition 0\.05\|3",
    }.items():
        with pytest.raises(MissingResultError, match=f"materialise toy/precomputed/{remedy}$"):
            runs.make(stage)
    runs.run()
    assert runs.run() == {}


def test_nothing_is_made_from_what_is_stale_itself(runs: StageRuns, sound: SoundStore) -> None:
    write_shard(sound.folder, "1", near_duplicates(5))
    runs.observe()
    runs.make("embeddings", "s000001")
    with pytest.raises(MissingResultError, match=r"made from other inputs .*assignments, partition 3\|s000001"):
        runs.make("duplicate_scores", "b0000|3")
    with pytest.raises(MissingResultError, match=r"made from other inputs .*duplicate_scores|assignments"):
        runs.make("keep_masks", "0.05|3")
    runs.make("assignments", "3|s000001")
    with pytest.raises(MissingResultError, match=r"made from other inputs .*duplicate_scores, partition 3\|r0000"):
        runs.make("keep_masks", "0.05|3")
    runs.make("duplicate_scores")
    with pytest.raises(MissingResultError, match=r"made from other inputs .*keep_masks, partition 0\.05\|3"):
        runs.make("manifests", "0.05|3")
    runs.make("keep_masks")
    runs.make("items", "s000001")
    assert runs.run() == {"manifests": ["0.05|3"]}


def test_partitions_follow_from_settings_and_shards(runs: StageRuns) -> None:
    changed = runs.changed(clustering={"k": [3, "auto"], "seed": [0, 1]}, epsilons=["0.05", "keep=50%"])
    index = changed.context().index

    def keys(stage: str, within: Partition | None = None) -> list[str]:
        return [str(partition) for partition in index.partitions(stage, within)]

    assert keys("items") == SHARDS
    assert keys("training_sample") == [""]
    assert keys("centroids") == ["3", "3-seed1", "auto", "auto-seed1"]
    assert len(keys("assignments")) == 12
    assert keys("keep_masks", Partition(clustering=Clustering("3"))) == ["0.05|3", "keep=50%|3"]
    assert index.records("keep_masks", Partition(clustering=Clustering("auto"))) == {}
    assert len(index.records("keep_masks")) == 1


def test_no_leftover_of_a_run_is_unknown_to_a_record(runs: StageRuns, sound: SoundStore, tmp_path: Path) -> None:
    """Made again, changed and made again: what lies in the store is named by a record or is an older manifest."""
    write_shard(sound.folder, "1", near_duplicates(7))
    runs.run()
    for stage in STAGES:
        runs.make(stage)
    store = tmp_path / "store"
    records = list(store.rglob("*.result.json"))
    named = {str(path.relative_to(store)) for path in records}
    for path in records:
        record = read_record(str(path).removesuffix(".result.json"))
        assert record is not None
        named |= {str(Path(record.file(name).path).relative_to(store)) for name in record.files}
    unknown = [name for name in stored_files(store) if name not in named]
    # Of equal content the earlier files stay until they are old: somebody may be reading them.
    old = [name for name in unknown if "manifests/" not in name and name != "toy/shard_index.json"]
    for path in store.rglob("*"):
        os.utime(path, (0, 0))
    assert remove_leftovers(str(store / "toy" / "precomputed")) == len(old)
    assert runs.run() == {}
    assert np.unique([name.split("manifests/")[1].split("/")[0] for name in unknown if "manifests/" in name]).size >= 3


@pytest.mark.parametrize("made_again", ["some shards", "no shard"])
def test_nothing_is_made_of_vectors_of_other_settings(runs: StageRuns, made_again: str) -> None:
    other = runs.changed(encoder={"kind": "precomputed", "dimension": 16})
    if made_again == "some shards":
        other.make("embeddings", "s000000")
    for stage in ("assignments", "duplicate_scores", "keep_masks", "manifests"):
        with pytest.raises(MissingResultError, match=r"(embeddings/s00000\d|training_sample): made from other"):
            other.make(stage)


def test_nothing_is_made_of_a_sample_of_other_settings(runs: StageRuns) -> None:
    with pytest.raises(MissingResultError, match="training_sample: made from other inputs or settings"):
        runs.changed(training_sample={"seed": 5}).make("manifests")


def test_a_clustering_that_is_not_fitted_hides_nothing_of_another(runs: StageRuns) -> None:
    two = runs.changed(clustering={"k": [3, 5]})
    index = two.context().index
    assert len(index.records("duplicate_scores")) == 3
    for stage in ("duplicate_scores", "keep_masks"):
        records = by_clustering(index.records(stage))
        assert list(records) == ["3"]


def test_tasks_that_were_planned_from_other_inputs_are_refused(runs: StageRuns) -> None:
    partition = Partition(clustering=Clustering("3"), target=Target(epsilon=0.05))
    context = runs.context()
    context.index.require_inputs("keep_masks", partition, context.index.input_versions("keep_masks", partition))
    with pytest.raises(MissingResultError, match="its inputs were made again meanwhile"):
        context.index.require_inputs("keep_masks", partition, {"duplicate_scores": "another"})


def test_a_graph_whose_stages_do_not_fit_together_is_refused() -> None:
    scores = next(stage for stage in METHOD.stages if stage.name == "duplicate_scores")
    with pytest.raises(ValueError, match="'duplicate_scores': its input 'assignments' does not come before it"):
        StageGraph((scores,))
    shared = replace(scores, name="shared", inputs=("duplicate_scores",), selected=False)
    with pytest.raises(ValueError, match="'shared': set `selected`"):
        StageGraph((*METHOD.stages, shared))
