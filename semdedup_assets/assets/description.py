"""What a person reads of each asset in Dagster's UI: descriptions, kinds, steps of the method, columns, places."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg

from semdedup_assets.settings import Pipeline
from semdedup_assets.storage.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable

STEP_TAG = "semdedup/step"

_ITEM = ("id", "uint64", "Identity: shard (32 bits) and row in the shard (32 bits).")
_SIMILARITY_TO_CENTROID = ("centroid_similarity", "float64", "Cosine similarity to the centroid.")


@dataclass(frozen=True)
class Description:
    """One asset, described.

    Attributes:
        step: the step of the method it belongs to; numbered, so that a list of tags is in order.
        text: what it holds, its shape, the paper's section.
        kinds: what makes it and how it is stored; Dagster shows an icon for each.
        columns: name, type and meaning, of assets that are tables.
    """

    step: str
    text: str
    kinds: frozenset[str]
    columns: tuple[tuple[str, str, str], ...] = field(default=())


_DESCRIPTIONS = {
    "shards": Description(
        "1-embed",
        "The source files, joined to shards: one partition a shard, which a file never leaves. Observing lists the "
        "files, registers new shards, and notes which shards have changed (by size and time, or ETag).",
        frozenset({"file"}),
    ),
    "catalogue": Description(
        "1-embed",
        "The list of all shards. Its version changes when a shard comes or vanishes. The scores depend on it for the "
        "sake of shards that vanish: a partition that is gone has no version left that could change, and its items "
        "would stay in the manifests.",
        frozenset({"json"}),
    ),
    "estimate": Description(
        "1-embed",
        "What the pipeline will take on this machine, stage by stage: time, disk and memory, from the number of items, "
        "k and some seconds of calibration. Materialised again after a run, it compares them with what was taken.",
        frozenset({"torch"}),
    ),
    "embeddings": Description(
        "1-embed",
        "One unit vector (n × d, float16) for each item of a shard, by a pre-trained model (SemDeDup, section 3), with "
        "the item's key and carried columns. Broken items are listed with their reasons beside it.",
        frozenset({"torch", "arrow"}),
        (
            _ITEM,
            ("key", "string", "The item's own name, never cut."),
            ("vector", "fixed_size_list<float16>", "Embedding of unit norm."),
        ),
    ),
    "training_sample": Description(
        "2-cluster",
        "A seeded, uniform sample of all vectors, to which the centroids are fitted. It is frozen: new data never "
        "re-clusters the old. Materialising it keeps it as it is, unless the model has changed or `refit` is set.",
        frozenset({"arrow"}),
        (_ITEM, ("vector", "fixed_size_list<float16>", "Embedding of unit norm.")),
    ),
    "centroids": Description(
        "2-cluster",
        "k centroids (k × d, float32, unit norm) by spherical k-means on the training sample (SemDeDup, section 3, "
        "appendix G), with the clusters' sizes in the sample, and the buckets in which they will be scored.",
        frozenset({"faiss", "numpy"}),
        (
            ("cluster", "int64", "Index of the cluster."),
            ("sample_items", "int64", "Vectors of the sample nearest to its centroid."),
            ("bucket", "int64", "Index of the bucket that scores it."),
        ),
    ),
    "assignments": Description(
        "2-cluster",
        "Each item's nearest centroid by cosine similarity (SemDeDup, section 3). Holds the shard's ids, similarities "
        "to the centroid and vectors in the order of their clusters, for one sequential read a bucket.",
        frozenset({"torch", "arrow"}),
        (_ITEM, _SIMILARITY_TO_CENTROID, ("vector", "fixed_size_list<float16>", "Embedding of unit norm.")),
    ),
    "duplicate_scores": Description(
        "3-compare",
        "For each item its greatest cosine similarity to an earlier item of its cluster, and which (SemDeDup, Alg. A7). "
        "A bucket is a range of clusters. One pass serves every epsilon.",
        frozenset({"torch", "parquet"}),
        (
            _ITEM,
            ("cluster", "int32", "Index of the item's cluster."),
            _SIMILARITY_TO_CENTROID,
            ("similarity", "float32", "Greatest cosine similarity to an earlier item; -inf for the first."),
            ("duplicate_of", "uint64", "That earlier item; null for the first."),
        ),
    ),
    "figures": Description(
        "3-compare",
        "The paper's pictures of one k: fraction kept and share with duplicates against epsilon, similarities, removed "
        "share by cluster size, cluster sizes (SemDeDup, figures 3, A7 and A8), with their numbers as Parquet.",
        frozenset({"matplotlib", "parquet"}),
    ),
    "keep_masks": Description(
        "4-select",
        "Kept or removed, by item: removed where the similarity to an earlier item exceeds 1 - epsilon (SemDeDup, "
        "Alg. A7; a higher epsilon removes more), with the nearest kept item of each removed one. A target such as "
        "`keep=50%` is solved exactly from the scores. `removed_by_chain` counts the removed items whose similar "
        "neighbours were all removed themselves; `selection.rule: greedy` keeps them.",
        frozenset({"numpy", "parquet"}),
        (
            _ITEM,
            ("kept", "bool", "Whether the item stays."),
            ("kept_neighbour", "uint64", "The most similar kept item of the cluster; null where the item is kept."),
            ("kept_similarity", "float32", "Cosine similarity to it; null where the item is kept."),
        ),
    ),
    "galleries": Description(
        "4-select",
        "What was removed, to look at: the largest groups of duplicates, items with their neighbours at rising epsilon, "
        "and a cluster before and after (SemDeDup, figures 2, A9 to A11). A page beside the data, with more than here.",
        frozenset({"html"}),
    ),
    "manifests": Description(
        "5-train",
        "The kept items in the order of the source, in the formats that training jobs read. A manifest is never "
        "changed: a new one lies beside the old, and `current.json` says which is current.",
        frozenset({"polars", "parquet"}),
        (_ITEM, ("key", "string", "The item's own name.")),
    ),
}


def description(asset: str) -> Description:
    """How an asset is described."""
    return _DESCRIPTIONS[asset]


def place(pipeline: Pipeline, asset: str, partition: str | None = None, *, manifest: str = "*") -> str:
    """Where a partition's result lies: a file, or the folder of several; without a partition the folder of all.

    Args:
        pipeline: the pipeline.
        asset: name of the asset.
        partition: its key.
        manifest: version of the manifest, of which a partition may have many.
    """
    where, star, _ = _pattern(pipeline, asset, partition, manifest).partition("*")
    return where.rpartition("/")[0] if star else where


def _pattern(pipeline: Pipeline, asset: str, partition: str | None, manifest: str) -> str:
    """The path of an asset's result, `*` for what is not known of it."""
    layout = Layout(pipeline.store, pipeline.dataset, pipeline.model_name)
    # Dagster spells the dimensions of a partition in the order of their names: bucket, epsilon, k, shard.
    one, two = (partition or "*|*").split("|") if "|" in (partition or "*|*") else (partition or "*", "*")
    places: dict[str, Callable[[], str]] = {
        "catalogue": lambda: layout.catalogue,
        "estimate": lambda: f"{layout.estimate}.json",
        "embeddings": lambda: layout.embeddings(one),
        "training_sample": lambda: layout.training_sample,
        "centroids": lambda: layout.centroids(one),
        "assignments": lambda: layout.assignments(one, two),
        "duplicate_scores": lambda: layout.scores(two, one),
        "figures": lambda: layout.figure(one, "*"),
        "keep_masks": lambda: layout.mask(two, one, "*"),
        "galleries": lambda: layout.gallery_file(two, one, "*"),
        "manifests": lambda: layout.manifest(two, one, manifest),
    }
    return places[asset]()


def static_metadata(pipeline: Pipeline, asset: str) -> dict[str, Any]:
    """Metadata of the asset itself: where it lies, how it is stored, its columns."""
    name = _pattern(pipeline, asset, None, "*").rpartition("/")[2]
    kind = name.rpartition(".")[2] if "." in name else "folder"
    metadata: dict[str, Any] = {"dagster/uri": place(pipeline, asset), "dagster/storage_kind": kind}
    columns = [*_DESCRIPTIONS[asset].columns]
    if columns and asset in ("embeddings", "manifests"):
        columns += [(name, of, "Carried from the source.") for name, of in pipeline.source.column_types.items()]
    if columns:
        metadata["dagster/column_schema"] = dg.TableSchema(
            columns=[dg.TableColumn(name, of, description=meaning) for name, of, meaning in columns]
        )
    return metadata
