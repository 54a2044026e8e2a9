"""Draw what the scores of one k tell: the paper's figures 3a to 3c, A7 and A8, each with its numbers beside it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from semdedup_assets.algorithm.sampling import id_hash
from semdedup_assets.algorithm.selection import keep_mask
from semdedup_assets.algorithm.similarity import score_clusters
from semdedup_assets.algorithm.unit_rows import as_tensor, row_cosine
from semdedup_assets.figures import plots
from semdedup_assets.stages.clusters import ClusterRun, bucket_runs
from semdedup_assets.stages.duplicate_scores import AssignedShards
from semdedup_assets.stages.keep_masks import resolve_epsilon
from semdedup_assets.stages.work import Work
from semdedup_assets.storage.files import read_bytes
from semdedup_assets.storage.results import Recipe, read_recipe
from semdedup_assets.storage.tables import read_table, read_tables, write_table

# Finer than a picture shows: some hundred epsilons for each power of ten.
_GRID = np.concatenate([[0.0], np.geomspace(1e-6, 2.0, 1500)])
_EDGES = np.linspace(-1.0, 1.0, 201)
# What only the vectors tell is told from so many of them at most (but one whole cluster at least), of few buckets:
# an object store gives buckets, not clusters.
_SAMPLE_ITEMS, _SAMPLE_BUCKETS, _SAMPLE_PAIRS = 1 << 18, 4, 1_000_000
_SEED = 0
_PAIRS_AT_ONCE = 1 << 14


def draw_figures(work: Work, k: str) -> Recipe:
    """Draw the pictures of one k (SemDeDup, Fig. 3, A7, A8), with their numbers as Parquet.

    What the scores tell is counted from all of them, bucket by bucket, and exact at every epsilon that is drawn.
    Whether an item has a later duplicate, and the similarities of pairs, they do not tell: those are counted on
    whole clusters, a seeded choice of them where there are many.

    Args:
        work: the pipeline at work.
        k: number of clusters, as the partition spells it.

    Raises:
        MissingResultError: a bucket is not scored, or was scored from other assignments than there are now.
    """
    work.measures.restart()
    assigned = AssignedShards(work, k)
    with work.measures.phase("count"):
        tally = _counted(work, assigned, _own_epsilons(work, k, assigned.scores))
    with work.measures.phase("compare"):
        sample = _sampled(work, assigned, tally)
    made_from = {"duplicate_scores": assigned.scores_version}
    with work.writing("figures", work.layout.figures(k), made_from=made_from) as result:
        subject = f"{work.pipeline.dataset}/{work.pipeline.model_name}, k={k}"
        for figure in work.measures.each("draw", _figures(tally, sample, subject)):
            with result.open(work.layout.figure(k, f"{figure.name}.png")) as stream:
                stream.write(figure.png)
            with result.open(work.layout.figure(k, f"{figure.name}.parquet")) as stream:
                write_table(stream, figure.numbers)
        result.details = _details(tally, sample)
    return result.recipe()


def read_figure(work: Work, k: str, name: str) -> bytes:
    """One file of the figures of a k.

    Args:
        work: the pipeline at work.
        k: number of clusters, as the partition spells it.
        name: one of `plots.TITLES` with a suffix, `.png` or `.parquet`.

    Raises:
        MissingResultError: they have not been drawn.
    """
    read_recipe(work.layout.figures(k), cure=work.cure("figures", k))
    return read_bytes(work.layout.figure(k, name))


def _own_epsilons(work: Work, k: str, scores: dict[str, Recipe]) -> dict[str, float]:
    """The pipeline's epsilons by name; of no items, no share can be kept."""
    items = sum(recipe.details["items"] for recipe in scores.values())
    wanted = [name for name in work.pipeline.epsilons if items or not name.startswith("keep=")]
    return {name: resolve_epsilon(work, k, name) for name in wanted}


class _ByEpsilon:
    """Counts the similarities that are no greater than 1 - epsilon, for all epsilons at once."""

    def __init__(self, epsilons: np.ndarray) -> None:
        """Count for (m,) ascending epsilons."""
        self._thresholds = (1.0 - epsilons)[::-1]
        self._counts = np.zeros(len(epsilons) + 1, dtype=np.int64)

    def add(self, similarity: np.ndarray) -> None:
        """Take in (n,) float32 similarities, -inf where there is no other item."""
        place = np.searchsorted(self._thresholds, similarity.astype(np.float64), side="left")
        self._counts += np.bincount(place, minlength=len(self._counts))

    @property
    def within(self) -> np.ndarray:
        """(m,) int64: how many are at most 1 - epsilon, for each epsilon."""
        return np.cumsum(self._counts[:-1])[::-1]


@dataclass
class _Tally:
    """What the scores of all items tell.

    Attributes:
        epsilons: the pipeline's own, by name.
        grid: (m,) all epsilons that are drawn, ascending.
        kept: of all items, by epsilon.
        sizes: (k,) items of each cluster.
        removed: (e, k) items removed at each of the pipeline's epsilons.
        similarity: (b,) items by greatest similarity to an earlier one.
    """

    epsilons: dict[str, float]
    grid: np.ndarray
    kept: _ByEpsilon
    sizes: np.ndarray
    removed: np.ndarray
    similarity: np.ndarray

    @classmethod
    def empty(cls, epsilons: dict[str, float], *, k: int) -> "_Tally":
        """Nothing counted yet."""
        grid = np.unique(np.concatenate([_GRID, list(epsilons.values())]))
        removed = np.zeros((len(epsilons), k), dtype=np.int64)
        return cls(
            epsilons, grid, _ByEpsilon(grid), np.zeros(k, dtype=np.int64), removed, np.zeros(len(_EDGES) - 1, np.int64)
        )

    def add(self, cluster: np.ndarray, similarity: np.ndarray) -> None:
        """Take in some rows of the scores: (n,) clusters, ascending, and (n,) greatest earlier similarities."""
        if len(cluster) == 0:
            return
        self.kept.add(similarity)
        self.similarity += _histogram(similarity)
        here = slice(int(cluster[0]), int(cluster[-1]) + 1)
        self.sizes[here] += np.bincount(cluster - here.start)
        for removed, epsilon in zip(self.removed, self.epsilons.values(), strict=True):
            gone = cluster[~keep_mask(similarity, epsilon)] - here.start
            removed[here] += np.bincount(gone, minlength=here.stop - here.start)

    @cached_property
    def items(self) -> int:
        """All items."""
        return int(self.sizes.sum())

    def marks(self, shares: np.ndarray) -> list[plots.Mark]:
        """The pipeline's epsilons, with the values there of a curve over the grid."""
        places = np.searchsorted(self.grid, list(self.epsilons.values()))
        named = zip(self.epsilons.items(), shares[places], strict=True)
        return [plots.Mark(name, epsilon, float(share)) for (name, epsilon), share in named]


def _histogram(similarity: np.ndarray) -> np.ndarray:
    """(b,) int64: finite similarities by bin; rounding may have put some beyond 1."""
    finite = similarity[np.isfinite(similarity)]
    return np.histogram(finite.clip(-1, 1), bins=_EDGES)[0]


def _counted(work: Work, assigned: AssignedShards, epsilons: dict[str, float]) -> _Tally:
    tally = _Tally.empty(epsilons, k=assigned.clusters.buckets[-1].stop)
    with work.progress(f"figures {assigned.k}", total=len(work.buckets), unit="buckets") as progress:
        for bucket in work.buckets:
            for part in read_tables(work.layout.scores(assigned.k, bucket), ["cluster", "similarity"]):
                tally.add(part["cluster"], part["similarity"])
            progress.advance(1)
    return tally


@dataclass
class _Sample:
    """What the vectors of some whole clusters tell.

    Attributes:
        clusters: the chosen ones, by bucket.
        lonely: of their items, by epsilon: those without another within it.
        pairs_there: pairs of items within the chosen clusters.
        pairs: (b,) pairs by similarity, all or a seeded choice of them.
        items: items of the chosen clusters.
    """

    clusters: dict[int, set[int]]
    lonely: _ByEpsilon
    pairs_there: int
    pairs: np.ndarray
    items: int = 0

    @property
    def cluster_indices(self) -> list[int]:
        """The chosen clusters, of all buckets."""
        return [cluster for clusters in self.clusters.values() for cluster in clusters]

    def add(self, run: ClusterRun, earlier: np.ndarray, *, vectors: Tensor, budget: int) -> None:
        """Take in some clusters with their items' greatest similarities to earlier ones."""
        # Seen from behind, what came later comes earlier.
        backwards = score_clusters(vectors.flip(0), len(vectors) - run.offsets[::-1], budget=budget)
        self.lonely.add(np.maximum(earlier, backwards.similarity[::-1]))
        left, right = self._chosen_pairs(run)
        for start in range(0, len(left), _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            self.pairs += _histogram(row_cosine(vectors[left[part]], vectors[right[part]]).cpu().numpy())
        self.items += len(vectors)

    def _chosen_pairs(self, run: ClusterRun) -> tuple[np.ndarray, np.ndarray]:
        """Rows of pairs within clusters: all, or of each cluster as many as its share of all pairs."""
        rate = min(1.0, _SAMPLE_PAIRS / max(1, self.pairs_there))
        chosen = []
        for index, size in enumerate(np.diff(run.offsets).tolist()):
            pairs = _all_pairs(size) if rate == 1 else _some_pairs(size, rate, cluster=run.first + index)
            chosen.append(pairs + run.offsets[index])
        left, right = np.concatenate(chosen, axis=1)
        return left, right


def _all_pairs(size: int) -> np.ndarray:
    """(2, p) int64."""
    return np.stack(np.triu_indices(size, k=1))


def _some_pairs(size: int, rate: float, *, cluster: int) -> np.ndarray:
    """(2, p) int64: pairs of different rows, drawn with replacement."""
    rng = np.random.default_rng([_SEED, cluster])
    # Rounded up as often as the fraction says, or small clusters would never give a pair.
    count = int(size * (size - 1) / 2 * rate + rng.random())
    left, right = rng.integers(size, size=count), rng.integers(max(1, size - 1), size=count)
    return np.stack([left, right + (right >= left)])


def _sampled(work: Work, assigned: AssignedShards, tally: _Tally) -> _Sample:
    chosen = _chosen_clusters(tally.sizes, assigned.clusters.buckets)
    sizes = tally.sizes[[cluster for clusters in chosen.values() for cluster in sorted(clusters)]]
    sample = _Sample(
        chosen, _ByEpsilon(tally.grid), int((sizes * (sizes - 1) // 2).sum()), np.zeros(len(_EDGES) - 1, np.int64)
    )
    with work.progress(f"figures {assigned.k}", total=int(sizes.sum()), unit="sampled items") as progress:
        for bucket, wanted in chosen.items():
            clusters = assigned.clusters.buckets[bucket]
            scores = read_table(work.layout.scores(assigned.k, work.buckets[bucket]), ["cluster", "similarity"])
            # Clusters one by one are slow to read where all are wanted.
            only = None if len(wanted) == np.count_nonzero(tally.sizes[clusters.start : clusters.stop]) else wanted
            for run in bucket_runs(work, assigned.k, bucket=bucket, clusters=clusters, only=only):
                start = int(np.searchsorted(scores["cluster"], run.first))
                earlier = scores["similarity"][start : start + len(run.ids)]
                vectors = as_tensor(run.vectors).to(work.compute.torch_device)
                sample.add(run, earlier, vectors=vectors, budget=work.compute.budget)
                progress.advance(len(run.ids))
    return sample


def _chosen_clusters(sizes: np.ndarray, buckets: list[range]) -> dict[int, set[int]]:
    """Whole clusters by bucket: all, or a seeded choice with few enough items."""
    filled = [index for index, clusters in enumerate(buckets) if sizes[clusters.start : clusters.stop].any()]
    order = np.argsort(id_hash(np.array(filled, dtype=np.uint64), seed=_SEED))
    opened = sorted(filled[place] for place in order[:_SAMPLE_BUCKETS])
    there = np.array([c for index in opened for c in buckets[index] if sizes[c]], dtype=np.int64)
    there = there[np.argsort(id_hash(there.astype(np.uint64), seed=_SEED))]
    most = max(1, int(np.searchsorted(np.cumsum(sizes[there]), _SAMPLE_ITEMS, side="right")))
    chosen = set(there[:most].tolist())
    return {index: found for index in opened if (found := chosen.intersection(buckets[index]))}


@dataclass(frozen=True, slots=True)
class _Figure:
    name: str
    png: bytes
    numbers: dict[str, np.ndarray]


def _figures(tally: _Tally, sample: _Sample, subject: str) -> Iterator[_Figure]:
    yield _kept_by_epsilon(tally, f"{subject}: all {tally.items:,} items, chain rule, exact at every epsilon")
    yield _duplicates_by_epsilon(tally, sample, f"{subject}: {_extent(tally, sample)}")
    yield _similarities(tally, sample, f"{subject}: {_pair_extent(sample)}")
    yield _removed_by_cluster_size(tally, f"{subject}: clusters alike in size, median and 10 to 90 %")
    clusters = f"{len(tally.sizes):,} clusters, {_empty(tally):,} empty"
    yield _cluster_sizes(tally, sample, f"{subject}: {tally.items:,} items, {clusters}")


def _share(counts: np.ndarray, items: int) -> np.ndarray:
    share: np.ndarray = counts / items if items else np.full(len(counts), np.nan)
    return share


def _with_duplicate(tally: _Tally, sample: _Sample) -> np.ndarray:
    """(m,) share of the sample's items that have another within each epsilon."""
    return _share(sample.items - sample.lonely.within, sample.items)


def _empty(tally: _Tally) -> int:
    return int((tally.sizes == 0).sum())


def _extent(tally: _Tally, sample: _Sample) -> str:
    if sample.items == tally.items:
        return f"all {tally.items:,} items, exact"
    return f"from {len(sample.cluster_indices):,} whole clusters, {sample.items:,} of {tally.items:,} items"


def _pair_extent(sample: _Sample) -> str:
    if sample.pairs.sum() == sample.pairs_there:
        return f"all pairs of {sample.items:,} items"
    return f"a choice among {sample.pairs_there:,} pairs"


def _kept_by_epsilon(tally: _Tally, note: str) -> _Figure:
    kept = tally.kept.within
    share = _share(kept, tally.items)
    png = plots.kept_by_epsilon(tally.grid, share, marks=tally.marks(share), note=note)
    return _Figure("kept_by_epsilon", png, {"epsilon": tally.grid, "kept": kept, "kept_fraction": share})


def _duplicates_by_epsilon(tally: _Tally, sample: _Sample, note: str) -> _Figure:
    share, removed = _with_duplicate(tally, sample), 1 - _share(tally.kept.within, tally.items)
    png = plots.duplicates_by_epsilon(tally.grid, share, removed=removed, marks=tally.marks(share), note=note)
    counts = sample.items - sample.lonely.within
    numbers = {"epsilon": tally.grid, "with_duplicate": counts, "with_duplicate_fraction": share}
    return _Figure("duplicates_by_epsilon", png, numbers)


def _similarities(tally: _Tally, sample: _Sample, note: str) -> _Figure:
    marks = tally.marks(_share(tally.kept.within, tally.items))
    png = plots.similarities(_EDGES, pairs=sample.pairs, items=tally.similarity, marks=marks, note=note)
    numbers = {"low": _EDGES[:-1], "high": _EDGES[1:], "pairs": sample.pairs, "items": tally.similarity}
    return _Figure("similarities", png, numbers)


def _removed_by_cluster_size(tally: _Tally, note: str) -> _Figure:
    marks = tally.marks(_share(tally.kept.within, tally.items))
    png = plots.removed_by_cluster_size(tally.sizes, tally.removed, marks=marks, note=note)
    by_epsilon = {f"removed_{name}": counts for name, counts in zip(tally.epsilons, tally.removed, strict=True)}
    return _Figure(
        "removed_by_cluster_size", png, {"cluster": np.arange(len(tally.sizes)), "items": tally.sizes, **by_epsilon}
    )


def _cluster_sizes(tally: _Tally, sample: _Sample, note: str) -> _Figure:
    order = np.argsort(-tally.sizes, kind="stable")
    png = plots.cluster_sizes(tally.sizes, note=note)
    numbers = {"cluster": order, "items": tally.sizes[order], "sampled": np.isin(order, sample.cluster_indices)}
    return _Figure("cluster_sizes", png, numbers)


def _details(tally: _Tally, sample: _Sample) -> dict[str, Any]:
    largest = int(tally.sizes.argmax())
    kept, duplicates = (
        tally.marks(shares) for shares in (_share(tally.kept.within, tally.items), _with_duplicate(tally, sample))
    )
    return {
        "items": tally.items,
        "clusters": len(tally.sizes),
        "empty_clusters": _empty(tally),
        "average_cluster_size": float(tally.sizes.mean()),
        "largest_cluster_size": int(tally.sizes[largest]),
        "largest_cluster": largest,
        "sampled_clusters": len(sample.cluster_indices),
        "sampled_items": sample.items,
        "sampled_pairs": int(sample.pairs.sum()),
        "by_epsilon": [
            {"epsilon": mark.name, "number": mark.epsilon, "kept": mark.share, "with_duplicate": other.share}
            for mark, other in zip(kept, duplicates, strict=True)
            if tally.items
        ],
    }
