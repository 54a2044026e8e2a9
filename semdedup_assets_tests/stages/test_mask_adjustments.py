"""Masks that references and captions change, against what scores, matches and captions say."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from semdedup_assets.checks.keep_masks import (
    every_cluster_keeps_one,
    every_item_masked_once,
    masks_are_monotone,
    references_are_removed,
)
from semdedup_assets.checks.references import no_leaks
from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets_tests import oracle
from semdedup_assets_tests.analyses.test_caption_disagreement import (
    caption_similarities,
    captioned_settings,
    removed_pairs,
    write_captioned,
)
from semdedup_assets_tests.stage_runs import METHOD, StageRuns
from semdedup_assets_tests.stages.test_references import matches, training
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_table

STAGES = StageGraph((*METHOD.stages, GRAPH["reference_leaks"]))
EPSILONS = ["0.01", "0.1", "keep=40%"]


def removing(folder: Path, rule: str, **changes: Any) -> StageRuns:
    """Training items of which some lie near the reference `old`, which removes them; `test` does not."""
    for seed in range(3):
        rows = near_duplicates(seed, groups=15, copies=6)
        write_table(folder, f"{seed}", rows, {"precious": np.arange(len(rows)) % 5 == 0})
    for name, seed in (("old", 0), ("test", 1)):
        (folder / name).mkdir()
        np.save(folder / name / "0.npy", near_duplicates(seed, groups=15, copies=2))
    references = {
        name: {"source": {"kind": "vectors", "path": str(folder / name)}, "epsilon": 0.15, "remove": name == "old"}
        for name in ("old", "test")
    }
    source = {"kind": "vectors", "path": str(folder / "source"), "columns": {"precious": "bool"}}
    settings = vectors_settings(folder, source=source, references=references, epsilons=EPSILONS)
    return StageRuns(settings, STAGES).changed(clustering={"k": [6]}, selection={"rule": rule}, **changes)


def removed_by_old(runs: StageRuns) -> set[int]:
    return set(matches(runs, "6").filter(pl.col("reference") == "old")["id"])


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    runs = removing(tmp_path_factory.mktemp("chain"), "chain")
    runs.run()
    return runs


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_what_lies_near_a_removing_reference_is_removed_at_every_epsilon(chain: StageRuns, epsilon: str) -> None:
    key = f"{epsilon}|6"
    masks, record, gone = chain.masks(key), chain.record("keep_masks", key), removed_by_old(chain)
    scores = chain.scores("6")
    assert masks["id"].equals(scores["id"])
    leaked = masks["id"].is_in(list(gone))
    kept = (scores["similarity"].cast(pl.Float64) <= 1 - record.details["epsilon"]) & ~leaked
    assert masks["kept"].equals(kept.alias("kept"))
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_array_equal(masks["removed_by"].fill_null(""), np.where(leaked, "old", ""))
    assert masks.filter(leaked | kept)["kept_neighbour"].is_null().all()
    # Each other removed item has its nearest kept one, where its cluster keeps any.
    ids, vectors = training(chain)
    orphans = 0
    for (_,), own in masks.with_columns(scores["cluster"]).group_by("cluster"):
        rows = vectors[np.searchsorted(ids, own["id"].to_numpy())]
        removed = (~own["kept"] & own["removed_by"].is_null()).to_numpy()
        if own["kept"].any():
            nearest = oracle.nearest_kept(rows, own["kept"].to_numpy())[removed]
            np.testing.assert_allclose(own["kept_similarity"].to_numpy()[removed], nearest, atol=2e-6)
            orphans += int((nearest <= 1 - record.details["epsilon"]).sum())
        else:
            assert own["kept_neighbour"].is_null().all()
            orphans += int(removed.sum())
    details = record.details
    assert details["removed_by_reference"] == len(gone)
    assert details["orphans"] == orphans
    assert details["removed"] == len(masks) - kept.sum()


def test_a_wanted_share_counts_what_references_remove(chain: StageRuns) -> None:
    masks = chain.masks("keep=40%|6")
    # No two scores tie here, and enough is left.
    assert masks["kept"].sum() == np.ceil(0.4 * len(masks))


def test_checks_hold_and_manifests_are_made(chain: StageRuns) -> None:
    context = chain.context()
    for check in (masks_are_monotone, every_cluster_keeps_one, every_item_masked_once, references_are_removed):
        assert not check(context).problems
    assert references_are_removed(context).measured["removed_by_reference"] == 3 * len(removed_by_old(chain))
    assert [problem.partition for problem in no_leaks(context).problems] == ["6, test"]
    _, manifest = chain.manifest("0.1|6")
    assert manifest["kept"] == chain.masks("0.1|6")["kept"].sum()


def test_masks_of_other_matches_are_not_compared(tmp_path: Path) -> None:
    runs = removing(tmp_path, "chain", epsilons=["0.01", "0.1"])
    runs.run()
    wider = runs.changed(references={"old": {**runs.settings["references"]["old"], "epsilon": 0.6}})
    wider.run(until="reference_matches")
    wider.make("keep_masks", "0.01|6")
    assert wider.stale("keep_masks") == ["0.1|6"]
    assert wider.masks("0.01|6")["kept"].sum() < wider.masks("0.1|6")["kept"].sum()
    assert not masks_are_monotone(wider.context()).problems


def test_under_the_greedy_rule_they_suppress_nothing(tmp_path: Path) -> None:
    runs = removing(tmp_path, "greedy", epsilons=["0.1"])
    runs.run()
    masks, gone = runs.masks("0.1|6").with_columns(runs.scores("6")["cluster"]), removed_by_old(runs)
    ids, vectors = training(runs)
    revived = 0
    for (_,), own in masks.group_by("cluster", maintain_order=True):
        rest = own.filter(~pl.col("id").is_in(list(gone)))
        rows = vectors[np.searchsorted(ids, rest["id"].to_numpy())]
        np.testing.assert_array_equal(rest["kept"], oracle.greedy_keep(rows, 0.1) if len(rest) else [])
        revived += int(rest["kept"].sum())
    assert revived == masks["kept"].sum() > 0


def test_protection_wins_and_the_check_counts_what_stays(tmp_path: Path) -> None:
    runs = removing(tmp_path, "chain").changed(selection={"protect": "precious"})
    runs.run()
    items = pl.concat(
        [pl.read_parquet(runs.record("items", f"s00000{n}").file("items.parquet").path) for n in range(3)]
    )
    precious, gone = set(items.filter(pl.col("precious"))["id"]), removed_by_old(runs)
    stay = gone & precious
    assert stay
    assert gone - precious
    for epsilon in EPSILONS:
        masks = runs.masks(f"{epsilon}|6")
        assert precious <= set(masks.filter(pl.col("kept"))["id"])
        assert set(masks.filter(pl.col("removed_by") == "old")["id"]) == gone - precious
        assert not gone - precious & set(masks.filter(pl.col("kept"))["id"])
    found = references_are_removed(runs.context())
    assert [problem.measured.split()[0] for problem in found.problems] == [str(len(stay))] * len(EPSILONS)
    assert runs.masks("keep=40%|6")["kept"].sum() == np.ceil(0.4 * len(items))


def test_protected_items_stay_under_the_greedy_rule_too(tmp_path: Path) -> None:
    runs = removing(tmp_path, "greedy", epsilons=["0.1"]).changed(selection={"protect": "precious"})
    runs.run()
    scores, gone = runs.scores("6"), removed_by_old(runs)
    masks = runs.masks("0.1|6").with_columns(scores["cluster"], scores["protected_similarity"].is_not_null())
    ids, vectors = training(runs)
    for (_,), own in masks.group_by("cluster", maintain_order=True):
        rest = own.filter(pl.col("protected_similarity") | ~pl.col("id").is_in(list(gone)))
        rows, protected = vectors[np.searchsorted(ids, rest["id"].to_numpy())], rest["protected_similarity"].to_numpy()
        np.testing.assert_array_equal(rest["kept"], oracle.greedy_keep(rows, 0.1, protected) if len(rest) else [])
    assert 0 < masks["protected_similarity"].sum() < masks["kept"].sum()


def test_masks_know_nothing_of_references_that_remove_nothing(chain: StageRuns) -> None:
    plain = {**chain.settings, "references": {}}
    kept = {name: {**each, "remove": False} for name, each in chain.settings["references"].items()}
    versions = [
        StageRuns({**chain.settings, "references": references}, STAGES).context().code_version("keep_masks")
        for references in (plain["references"], kept, chain.settings["references"])
    ]
    assert versions[0] == versions[1] != versions[2]
    assert (
        chain.changed(references={"test": {**kept["test"], "epsilon": 0.3}}).context().code_version("keep_masks")
        == versions[2]
    )


@pytest.fixture(scope="module")
def spared(tmp_path_factory: pytest.TempPathFactory) -> tuple[StageRuns, dict[str, str]]:
    folder = tmp_path_factory.mktemp("spared")
    captions = write_captioned(folder / "source")
    settings = captioned_settings(folder)
    settings["selections"] = {"plain": {}, "captioned": {"spare_captions_below": 0.5}}
    runs = StageRuns(settings, StageGraph(METHOD.stages))
    runs.observe()
    runs.run(until="items")
    runs.make("caption_embeddings")
    runs.run()
    return runs, captions


@pytest.mark.parametrize("key", ["0.02|4", "0.2|4"])
def test_items_with_a_caption_of_their_own_stay(spared: tuple[StageRuns, dict[str, str]], key: str) -> None:
    runs, captions = spared
    similarity = caption_similarities(captions)
    pairs = removed_pairs(runs, key)
    expected, unknown = set(), 0
    for row in pairs.iter_rows(named=True):
        found = similarity.get((row["key"], row["kept_key"]))
        unknown += found is None
        # Vectors are stored in float16.
        assert found is None or abs(found - 0.5) > 2e-3
        if found is not None and found < 0.5:
            expected.add(row["id"])
    plain, captioned = runs.masks(key, "plain"), runs.masks(key, "captioned")
    assert set(captioned.filter(pl.col("kept"))["id"]) == set(plain.filter(pl.col("kept"))["id"]) | expected
    rest = captioned.filter(~pl.col("kept"))
    assert rest.equals(plain.filter(~pl.col("kept") & ~pl.col("id").is_in(list(expected))))
    details = runs.record("keep_masks", key, "captioned").details
    assert (details["spared"], details["removed_without_caption"]) == (len(expected), unknown)
    assert unknown > 0
    if key.startswith("0.2"):
        assert len(expected) > 3


def test_selections_that_spare_share_scores_but_no_masks(spared: tuple[StageRuns, dict[str, str]]) -> None:
    runs, _ = spared
    plain, captioned = (runs.pipeline.named_selections[name] for name in ("plain", "captioned"))
    assert plain.keep_order == captioned.keep_order
    assert plain.path != captioned.path
    assert "captions below 0.5 spared" in captioned.label
    (alone,) = {
        stage.name for stage in GRAPH.stages if "caption_embeddings" in stage.optional_inputs(runs.pipeline, captioned)
    }
    assert alone == "keep_masks"
    assert not GRAPH["keep_masks"].optional_inputs(runs.pipeline, plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilons": ["keep=50%"]}, r"selection.spare_captions_below: it cannot be solved for keep=50%"),
        (
            {"encoder": {"kind": "timm", "model": "resnet18"}},
            r"selection.spare_captions_below: encoder.kind 'timm' has no text tower",
        ),
        (
            {"source": {"kind": "webdataset", "path": "a.tar", "columns": {"caption": "int"}}},
            r"selection.spare_captions_below: source.columns: caption is carried as int, not as a string",
        ),
    ],
)
def test_captions_that_cannot_be_compared_are_rejected(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    settings = captioned_settings(tmp_path) | {"selection": {"spare_captions_below": 0.5}}
    Pipeline.model_validate(settings)
    with pytest.raises(ValidationError, match=message):
        Pipeline.model_validate(settings | change)
