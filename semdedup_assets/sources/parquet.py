from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, model_validator

from semdedup_assets.records import ColumnType, Content, Invalid, Item, Record
from semdedup_assets.sources.columns import (
    TEXT_IS_CARRIED,
    Columns,
    ItemFields,
    check_item_size,
    item_image,
    item_text,
)
from semdedup_assets.sources.reading import (
    MAX_ITEM_MIB,
    InvalidValue,
    ItemMib,
    ReadMeter,
    file_name,
    opened,
    path_problem,
    source_files,
    source_listing,
)
from semdedup_assets.sources.tables import (
    FieldPath,
    ParquetTable,
    batch_column,
    batch_values,
    check_key_type,
    column_names,
    field_path,
    field_paths,
    field_type,
    parquet_table,
    table_rows,
    with_values,
)
from semdedup_assets.storage.files import FileStat, Listing

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET = (".parquet", ".pq")
_AUTOMATIC = ("caption", "url")  # of images
# Beside key and columns, whose names are free.
_PAYLOAD, _PATH, _STATUS, _ERROR = ":payload", ":path", ":status", ":error"


class Parquet(BaseModel, frozen=True, extra="forbid"):
    """Images or texts in Parquet tables, as Hugging Face's datasets and img2dataset write them."""

    kind: Literal["parquet"] = "parquet"
    path: str = Field(
        min_length=1,
        description="A Parquet file, a folder of them (all below it are taken), a glob, or an fsspec URL of any of "
        "these.",
    )
    image: str | None = Field(
        None,
        min_length=1,
        description="Column of encoded images: bytes, or Hugging Face's struct of `bytes` and `path` (of a file beside "
        "the Parquet file, where the bytes are null); dotted where it is nested. Either this or `text`.",
    )
    text: str | None = Field(
        None, min_length=1, description="Column of texts; dotted where it is nested. Either this or `image`."
    )
    key: str | None = Field(
        None,
        min_length=1,
        description="Column of the items' keys: strings, whole or decimal numbers, UUIDs or bytes; empty: file name and "
        "row, counted from 0.",
    )
    columns: Columns = {}
    max_item_mib: ItemMib = MAX_ITEM_MIB

    @model_validator(mode="after")
    def _one_payload(self) -> "Parquet":
        if (self.image is None) == (self.text is None):
            message = "set either `image` or `text` to the column to embed" + (", not both" if self.image else "")
            raise ValueError(message)
        if self.text is not None and "text" in self.columns:
            raise ValueError(TEXT_IS_CARRIED)
        return self

    @property
    def content(self) -> Content:
        """The payload of a record."""
        return "image" if self.image else "text"

    @property
    def column_types(self) -> dict[str, ColumnType]:
        """Every carried column by name and type; images' `caption` and `url` where the file has such strings."""
        return self._item_fields.column_types

    def payload_settings(self) -> dict[str, Any]:
        """The settings that can change which payloads are read."""
        return self.model_dump(include={"kind", "image", "text", "max_item_mib"})

    def item_settings(self) -> dict[str, Any]:
        """The settings that can change keys and columns."""
        return self.model_dump(include={"kind", "text", "key", "columns", "max_item_mib"})

    def problems(self) -> list[str]:
        """What is wrong with the path as a setting; begins with the setting's name."""
        problem = path_problem(self.path)
        return [f"path: {problem}"] if problem else []

    def files(self) -> list[FileStat]:
        """Every Parquet file, sorted by path.

        Raises:
            FileNotFoundError: there is none; names the path and the remedy.
        """
        return source_files(self.path, PARQUET)

    def listing(self) -> Listing:
        """The files, and what was passed over; raises as `files` does."""
        return source_listing(self.path, PARQUET)

    def field_names(self, path: str, limit: int = 1000) -> list[str]:
        """Columns of a file, and fields of its structs by dotted names.

        Args:
            path: a Parquet file.
            limit: not used here, for a table lists its columns without its rows.

        Raises:
            TruncatedFile: the file's footer cannot be read; names it.
            OSError: the file cannot be opened; names it.
        """
        del limit
        with parquet_table(path) as table:
            return column_names(table.schema)

    def read(self, path: str) -> Iterator[Record | Invalid]:
        """Every row of a file, in its order.

        Raises:
            ValueError: the payload's column is missing or holds neither images nor texts; before any row.
            TruncatedFile: the file's footer cannot be read, so that its rows are not known; names it.
            OSError: the file cannot be opened; names it.
        """
        fields = self._item_fields
        with parquet_table(path) as table:
            payloads = table_rows(table, self._payload_fields(table.schema, path), most_mib=self.max_item_mib)
            for row, (found, keys) in enumerate(zip(payloads, self._keys(table), strict=True)):
                yield self._record(found, fields.key_of(keys, fallback=f"{file_name(path)}:{row}"), path)

    def read_rows(self, path: str, rows: Collection[int], meter: ReadMeter) -> Iterator[tuple[int, Record | Invalid]]:
        """What `read` gives of the wanted rows of a file, with their numbers.

        Row groups without any are not read; of the others what comes before the last wanted row.

        Raises:
            ReadLimitError: more would be read than the meter allows.
            ValueError, TruncatedFile, OSError: as from `read`.
        """
        fields, name = self._item_fields, file_name(path)
        with parquet_table(path, meter) as table:
            carried, start = self._payload_fields(table.schema, path), 0
            for group, count in enumerate(table.group_rows):
                here = {row - start for row in rows if start <= row < start + count}
                payloads = table_rows(table, carried, most_mib=self.max_item_mib, groups=[group])
                keys = self._keys(table, [group])
                for row, (found, key) in enumerate(zip(payloads, keys, strict=True) if here else ()):
                    if row in here:
                        at = start + row
                        yield at, self._record(found, fields.key_of(key, fallback=f"{name}:{at}"), path)
                    if row >= max(here):
                        break
                start += count

    def read_items(self, path: str) -> Iterator[Item]:
        """Key and columns of every row of a file; reads no image.

        Raises:
            ValueError: a column is missing, or no key can be made of the key's column; before any row.
            TruncatedFile: the file's footer cannot be read, so that its rows are not known; names it.
            OSError: the file cannot be opened; names it.
        """
        fields = self._item_fields
        with parquet_table(path) as table:
            carried = self._carried_fields(table.schema, path)
            for row, found in enumerate(table_rows(table, carried, most_mib=self.max_item_mib)):
                yield fields.item(found, fallback=f"{file_name(path)}:{row}")

    def records_in(self, batch: "pa.RecordBatch", path: str) -> Iterator[Record | Invalid]:
        """What `read` gives of some rows, which were read with all their columns; without keys, one image at a time.

        Args:
            batch: some rows of a file.
            path: of the file.
        """
        rows = batch_values(batch, self._payload_fields(batch.schema, path), most_mib=self.max_item_mib)
        return (self._record(row, "", path) for row in rows)

    def images_beside(self, batch: "pa.RecordBatch", path: str) -> np.ndarray:
        """(n,) bool: which of some rows, of which `read` gives images, only name a file beside their table; arguments as before."""
        if self.image is None:
            return np.zeros(len(batch), dtype=bool)
        found: np.ndarray = (
            batch_column(batch, self._payload_field(batch.schema, path)).is_null().to_numpy(zero_copy_only=False)
        )
        return found

    def with_images(self, batch: "pa.RecordBatch", images: Sequence[bytes | None], path: str) -> "pa.RecordBatch":
        """Some rows with images in place of nulls; arguments as before.

        Args:
            batch: the rows.
            images: of each row; None: what it holds stays.
            path: of the file.
        """
        name, *below = self._payload_field(batch.schema, path)
        column = with_values(batch.column(name), below, images)
        return batch.set_column(batch.schema.get_field_index(name), batch.schema.field(name), column)

    @property
    def _item_fields(self) -> ItemFields:
        if self.image:
            return ItemFields(self.key, self.columns, automatic=_AUTOMATIC)
        return ItemFields(self.key, self.columns, text=_PAYLOAD)

    def _keys(self, table: ParquetTable, groups: Sequence[int] | None = None) -> Iterator[dict[str, Any]]:
        """Every row's key field, or nothing where there is none: only `read_items` reports that."""
        try:
            fields = _key_field(table.schema, self.key, table.path)
        except ValueError:
            fields = {}
        return table_rows(table, fields, most_mib=self.max_item_mib, groups=groups)

    def _carried_fields(self, schema: "pa.Schema", path: str) -> dict[str, FieldPath]:
        """Where key and columns lie: declared ones, those automatic ones that exist, and the text."""
        automatic = _AUTOMATIC if self.image else ()
        fields: dict[str, FieldPath] = {name: (name,) for name in automatic if name in schema.names}
        fields |= field_paths(schema, self.columns, path=path) | _key_field(schema, self.key, path)
        return fields if self.image else {**fields, _PAYLOAD: self._payload_field(schema, path)}

    def _payload_fields(self, schema: "pa.Schema", path: str) -> dict[str, FieldPath]:
        """Where the payloads lie, and of images what explains a missing one: their path, img2dataset's status."""
        payload = self._payload_field(schema, path)
        fields = {_PAYLOAD: payload}
        if self.image is None:
            return fields
        if payload[-1] == "bytes" and _is_text(schema, (*payload[:-1], "path")):
            fields[_PATH] = (*payload[:-1], "path")
        if _is_text(schema, ("status",)) and _is_text(schema, ("error_message",)):
            fields |= {_STATUS: ("status",), _ERROR: ("error_message",)}
        return fields

    def _payload_field(self, schema: "pa.Schema", path: str) -> FieldPath:
        import pyarrow as pa

        name = self.image or self.text or ""
        field = field_path(schema, name, path=path)
        kind = field_type(schema, field)
        if self.image and pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            field = (*field, "bytes")
            kind = field_type(schema, field)
        if not _holds(kind, texts=self.image is None):
            message = f"{path}: column {name!r} holds {kind}, not {'encoded images' if self.image else 'texts'}"
            raise ValueError(message)
        return field

    def _record(self, found: Mapping[str, Any], key: str, path: str) -> Record | Invalid:
        payload = found[_PAYLOAD]
        try:
            if self.image is None:
                return Record(key, item_text(payload))
            if payload is None and (failed := _failed(found)) is not None:
                return Invalid(key, failed, expected=True)
            if payload is None and isinstance(found.get(_PATH), str):
                payload = self._image_file(path, found[_PATH])
            return Record(key, item_image(payload))
        except InvalidValue as error:
            return Invalid(key, str(error))

    def _image_file(self, table_path: str, name: str) -> bytes:
        """The content of an image that a Parquet file only names.

        Raises:
            InvalidValue: it does not lie below the Parquet file's folder, or cannot be read; names it and the remedy.
        """
        folder = table_path.rpartition("/")[0]
        relative = name.removeprefix(f"{folder}/")
        remedy = "put it there, or write the table with the images' bytes in it"
        # A table from elsewhere must not choose which of this machine's files are read.
        if relative.startswith("/") or "://" in relative or "::" in relative or ".." in relative.split("/"):
            message = f"null image whose path {name!r} does not lie below the table's folder {folder}; {remedy}"
            raise InvalidValue(message)
        try:
            with opened(f"{folder}/{relative}" if folder else relative) as stream:
                content = stream.read((self.max_item_mib << 20) + 1)
        except (OSError, ValueError) as error:  # also of a name that no file can have
            message = f"null image whose file {relative!r} cannot be opened in the table's folder {folder}; {remedy}"
            raise InvalidValue(message) from error
        check_item_size(len(content), most_mib=self.max_item_mib)
        return content


def _failed(found: Mapping[str, Any]) -> str | None:
    """Why img2dataset has no image in a row, None where it does not say so."""
    status, error = found.get(_STATUS), found.get(_ERROR)
    if not isinstance(status, str) or status == "success":
        return None
    return f"img2dataset: {status} ({error})" if isinstance(error, str) and error else f"img2dataset: {status}"


def _key_field(schema: "pa.Schema", name: str | None, path: str) -> dict[str, FieldPath]:
    """Where the key lies, by its name.

    Raises:
        ValueError: it is not there, or no key can be made of it.
    """
    if name is None:
        return {}
    field = field_path(schema, name, path=path)
    check_key_type(schema, field, path=path)
    return {name: field}


def _is_text(schema: "pa.Schema", field: FieldPath) -> bool:
    import pyarrow as pa

    try:
        kind = field_type(schema, field)
    except KeyError:
        return False
    return _holds(kind, texts=True) and not pa.types.is_binary(kind)


def _holds(kind: "pa.DataType", *, texts: bool) -> bool:
    """Whether a type holds bytes or, where texts are looked for, strings; a column of nulls holds either."""
    import pyarrow as pa

    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    string = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return pa.types.is_null(kind) or binary or (texts and string)
