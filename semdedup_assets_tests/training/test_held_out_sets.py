"""The sets of held-out texts, against brute force in NumPy."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semdedup_assets.execution.held_out import HoldOut
from semdedup_assets.execution.shard_reader import SourceChangedError
from semdedup_assets.records import Record
from semdedup_assets.storage.results import MissingResultError, ResultRecord
from semdedup_assets.training.held_out_sets import (
    groups_are_held_out,
    set_files,
    sets_are_large_enough,
    texts_version,
)
from semdedup_assets_tests.oracle import greedy_keep, unit
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.stages.test_held_out import HELD, docstrings, splits, stored, text_runs, write

Line = dict[str, Any]

UNKNOWN = "\N{ALCHEMICAL SYMBOL FOR GOLD}"
"""A text of which the static model knows no word."""


def lines(record: ResultRecord) -> dict[str, list[Line]]:
    return {
        name: [json.loads(line) for line in file.content().splitlines()] for name, file in set_files(record).items()
    }


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return docstrings(600)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> StageRuns:
    runs = text_runs(tmp_path_factory.mktemp("sets"), rows, shards=3, held_out=HELD)
    runs.run(until="embeddings")
    runs.make("held_out_sets")
    return runs


def vectors_of(runs: StageRuns, texts: list[str]) -> np.ndarray:
    """(n, d) float64 unit rows, rounded as the stored ones are."""
    model: Any = runs.pipeline.encoder.load(runs.pipeline.compute)
    batches = list(model.embed(Record(str(at), text) for at, text in enumerate(texts)))
    return unit(np.concatenate([batch.vectors for batch in batches]).astype(np.float16))


def test_each_set_is_what_brute_force_finds(runs: StageRuns, rows: list[dict[str, Any]]) -> None:
    found, epsilon = lines(runs.record("held_out_sets")), 0.1
    split = splits(runs, rows, shards=3)
    by_id = dict(zip(sorted(split), rows, strict=True))
    training = stored(runs)
    matrix = unit(np.stack(list(training.values())))

    def of(by: str) -> tuple[list[str], np.ndarray]:
        held = [by_id[item] for item in sorted(split) if split[item] == by]
        return [row["url"] for row in held], vectors_of(runs, [row["text"] for row in held])

    keys, queries = of("random")
    similarity = queries @ matrix.T
    assert [line["key"] for line in found["random"]] == keys
    greatest = similarity.max(1)
    np.testing.assert_allclose([line["similarity"] for line in found["random"]], greatest, atol=2e-6)
    row_of = {by_id[item]["url"]: at for at, item in enumerate(training)}
    for line, each in zip(found["random"], similarity, strict=True):
        assert row_of[line["nearest"]] == int(np.flatnonzero(each >= each.max() - 1e-6)[0])
    assert np.abs(greatest - (1 - epsilon)).min() > 1e-5, "too near to epsilon to be an oracle"
    novel = [key for key, each in zip(keys, greatest, strict=True) if each <= 1 - epsilon]
    assert [line["key"] for line in found["novel"]] == novel
    assert [line["key"] for line in found["dedup"]] == [
        key for key, kept in zip(keys, greedy_keep(queries, epsilon), strict=True) if kept
    ]
    keys, queries = of("groups")
    assert [line["key"] for line in found["unseen"]] == keys
    np.testing.assert_allclose([line["similarity"] for line in found["unseen"]], (queries @ matrix.T).max(1), atol=2e-6)
    assert all(0 < len(each) < len(rows) for each in found.values())
    assert len(found["novel"]) < len(found["dedup"]) < len(found["random"])


def test_texts_are_the_sources_own_and_the_details_add_up(runs: StageRuns, rows: list[dict[str, Any]]) -> None:
    record = runs.record("held_out_sets")
    texts, found = {row["url"]: row["text"] for row in rows}, lines(record)
    for each in record.details["sets"]:
        own = found[each["set"]]
        assert all(line["text"] == texts[line["key"]] for line in own)
        assert each["items"] == len(own)
        assert each["bytes"] == sum(len(line["text"].encode()) for line in own)
    split = list(splits(runs, rows, shards=3).values())
    assert record.details["held_out_random"] == split.count("random") == len(found["random"])
    assert record.details["held_out_groups"] == split.count("groups")
    assert record.details["training_items"] == split.count(None)
    assert Image.open(io.BytesIO(record.file("similarity.png").content())).size == (600, 380)


def test_of_many_the_first_in_a_random_order_are_evaluated(runs: StageRuns, rows: list[dict[str, Any]]) -> None:
    few = runs.changed(held_out={"evaluated": 9})
    assert few.stale("held_out_sets") == [""]
    assert few.stale("embeddings") == []
    (record,) = few.make("held_out_sets")
    assert few.pipeline.held_out is not None
    rank = HoldOut(few.pipeline.held_out).rank
    split = splits(runs, rows, shards=3)
    by_id, found = dict(zip(sorted(split), rows, strict=True)), lines(record)
    for name, by in (("random", "random"), ("unseen", "groups")):
        held = [by_id[item]["url"] for item in sorted(split) if split[item] == by]
        assert {line["key"] for line in found[name]} == set(sorted(held, key=rank)[:9])
    assert record.details["items"] == 18
    names = [problem.partition for problem in sets_are_large_enough(few.context()).problems]
    assert names == ["random", "dedup", "novel", "unseen"]
    runs.make("held_out_sets")
    assert sets_are_large_enough(runs.context()).measured["random"] == record.details["held_out_random"]


def test_a_budget_of_little_memory_gives_the_same(runs: StageRuns) -> None:
    before = runs.record("held_out_sets")
    (after,) = runs.changed(compute={"memory_mib": 16}).make("held_out_sets")
    assert lines(after) == lines(before)


def test_changed_contents_of_held_out_items_make_it_stale_and_are_refused_until_they_are_observed(
    tmp_path: Path,
) -> None:
    rows = docstrings(200)
    runs = text_runs(tmp_path, rows, held_out={"share": 0.3})
    runs.run(until="embeddings")
    runs.make("held_out_sets")
    assert runs.stale("held_out_sets") == []
    held = next(at for at, by in enumerate(splits(runs, rows).values()) if by)
    vectors = runs.record("embeddings", "s000000").version
    write(tmp_path, [{**row, "text": "Another text."} if at == held else row for at, row in enumerate(rows)], shards=2)
    with pytest.raises(SourceChangedError, match=r"0\.jsonl"):
        runs.make("held_out_sets")
    runs.run(until="embeddings")
    assert runs.record("embeddings", "s000000").version == vectors
    assert runs.stale("held_out_sets") == [""]
    (record,) = runs.make("held_out_sets")
    assert "Another text." in {line["text"] for line in lines(record)["random"]}


def test_texts_that_the_model_cannot_embed_are_listed(tmp_path: Path) -> None:
    rows = [{**row, "text": UNKNOWN} if at % 10 == 0 else row for at, row in enumerate(docstrings(200))]
    runs = text_runs(tmp_path, rows, held_out={"share": 0.4}, max_skipped=1)
    runs.run(until="embeddings")
    (record,) = runs.make("held_out_sets")
    blank = {
        row["url"] for row, by in zip(rows, splits(runs, rows).values(), strict=True) if by and row["text"] == UNKNOWN
    }
    assert {key for key, _ in record.details["skipped_examples"]} == blank
    assert record.details["skipped"] == len(blank) > 0
    assert record.details["items"] == record.details["held_out"] - len(blank)


def test_a_column_that_holds_out_nothing_or_everything_is_warned_of(tmp_path: Path) -> None:
    rows = [{**row, "package": "one"} for row in docstrings(100)]
    nothing = text_runs(tmp_path, rows, held_out={"share": 0.3, "groups": {"column": "package", "share": 1e-9}})
    nothing.run(until="embeddings")
    nothing.make("held_out_sets")
    assert [each.measured for each in groups_are_held_out(nothing.context()).problems] == ["held_out_groups: 0 items"]
    everything = nothing.changed(held_out={"share": 0, "groups": {"column": "package", "share": 0.999_999}})
    everything.run(until="embeddings")
    (record,) = everything.make("held_out_sets")
    assert [each.measured for each in groups_are_held_out(everything.context()).problems] == ["training_items: 0 items"]
    found = lines(record)
    assert list(found) == ["unseen"]
    assert [(line["similarity"], line["nearest"]) for line in found["unseen"]] == [(None, None)] * len(rows)


def test_embeddings_of_other_settings_are_an_error_that_names_them(runs: StageRuns) -> None:
    with pytest.raises(MissingResultError, match="embeddings"):
        runs.changed(held_out={"seed": 1}).make("held_out_sets")


def test_models_share_a_set_of_the_same_texts_whatever_is_similar_to_them(
    runs: StageRuns, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    other = text_runs(tmp_path, rows, shards=3, held_out=HELD, vectors="float32")
    other.run(until="embeddings")
    other.make("held_out_sets")
    sets = [set_files(each.record("held_out_sets")) for each in (runs, other)]
    one, same = (found["random"] for found in sets)
    assert one.entry.checksum != same.entry.checksum
    assert texts_version(one) == texts_version(same)
    assert len({texts_version(file) for file in sets[0].values()}) == len(sets[0])
