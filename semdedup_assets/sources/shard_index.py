import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from semdedup_assets.storage.files import FileStat

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """Files that are embedded together, under an index that no other shard ever gets.

    Attributes:
        index: the shard's own number.
        files: its files, at least one, in the order in which their items are read.
    """

    index: int
    files: tuple[FileStat, ...]

    @property
    def name(self) -> str:
        """The shard's partition, such as `s000012`."""
        return f"s{self.index:06d}"

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when a file of the shard is changed, added or removed."""
        listing = json.dumps(_rows(self.files), separators=(",", ":")).encode()
        return hashlib.blake2b(listing, digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """Which file belongs to which shard. Decided once per file: slicing each new listing would move every item.

    Attributes:
        shards: by ascending index.
        next_index: index of the next new shard, greater than any that was ever given.
    """

    shards: tuple[Shard, ...]
    next_index: int

    @classmethod
    def empty(cls) -> "ShardIndex":
        """The index before the first listing."""
        return cls((), 0)

    def updated(self, files: Sequence[FileStat], *, files_per_shard: int) -> "ShardIndex":
        """The index after a new listing.

        Args:
            files: all files of the new listing, in any order.
            files_per_shard: how many new files make a new shard; the last one may get fewer.

        Returns:
            Known files stay in their shard, with their new size and stamp. Missing files are removed, and so are
            shards without any file. New files, in the order of their paths, get new shards.

        Raises:
            ValueError: `files_per_shard` is not positive, or a path is repeated.
        """
        if files_per_shard < 1:
            message = f"files_per_shard: {files_per_shard} is not a positive number of files"
            raise ValueError(message)
        unclaimed = {file.path: file for file in files}
        if len(unclaimed) < len(files):
            message = f"{len(files) - len(unclaimed)} of {len(files)} files are repeated; list each path once"
            raise ValueError(message)
        known = [Shard(shard.index, tuple(_claimed(shard, unclaimed))) for shard in self.shards]
        new = [unclaimed[path] for path in sorted(unclaimed)]
        starts = range(0, len(new), files_per_shard)
        added = [
            Shard(index, tuple(new[start : start + files_per_shard]))
            for index, start in enumerate(starts, self.next_index)
        ]
        return ShardIndex((*(shard for shard in known if shard.files), *added), self.next_index + len(added))

    def to_json(self) -> bytes:
        """The index as compact JSON: `[index, [[path, size, stamp], …]]` a shard."""
        shards = [[shard.index, _rows(shard.files)] for shard in self.shards]
        document = {"shard_index": _FORMAT, "next_index": self.next_index, "shards": shards}
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "ShardIndex":
        """Read what `to_json` wrote.

        Raises:
            ValueError: the content is not a shard index, or it contradicts itself; gives the reason.
        """
        try:
            return _from_document(json.loads(content))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            message = f"not a shard index ({error!r}); restore it, for a new one gives every file a new shard"
            raise ValueError(message) from error


def _claimed(shard: Shard, unclaimed: dict[str, FileStat]) -> Iterator[FileStat]:
    """A shard's files in the new listing; removes them from those without a shard."""
    found = (unclaimed.pop(file.path, None) for file in shard.files)
    return (file for file in found if file is not None)


def _rows(files: Sequence[FileStat]) -> list[tuple[str, int, str]]:
    return [(file.path, file.size, file.stamp) for file in files]


def _from_document(document: Any) -> ShardIndex:
    if document["shard_index"] != _FORMAT:
        message = f"format {document['shard_index']!r} instead of {_FORMAT}"
        raise ValueError(message)
    shards = tuple(Shard(index, tuple(FileStat(*row) for row in files)) for index, files in document["shards"])
    index = ShardIndex(shards, document["next_index"])
    _check(index)
    return index


def _check(index: ShardIndex) -> None:
    """Raise unless the shards' indices ascend below the next one, and each file is in one shard."""
    indices = [shard.index for shard in index.shards]
    files = [file for shard in index.shards for file in shard.files]
    typed = all(
        isinstance(file.path, str) and isinstance(file.size, int) and isinstance(file.stamp, str) for file in files
    )
    ascending = all(one < other for one, other in zip([-1, *indices], [*indices, index.next_index], strict=True))
    if not (typed and ascending and all(shard.files for shard in index.shards)):
        message = "its shards are not well-formed"
        raise ValueError(message)
    if len({file.path for file in files}) < len(files):
        message = "a file is in two shards"
        raise ValueError(message)
