"""What must hold of manifests."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import xxhash

from semdedup_assets.checks.counting import common_version
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Check, CheckResult, Problem
from semdedup_assets.storage.collected_records import RecordReader, folder_of
from semdedup_assets.storage.files import ListedFile, join, list_folders, open_file, read_many
from semdedup_assets.storage.layout import current_manifest
from semdedup_assets.storage.results import RECORD, ResultRecord, StoredFile, damaged, read_record

_BLOCK = 1 << 20
_NAMED = 3
_PUBLISHING_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class ManifestStage:
    """A stage that writes manifests, and the stage whose masks they are written from.

    Attributes:
        name: of the stage.
        masks: name of the stage that decides what is kept: the files of its results are tables with the columns id,
            kept, kept_neighbour and kept_similarity, and its details count items, kept and removed ones.
    """

    name: str = "manifests"
    masks: str = "keep_masks"


MANIFESTS = ManifestStage()
"""The method's own."""


def manifest_checks(stage: ManifestStage) -> tuple[Check, ...]:
    """What must hold of the manifests of a stage."""
    return (
        Check(
            _of(stage, counts_are_conserved),
            "Every record of the source is kept, removed, held out or skipped, each format holds as many rows as are kept, the "
            "groups hold each item once, and the files are as they were written.",
        ),
        Check(
            _of(stage, files_can_be_named),
            "Every kept item lies in a file whose name can be written as UTF-8, which Parquet and CSV need.",
            blocking=False,
        ),
    )


def _of(
    stage: ManifestStage, evaluate: Callable[[StageContext, ManifestStage], CheckResult]
) -> Callable[[StageContext], CheckResult]:
    """A check of one stage, under the name that it has for all."""

    @wraps(evaluate)
    def of_stage(context: StageContext) -> CheckResult:
        return evaluate(context, stage)

    return of_stage


def counts_are_conserved(context: StageContext, stage: ManifestStage = MANIFESTS) -> CheckResult:
    """Every record of the source is kept, removed, held out or skipped, and what is kept was written, and is there as written."""
    index, problems = context.index, []
    items, manifests = index.records("items"), index.records(stage.name)
    records = sum(int(record.details["items"]) for record in items.values())
    for partition, record in manifests.items():
        wrong = list(_miscounts(record.details))
        if record.inputs["items"] == common_version(items):
            expected = {"records": records, **_masked(context, stage, partition, record)}
            wrong += [
                f"{record.details[name]:,} {name} where {count:,} should be"
                for name, count in expected.items()
                if record.details[name] != count
            ]
        if wrong:
            folder = join(record.location, record.details["manifest"])
            remedy = f"{context.remedy(stage.name, partition)} again; this one lies in {folder}"
            problems.append(Problem(str(partition), "; ".join(wrong), remedy))
    problems += _tampered(context, stage.name)
    return CheckResult(
        "manifests do not add up to their source", problems, {"manifests": len(manifests), "records": records}
    )


def _miscounts(details: dict[str, Any]) -> Iterator[str]:
    total = details["kept"] + details["removed"] + details["skipped"] + details.get("held_out", 0)
    if total != details["records"]:
        yield f"kept, removed, held out and skipped are {total:,}, records {details['records']:,}"
    for kind, rows in details["rows_written"].items():
        if kind == "removed":
            if rows != details["removed"]:
                yield f"{rows:,} rows in removed, {details['removed']:,} removed"
            continue
        nameable = details["kept"] - (details["unnameable"] if kind == "open_clip.csv" else 0)
        if rows != nameable:
            yield f"{rows:,} rows in {kind}, {nameable:,} kept"
    if details.get("stood_for") != details.get("grouped"):
        yield f"the kept items stand for {details['stood_for']:,}, {details['grouped']:,} belong to one"


def _tampered(context: StageContext, stage: str) -> Iterator[Problem]:
    """The manifests that are not what was written; where a refresh would not see that, the record is set aside."""
    partitions = context.index.partitions(stage) if context.shard_index.shards else []
    locations = [context.location(stage, partition) for partition in partitions]
    stored = _Stored.at(locations)
    pointers = read_many([current_manifest(location) for location in locations])
    for partition, location, pointer in zip(partitions, locations, pointers, strict=True):
        record = stored.records.get(location)
        found = [] if record is None else list(_differing(record, stored.files))
        if record is not None and found and context.index.record(stage, partition) is not None:
            damaged(record.location, "; ".join(found[:_NAMED]))
        found += _pointer_problem(location, pointer, record)
        if found:
            more = f" and {len(found) - _NAMED:,} more" if len(found) > _NAMED else ""
            yield Problem(str(partition), f"{'; '.join(found[:_NAMED])}{more}", context.remedy(stage, partition))


@dataclass(frozen=True, slots=True)
class _Stored:
    """Manifests as the store itself has them: the index passes over a record whose files are not all there.

    Attributes:
        records: by location.
        files: all that lie beside the records and in the folders of their versions, by path.
    """

    records: dict[str, ResultRecord]
    files: dict[str, ListedFile]

    @classmethod
    def at(cls, locations: Sequence[str]) -> "_Stored":
        """Read together what lies at some locations; a damaged record is set aside."""
        folders = list_folders({folder_of(location) for location in locations})
        paths = [path for location in locations if (path := f"{location}{RECORD}") in folders[folder_of(location)]]
        records = {}
        for path, record in RecordReader().read(folders, paths).items():
            if isinstance(record, ResultRecord):
                records[record.location] = record
            else:
                damaged(path.removesuffix(RECORD), str(record))
        named = {record.listed_in(entry.path) for record in records.values() for entry in record.files.values()}
        listed = [*folders.values(), *list_folders(named - folders.keys(), recursive=True).values()]
        return cls(records, {path: file for files in listed for path, file in files.items()})


def _pointer_problem(location: str, content: bytes | None, record: ResultRecord | None) -> list[str]:
    """Why a training job would be sent to another manifest than the recorded one."""
    if _disagreement(content, record):
        # Another run may have been between its record and its pointer.
        time.sleep(_PUBLISHING_SECONDS)
        (content,), record = read_many([current_manifest(location)]), read_record(location) or record
    return _disagreement(content, record)


def _disagreement(content: bytes | None, record: ResultRecord | None) -> list[str]:
    if content is None:
        return [] if record is None else ["current.json is missing"]
    try:
        folder = json.loads(content)["folder"]
    except (ValueError, TypeError, KeyError):
        return ["current.json is damaged"]
    recorded = None if record is None else record.details["manifest"]
    return [] if folder == recorded else [f"current.json names {folder}, and the record {recorded or 'is missing'}"]


def _differing(record: ResultRecord, listed: Mapping[str, ListedFile]) -> Iterator[str]:
    """The files of a manifest that are missing, or hold other bytes; only what is newer than the record is read."""
    parent = record.location.rpartition("/")[0]
    own = listed.get(f"{record.location}{RECORD}")
    committed = None if own is None else own.modified
    for name, entry in record.files.items():
        file, found = record.file(name), listed.get(join(parent, entry.path))
        if found is None:
            yield f"{name} is missing"
        elif found.size != file.entry.size:
            yield f"{name} has {found.size:,} bytes where {file.entry.size:,} were written"
        elif _may_be_newer(found, committed) and not _holds_what_was_written(file):
            yield f"{name} holds other bytes than were written"


def _may_be_newer(file: ListedFile, committed: float | None) -> bool:
    return committed is None or file.modified is None or file.modified >= committed


def _holds_what_was_written(file: StoredFile) -> bool:
    whole = xxhash.xxh3_128()
    with open_file(file.path) as stream:
        for block in iter(lambda: stream.read(_BLOCK), b""):
            whole.update(block)
    return bool(whole.hexdigest() == file.entry.checksum)


def _masked(
    context: StageContext, stage: ManifestStage, partition: Partition, manifest: ResultRecord
) -> dict[str, int]:
    masks = context.index.record(stage.masks, partition)
    if masks is None or manifest.inputs[stage.masks] != masks.version:
        return {}
    # Those of shards whose keys could not be read are in the masks, and in no manifest.
    unlisted, unlisted_kept = manifest.details["unlisted"], manifest.details["unlisted_kept"]
    return {
        "kept": int(masks.details["kept"]) - unlisted_kept,
        "removed": int(masks.details["removed"]) - (unlisted - unlisted_kept),
    }


def files_can_be_named(context: StageContext, stage: ManifestStage = MANIFESTS) -> CheckResult:
    """Each kept item can be named in every format of its manifest."""
    problems = []
    for partition, record in context.index.records(stage.name).items():
        count, formats = record.details["unnameable"], record.details["rows_written"]
        effects = {
            "open_clip.csv": "open_clip.csv leaves them out",
            "parquet": "Parquet holds escaped names",
            "filtered": "copies have escaped names",
        }
        affected = [effect for name, effect in effects.items() if name in formats]
        if count and affected:
            names = ", ".join(record.details["unnameable_examples"][:_NAMED])
            measured = f"{count:,} kept items of files whose names are not UTF-8 ({names}): {'; '.join(affected)}"
            remedy = "rename the files, or read the format `keep_lists` or `webdataset`"
            problems.append(Problem(str(partition), measured, remedy))
    return CheckResult("manifests cannot name some of their items' files", problems, certain=False)
