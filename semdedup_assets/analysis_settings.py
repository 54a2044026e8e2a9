"""The settings of the analyses: what is made without being asked for, and how each is done."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from semdedup_assets.kept_sets import distinct

OnDemand = Literal["estimate", "removed_items", "rule_comparison", "pruned_pairs", "label_precision", "outliers"]
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


def _ascending(edges: tuple[float, ...]) -> tuple[float, ...]:
    if list(edges) != sorted(set(edges)):
        message = f"{list(edges)} does not rise from each to the next; sort it, and list each once"
        raise ValueError(message)
    return edges


class PrunedPairs(BaseModel, frozen=True, extra="forbid"):
    """What is looked at of the pairs of a removed item and its nearest kept one."""

    bands: Annotated[tuple[Annotated[float, Field(gt=0, le=2)], ...], AfterValidator(_ascending)] = Field(
        (0.001, 0.01, 0.03, 0.05, 0.1, 0.2),
        min_length=1,
        description="Where the bands of epsilon end in which pairs are counted; those beyond a partition's own do not count.",
    )
    sample: int = Field(
        400,
        ge=1,
        description="Pairs of a band whose contents are compared; of more, a seeded sample is, and its counts are scaled.",
    )
    shown: int = Field(20, ge=1, description="Pairs of a band that are shown, and that a person can label.")
    files: int = Field(
        64,
        ge=2,
        description="Source files (of texts: shards) that are read at most; of more, a seeded choice is. A folder of "
        "single images has no such limit.",
    )
    seed: int = Field(0, ge=0, description="Of the choice of pairs and files.")


class Outliers(BaseModel, frozen=True, extra="forbid"):
    """How many outliers and typical items are listed."""

    items: int = Field(24, ge=1, description="Items of each list.")


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
    pruned_pairs: PrunedPairs = Field(PrunedPairs(), description="What is looked at of removed items.")
    labels: str | None = Field(
        None,
        min_length=1,
        description="Folder, file or URL of the JSON files that the page of `pruned_pairs` saves, of one person or several; "
        "with it there is the asset `label_precision`.",
    )
    precision: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Share of the removed items that should be duplicates by these labels: the epsilon for it is computed, "
        "and a check warns where less are.",
    )
    outliers: Outliers = Field(Outliers(), description="How many outliers and typical items are listed.")
