"""A new pipeline's settings as YAML, in which every setting of the schema is explained."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from semdedup_assets.defs_yaml.schema import choices_in, kind_of, models_in, section_models
from semdedup_assets.settings import Pipeline

_WIDTH = 110


def commented_settings(chosen: Mapping[str, Any], model: type[BaseModel] = Pipeline) -> str:
    """The `attributes` of a new `defs.yaml`.

    Args:
        chosen: settings with a value, nested as in the YAML; every one that has no default is among them.
        model: of the settings.

    Returns:
        Lines that are indented by two. Prose begins with `# `. A setting that was not chosen stands there with its
        default, as `#name: value`; of a section without any chosen one, the first is not commented out, so that
        each such line can be uncommented alone.
    """
    return "\n".join(_settings(model, chosen, indent=2)) + "\n"


def _settings(model: type[BaseModel], chosen: Mapping[str, Any], *, indent: int) -> Iterator[str]:
    top, pad = indent == 2, " " * indent
    for index, (name, field) in enumerate(model.model_fields.items()):
        if top and index:
            yield ""
        yield from _comment(field, indent=indent)
        rows = chosen.get(name)
        if isinstance(rows, list):
            yield from _listed(name, field, rows, pad=pad)
            continue
        section = _section(field, chosen.get(name, {}))
        if section is not None:
            yield f"{pad}{name}:"
            yield from _settings(section, chosen.get(name, {}), indent=indent + 2)
            continue
        active = name in chosen or (not chosen and index == 0)
        value = _yaml(chosen.get(name, field.get_default(call_default_factory=True)))
        yield f"{pad}{'' if active else '#'}{name}: {value}".rstrip()


def _listed(name: str, field: FieldInfo, rows: list[dict[str, Any]], *, pad: str) -> Iterator[str]:
    """A list of sections, each on a line, below what can be said in each."""
    (model,) = models_in(field.annotation)
    yield from _prose("Each with these settings:", indent=len(pad))
    for setting, of in model.model_fields.items():
        yield from _prose(f"- {setting}: {of.description}", indent=len(pad), hang="  ")
    yield f"{pad}{name}:"
    yield from (f"{pad}  - {_yaml(row)}" for row in rows)


def _section(field: FieldInfo, chosen: Mapping[str, Any]) -> type[BaseModel] | None:
    models = section_models(field)
    if len(models) < 2:
        return next(iter(models), None)
    return next(model for model in models if kind_of(model) == chosen["kind"])


def _comment(field: FieldInfo, *, indent: int) -> Iterator[str]:
    """The field's description, with the values it may have where those do not follow from it."""
    description = field.description or ""
    choices = choices_in(field.annotation)
    if not all(f"`{choice}`" in description for choice in choices) and len(choices) > 1:
        description += f" One of {', '.join(choices)}."
    yield from _prose(description, indent=indent)
    kinds = section_models(field)
    if len(kinds) > 1:
        yield from _prose("Kinds, each with settings of its own:", indent=indent)
        for model in kinds:
            yield from _prose(f"- {kind_of(model)}: {_summary(model)}", indent=indent, hang="  ")


def _summary(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").partition("\n")[0]


def _prose(text: str, *, indent: int, hang: str = "") -> Iterator[str]:
    lines = textwrap.wrap(text, _WIDTH - indent, subsequent_indent=hang, break_on_hyphens=False)
    yield from (f"{' ' * indent}# {line}" for line in lines)


def _yaml(value: Any) -> str:
    """A value on one line; an empty one for None, as the descriptions call it."""
    if value is None:
        return ""
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
