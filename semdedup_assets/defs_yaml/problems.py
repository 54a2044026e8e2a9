"""What is wrong with a pipeline's settings, found before anything runs."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from semdedup_assets.defs_yaml.schema import SettingPath, fields_at, kinds_at
from semdedup_assets.encoders import Encoder
from semdedup_assets.settings import Pipeline
from semdedup_assets.sources import Source
from semdedup_assets.sources.reading import location_problem, some

# A message of our own validators may begin with the setting that it is about: `selection.keep.column: …`.
_NAMED = re.compile(r"([a-z_]+(?:\.(?:[a-z_]+|\d+))*)(:?) ")
_QUOTED = re.compile("'([^']*)'")
_LISTED = 30  # names, where none is near
_FEW = 8  # choices, which are all named
_MAPPING_ERRORS = ("dict_type", "model_type", "model_attributes_type", "dataclass_type")
_OF_NAMES = "a name has letters, digits, `.`, `_` and `-`, the first of them a letter or a digit"
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


def setting_problem(message: str, pipeline: Pipeline) -> Problem | None:
    """The problem of the encoder's, the source's or the device's setting that a message is about, None where it is about none.

    Args:
        message: such as `model: … cannot be loaded`: begins with the setting's name, and holds its value if it has one.
        pipeline: whose settings they are.
    """
    encoder, source = pipeline.encoder, pipeline.source
    sections: list[tuple[BaseModel, tuple[str, ...]]] = [
        (encoder, ("encoder", encoder.kind)),
        (source, ("source", source.kind)),
        (pipeline.compute, ("compute",)),
    ]
    for section, location in sections:
        problem = _named(" ".join(message.split()), location[:1], location)
        if problem.path == location[:1]:
            continue
        value = getattr(section, str(problem.path[1]))
        if value is None or str(value) in message:
            return problem
    return None


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
    if isinstance(store, str) and (problem := location_problem(store, setting="store")):
        yield Problem(("store",), problem)
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
    elif kind in ("union_tag_not_found", "union_tag_invalid"):
        name = detail["ctx"]["discriminator"].strip("'")
        yield Problem((*path, name), _unknown_kind(name, detail, kinds_at(model, location)))
    elif (kind == "too_short" and detail["input"]) or kind == "invalid_key":
        # Of what is in it, each is reported; keys that are no texts are by who reads the file.
        return
    elif kind == "extra_forbidden":
        yield Problem(path, f"no such setting; {near_names(str(location[-1]), list(fields_at(model, location[:-1])))}")
    else:
        # A name that the settings chose, such as that of a selection, has no field.
        yield Problem(path, _worded(detail, fields_at(model, location[:-1]).get(str(location[-1]))))


def _unknown_kind(name: str, detail: ErrorDetails, kinds: Sequence[str]) -> str:
    """What is wrong with the `kind` of a section."""
    given = detail["input"] if isinstance(detail["input"], Mapping) else {}
    if name in given:
        return _no_choice(given[name], kinds)
    near = get_close_matches(name, map(str, given), n=1)
    return f"missing; is {near[0]} meant?" if near else f"missing; one of {', '.join(kinds)}"


def _no_choice(found: Any, choices: Sequence[str]) -> str:
    """What is said of a value that is none of several."""
    few = f"is none of {', '.join(choices)}" if len(choices) <= _FEW else "is not one of the names that there are"
    near = [] if isinstance(found, bool) else get_close_matches(str(found).lower(), choices, n=3, cutoff=0.6)
    shown = (
        f"; near names: {', '.join(near)}"
        if near
        else ("" if len(choices) <= _FEW else f": {some(choices, most=_LISTED)}")
    )
    return f"{found!r} {few}{shown}{_quotes(found)}"


def _quotes(found: Any) -> str:
    """What is said of a word that YAML takes for something else."""
    return (
        "; YAML takes yes, no, on and off for true and false, unless they are in quotes"
        if isinstance(found, bool)
        else ""
    )


def _worded(detail: ErrorDetails, field: FieldInfo | None) -> str:
    """What Pydantic rejects, in the words of YAML, with the value that was given."""
    kind, found = detail["type"], detail["input"]
    if found is None:
        return f"empty; give a value{'' if field is not None and field.is_required() else ', or remove the key'}"
    if kind == "literal_error":
        return _no_choice(found, _QUOTED.findall(str(detail.get("ctx", {}).get("expected"))))
    if kind == "too_short":
        return "empty; give at least one, or remove the key"
    if kind == "tuple_type":
        of = "a mapping is not a list; write" if isinstance(found, Mapping) else f"{found!r} is not a list; write"
        return f"{of} `[{'…' if isinstance(found, Mapping | bool) else found}]`{_quotes(found)}"
    if kind in _MAPPING_ERRORS:
        return f"{found!r} is not a mapping; write its settings as `name: value`, each on a line below it or within `{{…}}`"
    if kind == "string_type" and isinstance(found, int | float):
        return f"{found!r} is not a text{_quotes(found) or '; put it into quotes'}"
    if kind == "string_pattern_mismatch":
        return f"{found!r} is not possible here{f'. {field.description}' if field else f'; {_OF_NAMES}'}"
    shown = "" if isinstance(found, (Mapping, BaseModel)) or repr(found) in detail["msg"] else f", not {found!r}"
    return f"{detail['msg']}{shown}"


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
