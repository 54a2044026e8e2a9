"""`semdedup export`: a manifest in a form of its own, in a folder of its own."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from semdedup_assets.command_line.errors import UsageError
from semdedup_assets.command_line.replaced_folder import ReplacedFolder
from semdedup_assets.defs_yaml.problems import near_names
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.settings import ManifestFormat, Pipeline
from semdedup_assets.stages.manifests import write_manifest
from semdedup_assets.storage.files import filesystem, is_local, write_bytes
from semdedup_assets.storage.manifests import MANIFEST
from semdedup_assets.storage.write_trial import write_problem

FORMATS: tuple[str, ...] = get_args(ManifestFormat)
"""What a manifest can be written as: the formats of the setting `manifests`."""

# In `manifest.json`, which other programs have too: the names of all that an export has written.
_EXPORTED = "exported_files"


def with_formats(pipeline: Pipeline, formats: Sequence[str]) -> Pipeline:
    """The pipeline as if these were its manifests' formats.

    Raises:
        UsageError: there is no such format, or none for such a source.
    """
    for name in formats:
        if name not in FORMATS:
            message = f"--format: there is no {name!r}; {near_names(name, FORMATS)}"
            raise UsageError(message)
    # What trains on the manifests, and asks for formats, is of no matter here.
    settings = pipeline.model_dump(exclude_unset=True, exclude={"training", "evaluation"})
    try:
        return Pipeline.model_validate({**settings, "manifests": list(dict.fromkeys(formats))})
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ").removeprefix("manifests: ")
        message = f"--format: {reason}"
        raise UsageError(message) from error


def export_folder(to: Path, *, overwrite: bool) -> Path:
    """The folder that an export is written to, seen to be one before anything is made.

    Args:
        to: as it was typed.
        overwrite: whether an earlier export that it holds may be replaced.

    Returns:
        Its whole path.

    Raises:
        UsageError: it cannot be written or not be replaced as a whole, holds something else, or an earlier export that is to stay.
    """
    whole = to.absolute()
    whole = whole.resolve() if whole.name == ".." else whole.parent.resolve() / whole.name
    if whole.is_symlink():
        message = f"--to: {whole} is a link to {str(whole.readlink())!r}; name that folder itself"
    elif whole.exists() and not whole.is_dir():
        message = f"--to: {whole} is a file; name a folder"
    elif whole.is_mount() or whole in (Path.cwd(), *Path.cwd().parents):
        kind = "where a disk is mounted" if whole.is_mount() else "the folder that this runs in"
        message = f"--to: {whole} is {kind}; name a folder below it"
    elif problem := write_problem(str(whole)):
        message = f"--to: {problem}"
    else:
        _require_free(whole, overwrite=overwrite)
        return whole
    raise UsageError(message)


def export(
    context: StageContext, partition: Partition, to: Path, *, overwrite: bool, replaced: ReplacedFolder
) -> dict[str, Any]:
    """Write the manifest of a kept set into a folder, with `manifest.json`.

    Args:
        context: of the pipeline, whose formats are written, and the selection.
        partition: a kept set, whose masks are there.
        to: what `export_folder` gave: missing, empty or an earlier export.
        overwrite: whether an earlier export that it holds is replaced, once the new one is complete.
        replaced: replaces it.

    Returns:
        What `manifest.json` says, without the inputs.

    Raises:
        UsageError: the folder lies in the source or the store, or something else was put into it meanwhile.
        MissingResultError: items, vectors or masks are missing.
        SourceChangedError: what is copied of the source is not what was embedded.
    """
    _require_outside(context, to)
    to.parent.mkdir(parents=True, exist_ok=True)
    masks = context.index.require("keep_masks", partition)
    inputs = context.index.input_versions("manifests", partition)
    with replaced.beside(to) as beside:
        written = beside / to.name
        details = write_manifest(context, partition, masks, str(written), inputs=inputs)
        _list_files(written)
        _require_free(to, overwrite=overwrite)
        replaced.replace(to, written)
    return details


def of_pipeline(context: StageContext, pipeline: Pipeline) -> StageContext:
    """The same context for a pipeline whose manifests have other formats."""
    return replace(context, pipeline=pipeline)


def _require_outside(context: StageContext, to: Path) -> None:
    """See that an export becomes no part of what it is made from.

    Raises:
        UsageError: it would.
    """
    for name, path in (("source", context.pipeline.source.path), ("store", context.pipeline.store)):
        folder = Path(filesystem(path)[1])
        if is_local(path) and folder.is_dir() and to.is_relative_to(folder.resolve()):
            message = f"--to: {to} lies in the {name}, {path}; name a folder elsewhere"
            raise UsageError(message)


def _require_free(to: Path, *, overwrite: bool) -> None:
    """See that a folder holds nothing but an earlier export that may be replaced.

    Raises:
        UsageError: it does; names what is not of an export.
    """
    if not to.exists() or not any(to.iterdir()):
        return
    listed = _listed_files(to)
    if listed is None:
        message = f"--to: {to} holds files that are no export, which are not removed; name another folder"
        raise UsageError(message)
    if foreign := next((each for each in _entries(to) if each not in listed), None):
        message = f"--to: {to} holds {foreign!r}, which no export has written; move it away, or name another folder"
        raise UsageError(message)
    if not overwrite:
        message = f"--to: {to} holds an earlier export; `--overwrite` replaces it"
        raise UsageError(message)


def _list_files(folder: Path) -> None:
    """Note in `manifest.json` what an export has written: so it is known as one, with all that may be removed."""
    manifest = folder / MANIFEST
    content = {**json.loads(manifest.read_bytes()), _EXPORTED: sorted(_entries(folder))}
    write_bytes(str(manifest), json.dumps(content, indent=1).encode())


def _listed_files(folder: Path) -> frozenset[str] | None:
    """What an export says that it has written; None where a folder holds none."""
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    listed = content.get(_EXPORTED) if isinstance(content, dict) else None
    return frozenset(map(str, listed)) if isinstance(listed, list) else None


def _entries(folder: Path) -> Iterator[str]:
    """What a folder holds, below it, but for folders that hold something themselves; links are not followed."""
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        links = [name for name in folders if (here / name).is_symlink()]
        empty = [name for name in folders if name not in links and not any((here / name).iterdir())]
        yield from ((here / name).relative_to(folder).as_posix() for name in (*files, *links, *empty))
