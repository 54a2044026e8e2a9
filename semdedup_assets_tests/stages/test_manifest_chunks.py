"""Manifests are the same bytes over however many workers they are spread, in every format and for every selection."""

import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semdedup_assets.execution.chunks import contiguous_chunks
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.engines.local import Outcome, map_tasks
from semdedup_assets.execution.runner import run_partitions
from semdedup_assets.records import item_ids
from semdedup_assets.stages.item_groups import NO_GROUP, ItemGroups
from semdedup_assets.stages.kept_rows import kept_shards, shard_chunks
from semdedup_assets.storage.files import list_folder
from semdedup_assets.storage.results import MissingResultError, ResultRecord
from semdedup_assets_tests.assets.test_images_and_texts import checkpoint
from semdedup_assets_tests.baselines.baseline_runs import docstrings, edited, text_runs
from semdedup_assets_tests.stage_runs import METHOD, PLAIN, StageRuns, small_pipeline, stored_files
from semdedup_assets_tests.stages.hostile_sources import write_folder
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_table

WORKERS = [1, 3, 9]


def elsewhere(make_worker: Callable[[], Callable[[Any], Any]], tasks: Iterable[Any]) -> Iterator[Outcome]:
    """Each task in a worker of its own, which knows only what can be sent to another process; the last ones first."""
    for task in reversed(list(tasks)):
        maker, sent = pickle.loads(pickle.dumps((make_worker, task)))
        ((outcome),) = map_tasks(maker, [sent])
        yield pickle.loads(pickle.dumps(outcome)) if outcome.error is None else outcome


def made(context: StageContext, stage: str, parallelism: int) -> list[ResultRecord]:
    context = replace(context, parallelism=parallelism)
    found = context.graph[stage]
    partitions = context.index.partitions(stage)
    engine = map_tasks if parallelism == 1 else elsewhere
    records = dict(run_partitions(context, found, partitions, engine=engine))
    return [records[partition] for partition in partitions]


def assert_equal_by_any_workers(runs: StageRuns, stage: str, selection: str | None = None) -> None:
    """The manifests of a stage are the same files of the same bytes, with the same counts."""
    by_workers = [made(runs.context(selection), stage, workers) for workers in WORKERS]
    for records in zip(*by_workers, strict=True):
        first = records[0]
        counted = ("kept", "removed", "skipped", "records", "unlisted", "unnameable_examples", "changed")
        for record in records[1:]:
            files, expected = (
                {name: (entry.size, entry.checksum) for name, entry in each.files.items()} for each in (record, first)
            )
            assert files == expected
            assert record.version == first.version
            assert {name: record.details[name] for name in counted} == {name: first.details[name] for name in counted}
            assert record.details["rows_written"] == first.details["rows_written"]
            assert record.details.get("stood_for") == first.details.get("stood_for")
    found = {check.name: check.evaluate(runs.context(selection)) for check in runs.context().graph[stage].checks}
    assert found["counts_are_conserved"].problems == []


def test_kept_sets_of_every_kind_by_any_number_of_workers(tmp_path: Path) -> None:
    """Chain and greedy rules, protection, a repair whose groups lie in many ranges, and a shard without items beside one that is excluded."""
    rng = np.random.default_rng(0)
    for shard in range(5):
        vectors: list[Any] = list(near_duplicates(shard % 2, groups=2 if shard == 1 else 12))
        vectors[3] = None
        write_table(tmp_path, f"{shard}", vectors, {"good": (rng.random(len(vectors)) < 0.2).tolist()})
    (tmp_path / "source" / "5.parquet").write_bytes(b"no table")
    write_table(tmp_path, "6", [None] * 3, {"good": [None] * 3})
    selections = {
        "chain": {},
        "greedy": {"rule": "greedy", "keep": "random"},
        "protected": {"protect": "good"},
        "repaired": {"repair": {"clusters": 2, "epsilon": 0.5}},
    }
    settings = vectors_settings(tmp_path, selections=selections, max_skipped=1)
    runs = StageRuns(settings, METHOD).changed(
        source={"columns": {"good": "bool"}},
        clustering={"k": [6], "buckets": 3},
        epsilons=["0.4"],
        manifest_weight="group_size",
        refresh={"attempts": 1},
    )
    runs.run(until="keep_masks")
    for name in selections:
        assert_equal_by_any_workers(runs, "manifests", name)
    removed = runs.record("manifests", "0.4|6", "repaired").details["removed"]
    assert removed > runs.record("manifests", "0.4|6", "chain").details["removed"] > 0


def test_copies_and_baselines_of_texts_by_any_number_of_workers(tmp_path: Path) -> None:
    texts = edited(docstrings(20), seed=1)
    formats = ["parquet", "removed", "keep_lists", "jsonl"]
    runs = text_runs(tmp_path, texts, shards=4, manifests=formats, manifest_weight="inverse_group_size")
    for stage in ("exact_masks", "text_signatures", "near_duplicate_masks", "random_masks"):
        runs.make(stage)
    for stage in ("manifests", "exact_manifests", "near_duplicate_manifests", "random_manifests"):
        assert_equal_by_any_workers(runs, stage)
    assert (
        runs.record("near_duplicate_manifests").details["removed"] > runs.record("exact_manifests").details["removed"]
    )


def test_one_file_for_all_shards_and_tars_by_any_number_of_workers(tmp_path: Path) -> None:
    """The folder's names and captions are hostile, and one shard keeps nothing."""
    (tmp_path / "model").mkdir()
    write_folder(tmp_path / "source")
    encoder = {
        "kind": "openclip",
        "model": str(checkpoint(tmp_path / "model" / "clip", seed=0)),
        "precision": "float32",
    }
    runs = StageRuns(vectors_settings(tmp_path, encoder=encoder, model="small", max_skipped=1), PLAIN).changed(
        source={"kind": "folder", "path": str(tmp_path / "source")},
        clustering={"k": [1], "buckets": 1, "iterations": 2},
        shards={"files_per_shard": 7},
        epsilons=["0.000001", "1.9"],
        manifests=["csv", "webdataset", "parquet", "removed"],
    )
    runs.run(until="keep_masks")
    assert len(runs.context().shards) > 3
    assert_equal_by_any_workers(runs, "manifests")
    record = runs.record("manifests", "0.000001|1")
    folder = Path(record.location) / record.details["manifest"]
    assert not list(folder.glob("open_clip.csv.*"))
    assert runs.record("manifests", "1.9|1").details["kept"] < len(runs.context().shards)


def test_sample_and_manifests_on_an_object_store_by_several_workers(bucket: str, tmp_path: Path) -> None:
    """There, several shards are written at a time, and what was sent is counted."""
    here = small_pipeline(tmp_path)
    there = here.changed(store=f"{bucket}/store")
    for runs in (here, there):
        runs.run()
    for stage in ("training_sample", "manifests"):
        (local,) = made(here.context(), stage, 1)
        for workers in (1, 2):
            (remote,) = made(there.context(), stage, workers)
            assert remote.version == local.version
            counted = ("kept", "removed", "rows_written", "stood_for", "grouped", "vectors", "items")
            assert [remote.details.get(name) for name in counted] == [local.details.get(name) for name in counted]
    assert not [path for path in list_folder(f"{bucket}/store", recursive=True) if "candidates" in path]
    assert there.stale("manifests") == []


def test_a_chunk_that_fails_leaves_nothing_of_the_others(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path)
    runs.run(until="keep_masks")
    before = stored_files(tmp_path / "store")
    context = replace(runs.context(), parallelism=3)
    for record in context.index.records("items").values():
        table = Path(record.file("items.parquet").path)
    table.write_bytes(table.read_bytes()[:-9] + b"123456789")
    (partition,) = context.index.partitions("manifests")
    with pytest.raises(MissingResultError, match="holds other bytes"):
        list(run_partitions(context, context.graph["manifests"], [partition]))
    assert {path for path in stored_files(tmp_path / "store") if "manifests" in path} == set()
    assert len(before) == len(stored_files(tmp_path / "store"))


def test_items_of_a_shard_that_vanished_are_refused_by_the_chunk_whose_they_are(tmp_path: Path) -> None:
    runs = small_pipeline(tmp_path, shards=4)
    runs.run(until="keep_masks")
    masks = runs.context().index.require("keep_masks", runs.context().index.partitions("keep_masks")[0])
    for gone in (0, 1, 3):
        (tmp_path / "source" / f"{gone}.npy").rename(tmp_path / "gone.npy")
        runs.observe()
        context = replace(runs.context(), parallelism=2)
        refused = []
        for chunk in shard_chunks(context, closed=True, copied=False):
            try:
                kept_shards(context, masks, chunk)
            except MissingResultError as error:
                refused.append(str(error))
        assert ["made of other items" in each for each in refused] == [True]
        (tmp_path / "gone.npy").rename(tmp_path / "source" / f"{gone}.npy")
        runs.observe()


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_groups_of_a_span_are_those_of_all_shards(data: st.DataObject) -> None:
    """Whatever is kept, wherever its shards are parted; items of shard 2 have no keys, and one shard has no record."""
    records = {shard: data.draw(st.integers(0, 9)) for shard in (0, 1, 4, 5)}
    ids = np.concatenate([item_ids(shard, np.arange(rows)) for shard, rows in [*records.items(), (2, 3)]])
    ids = ids[data.draw(st.permutations(range(len(ids))))] if len(ids) else ids
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))), bool)
    heads = [None, *ids[kept].tolist()]
    named = [data.draw(st.sampled_from(heads)) for _ in ids]
    group = np.array(
        [i if k else (NO_GROUP if n is None else n) for i, k, n in zip(ids.tolist(), kept, named, strict=True)],
        np.uint64,
    )
    similarity = np.arange(len(ids), dtype=np.float32)
    whole = data.draw(st.booleans())
    parts = [slice(None)] if whole else [slice(0, len(ids) // 2), slice(len(ids) // 2, None)]
    alone = ItemGroups(records, budget=1 << 20)
    alone.add(ids, group=group, similarity=similarity)
    bounds = [0, *sorted(data.draw(st.sets(st.integers(1, 6), max_size=3))), 1 << 31]
    for start, stop in pairwise(bounds):
        groups = ItemGroups(records, budget=data.draw(st.sampled_from([0, 1 << 20])), span=range(start, stop))
        missing = [
            ids[part][groups.add(ids[part], group=group[part], similarity=similarity[part], whole=whole)]
            for part in parts
        ]
        assert sorted(np.concatenate(missing).tolist()) == sorted(
            i for i in ids.tolist() if i >> 32 == 2 and start <= 2 < stop
        )
        if not whole:
            groups.count_members((ids[part], group[part]) for part in parts)
        for shard in (shard for shard in records if start <= shard < stop):
            own = item_ids(shard, np.arange(records[shard]))
            for found, expected in zip(groups.of(own), alone.of(own), strict=True):
                np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(groups.kept(shard), alone.kept(shard))
            np.testing.assert_array_equal(groups.removed(shard), np.isin(own, ids[~kept]))


@given(weights=st.lists(st.integers(0, 10**6), min_size=1, max_size=40), most=st.integers(1, 50))
def test_chunks_are_contiguous_and_even(weights: list[int], most: int) -> None:
    chunks = contiguous_chunks(range(len(weights)), weights, most=most)
    assert [item for chunk in chunks for item in chunk] == list(range(len(weights)))
    assert 1 <= len(chunks) <= most
    share = (sum(weights) + len(weights)) / most
    for chunk in chunks:
        assert chunk
        assert sum(weights[item] + 1 for item in chunk) <= share + max(weights) + 1
