"""Results with their recipes: a result is its files and, written last, the recipe that completes it."""

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from semdedup_assets.storage.files import atomic_write, exists, filesystem, join, read_bytes, remove, write_bytes
from semdedup_assets.storage.layout import recipe_path


class MissingResultError(FileNotFoundError):
    """A result that is needed is not there, or is only half written; says what to materialise."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a result holds and what it was made from.

    Attributes:
        version: hash of the files' content: equal bytes, equal version.
        code_version: hash of the settings that determine the result.
        made_from: versions of the results it was made from, by name.
        files: size in bytes by path, relative to the recipe's folder, so that a store can be moved.
        details: counts and measures of the result.
    """

    version: str
    code_version: str
    made_from: dict[str, str]
    files: dict[str, int]
    details: dict[str, Any] = field(default_factory=dict)


class _HashingStream(io.RawIOBase):
    """Counts and hashes what is written through it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.size = 0
        self.hash = hashlib.blake2b(digest_size=16)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._stream.write(view)
        self.hash.update(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self.size


@dataclass
class ResultWriter:
    """Writes the files of one result; see `writing`."""

    folder: str
    code_version: str
    made_from: dict[str, str]
    details: dict[str, Any] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    hashes: list[str] = field(default_factory=list)

    @contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        """Write one file of the result; it appears under its name when the block ends without an error."""
        with atomic_write(path) as stream:
            hashing = _HashingStream(stream)
            yield hashing  # type: ignore[misc]  # a raw stream serves every writer used here
        self.files[path.removeprefix(f"{self.folder}/")] = hashing.size
        self.hashes.append(hashing.hash.hexdigest())

    def recipe(self) -> Recipe:
        """The recipe of what has been written so far."""
        version = self.hashes[0] if len(self.hashes) == 1 else fingerprint(self.hashes)
        return Recipe(version, self.code_version, self.made_from, self.files, self.details)


@contextmanager
def writing(result: str, *, code_version: str, made_from: dict[str, str]) -> Iterator[ResultWriter]:
    """Write a result: its files one by one, its recipe last.

    An older recipe is removed first: a run that is killed leaves no recipe, and what has none is never read.

    Args:
        result: path of the result, from `Layout`.
        code_version: hash of the settings that determine it.
        made_from: versions of what it is made from, by name.
    """
    remove(recipe_path(result))
    writer = ResultWriter(result.rpartition("/")[0], code_version, made_from)
    yield writer
    write_bytes(recipe_path(result), json.dumps(asdict(writer.recipe()), indent=1, sort_keys=True).encode())


def read_recipe(result: str, *, cure: str) -> Recipe:
    """The recipe of a complete result.

    Args:
        result: path of the result, from `Layout`.
        cure: what to do when it is missing, for the message.

    Raises:
        MissingResultError: there is no recipe, or a file is missing or of another size than was written.
    """
    path = recipe_path(result)
    if not exists(path):
        message = f"{result}: not there, or its writing was interrupted; {cure}"
        raise MissingResultError(message)
    recipe = Recipe(**json.loads(read_bytes(path)))
    for name, size in recipe.files.items():
        full = join(result.rpartition("/")[0], name)
        fs, inner = filesystem(full)
        found = fs.size(inner) if fs.exists(inner) else None
        if found != size:
            message = f"{full}: {found} bytes where {size} were written; {cure}"
            raise MissingResultError(message)
    return recipe


def fingerprint(content: Any) -> str:
    """A short hash of anything JSON can spell: equal content, equal fingerprint."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
