"""Compare what every k and seed keeps: by epsilon, and which items at equal sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from semdedup_assets.analyses.score_curves import ScoreCurve, epsilons_keeping
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import Progress
from semdedup_assets.execution.stage import ANALYSE, Column, Picture, Rows, Shown, Stage, Worker
from semdedup_assets.kept_sets import Clustering
from semdedup_assets.records import id_rows, positions_by_shard
from semdedup_assets.rendering import analysis_plots
from semdedup_assets.stages.duplicate_scores import repaired_input, scores_files
from semdedup_assets.storage.results import ResultRecord, StoredFile
from semdedup_assets.storage.tables import read_tables, write_table

INTERSECTIONS, KEPT_SETS, CURVES = "intersections.parquet", "kept_sets.parquet", "curves.parquet"
"""The tables by pair of clusterings, by clustering and size, and by clustering and epsilon, in the record."""

_PICTURES = {
    "kept_by_clustering": "Items kept by epsilon, for every k and seed",
    "kept_set_intersections": "Intersections of the kept sets of every k and seed",
}


@dataclass(frozen=True, slots=True)
class ClusteringScores:
    """The scores of one clustering, and the epsilons that keep each of the wanted shares of its items.

    Attributes:
        clustering: which.
        k: number of its clusters.
        files: the scores of each range.
        curve: what they keep.
        epsilons: (s,) ascending, for the shares in falling order.
    """

    clustering: Clustering
    k: int
    files: list[StoredFile]
    curve: ScoreCurve
    epsilons: np.ndarray


def _worker(context: StageContext) -> Worker:
    return lambda partition: compare_clusterings(context, partition)


def compare_clusterings(context: StageContext, partition: Partition) -> ResultRecord:
    """Compare what the pipeline's clusterings keep (SemDeDup, appendix A.1, Fig. A1 and A2).

    Args:
        context: of the pipeline and the selection.
        partition: the only one.

    Raises:
        MissingResultError: scores of a clustering are missing, or are made from other inputs than there are now.
    """
    shares = np.sort(context.pipeline.analyses.clustering_comparison.shares)[::-1]
    with context.writing("clustering_comparison", partition) as result:
        with usage.phase("solve"):
            found = [scores_of(context, clustering, shares) for clustering in context.pipeline.clusterings]
        with usage.phase("intersect"):
            both = kept_by_both(found, budget=context.compute.budget)
        with result.open(INTERSECTIONS) as stream:
            write_table(stream, _intersections(found, both, shares))
        with result.open(KEPT_SETS) as stream:
            write_table(stream, _kept_sets(found, both, shares))
        with result.open(CURVES) as stream:
            write_table(stream, _curves(found))
        for name, png in usage.each("draw", _drawn(context, found, both, shares)):
            with result.open(f"{name}.png") as stream:
                stream.write(png)
        result.details = _details(found, both, shares)
    return result.committed


def scores_of(context: StageContext, clustering: Clustering, shares: np.ndarray) -> ClusteringScores:
    """Read what a clustering keeps, and solve the epsilon of each size.

    Args:
        context: of the pipeline and the selection.
        clustering: which.
        shares: (s,) of its items to keep, in falling order.

    Raises:
        MissingResultError: its scores are missing, or are made from other inputs than there are now.
    """
    files = scores_files(context, clustering)
    k = int(context.index.require("centroids", Partition(clustering=clustering)).details["k"])
    return ClusteringScores(clustering, k, files, ScoreCurve.of(files), epsilons_keeping(files, shares.tolist()))


def kept_by_both(found: Sequence[ClusteringScores], *, budget: int) -> np.ndarray:
    """How many items each two clusterings keep both, at each size.

    Memory holds one byte for each clustering and item of some shards: so many shards as fit the budget, but at least
    one. The scores are read once for each such group.

    Args:
        found: c clusterings of the same items, each with s epsilons.
        budget: bytes.

    Returns:
        (c, c, s) int64; on the diagonal the sizes of the kept sets.
    """
    from semdedup_assets.algorithm.kept_set_overlap import kept_together

    sets = len(found[0].epsilons)
    both = np.zeros((len(found), len(found), sets), dtype=np.int64)
    rows = _rows_by_shard(found[0].files)
    with Progress("clustering_comparison", total=len(rows), unit="shards") as progress:
        for shards in _groups(rows, most=budget // len(found)):
            kept = [_sets_by_shard(each, {shard: rows[shard] for shard in shards}) for each in found]
            for first, second in combinations_with_replacement(range(len(found)), 2):
                for shard in shards:
                    both[first, second] += kept_together(kept[first][shard], kept[second][shard], sets=sets)
                both[second, first] = both[first, second]
            progress.advance(len(shards))
    return both


def _rows_by_shard(files: Sequence[StoredFile]) -> dict[int, int]:
    """How many rows each shard must have for all of its scored items, by the shard's index."""
    rows: dict[int, int] = {}
    for file in files:
        for part in read_tables(file, ["id"]):
            row = id_rows(part["id"])
            for shard, positions in positions_by_shard(part["id"]):
                rows[shard] = max(rows.get(shard, 0), int(row[positions].max()) + 1)
    return rows


def _groups(rows: dict[int, int], *, most: int) -> Iterator[list[int]]:
    """Shards whose rows are together at most so many; a larger one is a group of its own."""
    group: list[int] = []
    for shard in sorted(rows):
        if group and sum(rows[each] for each in group) + rows[shard] > most:
            yield group
            group = []
        group.append(shard)
    if group:
        yield group


def _sets_by_shard(scores: ClusteringScores, rows: dict[int, int]) -> dict[int, np.ndarray]:
    """In how many of the kept sets each item of some shards is, by row; 0 where there is no item."""
    from semdedup_assets.algorithm.kept_set_overlap import sets_kept_in

    found = {shard: np.zeros(count, dtype=np.uint8) for shard, count in rows.items()}
    for file in scores.files:
        for part in read_tables(file, ["id", "similarity"]):
            sets, row = sets_kept_in(part["similarity"], scores.epsilons), id_rows(part["id"])
            for shard, positions in positions_by_shard(part["id"]):
                if shard in found:
                    found[shard][row[positions]] = sets[positions]
    return found


def _intersections(found: Sequence[ClusteringScores], both: np.ndarray, shares: np.ndarray) -> dict[str, np.ndarray]:
    """One row for each size and ordered pair of clusterings."""
    size, first, second = (index.ravel() for index in np.indices((len(shares), len(found), len(found))))
    names = np.array([str(each.clustering) for each in found])
    kept, together = both[first, first, size], both[first, second, size]
    return {
        "share": shares[size],
        "clustering": names[first],
        "other": names[second],
        "kept": kept,
        "other_kept": both[second, second, size],
        "kept_by_both": together,
        "intersection": _ratio(together, kept),
        "by_chance": _ratio(both[second, second, size], np.full(len(size), found[0].curve.items)),
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """(n,) float64, masked where the whole is nothing."""
    return np.ma.masked_array(part / np.maximum(whole, 1), mask=whole == 0)


def _kept_sets(found: Sequence[ClusteringScores], both: np.ndarray, shares: np.ndarray) -> dict[str, np.ndarray]:
    """One row for each clustering and size."""
    index, size = (each.ravel() for each in np.indices((len(found), len(shares))))
    kept = both[index, index, size]
    return {
        "clustering": np.array([str(each.clustering) for each in found])[index],
        "share": shares[size],
        "epsilon": np.ma.masked_invalid(np.concatenate([each.epsilons for each in found])),
        "kept": kept,
        "kept_fraction": _ratio(kept, np.full(len(kept), found[0].curve.items)),
    }


def _curves(found: Sequence[ClusteringScores]) -> dict[str, np.ndarray]:
    """One row for each clustering and epsilon."""
    points = len(found[0].curve.epsilon)
    return {
        "clustering": np.repeat([str(each.clustering) for each in found], points),
        "k": np.repeat([each.k for each in found], points),
        "seed": np.repeat([each.clustering.seed for each in found], points),
        "epsilon": np.concatenate([each.curve.epsilon for each in found]),
        "kept": np.ma.masked_invalid(np.concatenate([each.curve.kept for each in found])),
    }


def _drawn(
    context: StageContext, found: Sequence[ClusteringScores], both: np.ndarray, shares: np.ndarray
) -> Iterator[tuple[str, bytes]]:
    note = (
        f"{context.pipeline.dataset}/{context.pipeline.model_name} · {context.selection.label}, "
        f"{found[0].curve.items:,} items"
    )
    groups = {k: index for index, k in enumerate(sorted({each.k for each in found}))}
    curves = [analysis_plots.KeptCurve(_label(each), groups[each.k], each.curve.kept) for each in found]
    yield "kept_by_clustering", analysis_plots.kept_by_clustering(found[0].curve.epsilon, curves, note=note)
    sizes = both.diagonal().T  # (c, s)
    matrices = [
        analysis_plots.IntersectionMatrix(
            f"keep {100 * share:g} %",
            np.where(sizes[:, index, None] > 0, both[:, :, index], np.nan) / np.maximum(sizes[:, index, None], 1),
        )
        for index, share in enumerate(shares.tolist())
    ]
    note = f"{note}; of each row's set, the share that the column's has too, by k (and seed)"
    yield (
        "kept_set_intersections",
        analysis_plots.kept_set_intersections([_short_label(each) for each in found], matrices, note=note),
    )


def _label(scores: ClusteringScores) -> str:
    seed = scores.clustering.seed
    return f"k = {scores.k:,}" + (f", seed {seed}" if seed else "")


def _short_label(scores: ClusteringScores) -> str:
    k = f"{scores.k // 1000}k" if scores.k % 1000 == 0 else str(scores.k)
    return f"{k} ({scores.clustering.seed})" if scores.clustering.seed else k


def _details(found: Sequence[ClusteringScores], both: np.ndarray, shares: np.ndarray) -> dict[str, Any]:
    items = found[0].curve.items
    sizes = both.diagonal().T
    others = ~np.eye(len(found), dtype=bool)
    return {
        "items": items,
        "straightness": {str(each.clustering): each.curve.straightness(each.epsilons) for each in found},
        "by_share": [
            {
                "share": share,
                "kept_least": int(sizes[:, index].min()),
                "kept_most": int(sizes[:, index].max()),
                "least": float((both[:, :, index] / sizes[:, index, None])[others].min())
                if items and others.any()
                else None,
                "mean": float((both[:, :, index] / sizes[:, index, None])[others].mean())
                if items and others.any()
                else None,
            }
            for index, share in enumerate(shares.tolist())
        ],
    }


def _shown(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    items = record.details["items"]
    rows = [
        {
            "wanted": f"{row['share']:.0%}",
            "kept": f"{row['kept_least']:,} to {row['kept_most']:,}",
            "kept share": f"{row['kept_least'] / items:.1%} to {row['kept_most'] / items:.1%}",
            "least intersection": "–" if row["least"] is None else f"{row['least']:.1%}",
            "mean intersection": "–" if row["mean"] is None else f"{row['mean']:.1%}",
        }
        for row in record.details["by_share"]
        if items
    ]
    shown: dict[str, Shown] = {
        name: Picture(record.file(f"{name}.png").content(), title) for name, title in _PICTURES.items()
    }
    return {**shown, "by_share": Rows(rows)} if rows else shown


STAGE = Stage(
    name="clustering_comparison",
    step=ANALYSE,
    description="How much the choice of k and seed matters (SemDeDup, appendix A.1, Fig. A1 and A2): the share kept by "
    "epsilon for every k and seed, and how much of each kept set the others keep too at equal sizes. Of the chain rule. "
    "Ties may make sets larger than wanted: the sizes are in the table.",
    dimensions=(),
    inputs=("duplicate_scores",),
    optional_inputs=repaired_input,
    settings=lambda context: {
        "clusterings": sorted(map(str, context.pipeline.clusterings)),
        "shares": sorted(context.pipeline.analyses.clustering_comparison.shares),
    },
    location=lambda layout, _, selection: layout.of_all_clusterings(selection, "clustering_comparison"),
    worker=_worker,
    kinds=frozenset({"matplotlib", "parquet"}),
    columns=lambda _: (
        Column("share", "float64", "Wanted share of the items; the sets are solved for it, each with its own epsilon."),
        Column("clustering", "string", "A clustering A, as in partition keys."),
        Column("other", "string", "A clustering B."),
        Column("kept", "int64", "Items that A keeps: more than wanted where ties force it."),
        Column("other_kept", "int64", "Items that B keeps."),
        Column("kept_by_both", "int64", "Items that both keep."),
        Column("intersection", "float64", "`kept_by_both` / `kept`; null without items."),
        Column(
            "by_chance", "float64", "What it would be for sets drawn at random: the share of all items that B keeps."
        ),
    ),
    shown=_shown,
    selected=True,
    on_demand=True,
    pool="cpu",
    unit="comparisons",
)
