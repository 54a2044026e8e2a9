"""The settings of a pipeline: one dataset and one embedding model, as a `defs.yaml` spells them."""

import re
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from semdedup_assets.compute import Compute
from semdedup_assets.encoders import Encoder
from semdedup_assets.sources import Source

# Raised by whoever changes what a stage computes from the same input, so that old results become stale.
ALGORITHM_VERSION = 1

_RESERVED = {"id", "key", "shard", "row", "file", "file_row", "vector"}
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def _cluster_count(value: Any) -> Any:
    if value == "auto":
        return value
    if isinstance(value, bool) or not str(value).isdecimal() or int(value) < 1:
        message = f"{value!r} is not a positive number of clusters, nor `auto`; 50 to 10,000 items a cluster is usual"
        raise ValueError(message)
    return str(int(value))


def _epsilon(value: Any) -> Any:
    text = str(value).strip()
    target = re.fullmatch(r"keep=(\d+(?:\.\d+)?)%", text)
    if target and 0 < float(target[1]) <= 100:
        return f"keep={_spelt(float(target[1]))}%"
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if isinstance(value, bool) or not 0 <= number <= 2:
        message = (
            f"{value!r} is neither an epsilon in [0, 2] nor a target such as `keep=50%`; "
            "items more similar than 1 - epsilon are duplicates: a higher epsilon removes more"
        )
        raise ValueError(message)
    return _spelt(number)


def _spelt(number: float) -> str:
    """A non-negative number in full, every digit kept: it names a partition, and is read back from its name."""
    return np.format_float_positional(abs(number), trim="-")


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        message = f"{', '.join(twice)}: given twice; each is one partition, list it once"
        raise ValueError(message)
    return values


ClusterCount = Annotated[str, BeforeValidator(_cluster_count)]
EpsilonOrTarget = Annotated[str, BeforeValidator(_epsilon)]

ManifestFormat = Literal["parquet", "keep_lists", "csv", "jsonl", "webdataset"]


class Shards(BaseModel, frozen=True, extra="forbid"):
    """How files are joined to shards."""

    files_per_shard: int = Field(
        1,
        ge=1,
        description="Source files in a new shard; choose it so that a shard has 100,000 to 1,000,000 items. Files stay "
        "in the shard they once came to: a later change counts for new files only.",
    )


class TrainingSample(BaseModel, frozen=True, extra="forbid"):
    """What the centroids are fitted to."""

    size: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        1_000_000, description="Vectors that are drawn, uniformly, from all embeddings; or `all`."
    )
    per_cluster: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        256, description="Vectors for each cluster that a fit uses at most, of those drawn; or `all`."
    )
    seed: int = Field(0, ge=0, description="Of the choice of items.")


class Clustering(BaseModel, frozen=True, extra="forbid"):
    """Spherical k-means."""

    k: Annotated[tuple[ClusterCount, ...], AfterValidator(_distinct)] = Field(
        ("auto",), min_length=1, description="Numbers of clusters, each a partition; `auto` is about sqrt(items / 2)."
    )
    iterations: int | None = Field(
        None, ge=1, description="Passes over the sample; empty: 100, for text 20 (paper, appendix G)."
    )
    seed: int = Field(0, ge=0, description="Of the first centroids.")
    engine: Literal["auto", "faiss", "int8"] = Field(
        "auto",
        description="What fits the centroids: `faiss`, on GPUs where there are some; `int8`, on the CPU; `auto` is the "
        "faster of them. Their objective is about the same, their centroids differ.",
    )
    buckets: int = Field(
        4, ge=1, description="Ranges of clusters that are scored apart; about one for each GiB of vectors is right."
    )


class KeepColumn(BaseModel, frozen=True, extra="forbid"):
    """Keep the item that a carried column prefers."""

    column: str = Field(description="A carried int or float column.")
    order: Literal["ascending", "descending"] = Field("descending", description="`descending` keeps the greatest.")


class Selection(BaseModel, frozen=True, extra="forbid"):
    """Which item of a group is kept, and what counts as a group."""

    keep: Literal["hard", "easy", "random"] | KeepColumn = Field(
        "hard",
        description="`hard` keeps the item least similar to its centroid (the paper's), `easy` the most similar.",
    )
    rule: Literal["chain", "greedy"] = Field(
        "chain", description="`chain` (the paper's): any earlier item suppresses; `greedy`: only a kept one does."
    )
    seed: int = Field(0, ge=0, description="Of `random`.")


class Galleries(BaseModel, frozen=True, extra="forbid"):
    """How much the galleries show: items are read from the source again, so this bounds what is read."""

    groups: int = Field(12, ge=1, le=20, description="Largest groups of duplicates that are shown.")
    seeds: int = Field(6, ge=1, description="Items that are shown with their neighbours at rising epsilon.")
    items: int = Field(8, ge=2, description="Items of a group, and neighbours of a seed, that are shown.")
    files: int = Field(32, ge=1, description="Source files that are read at most; items of others are only named.")
    seed: int = Field(0, ge=0, description="Of the choice of seed items.")


class Refresh(BaseModel, frozen=True, extra="forbid"):
    """How results follow the source."""

    automatic: bool = Field(
        default=False,
        description="Whether what is missing or out of date is made as files arrive, from the start; can be switched in the UI.",
    )
    schedule: str | None = Field(
        None,
        pattern=r"^(@(hourly|daily|weekly|monthly)|\S+( +\S+){4})$",
        description="Cron expression, such as `0 3 * * *`: when the source is looked through, and whatever is missing, "
        "stale or left out is made in one run; empty: never.",
    )
    interval_seconds: int = Field(
        60,
        ge=5,
        description="How often the source is looked through, and what is missing or out of date is looked for.",
    )
    attempts: int = Field(3, ge=1, description="How often a shard that cannot be embedded is tried in one run.")
    retry_seconds: float = Field(30, ge=0, description="Pause before the failed shards of a run are tried again.")
    max_left_out: float = Field(
        0.05, ge=0, le=1, description="Share of shards, but always one, that may fail every attempt and be left out."
    )
    max_drift: float = Field(
        0.05,
        gt=0,
        le=2,
        description="Loss of mean similarity to the centroids since training above which a check asks to refit.",
    )


class Pipeline(BaseModel, frozen=True, extra="forbid"):
    """One dataset deduplicated with one embedding model."""

    dataset: str = Field(pattern=_NAME, description="Name of the dataset: first part of asset keys and paths.")
    model: str | None = Field(
        None, pattern=_NAME, description="Name of the model: second part of keys and paths; empty: the encoder's own."
    )
    owners: tuple[str, ...] = Field(
        (), description="Who is asked about the assets: e-mail addresses, or teams such as `team:data`."
    )
    store: str = Field("data", description="Folder or URL below which all results lie.")
    source: Source = Field(description="Where the items come from.")
    encoder: Encoder = Field(description="What turns an item into a vector.")
    shards: Shards = Field(Shards(), description="How files are joined to shards.")
    vectors: Literal["float16", "float32"] = Field("float16", description="How vectors are stored.")
    max_skipped: float = Field(0.01, ge=0, le=1, description="Share of broken items above which a check fails.")
    training_sample: TrainingSample = Field(TrainingSample(), description="What the centroids are fitted to.")
    clustering: Clustering = Field(Clustering(), description="Spherical k-means.")
    selection: Selection = Field(Selection(), description="Which item of a group is kept.")
    epsilons: Annotated[tuple[EpsilonOrTarget, ...], AfterValidator(_distinct)] = Field(
        ("0.05", "keep=50%"), min_length=1, description="Each a partition: an epsilon, or a share to keep."
    )
    manifests: Annotated[tuple[ManifestFormat, ...], AfterValidator(_distinct)] = Field(
        ("parquet", "keep_lists"), min_length=1, description="What a training job can read."
    )
    galleries: Galleries = Field(Galleries(), description="How much the galleries show.")
    refresh: Refresh = Field(Refresh(), description="How results follow the source.")
    compute: Compute = Field(Compute(), description="Where and how fast the work runs: changes no result.")

    @model_validator(mode="after")
    def _fits_together(self) -> "Pipeline":
        found = (self._content_problem(), self._column_problem(), self._keep_problem(), self._manifest_problem())
        problems = [problem for problem in found if problem]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _content_problem(self) -> str | None:
        if self.source.content == self.encoder.accepts:
            return None
        return (
            f"source.kind {self.source.kind!r} holds {self.source.content}s, "
            f"encoder.kind {self.encoder.kind!r} takes {self.encoder.accepts}s"
        )

    def _column_problem(self) -> str | None:
        taken = sorted(_RESERVED & set(self.source.column_types))
        return f"source.columns: {taken} name columns of our own tables; rename them in the source" if taken else None

    def _keep_problem(self) -> str | None:
        keep = self.selection.keep
        if not isinstance(keep, KeepColumn):
            return None
        kind = self.source.column_types.get(keep.column)
        if kind in ("int", "float"):
            return None
        numeric = sorted(name for name, of in self.source.column_types.items() if of in ("int", "float"))
        found = f"is carried as a {kind}" if kind else "is not carried"
        return f"selection.keep.column: {keep.column!r} {found}; declare it in source.columns as int or float (now: {numeric})"

    def _manifest_problem(self) -> str | None:
        possible: dict[str, tuple[str, ...]] = {
            "csv": ("folder",),
            "webdataset": ("webdataset", "folder"),
            "jsonl": ("jsonl",),
        }
        for name in self.manifests:
            if name in possible and self.source.kind not in possible[name]:
                return f"manifests: {name!r} needs a source of kind {' or '.join(possible[name])}, not {self.source.kind!r}"
        return None

    @property
    def model_name(self) -> str:
        """Second part of asset keys and paths."""
        return self.model or self.encoder.name

    @property
    def iterations(self) -> int:
        """Passes of k-means over the sample (paper, appendix G)."""
        return self.clustering.iterations or (20 if self.source.content == "text" else 100)

    @property
    def keep_column(self) -> str | None:
        """The carried column that orders items, if one does."""
        return self.selection.keep.column if isinstance(self.selection.keep, KeepColumn) else None

    def determining(self, stage: str) -> dict[str, Any]:
        """The settings that can change a stage's result: those that only change its speed or place are left out.

        Args:
            stage: `embeddings`, `training_sample`, `centroids`, `assignments`, `duplicate_scores`, `keep_masks`,
                `manifests`, `figures`, `galleries` or `estimate`.
        """
        embeddings = {
            "source": self.source.model_dump(mode="json", exclude={"path"}),
            "encoder": self.encoder.identity(),
            "vectors": self.vectors,
        }
        stages: dict[str, dict[str, Any]] = {
            "embeddings": embeddings,
            # The sample belongs to the model: its vectors are the model's.
            "training_sample": {**self.training_sample.model_dump(exclude={"per_cluster"}), **embeddings},
            "centroids": {
                **self.clustering.model_dump(exclude={"k"}),
                "iterations": self.iterations,
                "per_cluster": self.training_sample.per_cluster,
            },
            "assignments": {"keep_column": self.keep_column},
            "duplicate_scores": self.selection.model_dump(include={"keep", "seed"}),
            "keep_masks": self.selection.model_dump(include={"rule"}),
            "manifests": {"formats": self.manifests},
            "figures": {"epsilons": self.epsilons},
            "galleries": {**self.galleries.model_dump(), "epsilons": self.epsilons},
            "estimate": {},
        }
        return {"algorithm": ALGORITHM_VERSION, **stages[stage]}
