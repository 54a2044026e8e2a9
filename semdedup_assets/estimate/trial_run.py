"""What the stages take, by their work: short trials of them on a few made-up vectors in a temporary store."""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from math import ceil, log10
from typing import Any, NamedTuple

import numpy as np

from semdedup_assets.algorithm.cluster_ranges import range_count
from semdedup_assets.compute import Compute
from semdedup_assets.estimate.actual_usage import ActualUsage, RowKey, StageRow, stage_rows
from semdedup_assets.estimate.item_counts import ItemCount, spread
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.runner import run_partitions
from semdedup_assets.kept_sets import Clustering, Selection
from semdedup_assets.records import Embedded, Item
from semdedup_assets.sources import Shard, ShardIndex, Source
from semdedup_assets.stages.manifest_formats import COPIES
from semdedup_assets.stages.training_sample import sample_size
from semdedup_assets.storage.files import filesystem, join, write_bytes

_ITEMS, _FEWEST_FILES, _ITERATIONS, _TARGETS = 8192, 8, 8, 2
_BY_CLUSTERS = ("duplicate_scores", "keep_masks", "manifests")
# Manifests of some formats copy payloads.
_COPIED_BYTES, _FEWEST_COPIED = 64 << 20, 256
# Seconds of an ordinary machine: to write or read a small file, to pass an item on, to compare a pair of vectors.
# Only their ratios count: the trial shows how much faster or slower this machine is.
_FILE, _ITEM, _PAIR, _PAIR_ON_GPU = 5e-3, 3e-6, 1e-8, 1e-10
_ROWS_PER_FILE = 128  # A Parquet file takes as many bytes beside its rows.
_DISK_BYTES_PER_SECOND = 200e6  # What a trial writes fits caches that a run's files do not.
_BATCH_BYTES, _WRITTEN_ROWS = 64 << 20, 1 << 18  # of clusters that are scored together, and of what is then written
_TILES = 32 << 20  # of a matrix product, with their operands


class Amounts(NamedTuple):
    """Of a stage: seconds on an ordinary machine, but for the encoder; what its bytes grow with; bytes of memory.

    The memory is what the stage holds at most beside the process and the model, mapped files counted in.
    """

    seconds: float
    rows: int
    memory: int


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the work of one clustering is; `pairs` are those within its clusters."""

    context: StageContext
    items: int
    largest_shard: int
    dimension: int
    k: int
    pairs: float
    largest_cluster: int

    @property
    def drawn(self) -> int:
        """Vectors of the training sample: of the one that there is, for it is frozen, or as many as will be drawn."""
        context, frozen = self.context, self.context.index.record("training_sample", Partition())
        if frozen is not None and context.index.is_current("training_sample", Partition()):
            return int(frozen.details["vectors"])
        return sample_size(context, self.items)

    @property
    def fitted(self) -> int:
        """Vectors of it that the centroids are fitted to."""
        return self.context.pipeline.training_sample.fitted(self.drawn, k=self.k)

    @property
    def fewer_than_wanted(self) -> bool:
        """Whether a check will report the centroids."""
        return self.fitted < min(self.context.pipeline.training_sample.wanted_per_cluster * self.k, self.items)

    def amounts(self, stage: str) -> Amounts:
        """What a stage takes."""
        n, k, d, shard, pipeline = self.items, self.k, self.dimension, self.largest_shard, self.context.pipeline
        row, targets = d * (2 if pipeline.vectors == "float16" else 4), len(pipeline.targets)
        ranges, drawn, fitted = range_count(n, k=k, row_bytes=row), self.drawn, self.fitted

        pair = _PAIR if self.context.compute.torch_device.type == "cpu" else _PAIR_ON_GPU
        shards, passing = len(self.context.shards) * _FILE, n * _ITEM
        fit = _FILE + fitted * k * (pipeline.iterations + 1) * pair
        scoring = ranges * _FILE + passing + self.pairs * pair
        # Of each range the masks are read, of each shard several files written.
        writing = (3 * shards + ranges * _FILE / 3 + passing) * targets
        scored = n + ranges * _ROWS_PER_FILE

        written, products = min(n, _WRITTEN_ROWS) * 400, min(self.context.compute.budget, _TILES) + 12 * d * k
        # A range of all shards, mapped; a batch of clusters as read, in keep-order, and as float32.
        batch = min(max(_BATCH_BYTES, self.largest_cluster * row), n * row)
        clusters = -(-n // ranges) * (row + 150) + 4 * batch + written + products
        # The drawn vectors, mapped; those that are used, as stored and as the fit works on them.
        fit_memory = (drawn + fitted) * row + 8 * d * fitted + products
        found = {
            "training_sample": Amounts(shards + passing, drawn, min(n, 2 * drawn) * 40 + (drawn + shard) * row),
            "centroids": Amounts(fit, k, fit_memory),
            "assignments": Amounts(shards + passing + n * k * pair, n, shard * (2 * row + 48) + products),
            "duplicate_scores": Amounts(scoring, scored, clusters),
            "keep_masks": Amounts(scoring * targets, scored * targets, clusters),
            "manifests": Amounts(writing, n * targets, n + written),
        }
        others = Amounts(shards + passing, n, shard * 160 + written + min(shard, 1 << 14) * 8 * d)
        return found.get(stage, others)


def scale_of(context: StageContext, by_shard: Mapping[str, int], clustering: Clustering, *, dimension: int) -> Scale:
    """How large the work of a clustering is: by its centroids where they are fitted, else as is usual."""
    from semdedup_assets.algorithm.kmeans import suggest_k

    items, record = max(1, sum(by_shard.values())), context.index.record("centroids", Partition(clustering=clustering))
    if record is not None and record.code_version == context.code_version("centroids"):
        fitted, k = record.details, int(record.details["k"])
        growth = items / max(1.0, fitted["items_per_cluster"] * k)
        pairs, largest = fitted["pairs_predicted"] * growth**2, round(fitted["largest_cluster_predicted"] * growth)
    else:
        k = min(items, suggest_k(items) if clustering.k == "auto" else int(clustering.k))
        # The sum of size² is n² / k · (1 + v²), v being the sizes' coefficient of variation: with tens of clusters 1.1
        # times n² / k, in the paper (4.6e12 comparisons of 440 million items in 50,000 clusters) 2.4 times.
        imbalance = 1 + 0.065 * log10(k) ** 2
        pairs = items * max(0.0, min(items, items / k * imbalance) - 1) / 2
        largest = min(items, 4 * round(2 * pairs / items + 1))
    return Scale(context, items, max(by_shard.values()), dimension, k, pairs, largest)


def by_trial(
    context: StageContext, counts: ItemCount, rows: Sequence[tuple[StageRow, Scale]]
) -> dict[RowKey, tuple[float, float]]:
    """Seconds and bytes of rows, by a trial run: as many times what it used as the work is larger."""
    items = min(_ITEMS, max(1, counts.items))
    if _copies(context):
        source_bytes = sum(file.size for shard in context.shards for file in shard.files)
        items = min(items, max(_FEWEST_COPIED, _COPIED_BYTES * counts.items // max(1, source_bytes)))
    found, trial = {}, trial_run(context, counts, rows, items=items)
    for row, scale in rows:
        used, tried = trial[row.key[0], _trial_k(row, scale, items)]
        amounts = scale.amounts(row.stage)
        size, seconds = used.bytes * amounts.rows / tried.rows, used.seconds * amounts.seconds / tried.seconds
        found[row.key] = max(seconds, size / _DISK_BYTES_PER_SECOND), size
    return found


def _copies(context: StageContext) -> bool:
    return bool(COPIES & set(context.pipeline.manifests))


def _trial_k(row: StageRow, scale: Scale, items: int) -> str:
    """As many clusters as the real pipeline has; or, where they are compared, so many that they are as large."""
    if row.clustering is None:
        return ""
    wanted = items / (2 * scale.pairs / scale.items + 1) if row.stage in _BY_CLUSTERS else scale.k
    return str(max(1, min(round(wanted), items // 8)))


def trial_run(
    context: StageContext, counts: ItemCount, rows: Sequence[tuple[StageRow, Scale]], *, items: int
) -> dict[RowKey, tuple[ActualUsage, Amounts]]:
    """Run the pipeline's own stages on some items, in a temporary store beside the real one.

    Returns:
        What each stage used, and its amounts, by the stage's label and `_trial_k`.
    """
    files, dimension = [file for shard in context.shards for file in shard.files], rows[0][1].dimension
    files = spread(files, min(items, max(_FEWEST_FILES, ceil(items * len(files) / max(1, counts.items)))))
    wanted = {(row.key[0], _trial_k(row, scale, items)) for row, scale in rows}
    vectors = _MadeUpVectors(_unit_vectors(items, dimension=dimension), reads=_copies(context))
    shard, found = Shard(0, tuple(files)), {}
    small = _small(context, vectors, rows=ceil(items / len(files)), ks={k for _, k in wanted} - {""})
    try:
        write_bytes(small.layout.shard_index, ShardIndex((shard,), 1).to_json())
        # Selections that are alike here have rows of their own in the real pipeline.
        for row in stage_rows(small, merged=False):
            if row.stage in _BY_CLUSTERS and row.key not in wanted:
                continue
            partitions, tries = small.index.partitions(row.stage, Partition(clustering=row.clustering)), []
            for _ in range(2):  # The first one warms up.
                for _, record in run_partitions(row.context, context.graph[row.stage], partitions, again=True):
                    if row.stage == "items":
                        vectors.rows = vectors.rows[: int(record.details["items"])]
                tries.append(row.actual())
            clustering = row.clustering or small.pipeline.clusterings[0]
            scale = scale_of(small, {shard.name: len(vectors.rows)}, clustering, dimension=dimension)
            found[row.key] = min(tries, key=lambda each: each.seconds), scale.amounts(row.stage)
        return found
    finally:
        fs, path = filesystem(small.pipeline.store)
        with suppress(FileNotFoundError):
            fs.rm(path, recursive=True)


def _small(context: StageContext, vectors: "_MadeUpVectors", *, rows: int, ks: set[str]) -> StageContext:
    """The pipeline with a store and vectors of its own, few rows of each file, few iterations and few targets."""
    pipeline, count = context.pipeline, len(vectors.rows)
    sample = {"size": "all" if pipeline.training_sample.size == "all" else count, "per_cluster": "all"}
    clustering = {"k": tuple(sorted(ks, key=int)), "seed": (0,), "iterations": _ITERATIONS, "buckets": 1}
    changes = {
        "store": join(context.layout.folder, f".trial-{uuid.uuid4().hex}"),
        "model": "trial",
        "source": _shortened(pipeline.source, rows),
        "encoder": vectors,
        "embed_once": "never",  # The vectors belong to no content.
        "training_sample": pipeline.training_sample.model_copy(update=sample),
        "clustering": pipeline.clustering.model_copy(update=clustering),
        "epsilons": tuple(spread(pipeline.epsilons, _TARGETS)),
        "refresh": pipeline.refresh.model_copy(update={"attempts": 1}),
        "selection": _within_clusters(pipeline.selection),
        "selections": pipeline.selections
        and {name: _within_clusters(each) for name, each in pipeline.selections.items()},
        "references": {},
        "held_out": None,  # The made-up vectors are of all items.
    }
    selection = _within_clusters(context.selection)
    return StageContext(pipeline.model_copy(update=changes), context.graph, selection, context.compute)


def _within_clusters(selection: Selection) -> Selection:
    """The same, but of vectors within clusters alone: a trial has no captions, and no rows for a repair's stages."""
    return selection.model_copy(update={"repair": None, "spare_captions_below": None})


def _shortened(source: Source, rows: int) -> Source:
    """The same source, but each file ends after some items."""
    kind: Any = type(source)

    class Shortened(kind):  # type: ignore[misc]  # whichever kind of source it is
        def read_items(self, path: str) -> Iterator[Item]:
            return islice(super().read_items(path), rows)

        def read(self, path: str) -> Iterator[Any]:
            return islice(super().read(path), rows)

    shortened: Source = Shortened.model_construct(**dict(source))
    return shortened


@dataclass
class _MadeUpVectors:
    """An encoder, and its model, that hands over vectors that are there already.

    Attributes:
        rows: (n, d) float32.
        reads: whether it reads the records all the same, as a manifest that copies them is held against them.
    """

    rows: np.ndarray
    reads: bool

    def identity(self) -> dict[str, Any]:
        return {}

    def load(self, compute: Compute) -> "_MadeUpVectors":
        del compute
        return self

    def embed(self, records: Iterable[Any]) -> Iterator[Embedded]:
        for _ in records if self.reads else ():
            pass
        yield Embedded(np.arange(len(self.rows)), [""] * len(self.rows), self.rows, [])


def _unit_vectors(count: int, *, dimension: int) -> np.ndarray:
    """(count, dimension) float32 unit rows, three in ten of them near copies (cosine about 0.98) of another."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(count, dimension)).astype(np.float32)
    copies = np.flatnonzero(rng.random(count) < 0.3)
    rows[copies] = rows[rng.integers(0, count, len(copies))] + 0.2 * rows[copies]
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
