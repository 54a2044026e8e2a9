"""The pipeline's own stages on a few thousand made-up vectors, in a temporary store: what each takes of an item."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np

from semdedup_assets.records import Embedded
from semdedup_assets.settings import Clustering, TrainingSample
from semdedup_assets.sources.catalogue import Catalogue, Shard
from semdedup_assets.stages.assignments import FittedClusters, assign_shard
from semdedup_assets.stages.calibration import EncoderRate, as_embedded, timed, timed_again
from semdedup_assets.stages.centroids import fit_centroids
from semdedup_assets.stages.duplicate_scores import AssignedShards, score_bucket
from semdedup_assets.stages.item_counts import SourceFile, count_rows
from semdedup_assets.stages.keep_masks import select_items
from semdedup_assets.stages.manifest_formats import WRITERS, KeptShard
from semdedup_assets.stages.training_sample import draw_sample
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.files import FileStat, filesystem, is_local, write_bytes
from semdedup_assets.storage.results import writing
from semdedup_assets.storage.vectors import EmbeddingsWriter, write_skipped

VECTORS = 8192
"""Made-up vectors of a rehearsal."""

_LARGEST_CLUSTER = 4096
_CLUSTERS = 1024
_ITERATIONS = 3
_EPSILONS = 3
# Share of items that a manifest is taken to keep.
_KEPT = 0.8
_ANY: dict[str, str | int | float | bool] = {"string": "", "int": 0, "float": 0.0, "bool": False}


@dataclass(frozen=True, slots=True)
class LinearCosts:
    """What does not hang on k, for an item: seconds, and bytes.

    Attributes:
        write: seconds to write an embedding.
        draw: seconds to draw and write a vector of the sample.
        manifest: seconds to write all formats of a manifest, for an item of the source.
        embedding_bytes: of an embedding.
        manifest_bytes: of all formats of a manifest, for an item of the source.
    """

    write: float
    draw: float
    manifest: float
    embedding_bytes: float
    manifest_bytes: float


@dataclass(frozen=True, slots=True)
class ClusterCosts:
    """What hangs on the clusters' size.

    Attributes:
        assign: seconds an item, beside the products with the centroids.
        compare: seconds a comparison while scores are made.
        mask: seconds a comparison while the masks of one epsilon are made.
        score_bytes: of an item's score.
        mask_bytes: of an item's mask.
        kept: share of the made-up items that was kept.
    """

    assign: float
    compare: float
    mask: float
    score_bytes: float
    mask_bytes: float
    kept: float


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """A small pipeline like the real one.

    Attributes:
        work: it, at work.
        vectors: (n, d) float32, its items.
        result: seconds that an almost empty result takes, which are not counted to an item.
    """

    work: Work
    vectors: np.ndarray
    result: float

    def seconds(self, stage: float) -> float:
        """A stage's time beside that of an almost empty result."""
        return max(stage - self.result, stage / 10)


def rehearsed_clusters(items: int, *, cluster: float) -> int:
    """Clusters into which the made-up vectors are cut, so that they are as large as the real ones."""
    count = min(items, VECTORS)
    return max(1, min(_CLUSTERS, round(count / max(1.0, min(cluster, _LARGEST_CLUSTER)))))


@contextmanager
def rehearsal(work: Work, *, vectors: np.ndarray, clusters: Sequence[int], result: float) -> Iterator[Rehearsal]:
    """A small pipeline in a temporary store: on the store's own disk where that is local.

    Args:
        work: the pipeline at work.
        vectors: (n, d) float32, of unit norm.
        clusters: numbers of clusters that will be rehearsed.
        result: seconds that an almost empty result takes.
    """
    with tempfile.TemporaryDirectory(prefix=".rehearsal-", dir=_beside(work)) as folder:
        settings = {
            "store": folder,
            "training_sample": TrainingSample(size="all"),
            "clustering": Clustering(k=tuple(map(str, clusters)), iterations=_ITERATIONS, buckets=1),
        }
        small = Work(work.pipeline.model_copy(update=settings), work.compute)
        write_bytes(small.layout.catalogue, Catalogue((Shard(0, (FileStat("rehearsal-0", 0, ""),)),), 1).to_json())
        yield Rehearsal(small, vectors, result)


def _beside(work: Work) -> str | None:
    if not is_local(work.pipeline.store):
        return None
    folder = Path(filesystem(work.layout.estimate)[1]).parent
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def rehearse_items(small: Rehearsal, *, encoder: EncoderRate, files: Sequence[SourceFile]) -> LinearCosts:
    """Write embeddings, draw a sample and write a manifest, and time them.

    Args:
        small: where.
        encoder: what the model made of some real items.
        files: where these came from.
    """
    work, count = small.work, sum(len(batch.rows) for batch in encoder.embedded)
    real = Shard(1, (FileStat("rehearsal-1", 0, ""),))
    write = small.seconds(timed_again(lambda: _write_embeddings(work, real, encoder.embedded))) / count
    real_bytes = work.embeddings(real.name).files
    _write_embeddings(work, work.shards()[0], list(as_embedded(small.vectors, _columns(work))))
    draw = small.seconds(timed_again(lambda: draw_sample(work))) / len(small.vectors)
    manifest, manifest_bytes = _rehearse_manifest(small, real, count, files)
    return LinearCosts(
        write=write,
        draw=draw,
        manifest=manifest,
        embedding_bytes=real_bytes[f"{real.name}.arrow"] / count,
        manifest_bytes=manifest_bytes,
    )


def _columns(work: Work) -> dict[str, str | int | float | bool]:
    return {name: _ANY[kind] for name, kind in work.pipeline.source.column_types.items()}


def _write_embeddings(work: Work, shard: Shard, batches: Sequence[Embedded]) -> None:
    """The result of `embeddings`, of vectors that are there already."""
    path, items = work.layout.embeddings(shard.name), sum(len(batch.rows) for batch in batches)
    with writing(path, code_version=work.code_version("embeddings"), made_from={"shards": ""}) as result:
        with result.open(path) as stream:
            types = work.pipeline.source.column_types
            writer = EmbeddingsWriter(stream, shard.index, work.pipeline.vectors, types, None)
            first = 0
            for batch in batches:
                rows = np.arange(first, first + len(batch.rows))
                writer.write(Embedded(rows, batch.keys, batch.vectors, batch.columns, []))
                first += len(rows)
            writer.close()
        with result.open(work.layout.skipped(shard.name)) as stream:
            write_skipped(stream, [], shard=shard.index)
        result.details = {"items": items, "records": items}


def _rehearse_manifest(small: Rehearsal, shard: Shard, count: int, files: Sequence[SourceFile]) -> tuple[float, float]:
    """Seconds and bytes of all formats, for an item."""
    kept = KeptShard(shard, _as_listed(files, count), np.random.default_rng(0).random(count) < _KEPT)
    folder, formats = small.work.layout.manifest("rehearsal", "0", "0"), small.work.pipeline.manifests
    with writing(f"{folder}/manifest", code_version="", made_from={}) as result:
        seconds = timed(lambda: [WRITERS[name](small.work, [kept], folder, result) for name in formats])
    return small.seconds(seconds) / count, sum(result.files.values()) / count


def _as_listed(files: Sequence[SourceFile], count: int) -> list[list[str | int]]:
    """Files and their rows, as a recipe lists them, until they hold `count` items."""
    listed: list[list[str | int]] = []
    for file in files:
        rows = min(count, count_rows(file.begin))
        if rows:
            listed.append([file.path, rows])
            count -= rows
    return listed if count == 0 or not listed else [*listed[:-1], [listed[-1][0], int(listed[-1][1]) + count]]


def rehearse_clusters(small: Rehearsal, k: int, *, product: float) -> ClusterCosts:
    """Fit, assign, score and select, and time them.

    Args:
        small: where; its sample is drawn.
        k: clusters.
        product: seconds for a floating-point operation of the products with the centroids.
    """
    work, (n, d), name = small.work, small.vectors.shape, str(k)
    fit_centroids(work, name)
    fitted = FittedClusters(work, name)
    assigning = small.seconds(timed_again(lambda: assign_shard(work, work.shards()[0].name, clusters=fitted)))
    assigned = AssignedShards(work, name)
    scoring = small.seconds(timed_again(lambda: score_bucket(work, 0, assigned=assigned)))
    scores = work.scores(name, work.buckets[0])
    epsilons = _spread(work.pipeline.epsilons)
    masking = [
        small.seconds(timed_again(partial(select_items, work, epsilon, assigned=assigned))) for epsilon in epsilons
    ]
    masks = [work.masks(name, epsilon) for epsilon in epsilons]
    comparisons = int(scores.details["pairs_compared"]) + n
    return ClusterCosts(
        assign=max(assigning - 2 * n * k * d * product, assigning / 4) / n,
        compare=scoring / comparisons,
        mask=mean(masking) / comparisons,
        score_bytes=sum(scores.files.values()) / n,
        mask_bytes=mean(sum(mask.files.values()) for mask in masks) / n,
        kept=mean(mask.details["kept"] / n for mask in masks),
    )


def _spread(values: Sequence[str]) -> list[str]:
    places = np.unique(np.linspace(0, len(values) - 1, min(_EPSILONS, len(values))).round().astype(int))
    return [values[place] for place in places]
