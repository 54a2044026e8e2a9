"""The settings of the analyses: what is made without being asked for, and how each is done."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from semdedup_assets.kept_sets import distinct

OnDemand = Literal[
    "clustering_comparison",
    "cost",
    "epsilon_estimate_errors",
    "epsilon_estimates",
    "estimate",
    "redundancy_by_size",
    "removed_items",
    "rule_comparison",
]
"""The stages that refreshes and automation make only where `analyses.follow` names them."""


def _size(value: float) -> float:
    if 0 < value <= 1 or (value > 1 and float(value).is_integer()):
        return value
    message = (
        f"{value} is neither a share in (0, 1] nor a whole number of items; `0.5` keeps half, `20000` that many items"
    )
    raise ValueError(message)


def _two_apart(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] < values[1]:
        return values
    message = f"{values[0]:g} is not less than {values[1]:g}; give two different epsilons, the smaller one first"
    raise ValueError(message)


Epsilon = Annotated[float, Field(ge=0, le=2)]
Share = Annotated[float, Field(gt=0, le=1)]
Size = Annotated[float, AfterValidator(_size)]
"""How much is kept: a share in (0, 1], or a number of items."""

# Sizes of LAION-440M that the paper trains on.
_PAPER_SHARES = (0.8, 0.63, 0.5, 0.4, 0.2)


class EpsilonEstimates(BaseModel, frozen=True, extra="forbid"):
    """The epsilon that keeps a wanted share, estimated from some clusters before all are scored (paper, section 6.5)."""

    targets: Annotated[tuple[Size, ...], AfterValidator(distinct)] = Field(
        _PAPER_SHARES, min_length=1, description="What is to be kept: shares in (0, 1], or numbers of items."
    )
    clusters: Share = Field(0.1, description="Share of the clusters that is scored; the paper's.")
    fewest_clusters: int = Field(
        20,
        ge=2,
        description="Clusters that are scored at least, as far as there are so many: intervals from fewer are too narrow.",
    )
    start: Annotated[tuple[Epsilon, Epsilon], AfterValidator(_two_apart)] = Field(
        (0.02, 0.2), description="The two epsilons between which the paper's method interpolates."
    )
    seed: int = Field(0, ge=0, description="Of the choice of clusters, and of the intervals.")
    max_error: float = Field(
        0.03, gt=0, le=1, description="Difference in the kept share above which a check says that an estimate was off."
    )


class ClusteringComparison(BaseModel, frozen=True, extra="forbid"):
    """What every k and seed keeps, at equal sizes (paper, appendix A.1)."""

    shares: Annotated[tuple[Share, ...], AfterValidator(distinct)] = Field(
        _PAPER_SHARES, min_length=1, max_length=100, description="Shares of the items that the compared sets keep."
    )


class Cost(BaseModel, frozen=True, extra="forbid"):
    """What the stages took, and what they would take for another dataset (paper, section 7)."""

    items: int = Field(440_000_000, ge=1, description="Items to project to; the paper's LAION-440M.")
    k: int = Field(50_000, ge=1, description="Clusters to project to; the paper's choice.")
    training_items_per_second: float = Field(
        330,
        gt=0,
        description="Items that one device trains on in a second, for the share of an epoch. The default is OpenCLIP's: "
        "CLIP ViT-B/16 saw 12.8 billion samples in 10,700 hours of A100 (its docs/PRETRAINED.md).",
    )


class RedundancyBySize(BaseModel, frozen=True, extra="forbid"):
    """The share removed from random subsamples, and from more items than there are."""

    halvings: int = Field(
        8, ge=2, le=40, description="How often the dataset is halved: the smallest subsample has 1 / 2^halvings of it."
    )
    sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], AfterValidator(distinct)] = Field(
        (), description="Numbers of items to extrapolate to; empty: 2, 5 and 10 times as many as there are."
    )


class Analyses(BaseModel, frozen=True, extra="forbid"):
    """What is measured of a dataset beside the main way: made on demand, or with everything else."""

    follow: Annotated[tuple[OnDemand, ...], AfterValidator(distinct)] = Field(
        (),
        description="Assets that are otherwise made on demand, and that refreshes and automation make too, with what "
        "they are made from.",
    )
    epsilon_estimates: EpsilonEstimates = Field(
        EpsilonEstimates(), description="The epsilon for a wanted share, estimated before all clusters are scored."
    )
    clustering_comparison: ClusteringComparison = Field(
        ClusteringComparison(), description="What every k and seed keeps, at equal sizes."
    )
    cost: Cost = Field(Cost(), description="What the stages took, projected to another size.")
    redundancy_by_size: RedundancyBySize = Field(
        RedundancyBySize(), description="The share removed by number of items, of a selection that keeps at `random`."
    )
