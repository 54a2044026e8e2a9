import codecs
import json
import reprlib
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import IO, Any, Literal, Protocol

from pydantic import BaseModel, Field

from semdedup_assets.records import ColumnType, Content, Invalid, Item, Record
from semdedup_assets.sources.columns import (
    ItemFields,
    TextColumns,
    field_names,
    item_text,
    json_object,
    lookup,
    too_large,
)
from semdedup_assets.sources.foreign import HEAD, foreign
from semdedup_assets.sources.packing import Packing, packing_of
from semdedup_assets.sources.reading import (
    MAX_ITEM_MIB,
    InvalidValue,
    ItemMib,
    ReadMeter,
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
_UNPACKED = 1 << 20
# Zstandard unpacks all of what it is given at once, up to 32 KiB from each byte: 8 MiB from a piece.
_ZSTD_PIECE = 1 << 8
# How files begin that are not in UTF-8. The longest marks first, for UTF-32's begins with UTF-16's.
_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (b"{\0", "utf-16-le"),
    (b"\0{", "utf-16-be"),
)


class JsonLines(BaseModel, frozen=True, extra="forbid"):
    """Texts as JSON lines, plain or compressed, as C4 has them: one object a line."""

    kind: Literal["jsonl"] = "jsonl"
    path: str = Field(
        min_length=1,
        description="A file of JSON lines (plain, .gz or .zst), a folder of them (all below it are "
        "taken), a glob, or an fsspec URL of any of these.",
    )
    text: str = Field("text", min_length=1, description="Name of the text in each object; dotted where it is nested.")
    key: str | None = Field(
        None, description="Name of the item's key in each object; empty: file name and line number, counted from 0."
    )
    columns: TextColumns = {}
    max_item_mib: ItemMib = MAX_ITEM_MIB

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
        return self.model_dump(include={"kind", "text", "max_item_mib"})

    def item_settings(self) -> dict[str, Any]:
        """The settings that can change keys and columns."""
        return self.model_dump(include={"kind", "text", "key", "columns", "max_item_mib"})

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

    def field_names(self, path: str, limit: int = 1000) -> list[str]:
        """Names in the objects of a file's first lines; dotted where they are nested.

        Args:
            path: a file of JSON lines.
            limit: lines that are read.

        Raises:
            TruncatedFile: the file is cut off or damaged within these lines; names it.
            OSError: the file cannot be opened; names it.
        """
        found = islice(self._objects(path), limit)
        return field_names(each.row for each in found if isinstance(each, _Object))

    def read(self, path: str) -> Iterator[Record | Invalid]:
        """Every line of a file, in its order.

        Raises:
            TruncatedFile: the file is cut off or damaged, or holds no JSON lines at all: after the lines before;
                names it, what it is or where it ends, and the lines that were read.
            OSError: the file cannot be opened; names it.
        """
        fields = self._item_fields
        for found in self._objects(path):
            yield found if isinstance(found, Invalid) else self._record(found, fields)

    def read_rows(self, path: str, rows: Collection[int], meter: ReadMeter) -> Iterator[tuple[int, Record | Invalid]]:
        """What `read` gives of the wanted lines of a file, with their numbers; what comes after the last is not read.

        Raises:
            ReadLimitError: more would be read than the meter allows.
            TruncatedFile, OSError: as from `read`.
        """
        fields, last = self._item_fields, max(rows, default=-1)
        for row, found in enumerate(self._objects(path, meter)):
            if row in rows:
                yield row, found if isinstance(found, Invalid) else self._record(found, fields)
            if row >= last:
                return

    def read_items(self, path: str) -> Iterator[Item]:
        """Key and columns of every line of a file.

        Raises:
            TruncatedFile: as from `read`, after as many lines.
            OSError: the file cannot be opened; names it.
        """
        fields = self._item_fields
        for found in self._objects(path):
            if isinstance(found, Invalid):
                yield fields.without_values(found)
            else:
                yield fields.item(found.row, fallback=found.name)

    def lines(self, path: str) -> Iterator[bytes]:
        """Every line of a file, decompressed and in UTF-8, without byte order mark and newline.

        A line of more than `max_item_mib` is empty here, and an invalid item to `read`.

        Raises:
            TruncatedFile: as from `read`; the line in which the file is cut off is excluded.
            OSError: the file cannot be opened; names it.
        """
        return (b"" if isinstance(line, _TooLong) else line for line in self._lines(path))

    def whole_lines(self, path: str) -> Iterator[bytes]:
        """Every line of a file as it stands there, in UTF-8, with its end; only the mark at the file's head is removed.

        A line of more than `max_item_mib` is empty here. Raises as `lines` does.
        """
        for number, line in enumerate(self._split_lines(path, end=b"\n")):
            content = b"" if isinstance(line, _TooLong) else line
            yield content if number else content.removeprefix(codecs.BOM_UTF8)

    def texts_in(self, line: bytes) -> list[str]:
        """The text of a line, as `lines` or `whole_lines` gives it; none of one that has none."""
        try:
            found = lookup(json_object(line.removeprefix(codecs.BOM_UTF8), name="line"), self.text)
        except InvalidValue:
            return []
        return [found] if isinstance(found, str) else []

    @property
    def _item_fields(self) -> ItemFields:
        return ItemFields(self.key, self.columns, automatic=("url",), text=self.text)

    def _lines(self, path: str, meter: ReadMeter | None = None) -> "Iterator[bytes | _TooLong]":
        for line in self._split_lines(path, meter):
            # Every part of a joined file may begin with a mark.
            yield line.removeprefix(codecs.BOM_UTF8) if isinstance(line, bytes) else line

    def _split_lines(
        self, path: str, meter: ReadMeter | None = None, *, end: bytes = b""
    ) -> "Iterator[bytes | _TooLong]":
        """The lines of a file in UTF-8, with their marks; each that a newline ends has `end` in its place."""
        count = 0
        with opened(path, meter=meter) as stream:
            try:
                for line in _split(_in_utf8(_named(_content(stream, path))), most=self.max_item_mib << 20, end=end):
                    yield line
                    count += 1
            except EOFError as error:
                message = f"{path}: cut off or damaged in line {count} (counted from 0): {error}"
                raise TruncatedFile(message) from error
            except _OtherContentError as error:
                message = f"{path}: no JSON lines: {error}"
                raise TruncatedFile(message) from error

    def _objects(self, path: str, meter: ReadMeter | None = None) -> "Iterator[_Object | Invalid]":
        """The object of every line, an `Invalid` where it has none."""
        name = file_name(path)
        for number, line in enumerate(self._lines(path, meter)):
            location = f"line {number} (counted from 0)"
            if isinstance(line, _TooLong):
                yield Invalid(f"{name}:{number}", f"{location}: {too_large(f'{line.size:,} bytes', self.max_item_mib)}")
            else:
                yield _parsed(line, name=f"{name}:{number}", location=location)

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


@dataclass(frozen=True, slots=True)
class _TooLong:
    """A line that is longer than allowed, of `size` bytes, of which none is held."""

    size: int


class _OtherContentError(ValueError):
    """A file holds something else than JSON lines."""


def _split(chunks: Iterator[bytes], *, most: int, end: bytes = b"") -> Iterator[bytes | _TooLong]:
    """Lines, without their newlines, of a stream of any chunks.

    Args:
        chunks: of the stream.
        most: bytes of a line that are held; what is longer is passed over.
        end: is appended to each line that a newline ends.

    Raises:
        EOFError: the last line has no newline, and is no whole JSON.
    """
    parts: list[bytes] = []  # of the line that is not yet complete
    size = 0
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        size += len(first)
        if size <= most:
            parts.append(first)
        else:
            parts.clear()
        if others:
            yield b"".join(parts) + end if size <= most else _TooLong(size)
            yield from (line + end if len(line) <= most else _TooLong(len(line)) for line in others[:-1])
            parts, size = [others[-1]], len(others[-1])
    if size > most:
        yield _TooLong(size)
    elif size:
        yield _last_line(b"".join(parts))


def _last_line(line: bytes) -> bytes:
    """The line that no newline ends.

    Raises:
        EOFError: it is no JSON, so that its end is missing, and maybe more lines.
    """
    if line.strip() and not _is_json(line):
        message = "the last line has no newline, and is no whole JSON"
        raise EOFError(message)
    return line


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _named(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same content, unless its beginning shows that it is no JSON lines.

    Raises:
        _OtherContentError: says what it is, and the remedy.
    """
    head, rest = b"", chunks
    try:
        while len(head) < _CHUNK and (chunk := next(chunks, None)) is not None:
            head += chunk
    except EOFError as error:
        rest = _ending_with(error)  # What comes before it is read all the same.
    what = foreign(head[:HEAD]) or _json_document(head)
    if what:
        raise _OtherContentError(what)
    return chain([head], rest)


def _ending_with(error: EOFError) -> Iterator[bytes]:
    yield b""
    raise error


def _json_document(head: bytes) -> str | None:
    """What a file is that holds one JSON document over many lines, by its beginning."""
    first_line, newline, others = head.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")
    # An array in a line of its own, with more lines below, is that line's fault alone.
    if first_line.startswith(b"[") and not (_is_json(first_line) and others.strip()):
        return "this is a JSON array; write one object a line: `jq -c '.[]' array.json > lines.jsonl`"
    if not newline and b"\r{" in first_line:
        return "its lines end in carriage returns alone; write newlines: `tr '\\r' '\\n' < old.jsonl > new.jsonl`"
    if newline and first_line.strip() == b"{":
        return "this is a JSON object over several lines; write one object a line: `jq -c . objects.json > lines.jsonl`"
    return None


def _in_utf8(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same content in UTF-8, where its beginning shows that it is UTF-16 or UTF-32.

    Raises:
        EOFError: it is cut off within a character, or damaged.
    """
    head = next(chunks, b"")
    encoding = _encoding(head)
    if encoding == "utf-8":
        return chain([head], chunks)
    return _recoded(chain([head], chunks), codecs.getincrementaldecoder(encoding)())


def _encoding(head: bytes) -> str:
    return next((name for beginning, name in _ENCODINGS if head.startswith(beginning)), "utf-8")


@dataclass(frozen=True, slots=True)
class FileForm:
    """How a file of JSON lines is written, apart from its lines.

    Attributes:
        packing: what it is compressed with.
        mark: the byte order mark at its head; empty where there is none.
        encoding: of its text.
    """

    packing: Packing | None
    mark: bytes
    encoding: str


def file_form(path: str) -> FileForm:
    """How a file of JSON lines is written; an empty one of no bytes is plain.

    Raises:
        TruncatedFile: it holds something else; names it.
        OSError: it cannot be opened; names it.
    """
    with opened(path) as stream:
        packing = packing_of(stream.peek(6))  # type: ignore[attr-defined]
        try:
            head = next(_named(_content(stream, path)), b"")
        except _OtherContentError as error:
            message = f"{path}: no JSON lines: {error}"
            raise TruncatedFile(message) from error
    encoding = _encoding(head)
    mark = "\ufeff".encode(encoding)
    return FileForm(packing, mark if head.startswith(mark) else b"", encoding)


def count_lines(stream: IO[bytes]) -> int:
    """Lines of a file of JSON lines, packed or not; the last one may have no newline.

    Args:
        stream: of the file.
    """
    return sum(1 for _ in _split(_in_utf8(_named(_content(stream, ""))), most=0))


def _recoded(chunks: Iterator[bytes], decoder: codecs.IncrementalDecoder) -> Iterator[bytes]:
    try:
        for chunk in chunks:
            yield decoder.decode(chunk).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise EOFError(str(error)) from error


class _Unpacker(Protocol):
    """Unpacks one frame of a compressed stream, a bounded amount at once."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def pieces(self, data: bytes, /) -> Iterator[bytes]: ...


class _Gzip:
    """One member of a gzip file."""

    def __init__(self) -> None:
        self._frame = zlib.decompressobj(_GZIP)

    @property
    def eof(self) -> bool:
        return self._frame.eof

    @property
    def unused_data(self) -> bytes:
        return self._frame.unused_data

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What some data unpack to, at most 1 MiB at once."""
        while data:
            yield self._frame.decompress(data, _UNPACKED)
            data = self._frame.unconsumed_tail


class _Zstandard:
    """One frame of a Zstandard file."""

    def __init__(self) -> None:
        import zstandard

        # Windows as large as `zstd --long=31` writes.
        self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        self._rest = b""

    @property
    def eof(self) -> bool:
        return self._frame.eof

    @property
    def unused_data(self) -> bytes:
        return self._frame.unused_data + self._rest

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What some data unpack to, that of 256 bytes at once."""
        for start in range(0, len(data), _ZSTD_PIECE):
            if self._frame.eof:
                self._rest = data[start:]
                return
            yield self._frame.decompress(data[start : start + _ZSTD_PIECE])


def _content(stream: IO[bytes], path: str) -> Iterator[bytes]:
    """The decompressed content of a file in chunks."""
    head = stream.read(_CHUNK)
    chunks = chain([head] if head else [], iter(lambda: stream.read(_CHUNK), b""))
    name = path.lower()
    # The content decides, and the suffix where it does not: a file that does not begin as it should is damaged.
    plain = bool(foreign(head[:HEAD])) or head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"[")
    packing = packing_of(head)
    if packing == "gzip" or (name.endswith(".gz") and not plain):
        return _unpacked(chunks, _Gzip, zlib.error)
    if packing == "zstandard" or (name.endswith(".zst") and not plain):
        import zstandard

        return _unpacked(chunks, _Zstandard, zstandard.ZstdError)
    return chunks


def _unpacked(chunks: Iterator[bytes], new_frame: Callable[[], _Unpacker], damage: type[Exception]) -> Iterator[bytes]:
    """The content of a compressed stream of one or more frames.

    Raises:
        EOFError: it is cut off in the middle of a frame, or damaged.
    """
    frame = new_frame()
    for chunk in chunks:
        # Some writers pad their last block with zeros.
        rest = chunk.lstrip(b"\0") if frame.eof else chunk
        while rest:
            if frame.eof:
                frame = new_frame()
            try:
                yield from frame.pieces(rest)
            except damage as error:
                raise EOFError(str(error)) from error
            rest = frame.unused_data.lstrip(b"\0") if frame.eof else b""
    if not frame.eof:
        message = "the compressed data end before their end marker"
        raise EOFError(message)
