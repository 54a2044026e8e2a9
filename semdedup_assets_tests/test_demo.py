"""The demos on their real data: what is known to be a duplicate is found, and most of what is removed is one."""

import gzip
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest

from semdedup_assets.execution.partitions import Partition
from semdedup_assets.kept_sets import Selection, Target
from semdedup_assets.settings import Pipeline
from semdedup_assets.stage_graph import pipeline_context
from semdedup_assets.stages.keep_masks import mask_files

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def moved(pipeline: Pipeline, store: Path, *, source: str) -> Pipeline:
    """The demo's pipeline on absolute paths, with a store of its own."""
    encoder = pipeline.encoder.model_dump()
    if (ROOT / encoder["model"]).is_dir():
        encoder["model"] = str(ROOT / encoder["model"])
    settings = pipeline.model_dump() | {"store": str(store), "encoder": encoder}
    settings["source"]["path"] = str(ROOT / source)
    # Nothing is asked of the other clustering.
    settings["clustering"]["k"] = ["auto"]
    return Pipeline.model_validate(settings)


@pytest.fixture(scope="module")
def emoji(demo: ModuleType, instance: dg.DagsterInstance, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    store = tmp_path_factory.mktemp("emoji")
    pipeline = moved(demo.load_pipeline("emoji"), store, source="examples/emoji/shards")
    assert demo.materialise(pipeline, instance) > 0
    return pipeline


def test_byte_identical_emoji_are_removed_at_every_epsilon(demo: ModuleType, emoji: Pipeline) -> None:
    records = demo.records_by_id(emoji)
    payloads = [record.payload for record in records.values()]
    copies = len(payloads) - len(set(payloads))
    assert copies > 0
    for target in emoji.targets:
        removed = demo.removed_at(emoji, target)
        assert demo.exact_share(removed, records) * len(removed) == pytest.approx(copies)


def test_most_removed_emoji_show_the_figure_of_the_kept_one(demo: ModuleType, emoji: Pipeline) -> None:
    drawings = demo.emoji_drawings(emoji)
    removed = [demo.removed_at(emoji, Target(epsilon=epsilon)) for epsilon in (0.01, 0.05, 0.1)]
    truths = [demo.against_truth(each, drawings) for each in removed]
    assert min(truth.precision for truth in truths) > 0.8
    recalls = [truth.recall for truth in truths]
    assert recalls == sorted(recalls)
    assert recalls[1] > 0.25


def test_a_random_pairing_is_far_below_that_precision(demo: ModuleType, emoji: Pipeline) -> None:
    drawings = demo.emoji_drawings(emoji)
    removed = demo.removed_at(emoji, Target(epsilon=0.05))
    rng = np.random.default_rng(0)
    other = rng.choice(np.fromiter(drawings, dtype=np.uint64), size=len(removed))
    shuffled = removed.with_columns(group=pl.Series(other))
    assert demo.against_truth(shuffled, drawings).precision < 0.1


def test_the_kept_share_of_a_target_is_met(emoji: Pipeline, demo: ModuleType) -> None:
    details = masks(emoji, demo, "keep=70%")
    assert details["kept"] == pytest.approx(0.7 * details["items"], abs=2)


def test_no_image_of_a_skin_tone_is_removed_where_they_are_protected(
    demo: ModuleType, emoji: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.report_protected(emoji, "has_skin_tone")
    printed = capsys.readouterr().out
    context = pipeline_context(emoji.model_copy(update={"selection": Selection(protect="has_skin_tone")}))
    toned = {
        item
        for shard in context.shards
        for file in shard.files
        for item, (_, members) in enumerate(emoji.source.samples(file.path), shard.index << 32)
        if json.loads(members["json"])["skin"] != "none"
    }
    assert len(toned) == 600
    for target in emoji.targets:
        record = context.index.require("keep_masks", Partition(clustering=demo.K, target=target))
        masks = pl.concat([pl.read_parquet(file.path) for file in mask_files(record)])
        assert toned <= set(masks.filter("kept")["id"].to_list())
        would_be = record.details["protected_would_be_removed"]
        assert record.details["protected"] == 600
        assert f" {would_be}\n" in printed
        if target.epsilon is not None:
            assert would_be == len(toned.intersection(demo.removed_at(emoji, target)["id"].to_list())) > 0


def test_the_contact_sheet_shows_the_removed_pairs(
    demo: ModuleType, emoji: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.setattr(demo, "SHEET", tmp_path / "sheet.png")
    records = demo.records_by_id(emoji)
    demo.write_sheet(emoji, records, demo.emoji_drawings(emoji))
    with Image.open(tmp_path / "sheet.png") as sheet:
        colours = {colour for _, colour in sheet.getcolors(1 << 24) or []}
    assert {(192, 57, 43), (58, 125, 68)} <= colours  # a wrong pair's frame, and a right one's


def test_running_the_demo_again_makes_nothing(demo: ModuleType, emoji: Pipeline, instance: dg.DagsterInstance) -> None:
    assert demo.materialise(emoji, instance) == 0


def masks(pipeline: Pipeline, demo: ModuleType, target: str) -> dict[str, Any]:
    partition = Partition(clustering=demo.K, target=Target.parse(target))
    return pipeline_context(pipeline).index.require("keep_masks", partition).details


def some_docstrings(most: int) -> list[bytes]:
    """Lines of a shard: every text that comes more than once, and others up to a number that a slow machine embeds."""
    lines = gzip.decompress((ROOT / "examples/docstrings/shards/00000.jsonl.gz").read_bytes()).splitlines()
    counts = Counter(json.loads(line)["text"] for line in lines)
    copied = [line for line in lines if counts[json.loads(line)["text"]] > 1]
    single = [line for line in lines if counts[json.loads(line)["text"]] == 1]
    assert copied
    return [*copied[: most // 2], *single[: most - len(copied[: most // 2])]]


def test_copied_docstrings_are_removed(
    demo: ModuleType, instance: dg.DagsterInstance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "00000.jsonl").write_bytes(b"\n".join(some_docstrings(160)) + b"\n")
    pipeline = moved(demo.load_pipeline("docstrings"), tmp_path / "store", source=str(source))
    demo.materialise(pipeline, instance)
    records = demo.records_by_id(pipeline)
    texts = [record.payload for record in records.values()]
    removed = demo.removed_at(pipeline, Target(epsilon=0.05))
    assert demo.exact_share(removed, records) * len(removed) == pytest.approx(len(texts) - len(set(texts)))
    demo.report(pipeline, records, {})
    printed = capsys.readouterr().out
    assert "largest groups" in printed
    assert re_kept(printed) == [masks(pipeline, demo, target)["kept"] for target in pipeline.epsilons]


def re_kept(printed: str) -> list[int]:
    """The column `kept` of the printed table."""
    rows = [line.split() for line in printed.splitlines() if line.strip()[:1].isdigit() or "keep=" in line]
    return [int(row[1]) for row in rows if len(row) >= 6 and row[1].isdigit()]
