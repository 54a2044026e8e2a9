"""What Dagster's UI shows of a materialisation: readable, without noise, results first."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from semdedup_assets.assets.description import place, static_metadata
from semdedup_assets.assets.metadata import as_metadata, rounded
from semdedup_assets.assets.refresh import ORDER
from semdedup_assets_tests.pipeline_runs import PipelineRuns, near_duplicates, vectors_settings, write_shard


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipelineRuns]:
    """Two shards of near-duplicates, at an epsilon at which the rules differ and at a target."""
    folder = tmp_path_factory.mktemp("vectors")
    for seed in range(2):
        write_shard(folder, f"{seed}", near_duplicates(seed, groups=12, copies=6))
    with dg.DagsterInstance.ephemeral() as instance:
        made = PipelineRuns(instance, vectors_settings(folder)).changed(epsilons=["0.2", "keep=60%"])
        made.refresh()
        yield made


def shown(runs: PipelineRuns, asset: str) -> dict[str, Any]:
    return dict(runs.last_materialisation(asset).metadata)


@pytest.mark.parametrize(
    ("number", "shown_as"),
    [
        (0.123456, 0.1235),
        (1.19e-7 / 3, 3.967e-8),
        (123456.7, 123457.0),
        (1234.56, 1235.0),
        (-0.99996, -1.0),
        (0.0, 0.0),
    ],
)
def test_numbers_have_four_digits_and_stay_numbers(number: float, shown_as: float) -> None:
    assert rounded(number) == shown_as
    value = as_metadata({"x": number})["x"]
    assert isinstance(value, float)
    assert value == shown_as


def test_flat_numbers_are_one_line_and_nested_ones_are_rounded() -> None:
    metadata = as_metadata(
        {
            "by_epsilon": {"0.5": 12, "0.9": 40123, "1": 0.123456},
            "keys": ["a", "b"],
            "nested": {"a": {"b": [0.123456]}},
            "rows": [{"name": "a", "share": 0.123456}],
            "many": list(range(1234)),
        }
    )
    assert metadata["by_epsilon"] == "0.5: 12, 0.9: 40,123, 1: 0.1235"
    assert metadata["keys"] == "a, b"
    assert metadata["nested"].value == {"a": {"b": [0.1235]}}
    assert metadata["rows"].records[0].data == {"name": "a", "share": 0.1235}
    assert metadata["many"] == "1,234 entries"


def test_what_says_nothing_is_left_out() -> None:
    noise = {"id_checksum": 1, "page": "index.html", "parts": {"a": "b"}, "none": None, "list": [], "dict": {}}
    assert as_metadata({**noise, "sampled_shards": {"s": "v"}, "k": 3, "k_asked": 3}) == {"k": 3}
    assert as_metadata({"k": 2, "k_asked": 3}) == {"k": 2, "k_asked": 3}
    assert as_metadata({"files": [["a", 1], ["b", 2]]}) == {"files": 2}


def test_every_asset_shows_its_results_first_and_its_cost_last(runs: PipelineRuns) -> None:
    for asset in ORDER:
        names = list(shown(runs, asset))
        cost = [names.index(name) for name in ("seconds", "bytes", "peak_memory_mib", "device")]
        assert cost == sorted(cost), asset
        results = [name for name in ("items", "kept", "removed", "kept_fraction", "k", "convergence") if name in names]
        assert all(names.index(name) < cost[0] for name in results), asset


def test_no_place_holds_a_star_and_every_local_one_is_there(runs: PipelineRuns) -> None:
    for asset in ORDER:
        assert "*" not in static_metadata(runs.pipeline, asset)["dagster/uri"]
        if asset == "training_sample":
            continue
        where = shown(runs, asset)["dagster/uri"].value
        assert "*" not in where
        assert Path(where).exists(), where
    assert place(runs.pipeline, "estimate").endswith("/estimate.json")


def test_the_place_of_a_manifest_is_the_folder_of_the_one_just_made(runs: PipelineRuns) -> None:
    metadata = shown(runs, "manifests")
    folder = Path(metadata["dagster/uri"].value)
    assert folder.name == metadata["manifest"].value
    assert (folder / "parquet").is_dir()
    assert [name for name in metadata if not name.startswith("dagster/")][-1] == "recipe"


@pytest.mark.parametrize(("rule", "other"), [("chain", "greedy"), ("greedy", "chain")])
def test_masks_show_the_other_rule_s_count_and_the_keys_of_the_largest_groups(
    runs: PipelineRuns, rule: str, other: str
) -> None:
    ruled = runs.changed(selection={"rule": rule}, epsilons=["0.2"], dataset=f"toy-{rule}")
    ruled.refresh()
    metadata, details = shown(ruled, "keep_masks"), ruled.work.masks("3", "0.2").details
    assert metadata[f"kept_by_{other}"].value == details[f"kept_by_{other}"]
    assert f"kept_by_{rule}" not in metadata
    assert metadata["removed_by_chain"].value == details["orphans"]
    rows = [row.data for row in metadata["largest_groups"].records]
    assert len(rows) == 8 < len(details["largest_groups"])
    for row, group in zip(rows, details["largest_groups"][:8], strict=True):
        # Ready vectors are named by their file and row.
        assert row["kept item"] == f"{group['kept'] >> 32}.npy:{group['kept'] & 0xFFFFFFFF}"
        assert row["removed for it"] == group["removed"]


def test_tables_of_a_gallery_are_markdown_in_which_nothing_comes_to_life(runs: PipelineRuns) -> None:
    from semdedup_assets.assets.galleries import _table

    table = str(
        _table([{"group": "1", "state": "kept", "similarity": "", "key": "k", "text": "![x](http://y) | " * 9}]).value
    )
    head, rule, row = table.splitlines()
    assert head == "| group | state | similarity | text |"
    assert rule.count("---") == 4
    assert "![" not in row
    assert "](" not in row
    assert row.count("\\|") == row.count("|") - 5
    assert str(shown(runs, "galleries")["largest_groups_of_duplicates"].value).startswith(
        "| group | state | similarity | key |"
    )
