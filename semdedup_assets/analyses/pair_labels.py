"""Files of labels that persons gave to pairs: found, held against their form, and joined."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from semdedup_assets.records import content_hash
from semdedup_assets.rendering.pair_page import LABEL_FORMAT
from semdedup_assets.storage.files import file_stat, is_folder, list_below, read_bytes
from semdedup_assets.storage.results import fingerprint

Label = Literal["duplicate", "different", "unsure"]
PairKey = tuple[int, int, str]
"""Removed item, kept item, and what identifies the contents of both."""

_REMEDY = "save it again with the page of `pruned_pairs`, or take it out of the folder"


class _PairLabel(BaseModel, extra="ignore"):
    removed: int
    kept: int
    contents: str
    label: Label


class _LabelFile(BaseModel, extra="ignore"):
    format: str
    dataset: str
    labeller: str
    saved: str
    name: str = ""
    labels: list[_PairLabel]


@dataclass(frozen=True, slots=True)
class PairVotes:
    """What several persons say of one pair.

    Attributes:
        by_person: the label of each, by what identifies the person.
    """

    by_person: dict[str, Label]

    @property
    def disagrees(self) -> bool:
        """Whether one calls it a duplicate and another does not."""
        return {"duplicate", "different"} <= set(self.by_person.values())

    @property
    def label(self) -> Label:
        """What most of those say who are sure; `unsure` where as many say the one as the other."""
        counts = Counter(self.by_person.values())
        difference = counts["duplicate"] - counts["different"]
        return "duplicate" if difference > 0 else "different" if difference < 0 else "unsure"


@dataclass
class PairLabels:
    """The labels of all files.

    Attributes:
        votes: by pair.
        persons: names, or what identifies them.
        files: how many files were read.
        other_datasets: how many of them are of another dataset.
        invalid: path, reason and remedy of each file that is none.
    """

    votes: dict[PairKey, PairVotes] = field(default_factory=dict)
    persons: set[str] = field(default_factory=set)
    files: int = 0
    other_datasets: int = 0
    invalid: list[list[str]] = field(default_factory=list)

    @classmethod
    def read(cls, path: str, *, dataset: str) -> "PairLabels":
        """Read all files of labels below a path.

        Of one person, the file that was saved last says what holds of a pair.

        Args:
            path: folder, file or URL.
            dataset: whose labels count; a pair's label holds whichever model and kept set it was shown for.

        Raises:
            FileNotFoundError: there is nothing; names the path and the remedy.
        """
        found, files = cls(), list[_LabelFile]()
        for name, content in _contents(path):
            found.files += 1
            try:
                files.append(_parsed(content))
            except ValueError as error:
                found.invalid.append([name, str(error), _REMEDY])
        own = [file for file in files if file.dataset == dataset]
        found.other_datasets = len(files) - len(own)
        for file in sorted(own, key=lambda each: (each.saved, each.labeller)):
            found.persons.add(file.name or file.labeller)
            for each in file.labels:
                votes = found.votes.setdefault((each.removed, each.kept, each.contents), PairVotes({}))
                votes.by_person[file.labeller] = each.label
        return found


def labels_version(path: str) -> str:
    """A hash of the content of all files of labels, whatever their names; of none where they cannot be read now.

    Whoever makes something of them then reads them and reports why.
    """
    try:
        return fingerprint(sorted(content_hash(content) for _, content in _contents(path)))
    except Exception as error:  # Whatever a store's client raises: a code location must load without it.
        return f"not read: {type(error).__name__}"


def _contents(path: str) -> list[tuple[str, bytes]]:
    """Path and content of each JSON file, in the order of the paths."""
    if is_folder(path):
        return [(file.path, read_bytes(file.path)) for file in list_below(path, (".json",)).files]
    if file_stat(path) is None:
        message = (
            f"{path}: there is no such folder or file (`analyses.labels`); save the labels of the page of `pruned_pairs` "
            "there, or name where they are"
        )
        raise FileNotFoundError(message)
    return [(path, read_bytes(path))]


def _parsed(content: bytes) -> _LabelFile:
    """A file of labels.

    Raises:
        ValueError: it is none; says why, in a line.
    """
    try:
        document: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        message = f"it is not JSON ({error})"
        raise ValueError(message) from error
    if not isinstance(document, dict) or document.get("format") != LABEL_FORMAT:
        message = f"its `format` is not {LABEL_FORMAT!r}"
        raise ValueError(message)
    try:
        return _LabelFile.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = f"{where}: {first['msg']}"
        raise ValueError(message) from error
