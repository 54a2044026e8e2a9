import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Any, Literal

from pydantic import BaseModel, Field

from semdedup_assets.records import ColumnType, Content, Invalid, Item, Record
from semdedup_assets.sources.columns import (
    Columns,
    ItemFields,
    field_names,
    first_caption,
    is_null,
    item_image,
    sidecar_fields,
)
from semdedup_assets.sources.imagefolder import METADATA, ImageRows, fields_of, image_rows
from semdedup_assets.sources.paths import escaped, expanded_braces, is_glob, is_http, unquoted, with_literal_folders
from semdedup_assets.sources.reading import (
    IMAGE_SUFFIXES,
    MAX_ITEM_MIB,
    InvalidValue,
    ItemMib,
    ReadMeter,
    file_name,
    fixed_roots,
    nothing_there,
    path_problem,
    printable,
    source_listing,
    whole_content,
)
from semdedup_assets.storage.files import FileStat, Listing, file_stat, filesystem, is_local, list_glob
from semdedup_assets.storage.walk import suffix_of

_SIDECARS = (".txt", ".json")
_ORPHANS = "captions without an image"


class Folder(BaseModel, frozen=True, extra="forbid"):
    """Images in folders, each a file, with `<stem>.txt`, `<stem>.json` or a line of `metadata.jsonl` where there is one."""

    kind: Literal["folder"] = "folder"
    path: str = Field(
        min_length=1,
        description="Folder of images (all below it are taken), a glob, or an fsspec URL of either. On an object "
        "store every image costs several requests: pack them into WebDataset tars there.",
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
        """Every image, by one listing, sorted by path; and what was passed over.

        Returns:
            A file's stamp covers the text and JSON beside it and its line in `metadata.jsonl`, so that a changed
            caption is a changed file.

        Raises:
            FileNotFoundError: there is no image; names the path and the remedy.
            OSError: a folder cannot be listed, or the store does not answer.
            ValueError: the path holds a secret, or a `metadata.jsonl` is too large.
        """
        listed = source_listing(self.path, (*IMAGE_SUFFIXES, *_SIDECARS, METADATA))
        named = {_bare(each) for each in (self.path, *expanded_braces(self.path))}
        images = [file for file in listed.files if _is_image(file.path) or _bare(file.path) in named]
        if not images:
            raise FileNotFoundError(nothing_there(self.path, IMAGE_SUFFIXES, listed.passed_over))
        beside = {file.path: file for file in [*listed.files, *self._listed_apart(images)]}
        for image in images:
            del beside[image.path]
        stamps = _Stamps(list(beside.values()), self._folders_above)
        stamped = [replace(image, stamp=" ".join([image.stamp, *stamps.of(image.path)])) for image in images]
        return Listing(stamped, dict(Counter(listed.passed_over) + stamps.passed_over()))

    def read(self, path: str) -> Iterator[Record | Invalid]:
        """The one image of a file; invalid where the file cannot be opened for a reason of its own.

        Raises:
            OSError: the image vanished, or its store fails; names it.
        """
        yield self._record(path)

    def read_rows(self, path: str, rows: Collection[int], meter: ReadMeter) -> Iterator[tuple[int, Record | Invalid]]:
        """What `read` gives of the wanted rows of a file, of which there is one; raises also as `ReadMeter.count`."""
        if 0 in rows:
            yield 0, self._record(path, meter)

    def field_names(self, path: str, limit: int = 1000) -> list[str]:
        """Names in what lies beside an image, dotted where they are nested, and `caption` where there is a text.

        Args:
            path: an image.
            limit: not used here, for a file is one item.

        Raises:
            OSError: one of the files cannot be opened; names it.
        """
        del limit
        return field_names([self._fields(path)[0]])

    def read_items(self, path: str) -> Iterator[Item]:
        """Key, caption and columns of the one image of a file; reads only what lies beside it.

        A caption is that of the text file, else of the JSON, else of the line in the nearest `metadata.jsonl`; one that
        is null, blank or cannot be read gives way to the next.

        Raises:
            OSError: one of them cannot be opened for a fault of its store; names it.
        """
        row, invalid = self._fields(path)
        yield self._item_fields.item(row, fallback=self._key(path), invalid_values=invalid)

    def _record(self, path: str, meter: ReadMeter | None = None) -> Record | Invalid:
        key = self._key(path)
        try:
            return Record(key, item_image(whole_content(path, self.max_item_mib, meter)))
        except InvalidValue as error:
            return Invalid(key, str(error))

    def _fields(self, path: str) -> tuple[dict[str, object], list[str]]:
        """The fields of what lies beside an image, and why some of it cannot be read."""
        sidecars, invalid = dict[str, bytes](), list[str]()
        for suffix in _SIDECARS:
            try:
                content = self._beside(path, suffix)
            except InvalidValue as error:
                invalid.append(f"{suffix[1:]}: {error}")
                continue
            if content is not None:
                sidecars[suffix] = content
        row, unreadable = sidecar_fields(txt=sidecars.get(".txt"), json=sidecars.get(".json"))
        line, foreign = self._row_of_metadata(path)
        found = {**row, **line, **{name: value for name, value in row.items() if not is_null(value)}}
        if "caption" in found:
            found["caption"] = first_caption(row.get("caption"), line.get("caption"))
        return found, [*invalid, *unreadable, *foreign]

    @property
    def _item_fields(self) -> ItemFields:
        return ItemFields(None, self.columns, automatic=("caption",))

    def _key(self, path: str) -> str:
        name = _name(path)
        roots = (f"{root.rstrip('/')}/" for root in self._roots)
        return printable(next((name[len(root) :] for root in roots if name.startswith(root)), file_name(name)))

    def _listed_apart(self, images: list[FileStat]) -> Iterator[FileStat]:
        """What lies beside the images where the path matches images only."""
        narrow = [each for each in expanded_braces(self.path) if _names_images(each)]
        if not narrow:
            return
        found = {_bare(image.path) for image in images}
        folders = (
            escaped(each.rpartition("/")[0]) if _bare(each) in found else with_literal_folders(each).rpartition("/")[0]
            for each in narrow
        )
        for folder in dict.fromkeys(folders):
            yield from list_glob(f"{folder}/*" if folder else "*", (*_SIDECARS, METADATA)).files
        above = dict.fromkeys(folder for image in images for folder in self._folders_above(image.path))
        yield from filter(None, (file_stat(f"{folder}/{METADATA}") for folder in above))

    def _folders_above(self, path: str) -> Iterator[str]:
        """The folder of an image, then those that hold it, up to the source's own."""
        root = next((root for root in self._roots if _name(path).startswith(f"{root.rstrip('/')}/")), None)
        folder = path.rpartition("/")[0]
        yield folder
        while root is not None and _name(folder).startswith(f"{root.rstrip('/')}/"):
            folder = folder.rpartition("/")[0]
            yield folder

    @cached_property
    def _roots(self) -> list[str]:
        """The folders below which the images may lie, as `_name` writes them."""
        return [_plain(root) for root in fixed_roots(self.path)]

    def _row_of_metadata(self, path: str) -> tuple[dict[str, object], list[str]]:
        """The fields of an image's line in the nearest `metadata.jsonl`; and what such files are instead of that."""
        foreign = list[str]()
        for folder in self._folders_above(path):
            file = file_stat(f"{folder}/{METADATA}")
            if file is None:
                continue
            rows = image_rows(file)
            foreign += [rows.foreign] if rows.foreign else []
            line = rows.lines.get(_name_below(folder, path))
            if line is not None:
                return fields_of(line), foreign
        return {}, foreign

    def _beside(self, path: str, suffix: str) -> bytes | None:
        """The content of the file beside an image, None where there is none; its suffix may be in upper case."""
        stem, _, own = path.rpartition(".")
        for name in (f"{stem}{suffix}", _odd_sidecar(stem, suffix, own=own)):
            try:
                return whole_content(name, self.max_item_mib) if name else None
            except FileNotFoundError:
                continue
        return None


def _bare(path: str) -> str:
    return filesystem(path)[1]


def _plain(path: str) -> str:
    """A path without the escapes of a URL: as a local copy of it is called."""
    return unquoted(path) if is_http(path) else path


def _name(path: str) -> str:
    """A plain path as its file system writes it."""
    return _plain(_bare(path))


def _name_below(folder: str, path: str) -> str:
    """The name by which `metadata.jsonl` in a folder knows an image."""
    return _plain(path)[len(_plain(folder)) + 1 :]


def _is_image(path: str) -> bool:
    return path.lower().endswith(IMAGE_SUFFIXES)


def _names_images(path: str) -> bool:
    """Whether the last part of a path matches no sidecars: it names an image, or a suffix."""
    return _is_image(path) or (is_glob(file_name(path)) and "." in file_name(path))


class _Stamps:
    """What lies beside images, as parts of their stamps."""

    def __init__(self, files: list[FileStat], folders_above: Callable[[str], Iterator[str]]) -> None:
        self._sidecars: dict[str, list[str]] = {}
        self._rows: dict[str, ImageRows] = {}
        self._folders_above = folders_above
        self._with_image, self._read = set[str](), Counter[str]()
        self._others = Counter[str]()
        for file in files:
            stem, _, suffix = _plain(file.path).rpartition(".")
            if file_name(file.path) == METADATA:
                self._rows[_plain(file.path.rpartition("/")[0])] = image_rows(file)
            elif f".{suffix.lower()}" in _SIDECARS:
                self._sidecars.setdefault(stem, []).append(f"{suffix.lower()}:{file.size}:{file.stamp}")
            else:
                self._others[suffix_of(file_name(file.path))] += 1

    def of(self, path: str) -> Iterator[str]:
        """The stamps of what lies beside an image: the text, the JSON, and its line in the nearest `metadata.jsonl`."""
        stem = _plain(path).rpartition(".")[0]
        if stem in self._sidecars:
            self._with_image.add(stem)
            yield from self._sidecars[stem]
        for folder in self._folders_above(path) if self._rows else ():
            rows = self._rows.get(_plain(folder))
            if rows is None:
                continue
            if rows.foreign:
                yield "metadata:foreign"
            line = rows.lines.get(_name_below(folder, path))
            if line is not None:
                self._read[_plain(folder)] += 1
                yield f"metadata:{blake2b(line, digest_size=8).hexdigest()}"
                return

    def passed_over(self) -> Counter[str]:
        """What has no image, by reason; to be asked after all images."""
        orphans = sum(len(stamps) for stem, stamps in self._sidecars.items() if stem not in self._with_image)
        rows = self._rows.items()
        foreign = Counter(it.foreign for _, it in rows if it.foreign)
        return (
            self._others
            + foreign
            + Counter(
                {
                    _ORPHANS: orphans,
                    f"lines of {METADATA} without an image": sum(
                        len(it.lines) - self._read[folder] for folder, it in rows
                    ),
                    f"lines of {METADATA} that cannot be read": sum(it.invalid for _, it in rows),
                }
            )
        )


def _odd_sidecar(stem: str, suffix: str, *, own: str) -> str | None:
    """The name of a file beside an image whose suffix is not in lower case; None where there is none.

    On a remote store, where each try is a request, that is the suffix in upper case beside an image in upper case.
    """
    if not is_local(stem):
        return f"{stem}{suffix.upper()}" if own.isupper() else None
    folder, _, name = _bare(stem).rpartition("/")
    try:
        changed = os.stat(folder).st_mtime_ns  # noqa: PTH116
    except FileNotFoundError:
        return None
    return _odd_sidecars(folder, changed).get((name, suffix))


@lru_cache(maxsize=16)
def _odd_sidecars(folder: str, changed: int) -> dict[tuple[str, str], str]:
    """The files of a folder, as it is since a moment, whose suffix is a sidecar's but for its case."""
    names = ((name, *os.path.splitext(name)) for name in os.listdir(folder))  # noqa: PTH122, PTH208
    return {
        (stem, suffix.lower()): f"{folder}/{name}"
        for name, stem, suffix in names
        if suffix.lower() in _SIDECARS and suffix not in _SIDECARS
    }
