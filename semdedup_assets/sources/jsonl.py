import reprlib
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Literal, Protocol

from pydantic import BaseModel, Field

from semdedup_assets.records import Broken, ColumnType, Content, Record
from semdedup_assets.sources.columns import TextColumns, carried_columns, item_key, item_text, json_object, lookup
from semdedup_assets.sources.reading import BadItem, TruncatedFile, file_name, opened, path_problem, source_files
from semdedup_assets.storage.files import FileStat

_SUFFIXES = tuple(f".{name}{packed}" for name in ("jsonl", "json", "ndjson") for packed in ("", ".gz", ".zst"))
_CHUNK = 1 << 16
_GZIP = 16 + zlib.MAX_WBITS  # zlib's way to ask for gzip's header and check sum


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
        """What a record carries."""
        return "text"

    @property
    def column_types(self) -> dict[str, ColumnType]:
        """Every carried column by name and type."""
        return {"url": "string", **self.columns, "text": "string"}

    def problems(self) -> list[str]:
        """What is wrong with the path, seen without a listing; begins with the setting's name."""
        problem = path_problem(self.path)
        return [f"path: {problem}"] if problem else []

    def files(self) -> list[FileStat]:
        """Every file, sorted by path.

        Raises:
            FileNotFoundError: there is none; names the path and the cure.
        """
        return source_files(self.path, _SUFFIXES)

    def read(self, path: str) -> Iterator[Record | Broken]:
        """Every line of a file, in its order; at the end one `Broken` for the whole file where it is cut off.

        Raises:
            OSError: the file cannot be opened; names it.
        """
        try:
            for number, line in enumerate(self.lines(path)):
                yield self._record(line, place=f"{file_name(path)}:{number}")
        except TruncatedFile as cut:
            yield Broken(file_name(path), str(cut))

    def lines(self, path: str) -> Iterator[bytes]:
        """Every line of a file as it stands there, decompressed, without its newline.

        Raises:
            TruncatedFile: compressed data are cut off or damaged; names the file and the line. The
                line in the middle of which that happens is left out.
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

    def _record(self, line: bytes, *, place: str) -> Record | Broken:
        key = place
        if not line.strip():
            return Broken(key, "blank line")
        where = f"line {place.rpartition(':')[2]} (counted from 0)"
        try:
            row = json_object(line, name=where)
            if self.key is not None:
                key = item_key(lookup(row, self.key), name=self.key)
            text = item_text(_text(row, self.text, where=where))
            columns = carried_columns(row, declared=self.columns, automatic=["url"])
            return Record(key, text, {**columns, "text": text})
        except BadItem as bad:
            return Broken(key, str(bad))


def _text(row: dict[str, object], name: str, *, where: str) -> str:
    value = lookup(row, name)
    if isinstance(value, str):
        return value
    found = f"{name!r} is {reprlib.repr(value)}, not a text" if value is not None else f"no text under {name!r}"
    message = f"{where}: {found}; the line has {reprlib.repr(list(row))}"
    raise BadItem(message)


def _split(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines, without their newlines, of a stream of any chunks."""
    begun: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        begun.append(first)
        if others:
            yield b"".join(begun)
            yield from others[:-1]
            begun = [others[-1]]
    if any(begun):
        yield b"".join(begun)


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


def _decompressed(stream: IO[bytes], begin: Callable[[], _Decompressor], damage: type[Exception]) -> Iterator[bytes]:
    """The content of a compressed stream of one or more frames.

    Raises:
        EOFError: it is cut off in the middle of a frame, or damaged.
    """
    frame = begin()
    while rest := stream.read(_CHUNK):
        while rest:
            if frame.eof:
                frame = begin()
            try:
                yield frame.decompress(rest)
            except damage as error:
                raise EOFError(str(error)) from error
            # Some writers fill their last block with zeros.
            rest = frame.unused_data.lstrip(b"\0") if frame.eof else b""
    if not frame.eof:
        message = "the compressed data end before their end marker"
        raise EOFError(message)
