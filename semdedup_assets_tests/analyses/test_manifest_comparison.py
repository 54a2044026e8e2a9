"""Manifests compared: against sets of keys in plain Python, on real texts and on sources that change."""

import json
import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import semdedup_assets
from semdedup_assets import read_manifest
from semdedup_assets.algorithm.deduplication import semdedup
from semdedup_assets.algorithm.kept_overlap import compare_masks
from semdedup_assets.analyses.comparison_tables import (
    CHANGED,
    OVERLAPS,
    changed_since,
    shown_comparison,
    write_comparison,
)
from semdedup_assets.analyses.manifest_comparison import IncomparableError, compare_manifests
from semdedup_assets.execution.stage import Picture
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_table

TEXTS = Path(__file__).parents[2] / "examples" / "docstrings"
STRATEGIES = {"hard": {"keep": "hard"}, "easy": {"keep": "easy"}}
KS = ["3", "6"]
TARGETS = ["0.3", "keep=50%"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    """Real docstrings, deduplicated with two k and two strategies."""
    folder = tmp_path_factory.mktemp("texts")
    lines = pl.read_ndjson(TEXTS / "shards" / "00000.jsonl.gz").head(400)
    (folder / "source").mkdir()
    for shard in range(2):
        lines.slice(shard * 200, 200).write_ndjson(folder / "source" / f"{shard}.jsonl")
    runs = StageRuns(
        vectors_settings(
            folder,
            source={"kind": "jsonl", "path": str(folder / "source"), "key": "url", "text": "text"},
            encoder={"kind": "sentence_transformers", "model": str(TEXTS / "encoder")},
            clustering={"k": KS, "buckets": 1, "iterations": 5},
            epsilons=TARGETS,
            selections=STRATEGIES,
            manifests=["parquet", "removed"],
        )
    )
    runs.run()
    return runs


def manifests(runs: StageRuns, key: str, selection: str | None = None) -> str:
    """The folder of all versions of a manifest."""
    return str(runs.manifest(key, selection)[0].parent)


def statuses(folder: Path) -> dict[str, tuple[str, Any, Any]]:
    """What becomes of each key, the kept key and the similarity, read file by file."""
    found: dict[str, tuple[str, Any, Any]] = {}
    for path in sorted(folder.glob("parquet/*.parquet")):
        found |= dict.fromkeys(pl.read_parquet(path)["key"], ("kept", None, None))
    for path in sorted(folder.glob("removed/*.parquet")):
        for row in pl.read_parquet(path).iter_rows(named=True):
            found[row["key"]] = ("removed", row["kept_key"], row["similarity"])
    return found


def test_intersections_and_changes_are_those_of_the_sets_of_keys(texts: StageRuns, tmp_path: Path) -> None:
    """Between two k and two strategies, at an epsilon and at equal size."""
    for target in TARGETS:
        names = {f"{name}, k = {k}": (f"{target}|{k}", name) for k in KS for name in STRATEGIES}
        folders = {name: manifests(texts, *at) for name, at in names.items()}
        found = {name: statuses(texts.manifest(*at)[0]) for name, at in names.items()}
        kept = {name: {key for key, row in rows.items() if row[0] == "kept"} for name, rows in found.items()}
        record = write_comparison(str(tmp_path / target / "comparison"), folders, budget=1 << 20)
        assert record.details["intersections"] == [[len(kept[a] & kept[b]) / len(kept[a]) for b in kept] for a in kept]
        overlaps = pl.read_parquet(record.file(OVERLAPS).path)
        for row, (a, b) in zip(overlaps.iter_rows(named=True), combinations(kept, 2), strict=True):
            assert (row["first"], row["second"]) == (a, b)
            assert row["both"] == len(kept[a] & kept[b])
            assert row["only_first"] == len(kept[a] - kept[b])
            assert row["only_second"] == len(kept[b] - kept[a])
            assert row["neither"] == 400 - len(kept[a] | kept[b])
            assert row["jaccard"] == len(kept[a] & kept[b]) / len(kept[a] | kept[b])
        changed = pl.read_parquet(record.file(CHANGED).path)
        expected = {
            (a, b, key): found[b if key in kept[a] else a][key]
            for a, b in combinations(kept, 2)
            for key in kept[a] ^ kept[b]
        }
        rows = {(row["first"], row["second"], row["key"]): row for row in changed.iter_rows(named=True)}
        assert rows.keys() == expected.keys()
        assert len(rows) > 50
        for key, row in rows.items():
            assert ("removed", row["kept_key"], row["similarity"]) == expected[key]
            assert row["reason"] == "removed"
        shown = shown_comparison(record)
        assert isinstance(shown["intersections"], Picture)
        settings = [row[side] for row in record.details["settings_that_differ"] for side in ("in first", "in second")]
        assert not any("{" in value or "None" in value for value in settings)


def test_the_library_compares_two_folders_in_a_line(texts: StageRuns) -> None:
    first, second = manifests(texts, "keep=50%|3", "hard"), manifests(texts, "keep=50%|6", "hard")
    found = semdedup_assets.compare_manifests(first, second)
    assert found.by == "id"
    assert found.differences == {"k": ("3", "6"), "epsilon": found.differences["epsilon"]}
    assert found.intersection == pytest.approx(found.overlap.jaccard * 2 / (1 + found.overlap.jaccard), abs=0.02)
    by_key = compare_manifests(first, second, by="key", budget=20_000)
    assert by_key.counts == found.counts
    assert by_key.reasons == found.reasons
    same = compare_manifests(first, first)
    assert (same.intersection, same.reasons, same.examples, same.differences) == (1.0, {}, [], {})


def parts(folder: Path, name: str, seed: int, rows: int = 40) -> None:
    write_table(folder, name, near_duplicates(seed)[:rows])


@pytest.fixture
def dated(tmp_path: Path) -> StageRuns:
    """A source of two files, of which manifests are made at several dates."""
    for name, seed in (("a", 0), ("b", 1)):
        parts(tmp_path, name, seed)
    runs = StageRuns(vectors_settings(tmp_path)).changed(
        source={"key": "name"}, epsilons=["0.1"], clustering={"k": ["1"]}, training_sample={"size": 10}
    )
    runs.run()
    return runs


def test_two_dates_of_one_manifest_are_compared_by_id_as_long_as_items_stay_where_they_are(
    dated: StageRuns, tmp_path: Path
) -> None:
    earlier, _ = dated.manifest("0.1|1")
    parts(tmp_path, "c", 0)
    dated.run()
    later, _ = dated.manifest("0.1|1")
    assert later.parent == earlier.parent
    found = compare_manifests(str(earlier), str(earlier.parent))
    assert found.by == "id"
    assert found.second.folder == str(later)
    before, after = statuses(earlier), statuses(later)
    expected = Counter((before.get(key, ("absent",))[0], after.get(key, ("absent",))[0]) for key in {*before, *after})
    assert found.counts == expected
    # Exact copies of the first file came: of each pair one is kept, so that what only one keeps is new or gone for it.
    assert set(found.reasons) <= {"removed", "absent"}
    assert sum(count for (first, _), count in found.counts.items() if first == "absent") == 40
    for row in found.examples:
        assert (row["first"] == "kept") != (row["second"] == "kept")
        assert row["reason"] == "removed" or row["first"] == "absent"


def test_rows_that_moved_are_compared_by_key_and_repeated_keys_then_refused(dated: StageRuns, tmp_path: Path) -> None:
    earlier, _ = dated.manifest("0.1|1")
    table = pl.read_parquet(tmp_path / "source" / "a.parquet")
    table.slice(1).write_parquet(tmp_path / "source" / "a.parquet")
    dated.run()
    later, _ = dated.manifest("0.1|1")
    found = compare_manifests(str(earlier), str(later))
    assert found.by == "key"
    before, after = statuses(earlier), statuses(later)
    assert set(before) - set(after) == {"a-0"}
    assert found.overlap.both == sum(
        after.get(key, ("",))[0] == "kept" for key, row in before.items() if row[0] == "kept"
    )
    repeated = table.slice(2).with_columns(name=pl.when(pl.col("name") == "a-3").then(pl.lit("a-2")).otherwise("name"))
    repeated.write_parquet(tmp_path / "source" / "a.parquet")
    dated.run()
    with pytest.raises(IncomparableError, match=r"rows have moved .* 1 of them repeat \('a-2'\); give the source"):
        compare_manifests(str(earlier), str(earlier.parent))


def test_repeated_keys_are_no_obstacle_in_one_state_of_a_dataset_and_skipped_items_are_named(tmp_path: Path) -> None:
    vectors: list[Any] = list(near_duplicates(0))
    vectors[3] = None
    write_table(tmp_path, "a", vectors, {"label": ["same"] * len(vectors)})
    runs = StageRuns(vectors_settings(tmp_path)).changed(
        source={"key": "label"}, epsilons=["0.01", "0.3"], clustering={"k": ["1"]}, max_skipped=1
    )
    runs.run()
    found = compare_manifests(manifests(runs, "0.01|1"), manifests(runs, "0.3|1"))
    assert found.by == "id"
    masks = {epsilon: set(runs.masks(f"{epsilon}|1").filter("kept")["id"]) for epsilon in ("0.01", "0.3")}
    assert found.overlap.only_first == len(masks["0.01"] - masks["0.3"]) == found.reasons["removed"]
    assert found.overlap.only_second == 0
    filled = [vectors[0] if row is None else row for row in vectors]
    shutil.copytree(tmp_path / "store", tmp_path / "other store")
    write_table(tmp_path, "a", filled, {"label": ["same"] * len(filled)})
    other = runs.changed(store=str(tmp_path / "other store"))
    other.run()
    mended = compare_manifests(manifests(runs, "0.01|1"), manifests(other, "0.01|1"))
    assert mended.by == "id"
    assert sum(count for (first, _), count in mended.counts.items() if first == "absent") == 1


def test_models_that_skip_other_items_of_the_same_files_say_so(texts: StageRuns, tmp_path: Path) -> None:
    """The same state of a dataset: what one manifest lacks was skipped, and in another dataset it is absent."""
    folder, _ = texts.manifest("0.3|3", "hard")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = sorted((copy / "parquet").iterdir())[0]
    kept = pl.read_parquet(path)
    kept.slice(1).write_parquet(path)
    found = compare_manifests(str(folder), str(copy))
    assert found.reasons == {"skipped": 1}
    assert found.examples[0]["key"] == kept["key"][0]
    details = json.loads((copy / "manifest.json").read_text())
    details["made_with"]["dataset"] = "another"
    (copy / "manifest.json").write_text(json.dumps(details))
    other = compare_manifests(str(folder), str(copy))
    assert (other.by, other.reasons) == ("key", {"absent": 1})
    with pytest.raises(IncomparableError, match="two datasets, or rows have moved; compare them by `key`"):
        compare_manifests(str(folder), str(copy), by="id")


def test_what_is_no_manifest_or_lists_no_removed_items_is_refused(texts: StageRuns, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json in it, nor current\.json in .*nowhere"):
        read_manifest(str(tmp_path / "nowhere"))
    folder, _ = texts.manifest("0.3|3", "hard")
    copy = tmp_path / "older"
    shutil.copytree(folder, copy)
    details = json.loads((copy / "manifest.json").read_text())
    del details["rows_written"]["removed"]
    (copy / "manifest.json").write_text(json.dumps(details))
    with pytest.raises(IncomparableError, match="does not hold the format removed; add it to `manifests`"):
        compare_manifests(str(folder), str(copy))


def test_a_comparison_knows_which_manifests_were_made_again(dated: StageRuns, tmp_path: Path) -> None:
    where, named = (
        str(tmp_path / "compared"),
        {"now": manifests(dated, "0.1|1"), "fixed": str(dated.manifest("0.1|1")[0])},
    )
    assert changed_since(where, named) is None
    compared = write_comparison(where, named, budget=1 << 20)
    assert compared.details["intersections"] == [[1.0, 1.0], [1.0, 1.0]]
    assert pl.read_parquet(compared.file(CHANGED).path).is_empty()
    assert changed_since(where, named) == {}
    parts(tmp_path, "c", 5)
    dated.run()
    assert changed_since(where, named) == {"now": (compared.inputs["now"], dated.manifest("0.1|1")[0].name)}
    assert write_comparison(where, named, budget=1 << 20).version != compared.version


# In memory


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_masks_are_compared_as_sets_are(rows: list[tuple[bool, bool]]) -> None:
    first, second = (np.array([row[index] for row in rows], dtype=bool) for index in range(2))
    a, b = set(np.flatnonzero(first).tolist()), set(np.flatnonzero(second).tolist())
    found = compare_masks(first, second)
    assert set(found.only_first.tolist()) == a - b
    assert set(found.only_second.tolist()) == b - a
    overlap = found.overlap
    assert (overlap.both, overlap.neither) == (len(a & b), len(rows) - len(a | b))
    assert overlap.intersection == (len(a & b) / len(a) if a else 1)
    assert overlap.reverse_intersection == (len(a & b) / len(b) if b else 1)
    assert overlap.jaccard == (len(a & b) / len(a | b) if a | b else 1)
    assert compare_masks(first, first).overlap.intersection == 1


def test_deduplications_are_compared_at_one_epsilon_or_at_equal_size() -> None:
    vectors = np.concatenate([near_duplicates(seed) for seed in range(5)])
    few, many = semdedup(vectors, k=2), semdedup(vectors, k=20)
    at_epsilon = few.compare(many, epsilon=0.1)
    masks = few.keep_mask(0.1), many.keep_mask(0.1)
    assert at_epsilon.only_second.tolist() == [row for row in range(300) if masks[1][row] and not masks[0][row]]
    equal = few.compare(many, keep=0.4).overlap
    assert equal.first == equal.second == 120
    assert 0 < equal.intersection < 1
    assert equal.intersection == equal.reverse_intersection
    with pytest.raises(ValueError, match="300 and 60 rows: only masks of the same rows"):
        few.compare(semdedup(vectors[:60], k=2), epsilon=0.1)
    for wrong in ({}, {"epsilon": 0.1, "keep": 0.5}):
        with pytest.raises(ValueError, match="give either epsilon or keep"):
            few.compare(many, **wrong)
