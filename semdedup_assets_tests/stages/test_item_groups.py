"""Groups in manifests: what each kept item stands for, and what was removed for it, against the masks joined in Python."""

import ast
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semdedup_assets import read_manifest
from semdedup_assets.checks.manifests import ManifestStage, counts_are_conserved
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Stage, StageGraph, Worker
from semdedup_assets.records import item_ids
from semdedup_assets.stages.item_groups import NO_GROUP, ItemGroups, KeptKeys
from semdedup_assets.stages.manifests import ManifestWorker, manifest_stage
from semdedup_assets.storage.files import join
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.tables import write_table
from semdedup_assets_tests.assets.test_images_and_texts import read_by
from semdedup_assets_tests.stage_runs import METHOD, StageRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings
from semdedup_assets_tests.toy_source import write_table as write_source

TARGETS = ["0", "0.05", "0.3", "1"]
KEYS = ['a "quoted" key', "tab\tand\nnewline", "🙂", "x" * 10_000, "a|b"]

# A baseline that knows of most removed items no kept one: its stages live in this module, as a baseline's do in theirs.

HALVES = ManifestStage("halves", masks="half_masks")


def write_half_masks(context: StageContext, partition: Partition) -> ResultRecord:
    """Every other item stays; of a third of the others the next one is known, of some of them also how near it is."""
    records = context.index.require_all("items")
    with context.writing("half_masks", partition) as result:
        items = 0
        for each, record in records.items():
            rows = np.arange(record.details["items"])
            ids = item_ids(context.shard(each.required_shard).index, rows)
            kept, known = rows % 2 == 0, rows % 3 == 0
            columns = {
                "id": ids,
                "kept": kept,
                "kept_neighbour": np.ma.masked_array(ids - np.uint64(1), mask=kept | ~known),
                "kept_similarity": np.ma.masked_array(
                    np.full(len(ids), 0.5, np.float32), mask=kept | ~known | (rows % 4 == 1)
                ),
            }
            with result.open(f"{each}.parquet") as stream:
                write_table(stream, {name: values[::-1] for name, values in columns.items()})
            items += len(ids)
        kept_items = sum((record.details["items"] + 1) // 2 for record in records.values())
        counts = {"items": items, "kept": kept_items, "removed": items - kept_items}
        result.details = {**counts, "made_with": {"baseline": "halves"}}
    return result.committed


HALF_MASKS = Stage(
    name="half_masks",
    step="4-select",
    description="",
    dimensions=(),
    inputs=("items",),
    settings=lambda _: {},
    location=lambda layout, _, __: join(layout.folder, "baselines", "half_masks"),
    worker=lambda context: lambda partition: write_half_masks(context, partition),
)


def _worker(context: StageContext) -> Worker:
    return ManifestWorker(context, HALVES)


STAGE = replace(
    manifest_stage(HALVES, _worker),
    dimensions=(),
    selected=False,
    location=lambda layout, _, __: join(layout.folder, "baselines", "halves"),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    """Two files of near duplicates with keys as they come, one without a vector in each, and the settings of a pipeline."""
    folder = tmp_path_factory.mktemp("groups")
    for file in range(2):
        vectors: list[Any] = list(near_duplicates(file, groups=12))
        vectors[7] = None
        names = [f"{file}-{KEYS[row]}" if row < len(KEYS) else f"{file}-{row}" for row in range(len(vectors))]
        write_source(folder, str(file), vectors, {"url": names})
    made = StageRuns(vectors_settings(folder), StageGraph((*METHOD.stages, HALF_MASKS, STAGE))).changed(
        source={"key": "url", "columns": {"name": "string"}},
        epsilons=TARGETS,
        manifest_weight="inverse_group_size",
        max_skipped=1,
    )
    made.run()
    return made


def tables(folder: Path, kind: str) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted((folder / kind).iterdir())])


def keys_by_id(runs: StageRuns) -> dict[int, str]:
    found = {}
    for record in runs.context().index.records("items").values():
        found |= dict(pl.read_parquet(record.file("items.parquet").path).select("id", "key").iter_rows())
    return found


def locations_by_id(runs: StageRuns) -> dict[int, tuple[str, int]]:
    """File and row in it of each record of the source, by its id."""
    return {
        (shard.index << 32) + row: (file.path, row)
        for shard in runs.context().shards
        for file in shard.files
        for row in range(pl.read_parquet(file.path).height)
    }


def expected_groups(masks: pl.DataFrame) -> tuple[dict[int, int | None], dict[int, float | None]]:
    """The group and the similarity of each item, by the masks' own words."""
    rows = list(masks.iter_rows(named=True))
    return (
        {row["id"]: row["id"] if row["kept"] else row["kept_neighbour"] for row in rows},
        {row["id"]: row["kept_similarity"] for row in rows},
    )


@pytest.mark.parametrize("target", TARGETS)
def test_groups_removed_items_and_weights_are_those_of_the_masks(runs: StageRuns, target: str) -> None:
    folder, details = runs.manifest(f"{target}|3")
    kept, removed, keys = tables(folder, "parquet"), tables(folder, "removed"), keys_by_id(runs)
    group, similarity = expected_groups(runs.masks(f"{target}|3"))
    sizes = {item: list(group.values()).count(item) for item in kept["id"]}
    assert kept["group"].to_list() == kept["id"].to_list()
    assert dict(kept.select("id", "group_size").iter_rows()) == sizes
    assert sum(sizes.values()) == len(group) == details["stood_for"] == details["grouped"]
    masks, places = runs.record("keep_masks", f"{target}|3").details, locations_by_id(runs)
    assert removed["is_orphan"].sum() == masks["orphans"]
    assert removed["id"].to_list() == sorted(set(group) - set(kept["id"])) == removed["id"].sort().to_list()
    for row in removed.iter_rows(named=True):
        assert row["key"] == keys[row["id"]]
        assert (row["group"], row["kept_key"]) == (group[row["id"]], keys[row["group"]])
        assert (row["file"], row["file_row"]) == places[row["id"]]
        assert (row["kept_file"], row["kept_file_row"]) == places[row["group"]]
        assert row["similarity"] == similarity[row["id"]]
        assert row["is_orphan"] == (np.float64(row["similarity"]) <= 1.0 - masks["epsilon"])
        assert row["group_size"] == sizes[row["group"]]
        assert row["shard"] == f"s{row['id'] >> 32:06d}"
        assert row["row"] == row["id"] & 0xFFFFFFFF
    for table in (kept, removed):
        assert table["weight"].to_list() == (1 / table["group_size"]).to_list()
    assert kept["weight"].sum() + removed["weight"].sum() == pytest.approx(len(kept))


def test_a_kept_item_that_counts_for_its_group_leaves_the_distribution_as_it_was(
    runs: StageRuns, tmp_path: Path
) -> None:
    shutil.copytree(runs.settings["store"], tmp_path / "store")
    counted = runs.changed(manifest_weight="group_size", store=str(tmp_path / "store"))
    counted.run()
    folder, _ = counted.manifest("0.3|3")
    kept, removed = tables(folder, "parquet"), tables(folder, "removed")
    assert kept["weight"].to_list() == kept["group_size"].to_list()
    assert removed["weight"].to_list() == [0.0] * len(removed)
    plain = counted.changed(manifest_weight=None)
    plain.run()
    folder, _ = plain.manifest("0.3|3")
    assert "weight" not in tables(folder, "parquet").columns + tables(folder, "removed").columns


@pytest.mark.parametrize("by", ["id", "key"])
def test_an_anti_join_with_the_removed_items_gives_the_manifest(runs: StageRuns, tmp_path: Path, by: str) -> None:
    folder, details = runs.manifest("0.05|3")
    if by == "id":
        files = [record.file("items.parquet").path for record in runs.context().index.records("items").values()]
        source = pl.concat([pl.read_parquet(path) for path in files])
    else:
        source = pl.read_parquet(f"{runs.settings['source']['path']}/*.parquet").with_columns(key="url")
    source.write_parquet(tmp_path / "source.parquet")
    skipped = source.filter(pl.col("key").is_in(["0-7", "1-7"]))
    assert len(skipped) == details["skipped"] == 2
    arguments = [str(tmp_path / "source.parquet"), *(["--key", "url"] if by == "key" else [])]
    printed = read_by("anti_join_polars.py", folder, *arguments, "--out", str(tmp_path / "stay.parquet"))
    assert f"{details['kept'] + 2} rows stay" in printed
    stay = pl.read_parquet(tmp_path / "stay.parquet")
    assert set(stay[by]) - set(skipped[by]) == set(tables(folder, "parquet")[by])
    assert details["removed"] > 10


def test_what_a_manifest_removes_is_read_from_its_pointer_its_folder_and_the_folder_of_all(runs: StageRuns) -> None:
    folder, details = runs.manifest("0.3|3")
    orphans = runs.record("keep_masks", "0.3|3").details["orphans"]
    for path in (folder, folder.parent / "current.json", folder.parent):
        printed = read_by("removed_pyarrow.py", path, "--pairs", "3").splitlines()
        assert printed[0] == f"{details['removed']} items removed, {orphans} of them orphans"
        least = tables(folder, "removed").sort("similarity")["similarity"].to_list()[:3]
        assert [ast.literal_eval(line)["similarity"] for line in printed[1:]] == least
    with pytest.raises(
        FileNotFoundError, match=r"it holds keep_lists, parquet, removed, and not jsonl; add the format"
    ):
        read_manifest(str(folder)).files("jsonl")


def test_a_baseline_writes_manifests_of_the_same_form_also_where_no_kept_item_is_known(runs: StageRuns) -> None:
    manifests = Path(runs.context().location("halves", Partition()))
    pointer = json.loads((manifests / "current.json").read_text())
    assert "k" not in pointer
    folder = manifests / pointer["folder"]
    made_with = json.loads((folder / "manifest.json").read_text())["made_with"]
    assert made_with["baseline"] == "halves"
    assert "epsilon" not in made_with
    kept, removed, keys = tables(folder, "parquet"), tables(folder, "removed"), keys_by_id(runs)
    assert kept["row"].to_list() == [*range(0, 36, 2)] * 2
    assert removed["row"].to_list() == [*range(1, 36, 2)] * 2
    for row in removed.iter_rows(named=True):
        known = row["row"] % 3 == 0
        assert row["group"] == (row["id"] - 1 if known else None)
        assert row["kept_key"] == (keys[row["id"] - 1] if known else None)
        assert row["similarity"] == (0.5 if known and row["row"] % 4 == 3 else None)
        assert row["is_orphan"] is None
        assert row["kept_file"] == (row["file"] if known else None)
        assert row["kept_file_row"] == (row["file_row"] - 1 if known else None)
        assert row["group_size"] == (2 if known else None)
        assert row["weight"] == (0.5 if known else None)
    known = removed["group"].count()
    assert kept["group_size"].sum() == len(kept) + known
    assert runs.stale("halves") == []
    assert counts_are_conserved(runs.context(), HALVES).problems == []
    masks = runs.context().index.require("half_masks", Partition())
    assert counts_are_conserved(runs.context(), HALVES).measured["manifests"] == 1
    assert masks.details["kept"] == len(kept)


@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_keys_do_not_depend_on_how_many_are_read_at_a_time(runs: StageRuns, budget: int) -> None:
    context, masks = runs.context(), runs.masks("1|3")
    records = {shard.index: 36 for shard in context.shards}
    group, _ = expected_groups(masks)
    ids = masks["id"].to_numpy()
    groups = ItemGroups(records, budget=budget)
    groups.add(ids, group=np.array([group[i] for i in ids.tolist()], np.uint64), similarity=np.ones(len(ids), "f4"))
    gone = masks.filter(~pl.col("kept"))["id"].to_numpy()
    keys, expected = KeptKeys(context, groups, budget=budget), keys_by_id(runs)
    for shard in (0, 1, 0):
        own = gone[gone >> np.uint64(32) == shard]
        of, _, _ = groups.of(own)
        assert keys.of(of).to_pylist() == [expected[group[i]] for i in own.tolist()]
        assert keys.of(np.array([NO_GROUP, 2**40], np.uint64)).to_pylist() == [None, None]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_groups_partition_the_items_that_belong_to_a_kept_one(data: st.DataObject) -> None:
    """Whatever is kept, in whatever parts and order the masks come; the second shard has no keys."""
    records = {0: data.draw(st.integers(0, 12)), 4: data.draw(st.integers(0, 12))}
    unlisted = 3
    ids = np.concatenate([item_ids(shard, np.arange(rows)) for shard, rows in [*records.items(), (2, unlisted)]])
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))), bool)
    candidates = [None, *ids[kept].tolist()]
    neighbours = [data.draw(st.sampled_from(candidates)) for _ in ids]
    group = np.array(
        [i if k else (NO_GROUP if n is None else n) for i, k, n in zip(ids.tolist(), kept, neighbours, strict=True)],
        np.uint64,
    )
    order = np.array(data.draw(st.permutations(range(len(ids)))), np.int64)
    groups = ItemGroups(records, budget=data.draw(st.sampled_from([0, 1 << 20])))
    for part in np.array_split(order, 3):
        groups.add(ids[part], group=group[part], similarity=np.zeros(len(part), np.float32))
    listed = np.flatnonzero(ids >> np.uint64(32) != 2)
    found, _, size = groups.of(ids[listed])
    members: dict[int, set[int]] = {}
    for item, own in zip(ids[listed].tolist(), found.tolist(), strict=True):
        members.setdefault(own, set()).add(item)
    alone = members.pop(int(NO_GROUP), set())
    assert set(members) == set(ids[listed][kept[listed]].tolist())
    assert sum(map(len, members.values())) + len(alone) == len(listed)
    for item, own, count in zip(ids[listed].tolist(), found.tolist(), size.tolist(), strict=True):
        assert count == (0 if item in alone else len(members[own]))
        assert item in alone or item in members[own]
    assert int(size[kept[listed]].sum()) == len(listed) - len(alone)
    of_unlisted = {int(i) for i in ids[listed] if int(group[ids == i][0]) >> 32 == 2}
    assert alone == of_unlisted | {int(i) for i in ids[listed] if group[ids == i][0] == NO_GROUP}
