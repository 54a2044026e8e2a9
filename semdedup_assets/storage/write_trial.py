"""Whether something can be written in a place, seen before there is anything to write."""

import os
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory

from semdedup_assets.storage.files import filesystem, is_local, join, remove, write_bytes


def write_problem(folder: str) -> str | None:
    """Why nothing can be written below a folder, as a trial shows in what there is of it; None where something can.

    Args:
        folder: local path or URL, which need not be there; the trial leaves nothing.
    """
    try:
        if is_local(folder):
            _try_local(Path(filesystem(folder)[1]).absolute())
        else:
            trial = join(folder, f".semdedup-{uuid.uuid4().hex}")
            write_bytes(trial, b"")
            remove(trial)
    except Exception as error:
        # Each store's library has its own exceptions for missing rights.
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}".removesuffix(": ")
        # What a store refuses names the object.
        return reason if folder in reason else f"{folder} cannot be written: {reason}"
    return None


def _try_local(folder: Path) -> None:
    there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    with TemporaryDirectory(prefix=".semdedup-", dir=there) as trial:
        for part in folder.relative_to(there).parts:
            # A name may be too long, or hold what the file system refuses.
            (Path(trial) / part).mkdir()
            (Path(trial) / part).rmdir()
