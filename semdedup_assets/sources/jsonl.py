import reprlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Literal, Protocol

from pydantic import BaseModel, Field

from semdedup_assets.records import ColumnType, Content, Invalid, Item, Record
from semdedup_assets.sources.columns import ItemFields, TextColumns, item_text, json_object, lookup
from semdedup_assets.sources.reading import (
    InvalidValue,
    TruncatedFile,
    file_name,
    opened,
    path_problem,
    source_files,
    source_listing,
)
from semdedup_assets.storage.files import FileStat, Listing

_SUFFIXES = tuple(f".{name}{packed}" for name in ("jsonl", "json", "ndjson") for packed in ("", ".gz", ".zst"))
_CHUNK = 1 << 16
_GZIP = 16 + zlib.MAX_WBITS  # how zlib is asked for gzip's header and checksum


class JsonLines(BaseModel, frozen=True, extra="forbid"):
    """Texts as JSON lines, plain or compressed, as C4 has them: one object a line."""

    kind: Literal["jsonl"] = "jsonl"
    path: str = Field(
        min_length=1,
        description="A file of JSON lines (plain, .gz or .zst by its suffix), a folder of them (all below it are "
        "taken), a glob, or an fsspec URL of any of these.",
    )
    text: str = Field("text", min_length=1, description="Name of the text in each object; dotted where it is nested.")
    key: str | None = Field(
        None, description="Name of the item's key in each object; empty: file name and line number, counted from 0."
    )
    columns: TextColumns = {}

    @property
    def content(self) -> Content:
        """The payload of a record."""
        return "text"

    @property
    def column_types(self) -> dict[str, ColumnType]:
        """Every carried column by name and type."""
        return self._item_fields.column_types

    def payload_settings(self) -> dict[str, Any]:
        """The settings that can change which payloads are read."""
        return self.model_dump(include={"kind", "text"})

    def item_settings(self) -> dict[str, Any]:
        """The settings that can change keys and columns."""
        return self.model_dump(include={"kind", "text", "key", "columns"})

    def problems(self) -> list[str]:
        """What is wrong with the path as a setting; begins with the setting's name."""
        problem = path_problem(self.path)
        return [f"path: {problem}"] if problem else []

    def files(self) -> list[FileStat]:
        """Every file, sorted by path.

        Raises:
            FileNotFoundError: there is none; names the path and the remedy.
        """
        return source_files(self.path, _SUFFIXES)

    def listing(self) -> Listing:
        """The files, and what was passed over; raises as `files` does."""
        return source_listing(self.path, _SUFFIXES)

    def read(self, path: str) -> Iterator[Record | Invalid]:
        """Every line of a file, in its order; at the end one `Invalid` for the whole file where it is cut off.

        Raises:
            OSError: the file cannot be opened; names it.
        """
        fields = self._item_fields
        for found in self._objects(path):
            yield found if isinstance(found, Invalid) else self._record(found, fields)

    def read_items(self, path: str) -> Iterator[Item]:
        """Key and columns of every line of a file, and of the whole file where it is cut off.

        Raises:
            OSError: the file cannot be opened; names it.
        """
        fields = self._item_fields
        for found in self._objects(path):
            if isinstance(found, Invalid):
                yield fields.without_values(found)
            else:
                yield fields.item(found.row, fallback=found.name)

    def lines(self, path: str) -> Iterator[bytes]:
        """Every line of a file as it is, decompressed, without its newline.

        Raises:
            TruncatedFile: compressed data are cut off or damaged; names the file and the line. The
                line in which that happens is excluded.
            OSError: the file cannot be opened; names it.
        """
        count = 0
        with opened(path) as stream:
            try:
                for line in _split(_content(stream, path)):
                    yield line
                    count += 1
            except EOFError as error:
                message = f"{path}: cut off or damaged in line {count} (counted from 0): {error}"
                raise TruncatedFile(message) from error

    @property
    def _item_fields(self) -> ItemFields:
        return ItemFields(self.key, self.columns, automatic=("url",), text=self.text)

    def _objects(self, path: str) -> "Iterator[_Object | Invalid]":
        """The object of every line, an `Invalid` where it has none, and one for a file that is cut off."""
        name = file_name(path)
        try:
            for number, line in enumerate(self.lines(path)):
                yield _parsed(line, name=f"{name}:{number}", location=f"line {number} (counted from 0)")
        except TruncatedFile as cut:
            yield Invalid(name, str(cut))

    def _record(self, found: "_Object", fields: ItemFields) -> Record | Invalid:
        key = fields.key_of(found.row, fallback=found.name)
        try:
            return Record(key, item_text(_text(found, self.text)))
        except InvalidValue as error:
            return Invalid(key, str(error))


@dataclass(frozen=True, slots=True)
class _Object:
    """The object of a line.

    Attributes:
        row: its fields.
        name: file name and line number: the key where the object has none.
        location: the line in words.
    """

    row: dict[str, object]
    name: str
    location: str


def _parsed(line: bytes, *, name: str, location: str) -> _Object | Invalid:
    if not line.strip():
        return Invalid(name, "blank line")
    try:
        return _Object(json_object(line, name=location), name, location)
    except InvalidValue as error:
        return Invalid(name, str(error))


def _text(found: _Object, name: str) -> str:
    value = lookup(found.row, name)
    if isinstance(value, str):
        return value
    problem = f"{name!r} is {reprlib.repr(value)}, not a text" if value is not None else f"no text under {name!r}"
    message = f"{found.location}: {problem}; the line has {reprlib.repr(list(found.row))}"
    raise InvalidValue(message)


def _split(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines, without their newlines, of a stream of any chunks."""
    parts: list[bytes] = []  # of the line that is not yet complete
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        parts.append(first)
        if others:
            yield b"".join(parts)
            yield from others[:-1]
            parts = [others[-1]]
    if any(parts):
        yield b"".join(parts)


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def _content(stream: IO[bytes], path: str) -> Iterator[bytes]:
    """The decompressed content of a file in chunks."""
    if path.endswith(".gz"):
        return _decompressed(stream, lambda: zlib.decompressobj(_GZIP), zlib.error)
    if path.endswith(".zst"):
        import zstandard

        # Windows as large as `zstd --long=31` writes.
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        return _decompressed(stream, reader.decompressobj, zstandard.ZstdError)
    return iter(lambda: stream.read(_CHUNK), b"")


def _decompressed(
    stream: IO[bytes], new_frame: Callable[[], _Decompressor], damage: type[Exception]
) -> Iterator[bytes]:
    """The content of a compressed stream of one or more frames.

    Raises:
        EOFError: it is cut off in the middle of a frame, or damaged.
    """
    frame = new_frame()
    while rest := stream.read(_CHUNK):
        while rest:
            if frame.eof:
                frame = new_frame()
            try:
                yield frame.decompress(rest)
            except damage as error:
                raise EOFError(str(error)) from error
            # Some writers pad their last block with zeros.
            rest = frame.unused_data.lstrip(b"\0") if frame.eof else b""
    if not frame.eof:
        message = "the compressed data end before their end marker"
        raise EOFError(message)
