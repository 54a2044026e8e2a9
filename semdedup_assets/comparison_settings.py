"""The settings of comparisons, of manifests and of trained models, as they stand in a `defs.yaml`."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from semdedup_assets.kept_sets import Clustering, Target

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def _clustering(value: Any) -> str:
    return str(Clustering.parse(str(value)))


def _target(value: Any) -> str:
    return str(Target.parse(value))


class NamedKeptSet(BaseModel, frozen=True, extra="forbid"):
    """One of the kept sets that are compared."""

    name: str | None = Field(None, description="What it is called in tables and pictures; empty: what tells it apart.")
    dataset: str = Field(description="Dataset of the pipeline that makes it.")
    model: str | None = Field(None, description="Model of that pipeline; empty: the dataset's only one.")
    selection: str | None = Field(None, description="Name of one of its `selections`; empty where it has only one.")
    epsilon: Annotated[str, BeforeValidator(_target)] | None = Field(
        None, description="One of its `epsilons`, a share such as `keep=50%` too; empty where it has only one."
    )
    k: Annotated[str, BeforeValidator(_clustering)] | None = Field(
        None, description="One of its clusterings, such as `1000` or `1000-seed1`; empty where it has only one."
    )


class ComparedManifest(NamedKeptSet, frozen=True, extra="forbid"):
    """One of the manifests that are compared."""

    baseline: str | None = Field(
        None, pattern=_NAME, description="A baseline in place of the method: `random`, `exact`, and what else there is."
    )
    version: str | None = Field(
        None, pattern=_NAME, description="Folder of one version of the manifest; empty: the current one, as it changes."
    )


def _require_several(setting: str, compared: Sequence[NamedKeptSet]) -> None:
    """See that there is something to compare, and that names tell it apart.

    Raises:
        ValueError: there are fewer than two, or a name is given twice.
    """
    if len(compared) < 2:
        message = f"{setting}: {len(compared)} cannot be compared; name two or more"
        raise ValueError(message)
    given = [each.name for each in compared if each.name is not None]
    repeated = sorted({name for name in given if given.count(name) > 1})
    if repeated:
        message = f"{setting}: the name {', '.join(repeated)} is given more than once; each needs its own"
        raise ValueError(message)


class Comparison(BaseModel, frozen=True, extra="forbid"):
    """Some manifests of this project's pipelines, each compared with each."""

    name: str = Field(pattern=_NAME, description="Name of the comparison: first part of its asset's key.")
    store: str | None = Field(
        None, description="Folder or URL below which its tables lie; empty: the store of the first manifest."
    )
    owners: tuple[str, ...] = Field(
        (), description="Who owns the asset: e-mail addresses, or teams such as `team:data`."
    )
    memory_mib: int = Field(1024, ge=16, description="MiB that joined rows may take.")
    manifests: tuple[ComparedManifest, ...] = Field(
        json_schema_extra={"minItems": 2},
        description="What is compared: of any pipelines of the project. At equal size, such as `keep=50%`, their "
        "intersections say how robust the kept set is to k, seed, keep strategy or model.",
    )

    @model_validator(mode="after")
    def _can_be_compared(self) -> "Comparison":
        _require_several("manifests", self.manifests)
        return self


class ModelComparison(BaseModel, frozen=True, extra="forbid"):
    """The trained models of some kept sets of this project's pipelines, each compared with each."""

    name: str = Field(pattern=_NAME, description="Name of the comparison: first part of its asset's key.")
    store: str | None = Field(
        None, description="Folder or URL below which its tables lie; empty: the store of the first kept set."
    )
    owners: tuple[str, ...] = Field(
        (), description="Who owns the asset: e-mail addresses, or teams such as `team:data`."
    )
    kept_sets: tuple[NamedKeptSet, ...] = Field(
        json_schema_extra={"minItems": 2},
        description="What is compared: of any pipelines of the project that have a `training`, each with its `evaluations`. "
        "Compare at equal size, such as `keep=50%`, and by one trainer on the same data.",
    )

    @model_validator(mode="after")
    def _can_be_compared(self) -> "ModelComparison":
        _require_several("kept_sets", self.kept_sets)
        return self
