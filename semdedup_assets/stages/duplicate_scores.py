"""Score the clusters of a bucket: the greatest similarity of each item to an earlier one."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from semdedup_assets.algorithm.sampling import CHECKSUM_MODULUS, id_checksum
from semdedup_assets.algorithm.selection import keep_mask
from semdedup_assets.algorithm.similarity import EarlierSimilarity, score_clusters
from semdedup_assets.algorithm.unit_rows import as_tensor
from semdedup_assets.stages.assignments import FittedClusters
from semdedup_assets.stages.clusters import ClusterRun, bucket_runs
from semdedup_assets.stages.work import Work, quantiles
from semdedup_assets.storage.results import MissingResultError, Recipe, fingerprint
from semdedup_assets.storage.tables import TableWriter

# Rows of a Parquet row group: large enough to compress well, small enough to be held a few times over.
_ROW_GROUP = 1 << 18


@dataclass(frozen=True)
class AssignedShards:
    """The assignments of all shards to one k, looked at once for many buckets."""

    work: Work
    k: str

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """The recipe of each shard's assignments.

        Raises:
            MissingResultError: a shard is not assigned yet.
        """
        shards = [shard.name for shard in self.work.shards()]
        # Of an object store each recipe is a wait and no work.
        with ThreadPoolExecutor(16) as pool:
            return dict(zip(shards, pool.map(partial(self.work.assignments, self.k), shards), strict=True))

    @cached_property
    def version(self) -> str:
        """One version for all of them."""
        return fingerprint({shard: recipe.version for shard, recipe in self.recipes.items()})

    @cached_property
    def scores(self) -> dict[str, Recipe]:
        """The recipe of each bucket's scores.

        Raises:
            MissingResultError: a bucket is not scored, or was scored from other assignments or with other settings.
        """
        recipes = {bucket: self.work.scores(self.k, bucket) for bucket in self.work.buckets}
        for bucket, recipe in recipes.items():
            same_settings = recipe.code_version == self.work.code_version("duplicate_scores")
            if recipe.made_from["assignments"] != self.version or not same_settings:
                what = "assignments" if same_settings else "settings"
                cure = self.work.cure("duplicate_scores", f"{bucket}|{self.k}")
                message = (
                    f"{self.work.layout.scores(self.k, bucket)}: made from other {what} than there are now; {cure}"
                )
                raise MissingResultError(message)
        return recipes

    @property
    def scores_version(self) -> str:
        """One version for all scores."""
        return fingerprint({bucket: recipe.version for bucket, recipe in self.scores.items()})

    @cached_property
    def clusters(self) -> FittedClusters:
        """What the shards are assigned to."""
        return FittedClusters(self.work, self.k)


def score_bucket(work: Work, bucket: int, *, assigned: AssignedShards) -> Recipe:
    """Score a bucket's clusters (SemDeDup, Alg. A7): one pass that serves every epsilon.

    Args:
        work: the pipeline at work.
        bucket: index of the bucket.
        assigned: the assignments of one k.

    Raises:
        MissingResultError: a shard is not assigned yet.
    """
    work.measures.restart()
    clusters = assigned.clusters.buckets[bucket]
    path = work.layout.scores(assigned.k, work.buckets[bucket])
    sizes: list[int] = []
    with work.writing("duplicate_scores", path, made_from={"assignments": assigned.version}) as result:
        with (
            result.open(path) as stream,
            TableWriter(stream) as table,
            work.progress(f"duplicate_scores {work.buckets[bucket]}", total=len(clusters), unit="clusters") as progress,
        ):
            rows = _RowGroups(table)
            read = bucket_runs(work, assigned.k, bucket=bucket, clusters=clusters)
            for run in work.measures.each("read", read):
                with work.measures.phase("compare"):
                    scores = _score(work, run)
                with work.measures.phase("write"):
                    rows.add(run, scores)
                found = np.diff(run.offsets)
                sizes += found[found > 0].tolist()
                progress.advance(len(found))
            rows.flush()
        result.details = _details(sizes, rows)
    return result.recipe()


def _score(work: Work, run: ClusterRun) -> EarlierSimilarity:
    vectors = as_tensor(run.vectors).to(work.compute.torch_device)
    return score_clusters(vectors, run.offsets, budget=work.compute.budget)


class _RowGroups:
    """Gathers the scores of clusters until they fill a row group."""

    def __init__(self, table: TableWriter) -> None:
        self._table = table
        self._parts: list[dict[str, np.ndarray]] = []
        self.duplicates: dict[str, int] = dict.fromkeys(("0.001", "0.01", "0.05", "0.1", "0.2"), 0)
        self.checksum = 0
        self.largest: dict[str, int] | None = None

    def add(self, run: ClusterRun, earlier: EarlierSimilarity) -> None:
        for epsilon in self.duplicates:
            self.duplicates[epsilon] += int((~keep_mask(earlier.similarity, float(epsilon))).sum())
        self.checksum = (self.checksum + id_checksum(run.ids)) % CHECKSUM_MODULUS
        self.largest = max(self.largest or {"items": 0}, _largest_cluster(run), key=lambda cluster: cluster["items"])
        self._parts.append(
            {
                "id": run.ids,
                "cluster": run.cluster,
                "centroid_similarity": run.centroid_similarity,
                "similarity": earlier.similarity,
                "duplicate_of": np.ma.masked_array(run.ids[earlier.position], mask=earlier.position < 0),
            }
        )
        if sum(len(part["id"]) for part in self._parts) >= _ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        if not self._parts:
            self._parts = [_no_rows()]
        self._table.write({name: _joined([part[name] for part in self._parts]) for name in self._parts[0]})
        self._parts = []


def _largest_cluster(run: ClusterRun) -> dict[str, int]:
    """The largest cluster of a run, and its item that is nearest to the centroid: the one to look at."""
    within = int(np.diff(run.offsets).argmax())
    start, stop = run.offsets[within : within + 2]
    item = run.ids[start:stop][run.centroid_similarity[start:stop].argmax()]
    return {"cluster": run.first + within, "items": int(stop - start), "item": int(item)}


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    if not isinstance(parts[0], np.ma.MaskedArray):
        return np.concatenate(parts)
    masks = [np.ma.getmaskarray(part) for part in parts]
    return np.ma.masked_array(np.concatenate([np.ma.getdata(part) for part in parts]), mask=np.concatenate(masks))


def _no_rows() -> dict[str, np.ndarray]:
    types = {"id": np.uint64, "cluster": np.int32, "centroid_similarity": np.float64, "similarity": np.float32}
    columns = {name: np.empty(0, dtype=dtype) for name, dtype in types.items()}
    return {**columns, "duplicate_of": np.ma.masked_array(np.empty(0, dtype=np.uint64), mask=np.empty(0, dtype=bool))}


def _details(sizes: list[int], rows: _RowGroups) -> dict[str, Any]:
    counts = np.array(sizes, dtype=np.int64)
    return {
        "items": int(counts.sum()),
        "id_checksum": rows.checksum,
        "clusters": len(sizes),
        "cluster_sizes": quantiles(counts),
        "largest_cluster": rows.largest,
        "pairs_compared": int((counts * (counts - 1) // 2).sum()),
        "duplicates_by_epsilon": rows.duplicates,
    }
