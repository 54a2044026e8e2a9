import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from semdedup_assets.sources import Folder, JsonLines, Parquet, Source, Vectors, WebDataset

KINDS: dict[str, type[BaseModel]] = {
    "folder": Folder,
    "webdataset": WebDataset,
    "parquet": Parquet,
    "jsonl": JsonLines,
    "vectors": Vectors,
}
CONTENT = {"folder": "image", "webdataset": "image", "parquet": "text", "jsonl": "text", "vectors": "vector"}


@pytest.mark.parametrize("kind", KINDS)
def test_settings_choose_the_source_by_its_kind(kind: str) -> None:
    extra = {"text": "body"} if kind == "parquet" else {}
    source = TypeAdapter(Source).validate_python({"kind": kind, "path": "data", "columns": {"n": "int"}, **extra})
    assert type(source) is KINDS[kind]
    assert source.content == CONTENT[kind]
    assert source.column_types["n"] == "int"


@pytest.mark.parametrize("kind", KINDS)
def test_a_setting_that_is_misspelt_or_of_no_known_type_is_refused(kind: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        KINDS[kind].model_validate({"path": "data", "text": "a", "colums": {}})
    with pytest.raises(ValidationError, match="Input should be 'string', 'int', 'float' or 'bool'"):
        KINDS[kind].model_validate({"path": "data", "text": "a", "columns": {"n": "str"}})


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_is_described(kind: str) -> None:
    fields = KINDS[kind].model_fields
    assert [name for name, field in fields.items() if not field.description and name != "kind"] == []
