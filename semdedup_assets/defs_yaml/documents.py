"""The documents of a `defs.yaml`, with the line of each setting."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from semdedup_assets.defs_yaml.problems import Problem, near_names
from semdedup_assets.defs_yaml.schema import SettingPath

FILES = ("defs.yaml", "defs.yml")
"""What Dagster looks for in a folder, in its order."""

PIPELINE = "semdedup_assets.SemDedupPipeline"
TYPES = (PIPELINE, "semdedup_assets.ManifestComparison", "semdedup_assets.TrainingComparison")
"""The components of this package."""

_LIKE_OURS = 0.9
_TAG = "tag:yaml.org,2002:"
_TIMESTAMP, _TEXT, _MERGE = f"{_TAG}timestamp", f"{_TAG}str", f"{_TAG}merge"
_NUMBERS = (f"{_TAG}int", f"{_TAG}float")
# A leading zero makes a number octal, colons make it minutes and seconds.
_ODD_NUMBER = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
_BARE_TEMPLATE = re.compile(r"^[^\"']*[:,\[-]\s*\{\{")


class SettingsError(ValueError):
    """Something is wrong with the settings; names every problem with file and line, each on a line."""


class _Loader(yaml.SafeLoader):
    """As Dagster reads YAML: what looks like a date stays a text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True)
class Document:
    """One document of a file.

    Attributes:
        path: of the file.
        content: what it holds.
        lines: where each value lies: of a key's value, the line of the key.
        pitfalls: what YAML takes otherwise than it looks, and says nothing: lines, each with file and line.
    """

    path: Path
    content: Any
    lines: Mapping[SettingPath, int]
    pitfalls: tuple[str, ...] = ()

    def line(self, path: SettingPath) -> int:
        """The line of a value, or of what is nearest above it where it is missing."""
        return next(self.lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self.lines)

    def located(self, path: SettingPath) -> tuple[int, str]:
        """The line of a setting, and file and line as messages write them."""
        line = self.line(("attributes", *path))
        return line, f"{self.path}:{line}"


def defs_file_in(folder: Path) -> Path | None:
    """The file of a folder that holds its components; None where it has none."""
    return next((file for name in FILES if (file := folder / name).is_file()), None)


def type_problem(kind: Any) -> str | None:
    """What is wrong with the `type` of a component; None where it is one of ours, or one that is nothing like ours."""
    if kind in TYPES:
        return None
    if kind is None:
        return f"missing; there are: {', '.join(TYPES)}"
    of_others = isinstance(kind, str) and kind.rpartition(".")[0] not in ("", PIPELINE.partition(".")[0])
    if of_others and not get_close_matches(kind, TYPES, n=1, cutoff=_LIKE_OURS):
        return None
    return f"there is no {kind!r}; {near_names(str(kind), TYPES)}"


def read_documents(path: Path) -> list[Document]:
    """The documents of a file, those without content too.

    Raises:
        SettingsError: it is no YAML; names the line.
        OSError: it cannot be read.
    """
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        found = []
        while loader.check_node() and (node := loader.get_node()) is not None:
            # Constructing a mapping writes what is merged (`<<`) into its node.
            pitfalls = tuple(f"{path}:{line} {sentence}" for line, sentence in _pitfalls(node, (), set()))
            found.append(Document(path, loader.construct_document(node), dict(_lines(node, ())), pitfalls))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(_yaml_problem(path, error)) from error
    return found


def _yaml_problem(path: Path, error: Exception) -> str:
    """Where and why a file is no YAML, and the remedy where there is a usual one.

    Args:
        path: of the file.
        error: what reading it raised.
    """
    if isinstance(error, UnicodeDecodeError):
        return f"{path}: no valid YAML: byte {error.start} is not UTF-8; save the file as UTF-8"
    if isinstance(error, RecursionError):
        return f"{path}: no valid YAML: an alias (`*name`) stands in what it refers to, or lists and keys are nested too deep"
    if isinstance(error, yaml.reader.ReaderError):
        number = path.read_text(encoding="utf-8")[: error.position].count("\n") + 1
        return (
            f"{path}:{number}: no valid YAML: the control character #x{error.character:02x} is in this line; remove it"
        )
    mark = error.problem_mark or error.context_mark if isinstance(error, yaml.MarkedYAMLError) else None
    if not isinstance(error, yaml.MarkedYAMLError) or mark is None:
        return f"{path}: no valid YAML: {' '.join(str(error).split())}"
    first = f" (line {error.context_mark.line + 1})" if error.context_mark else ""
    begun = f" {error.context}{first}" if error.context else ""
    line = mark.buffer.splitlines()[mark.line] if mark.buffer and mark.line < mark.buffer.count("\n") else ""
    hint = '; put the template into quotes: "{{ … }}"' if _BARE_TEMPLATE.search(line) else ""
    hint = hint or ("; indent by spaces, and remove the tab" if "\\t" in str(error.problem) else "")
    return f"{path}:{mark.line + 1}: no valid YAML (column {mark.column + 1}): {error.problem}{begun}{hint}"


def _pitfalls(node: yaml.Node, path: SettingPath, seen: set[int]) -> Iterator[tuple[int, str]]:
    """What YAML takes otherwise than it looks: keys given twice, keys that are no text, numbers that are octal.

    Args:
        node: a part of a document, in which nothing has been merged yet.
        path: of it.
        seen: the parts that were looked into: aliases lead to them again.
    """
    line, name = node.start_mark.line + 1, ".".join(map(str, path))
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and _ODD_NUMBER.fullmatch(node.value):
        value = yaml.safe_load(node.value)
        yield line, f"{name}: {node.value} means {value} in YAML; write that number, or put what you mean into quotes"
    elif isinstance(node, yaml.SequenceNode):
        for index, part in enumerate(node.value):
            yield from _pitfalls(part, (*path, index), seen)
    elif isinstance(node, yaml.MappingNode):
        yield from _key_pitfalls(node, path)
        for key, part in node.value:
            yield from _pitfalls(part, (*path, str(key.value)), seen)


def _key_pitfalls(node: yaml.MappingNode, path: SettingPath) -> Iterator[tuple[int, str]]:
    first: dict[str, int] = {}
    for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE):
        line, name = key.start_mark.line + 1, ".".join(map(str, (*path, key.value)))
        if key.tag != _TEXT:
            yield line, f"{name}: the key {key.value!r} means {yaml.safe_load(key.value)!r} in YAML; put it into quotes"
        if key.value in first:
            yield line, f"{name}: is in line {first[key.value]} too, and YAML would take the last alone; remove one"
        first.setdefault(key.value, line)


def _lines(node: yaml.Node, path: SettingPath, line: int | None = None) -> Iterator[tuple[SettingPath, int]]:
    yield path, node.start_mark.line + 1 if line is None else line
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield from _lines(value, (*path, key.value), key.start_mark.line + 1)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(value, (*path, index))


Located = tuple[Problem, tuple[int, str]]
"""A problem with its line, and the place as messages write it."""


def reported(problems: Iterable[Located]) -> str:
    """Problems in words, under how many they are.

    Args:
        problems: each with its line and place.
    """
    return headed(reported_lines(problems))


def headed(lines: Sequence[str]) -> str:
    """Lines of problems, under how many they are."""
    return "\n".join(
        [f"{len(lines)} problem{'s' * (len(lines) > 1)} with the settings; nothing is run with them:", *lines]
    )


def reported_lines(problems: Iterable[Located]) -> list[str]:
    """Problems in words, each on a line with its file and line, in the file's order.

    Args:
        problems: each with its line and place.
    """
    lines = sorted((line, f"{place} {problem.setting}: {problem.message}") for problem, (line, place) in problems)
    return [sentence for _, sentence in lines]
