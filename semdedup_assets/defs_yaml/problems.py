"""What is wrong with a pipeline's settings, found before anything runs."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from semdedup_assets.defs_yaml.schema import SettingPath, fields_at
from semdedup_assets.encoders import Encoder
from semdedup_assets.settings import Pipeline
from semdedup_assets.sources import Source
from semdedup_assets.sources.paths import secret_problem
from semdedup_assets.sources.reading import some

# A message of our own validators may begin with the setting that it is about: `selection.keep.column: …`.
_NAMED = re.compile(r"([a-z_]+(?:\.(?:[a-z_]+|\d+))*)(:?) ")
_QUOTED = re.compile("'([^']*)'")
_LISTED = 30  # names, where none is near
_SOURCE: TypeAdapter[Source] = TypeAdapter(Source)
_ENCODER: TypeAdapter[Encoder] = TypeAdapter(Encoder)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and the remedy.

    Attributes:
        path: the setting; of one that is missing, where it should be.
        message: without the setting's name.
        warning: whether a run may go well all the same, so that nothing need be refused.
    """

    path: SettingPath
    message: str
    warning: bool = False

    @property
    def setting(self) -> str:
        """The setting as messages write it: `attributes.clustering.k.0`."""
        return ".".join(["attributes", *map(str, self.path)])


def setting_problems(attributes: Mapping[str, Any]) -> list[Problem]:
    """Everything that is wrong with settings, as far as this machine shows without reading data or loading a model.

    Args:
        attributes: as the YAML holds them, with templates filled in.

    Returns:
        One problem a setting; none where `Pipeline` takes them and what they name locally is there. URLs and models
        of a hub are not looked up.
    """
    return _one_a_setting((*_invalid(attributes, Pipeline), *_not_there(attributes)))


def schema_problems(attributes: Mapping[str, Any], model: type[BaseModel]) -> list[Problem]:
    """What the schema of some settings rejects.

    Args:
        attributes: as the YAML holds them, with templates filled in.
        model: of the settings.

    Returns:
        One problem a setting.
    """
    return _one_a_setting(_invalid(attributes, model))


def _one_a_setting(problems: Iterable[Problem]) -> list[Problem]:
    by_path: dict[SettingPath, list[str]] = {}
    for problem in problems:
        messages = by_path.setdefault(problem.path, [])
        if problem.message not in messages:
            messages.append(problem.message)
    return [Problem(path, "; or: ".join(messages)) for path, messages in by_path.items()]


def _invalid(attributes: Mapping[str, Any], model: type[BaseModel]) -> Iterator[Problem]:
    """What the schema rejects."""
    try:
        model.model_validate(attributes)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            yield from _problems_of(detail, attributes, model)


def _not_there(attributes: Mapping[str, Any]) -> Iterator[Problem]:
    """What the settings name and this machine has not, also where other settings are still wrong."""
    store = attributes.get("store")
    if isinstance(store, str) and (secret := secret_problem(store, setting="store")):
        yield Problem(("store",), secret)
    references = attributes.get("references")
    sections: list[tuple[SettingPath, Any, TypeAdapter[Any]]] = [
        (("source",), attributes.get("source"), _SOURCE),
        (("encoder",), attributes.get("encoder"), _ENCODER),
        *(
            (("references", name, "source"), reference.get("source"), _SOURCE)
            for name, reference in (references.items() if isinstance(references, Mapping) else ())
            if isinstance(reference, Mapping)
        ),
    ]
    for path, section, adapter in sections:
        try:
            part = adapter.validate_python(section)
        except ValidationError:
            # Rejected by the schema already.
            continue
        for message in part.problems():
            yield _named(message, path, [*path, part.kind])


def _problems_of(detail: ErrorDetails, attributes: Mapping[str, Any], model: type[BaseModel]) -> Iterator[Problem]:
    location, kind = detail["loc"], detail["type"]
    path = _path(location, attributes, model)
    if kind == "value_error":
        for line in str(detail["ctx"]["error"]).splitlines():
            yield _named(line, path, location, model=model)
    elif kind == "missing":
        description = fields_at(model, location[:-1])[str(location[-1])].description
        yield Problem(path, f"missing. {description}" if description else "missing")
    elif kind == "union_tag_not_found":
        name = detail["ctx"]["discriminator"].strip("'")
        given = list(detail["input"]) if isinstance(detail["input"], Mapping) else []
        near = get_close_matches(name, map(str, given), n=1)
        yield Problem((*path, name), f"missing{f'; is {near[0]} meant?' if near else ''}")
    elif kind == "too_short" and detail["input"]:
        # Of what is in it, each is reported.
        return
    elif kind == "extra_forbidden":
        yield Problem(path, _unknown(str(location[-1]), list(fields_at(model, location[:-1]))))
    else:
        found = detail["input"]
        shown = "" if isinstance(found, (Mapping, BaseModel)) or repr(found) in detail["msg"] else f", not {found!r}"
        yield Problem(path, detail["msg"] + shown + _near_choices(detail))


def _near_choices(detail: ErrorDetails) -> str:
    """The choices that are near to a value that is none of several, in words; empty where none is."""
    context = detail.get("ctx", {})
    choices = _QUOTED.findall(str(context.get("expected") or context.get("expected_tags") or ""))
    near = get_close_matches(str(context.get("tag") or detail["input"]), choices, n=3, cutoff=0.6)
    return f"; near names: {', '.join(near)}" if near else ""


def _unknown(name: str, known: list[str]) -> str:
    return f"no such setting; {near_names(name, known)}"


def near_names(name: str, known: Sequence[str]) -> str:
    """The names that are near to one that does not exist, or all that there are, in words."""
    by_lower = {each.lower(): each for each in known}
    near = [by_lower[each] for each in get_close_matches(name.lower(), by_lower, n=3, cutoff=0.4)]
    return f"{'near names' if near else 'there are'}: {some(near or known, most=_LISTED)}"


def _named(
    message: str, path: SettingPath, location: Sequence[str | int], *, model: type[BaseModel] = Pipeline
) -> Problem:
    """A message at the setting with whose name it begins, if it does."""
    match = _NAMED.match(message)
    parts = match[1].split(".") if match else []
    if match is None or parts[0] not in fields_at(model, location):
        return Problem(path, message)
    named = [int(part) if part.isdigit() else part for part in parts]
    return Problem((*path, *named), message[match.end() :] if match[2] else message)


def _path(location: Sequence[str | int], attributes: Mapping[str, Any], model: type[BaseModel]) -> SettingPath:
    """A location of Pydantic's without the kinds and classes that it names between the keys."""
    value: Any = attributes
    path: list[str | int] = []
    for index, part in enumerate(location):
        if isinstance(value, Mapping):
            # The last key may be one that is missing.
            is_key = part in value or (index == len(location) - 1 and part in fields_at(model, location[:index]))
            value = value.get(part, value)
        else:
            is_key = isinstance(part, int) and isinstance(value, Sequence) and not isinstance(value, str)
            value = value[part] if is_key else value
        if is_key:
            path.append(part)
    return tuple(path)
