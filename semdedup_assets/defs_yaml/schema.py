"""The settings' schema as a tree: which settings there are at a path."""

from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

SettingPath = tuple[str | int, ...]
"""The keys and positions that lead to a value: `("clustering", "k", 0)`."""


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Every model that an annotation names, in its order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def section_models(field: FieldInfo) -> list[type[BaseModel]]:
    """The models of a setting that is a section of settings, one for each kind; none where it is a value."""
    parts = get_args(field.annotation) or (field.annotation,)
    models = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
    return models if len(models) == len(parts) else []


def kind_of(model: type[BaseModel]) -> str | None:
    """What a section's `kind` must be for this model; None where it has no kinds."""
    field = model.model_fields.get("kind")
    return None if field is None else str(field.default)


def choices_in(annotation: Any) -> list[str]:
    """Every literal that an annotation allows, in its order."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in choices_in(part)]


def fields_at(model: type[BaseModel], location: Sequence[str | int]) -> dict[str, FieldInfo]:
    """The settings of the section at a location.

    Args:
        model: where the location starts.
        location: as Pydantic's errors have it: keys, positions, and between them the kinds, the names of the classes,
            or the forms, of unions.
    """
    return {name: field for of in _models_at(model, location) for name, field in of.model_fields.items()}


def kinds_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The kinds of section that there can be at a location, which is as that of `fields_at`."""
    return [kind for of in _models_at(model, location) if (kind := kind_of(of)) is not None]


def _models_at(model: type[BaseModel], location: Sequence[str | int]) -> list[type[BaseModel]]:
    models, by_name = [model], False
    for part in location:
        if by_name or isinstance(part, int):
            # A name that the settings chose, of a selection or a reference; or a position in a list of equal sections.
            by_name = False
            continue
        fields = [of.model_fields[part] for of in models if part in of.model_fields]
        chosen = [of for of in models if part in (kind_of(of), of.__name__)]
        # What is neither a setting nor a model names a form, such as `list`: its values are of the same models.
        models = [found for field in fields for found in models_in(field.annotation)] if fields else chosen or models
        by_name = any(_is_mapping(field.annotation) for field in fields)
    return models


def _is_mapping(annotation: Any) -> bool:
    return get_origin(annotation) is dict or any(get_origin(part) is dict for part in get_args(annotation))


class WrittenSchema(GenerateJsonSchema):
    """JSON schema of what may be written: a template such as `{{ env.BUCKETS }}` wherever its value may stand."""

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        """A whole number, or a template."""
        return {**super().int_schema(schema), "type": ["integer", "string"]}

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        """A number, or a template."""
        return {**super().float_schema(schema), "type": ["number", "string"]}

    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        """Yes or no, or a template."""
        return {**super().bool_schema(schema), "type": ["boolean", "string"]}

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        """A text; a template fits no pattern."""
        return {name: value for name, value in super().str_schema(schema).items() if name != "pattern"}

    def tuple_schema(self, schema: core_schema.TupleSchema) -> JsonSchemaValue:
        """A list; one of a fixed length says what its values are as a list of any length does, which Dagster asks for."""
        written = super().tuple_schema(schema)
        return {"items": written["prefixItems"][0], **written} if written.get("prefixItems") else written

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        """What a validator of ours makes a text of: `auto` and 50000, `keep=50%` and 0.05."""
        return {**super().function_before_schema(schema), "type": ["string", "number"]}
