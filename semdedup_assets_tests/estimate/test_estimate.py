from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semdedup_assets.estimate import estimate
from semdedup_assets.estimate.actual_usage import SHARED, STAGES, actual_usage
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Rows, StageGraph
from semdedup_assets.storage.results import MissingResultError
from semdedup_assets_tests.stage_runs import METHOD, StageRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard

GRAPH = StageGraph((estimate.STAGE, *METHOD.stages))


@pytest.fixture
def runs(tmp_path: Path) -> StageRuns:
    """1,200 vectors of 64 numbers in three shards, of which nothing is made yet."""
    vectors = near_duplicates(0, groups=300, copies=4, dimension=64)
    for index, part in enumerate(np.array_split(vectors, [300, 700])):
        write_shard(tmp_path, f"{index}", part)
    settings = vectors_settings(tmp_path, epsilons=["0.05", "keep=50%"], clustering={"k": [3, 6], "iterations": 10})
    made = StageRuns(settings, GRAPH)
    made.observe()
    return made


def estimated(runs: StageRuns) -> dict[str, Any]:
    (record,) = runs.make("estimate")
    return record.details


def by_row(details: dict[str, Any], name: str) -> dict[tuple[str, str], Any]:
    return {(row["stage"], row["k"]): row[name] for row in details["stages"]}


def shown(runs: StageRuns) -> dict[str, Any]:
    record = runs.record("estimate")
    return estimate.STAGE.shown(runs.context(), Partition(), record)


def test_an_estimate_before_the_source_was_observed_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingResultError, match="observe toy/shards first"):
        estimated(StageRuns(vectors_settings(tmp_path), GRAPH))


def test_each_stage_and_k_is_estimated_once_before_anything_is_made(runs: StageRuns) -> None:
    details = estimated(runs)
    of_k = [stage for stage in STAGES if stage not in SHARED]
    rows = [(stage, "") for stage in SHARED] + [(stage, k) for stage in of_k for k in ("3", "6")]
    assert list(by_row(details, "seconds")) == rows
    assert all(row["seconds"] > 0 and row["bytes"] > 0 and row["memory"] > 0 for row in details["stages"])
    assert (details["items"], details["dimension"], details["counted_exactly"]) == (1200, 64, True)
    assert details["bytes_total"] == sum(by_row(details, "bytes").values()) == details["bytes_left"]
    assert details["seconds_left"] == details["seconds_total"]
    assert details["disk_fits"]
    assert details["memory_fits"]


def test_what_is_estimated_is_near_what_a_run_then_uses(runs: StageRuns) -> None:
    before = estimated(runs)
    runs.run()
    used = actual_usage(runs.context())
    for key, size in by_row(before, "bytes").items():
        assert size == pytest.approx(used[key].bytes, rel=0.5), key
    assert before["bytes_total"] == pytest.approx(sum(each.bytes for each in used.values()), rel=0.15)
    for key, seconds in by_row(before, "seconds").items():
        # On a busy machine a part of a second is anything.
        assert used[key].seconds / 10 - 1 < seconds < used[key].seconds * 10 + 1, key
    peak = max(each.peak_memory_mib for each in used.values()) * (1 << 20)
    assert before["memory_peak_bytes"] > 0.9 * peak


def test_actual_usage_adds_up_what_the_records_say(runs: StageRuns) -> None:
    assert all(each.done == 0 and each.seconds == 0 for each in actual_usage(runs.context()).values())
    runs.run()
    context = runs.context()
    details = [record.details for record in context.index.records("embeddings").values()]
    used = actual_usage(context)
    of_shards = used["embeddings", ""]
    assert (of_shards.results, of_shards.done, of_shards.complete, of_shards.items) == (3, 3, True, 1200)
    assert of_shards.seconds == pytest.approx(sum(each["seconds"] for each in details))
    files = [path for path in Path(context.layout.folder, "embeddings").iterdir() if path.suffix != ".json"]
    assert of_shards.bytes == sum(path.stat().st_size for path in files)
    assert of_shards.peak_memory_mib == max(each["peak_memory_mib"] for each in details)
    assert used["manifests", "6"].results == 2


def test_stale_results_are_not_actual_usage(runs: StageRuns, tmp_path: Path) -> None:
    runs.run(until="assignments")
    write_shard(tmp_path, "0", near_duplicates(1, groups=10, copies=5, dimension=64))
    runs.observe()
    used = actual_usage(runs.context())
    assert (used["embeddings", ""].done, used["assignments", "3"].done) == (2, 3)


def test_an_estimate_after_the_run_keeps_what_was_estimated_before_it(runs: StageRuns) -> None:
    before = estimated(runs)
    runs.run()
    after = estimated(runs)
    assert after["stages"] == before["stages"]
    assert after["seconds_left"] == after["bytes_left"] == 0


def test_what_is_half_made_is_estimated_by_what_it_took(runs: StageRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.run()
    context = runs.context()
    path = Path(f"{context.location('assignments', Partition.parse('3|s000001', ('k', 'shard')))}.result.json")
    path.unlink()
    monkeypatch.setattr(estimate, "by_trial", None)  # Nothing is left to try.
    details = estimated(runs)
    done = actual_usage(runs.context())["assignments", "3"]
    assert (done.done, done.items) == (2, 800)
    assert by_row(details, "seconds")["assignments", "3"] == pytest.approx(done.seconds * 1.5)
    assert 0 < details["seconds_left"] < details["seconds_total"]


def test_another_setting_is_estimated_anew(runs: StageRuns) -> None:
    estimated(runs)
    runs.run(until="training_sample")
    smaller = runs.changed(training_sample={"size": 600})
    size = by_row(estimated(smaller), "bytes")["training_sample", ""]
    assert size == pytest.approx(600 * (8 + 2 * 64), rel=0.1)


def test_several_selections_have_rows_of_their_own(runs: StageRuns) -> None:
    several = runs.changed(
        selections={"paper": {}, "strict": {"rule": "greedy", "keep": "random"}},
        clustering={"k": [3], "seed": [0, 1]},
        epsilons=["0.05"],
    )
    keys = list(by_row(estimated(several), "seconds"))
    assert keys == list(actual_usage(several.context()))
    masks = [key for key in keys if key[0].endswith("keep_masks")]
    assert masks == [(f"{name}/keep_masks", k) for name in ("paper", "strict") for k in ("3", "3-seed1")]


def test_an_object_store_is_estimated_too(runs: StageRuns) -> None:
    remote = runs.changed(store="memory://estimated")
    remote.observe()
    details = estimated(remote)
    assert details["disk_free_bytes"] is None
    assert details["disk_fits"] is None
    assert "is not known" in shown(remote)["disk"]


def test_what_is_shown_compares_estimated_and_actual(runs: StageRuns) -> None:
    estimated(runs)
    first = shown(runs)
    names = list(first)
    assert names[:5] == ["time", "disk", "memory", "items", "stages"]
    assert " left" in first["time"]
    assert first["disk"].endswith(": fits")
    assert first["memory"].endswith(": fits")
    assert first["items"].startswith("1,200 (exact: 3 of 3 files")
    assert isinstance(first["stages"], Rows)
    assert not any(row[f"actual {name}"] for row in first["stages"].rows for name in ("time", "disk", "memory"))
    runs.run()
    second = shown(runs)
    assert "all made, took" in second["time"]
    assert "all made, takes" in second["disk"]
    assert second["seconds_left"] == 0 < second["seconds_used"]
    for before, after in zip(first["stages"].rows, second["stages"].rows, strict=True):
        assert all(after[f"actual {name}"] for name in ("time", "disk", "memory"))
        assert all(after[name] == before[name] for name in ("stage", "k", "items", "time", "disk", "memory"))


def test_what_has_only_begun_says_how_far_it_is(runs: StageRuns) -> None:
    estimated(runs)
    runs.make("embeddings", "s000000")
    row = next(row for row in shown(runs)["stages"].rows if row["stage"] == "embeddings")
    assert row["actual time"].endswith("(1 of 3)")


def test_scores_that_selections_share_are_counted_once(runs: StageRuns) -> None:
    several = runs.changed(selections={"paper": {}, "strict": {"rule": "greedy"}}, epsilons=["0.05"])
    keys = list(actual_usage(several.context()))
    assert [key for key in keys if key[1] == "3" and "/" in key[0]] == [
        ("paper/duplicate_scores", "3"),
        *((f"{name}/{stage}", "3") for stage in ("keep_masks", "manifests") for name in ("paper", "strict")),
    ]
