"""The settings of the analyses: what is made without being asked for, and how each is done."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from semdedup_assets.kept_sets import distinct

OnDemand = Literal["detection_efficiency", "estimate", "removed_items", "rule_comparison"]
"""The stages that refreshes and automation make only where `analyses.follow` names them."""


class DetectionEfficiencySettings(BaseModel, frozen=True, extra="forbid"):
    """Which share of the duplicates the search within clusters finds."""

    epsilons: Annotated[tuple[Annotated[float, Field(ge=0, le=2)], ...], AfterValidator(distinct)] = Field(
        (0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.15, 0.2), description="Beside the pipeline's own that are numbers."
    )
    clusters: int = Field(
        200, ge=1, description="Clusters that are sampled; more narrow the interval. Fewer where memory would not do."
    )
    neighbours: int = Field(
        20, ge=1, description="Clusters that each sampled one is compared with beside itself; the paper's number."
    )
    all_pairs_up_to: int = Field(
        50_000, ge=0, description="Of at most so many items all pairs are compared too, which is exact."
    )
    seed: int = Field(0, ge=0, description="Of the sample, and of its interval.")
    warn_below: float = Field(
        0.9, ge=0, le=1, description="Share of items found at the pipeline's largest epsilon below which a check warns."
    )


class Analyses(BaseModel, frozen=True, extra="forbid"):
    """What is measured of a dataset beside the main way: made on demand, or with everything else."""

    follow: Annotated[tuple[OnDemand, ...], AfterValidator(distinct)] = Field(
        (),
        description="Assets that are otherwise made on demand, and that refreshes and automation make too, with what "
        "they are made from.",
    )
    detection_efficiency: DetectionEfficiencySettings = Field(
        DetectionEfficiencySettings(), description="Which share of the duplicates the search within clusters finds."
    )
