"""Read chosen records of a source again, and see that they are the ones that were embedded."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

import numpy as np

from semdedup_assets.execution.shard_reader import SourceChangedError, require_unchanged
from semdedup_assets.records import content_hash
from semdedup_assets.sources.reading import TruncatedFile, printable
from semdedup_assets.stages.embeddings import content_hashes
from semdedup_assets.stages.kept_rows import ChosenShard
from semdedup_assets.storage.files import FileStat

T = TypeVar("T")


def kept_records(
    kept: ChosenShard, read: Callable[[str], Iterator[T]], contents: Callable[[T], Iterable[bytes | str]]
) -> Iterator[T]:
    """The chosen records of a shard, as the source has them; files of which none is chosen are not opened.

    Args:
        kept: which.
        read: of the source: every record of a file, in its order.
        contents: what a record holds; what was embedded is among it.

    Raises:
        SourceChangedError: a file, or what a record holds, is not what was embedded; names file and record.
    """
    for _, _, records in kept_records_of_files(kept, read, contents):
        yield from records


def kept_records_of_files(
    kept: ChosenShard, read: Callable[[str], Iterator[T]], contents: Callable[[T], Iterable[bytes | str]]
) -> Iterator[tuple[FileStat, np.ndarray, Iterator[T]]]:
    """What `kept_records` gives, file by file, also of those of which none is chosen; raises as it does.

    Yields:
        A file, (records,) bool which of its records are chosen, and these, to be used up before the next.
    """
    hashes = embedded_contents(kept)
    files = {file.path: file for file in kept.shard.files}
    for path, first, keep in kept.of_files():
        yield files[path], keep, _embedded_records(files[path], read, contents, keep, hashes[first:])


def _embedded_records(
    file: FileStat,
    read: Callable[[str], Iterator[T]],
    contents: Callable[[T], Iterable[bytes | str]],
    keep: np.ndarray,
    hashes: np.ndarray,
) -> Iterator[T]:
    if not keep.any():
        return
    for row, record in _rows_of_file(file.path, read, keep):
        expected = int(hashes[row])
        if all(content_hash(content) != expected for content in contents(record)):
            raise other_record(file.path, row)
        yield record
    # Afterwards: a file that was changed before or while it was read shows it now.
    require_unchanged(file)


def embedded_contents(kept: ChosenShard) -> np.ndarray:
    """(records,) uint64: the content hash of each record of a shard, as it was embedded.

    Raises:
        SourceChangedError: not as many were embedded as there are keys.
    """
    hashes = content_hashes(kept.embeddings)
    if kept.kept.any() and len(hashes) != len(kept.kept):
        message = (
            f"shard {kept.shard.name}: {len(kept.kept):,} records have keys, {len(hashes):,} were embedded; observe the "
            "shards, and materialise its items and embeddings again"
        )
        raise SourceChangedError(message)
    return hashes


def _rows_of_file(path: str, read: Callable[[str], Iterator[T]], keep: np.ndarray) -> Iterator[tuple[int, T]]:
    """The kept records of a file, each with its row; nothing is read behind the last of them."""
    rows, found = int(np.flatnonzero(keep)[-1]) + 1, 0
    try:
        for row, record in enumerate(islice(read(path), rows)):
            found += 1
            if keep[row]:
                yield row, record
    except (TruncatedFile, FileNotFoundError) as error:
        raise changed_source(path, str(error)) from error
    if found < rows:
        raise changed_source(path, f"it has {found:,} records, and record {rows - 1:,} (counted from 0) was embedded")


def other_record(path: str, row: int) -> SourceChangedError:
    """The error to raise where a record of a file is not the one that was embedded."""
    return changed_source(path, f"record {row} (counted from 0) is not the one that was embedded")


def changed_source(path: str, what: str) -> SourceChangedError:
    """The error to raise where a file is not what was embedded; names how it shows, and the remedy."""
    return SourceChangedError(
        f"{printable(path)}: changed since it was embedded: {what}; observe the shards, and materialise again what is "
        "stale; where the file shows no change, materialise its shard's embeddings with `again`"
    )
