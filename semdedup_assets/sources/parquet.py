from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, model_validator

from semdedup_assets.records import ColumnType, Content, Invalid, Item, Record
from semdedup_assets.sources.columns import TEXT_IS_CARRIED, Columns, ItemFields, item_image, item_text
from semdedup_assets.sources.reading import (
    InvalidValue,
    TruncatedFile,
    file_name,
    path_problem,
    source_files,
    source_listing,
)
from semdedup_assets.sources.tables import FieldPath, field_path, field_paths, field_type, parquet_file, table_rows
from semdedup_assets.storage.files import FileStat, Listing

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

PARQUET = (".parquet", ".pq")
_ROWS = {"image": 64, "text": 4096}
_AUTOMATIC = ("caption", "url")  # of images
_PAYLOAD = ":payload"  # beside key and columns, whose names are free


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
        description="Column of encoded images: bytes, or Hugging Face's struct of `bytes` and `path`; dotted where "
        "it is nested. Either this or `text`.",
    )
    text: str | None = Field(
        None, min_length=1, description="Column of texts; dotted where it is nested. Either this or `image`."
    )
    key: str | None = Field(
        None,
        min_length=1,
        description="Column of the items' keys, strings or whole numbers; empty: file name and row, counted from 0.",
    )
    columns: Columns = {}

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
        return self.model_dump(include={"kind", "image", "text"})

    def item_settings(self) -> dict[str, Any]:
        """The settings that can change keys and columns."""
        return self.model_dump(include={"kind", "text", "key", "columns"})

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

    def read(self, path: str) -> Iterator[Record | Invalid]:
        """Every row of a file, in its order; one `Invalid` for the whole file where its footer is damaged.

        Raises:
            ValueError: the payload's column is missing or holds neither images nor texts; before any row.
            OSError: the file cannot be opened; names it.
        """
        fields = self._item_fields
        try:
            with parquet_file(path) as table:
                payload = {_PAYLOAD: self._payload_field(table.schema_arrow, path)}
                payloads = table_rows(table, payload, path=path, batch_rows=_ROWS[self.content])
                for row, (found, keys) in enumerate(zip(payloads, self._keys(table, path), strict=True)):
                    yield self._record(found[_PAYLOAD], fields.key_of(keys, fallback=f"{file_name(path)}:{row}"))
        except TruncatedFile as cut:
            yield Invalid(file_name(path), str(cut))

    def read_items(self, path: str) -> Iterator[Item]:
        """Key and columns of every row of a file; reads no image.

        Raises:
            ValueError: a column is missing; before any row.
            OSError: the file cannot be opened; names it.
        """
        fields = self._item_fields
        try:
            with parquet_file(path) as table:
                rows = table_rows(table, self._carried_fields(table.schema_arrow, path), path=path)
                for row, found in enumerate(rows):
                    yield fields.item(found, fallback=f"{file_name(path)}:{row}")
        except TruncatedFile as cut:
            yield fields.without_values(Invalid(file_name(path), str(cut)))

    @property
    def _item_fields(self) -> ItemFields:
        if self.image:
            return ItemFields(self.key, self.columns, automatic=_AUTOMATIC)
        return ItemFields(self.key, self.columns, text=_PAYLOAD)

    def _keys(self, table: "pq.ParquetFile", path: str) -> Iterator[dict[str, Any]]:
        """Every row's key field, or nothing where there is none: only `read_items` reports that."""
        try:
            fields = field_paths(table.schema_arrow, [self.key] if self.key else [], path=path)
        except ValueError:
            fields = {}
        return table_rows(table, fields, path=path)

    def _carried_fields(self, schema: "pa.Schema", path: str) -> dict[str, FieldPath]:
        """Where key and columns lie: declared ones, those automatic ones that exist, and the text."""
        automatic = _AUTOMATIC if self.image else ()
        fields: dict[str, FieldPath] = {name: (name,) for name in automatic if name in schema.names}
        fields |= field_paths(schema, [*([self.key] if self.key else []), *self.columns], path=path)
        return fields if self.image else {**fields, _PAYLOAD: self._payload_field(schema, path)}

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

    def _record(self, payload: object, key: str) -> Record | Invalid:
        try:
            return Record(key, item_image(payload) if self.image else item_text(payload))
        except InvalidValue as error:
            return Invalid(key, str(error))


def _holds(kind: "pa.DataType", *, texts: bool) -> bool:
    """Whether a type holds bytes or, where texts are looked for, strings; a column of nulls holds either."""
    import pyarrow as pa

    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    string = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return pa.types.is_null(kind) or binary or (texts and string)
