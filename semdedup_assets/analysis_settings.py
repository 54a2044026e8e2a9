"""The settings of the analyses: what is made without being asked for, and how each is done."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from semdedup_assets.kept_sets import distinct

OnDemand = Literal[
    "baseline_overlaps",
    "caption_disagreement",
    "caption_embeddings",
    "clustering_comparison",
    "cost",
    "data_screen",
    "detection_efficiency",
    "epsilon_estimate_errors",
    "epsilon_estimates",
    "estimate",
    "evaluation_curves",
    "evaluations",
    "everything_manifests",
    "everything_masks",
    "everything_trained_models",
    "exact_manifests",
    "exact_masks",
    "exact_trained_models",
    "held_out_sets",
    "label_precision",
    "near_duplicate_manifests",
    "near_duplicate_masks",
    "outliers",
    "perceptual_hashes",
    "perceptual_manifests",
    "perceptual_masks",
    "pruned_pairs",
    "random_manifests",
    "random_masks",
    "random_trained_models",
    "redundancy_by_size",
    "removed_items",
    "rule_comparison",
    "sized_random_manifests",
    "sized_random_masks",
    "sized_random_trained_models",
    "text_signatures",
    "trained_models",
]
"""The stages that refreshes and automation make only where `analyses.follow` names them."""

SameSize = Literal["items", "words", "bytes"]
"""What two choices of items have as much of."""


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


class DetectionEfficiency(BaseModel, frozen=True, extra="forbid"):
    """Which share of the duplicates the search within clusters finds."""

    epsilons: Annotated[tuple[Epsilon, ...], AfterValidator(distinct)] = Field(
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

    same: SameSize = Field(
        "items",
        description="What a random choice keeps as much of as the kept set does: `items`; `words` of texts, between "
        "white space; or `bytes` of encoded images or of texts in UTF-8.",
    )
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(distinct)] = Field(
        (0, 1, 2),
        min_length=1,
        description="Of the choices that `baseline_overlaps` compares; masks and manifest are those of the first; each model "
        "of a random baseline has one, and the next numbers beyond these.",
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
    mib: int = Field(
        8192,
        ge=1,
        description="MiB of the source (of texts: of the items' tables) that are read at most; of more files than that, a "
        "seeded choice is read.",
    )
    seed: int = Field(0, ge=0, description="Of the choice of pairs and files.")


class Outliers(BaseModel, frozen=True, extra="forbid"):
    """How many outliers and typical items are listed."""

    items: int = Field(24, ge=1, description="Items of each list.")


class Captions(BaseModel, frozen=True, extra="forbid"):
    """When two captions of similar images disagree."""

    agree_from: float = Field(
        0.5,
        ge=-1,
        le=1,
        description="Cosine similarity of two captions, by the text tower of the model that embeds the images, below which "
        "they disagree. Models differ: look at the picture of `caption_disagreement` first.",
    )


class BaselineOverlaps(BaseModel, frozen=True, extra="forbid"):
    """What is shown of the items that no baseline finds."""

    pairs: int = Field(24, ge=1, description="Pairs on the page.")
    seed: int = Field(0, ge=0, description="Of their choice.")


class DataScreen(BaseModel, frozen=True, extra="forbid"):
    """What is looked at of a kept set before anything is trained on it."""

    columns: tuple[str, ...] = Field(
        (), description="Carried columns whose values should stay covered; empty: all whose values repeat."
    )
    mib: int = Field(2, ge=1, description="MiB of texts that the count-based language model is fitted to at most.")
    order: int = Field(6, ge=2, le=12, description="Bytes of its n-grams.")
    seed: int = Field(0, ge=0, description="Of the choice of texts, and of the random choice.")


class Analyses(BaseModel, frozen=True, extra="forbid"):
    """What is measured of a dataset beside the main way: made on demand, or with everything else."""

    follow: Annotated[tuple[OnDemand, ...], AfterValidator(distinct)] = Field(
        (),
        description="Assets that are otherwise made on demand, and that refreshes and automation make too, with what "
        "they are made from.",
    )
    detection_efficiency: DetectionEfficiency = Field(
        DetectionEfficiency(), description="Which share of the duplicates the search within clusters finds."
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
    captions: Captions = Field(Captions(), description="When two captions of similar images disagree.")
    random_pruning: RandomPruning = Field(
        RandomPruning(), description="The random choices that a kept set is held against."
    )
    baseline_overlaps: BaselineOverlaps = Field(
        BaselineOverlaps(), description="What is shown of the items that no baseline finds."
    )
    data_screen: DataScreen = Field(
        DataScreen(), description="What is looked at of a kept set before anything is trained on it."
    )
