import posixpath
import re
from collections import Counter
from collections.abc import Collection, Container, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Literal

from pydantic import BaseModel, Field

from semdedup_assets.records import ColumnType, Content, Invalid, Item, Record
from semdedup_assets.sources.columns import Columns, ItemFields, field_names, item_image, sidecar_fields
from semdedup_assets.sources.reading import (
    IMAGE_SUFFIXES,
    MAX_ITEM_MIB,
    InvalidValue,
    ItemMib,
    ReadMeter,
    TruncatedFile,
    opened,
    path_problem,
    printable,
    shortened,
    some,
    source_listing,
    too_large,
)
from semdedup_assets.sources.tar_members import BadEndError, DamagedTarError, Tar, TarMember
from semdedup_assets.storage.files import FileStat, Listing, is_local
from semdedup_assets.storage.walk import SPECIAL

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_SIDECARS = ("txt", "json")
_IMAGES = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)
# Names that the `webdataset` package takes for a sample's file; hidden files and those without a suffix are none.
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
# Folders of tools, such as `.ipynb_checkpoints`; `./` is none.
_HIDDEN_FOLDER = re.compile(r"(^|/)(\.[^./][^/]*|__MACOSX)/", re.DOTALL)
_MOST_FILES = 1000  # of a sample
_REMEMBERED = 500_000  # keys
_SORT = "sort the tar's members by name (`tar --sort=name`)"

Sample = tuple[str, dict[str, bytes]]


class WebDataset(BaseModel, frozen=True, extra="forbid"):
    """WebDataset tars of images, as img2dataset writes them: `<key>.jpg`, `<key>.txt` and `<key>.json`."""

    kind: Literal["webdataset"] = "webdataset"
    path: str = Field(
        min_length=1,
        description="A tar (plain, .gz, .bz2, .xz or .zst), a folder of them (all below it are taken), a glob, "
        "or an fsspec URL of any of these.",
    )
    columns: Columns = {}
    max_item_mib: ItemMib = MAX_ITEM_MIB

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
        return self.model_dump(include={"kind", "max_item_mib"})

    def item_settings(self) -> dict[str, Any]:
        """The settings that can change keys and columns."""
        return self.model_dump(include={"kind", "columns", "max_item_mib"})

    def problems(self) -> list[str]:
        """What is wrong with the path as a setting; begins with the setting's name."""
        problem = path_problem(self.path)
        return [f"path: {problem}"] if problem else []

    def files(self) -> list[FileStat]:
        """The files of `listing`."""
        return self.listing().files

    def listing(self) -> Listing:
        """Every tar, sorted by path; and what was passed over.

        Raises:
            FileNotFoundError: there is none; names the path and the remedy.
            OSError: a folder cannot be listed, or the store does not answer.
            ValueError: the path holds a secret.
        """
        return source_listing(self.path, _TARS)

    def read(self, path: str) -> Iterator[Record | Invalid]:
        """The image of every sample of a tar, in its order.

        Raises:
            TruncatedFile: the tar is cut off or damaged, after the samples before; names it.
            OSError: the tar cannot be opened or read; names it.
        """
        for sample in _samples(path, _IMAGES, self.max_item_mib, Counter()):
            yield sample.record(self.max_item_mib)

    def read_rows(self, path: str, rows: Collection[int], meter: ReadMeter) -> Iterator[tuple[int, Record | Invalid]]:
        """What `read` gives of the wanted samples of a tar, with their numbers.

        Of the others only headers are read where the tar is neither packed nor streamed; nothing after the last.

        Raises:
            ReadLimitError: more would be read than the meter allows.
            TruncatedFile, OSError: as from `read`.
        """
        last = max(rows, default=-1)
        for row, sample in enumerate(_samples(path, _IMAGES, self.max_item_mib, Counter(), _Part(rows, meter))):
            if row in rows:
                yield row, sample.record(self.max_item_mib)
            if row >= last:
                return

    def field_names(self, path: str, limit: int = 1000) -> list[str]:
        """Names in the JSON of a tar's first samples, dotted where they are nested, and `caption` where there is a text.

        Args:
            path: a tar.
            limit: samples that are read.

        Raises:
            TruncatedFile: the tar is cut off or damaged within these samples; names it.
            OSError: the tar cannot be opened; names it.
        """
        samples = islice(_samples(path, _SIDECARS, self.max_item_mib, Counter()), limit)
        found = (each.members for each in samples)
        return field_names(sidecar_fields(txt=each.get("txt"), json=each.get("json"))[0] for each in found)

    def read_items(self, path: str) -> Generator[Item, None, dict[str, int]]:
        """Key, caption and columns of every sample of a tar. Skips the images.

        Returns:
            By reason, how many members belong to no sample: hidden names and folders, names without a suffix.

        Raises:
            TruncatedFile: the tar is cut off or damaged, after the samples before; names it.
            OSError: the tar cannot be opened or read; names it.
        """
        fields, passed_over = self._item_fields, Counter[str]()
        for sample in _samples(path, _SIDECARS, self.max_item_mib, passed_over):
            row, invalid = sidecar_fields(txt=sample.members.get("txt"), json=sample.members.get("json"))
            reasons = [f"{suffix}: {sample.problems[suffix]}" for suffix in _SIDECARS if suffix in sample.problems]
            split = [sample.split] if sample.split and sample.image is not None else []
            yield fields.item(row, fallback=printable(sample.key), invalid_values=[*reasons, *invalid, *split])
        return dict(passed_over)

    def samples(self, path: str) -> Iterator[Sample]:
        """The raw content of every sample of a tar, in its order: key, and bytes by suffix in lower case.

        A key that comes again later, or a repeated suffix, starts a sample of its own. Links have the bytes of the
        earlier member that they lead to, if they can be found; samples that exceed a bound have none. The last sample
        before the tar is cut off is excluded, since more of it may be missing; but not where the tar only lacks its
        end marker.

        Raises:
            TruncatedFile: the tar is cut off or damaged, after the samples before; names it.
            OSError: the tar cannot be opened or read; names it.
        """
        return ((sample.key, sample.contents(self.max_item_mib)) for sample in self._whole_samples(path))

    def sample_files(self, path: str) -> Iterator[Sample]:
        """What `samples` gives of a tar, with the files of each sample by their own names in it."""
        for sample in self._whole_samples(path):
            contents = sample.contents(self.max_item_mib)
            yield sample.key, {sample.names[suffix]: content for suffix, content in contents.items()}

    def _whole_samples(self, path: str) -> "Iterator[_Sample]":
        return _samples(path, None, self.max_item_mib, Counter())

    @property
    def _item_fields(self) -> ItemFields:
        return ItemFields(None, self.columns, automatic=("caption", "url"))


@dataclass(slots=True)
class _Sample:
    """The files of a key that follow each other.

    Attributes:
        members: content by suffix, empty where it was not asked for.
        names: of the files in the tar, by suffix.
        problems: by suffix, why a file has no content.
        files: how many there are; beyond the bound they are only counted.
        size: bytes of all of them.
        split: why some of it is missing here, empty where nothing shows that.
    """

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    files: int = 0
    size: int = 0
    split: str = ""

    @property
    def suffixes(self) -> list[str]:
        """Of its files, those that have no content included; in no particular order."""
        return [*self.members, *(suffix for suffix in self.problems if suffix not in self.members)]

    @property
    def image(self) -> str | None:
        """The suffix of its image."""
        return next((suffix for suffix in _IMAGES if suffix in self.members or suffix in self.problems), None)

    def has(self, suffix: str) -> bool:
        """Whether one of its files has a suffix."""
        return suffix in self.members or suffix in self.problems

    def is_within(self, max_mib: int) -> bool:
        """Whether it has no more files and bytes than a sample may have."""
        return self.files <= _MOST_FILES and self.size <= max_mib << 20

    def contents(self, max_mib: int) -> dict[str, bytes]:
        """The content of its files by suffix; nothing where it exceeds a bound."""
        return self.members if self.is_within(max_mib) else {}

    def record(self, max_mib: int) -> Record | Invalid:
        """Its image, or why it has none that can be used."""
        key, image = printable(self.key), self.image
        if self.files > _MOST_FILES or image is None:
            return Invalid(key, shortened(self._without_image()))
        if self.size > max_mib << 20:
            return Invalid(key, too_large(self.size, max_mib, name=f"sample of {self.files:,} files: "))
        if image in self.problems:
            return Invalid(key, shortened(f"{image}: {self.problems[image]}"))
        try:
            return Record(key, item_image(self.members[image]))
        except InvalidValue as error:
            return Invalid(key, str(error))

    def _without_image(self) -> str:
        if self.split:
            return self.split
        names = [printable(suffix) for suffix in self.suffixes]
        found = some(names) if self.files <= len(names) else f"{', '.join(names[:3])} and {self.files - 3:,} more"
        reason = f"no image among its {self.files:,} file{'s' * (self.files > 1)} ({found})"
        if self.files > _MOST_FILES:
            reason = f"{self.files:,} files, of which a sample may have {_MOST_FILES:,} ({found})"
        if any(f".{suffix}".lower().endswith(IMAGE_SUFFIXES) for suffix in names):
            return f"{reason}: WebDataset ends a key at the first dot of a file's name; rename the files"
        if all(suffix in _SIDECARS for suffix in names):
            return f"{reason}; sample split, if its image comes later in the tar: {_SORT}"
        return f"{reason}; images end in {' '.join(_IMAGES)}"


@dataclass(frozen=True, slots=True)
class _Part:
    """Samples of a tar, by their numbers, and what counts the bytes that are read for them."""

    rows: Container[int]
    meter: ReadMeter


def _samples(
    path: str,
    wanted: Container[str] | None,
    max_mib: int,
    passed_over: Counter[str],
    part: "_Part | None" = None,
) -> Iterator[_Sample]:
    """The samples of a tar, as `WebDataset.samples` describes them.

    Args:
        path: the tar.
        wanted: suffixes whose content is read, None for all; the other members are empty.
        max_mib: bound on a sample.
        passed_over: where members are counted that belong to no sample, by reason.
        part: which samples' content is read; None: that of all.
    """
    sample: _Sample | None = None
    count, keys = 0, _Keys()
    with opened(path, meter=part.meter if part else None) as stream:
        try:
            tar = Tar(stream, few=part is not None and is_local(path))
            contents = _Contents(tar, path, max_mib)
            for member in tar:
                if member.kind == "folder":
                    continue
                parts = _MEMBER.fullmatch(member.name)
                if parts is None or member.kind == "other" or _HIDDEN_FOLDER.search(member.name):
                    passed_over[_reason(member)] += 1
                    continue
                key, suffix = parts[1], parts[2].lower()
                if sample is None or sample.key != key or sample.has(suffix):
                    if sample is not None:
                        count += 1
                        yield keys.checked(sample)  # before the content of the next one, which may be cut off
                    sample = _Sample(key)
                is_wanted = (wanted is None or suffix in wanted) and (part is None or count in part.rows)
                contents.add(sample, suffix, member, is_wanted=is_wanted)
        except DamagedTarError as error:
            if sample is not None and isinstance(error, BadEndError):
                count += 1
                yield keys.checked(sample)
            location = f" in or after sample {printable(sample.key)!r}" if sample else ""
            message = f"{path}: cut off or damaged{location}: {error}; {count:,} samples were read"
            cut = TruncatedFile(shortened(message))
            cut.passed_over = passed_over
            raise cut from error
    if sample is not None:
        yield keys.checked(sample)


def _reason(member: TarMember) -> str:
    """Why a member belongs to no sample."""
    if member.kind == "other":
        return SPECIAL
    if _HIDDEN_FOLDER.search(member.name):
        return "members in hidden folders (. first, __MACOSX)"
    is_hidden = posixpath.basename(member.name).startswith(".")
    return "members with hidden names (. first)" if is_hidden else "members without a suffix"


class _Keys:
    """Which keys had an image, and which had none: their files may lie apart from each other."""

    def __init__(self) -> None:
        self._seen: dict[bool, set[int]] = {True: set(), False: set()}

    def checked(self, sample: _Sample) -> _Sample:
        """A sample, marked where the rest of its key came before."""
        has_image, key = sample.image is not None, hash(sample.key)
        if key in self._seen[not has_image] and not (has_image and any(map(sample.has, _SIDECARS))):
            sample.split = (
                f"sample split: the files of key {printable(sample.key)!r} are not next to each other; {_SORT}"
            )
        if len(self._seen[has_image]) < _REMEMBERED:
            self._seen[has_image].add(key)
        return sample


class _Contents:
    """Adds members to samples, with their content where it is wanted and within bounds."""

    def __init__(self, tar: Tar, path: str, max_mib: int) -> None:
        self._tar, self._path, self._max_mib = tar, path, max_mib

    def add(self, sample: _Sample, suffix: str, member: TarMember, *, is_wanted: bool) -> None:
        """Add a member to its sample."""
        sample.files += 1
        if sample.files > _MOST_FILES:
            if sample.files == _MOST_FILES + 1:
                sample.members = dict.fromkeys(sample.members, b"")
            return
        sample.names[suffix] = member.name
        try:
            found = self._found(member)
            sample.size += found.size
            if found.size > self._max_mib << 20:
                raise InvalidValue(too_large(found.size, self._max_mib))
        except InvalidValue as error:
            sample.problems[suffix] = str(error)
            return
        if sample.size > self._max_mib << 20 and suffix not in _SIDECARS:
            # The whole sample is invalid: only its caption and columns are listed.
            sample.members |= dict.fromkeys(sample.members.keys() - set(_SIDECARS), b"")
            is_wanted = False
        sample.members[suffix] = self._content(found, is_linked=found is not member) if is_wanted else b""

    def _found(self, member: TarMember) -> TarMember:
        """The member that holds the content of a member.

        Raises:
            InvalidValue: it is a link that leads to no member.
        """
        if member.kind == "symbolic link":
            message = f"a symbolic link to {printable(member.target)!r}; pack files, not links (`tar --dereference`)"
            raise InvalidValue(message)
        return self._target(member) if member.kind == "hard link" else member

    def _content(self, found: TarMember, *, is_linked: bool) -> bytes:
        if not is_linked:
            return self._tar.content(found)
        with opened(self._path) as stream:
            stream.seek(found.offset)
            return stream.read(found.size)

    def _target(self, link: TarMember) -> TarMember:
        """The earlier member that a hard link stands for."""
        found = self._targets.get(posixpath.normpath(link.target))
        if found is not None and found.offset < link.offset:
            return found
        reason = "which is not among the members before it"
        if not self._tar.is_seekable:
            reason = "which cannot be read again in a compressed or streamed tar"
        message = f"a hard link to {printable(link.target)!r}, {reason}; pack it with `tar --hard-dereference`"
        raise InvalidValue(message)

    @cached_property
    def _targets(self) -> dict[str, TarMember]:
        """What the tar's hard links lead to, by name; found by reading its headers again."""
        if not self._tar.is_seekable:
            return {}
        names = {member.target for member in self._members() if member.kind == "hard link"}
        names = {posixpath.normpath(name) for name in names}
        return {
            name: member
            for member in self._members()
            if member.kind == "file" and member.sparse is None and (name := posixpath.normpath(member.name)) in names
        }

    def _members(self) -> Iterator[TarMember]:
        """The members up to where the tar is damaged, which the caller finds by itself."""
        with opened(self._path) as stream, suppress(DamagedTarError):
            yield from Tar(stream)
