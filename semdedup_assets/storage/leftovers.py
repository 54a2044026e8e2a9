"""Files that ended processes left in a store: which are nobody's, and removing them."""

import logging
import re
import time
from collections.abc import Callable

from semdedup_assets.storage.collected_records import RecordReader, by_folder, folder_of
from semdedup_assets.storage.files import ListedFile, join, list_folder, remove_all
from semdedup_assets.storage.results import RECORD, ResultRecord

_LOG = logging.getLogger(__name__)
_LEFTOVER_SECONDS = 24 * 3600.0
# Trained models share an attempt, and between two that are stored a training may take days.
_TRAINED_SECONDS = 30 * _LEFTOVER_SECONDS
_TRAINED = re.compile(r"/[0-9a-f]{12}$")
# `<stem>.<attempt>.<name>`, `<folder of a manifest>/…`, a trial of the estimate, a file that was being put, or a record
# that was set aside.
_ATTEMPT = re.compile(
    r"\.[0-9a-f]{12}(?=\.)|/(?:[0-9a-f]{16}-[0-9a-f]{6}|[0-9a-f]{12})(?=/)|/\.trial-[^/]+|\.[0-9a-f]{32}\.tmp$"
    r"|\.result\.json\.damaged$"
)


def remove_leftovers(
    folder: str,
    *,
    apart_from: str = "",
    older_than: float = _LEFTOVER_SECONDS,
    log: Callable[[str], object] = _LOG.warning,
) -> int:
    """Remove what ended processes left below a folder, and return how many files that were.

    Only files that carry an attempt in their name, or stand in a folder of one, are ours to remove. An attempt is a
    leftover if no record names a file of it and its newest file is older than any attempt takes.

    Args:
        folder: local path or URL.
        apart_from: a folder below it in which nothing is removed, whatever the names.
        older_than: seconds since a file of the attempt was last written; of trained models more.
        log: takes a line where the store lets nobody remove files.

    Raises:
        OtherFormatError: another version of this software wrote a record; nothing is removed.
    """
    listed = list_folder(folder, recursive=True)
    named = _named_files(by_folder({path: file for path, file in listed.items() if "/.trial-" not in path}))
    # A manifest stays for ever: a training job may read it.
    manifests = {path.rpartition("/")[0] for path in listed if path.endswith("/manifest.json")}
    attempts: dict[str, list[str]] = {}
    for path in listed:
        attempt = _attempt_of(path, below=folder)
        others = apart_from and path.startswith(f"{apart_from}/")
        if attempt is not None and attempt not in manifests and not others:
            attempts.setdefault(attempt, []).append(path)
    now, count = time.time(), 0
    for attempt, paths in attempts.items():
        limit = now - (_TRAINED_SECONDS if _TRAINED.search(attempt) else older_than)
        moments = [listed[path].modified for path in paths]
        if not named.intersection(paths) and all(moment is not None and moment < limit for moment in moments):
            try:
                remove_all(paths)
            except Exception as error:  # stores have errors of their own, and nothing else depends on it
                log(f"{paths[0]}: what an ended process left cannot be removed, and stays: {error}")
                break
            count += len(paths)
    return count


def _attempt_of(path: str, *, below: str) -> str | None:
    """The path of a file up to the name of its attempt; None where it is no attempt's."""
    found = _ATTEMPT.search(path, len(below))
    return None if found is None else path[: found.end()]


def _named_files(folders: dict[str, dict[str, ListedFile]]) -> set[str]:
    """The files that the records of some folders name; those that are damaged name none."""
    paths = [path for files in folders.values() for path in files if path.endswith(RECORD)]
    records = RecordReader().read(folders, paths).items()
    return {
        join(folder_of(path), entry.path)
        for path, record in records
        if isinstance(record, ResultRecord)
        for entry in record.files.values()
    }
