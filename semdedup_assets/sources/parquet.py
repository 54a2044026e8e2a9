from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field, model_validator

from semdedup_assets.records import Broken, ColumnType, Content, Record
from semdedup_assets.sources.columns import Columns, carried_columns, item_image, item_key, item_text
from semdedup_assets.sources.reading import BadItem, TruncatedFile, file_name, path_problem, source_files
from semdedup_assets.sources.tables import FieldPath, batches, field_path, field_type, parquet_file, values
from semdedup_assets.storage.files import FileStat

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET = (".parquet", ".pq")
_ROWS = {"image": 64, "text": 4096}
_AUTOMATIC = ["caption", "url"]  # of images
_PAYLOAD, _KEY = ":payload", ":key"  # beside the carried columns, whose names are free


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
            message = "column 'text' is carried along by itself, as the item's text: leave it out of `columns`"
            raise ValueError(message)
        return self

    @property
    def content(self) -> Content:
        """What a record carries."""
        return "image" if self.image else "text"

    @property
    def column_types(self) -> dict[str, ColumnType]:
        """Every carried column by name and type; images' `caption` and `url` where the file has such strings."""
        if self.image:
            return {"caption": "string", "url": "string", **self.columns}
        return {**self.columns, "text": "string"}

    def problems(self) -> list[str]:
        """What is wrong with the path, seen without a listing; begins with the setting's name."""
        problem = path_problem(self.path)
        return [f"path: {problem}"] if problem else []

    def files(self) -> list[FileStat]:
        """Every Parquet file, sorted by path.

        Raises:
            FileNotFoundError: there is none; names the path and the cure.
        """
        return source_files(self.path, PARQUET)

    def read(self, path: str) -> Iterator[Record | Broken]:
        """Every row of a file, in its order; at the end one `Broken` for the whole file where it is damaged.

        Raises:
            ValueError: a column is missing or of a type that holds neither images nor texts; before any row.
            OSError: the file cannot be opened; names it.
        """
        row = 0
        try:
            with parquet_file(path) as table:
                fields = self._fields(table.schema_arrow, path)
                for batch in batches(table, fields, rows=_ROWS[self.content], path=path):
                    for found in zip(*map(values, batch.values()), strict=True):
                        yield self._record(dict(zip(batch, found, strict=True)), place=f"{file_name(path)}:{row}")
                        row += 1
        except TruncatedFile as cut:
            yield Broken(file_name(path), str(cut))

    def _fields(self, schema: "pa.Schema", path: str) -> dict[str, FieldPath]:
        """What to read: payload and key, declared columns, automatic ones where they are there."""
        fields = {_PAYLOAD: self._payload_field(schema, path)}
        if self.key:
            fields[_KEY] = field_path(schema, self.key, path=path)
        fields.update({name: field_path(schema, name, path=path) for name in self.columns})
        automatic = _AUTOMATIC if self.image else []
        return {name: (name,) for name in automatic if name in schema.names} | fields

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

    def _record(self, row: dict[str, object], *, place: str) -> Record | Broken:
        key = place
        try:
            if self.key:
                key = item_key(row[_KEY], name=self.key)
            columns = carried_columns(row, declared=self.columns, automatic=_AUTOMATIC if self.image else [])
            if self.image:
                return Record(key, item_image(row[_PAYLOAD]), columns)
            text = item_text(row[_PAYLOAD])
            return Record(key, text, {**columns, "text": text})
        except BadItem as bad:
            return Broken(key, str(bad))


def _holds(kind: "pa.DataType", *, texts: bool) -> bool:
    """Whether a type holds bytes or, where texts are looked for, strings; a column of nulls holds either."""
    import pyarrow as pa

    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    string = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return pa.types.is_null(kind) or binary or (texts and string)
