"""Count what random subsamples of a dataset lose, and extrapolate to more items than there are."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.analyses.epsilon_estimates import number
from semdedup_assets.analyses.table_rows import columns_of, row_of
from semdedup_assets.execution import usage
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.progress import Progress
from semdedup_assets.execution.stage import ANALYSE, Column, Picture, Rows, Shown, Stage, Worker
from semdedup_assets.kept_sets import Selection, Target
from semdedup_assets.rendering import analysis_plots
from semdedup_assets.stages.duplicate_scores import repaired_input, scores_files
from semdedup_assets.stages.keep_masks import solved_epsilon
from semdedup_assets.storage.results import ResultRecord, StoredFile
from semdedup_assets.storage.tables import read_tables, write_table

if TYPE_CHECKING:
    from semdedup_assets.algorithm.redundancy_curve import SizeLaw, SubsampleCounts

SUBSAMPLES, FITS, EXTRAPOLATED, PICTURE = (
    "subsamples.parquet",
    "fits.parquet",
    "extrapolated.parquet",
    "redundancy_by_size.png",
)
"""The tables by subsample and epsilon, by target, and by target and size, and the picture, in the record."""

_TITLE = "Share removed, by number of items"
_TIMES = (2, 5, 10)
_WARNING = (
    "The clusters are those of the whole dataset. With more items at the same k they grow; centroids fitted to a "
    "subsample, or a k that grows with the items, would give other shares. Beyond the items there are it is extrapolated."
)


@dataclass(frozen=True, slots=True)
class Fit:
    """The law fitted for one target; NaN where too few items were removed, or kept, to fit one.

    Attributes:
        target: of the pipeline.
        epsilon: its number.
        removed_share: of the whole dataset.
        slope: of the law.
        half_items: number of items of which half would be removed.
        residual_rms: of the fitted shares.
        residual_max: greatest of them.
        error_from_half: predicted less measured share, fitted to half of the dataset and less.
        error_from_quarter: fitted to a quarter of the dataset and less.
    """

    target: str
    epsilon: float
    removed_share: float
    slope: float
    half_items: float
    residual_rms: float
    residual_max: float
    error_from_half: float
    error_from_quarter: float


@dataclass(frozen=True)
class _Counted:
    """What the subsamples lose, and the law of each target.

    Attributes:
        targets: the pipeline's, each with its number.
        epsilons: (e,) ascending, all that are counted.
        items: (m,) of each subsample, ascending.
        removed: (m, e) items.
    """

    targets: dict[str, float]
    epsilons: np.ndarray
    items: np.ndarray
    removed: np.ndarray

    def of(self, epsilon: float) -> np.ndarray:
        """(m,) items removed at one of the epsilons."""
        found: np.ndarray = self.removed[:, np.searchsorted(self.epsilons, epsilon)]
        return found

    def law(self, epsilon: float) -> "SizeLaw | None":
        from semdedup_assets.algorithm.redundancy_curve import fit_size_law

        return fit_size_law(self.items, self.of(epsilon))

    def removed_share(self, epsilon: float) -> float:
        return float(self.of(epsilon)[-1] / self.items[-1]) if self.items[-1] else float("nan")


def _worker(context: StageContext) -> Worker:
    return lambda partition: count_subsamples(context, partition)


def count_subsamples(context: StageContext, partition: Partition) -> ResultRecord:
    """Count what random subsamples lose at every epsilon, and fit how that grows with the number of items.

    Args:
        context: of the pipeline and a selection that keeps at `random`.
        partition: a clustering.

    Raises:
        MissingResultError: scores are missing, or are made from other inputs than there are now.
    """
    with context.writing("redundancy_by_size", partition) as result:
        scores = scores_files(context, partition.required_clustering)
        targets = {str(each): solved_epsilon(each, scores, budget=context.compute.budget) for each in _targets(context)}
        with usage.phase("count"):
            counted = _count(context, scores, targets)
        fits = [_fit(counted, name, epsilon) for name, epsilon in targets.items()]
        extrapolated = _extrapolated(context, counted)
        with result.open(SUBSAMPLES) as stream:
            write_table(stream, _subsamples(counted))
        with result.open(FITS) as stream:
            write_table(stream, columns_of(fits))
        with result.open(EXTRAPOLATED) as stream:
            write_table(stream, extrapolated)
        with usage.phase("draw"), result.open(PICTURE) as stream:
            stream.write(_drawn(context, partition, counted, int(extrapolated["items"].max(initial=1))))
        result.details = {
            "items": int(counted.items[-1]),
            "subsamples": counted.items.tolist(),
            "fits": [row_of(fit) for fit in fits],
            "extrapolated": [
                row_of(dict(zip(extrapolated, values, strict=True)))
                for values in zip(*(column.tolist() for column in extrapolated.values()), strict=True)
            ],
            "warning": _WARNING,
        }
    return result.committed


def _targets(context: StageContext) -> list[Target]:
    return sorted(context.pipeline.targets)


def _count(context: StageContext, scores: list[StoredFile], targets: dict[str, float]) -> _Counted:
    from semdedup_assets.algorithm.epsilon_curves import EPSILON_GRID
    from semdedup_assets.algorithm.redundancy_curve import SubsampleCounts

    epsilons = np.unique(np.concatenate([EPSILON_GRID, list(targets.values())]))
    halvings = context.pipeline.analyses.redundancy_by_size.halvings
    counts = SubsampleCounts(epsilons, halvings=halvings, seed=context.selection.seed)
    with Progress("redundancy_by_size", total=len(scores), unit="ranges") as progress:
        for file in scores:
            _add(counts, file)
            progress.advance()
    return _Counted(targets, epsilons, counts.items, counts.removed)


def _add(counts: "SubsampleCounts", file: StoredFile) -> None:
    for part in read_tables(file, ["id", "similarity"]):
        counts.add(part["id"], part["similarity"])


def _fit(counted: _Counted, target: str, epsilon: float) -> Fit:
    from semdedup_assets.algorithm.redundancy_curve import extrapolation_error

    items, removed, law, nan = counted.items, counted.of(epsilon), counted.law(epsilon), float("nan")
    errors = [extrapolation_error(items, removed, halvings=halvings) for halvings in (1, 2)]
    share = counted.removed_share(epsilon)
    if law is None:
        return Fit(target, epsilon, share, nan, nan, nan, nan, errors[0], errors[1])
    there = items > 0
    residual = law.removed(items[there]) - removed[there] / items[there]
    rms, greatest = float(np.sqrt((residual**2).mean())), float(np.abs(residual).max())
    return Fit(target, epsilon, share, law.slope, float(np.exp(min(law.log_half, 700.0))), rms, greatest, *errors)


def _subsamples(counted: _Counted) -> dict[str, np.ndarray]:
    """One row for each subsample and epsilon."""
    many = len(counted.epsilons)
    items, removed = np.repeat(counted.items, many), counted.removed.ravel()
    return {
        "items": items,
        "epsilon": np.tile(counted.epsilons, len(counted.items)),
        "removed": removed,
        "removed_share": np.ma.masked_array(removed / np.maximum(items, 1), mask=items == 0),
    }


def _extrapolated(context: StageContext, counted: _Counted) -> dict[str, np.ndarray]:
    """One row for each target and size."""
    there = int(counted.items[-1])
    sizes = context.pipeline.analyses.redundancy_by_size.sizes or tuple(times * there for times in _TIMES)
    wanted = np.array(sizes if there else [], dtype=np.int64)
    laws = [counted.law(epsilon) for epsilon in counted.targets.values()]
    shares = [np.full(len(wanted), np.nan) if law is None else law.removed(wanted) for law in laws]
    return {
        "target": np.repeat(np.array(list(counted.targets)), len(wanted)),
        "epsilon": np.repeat(list(counted.targets.values()), len(wanted)),
        "items": np.tile(wanted, len(laws)),
        "removed_share": np.ma.masked_invalid(np.concatenate(shares)),
    }


def _drawn(context: StageContext, partition: Partition, counted: _Counted, most: int) -> bytes:
    items = int(counted.items[-1])
    note = (
        f"{context.pipeline.dataset}/{context.pipeline.model_name}, {partition.required_clustering.label} · "
        f"{context.selection.label}; clusters are those of all {items:,} items, in every subsample and beyond"
    )
    return analysis_plots.redundancy_by_size(list(_curves(counted, max(most, items))), items=items, note=note)


def _curves(counted: _Counted, most: int) -> Iterator[analysis_plots.SizeCurve]:
    there = counted.items > 0
    items = counted.items[there]
    if len(items) == 0:
        return
    fitted_items = np.unique(np.concatenate([np.geomspace(items[0], most, 200), items[-1:]]))
    for name, epsilon in counted.targets.items():
        law = counted.law(epsilon)
        fitted = np.full(len(fitted_items), np.nan) if law is None else law.removed(fitted_items)
        label = name if Target.parse(name).share is None else f"{name} ({epsilon:.3g})"
        yield analysis_plots.SizeCurve(label, items, counted.of(epsilon)[there] / items, fitted_items, fitted)


def _shown(_: StageContext, __: Partition, record: ResultRecord) -> dict[str, Shown]:
    rows = [
        {
            "target": fit["target"],
            "epsilon": number(fit["epsilon"]),
            "removed": _percent(fit["removed_share"]),
            "greatest residual": _percent(fit["residual_max"]),
            "error at 2 × the items": _percent(fit["error_from_half"]),
            "error at 4 ×": _percent(fit["error_from_quarter"]),
        }
        for fit in record.details["fits"]
    ]
    extrapolated: dict[str, dict[str, str]] = {}
    for row in record.details["extrapolated"]:
        shares = extrapolated.setdefault(row["target"], {"target": row["target"]})
        shares[f"removed of {row['items']:,}"] = _percent(row["removed_share"])
    return {
        "redundancy_by_size": Picture(record.file(PICTURE).content(), _TITLE),
        "fits": Rows(rows),
        "extrapolated": Rows(list(extrapolated.values())),
        "warning": _WARNING,
    }


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"


def _keeps_at_random(_: Any, selection: Selection) -> bool:
    # The name of an order that anything else takes part in is another one.
    return selection.keep_order == f"random-seed{selection.seed}"


STAGE = Stage(
    name="redundancy_by_size",
    step=ANALYSE,
    description="The share that is removed from random subsamples of the dataset, at every epsilon and exactly, from the "
    "scores of all items; a law fitted to it, n^slope / (n^slope + half^slope), and what it says of more items. Of "
    "selections with keep: random, and of the chain rule: there an item's score depends on items of smaller random "
    "priority alone, and those with the smallest ones are a uniform subsample. " + _WARNING,
    dimensions=("k",),
    inputs=("duplicate_scores",),
    optional_inputs=repaired_input,
    settings=lambda context: {
        "epsilons": [str(each) for each in _targets(context)],
        **context.pipeline.analyses.redundancy_by_size.model_dump(mode="json"),
    },
    location=lambda layout, partition, selection: layout.of_selection(
        partition.required_clustering, selection, "redundancy_by_size"
    ),
    worker=_worker,
    kinds=frozenset({"matplotlib", "parquet"}),
    columns=lambda _: (
        Column("items", "int64", "Items of a random subsample, or of the whole dataset."),
        Column("epsilon", "float64", "Epsilon; the pipeline's own are among them."),
        Column("removed", "int64", "Items of the subsample that are removed."),
        Column("removed_share", "float64", "The same as a share; null where the subsample has no items."),
    ),
    shown=_shown,
    selected=True,
    on_demand=True,
    applies=_keeps_at_random,
    pool="cpu",
    unit="clusterings",
)
