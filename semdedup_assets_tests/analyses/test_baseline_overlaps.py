"""Overlaps of a kept set with the baselines, against Python sets."""

import json
from pathlib import Path

import polars as pl
import pytest

from semdedup_assets.storage.results import MissingResultError
from semdedup_assets_tests.baselines.baseline_runs import docstrings, edited, emoji_runs, groups, masks, text_runs
from semdedup_assets_tests.stage_runs import StageRuns

STAGES = {
    "text": ("exact_masks", "text_signatures", "near_duplicate_masks"),
    "image": ("exact_masks", "perceptual_hashes", "perceptual_masks"),
}


@pytest.fixture(scope="module", params=["text", "image"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    folder, content = tmp_path_factory.mktemp("overlaps"), str(request.param)
    made = text_runs(folder, edited(docstrings(150), 2)) if content == "text" else emoji_runs(folder)
    for stage in (*STAGES[content], "random_masks", "baseline_overlaps"):
        made.make(stage)
    return made


def table(runs: StageRuns, name: str) -> pl.DataFrame:
    return pl.read_parquet(runs.record("baseline_overlaps", "0.1|2").file(name).path)


def test_overlaps_are_those_of_sets_of_ids(runs: StageRuns) -> None:
    method = runs.masks("0.1|2")
    everything = set(method["id"])
    kept, group = set(method.filter("kept")["id"]), groups(method)
    assert 0 < len(kept) < len(everything)
    found = table(runs, "overlaps.parquet")
    names = [stage for stage in STAGES[runs.pipeline.source.content] if stage.endswith("_masks")]
    assert found["baseline"].to_list() == [*(name.removesuffix("_masks") for name in names), *["random"] * 3]
    assert found["seed"].to_list() == [None] * len(names) + [0, 1, 2]
    for row, name, key in zip(
        found.to_dicts(), [*names, "random_masks"], [*([""] * len(names)), "0.1|2"], strict=False
    ):
        other = masks(runs, name, key)
        others, other_group = set(other.filter("kept")["id"]), groups(other)
        assert (row["items"], row["kept"], row["kept_by_other"]) == (len(everything), len(kept), len(others))
        assert row["kept_by_both"] == len(kept & others)
        assert row["removed_by_both"] == len(everything - kept - others)
        assert row["removed_only"] == len(others - kept)
        assert row["removed_only_by_other"] == len(kept - others)
        assert row["kept_jaccard"] == pytest.approx(len(kept & others) / len(kept | others))
        assert row["removed_jaccard"] == pytest.approx(
            len(everything - kept - others) / len(everything - (kept & others))
        )
        if name == "random_masks":
            assert row["pairs_of_other"] == row["other_pairs"] == 0
        else:
            assert row["pairs_of_other"] == sum(
                other_group[item] == other_group[group[item]] for item in everything - kept
            )
            assert row["other_pairs"] == sum(group[item] == group[other_group[item]] for item in everything - others)
    exact = found.filter(pl.col("baseline") == "exact").to_dicts()[0]
    # Byte-equal items have one vector, so the method groups them too.
    assert exact["other_pairs"] == exact["items"] - exact["kept_by_other"] > 0


def test_what_only_semdedup_finds_is_listed_and_shown(runs: StageRuns) -> None:
    method = runs.masks("0.1|2").filter(~pl.col("kept"))
    names = [stage for stage in STAGES[runs.pipeline.source.content] if stage.endswith("_masks")]
    grouped = [groups(masks(runs, name)) for name in names]
    expected = {
        (item, kept)
        for item, kept in method.select("id", "kept_neighbour").rows()
        if all(group[item] != group[kept] for group in grouped)
    }
    found = table(runs, "pairs.parquet")
    assert set(found.select("id", "kept_id").rows()) == expected
    assert len(expected) > 0
    assert found["similarity"].is_sorted(descending=True)
    record = runs.record("baseline_overlaps", "0.1|2")
    assert record.details["only_semdedup"] == len(expected)
    page = record.file("only_semdedup.html").content().decode()
    assert f"of the {len(expected):,} removed items that no baseline has in one group" in page
    assert record.file("overlaps.png").content().startswith(b"\x89PNG")
    shown = runs.context().graph["baseline_overlaps"].shown(runs.context(), next(iter(_partitions(runs))), record)
    assert {"overlaps", "by_baseline", "pairs_by_baseline", "only_semdedup_page", "only_semdedup"} <= set(shown)
    # A table of more columns than these is wider than its place in Dagster's page.
    assert all(len("".join(row)) < 70 for row in shown["by_baseline"].rows)
    assert json.dumps(record.details)


def _partitions(runs: StageRuns) -> list:  # type: ignore[type-arg]
    return runs.context().index.partitions("baseline_overlaps")


def test_it_follows_its_inputs_and_names_what_is_missing(tmp_path: Path) -> None:
    runs = text_runs(tmp_path, list(docstrings(40)), clustering={"k": [1], "buckets": 1})
    with pytest.raises(MissingResultError, match="materialise toy/encoder/exact_masks"):
        runs.make("baseline_overlaps")
    for stage in (*STAGES["text"], "baseline_overlaps"):
        runs.make(stage)
    assert runs.stale("baseline_overlaps") == []
    looser = runs.changed(analyses={"fingerprints": {"jaccard": 0.1}})
    looser.make("near_duplicate_masks")
    assert looser.stale("baseline_overlaps") == ["0.1|1"]
    assert runs.changed(analyses={"random_pruning": {"seeds": [5]}}).stale("baseline_overlaps") == ["0.1|1"]


def test_nothing_removed_is_no_error(tmp_path: Path) -> None:
    runs = text_runs(tmp_path, list(docstrings(3)), epsilons=["0"], clustering={"k": [1], "buckets": 1})
    for stage in (*STAGES["text"], "baseline_overlaps"):
        runs.make(stage)
    record = runs.record("baseline_overlaps", "0|1")
    assert record.details["only_semdedup"] == 0
    found = pl.read_parquet(record.file("overlaps.parquet").path)
    assert found["removed_jaccard"].to_list() == [None] * len(found)
