import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from semdedup_assets.storage.files import FileStat

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """Files that are embedded together, under a number that no other shard ever gets.

    Attributes:
        index: the shard's number.
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
        """What changes when a file of the shard changes, comes or goes: 16 hexadecimal digits."""
        listing = json.dumps(_rows(self.files), separators=(",", ":")).encode()
        return hashlib.blake2b(listing, digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Which file belongs to which shard: decided once, for a fixed slicing of a listing would move every item.

    Attributes:
        shards: by ascending index.
        next_index: the number of the next new shard, greater than any that was ever given.
    """

    shards: tuple[Shard, ...]
    next_index: int

    @classmethod
    def empty(cls) -> "Catalogue":
        """The catalogue before the first listing."""
        return cls((), 0)

    def updated(self, files: Sequence[FileStat], *, files_per_shard: int) -> "Catalogue":
        """The catalogue after a new listing.

        Args:
            files: all files that are there now, in any order.
            files_per_shard: how many new files make a new shard; the last one may get fewer.

        Returns:
            Known files in their shard, with their new size and stamp; without those that vanished, and without
            shards that lost their last file; new files, in the order of their paths, in new shards.

        Raises:
            ValueError: `files_per_shard` is not positive, or a path is listed twice.
        """
        if files_per_shard < 1:
            message = f"files_per_shard: {files_per_shard} is not a positive number of files"
            raise ValueError(message)
        unclaimed = {file.path: file for file in files}
        if len(unclaimed) < len(files):
            message = f"{len(files) - len(unclaimed)} of {len(files)} files are listed twice; list each path once"
            raise ValueError(message)
        known = [Shard(shard.index, tuple(_claimed(shard, unclaimed))) for shard in self.shards]
        new = [unclaimed[path] for path in sorted(unclaimed)]
        starts = range(0, len(new), files_per_shard)
        added = [
            Shard(index, tuple(new[start : start + files_per_shard]))
            for index, start in enumerate(starts, self.next_index)
        ]
        return Catalogue((*(shard for shard in known if shard.files), *added), self.next_index + len(added))

    def to_json(self) -> bytes:
        """The catalogue as compact JSON: `[index, [[path, size, stamp], …]]` a shard."""
        shards = [[shard.index, _rows(shard.files)] for shard in self.shards]
        document = {"catalogue": _FORMAT, "next_index": self.next_index, "shards": shards}
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Catalogue":
        """The catalogue that `to_json` wrote.

        Raises:
            ValueError: it is not one, or it contradicts itself; tells why.
        """
        try:
            catalogue = _from_document(json.loads(content))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            message = f"not a catalogue of shards ({error!r}); restore it, for a new one gives every file a new shard"
            raise ValueError(message) from error
        return catalogue


def _claimed(shard: Shard, unclaimed: dict[str, FileStat]) -> Iterator[FileStat]:
    """A shard's files as they are now, taken out of those that belong to no shard yet."""
    found = (unclaimed.pop(file.path, None) for file in shard.files)
    return (file for file in found if file is not None)


def _rows(files: Sequence[FileStat]) -> list[tuple[str, int, str]]:
    return [(file.path, file.size, file.stamp) for file in files]


def _from_document(document: Any) -> Catalogue:
    if document["catalogue"] != _FORMAT:
        message = f"format {document['catalogue']!r} instead of {_FORMAT}"
        raise ValueError(message)
    shards = tuple(Shard(index, tuple(FileStat(*row) for row in files)) for index, files in document["shards"])
    catalogue = Catalogue(shards, document["next_index"])
    _check(catalogue)
    return catalogue


def _check(catalogue: Catalogue) -> None:
    """Raise where the numbers of shards do not rise below the next one, or a file has no shard of its own."""
    indices = [shard.index for shard in catalogue.shards]
    files = [file for shard in catalogue.shards for file in shard.files]
    typed = all(
        isinstance(file.path, str) and isinstance(file.size, int) and isinstance(file.stamp, str) for file in files
    )
    ascending = all(one < other for one, other in zip([-1, *indices], [*indices, catalogue.next_index], strict=True))
    if not (typed and ascending and all(shard.files for shard in catalogue.shards)):
        message = "its shards are not well-formed"
        raise ValueError(message)
    if len({file.path for file in files}) < len(files):
        message = "a file is in two shards"
        raise ValueError(message)
