"""What the method costs: operations, seconds, bytes and memory of each stage, by arithmetic alone."""

from dataclasses import dataclass
from math import ceil, log2

STAGES = (
    "embeddings",
    "training_sample",
    "centroids",
    "assignments",
    "duplicate_scores",
    "keep_masks",
    "manifests",
)
"""The stages of a pipeline, each after those it is made from."""

IMBALANCE = 1.6
"""Factor by which uneven clusters raise the number of pairs, where nothing was fitted yet.

Sum of size² = n² / k · (1 + v²), v being the sizes' coefficient of variation. A few thousand items in tens of clusters
give 1.1; the paper's 4.6e12 comparisons of 440 million items in 50,000 clusters 2.4. This lies between.
"""

_BATCH = 1 << 14  # rows of a record batch of embeddings
_RUN = 64 << 20  # bytes of the clusters that are scored together
_TILES = 32 << 20  # tiles of a matrix product in flight, and their two operands
_ROW_GROUP = 1 << 18  # rows of scores that are gathered before they are written
_FIT_BLOCK = 1 << 16  # rows that a fit reads together


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the work is, for one number of clusters.

    Attributes:
        items: n.
        largest_shard: items of the largest shard.
        shards: how many there are.
        dimension: d.
        number_bytes: of a stored number: 2 or 4.
        sample: vectors that are drawn.
        k: clusters.
        fit_sample: of the drawn vectors, those that the fit uses.
        fit_streams: whether the fit reads them in each iteration, so that they need not be in memory as float32.
        iterations: of k-means.
        pairs: pairs to compare within clusters.
        largest_cluster: items of the largest cluster.
        buckets: ranges of clusters.
        epsilons: how many keep masks, and manifests, are made.
    """

    items: int
    largest_shard: int
    shards: int
    dimension: int
    number_bytes: int
    sample: int
    k: int
    fit_sample: int
    fit_streams: bool
    iterations: int
    pairs: int
    largest_cluster: int
    buckets: int
    epsilons: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a stored vector."""
        return self.dimension * self.number_bytes

    @property
    def comparisons(self) -> int:
        """Pairs, and each item once: clusters of one cost something too."""
        return self.pairs + self.items


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds that a machine was seen to take, for one unit of each kind of work.

    Attributes:
        embed: an item, read, embedded and written.
        pass_id: an item whose id is looked at for the sample.
        choose: a number that is looked at while the smallest hashes are chosen.
        draw: a drawn vector, copied and written.
        fit: a floating-point operation of k-means.
        assign: an item, beside its products with the centroids.
        product: a floating-point operation of these products.
        compare: a comparison while scores are made, everything counted in.
        mask: the same while the masks of one epsilon are made.
        manifest: an item, while the manifest of one epsilon is written.
        result: a result, however small: its files and its recipe.
        transfer: a byte, to or from a store that is not on this machine's disk; 0 where it is.
    """

    embed: float
    pass_id: float
    choose: float
    draw: float
    fit: float
    assign: float
    product: float
    compare: float
    mask: float
    manifest: float
    result: float
    transfer: float


@dataclass(frozen=True, slots=True)
class ItemBytes:
    """Bytes of an item in each table, as a rehearsal wrote them.

    Attributes:
        embedding: vector, id, key and carried columns.
        score: id, cluster, similarities, which earlier item.
        mask: of one epsilon.
        manifest: all formats of one epsilon; of the items that are not kept, nothing.
    """

    embedding: float
    score: float
    mask: float
    manifest: float


def expected_pairs(items: int, *, k: int) -> int:
    """Pairs within k clusters of n items before anything is fitted: (n² / k · `IMBALANCE` - n) / 2."""
    return max(0, int((items * min(items, items / k * IMBALANCE) - items) / 2))


def fit_flops(scale: Scale) -> int:
    """Each iteration compares every vector of the fit with every centroid (2 d operations); so does the last look.

    An upper bound: a fit ends earlier where its objective no longer rises.
    """
    return 2 * scale.fit_sample * scale.k * scale.dimension * (scale.iterations + 1)


def assign_flops(scale: Scale) -> int:
    """Every item with every centroid: 2 n k d."""
    return 2 * scale.items * scale.k * scale.dimension


def choice_steps(scale: Scale) -> int:
    """Numbers looked at to choose the sample: twice as many as are wanted, each time the items have doubled."""
    return 2 * scale.sample * ceil(log2(scale.items / scale.sample)) if scale.items > scale.sample else 0


def stage_results(scale: Scale) -> dict[str, int]:
    """Results that a stage writes, each completed by its recipe."""
    counts = (scale.shards, 1, 1, scale.shards, scale.buckets, scale.epsilons, scale.epsilons)
    return dict(zip(STAGES, counts, strict=True))


def stage_bytes(scale: Scale, item: ItemBytes) -> dict[str, int]:
    """Bytes that each stage leaves in the store.

    Vectors dominate: embeddings hold them once, assignments once more for every k. A shard's assignments carry the
    offsets of all k clusters, twice (Arrow's schema stands at both ends of a file).
    """
    n = scale.items
    return {
        "embeddings": round(n * item.embedding),
        "training_sample": scale.sample * (8 + scale.row_bytes),
        "centroids": scale.k * (4 * scale.dimension + 4),
        "assignments": n * (16 + scale.row_bytes) + scale.shards * 16 * (scale.k + 1),
        "duplicate_scores": round(n * item.score),
        "keep_masks": round(n * item.mask * scale.epsilons),
        "manifests": round(n * item.manifest * scale.epsilons),
    }


def stage_reads(scale: Scale, item: ItemBytes) -> dict[str, int]:
    """Bytes that each stage reads from the store; what is read from the source is not counted."""
    n, written = scale.items, stage_bytes(scale, item)
    vectors = n * scale.row_bytes
    return {
        "embeddings": 0,
        "training_sample": written["embeddings"],
        "centroids": written["training_sample"],
        "assignments": written["embeddings"],
        "duplicate_scores": written["assignments"],
        # Vectors are read again only of clusters in which a removed item's nearest earlier item is removed too.
        "keep_masks": (written["duplicate_scores"] + written["assignments"] // 2) * scale.epsilons,
        "manifests": written["keep_masks"] + max(0, written["embeddings"] - vectors) * scale.epsilons,
    }


def stage_seconds(scale: Scale, rates: Rates, item: ItemBytes) -> dict[str, float]:
    """Seconds of each stage, one partition after the other.

    Not counted: to load the model, and what Dagster adds to each run.
    """
    n = scale.items
    work = {
        "embeddings": n * rates.embed,
        "training_sample": n * rates.pass_id + choice_steps(scale) * rates.choose + scale.sample * rates.draw,
        "centroids": fit_flops(scale) * rates.fit,
        "assignments": n * rates.assign + assign_flops(scale) * rates.product,
        "duplicate_scores": scale.comparisons * rates.compare,
        "keep_masks": scale.comparisons * rates.mask * scale.epsilons,
        "manifests": n * rates.manifest * scale.epsilons,
    }
    results, reads, writes = stage_results(scale), stage_reads(scale, item), stage_bytes(scale, item)
    return {
        stage: work[stage] + results[stage] * rates.result + (reads[stage] + writes[stage]) * rates.transfer
        for stage in STAGES
    }


def stage_memory(scale: Scale, item: ItemBytes, *, budget: int) -> dict[str, int]:
    """Bytes that each stage holds at most, beside the process itself and the model; mapped files count as held.

    Args:
        scale: how large the work is.
        item: bytes of an item.
        budget: bytes that the tiles may take.
    """
    n, d, row = scale.items, scale.dimension, scale.row_bytes
    bucket = -(-n // scale.buckets)
    tiles = min(budget, _TILES)
    text = round(max(0.0, item.embedding - row))
    centroids = 4 * d * scale.k
    # The run that is copied, once more in keep-order, and as float32 where the budget has room.
    copied = min(max(_RUN, scale.largest_cluster * row), bucket * row)
    run = 2 * copied + min(copied * 4 // scale.number_bytes, budget // 2)
    return {
        # The batch that waits, joined and as Arrow; every key of the shard, with its count.
        "embeddings": min(_BATCH, scale.largest_shard) * (4 * d + 2 * row + 3 * text) + scale.largest_shard * 160,
        # Hashes and ids of the choice, and what it is made of; the drawn vectors; a shard's file, mapped.
        "training_sample": min(n, 2 * scale.sample) * 40 + scale.sample * row + scale.largest_shard * row,
        # The drawn vectors, mapped; those that are used; and as the fit works on them.
        "centroids": scale.sample * row
        + (scale.fit_sample * row if scale.fit_sample < scale.sample else 0)
        + _fit_memory(scale, budget=budget)
        + 3 * centroids
        + tiles,
        # A shard's file, mapped; a bucket's rows of it; ids, clusters, similarities and their order.
        "assignments": scale.largest_shard * (row + 2 * row // scale.buckets + 48) + centroids + tiles,
        # A bucket's rows of all shards, mapped; the run at hand; the scores that wait.
        "duplicate_scores": bucket * (16 + row) + run + min(bucket, _ROW_GROUP) * 100 + tiles,
        # A bucket's scores, read in parts and joined, and positions into them; the cluster at hand.
        "keep_masks": bucket * 150 + min(run, 6 * scale.largest_cluster * row) + tiles,
        # A byte for each item; a bucket's masks while they are put in place; a batch of keys and columns.
        "manifests": n + min(bucket, _ROW_GROUP * 4) * 60 + min(_BATCH, scale.largest_shard) * (3 * text + 400),
    }


def _fit_memory(scale: Scale, *, budget: int) -> int:
    """Vectors as float32, twice; or as far as the budget has room, their codes likewise, and those read together."""
    numbers = scale.dimension * scale.fit_sample
    if not scale.fit_streams:
        return 8 * numbers
    held = 4 * numbers if 4 * numbers <= budget // 2 else 0
    coded = numbers + 12 * scale.fit_sample
    together = 8 * scale.dimension * min(_FIT_BLOCK, scale.fit_sample)
    return held + (coded if coded <= budget // 4 else 0) + together
