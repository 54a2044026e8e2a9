"""Selections of one pipeline share what they are made from, and nothing of what each keeps."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from semdedup_assets.analyses import removed_by_value
from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.stages import cluster_batches
from semdedup_assets.storage.results import StoredFile
from semdedup_assets.storage.vectors import VectorTable, read_parts
from semdedup_assets_tests.pipeline_runs import PipelineRuns
from semdedup_assets_tests.stage_runs import METHOD, StageRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_table

GRAPH = StageGraph(tuple(stage for stage in METHOD.stages if stage.name != "manifests"))
SELECTIONS: dict[str, Any] = {
    "paper": {},
    "simple": {"keep": "easy", "rule": "greedy"},
    "mild": {"keep": "easy"},
    "spared": {"keep": [{"column": "quality"}, "random"], "protect": "chosen"},
}
SCORES = ["b0000|3", "b0001|3"]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    for file in range(2):
        columns = {"quality": [row % 3 for row in range(60)], "chosen": [row % 5 == 0 for row in range(60)]}
        write_table(tmp_path, str(file), near_duplicates(file), columns)
    # At 0 nothing is removed, so that only scoring reads vectors.
    settings = vectors_settings(tmp_path, epsilons=["0"], selections=SELECTIONS)
    settings["source"] |= {"columns": {"quality": "int", "chosen": "bool"}}
    return settings


def test_a_refresh_reads_the_vectors_of_each_range_once_and_makes_what_is_made_apart(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[tuple[str, int]] = Counter()

    def counted(files: Sequence[StoredFile], index: int) -> list[VectorTable]:
        read.update((file.path, index) for file in files)
        return read_parts(files, index)

    monkeypatch.setattr(cluster_batches, "read_parts", counted)
    apart = StageRuns({**settings, "store": str(tmp_path / "apart")}, GRAPH)
    apart.run()
    assert set(read.values()) == {3}  # `simple` and `mild` have the same scores.
    read.clear()
    with dg.DagsterInstance.ephemeral() as instance:
        together = PipelineRuns(instance, settings, GRAPH)
        made = together.refresh()
        assert {f"{name}/duplicate_scores": SCORES for name in SELECTIONS}.items() <= made.items()
        assert read
        assert set(read.values()) == {1}
        assert together.stale() == {}
        assert together.refresh() == {}
        for name in SELECTIONS:
            found = [
                runs.context(name).index.records("duplicate_scores").values()
                for runs in (StageRuns(settings, GRAPH), apart)
            ]
            assert [record.version for record in found[0]] == [record.version for record in found[1]], name
        # Of one that is stale alone, the others are not made again.
        read.clear()
        other = together.changed(selections={"spared": {"keep": "random", "protect": "chosen"}})
        assert other.refresh() == {"spared/duplicate_scores": SCORES, "spared/keep_masks": ["0|3"]}
        assert set(read.values()) == {1}


def test_one_that_is_made_by_hand_makes_none_of_the_others(settings: dict[str, Any]) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        runs = PipelineRuns(instance, settings, GRAPH)
        StageRuns(settings, GRAPH).run(until="assignments")
        for bucket in SCORES:
            runs.materialise("spared/duplicate_scores", bucket)
        stale = {name: StageRuns(settings, GRAPH).stale("duplicate_scores", name) for name in SELECTIONS}
        assert stale == {"paper": SCORES, "simple": SCORES, "mild": SCORES, "spared": []}


def test_only_the_columns_that_order_or_protect_make_scores_stale(tmp_path: Path) -> None:
    def write(**shift: int) -> None:
        columns = {
            name: [(row * 7 + shift.get(name, 0)) % 5 for row in range(60)] for name in ("quality", "age", "other")
        }
        chosen = [row % 5 == shift.get("chosen", 0) for row in range(60)]
        write_table(tmp_path, "0", near_duplicates(0), {**columns, "chosen": chosen})

    keep = [{"column": "quality"}, {"column": "age", "order": "ascending"}, "middle"]
    limit = {"column": "other", "max_removed": 0.9}
    settings = vectors_settings(tmp_path, selection={"keep": keep, "protect": "chosen", "limit": limit})
    settings["source"] |= {"columns": {"quality": "int", "age": "int", "other": "int", "chosen": "bool"}}
    write()
    runs = StageRuns(settings, StageGraph((*METHOD.stages, removed_by_value.STAGE)))
    assert runs.run()["removed_by_value"] == ["0.05|3"]
    write(other=1)
    assert set(runs.run()) == {"items", "embeddings", "removed_by_value", "manifests"}
    for column in ("quality", "age", "chosen"):
        write(**{column: 2})
        assert "duplicate_scores" in runs.run(), column
