"""The settings of the analyses: what is made without being asked for, and how each is done."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from semdedup_assets.kept_sets import distinct

OnDemand = Literal["estimate", "removed_items", "rule_comparison"]
"""The stages that refreshes and automation make only where `analyses.follow` names them."""


class Analyses(BaseModel, frozen=True, extra="forbid"):
    """What is measured of a dataset beside the main way: made on demand, or with everything else."""

    follow: Annotated[tuple[OnDemand, ...], AfterValidator(distinct)] = Field(
        (),
        description="Assets that are otherwise made on demand, and that refreshes and automation make too, with what "
        "they are made from.",
    )
