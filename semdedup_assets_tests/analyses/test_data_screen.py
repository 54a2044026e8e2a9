"""What kept items cover and teach: on real pictures and texts, against counts by hand."""

import gzip
import json
import math
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from semdedup_assets.analyses.data_screen import COVERAGE, NGRAM, training_can_gain
from semdedup_assets.analyses.screened_items import ScreenedItems
from semdedup_assets.analyses.screened_texts import TextSample
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Picture
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets_tests.algorithm.test_ngram_model import DictionaryModel
from semdedup_assets_tests.analyses.small_pipelines import read_table
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.test_examples_data import DOCSTRINGS, EMOJI
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard

EMOJI_TAR = EMOJI / "shards" / "00000.tar"


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    folder = tmp_path_factory.mktemp("emoji")
    columns = {"concept": "string", "base": "string", "has_skin_tone": "bool", "vendor": "string"}
    settings = {
        "dataset": "emoji",
        "model": "tiny",
        "store": str(folder / "store"),
        "source": {"kind": "webdataset", "path": str(EMOJI_TAR), "columns": columns},
        "encoder": {"kind": "openclip", "model": str(EMOJI / "encoder"), "precision": "float32"},
        "clustering": {"k": [4], "buckets": 1, "iterations": 5},
        "epsilons": ["0.1", "0.001", "keep=60%"],
        "compute": {"device": "cpu"},
        "analyses": {"data_screen": {"columns": ["base", "concept", "has_skin_tone"]}},
    }
    runs = StageRuns(settings, GRAPH)
    runs.run(until="keep_masks")
    return runs


def texts_settings(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    (folder / "source").mkdir()
    for part in range(3):
        (folder / "source" / f"{part}.jsonl").write_text("\n".join(json.dumps(row) for row in rows[part::3]))
    return {
        "dataset": "texts",
        "model": "static",
        "store": str(folder / "store"),
        "source": {"kind": "jsonl", "path": str(folder / "source"), "columns": {"package": "string", "name": "string"}},
        "encoder": {"kind": "sentence_transformers", "model": str(DOCSTRINGS / "encoder")},
        "clustering": {"k": [6], "buckets": 1, "iterations": 5},
        "epsilons": ["0.05", "0.0001"],
        "compute": {"device": "cpu"},
    }


def docstrings(shard: int) -> list[dict[str, Any]]:
    """Distinct docstrings of a shard of the demo."""
    with gzip.open(DOCSTRINGS / "shards" / f"{shard:05d}.jsonl.gz", "rt") as lines:
        rows = {row["text"]: row for row in map(json.loads, lines)}
    return list(rows.values())


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    """Docstrings of which a tenth occurs ten times more, with other white space and a remark."""
    rows = docstrings(0)[:900]
    copies = [
        {**row, "text": f"{row['text']}\n{' ' * number}See version {number}."}
        for row in rows[::10]
        for number in range(10)
    ]
    runs = StageRuns(texts_settings(tmp_path_factory.mktemp("planted"), rows + copies), GRAPH)
    runs.run(until="keep_masks")
    return runs


def screened(runs: StageRuns, key: str) -> tuple[ResultRecord, dict[str, dict[str, Any]]]:
    """The record of a screen, and its table by subject."""
    (record,) = runs.make("data_screen", key)
    return record, {row["subject"]: row for row in read_table(record, COVERAGE).to_dicts()}


def items_of(runs: StageRuns) -> pl.DataFrame:
    records = runs.context().index.require_all("items").values()
    return pl.concat([pl.read_parquet(each.file("items.parquet").path) for each in records])


def expected_values(counts: Counter[str], kept: int) -> float:
    """The mean number of values among random items, from whole numbers."""
    total = counts.total()
    return sum(1 - math.comb(total - n, kept) / math.comb(total, kept) for n in counts.values())


@pytest.mark.parametrize("key", ["0.1|4", "keep=60%|4"])
def test_coverage_of_emoji_is_that_of_their_tar(emoji: StageRuns, key: str) -> None:
    with tarfile.open(EMOJI_TAR) as tar:
        files = [member for member in tar if member.name.endswith(".json")]
        told = {file.name.removesuffix(".json"): json.load(tar.extractfile(file)) for file in files}  # type: ignore[arg-type]
    keys = dict(items_of(emoji).select("id", "key").iter_rows())
    masks = emoji.masks(key)
    kept = [keys[item] for item in masks.filter("kept")["id"]]
    pairs = masks.filter(~pl.col("kept")).select("id", "kept_neighbour").iter_rows()
    pairs = [(told[keys[one]], told[keys[other]]) for one, other in pairs]
    _, rows = screened(emoji, key)
    for column in ("base", "concept", "has_skin_tone"):
        row, counts = rows[column], Counter(each[column] for each in told.values())
        shown = {told[item][column] for item in kept}
        assert (row["items"], row["kept"]) == (len(told), len(kept))
        assert (row["values"], row["covered"]) == (len(counts), len(shown))
        assert row["covered_items"] == sum(counts[value] for value in shown)
        assert row["random"] == pytest.approx(expected_values(counts, len(kept)))
        assert row["pairs"] == len(pairs)
        assert row["same_value"] == pytest.approx(np.mean([one[column] == other[column] for one, other in pairs]))
    assert "vendor" not in rows


def test_clusters_and_groups_are_those_of_scores_and_masks(emoji: StageRuns) -> None:
    _, rows = screened(emoji, "0.1|4")
    masks, scores = emoji.masks("0.1|4"), emoji.scores("4")
    heads = Counter(row["id"] if row["kept"] else row["kept_neighbour"] for row in masks.to_dicts())
    kept = int(masks["kept"].sum())
    assert rows["groups"]["values"] == rows["groups"]["covered"] == len(heads) == kept
    assert rows["groups"]["random"] == pytest.approx(expected_values(heads, kept))
    assert rows["clusters"]["values"] == scores["cluster"].n_unique()
    assert rows["groups"]["same_value"] is None


def test_a_screen_of_pictures_is_seen_without_a_language_model(emoji: StageRuns) -> None:
    record, _ = screened(emoji, "0.1|4")
    assert set(record.files) == {COVERAGE, "coverage.png"}
    shown = GRAPH["data_screen"].shown(emoji.context(), Partition.parse("0.1|4", ("epsilon", "k")), record)
    assert list(shown) == ["verdict", "reasons", "values covered", "covered"]
    assert isinstance(shown["values covered"], Picture)
    assert shown["values covered"].png.startswith(b"\x89PNG")


def test_few_duplicates_promise_no_gain_and_a_check_warns(emoji: StageRuns) -> None:
    record, _ = screened(emoji, "0.001|4")
    assert record.details["verdict"] == "no gain to expect"
    assert record.details["reasons"][0].startswith("duplicates are few")
    result = training_can_gain(emoji.context())
    assert not result.certain
    (problem,) = [each for each in result.problems if each.partition == "0.001|4"]
    assert "duplicates are few" in problem.measured
    assert "train on everything" in problem.remedy


def test_planted_duplicates_leave_room_for_a_gain(planted: StageRuns) -> None:
    record, rows = screened(planted, "0.05|6")
    assert record.details["verdict"] == "room for a gain"
    bits = {each["validation"]: each for each in record.details["bits_per_byte"]}
    assert bits["novel"]["change"] < -0.03
    assert bits["novel"]["clear"]
    # Names of functions hardly repeat, packages do.
    assert "package" in rows
    assert "text" not in rows


def test_models_are_fitted_to_equal_bytes_and_tested_on_the_same_texts(planted: StageRuns) -> None:
    record, _ = screened(planted, "0.05|6")
    fits = read_table(record, NGRAM)
    assert set(fits["trained_on"]) == {"everything", "kept", "random"}
    kept = fits.filter(pl.col("trained_on") == "kept")["bytes"].unique().item()
    random = fits.filter(pl.col("trained_on") == "random")
    longest = max(len(row["text"].encode()) for row in items_of(planted).to_dicts())
    assert ((random["bytes"] - kept).abs() <= longest / 2).all()
    assert random["seed"].to_list() == [*range(5)] * 2
    assert fits.group_by("validation").agg(pl.col("tested_bytes").n_unique())["tested_bytes"].to_list() == [1, 1]


def test_bits_are_those_of_a_model_by_dictionaries(planted: StageRuns) -> None:
    runs = planted.changed(analyses={"data_screen": {"order": 3}})
    record, _ = screened(runs, "0.05|6")
    context, partition = runs.context(), Partition.parse("0.05|6", ("epsilon", "k"))
    sample = TextSample.read(context, ScreenedItems.of(context, partition))
    model = DictionaryModel([sample.texts[index] for index in np.flatnonzero(sample.kept)], 3)
    novel = [sample.texts[index] for index in np.flatnonzero(sample.novel)]
    fits = read_table(record, NGRAM).filter((pl.col("validation") == "novel") & (pl.col("trained_on") == "kept"))
    (fit,) = fits.to_dicts()
    assert (fit["texts"], fit["tested_texts"]) == (int(sample.kept.sum()), len(novel))
    expected = sum(map(model.bits, novel)) / sum(map(len, novel))
    assert fit["bits_per_byte"] == pytest.approx(expected, abs=1e-9)


def test_a_group_whose_kept_text_is_held_out_keeps_the_next_one(planted: StageRuns) -> None:
    context, partition = planted.context(), Partition.parse("0.05|6", ("epsilon", "k"))
    sample = TextSample.read(context, ScreenedItems.of(context, partition))
    masks = {row["id"]: row for row in planted.masks("0.05|6").to_dicts()}
    group = {item: item if row["kept"] else row["kept_neighbour"] for item, row in masks.items()}
    members = Counter(group.values())
    held_out = set(sample.ids[sample.held_out].tolist())
    assert len(held_out) == len(masks) // 10
    alone = {item for item in held_out if masks[item]["kept"] and members[item] == 1}
    assert set(sample.ids[sample.novel].tolist()) == alone
    expected = set()
    for head in members:
        rest = [item for item, own in group.items() if own == head and item not in held_out]
        if rest:
            # The kept item itself has no similarity, and comes first.
            expected.add(max(rest, key=lambda item: (masks[item]["kept_similarity"] or 2.0, -item)))
    assert set(sample.ids[sample.kept].tolist()) == expected
    assert any(not masks[item]["kept"] for item in expected)


def test_a_sample_is_of_whole_groups_and_bounded(planted: StageRuns) -> None:
    runs = planted.changed(analyses={"data_screen": {"mib": 1, "seed": 3}})
    context, partition = runs.context(), Partition.parse("0.05|6", ("epsilon", "k"))
    items = ScreenedItems.of(context, partition)
    sample = TextSample.read(context, items)
    assert sum(map(len, sample.texts)) <= 1 << 20 < sum(len(text.encode()) for text in items_of(runs)["text"])
    assert len(sample.ids) < len(items.ids)
    there = np.isin(items.ids, sample.ids)
    halves = {group for group in items.groups[there] if not there[items.groups == group].all()}
    assert len(halves) <= 1


def test_ready_vectors_without_columns_cannot_tell(tmp_path: Path) -> None:
    for seed in range(2):
        write_shard(tmp_path, f"{seed}", near_duplicates(seed))
    runs = StageRuns(vectors_settings(tmp_path, epsilons=["0.1"]), GRAPH)
    runs.run(until="keep_masks")
    record, rows = screened(runs, "0.1|3")
    assert set(rows) == {"clusters", "groups"}
    assert record.details["verdict"] == "cannot tell"
    assert "nothing independent of the encoder" in record.details["reasons"][0]
    assert training_can_gain(runs.context()).problems == []


@pytest.mark.parametrize(
    ("columns", "message"),
    [(["colour"], r"data_screen\.columns\.0: 'colour' is not carried"), (["score"], r"'score' is carried as float")],
)
def test_columns_that_cannot_be_screened_are_refused(tmp_path: Path, columns: list[str], message: str) -> None:
    settings = vectors_settings(tmp_path, analyses={"data_screen": {"columns": columns}})
    settings["source"] |= {"columns": {"score": "float"}}
    with pytest.raises(ValueError, match=message):
        Pipeline.model_validate(settings)
