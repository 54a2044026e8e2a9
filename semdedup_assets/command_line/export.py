"""`semdedup export`: a manifest in a form of its own, in a folder of its own."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from semdedup_assets.command_line.errors import UsageError
from semdedup_assets.defs_yaml.problems import near_names
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.settings import ManifestFormat, Pipeline
from semdedup_assets.stages.manifests import write_manifest
from semdedup_assets.storage.manifests import MANIFEST

FORMATS: tuple[str, ...] = get_args(ManifestFormat)
"""What a manifest can be written as: the formats of the setting `manifests`."""


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


def export(context: StageContext, partition: Partition, to: Path, *, overwrite: bool) -> dict[str, Any]:
    """Write the manifest of a kept set into a folder, with `manifest.json`.

    Args:
        context: of the pipeline, whose formats are written, and the selection.
        partition: a kept set, whose masks are there.
        to: the folder: missing or empty.
        overwrite: whether an earlier export that it holds is replaced, once the new one is complete.

    Returns:
        What `manifest.json` says, without the inputs.

    Raises:
        UsageError: the folder holds something else, or an earlier export that is not to be replaced.
        MissingResultError: items, vectors or masks are missing.
        SourceChangedError: what is copied of the source is not what was embedded.
    """
    to = to.absolute()
    _require_free(to, overwrite=overwrite)
    to.parent.mkdir(parents=True, exist_ok=True)
    masks = context.index.require("keep_masks", partition)
    inputs = context.index.input_versions("manifests", partition)
    # Beside it, so that a folder with the name is always whole.
    with tempfile.TemporaryDirectory(prefix=".semdedup-", dir=to.parent) as beside:
        written = Path(beside) / to.name
        details = write_manifest(context, partition, masks, str(written), inputs=inputs)
        if to.exists():
            shutil.rmtree(to)
        written.replace(to)
    return details


def of_pipeline(context: StageContext, pipeline: Pipeline) -> StageContext:
    """The same context for a pipeline whose manifests have other formats."""
    return replace(context, pipeline=pipeline)


def _require_free(to: Path, *, overwrite: bool) -> None:
    if to.exists() and not to.is_dir():
        message = f"--to: {to} is a file; name a folder"
        raise UsageError(message)
    if not to.exists() or not any(to.iterdir()):
        return
    if not (to / MANIFEST).is_file():
        message = f"--to: {to} holds files of another kind, which are not removed; name another folder"
        raise UsageError(message)
    if not overwrite:
        message = f"--to: {to} holds an earlier export; `--overwrite` replaces it"
        raise UsageError(message)
