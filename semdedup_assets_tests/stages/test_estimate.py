import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from semdedup_assets.algorithm.cost import STAGES
from semdedup_assets.assets.declaration import Declaration
from semdedup_assets.assets.estimate import estimate_asset, readable_bytes, readable_seconds, room
from semdedup_assets.settings import Pipeline
from semdedup_assets.stages.estimate import estimate
from semdedup_assets.stages.item_counts import count_items
from semdedup_assets.stages.shards import update_catalogue
from semdedup_assets.stages.taken import taken
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.results import MissingResultError
from semdedup_assets_tests.pipeline_runs import PipelineRuns, near_duplicates, vectors_settings, write_shard

COMPARED = ("time (took)", "disk (is)", "memory (was)")
NO_BREAK = "\N{NO-BREAK SPACE}"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def runs(tmp_path: Path, instance: dg.DagsterInstance) -> PipelineRuns:
    """1,200 vectors of 64 numbers in three shards."""
    vectors = near_duplicates(0, groups=300, copies=4, dimension=64)
    for index, part in enumerate(np.array_split(vectors, [300, 700])):
        write_shard(tmp_path, f"{index}", part)
    return PipelineRuns(instance, vectors_settings(tmp_path)).changed(
        clustering={"k": [3, "auto"]}, epsilons=["0.05", "keep=50%"]
    )


def observed(runs: PipelineRuns) -> Work:
    update_catalogue(runs.work)
    return runs.work


def texts(tmp_path: Path, *, files: int, lines: int, suffix: str) -> Work:
    """JSON lines on disk, as a pipeline whose shards are observed; its model is never loaded."""
    source = tmp_path / "source"
    source.mkdir()
    for index in range(files):
        rows = (json.dumps({"text": f"line {row} of file {index}: {'abc ' * (row % 9)}"}) for row in range(lines))
        content = "\n".join(rows).encode()
        (source / f"{index:03d}{suffix}").write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    settings = {
        "dataset": "texts",
        "store": str(tmp_path / "store"),
        "source": {"kind": "jsonl", "path": str(source)},
        "encoder": {"kind": "transformers", "model": str(tmp_path)},
    }
    work = Work(Pipeline.model_validate(settings))
    update_catalogue(work)
    return work


def test_an_estimate_before_the_source_was_observed_says_what_to_do(runs: PipelineRuns) -> None:
    with pytest.raises(MissingResultError, match="observe toy/shards first"):
        estimate(runs.work)


def test_ready_vectors_are_counted_exactly_without_reading_them(runs: PipelineRuns) -> None:
    counts = count_items(observed(runs))
    assert counts.by_shard == {"s000000": 300, "s000001": 400, "s000002": 500}
    assert counts.exact
    assert counts.counted.startswith("exact: 3 of 3 files")


def test_small_files_are_counted_exactly_when_all_of_them_are_read(tmp_path: Path) -> None:
    counts = count_items(texts(tmp_path, files=3, lines=70, suffix=".jsonl"))
    assert (counts.items, counts.exact) == (210, True)


def test_many_files_are_extrapolated_from_some_and_that_is_said(tmp_path: Path) -> None:
    counts = count_items(texts(tmp_path, files=40, lines=70, suffix=".jsonl.gz"))
    assert not counts.exact
    assert counts.items == pytest.approx(40 * 70, rel=0.05)
    assert "extrapolated by size: 8 of 40 files" in counts.counted


def test_a_large_file_is_extrapolated_from_its_beginning(tmp_path: Path) -> None:
    lines = 250_000
    counts = count_items(texts(tmp_path, files=1, lines=lines, suffix=".jsonl"))
    assert not counts.exact
    assert counts.items == pytest.approx(lines, rel=0.05)


def test_broken_lines_are_not_items(tmp_path: Path) -> None:
    work = texts(tmp_path, files=1, lines=5, suffix=".jsonl")
    path = tmp_path / "source" / "000.jsonl"
    path.write_text(path.read_text() + "\nnot json\n")
    assert count_items(work).items == 5


def test_embedded_shards_are_counted_by_their_recipes_unless_their_files_changed(
    runs: PipelineRuns, tmp_path: Path
) -> None:
    runs.refresh()
    assert count_items(runs.work).counted == "exact: 3 embedded shards by their recipes"
    write_shard(tmp_path, "0", near_duplicates(1, groups=10, copies=5, dimension=64))
    counts = count_items(observed(runs))
    assert counts.by_shard == {"s000000": 50, "s000001": 400, "s000002": 500}
    assert counts.counted.startswith("2 embedded shards by their recipes; exact: 1 of 1 files")


def test_each_stage_and_k_is_estimated_once_before_anything_is_made(runs: PipelineRuns) -> None:
    work = observed(runs)
    details = estimate(work).details
    rows = details["stages"]
    shared, by_k = STAGES[:2], STAGES[2:]
    assert [(row["stage"], row["k"]) for row in rows] == [
        *((stage, "") for stage in shared),
        *((stage, k) for stage in by_k for k in ("3", "auto")),
    ]
    assert all(row["seconds"] > 0 and row["bytes"] > 0 and row["memory"] >= 0 for row in rows)
    assert details["items"] == 1200
    assert details["dimension"] == 64
    assert details["bytes_total"] == sum(row["bytes"] for row in rows) == details["bytes_left"]
    assert details["disk_fits"]


def test_what_was_written_for_the_rehearsal_is_gone(runs: PipelineRuns, tmp_path: Path) -> None:
    estimate(observed(runs))
    left = sorted(path.name for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert left == ["catalogue.json", "estimate.json", "estimate.recipe.json"]


def test_the_disk_that_is_estimated_is_nearly_what_is_then_used(runs: PipelineRuns) -> None:
    work = observed(runs)
    expected = {(row["stage"], row["k"]): row["bytes"] for row in estimate(work).details["stages"]}
    runs.refresh()
    found = {name: there.bytes for name, there in taken(work).items()}
    for stage in ("embeddings", "training_sample", "assignments"):
        for name in (name for name in found if name[0] == stage):
            # Files of some hundred rows: their headers count.
            assert expected[name] == pytest.approx(found[name], rel=0.1), name
    assert sum(expected.values()) == pytest.approx(sum(found.values()), rel=0.2)


def test_taken_adds_up_what_the_recipes_say(runs: PipelineRuns) -> None:
    work = observed(runs)
    assert all(there.done == 0 and there.seconds is None for there in taken(work).values())
    runs.refresh()
    shards = [work.embeddings(shard.name) for shard in work.shards()]
    there = taken(work)["embeddings", ""]
    assert (there.results, there.done, there.complete) == (3, 3, True)
    assert there.seconds == pytest.approx(sum(recipe.details["seconds"] for recipe in shards))
    assert there.bytes == sum(size for recipe in shards for size in recipe.files.values())
    assert there.peak_memory_mib == max(recipe.details["peak_memory_mib"] for recipe in shards)
    assert taken(work)["manifests", "auto"].results == 2


def test_an_estimate_after_the_run_keeps_what_was_estimated_before_it(runs: PipelineRuns) -> None:
    work = observed(runs)
    before = estimate(work).details
    runs.refresh()
    after = estimate(work).details
    assert after["stages"] == before["stages"]
    assert before["seconds_left"] == before["seconds_total"]
    assert after["seconds_left"] == 0


def test_another_setting_is_estimated_anew(runs: PipelineRuns) -> None:
    estimate(observed(runs))
    runs.refresh()
    smaller = estimate(runs.changed(training_sample={"size": 600}).work).details
    sample = next(row["bytes"] for row in smaller["stages"] if row["stage"] == "training_sample")
    assert sample == 600 * (8 + 2 * 64)


def test_an_object_store_is_estimated_too(runs: PipelineRuns) -> None:
    work = observed(runs.changed(store="memory://estimated"))
    details = estimate(work).details
    assert details["disk_free_bytes"] is None
    assert details["calibration"]["store_write_bytes_per_second"] > 0


def test_the_asset_compares_what_was_estimated_with_what_it_took(
    runs: PipelineRuns, instance: dg.DagsterInstance
) -> None:
    work = observed(runs)
    asset = estimate_asset(Declaration(runs.pipeline))

    def materialised() -> Mapping[str, dg.MetadataValue[Any]]:
        result = dg.materialize([asset], instance=instance)
        (event,) = result.asset_materializations_for_node(asset.node_def.name)
        return event.metadata

    def table(metadata: Mapping[str, dg.MetadataValue[Any]]) -> dict[tuple[str, str], Any]:
        names = list(metadata)
        assert names.index("memory") < names.index("stages") < names.index("seconds_total")
        return {(row.data["stage"], row.data["k"]): row.data for row in metadata["stages"].records}  # type: ignore[attr-defined]

    first = materialised()
    assert "fits" in first["disk"].value
    assert "made" not in first["time"].value
    assert first["seconds_taken"].value == 0
    before = table(first)
    assert not any("(" in row[name] for row in before.values() for name in COMPARED)
    runs.refresh()
    second = materialised()
    assert "all made" in second["time"].value
    assert "all made" in second["disk"].value
    assert second["seconds_taken"].value > second["seconds_left"].value == 0
    after = table(second)
    assert after.keys() == before.keys() == taken(work).keys()
    for name, row in after.items():
        assert row["time (took)"].startswith(f"{before[name]['time (took)']} (")
        assert all(row[column].count("(") == 1 for column in COMPARED), name


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "< 0.1 s"),
        (9.94, "9.9 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (18_600, "5 h 10 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_seconds_are_readable(seconds: float, text: str) -> None:
    assert readable_seconds(seconds).replace(NO_BREAK, " ") == text
    assert " " not in readable_seconds(seconds)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (512, "512 bytes"),
        (24_100, "24.1 kB"),
        (999_700, "1.0 MB"),
        (1_400_000_000, "1.4 GB"),
        (2_500_000_000_000_000, "2.5 PB"),
    ],
)
def test_bytes_are_readable(count: int, text: str) -> None:
    assert readable_bytes(count).replace(NO_BREAK, " ") == text
    assert " " not in readable_bytes(count)


def test_too_little_room_is_said_plainly() -> None:
    said = room(2_000_000, 1_000_000, of="the disk").replace(NO_BREAK, " ")
    assert said == "2.0 MB of 1.0 MB that the disk has: DOES NOT FIT"
    assert room(1_000_000, 2_000_000, of="the disk").endswith(": fits")
