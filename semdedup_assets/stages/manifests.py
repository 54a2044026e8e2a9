"""Write what a training job reads: the kept items, in the order of the source."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from semdedup_assets.checks.manifests import CHECKS
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import PartOfResult, StageContext, used_for
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Stage
from semdedup_assets.records import id_rows, positions_by_shard
from semdedup_assets.stages.items import item_columns
from semdedup_assets.stages.keep_masks import mask_files
from semdedup_assets.stages.manifest_formats import SHARD_FORMATS, KeptShard, write_csv
from semdedup_assets.stages.manifest_rows import rows_written
from semdedup_assets.storage.files import join, write_bytes
from semdedup_assets.storage.results import (
    FolderWriter,
    MissingResultError,
    ResultRecord,
    attempting,
    fingerprint,
    require_written,
)
from semdedup_assets.storage.tables import read_tables

MANIFEST = "manifest.json"
"""What a manifest holds and was made from, in its folder."""


@dataclass(frozen=True, slots=True)
class _ManifestTask:
    """What one shard gives to all formats; without a shard, what is one file for all of them.

    Attributes:
        attempt: name of the manifest's folder, which all its tasks share.
    """

    partition: Partition
    shard: str | None
    attempt: str
    inputs: dict[str, str]


def _tasks(context: StageContext, partition: Partition) -> Sequence[_ManifestTask]:
    inputs = context.index.input_versions("manifests", partition)
    context.index.require_consistent("keep_masks", partition)
    writer = FolderWriter(context.location("manifests", partition))
    attempt = f"{fingerprint([inputs, context.code_version('manifests')])[:16]}-{writer.attempt[:6]}"
    shards: list[str | None] = [shard.name for shard in context.shards]
    if "csv" in context.pipeline.manifests:
        shards.append(None)
    return [_ManifestTask(partition, shard, attempt, inputs) for shard in shards]


class _Worker:
    """Writes manifests; the masks of a kept set, which lie by cluster, are brought into the source's order once."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._gathered: tuple[str, dict[str, KeptShard]] | None = None

    def __call__(self, task: _ManifestTask) -> PartOfResult:
        if self._gathered is None or self._gathered[0] != task.attempt:
            self._context.index.require_inputs("manifests", task.partition, task.inputs)
            with usage.phase("gather"):
                self._gathered = task.attempt, kept_shards(self._context, task.partition)
        kept = self._gathered[1]
        context, location = self._context, self._context.location("manifests", task.partition)
        with attempting(FolderWriter(location, task.attempt)) as writer:
            if task.shard is None:
                with usage.phase("write csv"):
                    write_csv(context, list(kept.values()), writer)
            else:
                for name in (name for name in context.pipeline.manifests if name in SHARD_FORMATS):
                    with usage.phase(f"write {name}"):
                        SHARD_FORMATS[name](context, kept[task.shard], writer)
        shard = kept[task.shard].kept if task.shard is not None else np.zeros(0, dtype=bool)
        unlisted = kept[task.shard].unlisted if task.shard is not None else (0, 0)
        with usage.phase("count"):
            rows = rows_written(join(location, task.attempt), writer.files)
        counts = {"kept": int(shard.sum()), "records": len(shard), "unlisted": unlisted, "rows_written": rows}
        return PartOfResult(task.inputs, writer.files, {**counts, "attempt": task.attempt, "usage": used_for(None)})


def kept_shards(context: StageContext, partition: Partition) -> dict[str, KeptShard]:
    """What is kept of each shard, by its name; one byte an item.

    Args:
        context: of the pipeline and the selection.
        partition: a kept set.

    Raises:
        MissingResultError: masks or items are missing, or the masks are of other items than the source has now.
    """
    items = {each.required_shard: record for each, record in context.index.require_all("items").items()}
    shards = context.shards
    bits = {shard.index: np.zeros(int(items[shard.name].details["items"]), dtype=bool) for shard in shards}
    unlisted = {shard.index: np.zeros(2, np.int64) for shard in shards if items[shard.name].excluded}
    masks = context.index.require("keep_masks", partition)
    for part in (part for file in mask_files(masks) for part in read_tables(file, ["id", "kept"])):
        rows = id_rows(part["id"])
        for shard, positions in positions_by_shard(part["id"]):
            kept = rows[positions[part["kept"][positions]]]
            if shard in unlisted:
                unlisted[shard] += [len(positions), len(kept)]
            elif len(kept):
                if shard not in bits or int(kept.max()) >= len(bits[shard]):
                    message = (
                        f"{masks.location}: made of other items than there are now; {context.remedy('items')} and what "
                        "follows"
                    )
                    raise MissingResultError(message)
                bits[shard][kept] = True
    of_shard = {shard: (int(found), int(kept)) for shard, (found, kept) in unlisted.items()}
    return {
        shard.name: KeptShard(shard, items[shard.name], bits[shard.index], of_shard.get(shard.index, (0, 0)))
        for shard in shards
    }


def _finish(context: StageContext, partition: Partition, parts: list[PartOfResult]) -> ResultRecord:
    attempt, inputs = parts[0].details["attempt"], parts[0].inputs
    kept_set = partition.kept_set(context.selection)
    masks = context.index.require("keep_masks", partition).details
    writer = FolderWriter(context.location("manifests", partition), attempt)
    rows: dict[str, int] = {}
    for part in parts:
        writer.files |= part.files
        for kind, count in part.details["rows_written"].items():
            rows[kind] = rows.get(kind, 0) + count
    records = sum(part.details["records"] for part in parts)
    kept = sum(part.details["kept"] for part in parts)
    unlisted, unlisted_kept = (sum(part.details["unlisted"][index] for part in parts) for index in range(2))
    items = int(masks["items"]) - unlisted
    details = {
        "manifest": attempt,
        "kept": kept,
        "removed": items - kept,
        "skipped": records - items,
        "records": records,
        # Embedded and selected, but their keys could not be read, so that no format can name them.
        "unlisted": unlisted,
        "unlisted_kept": unlisted_kept,
        "rows_written": rows,
        "made_with": _made_with(context, partition, epsilon=float(masks["epsilon"])),
    }
    writer.details = {**details, **usage.added(part.details["usage"] for part in parts)}
    require_written(writer)
    write_bytes(writer.path(MANIFEST), json.dumps({**details, "inputs": inputs}, indent=1).encode())
    # The folder lies beside the pointer: named so, the pointer holds wherever the store is moved to.
    pointer = {"folder": attempt, "version": attempt, "epsilon": str(partition.target), "k": str(partition.clustering)}
    write_bytes(context.layout.current_manifest(kept_set), json.dumps(pointer, indent=1).encode())
    return context.commit("manifests", writer, inputs=inputs, keep_earlier=True)


def _made_with(context: StageContext, partition: Partition, *, epsilon: float) -> dict[str, Any]:
    """The settings and the data that a manifest goes back to."""
    pipeline, clustering = context.pipeline, partition.required_clustering
    items = context.index.require_all("items")
    return {
        "dataset": pipeline.dataset,
        "dataset_fingerprint": fingerprint([record.inputs["shards"] for record in items.values()]),
        "model": pipeline.model_name,
        "encoder": pipeline.encoder.identity(),
        "k": clustering.k,
        "clustering": {
            "seed": clustering.seed,
            "engine": pipeline.clustering.engine,
            "iterations": pipeline.iterations,
        },
        "training_sample": pipeline.training_sample.model_dump(mode="json"),
        "selection": context.selection.model_dump(mode="json"),
        "target": str(partition.target),
        "epsilon": epsilon,
        "excluded": {
            str(shard): reason
            for stage in ("items", "embeddings")
            for shard, reason in context.index.excluded(stage).items()
        },
    }


STAGE = Stage(
    name="manifests",
    step="5-train",
    description="The kept items in the order of the source, in the formats that training jobs read. A manifest is never "
    "changed: a new one lies beside the old, and `current.json` says which is current.",
    dimensions=("epsilon", "k"),
    inputs=("keep_masks", "items"),
    settings=lambda context: {"formats": sorted(context.pipeline.manifests)},
    location=lambda layout, partition, selection: layout.of_kept_set(partition.kept_set(selection), "manifests"),
    worker=_Worker,
    tasks=_tasks,
    finish=_finish,
    kinds=frozenset({"parquet"}),
    columns=item_columns,
    checks=CHECKS,
    selected=True,
    pool=None,
    unit="shards",
)
