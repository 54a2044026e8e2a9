"""The settings of the analyses: what is made without being asked for, and how each is done."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from semdedup_assets.kept_sets import distinct

OnDemand = Literal[
    "estimate",
    "removed_items",
    "rule_comparison",
    "exact_masks",
    "exact_manifests",
    "text_signatures",
    "near_duplicate_masks",
    "near_duplicate_manifests",
    "perceptual_hashes",
    "perceptual_masks",
    "perceptual_manifests",
    "random_masks",
    "random_manifests",
]
"""The stages that refreshes and automation make only where `analyses.follow` names them."""


class Fingerprints(BaseModel, frozen=True, extra="forbid"):
    """When two items count as near duplicates without a model: for the baselines, and for what is pruned."""

    ngram_words: int = Field(
        5, ge=1, description="Words of an n-gram, of which MinHash compares the sets of two texts."
    )
    permutations: int = Field(
        256, ge=16, le=4096, description="Of MinHash: four times as many halve the error of a Jaccard similarity."
    )
    seed: int = Field(0, ge=0, description="Of MinHash's permutations.")
    jaccard: float = Field(
        0.8, gt=0, le=1, description="Texts whose n-grams have this Jaccard similarity or more are near duplicates."
    )
    hamming: int = Field(
        4, ge=0, le=64, description="Images whose perceptual hashes differ in so many of 64 bits or fewer are too."
    )


class RandomPruning(BaseModel, frozen=True, extra="forbid"):
    """The random choices that a kept set is held against."""

    same: Literal["items", "words", "bytes"] = Field(
        "items",
        description="What a random choice keeps as much of as the kept set does: `items`; `words` of texts, between "
        "white space; or `bytes` of encoded images or of texts in UTF-8.",
    )
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(distinct)] = Field(
        (0, 1, 2),
        min_length=1,
        description="Of the choices that `baseline_overlaps` compares; masks and manifest are those of the first.",
    )


class Analyses(BaseModel, frozen=True, extra="forbid"):
    """What is measured of a dataset beside the main way: made on demand, or with everything else."""

    follow: Annotated[tuple[OnDemand, ...], AfterValidator(distinct)] = Field(
        (),
        description="Assets that are otherwise made on demand, and that refreshes and automation make too, with what "
        "they are made from.",
    )
    fingerprints: Fingerprints = Field(
        Fingerprints(), description="When two items count as near duplicates without a model."
    )
    random_pruning: RandomPruning = Field(
        RandomPruning(), description="The random choices that a kept set is held against."
    )
