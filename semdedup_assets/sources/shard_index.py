import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, Literal

from semdedup_assets.records import MOST_SHARDS
from semdedup_assets.storage.files import FileStat

_FORMAT = 1


class VanishedFilesError(RuntimeError):
    """More of a source's files are missing than are taken for deleted: it may be away for a while."""


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
        homes: by ascending index the paths of all files that a shard ever had, in their order, for each shard of which
            some file is missing. A file that returns gets its old rows back, and its items their ids.
        files_per_shard: the setting by which files were last joined to new shards; None where that was not noted.
    """

    shards: tuple[Shard, ...]
    next_index: int
    homes: tuple[tuple[int, tuple[str, ...]], ...] = ()
    files_per_shard: int | Literal["automatic"] | None = None

    @classmethod
    def empty(cls) -> "ShardIndex":
        """The index before the first listing."""
        return cls((), 0)

    def updated(
        self,
        files: Sequence[FileStat],
        *,
        group: Callable[[Sequence[FileStat]], Iterable[tuple[FileStat, ...]]],
        files_per_shard: int | Literal["automatic"] | None = None,
    ) -> "ShardIndex":
        """The index after a new listing.

        Args:
            files: all files of the new listing, in any order.
            group: joins new files, sorted by path, to new shards.
            files_per_shard: the setting by which it does, to be noted where there are any.

        Returns:
            Known files stay in their shard, with their new size and stamp. Missing files are removed, and so are
            shards without any file; where one returns, it is again where it was. New files, in the order of their
            paths, get new shards.

        Raises:
            ValueError: a path is repeated, or there are more shards than ids can number.
        """
        unclaimed = {file.path: file for file in files}
        if len(unclaimed) < len(files):
            message = f"{len(files) - len(unclaimed)} of {len(files)} files are repeated; list each path once"
            raise ValueError(message)
        orders = {shard.index: tuple(file.path for file in shard.files) for shard in self.shards} | dict(self.homes)
        known = {
            index: tuple(unclaimed.pop(path) for path in order if path in unclaimed)
            for index, order in sorted(orders.items())
        }
        new = [unclaimed[path] for path in sorted(unclaimed)]
        added = [Shard(index, joined) for index, joined in enumerate(group(new), self.next_index)]
        if self.next_index + len(added) > MOST_SHARDS:
            message = (
                f"{len(new):,} new files make {len(added):,} shards after {self.next_index:,} earlier ones, more than ids can "
                f"number ({MOST_SHARDS:,}); join more of them by `shards.files_per_shard`"
            )
            raise ValueError(message)
        return ShardIndex(
            (*(Shard(index, found) for index, found in known.items() if found), *added),
            self.next_index + len(added),
            tuple((index, orders[index]) for index, found in known.items() if len(found) < len(orders[index])),
            files_per_shard if added else self.files_per_shard,
        )

    def require_present(self, files: Sequence[FileStat], *, max_vanished: float) -> None:
        """See that a new listing still has enough of the files that the last one had.

        A folder that is mounted late, or a listing that is cut short, looks as if its files were deleted.

        Args:
            files: all files of the new listing.
            max_vanished: share of the known files, but always one, that may be missing.

        Raises:
            VanishedFilesError: more are missing; gives their number, an example and the remedy.
        """
        paths = {file.path for file in files}
        known = [file.path for shard in self.shards for file in shard.files]
        missing = [path for path in known if path not in paths]
        if len(missing) <= max(max_vanished * len(known), 1):
            return
        new = len(paths) - (len(known) - len(missing))
        moved = f" ({new:,} new ones have come; files under another path are embedded anew)" if new else ""
        message = (
            f"{len(missing):,} of the {len(known):,} files that the source had are missing, such as {missing[0]}{moved}: "
            "nothing was registered or removed; bring them back under their old paths, or, where they are gone for good, "
            "launch the refresh once with `allow_vanished: true` in Dagster, or set `refresh: {max_vanished: 1}` for one run"
        )
        raise VanishedFilesError(message)

    def to_json(self) -> bytes:
        """The index as compact JSON: `[index, [[path, size, stamp], …]]` a shard, `[index, [path, …]]` a home."""
        shards = [[shard.index, _rows(shard.files)] for shard in self.shards]
        document: dict[str, Any] = {"shard_index": _FORMAT, "next_index": self.next_index, "shards": shards}
        if self.homes:
            document["homes"] = self.homes
        if self.files_per_shard is not None:
            document["files_per_shard"] = self.files_per_shard
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

    @classmethod
    def stored(cls, content: bytes | None, path: str) -> "ShardIndex":
        """What a store's file holds.

        Args:
            content: of the file; None: there is none yet, and the index is empty.
            path: of it.

        Raises:
            ValueError: it is damaged; names it.
        """
        try:
            return cls.empty() if content is None else cls.from_json(content)
        except ValueError as error:
            message = f"{path}: {error}"
            raise ValueError(message) from error


def _rows(files: Sequence[FileStat]) -> list[tuple[str, int, str]]:
    return [(file.path, file.size, file.stamp) for file in files]


def _from_document(document: Any) -> ShardIndex:
    if document["shard_index"] != _FORMAT:
        message = f"format {document['shard_index']!r} instead of {_FORMAT}"
        raise ValueError(message)
    shards = tuple(Shard(index, tuple(FileStat(*row) for row in files)) for index, files in document["shards"])
    homes = tuple((index, tuple(paths)) for index, paths in document.get("homes", []))
    index = ShardIndex(shards, document["next_index"], homes, document.get("files_per_shard"))
    _check(index)
    return index


def _check(index: ShardIndex) -> None:
    """Raise unless the shards' indices ascend below the next one, and each file is in one shard."""
    files = [file for shard in index.shards for file in shard.files]
    noted = index.files_per_shard
    typed = (noted in (None, "automatic") or type(noted) is int) and all(
        isinstance(file.path, str) and isinstance(file.size, int) and isinstance(file.stamp, str) for file in files
    )
    ascending = all(
        _is_ascending([-1, *numbers, index.next_index])
        for numbers in ([shard.index for shard in index.shards], [number for number, _ in index.homes])
    )
    if not (typed and ascending and all(shard.files for shard in index.shards)):
        message = "its shards are not well-formed"
        raise ValueError(message)
    homes = dict(index.homes)
    listed = {shard.index: [file.path for file in shard.files] for shard in index.shards}
    if not all(_is_part(listed.get(number, []), of=paths) for number, paths in homes.items()):
        message = "a shard has other files than its home"
        raise ValueError(message)
    _check_unique({**listed, **homes})


def _is_ascending(numbers: Sequence[int]) -> bool:
    return all(one < other for one, other in pairwise(numbers))


def _is_part(paths: Sequence[str], *, of: Iterable[str]) -> bool:
    """Whether some paths, in their order, are among others, and not all of those."""
    rest, missing = iter(paths), 0
    wanted = next(rest, None)
    for path in of:
        if path == wanted:
            wanted = next(rest, None)
        else:
            missing += 1
    return wanted is None and missing > 0


def _check_unique(paths: Mapping[int, Sequence[str]]) -> None:
    if len(set(chain.from_iterable(paths.values()))) < sum(map(len, paths.values())):
        message = "a file is in two shards"
        raise ValueError(message)
