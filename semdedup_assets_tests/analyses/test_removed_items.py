"""The table of removed items against the masks and the source; and that a manifest's format `removed` is the same."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from semdedup_assets.analyses import removed_items
from semdedup_assets.analyses.gallery_sections import SelectedClusters
from semdedup_assets.analyses.removed_items import REMOVED
from semdedup_assets.command_line.lines import LineFormat
from semdedup_assets.command_line.removed import write_removed
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Link, StageGraph
from semdedup_assets.records import id_rows, id_shards
from semdedup_assets.stages import items
from semdedup_assets.stages.cluster_batches import AssignedClusterings
from semdedup_assets.storage.results import DamagedResultError, MissingResultError
from semdedup_assets_tests.analyses.small_pipelines import (
    GRAPH,
    MASKS,
    SmallPipeline,
    analysed_settings,
    made,
    read_table,
)
from semdedup_assets_tests.stage_runs import METHOD, StageRuns
from semdedup_assets_tests.stages.test_mask_adjustments import removing
from semdedup_assets_tests.toy_source import near_duplicates, write_shard

COLUMNS = [
    *("id", "shard", "row", "file", "file_row", "key", "group", "group_size"),
    *("kept_key", "kept_file", "kept_file_row", "similarity", "is_orphan"),
]


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
def test_it_lists_every_removed_item_with_its_kept_one_in_the_order_of_the_source(
    pipeline: SmallPipeline, key: str
) -> None:
    record, masks = pipeline.make_partition("removed_items", key), pipeline.items(key)
    table, details = read_table(record, REMOVED), pipeline.record("keep_masks", key).details
    assert (
        table.columns
        == COLUMNS
        == [column.name for column in GRAPH["removed_items"].columns(pipeline.context.pipeline)]
    )
    assert len(table) == details["removed"] > 0
    assert table["is_orphan"].sum() == details["orphans"]
    counts = {name: record.details[name] for name in ("items", "orphans", "unlisted")}
    assert counts == {"items": details["removed"], "orphans": details["orphans"], "unlisted": 0}
    unit = {item: np.array(vector) for item, vector in masks.select("id", "unit").iter_rows()}
    kept = masks.filter(pl.col("kept"))["id"]
    assert table["id"].to_list() == sorted(set(masks["id"]) - set(kept))
    assert set(table["group"]) <= set(kept)
    exact = [float(unit[one] @ unit[other]) for one, other in table.select("id", "group").iter_rows()]
    assert table["similarity"].to_list() == pytest.approx(exact, abs=2e-5)
    assert (table["key"].to_list(), table["kept_key"].to_list()) == (keys(table["id"]), keys(table["group"]))
    assert record.inputs.keys() == {"keep_masks", "items"}
    shown = GRAPH["removed_items"].shown(pipeline.context, pipeline.partition("removed_items", key), record)
    assert shown == {"table": Link(record.file(REMOVED).path)}
    assert pipeline.changed().make_partition("removed_items", key).version == record.version


def test_where_nothing_is_removed_the_table_is_empty_and_has_its_columns(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", np.eye(8, dtype=np.float32))
    pipeline = made(analysed_settings(tmp_path) | {"clustering": {"k": [1]}}, "removed_items")
    table = read_table(pipeline.record("removed_items", "0.05|1"), REMOVED)
    assert (table.columns, len(table)) == (COLUMNS, 0)


@pytest.mark.parametrize("rule", ["chain", "greedy"])
def test_it_is_what_manifests_hold_also_where_a_reference_removes(
    tmp_path: Path, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An orphan is what the masks count, and each row says which reference removes it, also in the terminal."""
    settings = removing(tmp_path, rule).settings | {"epsilons": ["0.3"], "manifest_weight": "group_size"}
    settings["clustering"]["k"] = [12]
    runs = StageRuns(settings, StageGraph((*METHOD.stages, removed_items.STAGE)))
    runs.run()
    runs.make("removed_items")
    table = pl.read_parquet(runs.record("removed_items", "0.3|12").file(REMOVED).path)
    folder, details = runs.manifest("0.3|12")
    assert table.equals(pl.read_parquet(f"{folder}/removed/*.parquet"))
    masks, counts = runs.masks("0.3|12"), runs.record("keep_masks", "0.3|12").details
    gone = masks.filter(~pl.col("kept")).sort("id")
    assert table.columns == [*COLUMNS[:8], "weight", *COLUMNS[8:], "removed_by"]
    assert table["removed_by"].equals(gone["removed_by"])
    assert table["removed_by"].count() == counts["removed_by_reference"] > 0
    # Something else than the code says what an orphan is.
    expected = [
        by is None and (similarity is None or np.float64(similarity) <= 1 - 0.3)
        for by, similarity in gone.select("removed_by", "kept_similarity").iter_rows()
    ]
    assert table["is_orphan"].to_list() == expected
    assert sum(expected) == counts["orphans"]
    assert (counts["orphans"] > 0) == (rule == "chain")
    assert details["removed"] == len(table) == len(gone)
    context, partition = runs.context(), Partition.parse("0.3|12", ("epsilon", "k"))
    assigned = AssignedClusterings(context)[partition.required_clustering]
    in_gallery = SelectedClusters.of(assigned, runs.record("keep_masks", "0.3|12"))
    found = [in_gallery.items(index) for index in range(len(in_gallery.scores))]
    assert sum(int(items.orphan.sum()) for items in found) == counts["orphans"]
    capsys.readouterr()
    write_removed(context, partition, LineFormat.jsonl, limit=None)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["removed_by"] for row in printed] == table["removed_by"].to_list()
    assert [row["key"] for row in printed] == table["key"].to_list()


def test_an_item_that_the_source_no_longer_has_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", near_duplicates(0))
    gone = write_shard(tmp_path, "b", near_duplicates(0))
    pipeline = made(analysed_settings(tmp_path))
    gone.unlink()
    pipeline.observe()
    with pytest.raises(MissingResultError, match="made from other inputs or settings"):
        pipeline.changed().make_partition("removed_items", "0.05|3")


def test_missing_stale_and_damaged_masks_are_reported(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", near_duplicates(0))
    pipeline = SmallPipeline(analysed_settings(tmp_path))
    pipeline.observe()
    pipeline.make(*MASKS[:-1])
    with pytest.raises(MissingResultError, match=r"materialise toy/precomputed/keep_masks, partition 0.05\|3"):
        pipeline.make_partition("removed_items", "0.05|3")
    pipeline.make("keep_masks")
    masks = pipeline.record("keep_masks", "0.05|3")
    path = Path(masks.file("r0000.parquet").path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedResultError, match="holds other bytes than were written"):
        pipeline.changed().make_partition("removed_items", "0.05|3")
