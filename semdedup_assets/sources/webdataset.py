import re
import tarfile
from collections.abc import Container, Iterator
from itertools import islice
from typing import IO, Any, Literal

from pydantic import BaseModel, Field

from semdedup_assets.records import ColumnType, Content, Invalid, Item, Record
from semdedup_assets.sources.columns import Columns, ItemFields, field_names, item_image, sidecar_fields
from semdedup_assets.sources.reading import (
    InvalidValue,
    TruncatedFile,
    file_name,
    opened,
    path_problem,
    printable,
    source_files,
)
from semdedup_assets.storage.files import FileStat

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_SIDECARS = ("txt", "json")
_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif")
# Names that the `webdataset` package takes for a sample's file; hidden files and those without a suffix are none.
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
_BUFFER = 1 << 20

Sample = tuple[str, dict[str, bytes]]


class WebDataset(BaseModel, frozen=True, extra="forbid"):
    """WebDataset tars of images, as img2dataset writes them: `<key>.jpg`, `<key>.txt` and `<key>.json`."""

    kind: Literal["webdataset"] = "webdataset"
    path: str = Field(
        min_length=1,
        description="A tar (plain, .gz, .bz2 or .xz), a folder of them (all below it are taken), a glob, "
        "or an fsspec URL of any of these.",
    )
    columns: Columns = {}

    @property
    def content(self) -> Content:
        """The payload of a record."""
        return "image"

    @property
    def column_types(self) -> dict[str, ColumnType]:
        """Every carried column by name and type."""
        return self._item_fields.column_types

    def payload_settings(self) -> dict[str, Any]:
        """The settings that can change which payloads are read."""
        return self.model_dump(include={"kind"})

    def item_settings(self) -> dict[str, Any]:
        """The settings that can change keys and columns."""
        return self.model_dump(include={"kind", "columns"})

    def problems(self) -> list[str]:
        """What is wrong with the path as a setting; begins with the setting's name."""
        problem = path_problem(self.path)
        return [f"path: {problem}"] if problem else []

    def files(self) -> list[FileStat]:
        """Every tar, sorted by path.

        Raises:
            FileNotFoundError: there is none; names the path and the remedy.
        """
        return source_files(self.path, _TARS)

    def read(self, path: str) -> Iterator[Record | Invalid]:
        """The image of every sample of a tar, in its order; at the end one `Invalid` where the tar is cut off.

        Raises:
            OSError: the tar cannot be opened; names it.
        """
        try:
            for key, members in _samples(path, _IMAGES):
                yield _record(printable(key), members)
        except TruncatedFile as cut:
            yield Invalid(file_name(path), str(cut))

    def field_names(self, path: str, limit: int = 1000) -> list[str]:
        """Names in the JSON of a tar's first samples, dotted where they are nested, and `caption` where there is a text.

        Args:
            path: a tar.
            limit: samples that are read.

        Raises:
            TruncatedFile: the tar is cut off or damaged within these samples; names it.
            OSError: the tar cannot be opened; names it.
        """
        members = (found for _, found in islice(_samples(path, _SIDECARS), limit))
        return field_names(sidecar_fields(txt=each.get("txt"), json=each.get("json"))[0] for each in members)

    def read_items(self, path: str) -> Iterator[Item]:
        """Key, caption and columns of every sample of a tar, and of the whole tar where it is cut off.

        Skips the images.

        Raises:
            OSError: the tar cannot be opened; names it.
        """
        fields = self._item_fields
        try:
            for key, members in _samples(path, _SIDECARS):
                row, invalid = sidecar_fields(txt=members.get("txt"), json=members.get("json"))
                yield fields.item(row, fallback=printable(key), invalid_values=invalid)
        except TruncatedFile as cut:
            yield fields.without_values(Invalid(file_name(path), str(cut)))

    def samples(self, path: str) -> Iterator[Sample]:
        """The raw content of every sample of a tar, in its order: key, and bytes by suffix in lower case.

        A key that comes again later, or a repeated suffix, starts a sample of its own. Links have no
        bytes. The last sample before the tar is cut off is excluded, since more of it may be missing; but not
        where the tar only lacks its end marker.

        Raises:
            TruncatedFile: the tar is cut off or damaged; names it and the last sample that was started.
            OSError: the tar cannot be opened; names it.
        """
        return _samples(path, None)

    @property
    def _item_fields(self) -> ItemFields:
        return ItemFields(None, self.columns, automatic=("caption", "url"))


def _record(key: str, members: dict[str, bytes]) -> Record | Invalid:
    image = next((suffix for suffix in _IMAGES if suffix in members), None)
    if image is None:
        return Invalid(key, f"no image: none of {' '.join(_IMAGES)} among its files ({' '.join(members)})")
    try:
        return Record(key, item_image(members[image]))
    except InvalidValue as error:
        return Invalid(key, str(error))


def _samples(path: str, wanted: Container[str] | None) -> Iterator[Sample]:
    """The samples of a tar, as `WebDataset.samples` describes them.

    Args:
        path: the tar.
        wanted: suffixes whose content is read, None for all; the other members are empty.
    """
    sample: Sample | None = None
    try:
        for key, suffix, content in _members(path):
            if sample is None or sample[0] != key or suffix in sample[1]:
                if sample is not None:
                    yield sample  # before the content of the next one, which may be cut off
                sample = (key, {})
            if content is not None:
                sample[1][suffix] = content.read() if wanted is None or suffix in wanted else b""
    except (tarfile.TarError, EOFError) as error:
        if sample is not None and isinstance(error, _Unterminated):
            yield sample
        location = f"in or after sample {sample[0]!r}" if sample else "at its head"
        message = f"{path}: cut off or damaged {location}: {error}"
        raise TruncatedFile(message) from error
    if sample is not None:
        yield sample


class _Unterminated(tarfile.ReadError):
    """A tar ends after a member, without the zeros of its end marker."""


class _Header(tarfile.TarInfo):
    """A member's header; raises where `tarfile` takes a missing or damaged one for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        if not buf:
            message = "it ends without the end-of-archive marker"
            raise _Unterminated(message)
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise
            message = f"{error} where a member should start"
            raise tarfile.ReadError(message) from error


def _members(path: str) -> Iterator[tuple[str, str, IO[bytes] | None]]:
    """Key, suffix and content of every file in a tar, None for a link's content; to be read before the next."""
    with (
        opened(path) as stream,
        tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header, bufsize=_BUFFER) as tar,
    ):
        # Opening reads the first member; of an archive without one, Python 3.10 would then seek backwards.
        empty = getattr(tar, "firstmember", None) is None
        while not empty and (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # the list would grow with the archive
            parts = _MEMBER.fullmatch(member.name)
            if parts is not None and not member.isdir():
                yield parts[1], parts[2].lower(), tar.extractfile(member) if member.isreg() else None
