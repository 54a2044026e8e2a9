"""Embed the references: data that are never in a manifest, and that training items are held against."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from semdedup_assets.checks.references import CHECKS
from semdedup_assets.execution.context import PartOfResult, StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.reference_files import (
    ReferenceFiles,
    list_references,
    note_references,
    observed_references,
    reference_parts,
)
from semdedup_assets.execution.shard_reader import accepts_cut_files
from semdedup_assets.execution.stage import Column, Stage, Worker
from semdedup_assets.records import id_rows, item_ids, positions_by_shard
from semdedup_assets.settings import Pipeline, Reference
from semdedup_assets.stages.embeddings import CONTENTS, FILES, KEYS, VECTOR, VECTORS, ShardEmbedder, model_settings
from semdedup_assets.storage.results import ResultRecord, StoredFile
from semdedup_assets.storage.tables import read_table

_COUNTED = ("items", "records", "skipped", "expected_missing")
_LISTED = 20


@dataclass(frozen=True, slots=True)
class ReferencePart:
    """What is stored of some files of a reference.

    Attributes:
        reference: name of the reference.
        index: of the part, from which its ids are made.
        items: how many were embedded.
        record: of the embeddings of all references.
    """

    reference: str
    index: int
    items: int
    record: ResultRecord

    def _file(self, name: str) -> StoredFile:
        return self.record.file(f"{_prefix(self.index)}{name}")

    @property
    def vectors(self) -> StoredFile:
        """Ids and unit vectors of the items."""
        return self._file(VECTORS)

    def keys(self) -> dict[int, str]:
        """The items' own names, by row."""
        table = read_table(self._file(KEYS), ["row", "key"])
        return dict(zip(table["row"].tolist(), table["key"].tolist(), strict=True))

    def files(self) -> tuple[list[str], np.ndarray]:
        """Paths of the files, and (files + 1,) the first row of each, with the number of all rows."""
        table = read_table(self._file(FILES), ["path", "records"])
        return table["path"].tolist(), np.cumsum([0, *table["records"].tolist()])

    def content_hashes(self) -> np.ndarray:
        """(records,) uint64, by row; 0 where a record has no content."""
        return read_table(self._file(CONTENTS), ["hash"])["hash"]


def _prefix(index: int) -> str:
    return f"p{index:06d}."


def _tasks(context: StageContext, _: Partition) -> Sequence[ReferenceFiles]:
    listed = list_references(context.pipeline)
    parts = reference_parts(context.pipeline, listed)
    # Whoever makes it sees today's files: without a refresh between, it is up to date.
    note_references(context, {part.reference: part.fingerprint for part in parts})
    return parts


def _worker(context: StageContext) -> Worker:
    model: Any = context.pipeline.encoder.load(context.compute)
    return lambda task: embed_part(context, task, model=model)


def embed_part(context: StageContext, task: ReferenceFiles, *, model: Any) -> PartOfResult:
    """Embed some files of a reference as the pipeline's own items are (SemDeDup, section 3).

    Args:
        context: of the pipeline.
        task: which files.
        model: what the pipeline's encoder loaded.

    Raises:
        SourceChangedError: a file is not the one that was listed.
        TruncatedFile: a file ends early, and `cut_files` does not accept it.
    """
    shard = task.shard
    source = context.pipeline.references[task.reference].source
    with context.writing_part("reference_embeddings", Partition()) as part:
        embedder = ShardEmbedder(context, model, source, prefix=_prefix(shard.index), with_keys=True)
        part.details = {
            **embedder.write(shard, part),
            "reference": task.reference,
            "index": shard.index,
            "fingerprint": task.fingerprint,
        }
    return PartOfResult({}, part.files, part.details)


def _finish(context: StageContext, partition: Partition, parts: list[PartOfResult]) -> ResultRecord:
    counted = {part.details["reference"]: Counter[str]() for part in parts}
    for part in parts:
        counted[part.details["reference"]].update({name: int(part.details[name]) for name in _COUNTED})
    details = {
        "items": sum(each["items"] for each in counted.values()),
        "references": [
            {"reference": name, **{each: counts[each] for each in _COUNTED}} for name, counts in counted.items()
        ],
        "skipped_examples": [each for part in parts for each in part.details["skipped_examples"]][:_LISTED],
        "cut_files": [each for part in parts for each in part.details["cut_files"]],
        "fingerprints": {part.details["reference"]: part.details["fingerprint"] for part in parts},
        "parts": [[part.details["reference"], part.details["index"], part.details["items"]] for part in parts],
    }
    return context.finish_parts("reference_embeddings", partition, parts, details)


def stored_parts(record: ResultRecord) -> Iterator[ReferencePart]:
    """What is stored of each part of the references, in the order of their ids.

    Args:
        record: of the embeddings of all references.
    """
    for reference, index, items in record.details["parts"]:
        yield ReferencePart(reference, int(index), int(items), record)


def reference_keys(record: ResultRecord, ids: np.ndarray) -> dict[int, str]:
    """The own names of some items of references, by id.

    Args:
        record: of the embeddings of all references.
        ids: (n,) uint64.
    """
    found: dict[int, str] = {}
    parts = {part.index: part for part in stored_parts(record)}
    for index, positions in positions_by_shard(ids):
        keys, rows = parts[index].keys(), np.unique(id_rows(ids[positions]))
        names = zip(item_ids(index, rows).tolist(), (keys[row] for row in rows.tolist()), strict=True)
        found.update(names)
    return found


def _accepts(context: StageContext, record: ResultRecord) -> bool:
    """Whether it is made of the files that were last seen, as far as any were: refreshes look."""
    observed = observed_references(context)
    same = all(observed.get(name, known) == known for name, known in record.details["fingerprints"].items())
    return same and accepts_cut_files(context, record)


def _determining(reference: Reference) -> dict[str, Any]:
    """What of a reference's settings can change what is stored of it; not its columns, of which none is."""
    source = reference.source
    items = {name: value for name, value in source.item_settings().items() if name != "columns"}
    files = source.model_dump(mode="json", include={"path", "metadata"}, exclude_none=True)
    return {**items, **source.payload_settings(), **files}


def has_references(pipeline: Pipeline) -> bool:
    """Whether training items are held against anything."""
    return bool(pipeline.references)


STAGE = Stage(
    name="reference_embeddings",
    step="1-embed",
    description="One unit vector (m × d, float16) for each item of the `references`, evaluation sets and other data that "
    "are never in a manifest, by the pipeline's own model; with keys, and the skipped items with their reasons.",
    dimensions=(),
    inputs=(),
    settings=lambda context: {
        "references": {name: _determining(each) for name, each in context.pipeline.references.items()},
        **model_settings(context.pipeline),
    },
    location=lambda layout, _, __: layout.reference_embeddings,
    worker=_worker,
    tasks=_tasks,
    finish=_finish,
    applies=lambda pipeline, _: has_references(pipeline),
    accepts=_accepts,
    kinds=frozenset({"torch", "arrow"}),
    columns=lambda _: (
        Column("id", "uint64", "Identity among the references: part (32 bits) and row in the part (32 bits)."),
        VECTOR,
    ),
    checks=CHECKS,
    unit="parts",
)
