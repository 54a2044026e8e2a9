"""Which kept set is meant: a clustering, a selection and a target. Parsed once, where settings and partitions come in.

These records alone say how a clustering, a selection, a target and a kept set are named: `str()` gives the partition
key, `path` the folder in the store, `label` what a person reads, and comparing gives the order.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, total_ordering
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag

_CLUSTERING = re.compile(r"(auto|[1-9]\d*)(?:-seed(\d+))?", re.ASCII)
_LONGEST_NAME, _LONGEST_ORDER = 60, 120
_NAMED_VALUES = 3
_SHARE = re.compile(r"keep=(\d+(?:\.\d+)?)%", re.ASCII)


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same values, of a setting that lists each once.

    Raises:
        ValueError: one is listed more than once; names it.
    """
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        message = f"{', '.join(repeated)}: listed more than once; list it once"
        raise ValueError(message)
    return values


@total_ordering
@dataclass(frozen=True, slots=True)
class Clustering:
    """One fit of centroids.

    Attributes:
        k: number of clusters in digits, or `auto`.
        seed: of the first centroids.
    """

    k: str
    seed: int = 0

    @classmethod
    def parse(cls, key: str) -> "Clustering":
        """The clustering of a partition key: `auto`, `1000`, `1000-seed1`.

        Raises:
            ValueError: it is no such key.
        """
        found = _CLUSTERING.fullmatch(key)
        if found is None:
            message = f"{key!r} is not a clustering such as `auto`, `1000` or `1000-seed1`"
            raise ValueError(message)
        return cls(found[1], int(found[2] or 0))

    def __str__(self) -> str:
        return f"{self.k}-seed{self.seed}" if self.seed else self.k

    def __lt__(self, other: "Clustering") -> bool:
        return self._rank < other._rank

    @property
    def _rank(self) -> tuple[int, int]:
        return 0 if self.k == "auto" else int(self.k), self.seed

    @property
    def path(self) -> str:
        """Folder of all that belongs to it."""
        return f"k={self}"

    @property
    def label(self) -> str:
        """For titles and tables."""
        return f"k = {self.k}, seed {self.seed}" if self.seed else f"k = {self.k}"


class KeepColumn(BaseModel, frozen=True, extra="forbid"):
    """Keep the item that a carried column prefers; those without a value come last."""

    column: str = Field(description="A carried column.")
    order: Literal["ascending", "descending"] = Field(
        "descending", description="Of numbers and bools: `descending` keeps the greatest, and true before false."
    )
    values: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="Of text: values, the preferred first; others come after them."
    )

    @property
    def name(self) -> str:
        """A part of a path."""
        if self.values is None:
            return f"{_path_name(self.column)}-{self.order}"
        return f"{_path_name(self.column)}-ranked-{_digest(json.dumps(self.values))}"

    @property
    def label(self) -> str:
        """For titles and tables."""
        if self.values is None:
            return f"{self.column} {self.order}"
        named = " before ".join(self.values[:_NAMED_VALUES])
        return f"{self.column} {named}" + " …" * (len(self.values) > _NAMED_VALUES)


KeepStrategy = Literal["hard", "middle", "easy", "random"]


def _only_or_all(keep: Any) -> Any:
    """A list of one thing means that thing."""
    if keep == ():
        message = "nothing orders the items; give a word such as `hard`, or a column"
        raise ValueError(message)
    return keep[0] if isinstance(keep, tuple) and len(keep) == 1 else keep


def _form(keep: Any) -> str:
    """Which of its forms `keep` has, so that a mistake is explained by the rules of that form alone."""
    if isinstance(keep, list | tuple):
        return "list"
    return "KeepColumn" if isinstance(keep, Mapping | BaseModel) else "word"


_Word = Annotated[KeepStrategy, Tag("word")]
_Column = Annotated[KeepColumn, Tag("KeepColumn")]
_WordOrColumn = Annotated[
    _Word | _Column, Discriminator(lambda keep: "word" if isinstance(keep, str) else "KeepColumn")
]
_List = Annotated[tuple[_WordOrColumn, ...], Tag("list")]


class RemovalLimit(BaseModel, frozen=True, extra="forbid"):
    """How much may be removed of the items that share a column's value."""

    column: str = Field(description="A carried column, such as a source or a language.")
    max_removed: float = Field(ge=0, le=1, description="Share of a value's items above which a check fails.")


class Repair(BaseModel, frozen=True, extra="forbid"):
    """The search for duplicates in other clusters than an item's own."""

    clusters: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        4, description="Next-nearest clusters that each item searches too; `all` misses nothing, and costs the most."
    )
    epsilon: float = Field(
        0.1,
        gt=0,
        le=2,
        description="Up to which epsilon duplicates are searched: clusters whose boundary is too far from an item to hold "
        "one are passed over. No epsilon of the pipeline may be larger.",
    )

    @property
    def most(self) -> int | None:
        """How many clusters; None: all."""
        return None if self.clusters == "all" else self.clusters

    def __str__(self) -> str:
        return f"repair{self.clusters}-{_digits(self.epsilon)}"


def _always_several(limit: Any) -> Any:
    return (limit,) if isinstance(limit, RemovalLimit) else limit


_Limit = Annotated[RemovalLimit, Tag("RemovalLimit")]
_Limits = Annotated[tuple[RemovalLimit, ...], Tag("list")]


class Selection(BaseModel, frozen=True, extra="forbid"):
    """Which item of a group is kept, and what counts as a group."""

    keep: Annotated[_Word | _Column | _List, Discriminator(_form), AfterValidator(_only_or_all)] = Field(
        "hard",
        description="`hard` keeps the item least similar to its centroid (the paper's), `easy` the most similar, `middle` "
        "the one nearest to the median of its cluster; `random`; a column (`{column: quality}`, of text `{column: "
        "source, values: [a, b]}`); or a list of columns, the next deciding where the first ties, which one of these "
        "words may end.",
    )
    protect: str | None = Field(
        None,
        description="A carried bool column: where it is true an item is never removed, and removes others. A missing value "
        "protects nothing.",
    )
    limit: Annotated[
        _Limit | _Limits,
        Discriminator(lambda limit: "RemovalLimit" if isinstance(limit, Mapping | BaseModel) else "list"),
        AfterValidator(_always_several),
    ] = Field(
        (),
        description="Shares that may be removed by value of a column, such as `{column: source, max_removed: 0.8}`, one or "
        "a list. Changes no mask: a check fails and names the values above their limit.",
    )
    rule: Literal["chain", "greedy"] = Field(
        "chain", description="`chain` (the paper's): any earlier item suppresses; `greedy`: only a kept one does."
    )
    seed: int = Field(0, ge=0, description="Of `random`.")
    spare_captions_below: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="An image stays, however similar to its nearest kept one, where the cosine similarity of their captions "
        "is below this, by the text tower of the same CLIP; empty: captions do not matter. What fits a model, the picture "
        "of `caption_disagreement` shows.",
    )
    repair: Repair | None = Field(
        None,
        description="Whether duplicates are searched in the next-nearest clusters of each item too; empty: within clusters, "
        "as the paper does. `detection_efficiency` measures what that misses, and what a repair costs.",
    )

    @property
    def criteria(self) -> tuple[KeepStrategy | KeepColumn, ...]:
        """What orders items, the next deciding where the first ties."""
        return self.keep if isinstance(self.keep, tuple) else (self.keep,)

    @property
    def limits(self) -> tuple[RemovalLimit, ...]:
        """How much may be removed by value of each column that has a limit."""
        return self.limit if isinstance(self.limit, tuple) else (self.limit,)

    @property
    def columns(self) -> tuple[str, ...]:
        """The carried columns on which the order of items depends, each once."""
        ordering = [each.column for each in self.criteria if isinstance(each, KeepColumn)]
        return tuple(dict.fromkeys([*ordering, *([] if self.protect is None else [self.protect])]))

    @property
    def keep_order(self) -> str:
        """Name of the order of items within a cluster, on which the scores depend: `hard`, `random-seed0`, …."""
        name = "-then-".join(self._name_of(each) for each in self.criteria)
        if self.protect is not None:
            name = f"{name}-protect-{_path_name(self.protect)}"
        # A digest of another length than that of any part keeps what is cut apart from what is not.
        return name if len(name) <= _LONGEST_ORDER else f"{name[:_LONGEST_NAME]}-{_digest(name, size=8)}"

    def _name_of(self, criterion: KeepStrategy | KeepColumn) -> str:
        if isinstance(criterion, KeepColumn):
            return criterion.name
        return f"random-seed{self.seed}" if criterion == "random" else criterion

    @property
    def path(self) -> str:
        """Folder of all that it keeps."""
        rule = "" if self.rule == "chain" else f"-{self.rule}"
        repair = "" if self.repair is None else f"-{self.repair}"
        spared = "" if self.spare_captions_below is None else f"-spare{self.spare_captions_below:g}"
        return f"{self.keep_order}{repair}{rule}{spared}"

    @property
    def label(self) -> str:
        """For titles and tables."""
        labels = [
            each.label if isinstance(each, KeepColumn) else self._name_of(each).replace("-", " ")
            for each in self.criteria
        ]
        protected = [] if self.protect is None else [f"{self.protect} protected"]
        repair = [] if self.repair is None else [f"{self.repair.clusters} next clusters"]
        spared = [] if self.spare_captions_below is None else [f"captions below {self.spare_captions_below:g} spared"]
        rule = [] if self.rule == "chain" else [self.rule]
        return ", ".join([" then ".join(labels), *protected, *repair, *rule, *spared])

    def identity(self) -> dict[str, Any]:
        """What can change a kept set; the seed only where it is used."""
        found: dict[str, Any] = {"keep_order": self.keep_order, "rule": self.rule}
        if self.repair is not None:
            found["repair"] = str(self.repair)
        if self.spare_captions_below is not None:
            found["spare_captions_below"] = self.spare_captions_below
        return found


def _path_name(column: str) -> str:
    """A column's name as a part of a path; what a path cannot hold is replaced, and a hash keeps names apart."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", column)[:_LONGEST_NAME]
    return plain if plain == column else f"{plain}-{_digest(column)}"


def _digest(text: str, *, size: int = 4) -> str:
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


@total_ordering
@dataclass(frozen=True, slots=True)
class Target:
    """How much is removed: everything within an epsilon, or as much as leaves a share.

    Attributes:
        epsilon: items more similar than 1 - epsilon are duplicates; None where a share is wanted.
        share: percent of the items to keep; None where an epsilon is given.
    """

    epsilon: float | None = None
    share: float | None = None

    @classmethod
    def parse(cls, value: Any) -> "Target":
        """A target from a setting or a partition key: `0.05`, `keep=50%`.

        Raises:
            ValueError: it is neither; says what is possible.
        """
        if isinstance(value, cls):
            return value
        text = str(value).strip()
        share = _SHARE.fullmatch(text)
        if share and 0 < float(share[1]) <= 100:
            return cls(share=float(share[1]))
        try:
            epsilon = abs(float(text)) if float(text) == 0 else float(text)
        except ValueError:
            epsilon = -1.0
        if isinstance(value, bool) or not 0 <= epsilon <= 2:
            message = (
                f"{value!r} is neither an epsilon in [0, 2] nor a target such as `keep=50%`; "
                "items more similar than 1 - epsilon are duplicates: a higher epsilon removes more"
            )
            raise ValueError(message)
        return cls(epsilon=epsilon)

    def __str__(self) -> str:
        return _digits(self.epsilon) if self.epsilon is not None else f"keep={_digits(self.share or 0.0)}%"

    def __lt__(self, other: "Target") -> bool:
        return self._rank < other._rank

    @property
    def _rank(self) -> tuple[bool, float]:
        """What removes more comes later; epsilons before shares, which are not known before they are solved."""
        return (False, self.epsilon) if self.epsilon is not None else (True, -(self.share or 0.0))

    @property
    def path(self) -> str:
        """Folder of the kept set."""
        # A percent sign in a URL would be read as an escape.
        return f"epsilon={self}" if self.epsilon is not None else str(self).replace("%", "pct")

    @property
    def label(self) -> str:
        """For titles and tables."""
        return f"ε = {self}" if self.epsilon is not None else f"keep {_digits(self.share or 0.0)} %"


def _digits(number: float) -> str:
    """A non-negative number in full, every digit kept: it names a partition, and is read back from its name."""
    return np.format_float_positional(number, trim="-")


@total_ordering
@dataclass(frozen=True)
class KeptSet:
    """What one clustering, one selection and one target keep."""

    clustering: Clustering
    selection: Selection
    target: Target

    @classmethod
    def parse(cls, key: str, *, selection: Selection) -> "KeptSet":
        """The kept set of a partition key, such as `0.05|1000`.

        Raises:
            ValueError: it is no such key.
        """
        target, bar, clustering = key.partition("|")
        if not bar:
            message = f"{key!r} is not a kept set such as `0.05|1000`"
            raise ValueError(message)
        return cls(Clustering.parse(clustering), selection, Target.parse(target))

    def __str__(self) -> str:
        # Dagster joins the dimensions of a partition in the order of their names: epsilon, k.
        return f"{self.target}|{self.clustering}"

    def __lt__(self, other: "KeptSet") -> bool:
        return self._rank < other._rank

    @cached_property
    def _rank(self) -> tuple[Clustering, str, Target]:
        return self.clustering, self.selection.path, self.target

    @property
    def path(self) -> str:
        """Folder of the kept set, below the model's."""
        return f"{self.clustering.path}/{self.selection.path}/{self.target.path}"

    @property
    def label(self) -> str:
        """For titles and tables."""
        return f"{self.clustering.label} · {self.selection.label} · {self.target.label}"
