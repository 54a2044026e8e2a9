"""How many of the new files of a listing make a shard."""

from collections.abc import Iterator, Sequence

from semdedup_assets.storage.files import FileStat

_MOST_BYTES = 1 << 30
_MOST_FILES = 10_000
# Of so many files that each hold many items, each is a shard; of more, small ones are joined.
_MOST_SINGLE = 1000


def grouped(
    files: Sequence[FileStat], *, files_per_shard: int | None, one_item_each: bool
) -> Iterator[tuple[FileStat, ...]]:
    """Join files to shards.

    Args:
        files: in the order in which they are joined.
        files_per_shard: how many make a shard, the last one may get fewer; None: as many as make a good one, at most
            10,000 files and a GiB.
        one_item_each: whether a file is one item, as an image of a folder is; other files are joined only where
            there are more than a thousand.
    """
    if files_per_shard is None and not one_item_each and len(files) <= _MOST_SINGLE:
        files_per_shard = 1
    most_files, most_bytes = (_MOST_FILES, _MOST_BYTES) if files_per_shard is None else (files_per_shard, None)
    group: list[FileStat] = []
    size = 0
    for file in files:
        if group and (len(group) == most_files or (most_bytes is not None and size + file.size > most_bytes)):
            yield tuple(group)
            group, size = [], 0
        group.append(file)
        size += file.size
    if group:
        yield tuple(group)
