"""The documents of a `defs.yaml`, with the line of each setting."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from semdedup_assets.defs_yaml.problems import Problem
from semdedup_assets.defs_yaml.schema import SettingPath

FILES = ("defs.yaml", "defs.yml")
"""What Dagster looks for in a folder, in its order."""

_TIMESTAMP = "tag:yaml.org,2002:timestamp"


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
    """

    path: Path
    content: Any
    lines: Mapping[SettingPath, int]

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


def read_documents(path: Path) -> list[Document]:
    """The documents of a file, those without content left out.

    Raises:
        SettingsError: it is no YAML; names the line.
        OSError: it cannot be read.
    """
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        found = []
        while loader.check_node() and (node := loader.get_node()) is not None:
            found.append(Document(path, loader.construct_document(node), dict(_lines(node, ()))))
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        message = f"{path}{line}: no valid YAML: {error.problem or error.context}"
        raise SettingsError(message) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        message = f"{path}: no valid YAML: {error}"
        raise SettingsError(message) from error
    return [document for document in found if document.content is not None]


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
    return "\n".join([f"{len(lines)} problem{'s' * (len(lines) > 1)} with the settings; nothing was run:", *lines])


def reported_lines(problems: Iterable[Located]) -> list[str]:
    """Problems in words, each on a line with its file and line, in the file's order.

    Args:
        problems: each with its line and place.
    """
    lines = sorted((line, f"{place} {problem.setting}: {problem.message}") for problem, (line, place) in problems)
    return [sentence for _, sentence in lines]
