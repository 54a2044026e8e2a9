import re
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import BaseModel, Field

from semdedup_assets.records import ColumnType, Content, Invalid, Item, Record
from semdedup_assets.sources.columns import Columns, ItemFields, field_names, item_image, sidecar_fields
from semdedup_assets.sources.reading import (
    InvalidValue,
    file_name,
    fixed_roots,
    is_glob,
    nothing_there,
    opened,
    path_problem,
    patterns,
    printable,
)
from semdedup_assets.storage.files import FileStat, filesystem, list_files

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_SIDECARS = (".txt", ".json")


class Folder(BaseModel, frozen=True, extra="forbid"):
    """Images in folders, each a file, with `<stem>.txt` and `<stem>.json` beside them where there are any."""

    kind: Literal["folder"] = "folder"
    path: str = Field(
        min_length=1,
        description="Folder of images (all below it are taken), a glob, or an fsspec URL of either. On an object "
        "store every image costs up to three requests: pack them into WebDataset tars there.",
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
        """Every image, by one listing, sorted by path.

        Returns:
            A file's stamp covers the text and JSON beside it, so that a changed caption is a changed file.

        Raises:
            FileNotFoundError: there is no image; names the path and the remedy.
        """
        for pattern in patterns(self.path):
            if images := _images(pattern):
                return images
        raise FileNotFoundError(nothing_there(self.path, _IMAGES))

    def read(self, path: str) -> Iterator[Record | Invalid]:
        """The one image of a file.

        Raises:
            OSError: the image cannot be opened; names it.
        """
        key = self._key(path)
        with opened(path) as stream:
            content = stream.read()
        try:
            yield Record(key, item_image(content))
        except InvalidValue as error:
            yield Invalid(key, str(error))

    def field_names(self, path: str, limit: int = 1000) -> list[str]:
        """Names in the JSON beside an image, dotted where they are nested, and `caption` where there is a text.

        Args:
            path: an image.
            limit: not used here, for a file is one item.

        Raises:
            OSError: one of the files cannot be opened; names it.
        """
        del limit
        return field_names([sidecar_fields(txt=_beside(path, ".txt"), json=_beside(path, ".json"))[0]])

    def read_items(self, path: str) -> Iterator[Item]:
        """Key, caption and columns of the one image of a file; reads only the text and JSON beside it.

        Raises:
            OSError: one of them cannot be opened; names it.
        """
        txt = _beside(path, ".txt")
        json = _beside(path, ".json") if self.columns or txt is None else None
        row, invalid = sidecar_fields(txt=txt, json=json)
        yield self._item_fields.item(row, fallback=self._key(path), invalid_values=invalid)

    @property
    def _item_fields(self) -> ItemFields:
        return ItemFields(None, self.columns, automatic=("caption",))

    def _key(self, path: str) -> str:
        _, name = filesystem(path)
        roots = (f"{root.rstrip('/')}/" for root in fixed_roots(self.path))
        return printable(next((name[len(root) :] for root in roots if name.startswith(root)), file_name(name)))


def _images(pattern: str) -> list[FileStat]:
    """The images a glob matches, each stamped together with what lies beside it."""
    listed = list_files(_with_sidecars(pattern))
    stamps: dict[str, list[str]] = {}
    for file in listed:
        stem, _, suffix = file.path.rpartition(".")
        if f".{suffix}" in _SIDECARS:
            stamps.setdefault(stem, []).append(f"{suffix}:{file.size}:{file.stamp}")
    name = file_name(pattern)
    return [
        replace(file, stamp=" ".join([file.stamp, *stamps.get(file.path.rpartition(".")[0], [])]))
        for file in listed
        if file.path.lower().endswith(_IMAGES) and fnmatchcase(file_name(file.path), name)
    ]


def _with_sidecars(pattern: str) -> str:
    """The glob that also matches what lies beside the images of a glob."""
    of_images = is_glob(pattern) or pattern.lower().endswith(_IMAGES)
    return re.sub(r"\.[^./]*$", ".*", pattern) if of_images else pattern


def _beside(path: str, suffix: str) -> bytes | None:
    """The content of the file beside an image, None where there is none."""
    try:
        with opened(path.rpartition(".")[0] + suffix) as stream:
            return stream.read()
    except FileNotFoundError:
        return None
