"""The settings of the analyses: what is made without being asked for, and how each is done."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from semdedup_assets.kept_sets import distinct

OnDemand = Literal["estimate", "caption_embeddings", "caption_disagreement", "removed_items", "rule_comparison"]
"""The stages that refreshes and automation make only where `analyses.follow` names them."""


class Captions(BaseModel, frozen=True, extra="forbid"):
    """When two captions of similar images disagree."""

    agree_from: float = Field(
        0.5,
        ge=-1,
        le=1,
        description="Cosine similarity of two captions, by the text tower of the model that embeds the images, below which "
        "they disagree. Models differ: look at the picture of `caption_disagreement` first.",
    )


class Analyses(BaseModel, frozen=True, extra="forbid"):
    """What is measured of a dataset beside the main way: made on demand, or with everything else."""

    follow: Annotated[tuple[OnDemand, ...], AfterValidator(distinct)] = Field(
        (),
        description="Assets that are otherwise made on demand, and that refreshes and automation make too, with what "
        "they are made from.",
    )
    captions: Captions = Field(Captions(), description="When two captions of similar images disagree.")
