"""Which files the references have: listed when they are embedded and when a refresh begins, never while code loads."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from semdedup_assets.execution import progress
from semdedup_assets.execution.context import StageContext
from semdedup_assets.settings import Pipeline
from semdedup_assets.sources.shard_index import Shard
from semdedup_assets.sources.shard_sizes import grouped
from semdedup_assets.storage.files import FileStat, read_many, write_bytes
from semdedup_assets.storage.results import fingerprint


@dataclass(frozen=True, slots=True)
class ReferenceFiles:
    """Files of a reference that are embedded together.

    Attributes:
        reference: name of the reference.
        shard: the files, under an index that no other part of any reference has: ids are made of it.
        fingerprint: of all files of the reference.
    """

    reference: str
    shard: Shard
    fingerprint: str


def list_references(pipeline: Pipeline) -> dict[str, list[FileStat]]:
    """The files of each reference, by name, sorted by path.

    Raises:
        FileNotFoundError: a reference has no file; names it.
        OSError: a folder cannot be listed, or the store does not answer.
        ValueError: a path holds a secret.
    """
    return {name: reference.source.files() for name, reference in sorted(pipeline.references.items())}


def reference_parts(pipeline: Pipeline, listed: dict[str, list[FileStat]]) -> list[ReferenceFiles]:
    """The files in parts that are each embedded by one task, as a shard of the pipeline's own source is.

    Args:
        pipeline: its settings.
        listed: as `list_references` gives them.
    """
    fingerprints = {name: files_fingerprint(files) for name, files in listed.items()}
    return [
        ReferenceFiles(name, Shard(index, files), fingerprints[name])
        for index, (name, files) in enumerate(_groups(pipeline, listed))
    ]


def _groups(pipeline: Pipeline, listed: dict[str, list[FileStat]]) -> Iterator[tuple[str, tuple[FileStat, ...]]]:
    for name, files in listed.items():
        one_item_each = pipeline.references[name].source.kind == "folder"
        for group in grouped(files, files_per_shard=None, one_item_each=one_item_each):
            yield name, group


def files_fingerprint(files: list[FileStat]) -> str:
    """What changes when a file comes, vanishes or is changed."""
    return fingerprint([[file.path, file.size, file.stamp] for file in files])


def observe_references(context: StageContext) -> None:
    """List the references' files, and remember their fingerprints: what is made of others is then stale.

    A reference that cannot be listed stays as it was: what was embedded of it is still right to hold items against.

    Args:
        context: of the pipeline; without references nothing is listed or written.
    """
    references = context.pipeline.references
    found = observed_references(context) if references else {}
    for name, reference in sorted(references.items()):
        try:
            found[name] = files_fingerprint(reference.source.files())
        except (OSError, ValueError) as error:
            progress.log(f"reference {name}: its files cannot be listed, what is embedded of it stays ({error})")
    if references:
        note_references(context, {name: found[name] for name in references if name in found})


def note_references(context: StageContext, fingerprints: dict[str, str]) -> None:
    """Remember the fingerprints of the references' files."""
    if fingerprints != observed_references(context):
        write_bytes(context.layout.observed_references, json.dumps(fingerprints, sort_keys=True).encode())


def observed_references(context: StageContext) -> dict[str, str]:
    """The fingerprints that were last remembered, by reference."""
    content = read_many([context.layout.observed_references])[0]
    found: dict[str, str] = {} if content is None else json.loads(content)
    return found
