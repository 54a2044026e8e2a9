"""A small pipeline on the files of a folder, made stage by stage without Dagster."""

import io
import json
import tarfile
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from semdedup_assets.analyses import figures, galleries, removed_items, rule_comparison
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.runner import run_partitions
from semdedup_assets.execution.source_index import update_shard_index
from semdedup_assets.execution.stage import StageGraph
from semdedup_assets.settings import Pipeline
from semdedup_assets.stages import (
    assignments,
    centroids,
    duplicate_scores,
    embeddings,
    items,
    keep_masks,
    training_sample,
)
from semdedup_assets.storage.results import ResultRecord
from semdedup_assets.storage.vectors import read_vectors
from semdedup_assets_tests.oracle import unit
from semdedup_assets_tests.toy_source import vectors_settings

_MODULES = (items, embeddings, training_sample, centroids, assignments, duplicate_scores, keep_masks)
_ANALYSES = (figures, galleries, removed_items, rule_comparison)
GRAPH = StageGraph(tuple(module.STAGE for module in (*_MODULES, *_ANALYSES)))
MASKS = tuple(module.STAGE.name for module in _MODULES)
"""All stages up to the masks."""


@dataclass(frozen=True, eq=False)
class SmallPipeline:
    """Settings of a pipeline, and a view of its store as it was when first asked."""

    settings: dict[str, Any]

    def changed(self, **changes: Any) -> "SmallPipeline":
        """The same with other settings, and a new view; a dictionary changes the settings that it names."""
        settings = deepcopy(self.settings)
        for name, value in changes.items():
            merge = isinstance(value, dict) and isinstance(settings.get(name), dict)
            settings[name] = {**settings[name], **value} if merge else value
        return SmallPipeline(settings)

    @cached_property
    def context(self) -> StageContext:
        return self._new_context()

    def _new_context(self) -> StageContext:
        pipeline = Pipeline.model_validate(self.settings)
        return StageContext(pipeline, GRAPH, next(iter(pipeline.named_selections.values())), pipeline.compute)

    def observe(self) -> None:
        """List the source; the view sees what is new only if it was not asked before."""
        update_shard_index(self._new_context())

    def make(self, *stages: str) -> dict[str, list[str]]:
        """Make what is missing or stale; returns the partitions by stage, of stages with any."""
        made = {}
        for name in stages:
            stale = self.context.index.stale(name)
            done = [str(each) for each, _ in run_partitions(self.context, GRAPH[name], stale)]
            if done:
                made[name] = done
        return made

    def make_partition(self, stage: str, key: str) -> ResultRecord:
        """Make one partition, whether or not it is up to date."""
        partition = self.partition(stage, key)
        ((_, record),) = run_partitions(self.context, GRAPH[stage], [partition], again=True)
        return record

    def partition(self, stage: str, key: str) -> Partition:
        return Partition.parse(key, GRAPH[stage].dimensions)

    def record(self, stage: str, key: str) -> ResultRecord:
        return self.context.index.require(stage, self.partition(stage, key))

    def items(self, key: str) -> pl.DataFrame:
        """Scores, mask and float64 unit vector of every item of a kept set, by cluster and keep-order."""
        masks, partition = self.record("keep_masks", key), self.partition("keep_masks", key)
        parts = []
        for file in duplicate_scores.scores_files(self.context, partition.required_clustering):
            mask = pl.read_parquet(masks.file(f"{file.location.rpartition('/')[2]}.parquet").path)
            parts.append(pl.read_parquet(file.path).join(mask, on="id", maintain_order="left"))
        stored = [
            table
            for record in self.context.index.require_all("embeddings").values()
            for table in read_vectors(record.file(embeddings.VECTORS))
        ]
        rows = unit(np.concatenate([table.vectors for table in stored]))
        units = pl.DataFrame({"id": np.concatenate([table.ids for table in stored]), "unit": rows})
        return pl.concat(parts).join(units, on="id", maintain_order="left")


def made(settings: dict[str, Any], *stages: str) -> SmallPipeline:
    """A pipeline of which the source is listed, and everything up to the masks and some more stages is made."""
    pipeline = SmallPipeline(settings)
    pipeline.observe()
    pipeline.make(*MASKS, *stages)
    return pipeline


def read_table(record: ResultRecord, name: str) -> pl.DataFrame:
    return pl.read_parquet(io.BytesIO(record.file(name).content()))


def analysed_settings(folder: Path) -> dict[str, Any]:
    """Settings of a pipeline on the `.npy` files of `folder/source`, some of whose items may be invalid."""
    return vectors_settings(folder, max_skipped=0.2, refresh={"attempts": 1})


_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
}


def checkpoint(folder: Path) -> Path:
    """A tiny OpenCLIP model with random weights, as OpenCLIP lays out a local one."""
    import open_clip
    import torch
    from safetensors.torch import save_model

    folder.mkdir()
    torch.manual_seed(0)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": _CLIP, "preprocess_cfg": {}}))
    save_model(open_clip.CLIP(**_CLIP), str(folder / "open_clip_model.safetensors"))
    return folder


def image_settings(folder: Path, kind: str) -> dict[str, Any]:
    """Settings of a pipeline on the images of `folder/source`, with a model made here."""
    return analysed_settings(folder) | {
        "model": "tiny",
        "source": {"kind": kind, "path": str(folder / "source")},
        "encoder": {"kind": "openclip", "model": str(checkpoint(folder / "clip")), "precision": "float32"},
        "clustering": {"k": [1], "buckets": 1, "iterations": 5},
        "epsilons": ["0.000001"],
    }


def png(seed: int) -> bytes:
    """A picture of random patches."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).resize((40, 40)).save(content, "PNG")
    return content.getvalue()


def write_tar(path: Path, *, first: int) -> None:
    """Ten samples of which the last two are the bytes of the first two, and the sixth is damaged."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in _members(first):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _members(first: int) -> Iterator[tuple[str, bytes]]:
    for number in range(10):
        image = png(first + number % 8)
        yield f"{first + number:05d}.png", image[:50] if number == 5 else image
        yield f"{first + number:05d}.txt", f'a caption, "{first + number}"\tof two words'.encode()
