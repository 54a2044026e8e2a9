"""What Dagster's UI shows of a materialisation: readable, without noise, results first."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from semdedup_assets.assets.metadata import as_metadata, markdown_text, rounded, shown_metadata
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Link, Picture, Rows
from semdedup_assets.storage.results import RECORD
from semdedup_assets_tests.pipeline_runs import PipelineRuns
from semdedup_assets_tests.toy_source import near_duplicates, vectors_settings, write_shard


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


AUTOMATIC = [
    "items",
    "embeddings",
    "training_sample",
    "centroids",
    "assignments",
    "duplicate_scores",
    "keep_masks",
    "manifests",
    "figures",
    "galleries",
]


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


def test_what_says_nothing_is_hidden() -> None:
    noise = {"id_checksum": 1, "page": "index.html", "parts": {"a": "b"}, "none": None, "list": [], "dict": {}}
    assert as_metadata({**noise, "sampled_shards": {"s": "v"}, "k": 3, "requested_k": 3}) == {"k": 3}
    assert as_metadata({"k": 2, "requested_k": 3}) == {"k": 2, "requested_k": 3}
    assert as_metadata({"files": [["a", 1], ["b", 2]]}) == {"files": 2}
    trainer = {"openclip": {"model": "ViT-B-16", "epochs": 32, "arguments": ""}}
    assert as_metadata({"trainer": trainer}) == {"trainer": "model: ViT-B-16, epochs: 32"}
    assert as_metadata({"trainer": {"command": "train"}}) == {"trainer": "command: train"}


def test_every_asset_shows_its_results_first_and_its_cost_last(runs: PipelineRuns) -> None:
    assert [str(asset) for asset in runs.builder.automatic] == AUTOMATIC
    for asset in AUTOMATIC:
        names = list(shown(runs, asset))
        cost = [names.index(name) for name in ("seconds", "bytes", "peak_memory_mib", "device")]
        assert cost == sorted(cost), asset
        results = [name for name in ("items", "kept", "removed", "kept_fraction", "k", "convergence") if name in names]
        assert all(names.index(name) < cost[0] for name in results), asset


def test_every_result_shows_where_it_lies(runs: PipelineRuns) -> None:
    graph = runs.definitions.resolve_asset_graph()
    for asset in AUTOMATIC:
        assert Path(graph.get(runs.key(asset)).metadata["dagster/uri"]).is_dir()
        where = shown(runs, asset)["dagster/uri"].value
        assert Path(where).is_dir() or Path(f"{where}{RECORD}").is_file(), where


def test_a_manifest_shows_which_one_it_is_and_last_what_it_was_made_with(runs: PipelineRuns) -> None:
    metadata = shown(runs, "manifests")
    assert (Path(metadata["dagster/uri"].value) / metadata["manifest"].value / "parquet").is_dir()
    assert [name for name in metadata if not name.startswith("dagster/")][-1] == "made_with"
    made_with = metadata["made_with"].value
    assert made_with["selection"] == {"keep": "hard", "rule": "chain", "seed": 0}
    assert (made_with["k"], made_with["target"]) == ("3", "keep=60%")


def test_masks_show_counts_that_add_up_and_the_keys_of_the_largest_groups(runs: PipelineRuns) -> None:
    metadata = dict(runs.last_materialisation("keep_masks", ["0.2|3"]).metadata)
    details = runs.context.index.require("keep_masks", Partition.parse("0.2|3", ("epsilon", "k"))).details
    assert metadata["kept"].value + metadata["removed"].value == metadata["items"].value == 144
    assert metadata["orphans"].value == details["orphans"]
    rows = [row.data for row in metadata["largest_groups"].records]
    assert len(rows) == 8 < len(details["largest_groups"])
    for row, group in zip(rows, details["largest_groups"][:8], strict=True):
        # Ready vectors are named by their file and row.
        assert row["kept item"] == f"{group['kept'] >> 32}.npy:{group['kept'] & 0xFFFFFFFF}"
        assert row["removed for it"] == group["removed"]


def test_a_stage_shows_pictures_links_and_tables(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("")
    metadata = shown_metadata(
        {
            "picture": Picture(b"png", "a title"),
            "page": Link(str(tmp_path / "index.html")),
            "remote": Link("s3://bucket/index.html"),
            "table": Rows([{"name": "a", "share": 0.123456}]),
            "note": "words",
        }
    )
    assert metadata["picture"].value == "![a title](data:image/png;base64,cG5n)"
    assert metadata["page"].value == str(tmp_path / "index.html")
    assert metadata["remote"].value == "s3://bucket/index.html"
    assert metadata["table"].records[0].data == {"name": "a", "share": 0.1235}
    assert metadata["note"] == "words"


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab1. \n!\"#$%&'()*+,-/:;<=>?@[\\]^_`{|}~"))
def test_in_a_text_nothing_of_markdown_comes_to_life(text: str) -> None:
    blocks = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown_text(text))
    parts = {part.type for block in blocks for part in (block, *(block.children or ()))}
    # Text that is indented is set as code.
    assert parts <= {
        "paragraph_open",
        "paragraph_close",
        "inline",
        "text",
        "text_special",
        "softbreak",
        "hardbreak",
        "code_block",
    }


def test_a_path_is_shown_as_it_is() -> None:
    assert (
        markdown_text("/data/photos: 5 files, at 10:30 (see README.md), k = 5 - 3")
        == "/data/photos: 5 files, at 10:30 (see README.md), k = 5 - 3"
    )


def test_brief_tables_are_markdown_in_which_nothing_comes_to_life(runs: PipelineRuns) -> None:
    cells = {"group": "1", "state": "kept", "similarity": "", "key": "k", "text": "![x](http://y) | " * 9}
    table = str(shown_metadata({"table": Rows([cells], brief=True)})["table"].value)
    head, rule, row = table.splitlines()
    assert head == "| group | state | similarity | text |"
    assert rule.count("---") == 4
    assert "![" not in row
    assert "](" not in row.replace("\\]", "")
    assert row.count("\\|") == row.count("|") - 5
    # Of vectors the keys are shown, and a key may hold anything.
    rows = [{"group": "1", "key": "one\r\n\N{RIGHT-TO-LEFT OVERRIDE}two\0\x1b[31m"}, {"group": "2", "key": "plain"}]
    table = str(shown_metadata({"table": Rows(rows, brief=True)})["table"].value)
    assert [line.isprintable() for line in table.split("\n")] == [True] * 4
    gallery = shown(runs, "galleries")
    assert Path(gallery["gallery"].value).is_file()
    tables = [str(value.value) for value in gallery.values() if isinstance(value, dg.MarkdownMetadataValue)]
    assert any(table.startswith("| ") for table in tables)
