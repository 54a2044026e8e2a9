"""Baselines on the demos' texts and pictures, against comparing everything."""

import io
import json
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from semdedup_assets.assets.comparison import find_manifest
from semdedup_assets.comparison_settings import ComparedManifest
from semdedup_assets.settings import Pipeline
from semdedup_assets.storage.results import MissingResultError
from semdedup_assets_tests.baselines.baseline_runs import (
    docstrings,
    edited,
    emoji_runs,
    groups,
    items,
    manifest_ids,
    masks,
    text_runs,
)
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.toy_source import vectors_settings


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    runs = text_runs(tmp_path_factory.mktemp("texts"), edited(docstrings(240), 0))
    for stage in (
        "exact_masks",
        "exact_manifests",
        "text_signatures",
        "near_duplicate_masks",
        "near_duplicate_manifests",
    ):
        runs.make(stage)
    return runs


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    runs = emoji_runs(tmp_path_factory.mktemp("pictures"))
    for stage in ("exact_masks", "perceptual_hashes", "perceptual_masks", "perceptual_manifests"):
        runs.make(stage)
    return runs


def first_by(contents: dict[int, Hashable]) -> dict[int, int]:
    first: dict[Hashable, int] = {}
    return {item: first.setdefault(content, item) for item, content in contents.items()}


@pytest.mark.parametrize("kind", ["texts", "pictures"])
def test_the_first_of_byte_equal_items_is_kept(kind: str, request: pytest.FixtureRequest) -> None:
    runs: StageRuns = request.getfixturevalue(kind)
    expected = first_by(dict(items(runs)))
    assert groups(masks(runs, "exact_masks")) == expected
    assert len(set(expected.values())) < len(expected)
    # In parts, where the budget is small.
    assert 64 * len(expected) < 1 << 24
    record = runs.record("exact_masks")
    assert record.details["made_with"] == {"baseline": "exact"}


def test_a_small_budget_compares_in_parts_with_the_same_result(
    texts: StageRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = runs_version(texts, "exact_masks")
    monkeypatch.setattr("semdedup_assets.baselines.exact_masks._ITEM_BYTES", 1 << 20)
    texts.changed(compute={"memory_mib": 16}).make("exact_masks")
    assert runs_version(texts, "exact_masks") == before


def runs_version(runs: StageRuns, stage: str) -> str:
    return runs.record(stage).version


def components(contents: list[int], near: Callable[[int, int], bool]) -> dict[int, int]:
    """The first item that chains of near pairs lead to, of all pairs."""
    found = {item: item for item in contents}
    for index, item in enumerate(contents):
        for other in contents[index + 1 :]:
            if near(item, other):
                low, high = sorted((found[item], found[other]))
                found = {each: low if root == high else root for each, root in found.items()}
    return found


def word_ngrams(text: str) -> set[tuple[str, ...]]:
    """Of texts of letters, digits and punctuation, such as these."""
    words = "".join(letter if letter.isalnum() or letter == "_" else " " for letter in text.casefold()).split()
    return {tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))}


def test_near_duplicate_texts_are_those_of_high_jaccard_similarity(texts: StageRuns) -> None:
    """Exact Jaccard similarity of all pairs; MinHash may err only near the threshold."""
    ngrams = {item: word_ngrams(str(text)) for item, text in items(texts).items()}
    ids = list(ngrams)

    def jaccard(item: int, other: int) -> float:
        return len(ngrams[item] & ngrams[other]) / len(ngrams[item] | ngrams[other])

    found = groups(masks(texts, "near_duplicate_masks"))
    surely, possibly = (components(ids, lambda a, b, at=at: jaccard(a, b) >= at) for at in (0.9, 0.7))
    for item, first in surely.items():
        assert found[item] == found[first]
    for item, first in found.items():
        assert possibly[item] == possibly[first]
    exactly = components(ids, lambda a, b: jaccard(a, b) >= 0.8)
    assert sum(found[item] == first for item, first in exactly.items()) > 0.97 * len(ids)
    removed = sum(item != first for item, first in found.items())
    assert removed > sum(item != first for item, first in first_by(dict(items(texts))).items())


def test_datasketch_finds_nearly_the_same_near_duplicates(texts: StageRuns) -> None:
    from datasketch import MinHash, MinHashLSH

    lsh, signatures = MinHashLSH(params=(64, 4), num_perm=256), {}
    for item, text in items(texts).items():
        signatures[item] = MinHash(num_perm=256, seed=7)
        signatures[item].update_batch([" ".join(words).encode() for words in word_ngrams(str(text))])
        lsh.insert(item, signatures[item])
    pairs = {
        (item, other)
        for item, signature in signatures.items()
        for other in lsh.query(signature)
        if item < other and signature.jaccard(signatures[other]) >= 0.8
    }
    expected = components(list(signatures), lambda a, b: (a, b) in pairs)
    found = groups(masks(texts, "near_duplicate_masks"))
    assert sum(found[item] == first for item, first in expected.items()) > 0.97 * len(found)


def test_images_of_near_perceptual_hashes_are_grouped(pictures: StageRuns) -> None:
    """All pairs of the hashes as `imagehash` itself compares them."""
    import imagehash

    hashes = {}
    for item, content in items(pictures).items():
        image = Image.open(io.BytesIO(bytes(content))).convert("RGBA")  # type: ignore[arg-type]  # images are bytes
        white = Image.new("RGBA", image.size, "white")
        hashes[item] = imagehash.phash(Image.alpha_composite(white, image).convert("RGB"))
    distance = pictures.pipeline.analyses.fingerprints.hamming
    found = groups(masks(pictures, "perceptual_masks"))
    expected = components(list(hashes), lambda a, b: hashes[a] - hashes[b] <= distance)
    # Few pictures would not be seen on white, and are decoded on black.
    agreeing = sum(found[item] == first for item, first in expected.items())
    assert agreeing > 0.95 * len(found)
    assert len(set(found.values())) < 0.98 * len(found)


def test_each_baseline_writes_a_manifest_of_what_it_keeps(texts: StageRuns, pictures: StageRuns) -> None:
    for runs, name in ((texts, "exact"), (texts, "near_duplicate"), (pictures, "perceptual")):
        kept = set(masks(runs, f"{name}_masks").filter("kept")["id"])
        assert manifest_ids(runs, f"{name}_manifests") == kept


def test_a_baseline_is_for_what_it_can_compare(texts: StageRuns, pictures: StageRuns) -> None:
    assert having(texts) & {"text_signatures", "near_duplicate_masks", "perceptual_masks", "exact_masks"} == {
        "text_signatures",
        "near_duplicate_masks",
        "exact_masks",
    }
    assert having(pictures) & {"perceptual_hashes", "near_duplicate_masks"} == {"perceptual_hashes"}


def test_other_settings_make_only_what_depends_on_them_stale(texts: StageRuns) -> None:
    looser = texts.changed(analyses={"fingerprints": {"jaccard": 0.5}})
    assert looser.stale("text_signatures") == []
    assert looser.stale("near_duplicate_masks") == [""]
    assert texts.changed(analyses={"fingerprints": {"seed": 1}}).stale("text_signatures") != []
    assert texts.changed(compute={"memory_mib": 16}).stale("near_duplicate_masks") == []


def test_a_looser_threshold_joins_groups_and_splits_none(texts: StageRuns) -> None:
    found = groups(masks(texts, "near_duplicate_masks"))
    looser = texts.changed(analyses={"fingerprints": {"jaccard": 0.5}})
    looser.make("near_duplicate_masks")
    joined = groups(masks(looser, "near_duplicate_masks"))
    texts.make("near_duplicate_masks")
    assert all(joined[item] == joined[first] for item, first in found.items())
    assert len(set(joined.values())) < len(set(found.values()))


@pytest.mark.parametrize("same", ["items", "words", "bytes"])
def test_random_pruning_keeps_as_much_as_the_kept_set(texts: StageRuns, same: str) -> None:
    runs = texts.changed(analyses={"random_pruning": {"same": same, "seeds": [3]}})
    runs.make("random_masks")
    contents = items(runs)
    measure: Callable[[object], int] = {
        "items": lambda _: 1,
        "words": lambda text: len(str(text).split()),
        "bytes": lambda text: len(str(text).encode()),
    }[same]
    sizes = {item: measure(text) for item, text in contents.items()}
    wanted = sum(sizes[item] for item in runs.masks("0.1|2").filter("kept")["id"])
    table = masks(runs, "random_masks", "0.1|2")
    found = sum(sizes[item] for item in table.filter("kept")["id"])
    assert abs(found - wanted) <= max(sizes.values()) / 2
    assert table["kept_neighbour"].null_count() == len(table)
    details = runs.record("random_masks", "0.1|2").details
    assert (details["size"], details["wanted_size"]) == (found, wanted)
    other = runs.changed(analyses={"random_pruning": {"same": same, "seeds": [4]}})
    assert other.stale("random_masks") == ["0.1|2"]
    other.make("random_masks")
    assert masks(other, "random_masks", "0.1|2")["kept"].to_list() != table["kept"].to_list()
    other.make("random_manifests")
    assert manifest_ids(other, "random_manifests", "0.1|2") == set(
        masks(other, "random_masks", "0.1|2").filter("kept")["id"]
    )


def having(runs: StageRuns) -> set[str]:
    selection = runs.context().selection
    return {each.name for each in runs.graph.stages if each.applies(runs.pipeline, selection)}


def test_everything_is_every_item_that_has_a_vector(texts: StageRuns, pictures: StageRuns) -> None:
    for runs in (texts, pictures):
        runs.make("everything_masks")
        runs.make("everything_manifests")
        with_vector = set(items(runs))
        assert masks(runs, "everything_masks")["kept"].all()
        assert manifest_ids(runs, "everything_manifests") == with_vector
        details = runs.record("everything_manifests").details
        assert (details["removed"], details["kept"]) == (0, len(with_vector))
        assert details["made_with"]["baseline"] == "everything"
    assert texts.changed(epsilons=["0.3"]).stale("everything_masks") == []


@pytest.mark.parametrize("kind", ["texts", "pictures"])
def test_sized_random_keeps_as_many_words_or_bytes(kind: str, request: pytest.FixtureRequest) -> None:
    runs: StageRuns = request.getfixturevalue(kind)
    runs.make("sized_random_masks")
    runs.make("sized_random_manifests")
    contents = items(runs)
    sizes = {item: len(each.split()) if isinstance(each, str) else len(each) for item, each in contents.items()}
    wanted = sum(sizes[item] for item in runs.masks("0.1|2").filter("kept")["id"])
    kept = set(masks(runs, "sized_random_masks", "0.1|2").filter("kept")["id"])
    assert abs(sum(sizes[item] for item in kept) - wanted) <= max(sizes.values()) / 2
    assert manifest_ids(runs, "sized_random_manifests", "0.1|2") == kept
    made_with = runs.record("sized_random_masks", "0.1|2").details["made_with"]
    assert made_with["baseline"] == "sized_random"
    assert made_with["same"] == {"texts": "words", "pictures": "bytes"}[kind]


def test_a_comparison_finds_the_manifests_of_every_baseline_by_name(texts: StageRuns) -> None:
    for name, partition in (("everything", ""), ("sized_random", "0.1|2")):
        texts.make(f"{name}_masks")
        record = texts.make(f"{name}_manifests")[0]
        found = find_manifest(ComparedManifest(dataset="toy", baseline=name), [texts.pipeline])
        location = found.builder.context(found.asset).location(found.asset.stage.name, found.partition)
        assert (location, str(found.partition)) == (record.location, partition)
        assert found.parts["baseline"] == name


def test_sized_random_is_there_where_random_goes_by_items(texts: StageRuns, tmp_path: Path) -> None:
    sized = {"sized_random_masks", "sized_random_manifests"}
    assert sized <= having(texts)
    assert not sized & having(texts.changed(analyses={"random_pruning": {"same": "words"}}))
    assert not sized & having(StageRuns(vectors_settings(tmp_path), texts.graph))


def test_what_has_no_words_is_not_pruned_by_words(tmp_path: Path) -> None:
    settings = {
        "dataset": "d", "source": {"kind": "vectors", "path": str(tmp_path)}, "encoder": {"kind": "precomputed"}
    }  # fmt: skip
    for same in ("words", "bytes"):
        with pytest.raises(ValueError, match=rf"random_pruning\.same: a source of vectors has no {same}; use `items`"):
            Pipeline.model_validate({**settings, "analyses": {"random_pruning": {"same": same}}})


def test_a_dataset_without_an_item_has_empty_baselines(tmp_path: Path) -> None:
    runs = text_runs(tmp_path, [None, "", "only one"], shards=3, clustering={"k": [1], "buckets": 1})
    for stage in ("exact_masks", "text_signatures", "near_duplicate_masks", "random_masks", "near_duplicate_manifests"):
        runs.make(stage)
    for stage, key in (("exact_masks", ""), ("near_duplicate_masks", ""), ("random_masks", "0.1|1")):
        assert masks(runs, stage, key)["kept"].to_list() == [True]
    assert len(manifest_ids(runs, "near_duplicate_manifests")) == 1


def test_a_shard_without_signatures_of_its_files_is_named(tmp_path: Path) -> None:
    runs = text_runs(tmp_path, list(docstrings(30)), shards=2, clustering={"k": [1], "buckets": 1})
    with pytest.raises(MissingResultError, match="materialise toy/encoder/text_signatures"):
        runs.make("near_duplicate_masks")
    runs.make("text_signatures")
    path = tmp_path / "source" / "1.jsonl.gz"
    path.write_bytes((tmp_path / "source" / "0.jsonl.gz").read_bytes())
    runs.observe()
    runs.make("embeddings", "s000001")
    with pytest.raises(MissingResultError, match=r"s000001: made of other files than the shard's vectors"):
        runs.make("near_duplicate_masks")


def test_keys_and_shards_do_not_change_which_items_are_kept(tmp_path: Path) -> None:
    """The same texts in one shard or in four: ids differ, and the kept texts do not."""
    contents = edited(docstrings(60), 1)
    kept = []
    for shards in (1, 4):
        runs = text_runs(tmp_path / str(shards), contents, shards=shards, clustering={"k": [1], "buckets": 1})
        runs.make("text_signatures")
        runs.make("near_duplicate_masks")
        by_id = items(runs)
        kept.append([by_id[item] for item in masks(runs, "near_duplicate_masks").filter("kept")["id"]])
    assert kept[0] == kept[1]
    assert json.dumps(kept[0])
    assert np.unique([len(each) for each in kept]).size == 1
    assert isinstance(kept[0], list)
    assert pl.Series(kept[0]).n_unique() == len(kept[0])
