"""Write what a training job reads: the kept items, in the order of the source."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semdedup_assets.checks.manifests import MANIFESTS, ManifestStage, manifest_checks
from semdedup_assets.execution import progress, usage
from semdedup_assets.execution.context import PartOfResult, StageContext, used_for
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import Progress
from semdedup_assets.execution.stage import Stage, Worker
from semdedup_assets.kept_sets import Selection
from semdedup_assets.settings import Pipeline
from semdedup_assets.sources.reading import printable
from semdedup_assets.stages.filtered_files import require_distinct_names
from semdedup_assets.stages.item_groups import EVERY_SHARD
from semdedup_assets.stages.kept_rows import KeptShard, ShardChunk, kept_shards, shard_chunks
from semdedup_assets.stages.manifest_formats import COPIES, Counts, write_csv, write_shard
from semdedup_assets.stages.manifest_rows import CSV, CountingFolder, csv_part
from semdedup_assets.stages.manifest_tables import kept_columns
from semdedup_assets.stages.mask_adjustments import removing_references
from semdedup_assets.storage.files import read_many, remove_all, write_bytes
from semdedup_assets.storage.layout import current_manifest
from semdedup_assets.storage.manifests import MANIFEST
from semdedup_assets.storage.overlap import calls_at_once, overlapped
from semdedup_assets.storage.results import (
    FolderWriter,
    ResultRecord,
    StoredFile,
    attempting,
    copy_verified,
    fingerprint,
    read_record,
    require_written,
)

_LISTED = 20
_GROUPED = {"parquet", "removed"}


@dataclass(frozen=True, slots=True)
class _ManifestTask:
    """The files of some consecutive shards in all formats.

    Attributes:
        attempt: name of the manifest's folder, which all its tasks share.
    """

    partition: Partition
    chunk: ShardChunk
    attempt: str
    inputs: dict[str, str]


def _tasks(context: StageContext, stage: ManifestStage, partition: Partition) -> Sequence[_ManifestTask]:
    inputs = context.index.input_versions(stage.name, partition)
    context.index.require_consistent(stage.masks, partition)
    _require_names(context)
    writer = FolderWriter(context.location(stage.name, partition))
    attempt = f"{fingerprint([inputs, context.code_version(stage.name)])[:16]}-{writer.attempt[:6]}"
    # Within clusters a group lies in one range of them, and each range has a file.
    closed = stage == MANIFESTS and context.selection.repair is None
    chunks = shard_chunks(context, closed=closed, copied=_copies(context.pipeline))
    return [_ManifestTask(partition, chunk, attempt, inputs) for chunk in chunks]


def _require_names(context: StageContext) -> None:
    """See that each file of a manifest has a name of its own, before any is written: the second would replace the first."""
    if "filtered" in context.pipeline.manifests:
        require_distinct_names(context)


class ManifestWorker:
    """Writes manifests; the masks, which lie by cluster, are brought into the source's order once for each task.

    Args:
        context: of the pipeline and the selection.
        stage: which writes them.
    """

    def __init__(self, context: StageContext, stage: ManifestStage) -> None:
        self._context, self._stage = context, stage

    def __call__(self, task: _ManifestTask) -> PartOfResult:
        """Write what some shards give to all formats: of an object store, several shards at a time."""
        context = self._context
        context.index.require_inputs(self._stage.name, task.partition, task.inputs)
        masks = context.index.require(self._stage.masks, task.partition)
        location = context.location(self._stage.name, task.partition)
        with attempting(FolderWriter(location, task.attempt)) as writer:
            shards = _write_chunk(context, masks, task.chunk, writer, title=self._stage.name)
        details = {"shards": shards, "attempt": task.attempt, "usage": used_for(None)}
        return PartOfResult(task.inputs, writer.files, details)


def write_manifest(
    context: StageContext, partition: Partition, masks: ResultRecord, folder: str, *, inputs: Mapping[str, str]
) -> dict[str, Any]:
    """Write a manifest of masks that no stage has, into a folder of its own: with `manifest.json`, without a record.

    Args:
        context: of the pipeline and the selection.
        partition: the kept set in whose place the masks are.
        masks: record of them; its details have what a baseline's have.
        folder: local, empty or missing.
        inputs: versions of what the masks and the manifest go back to.

    Returns:
        What `manifest.json` says, without the inputs.

    Raises:
        MissingResultError: items or embeddings are missing, or the masks are of other items than the source has now.
        SourceChangedError: items, vectors and the source's files are not of one state.
    """
    _require_names(context)
    path = Path(folder).absolute()
    chunk = ShardChunk(0, EVERY_SHARD.stop, closed=False, copied=_copies(context.pipeline))
    with attempting(FolderWriter(str(path.parent), path.name)) as writer:
        written = _write_chunk(context, masks, chunk, writer, title=f"manifest {path.name}")
        details = _details(context, partition, masks.details, written, attempt=path.name)
        _write_details(writer, details, inputs)
    return details


def _write_chunk(
    context: StageContext, masks: ResultRecord, chunk: ShardChunk, writer: FolderWriter, *, title: str
) -> list[dict[str, Any]]:
    """Write what the shards of a chunk give to all formats; returns the counts of each shard, and of the CSV file."""
    with usage.phase("gather"):
        found = kept_shards(context, masks, chunk)

    def write(kept: KeptShard) -> dict[str, Any]:
        return {**_written(context, writer, lambda own: write_shard(context, kept, own)), **_counts(kept)}

    counts = list[dict[str, Any]]()
    with usage.phase("write"), Progress(title, total=len(found.shards), unit="shards") as progress:
        for shard in overlapped(write, found, most=calls_at_once(writer.location)):
            counts.append(shard)
            progress.advance()
    if "csv" in context.pipeline.manifests:
        name = CSV if chunk.whole else csv_part(chunk.start)
        with usage.phase("write csv"):
            counts.append(_written(context, writer, lambda own: write_csv(found, own, name)))
    return counts


def _written(context: StageContext, writer: FolderWriter, write: Callable[[CountingFolder], Counts]) -> dict[str, Any]:
    """Write some files of a task, and count what they hold.

    Args:
        context: of the pipeline.
        writer: the task's; it knows the files once they are complete.
        write: writes them.
    """
    with attempting(CountingFolder(writer.location, writer.attempt, source=context.pipeline.source.kind)) as own:
        changed = write(own)
        writer.files |= own.files
    return {"rows_written": own.rows, "group_counts": own.group_counts, "changed": changed}


def _counts(kept: KeptShard) -> dict[str, Any]:
    """What a shard adds to the manifest's counts."""
    counts = {"kept": int(kept.kept.sum()), "records": len(kept.kept)}
    held_out = 0 if kept.items.excluded else int(kept.embeddings.details.get("held_out", 0))
    return {**counts, "held_out": held_out, "unlisted": kept.unlisted, "unnameable": kept.unnameable}


def _finish(
    context: StageContext, stage: ManifestStage, partition: Partition, parts: list[PartOfResult]
) -> ResultRecord:
    attempt, inputs = parts[0].details["attempt"], parts[0].inputs
    masks = context.index.require(stage.masks, partition).details
    writer = FolderWriter(context.location(stage.name, partition), attempt)
    for part in parts:
        writer.files |= part.files
    written = [each for part in parts for each in part.details["shards"]]
    details = _details(context, partition, masks, written, attempt=attempt)
    writer.details = {**details, **usage.added(part.details["usage"] for part in parts)}
    require_written(writer)
    _join_csv(writer)
    _write_details(writer, details, inputs)
    record = context.commit(stage.name, writer, inputs=inputs, keep_earlier=True)
    _publish(partition, record)
    return record


def _publish(partition: Partition, record: ResultRecord) -> None:
    """Name a manifest as the current one, or the one that another run has committed meanwhile."""
    latest: ResultRecord | None = record
    while latest is not None:
        named = latest
        write_bytes(current_manifest(named.location), _pointer(partition, named))
        latest = read_record(named.location)
        if latest is not None and latest.details["manifest"] == named.details["manifest"]:
            return


def _pointer(partition: Partition, record: ResultRecord) -> bytes:
    """What `current.json` holds. The folder lies beside it: named so, it holds wherever the store is moved to."""
    name = record.details["manifest"]
    return json.dumps({"folder": name, "version": name, **_dimensions(partition)}, indent=1).encode()


def _settle(_: StageContext, records: Mapping[Partition, ResultRecord]) -> None:
    """Name the recorded manifests where `current.json` does not: its run was killed, or another ran at the same time."""
    pointers = read_many([current_manifest(record.location) for record in records.values()])
    for (partition, record), pointer in zip(records.items(), pointers, strict=True):
        if pointer != _pointer(partition, record):
            progress.log(
                f"{current_manifest(record.location)}: names {record.details['manifest']} now, as the record does"
            )
            _publish(partition, record)


def _details(
    context: StageContext,
    partition: Partition,
    masks: Mapping[str, Any],
    written: Sequence[Mapping[str, Any]],
    *,
    attempt: str,
) -> dict[str, Any]:
    """What a manifest holds, counted, and what it was made with.

    Args:
        context: of the pipeline and the selection.
        partition: which manifest.
        masks: details of what decided which items are kept.
        written: counts of its files.
        attempt: name of its folder.
    """
    shards = [each for each in written if "records" in each]
    records, kept, held_out = (sum(shard[name] for shard in shards) for name in ("records", "kept", "held_out"))
    unlisted, unlisted_kept = (sum(shard["unlisted"][index] for shard in shards) for index in range(2))
    unnameable = {path: items for shard in shards for path, items in shard["unnameable"].items()}
    items = int(masks["items"]) - unlisted
    return {
        "manifest": attempt,
        "kept": kept,
        "removed": items - kept,
        "skipped": records - items - held_out,
        **({} if context.pipeline.held_out is None else {"held_out": held_out}),
        "records": records,
        # Embedded and selected, but their keys could not be read, so that no format can name them.
        "unlisted": unlisted,
        "unlisted_kept": unlisted_kept,
        # Of files whose names are not UTF-8: Parquet holds an escaped name, and `open_clip.csv` none of them.
        "unnameable": sum(unnameable.values()),
        "unnameable_examples": [printable(path) for path in list(unnameable)[:_LISTED]],
        "changed": _added(written, "changed"),
        "rows_written": _added(written, "rows_written"),
        # Kept and removed items must say the same of their groups.
        **(_added(written, "group_counts") if set(context.pipeline.manifests) >= _GROUPED else {}),
        "made_with": _made_with(context, partition, masks),
    }


def _write_details(writer: FolderWriter, details: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
    write_bytes(writer.path(MANIFEST), json.dumps({**details, "inputs": inputs}, indent=1).encode())


def _dimensions(partition: Partition) -> dict[str, str]:
    """What a partition is of, by the names of its dimensions."""
    named = {"epsilon": partition.target, "k": partition.clustering}
    return {name: str(value) for name, value in named.items() if value is not None}


def _join_csv(writer: FolderWriter) -> None:
    """Make one file of the parts that several tasks wrote, in the order of their shards, and remove them."""
    starts = sorted(int(name.removeprefix(csv_part(""))) for name in writer.files if name.startswith(csv_part("")))
    if not starts:
        return
    parts = {name: writer.files.pop(name) for name in map(csv_part, starts)}
    with writer.open(CSV) as stream:
        for name, entry in parts.items():
            copy_verified(StoredFile(writer.path(name), entry, writer.location), stream)
    remove_all([writer.path(name) for name in parts])


def _added(written: Sequence[Mapping[str, Any]], name: str) -> dict[str, int]:
    """Counts of all that was written together, by what is counted."""
    found: dict[str, int] = {}
    for each in written:
        for kind, count in each[name].items():
            found[kind] = found.get(kind, 0) + count
    return found


def _made_with(context: StageContext, partition: Partition, masks: Mapping[str, Any]) -> dict[str, Any]:
    """The settings and the data that a manifest goes back to.

    Args:
        context: of the pipeline and the selection.
        partition: which manifest.
        masks: details of what decided which items are kept; `made_with` among them stands for a clustering and a
            selection where it did without.
    """
    pipeline = context.pipeline
    items = context.index.require_all("items")
    return {
        "dataset": pipeline.dataset,
        "dataset_fingerprint": fingerprint([record.inputs["shards"] for record in items.values()]),
        "model": pipeline.model_name,
        "encoder": pipeline.encoder.identity(),
        **(masks["made_with"] if "made_with" in masks else _clustered(context, partition, masks)),
        "excluded": {
            str(shard): reason
            for stage in ("items", "embeddings")
            for shard, reason in context.index.excluded(stage).items()
        },
    }


def _clustered(context: StageContext, partition: Partition, masks: Mapping[str, Any]) -> dict[str, Any]:
    pipeline, clustering = context.pipeline, partition.required_clustering
    return {
        "k": clustering.k,
        "clustering": {
            "seed": clustering.seed,
            "engine": pipeline.clustering.engine,
            "iterations": pipeline.iterations,
        },
        "training_sample": pipeline.training_sample.model_dump(mode="json"),
        "selection": context.selection.model_dump(mode="json", exclude_none=True, exclude={"limit"}),
        "target": str(partition.target),
        "epsilon": float(masks["epsilon"]),
    }


def _copies(pipeline: Pipeline) -> bool:
    """Whether a manifest copies the source's records, and so reads its files again."""
    return not COPIES.isdisjoint(pipeline.manifests)


def _optional_inputs(pipeline: Pipeline, _: Selection) -> tuple[str, ...]:
    """What copies the source's records changes with all that its files hold, also where items and masks do not."""
    return ("shards",) if _copies(pipeline) else ()


def _settings(context: StageContext) -> dict[str, Any]:
    pipeline = context.pipeline
    weight = {} if _GROUPED.isdisjoint(pipeline.manifests) else {"weight": pipeline.manifest_weight}
    # Only where there is such a column: the manifests of others stay as they are.
    removing = removing_references(pipeline) if "removed" in pipeline.manifests else ()
    copied = (
        "filtered" in pipeline.manifests and pipeline.source.kind == "parquet" and pipeline.source.content == "image"
    )
    return {
        "formats": sorted(pipeline.manifests),
        **weight,
        **({"removed_by": removing} if removing else {}),
        **({"images": "in tables"} if copied else {}),
    }


def manifest_stage(stage: ManifestStage, worker: Callable[[StageContext], Worker]) -> Stage:
    """A stage that writes manifests from masks: the method's own, or a baseline's with what it replaces.

    Args:
        stage: its name, and whose masks it reads.
        worker: makes a `ManifestWorker`; a function of the module whose `STAGE` this becomes.
    """
    return Stage(
        name=stage.name,
        step="5-train",
        description="The kept items in the order of the source, in the formats that training jobs read, each with how "
        "many it stands for; and the removed ones, each with the kept item that stands for it (format `removed`). A "
        "manifest is never changed: a new one lies beside the old, and `current.json` says which is current.",
        dimensions=("epsilon", "k"),
        inputs=(stage.masks, "items"),
        optional_inputs=_optional_inputs,
        settings=_settings,
        location=lambda layout, partition, selection: layout.of_kept_set(partition.kept_set(selection), stage.name),
        worker=worker,
        version=4,
        tasks=lambda context, partition: _tasks(context, stage, partition),
        finish=lambda context, partition, parts: _finish(context, stage, partition, parts),
        kinds=frozenset({"parquet"}),
        columns=kept_columns,
        checks=manifest_checks(stage),
        selected=True,
        settle=_settle,
        pool="cpu",
        unit="shards",
    )


def _worker(context: StageContext) -> Worker:
    return ManifestWorker(context, MANIFESTS)


STAGE = manifest_stage(MANIFESTS, _worker)
