"""Held-out items in a pipeline: never embedded, in no manifest, and no fault of the files."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from semdedup_assets.checks.embeddings import items_and_vectors_agree, skipped_share, skipped_share_of_shards
from semdedup_assets.checks.manifests import counts_are_conserved
from semdedup_assets.estimate.item_counts import count_items
from semdedup_assets.execution.held_out import HELD_OUT, HoldOut
from semdedup_assets.records import item_ids
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets.stages.embeddings import SKIPPED, VECTORS, content_hashes
from semdedup_assets.storage.vectors import read_vectors
from semdedup_assets_tests.baselines.baseline_runs import emoji_runs, manifest_ids
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.toy_source import STATIC_TEXTS, vectors_settings

SHARDS = Path(__file__).parents[2] / "examples" / "docstrings" / "shards"
HELD = {"share": 0.2, "groups": {"column": "package", "share": 0.3}}


def docstrings(count: int) -> list[dict[str, Any]]:
    """Docstrings of the demo, of all its packages, with the second half of them copies of the first."""
    with gzip.open(SHARDS / "00000.jsonl.gz", "rt") as stream:
        rows = [json.loads(line) for line in stream][:: 1500 // count]
    rows = rows[: count // 2]
    return rows + [{**row, "url": f"{row['url']} again"} for row in rows]


def write(folder: Path, rows: list[dict[str, Any]], *, shards: int) -> None:
    (folder / "source").mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(np.array_split(np.arange(len(rows)), shards)):
        path = folder / "source" / f"{number}.jsonl"
        path.write_text("".join(json.dumps(rows[at]) + "\n" for at in part))


def text_runs(folder: Path, rows: list[dict[str, Any]], *, shards: int = 2, **changes: Any) -> StageRuns:
    write(folder, rows, shards=shards)
    source = {"kind": "jsonl", "path": str(folder / "source"), "key": "url", "columns": {"package": "string"}}
    clustering = {"k": [2], "buckets": 1, "iterations": 5}
    settings = vectors_settings(folder, source=source, encoder=STATIC_TEXTS, clustering=clustering, epsilons=["0.1"])
    return StageRuns({**settings, **changes}, GRAPH)


def stored(runs: StageRuns) -> dict[int, np.ndarray]:
    """The vector of every embedded item, by id."""
    records = runs.context().index.require_all("embeddings").values()
    parts = [part for record in records for part in read_vectors(record.file(VECTORS))]
    return {int(item): vector for part in parts for item, vector in zip(part.ids, part.vectors, strict=True)}


def splits(runs: StageRuns, rows: list[dict[str, Any]], *, shards: int = 2) -> dict[int, str | None]:
    """What each row is held out by, by id."""
    assert runs.pipeline.held_out is not None
    hold_out, found = HoldOut(runs.pipeline.held_out), {}
    for number, part in enumerate(np.array_split(np.arange(len(rows)), shards)):
        ids = item_ids(number, np.arange(len(part))).tolist()
        for item, row in zip(ids, [rows[at] for at in part], strict=True):
            found[item] = hold_out.split(row["url"], row.get("package"))
    return found


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return docstrings(300)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> StageRuns:
    runs = text_runs(tmp_path_factory.mktemp("held"), rows, held_out=HELD)
    runs.run(until="manifests")
    return runs


def test_all_other_items_have_the_ids_and_vectors_that_they_had(
    held: StageRuns, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    plain = text_runs(tmp_path, rows)
    plain.run(until="embeddings")
    expected, found, split = stored(plain), stored(held), splits(held, rows)
    assert set(found) == {item for item in expected if split[item] is None}
    assert all(np.array_equal(found[item], expected[item]) for item in found)
    for shard in ("s000000", "s000001"):
        assert held.record("items", shard).version == plain.record("items", shard).version
        contents = [content_hashes(runs.record("embeddings", shard)) for runs in (held, plain)]
        assert np.array_equal(*contents)


def test_held_out_items_are_listed_and_counted_apart_and_are_no_fault(
    held: StageRuns, rows: list[dict[str, Any]]
) -> None:
    split = splits(held, rows)
    assert {"random", "groups"} <= set(split.values())
    for number, shard in enumerate(("s000000", "s000001")):
        record = held.record("embeddings", shard)
        listed = pl.read_parquet(record.file(SKIPPED).path)
        assert set(listed["reason"]) == {HELD_OUT}
        assert set(listed["id"]) == {item for item, by in split.items() if by and item >> 32 == number}
        counts = {name: record.details[name] for name in ("items", "held_out", "skipped", "records")}
        assert counts == {"items": 150 - len(listed), "held_out": len(listed), "skipped": 0, "records": 150}
        assert record.details["skipped_examples"] == []
    result = skipped_share(held.context())
    assert result.problems == []
    assert result.measured["held_out"] == sum(by is not None for by in split.values())
    assert items_and_vectors_agree(held.context()).problems == []


def test_a_shard_whose_one_group_is_held_out_has_no_items_and_its_invalid_ones_count_as_before(tmp_path: Path) -> None:
    rows = [{"url": f"{row}", "text": f"text number {row}", "package": f"p{row // 50}"} for row in range(400)]
    rows[7] = {"url": "7", "package": "p0"}
    runs = text_runs(
        tmp_path, rows, shards=8, held_out={"share": 0, "groups": HELD["groups"], "seed": 3}, max_skipped=0.05
    )
    runs.run(until="manifests")
    details = {shard.name: runs.record("embeddings", shard.name).details for shard in runs.context().shards}
    empty = [name for name, found in details.items() if found["items"] == 0]
    assert empty == [f"s{number:06d}" for number in range(8) if splits(runs, rows, shards=8)[number << 32]]
    assert 0 < len(empty) < 8
    assert [found["skipped"] for found in details.values()] == [1, *[0] * 7]
    assert skipped_share(runs.context()).problems == []
    of_shards = skipped_share_of_shards(runs.changed(max_skipped=0.01).context())
    assert [each.measured[:5] for each in of_shards.problems] == ["2.00%"]
    assert counts_are_conserved(runs.context()).problems == []


def test_no_manifest_holds_one_not_even_a_baseline(held: StageRuns, rows: list[dict[str, Any]]) -> None:
    staying = {item for item, by in splits(held, rows).items() if by is None}
    for stage in ("text_signatures", "exact_masks", "near_duplicate_masks", "random_masks"):
        held.make(stage)
    for stage in ("exact_manifests", "near_duplicate_manifests", "random_manifests"):
        held.make(stage)
        key = "0.1|2" if stage == "random_manifests" else ""
        assert manifest_ids(held, stage, key) < staying
    details = held.record("manifests", "0.1|2").details
    assert manifest_ids(held, "manifests", "0.1|2") < staying
    assert details["held_out"] == len(rows) - len(staying)
    assert (details["skipped"], details["records"]) == (0, len(rows))
    assert counts_are_conserved(held.context()).problems == []


def test_neither_order_nor_shards_move_an_item_to_the_other_side(
    held: StageRuns, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    mixed = [rows[at] for at in np.random.default_rng(0).permutation(len(rows))]
    other = text_runs(tmp_path, mixed, shards=5, held_out=HELD)
    other.run(until="embeddings")

    def keys(runs: StageRuns) -> set[str]:
        records = runs.context().index.require_all("embeddings").values()
        return {key for record in records for key in pl.read_parquet(record.file(SKIPPED).path)["key"]}

    assert keys(other) == keys(held)


def test_only_what_decides_who_is_held_out_makes_the_embeddings_again(tmp_path: Path) -> None:
    runs = text_runs(tmp_path, docstrings(20))

    def version(changed: StageRuns) -> str:
        return changed.context().code_version("embeddings")

    held = runs.changed(held_out=HELD)
    source = runs.settings["source"]
    more_columns = held.changed(source={**source, "columns": {"package": "string", "name": "string"}})
    same = [
        held.changed(held_out={"epsilon": 0.3}),
        held.changed(held_out={"evaluated": 7}),
        more_columns,
        held.changed(embed_once="never"),
    ]
    assert {version(each) for each in same} == {version(held)}
    others = [
        runs,
        held.changed(held_out={"share": 0.21}),
        held.changed(held_out={"seed": 1}),
        held.changed(held_out={"groups": None}),
        held.changed(held_out={"groups": {"column": "package", "share": 0.31}}),
        more_columns.changed(held_out={"groups": {"column": "name", "share": 0.3}}),
        held.changed(source={**source, "key": None}),
    ]
    assert len({version(each) for each in [held, *others]}) == 1 + len(others)
    # Without it, keys and columns are none of what the vectors depend on.
    assert version(runs) == version(runs.changed(source={**source, "key": None, "columns": {}}))


def test_a_setting_that_holds_nothing_out_is_refused(tmp_path: Path) -> None:
    runs = text_runs(tmp_path, docstrings(20), held_out={"share": 0})
    with pytest.raises(ValidationError, match=r"held_out\n.*share: 0 of the items and no `groups` are held out"):
        runs.context()


def test_references_are_embedded_whole(tmp_path: Path) -> None:
    rows = docstrings(40)
    reference = {"source": {"kind": "jsonl", "path": str(tmp_path / "source"), "key": "url"}}
    runs = text_runs(tmp_path, rows, held_out={"share": 0.5}, references={"same": reference})
    runs.run(until="reference_embeddings")
    details = runs.record("reference_embeddings").details
    assert details["items"] == len(rows)
    assert sum(runs.record("embeddings", shard.name).details["items"] for shard in runs.context().shards) < len(rows)


def test_the_estimate_expects_fewer_items_and_counts_embedded_ones_exactly(tmp_path: Path) -> None:
    rows = docstrings(300)
    runs = text_runs(tmp_path, rows, held_out={"share": 0.2})
    runs.observe()
    expected = count_items(runs.context())
    assert (expected.items, expected.exact) == (240, False)
    (estimate,) = runs.make("estimate")
    assert estimate.details["items"] == 240
    runs.run(until="embeddings")
    found = count_items(runs.context())
    assert found.exact
    assert found.items == sum(by is None for by in splits(runs, rows).values())


def test_images_are_held_out_too(tmp_path: Path) -> None:
    runs = emoji_runs(tmp_path, held_out={"share": 0.3})
    records = runs.context().index.require_all("embeddings")
    items = runs.context().index.require_all("items")
    hold_out = HoldOut(runs.pipeline.held_out) if runs.pipeline.held_out else None
    assert hold_out is not None
    for partition, record in records.items():
        keys = pl.read_parquet(items[partition].file("items.parquet").path)
        held = {row["id"] for row in keys.iter_rows(named=True) if hold_out.split(row["key"])}
        assert set(pl.read_parquet(record.file(SKIPPED).path).filter(pl.col("reason") == HELD_OUT)["id"]) == held
        assert record.details["held_out"] == len(held) > 10
    for stage in ("perceptual_hashes", "perceptual_masks", "perceptual_manifests"):
        runs.make(stage)
    assert manifest_ids(runs, "perceptual_manifests") <= set(stored(runs))
    assert counts_are_conserved(runs.context()).problems == []
