"""The training sample is the same whatever it is drawn by, and is what a sort of all items gives."""

import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semdedup_assets.algorithm.sampling import candidate_limit, id_hash
from semdedup_assets.execution.engines.local import Outcome, map_tasks
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.runner import run_partitions
from semdedup_assets.stages.embeddings import VECTORS
from semdedup_assets.stages.training_sample import SAMPLE
from semdedup_assets.storage.results import MissingResultError, ResultRecord
from semdedup_assets.storage.vectors import read_vectors
from semdedup_assets_tests.stage_runs import PLAIN, StageRuns, stored_files
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard

SHARDS = 4
WORKERS = [1, 2, 3, 7]


def embedded(folder: Path, **changes: Any) -> StageRuns:
    """Shards of several sizes, embedded."""
    for shard in range(SHARDS):
        write_shard(folder, f"{shard}", near_duplicates(shard, groups=5 + 20 * shard))
    runs = StageRuns(vectors_settings(folder), PLAIN).changed(**changes)
    runs.run(until="embeddings")
    return runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    return embedded(tmp_path_factory.mktemp("sample"))


def draw(runs: StageRuns, parallelism: int, engine: Any = map_tasks) -> ResultRecord:
    context = replace(runs.context(), parallelism=parallelism)
    ((_, record),) = run_partitions(context, context.graph["training_sample"], [Partition()], engine=engine)
    return record


def rows(file: Any) -> tuple[np.ndarray, np.ndarray]:
    tables = list(read_vectors(file))
    vectors = [each.vectors for each in tables]
    ids = np.concatenate([np.empty(0, np.uint64), *(each.ids for each in tables)])
    return ids, np.concatenate(vectors) if vectors else np.empty((0, 0))


def expected(runs: StageRuns, size: int | str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The items with the smallest hashes of all, sorted by id."""
    parts = [rows(record.file(VECTORS)) for record in runs.context().index.require_all("embeddings").values()]
    ids, vectors = (np.concatenate(arrays) for arrays in zip(*(part for part in parts if len(part[0])), strict=True))
    first = sorted(range(len(ids)), key=lambda row: id_hash(ids[row : row + 1], seed=seed)[0])
    chosen = sorted(first if size == "all" else first[: int(size)], key=lambda row: int(ids[row]))
    return ids[chosen], vectors[chosen]


def too_few(size: int, items: np.ndarray) -> int:
    """A seed by which the limit lets fewer items through than are wanted."""
    limit = np.uint64(candidate_limit(size, len(items)))
    return next(seed for seed in range(100_000) if (id_hash(items, seed=seed) <= limit).sum() < size)


@pytest.mark.parametrize("size", [1, 40, 383, 10_000, "all"])
def test_the_sample_is_that_of_one_sort_whatever_the_number_of_workers(runs: StageRuns, size: int | str) -> None:
    drawn = runs.changed(training_sample={"size": size, "seed": 5})
    ids, vectors = expected(drawn, size, 5)
    records = [draw(drawn, parallelism) for parallelism in WORKERS]
    for record in records:
        found = rows(record.file(SAMPLE))
        np.testing.assert_array_equal(found[0], ids)
        np.testing.assert_array_equal(found[1], vectors)
        assert record.details["items"] == 420
        assert record.details["vectors"] == len(ids)
        assert record.details["seconds"] > 0
    assert len({(record.version, str(record.inputs), record.files[SAMPLE].checksum) for record in records}) == 1
    (record,) = {record.details["share"] for record in records}
    assert record == len(ids) / 420


@pytest.mark.parametrize("parallelism", WORKERS)
def test_too_few_candidates_cost_another_pass_and_no_item(runs: StageRuns, parallelism: int) -> None:
    items, _ = expected(runs, "all", 0)
    seed = too_few(2, items)
    drawn = runs.changed(training_sample={"size": 2, "seed": seed})
    np.testing.assert_array_equal(rows(draw(drawn, parallelism).file(SAMPLE))[0], expected(drawn, 2, seed)[0])


@pytest.mark.parametrize("memory", [16, 1024])
def test_shards_without_items_and_vectors_beyond_memory_change_nothing(tmp_path: Path, memory: int) -> None:
    for shard, rows_of in enumerate([0, 300, 0, 0, 9000]):
        values = np.full((max(rows_of, 1), 600), np.nan, np.float32)
        values[:rows_of] = np.random.default_rng(shard).normal(size=(rows_of, 600))
        write_shard(tmp_path, f"{shard}", values)
    runs = StageRuns(vectors_settings(tmp_path, max_skipped=1, vectors="float32"), PLAIN)
    runs = runs.changed(training_sample={"size": 8000}, compute={"memory_mib": memory})
    runs.run(until="embeddings")
    ids, vectors = expected(runs, 8000, 0)
    for parallelism in (1, 3):
        found = rows(draw(runs, parallelism).file(SAMPLE))
        np.testing.assert_array_equal(found[0], ids)
        np.testing.assert_array_equal(found[1], vectors)


def test_a_part_that_fails_leaves_nothing_and_an_earlier_sample_as_it_was(tmp_path: Path) -> None:
    runs = embedded(tmp_path, training_sample={"size": 100})
    draw(runs, 2)
    before = stored_files(tmp_path / "store")

    def failing(make_worker: Callable[[], Callable[[Any], Any]], tasks: Iterable[Any]) -> Iterator[Outcome]:
        *others, last = tasks
        yield from map_tasks(make_worker, others)
        assert stored_files(tmp_path / "store") != before
        yield Outcome(last, error=RuntimeError("stop"))

    with pytest.raises(RuntimeError, match="stop"):
        draw(runs, 3, failing)
    assert stored_files(tmp_path / "store") == before


@pytest.mark.parametrize("parallelism", [1, 2])
def test_what_was_embedded_again_since_the_plan_is_not_drawn_from(tmp_path: Path, parallelism: int) -> None:
    runs = embedded(tmp_path)

    def late(make_worker: Callable[[], Callable[[Any], Any]], tasks: Iterable[Any]) -> Iterator[Outcome]:
        planned = list(tasks)
        write_shard(tmp_path, "2", near_duplicates(9))
        runs.run(until="embeddings")
        # In another process.
        yield from map_tasks(pickle.loads(pickle.dumps(make_worker)), planned)

    with pytest.raises(MissingResultError, match="made again meanwhile"):
        draw(runs, parallelism, late)


def test_nothing_to_draw_from_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path, "0", np.full((3, 4), np.nan, np.float32))
    runs = StageRuns(vectors_settings(tmp_path, max_skipped=1), PLAIN)
    runs.run(until="embeddings")
    with pytest.raises(ValueError, match="no shard holds a single item"):
        draw(runs, 2)
