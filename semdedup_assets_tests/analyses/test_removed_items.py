"""The table of removed items against the masks and the source."""

import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from semdedup_assets.analyses.removed_items import REMOVED, removed_items
from semdedup_assets.execution.stage import Link
from semdedup_assets.records import id_rows, id_shards
from semdedup_assets.stages import items
from semdedup_assets.storage.results import DamagedResultError, MissingResultError
from semdedup_assets_tests.analyses.small_pipelines import (
    GRAPH,
    MASKS,
    SmallPipeline,
    analysed_settings,
    made,
    read_table,
)
from semdedup_assets_tests.toy_source import near_duplicates, write_shard

SCHEMA = {
    "id": pl.UInt64,
    "key": pl.String,
    "kept_id": pl.UInt64,
    "kept_key": pl.String,
    "similarity": pl.Float32,
    "is_orphan": pl.Boolean,
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> SmallPipeline:
    folder = tmp_path_factory.mktemp("removed")
    first = near_duplicates(0, groups=12, copies=6)
    write_shard(folder, "a", first)
    write_shard(folder, "b", np.concatenate([near_duplicates(1, groups=12, copies=6), first[:9]]))
    with pytest.MonkeyPatch.context() as patch:
        # Several row groups in each shard.
        patch.setattr(items, "_ROWS", 10)
        return made(analysed_settings(folder) | {"epsilons": ["0", "0.05", "0.3", "keep=60%"]})


def keys(ids: pl.Series) -> list[str]:
    array = ids.to_numpy()
    return [f"{'ab'[shard]}.npy:{row}" for shard, row in zip(id_shards(array), id_rows(array), strict=True)]


@pytest.mark.parametrize("key", ["0.05|3", "0.3|3", "keep=60%|3"])
def test_it_lists_every_removed_item_with_its_kept_one_the_most_similar_first(
    pipeline: SmallPipeline, key: str
) -> None:
    table, masks = removed_items(pipeline.context, pipeline.partition("keep_masks", key)), pipeline.items(key)
    details = pipeline.record("keep_masks", key).details
    assert dict(table.schema) == SCHEMA
    assert len(table) == details["removed"] > 0
    assert table["is_orphan"].sum() == details["orphans"]
    unit = {item: np.array(vector) for item, vector in masks.select("id", "unit").iter_rows()}
    kept = masks.filter(pl.col("kept"))["id"]
    assert set(table["id"]) == set(masks["id"]) - set(kept)
    assert set(table["kept_id"]) <= set(kept)
    exact = [float(unit[one] @ unit[other]) for one, other in table.select("id", "kept_id").iter_rows()]
    assert table["similarity"].to_list() == pytest.approx(exact, abs=2e-5)
    order = list(zip((-table["similarity"]).to_list(), table["id"].to_list(), strict=True))
    assert order == sorted(order)
    assert (table["key"].to_list(), table["kept_key"].to_list()) == (keys(table["id"]), keys(table["kept_id"]))


def test_the_stored_table_is_the_same(pipeline: SmallPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semdedup_assets.storage.tables._ROW_GROUP", 7)
    partition = pipeline.partition("removed_items", "0.3|3")
    record = pipeline.make_partition("removed_items", "0.3|3")
    assert read_table(record, REMOVED).equals(removed_items(pipeline.context, partition))
    details = pipeline.record("keep_masks", "0.3|3").details
    assert record.details["items"] == details["removed"]
    assert record.details["orphans"] == details["orphans"]
    assert record.details["without_key"] == 0
    assert record.inputs.keys() == {"keep_masks", "items"}
    shown = GRAPH["removed_items"].shown(pipeline.context, partition, record)
    assert shown == {"table": Link(record.file(REMOVED).path)}
    assert pipeline.changed().make_partition("removed_items", "0.3|3").version == record.version


def test_where_nothing_is_removed_the_table_is_empty_and_has_its_columns(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", np.eye(8, dtype=np.float32))
    pipeline = made(analysed_settings(tmp_path) | {"clustering": {"k": [1]}}, "removed_items")
    record = pipeline.record("removed_items", "0.05|1")
    assert record.details["items"] == 0
    table = pl.read_parquet(io.BytesIO(record.file(REMOVED).content()))
    assert (dict(table.schema), len(table)) == (SCHEMA, 0)


def test_an_item_that_the_source_no_longer_has_is_listed_without_a_key(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", near_duplicates(0))
    gone = write_shard(tmp_path, "b", near_duplicates(0))
    pipeline = made(analysed_settings(tmp_path))
    gone.unlink()
    pipeline.observe()
    partition = pipeline.partition("keep_masks", "0.05|3")
    table = removed_items(pipeline.changed().context, partition)
    assert len(table) == pipeline.record("keep_masks", "0.05|3").details["removed"]
    shard = pl.Series(id_shards(table["id"].to_numpy()))
    assert table["key"].is_null().equals(shard == 1)
    assert 0 < table["key"].null_count() < len(table)
    with pytest.raises(MissingResultError, match="made from other inputs or settings"):
        pipeline.changed().make_partition("removed_items", "0.05|3")


def test_missing_stale_and_damaged_masks_are_reported(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", near_duplicates(0))
    pipeline = SmallPipeline(analysed_settings(tmp_path))
    pipeline.observe()
    pipeline.make(*MASKS[:-1])
    partition = pipeline.partition("keep_masks", "0.05|3")
    with pytest.raises(MissingResultError, match=r"materialise toy/precomputed/keep_masks, partition 0.05\|3"):
        removed_items(pipeline.context, partition)
    pipeline.make("keep_masks")
    masks = pipeline.record("keep_masks", "0.05|3")
    path = Path(masks.file("r0000.parquet").path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedResultError, match="holds other bytes than were written"):
        removed_items(pipeline.changed().context, partition)
