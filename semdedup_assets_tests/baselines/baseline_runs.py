"""Pipelines on the demos' data with copies in them, and what of their baselines is looked at."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from semdedup_assets.records import Record
from semdedup_assets.stage_graph import GRAPH
from semdedup_assets.stages.embeddings import VECTORS
from semdedup_assets.storage.vectors import read_ids
from semdedup_assets_tests.analyses.small_pipelines import checkpoint
from semdedup_assets_tests.stage_runs import StageRuns
from semdedup_assets_tests.toy_source import vectors_settings

EXAMPLES = Path(__file__).parents[2] / "examples"


def docstrings(count: int) -> list[str]:
    """The first texts of the demo."""
    with gzip.open(EXAMPLES / "docstrings" / "shards" / "00000.jsonl.gz", "rt") as stream:
        return [json.loads(line)["text"] for line, _ in zip(stream, range(count), strict=False)]


def edited(texts: list[str], seed: int) -> list[str | None]:
    """Texts with copies, near copies and items without a text among them."""
    rng = np.random.default_rng(seed)
    again: list[str | None] = [texts[at] for at in rng.integers(0, len(texts), len(texts) // 4)]
    for at in rng.integers(0, len(texts), len(texts) // 2).tolist():
        words = texts[at].split()
        for _ in range(int(rng.integers(1, 4))):
            words[int(rng.integers(len(words)))] = f"word{rng.integers(9)}"
        again.append("  ".join(words).upper())
    mixed = [*texts, *again, None, "", " "]
    return [mixed[at] for at in rng.permutation(len(mixed))]


def text_runs(folder: Path, texts: list[str | None], *, shards: int = 3, **changes: Any) -> StageRuns:
    """A pipeline on texts by the demo's static encoder, of which everything up to the manifests is made."""
    (folder / "source").mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(np.array_split(np.arange(len(texts)), shards)):
        with gzip.open(folder / "source" / f"{number}.jsonl.gz", "wt") as stream:
            for at in part:
                stream.write(json.dumps({} if texts[at] is None else {"text": texts[at]}) + "\n")
    encoder = {"kind": "sentence_transformers", "model": str(EXAMPLES / "docstrings" / "encoder")}
    return _made(folder, source={"kind": "jsonl"}, encoder=encoder, **changes)


def emoji_runs(folder: Path, **changes: Any) -> StageRuns:
    """A pipeline on two shards of the demo's pictures by a tiny random model."""
    (folder / "source").mkdir(parents=True)
    for number in range(2):
        shutil.copy(EXAMPLES / "emoji" / "shards" / f"{number:05d}.tar", folder / "source")
    encoder = {"kind": "openclip", "model": str(checkpoint(folder / "clip")), "precision": "float32"}
    return _made(folder, source={"kind": "webdataset"}, encoder=encoder, model="tiny", **changes)


def _made(folder: Path, *, source: dict[str, Any], **changes: Any) -> StageRuns:
    settings = {"clustering": {"k": [2], "buckets": 1, "iterations": 5}, "epsilons": ["0.1"], "max_skipped": 1}
    source = {**source, "path": str(folder / "source")}
    runs = StageRuns(vectors_settings(folder, source=source, **{**settings, **changes}), GRAPH)
    StageRuns(runs.settings).run()
    return runs


def items(runs: StageRuns) -> dict[int, str | bytes]:
    """The content of every item that has a vector, by id, in the order of ids; read from the source's own files."""
    source, found = runs.pipeline.source, dict[int, str | bytes]()
    for shard in runs.context().shards:
        records: list[Any] = [record for file in shard.files for record in source.read(file.path)]
        embedded = np.concatenate(list(read_ids(runs.record("embeddings", shard.name).file(VECTORS))))
        for item in embedded.tolist():
            record = records[item & 0xFFFFFFFF]
            assert isinstance(record, Record)
            found[item] = record.payload  # type: ignore[assignment]  # neither source has ready vectors
    return found


def masks(runs: StageRuns, stage: str, key: str = "") -> pl.DataFrame:
    """The masks of a baseline by id, once they are seen to be sound."""
    record = runs.record(stage, key)
    table = pl.read_parquet(record.file("masks.parquet").path)
    assert table.schema == {
        "id": pl.UInt64, "kept": pl.Boolean, "kept_neighbour": pl.UInt64, "kept_similarity": pl.Float32
    }  # fmt: skip
    assert table["kept_similarity"].null_count() == len(table) == table["id"].n_unique() == record.details["items"]
    assert table["kept"].sum() == record.details["kept"]
    assert table.filter("kept")["kept_neighbour"].null_count() == record.details["kept"]
    kept = set(table.filter("kept")["id"])
    assert set(table["kept_neighbour"].drop_nulls()) <= kept
    return table.sort("id")


def groups(table: pl.DataFrame) -> dict[int, int]:
    """The kept item of each one's group, by id."""
    return dict(zip(table["id"], table.select(pl.coalesce("kept_neighbour", "id")).to_series(), strict=True))


def manifest_ids(runs: StageRuns, stage: str, key: str = "") -> set[int]:
    """The ids that a manifest lists, and which its `manifest.json` counts."""
    context = runs.context()
    record = runs.record(stage, key)
    folder = Path(record.location) / json.loads((Path(record.location) / "current.json").read_text())["folder"]
    said = json.loads((folder / "manifest.json").read_text())
    listed = {int(item) for path in (folder / "parquet").glob("*.parquet") for item in pl.read_parquet(path)["id"]}
    assert said["kept"] == len(listed)
    for check in context.graph[stage].checks:
        assert check.evaluate(context).problems == [], check.name
    return listed
