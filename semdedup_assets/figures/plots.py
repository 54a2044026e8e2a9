"""What was found, in numbers: the paper's figures, each small enough to lie in a run's log."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "kept_by_epsilon": "Items kept, by epsilon",
    "duplicates_by_epsilon": "Items with at least one duplicate, by epsilon",
    "similarities": "Similarities within clusters",
    "removed_by_cluster_size": "Share removed, by cluster size",
    "cluster_sizes": "Cluster sizes",
}
"""The pictures of one k, and what stands above them."""

# 600 pixels are what Dagster's dialog shows without scaling.
_WIDTH, _HEIGHT, _DPI = 600, 380, 100
_INK, _GREY, _LIGHT, _BLUE, _ORANGE = "#222222", "#6b6b6b", "#e3e3e3", "#2b6cb0", "#c05621"
# Points of text, and characters that fit beside each other.
_TEXT, _LINE = 9, 78
Colour = tuple[float, float, float, float]
# The paper's epsilons begin at 0.00095; above 1 even unrelated items would be duplicates.
_LEAST_EPSILON, _MOST_EPSILON = 1e-4, 1.0
# More of a pipeline's epsilons than these would hide each other.
_MOST_MARKS, _MOST_BANDS = 10, 6
# Clusters beyond these many are told by their median and quantiles alone.
_MOST_POINTS = 1500


@dataclass(frozen=True, slots=True)
class Mark:
    """One of the pipeline's own epsilons, marked in a picture.

    Attributes:
        name: as the pipeline spells it: `0.05` or `keep=50%`.
        epsilon: the number it stands for.
        share: the curve's value there, in [0, 1].
    """

    name: str
    epsilon: float
    share: float


def kept_by_epsilon(epsilon: np.ndarray, kept: np.ndarray, *, marks: Sequence[Mark], note: str) -> bytes:
    """Draw the share of items that are kept against epsilon (SemDeDup, Fig. 3a).

    Args:
        epsilon: (m,) ascending.
        kept: (m,) share of items kept at each, in [0, 1]; NaN where there are no items.
        marks: the pipeline's own epsilons.
        note: a line below the title.

    Returns:
        PNG.
    """
    figure, axes = _picture(TITLES["kept_by_epsilon"], note)
    _epsilon_axis(axes, marks)
    _share_axis(axes, "items kept")
    if np.isfinite(kept).any():
        axes.plot(epsilon, kept, color=_BLUE, linewidth=1.8)
        _draw_marks(axes, marks, said="kept")
        _legend(axes)
    else:
        _say_nothing(axes)
    return _png(figure)


def duplicates_by_epsilon(
    epsilon: np.ndarray, with_duplicate: np.ndarray, *, removed: np.ndarray, marks: Sequence[Mark], note: str
) -> bytes:
    """Draw the share of items that have a duplicate within epsilon (SemDeDup, Fig. 3b).

    Args:
        epsilon: (m,) ascending.
        with_duplicate: (m,) share of items with another of their cluster within each; NaN where there are no items.
        removed: (m,) share of items removed at each, for comparison.
        marks: the pipeline's own epsilons.
        note: a line below the title.

    Returns:
        PNG.
    """
    figure, axes = _picture(TITLES["duplicates_by_epsilon"], note)
    _epsilon_axis(axes, marks)
    _share_axis(axes, "items")
    if np.isfinite(with_duplicate).any():
        axes.plot(epsilon, with_duplicate, color=_BLUE, linewidth=1.8, label="with a duplicate")
        axes.plot(epsilon, removed, color=_GREY, linewidth=1.2, linestyle="--", label="removed, of all items")
        _draw_marks(axes, marks, said="with a duplicate")
        _legend(axes)
    else:
        _say_nothing(axes)
    return _png(figure)


def similarities(edges: np.ndarray, *, pairs: np.ndarray, items: np.ndarray, marks: Sequence[Mark], note: str) -> bytes:
    """Draw the similarities of pairs within clusters (SemDeDup, Fig. 3c), and of items to their nearest earlier one.

    Args:
        edges: (b + 1,) of the bins, in [-1, 1].
        pairs: (b,) pairs by similarity.
        items: (b,) items by greatest similarity to an earlier one.
        marks: the pipeline's own epsilons.
        note: a line below the title.

    Returns:
        PNG.
    """
    figure, axes = _picture(TITLES["similarities"], note)
    axes.set_xlabel("cosine similarity", fontsize=_TEXT, color=_INK)
    _share_axis(axes, f"share in each {edges[1] - edges[0]:.2g}", whole=False)
    found = np.flatnonzero(pairs + items)
    if len(found) == 0:
        _say_nothing(axes)
        return _png(figure)
    named = (("pairs within clusters", pairs, _GREY), ("items and their nearest earlier ones", items, _BLUE))
    for name, counts, colour in named:
        share = counts / max(1, int(counts.sum()))
        axes.stairs(share, edges, color=colour, fill=True, alpha=0.25)
        axes.stairs(share, edges, color=colour, linewidth=1.2, label=f"{name} ({int(counts.sum()):,})")
    for index, mark in enumerate(marks):
        # One entry in the legend stands for all.
        label = "thresholds 1 − epsilon" if index == 0 else "_"
        axes.axvline(1 - mark.epsilon, color=_ORANGE, linewidth=1, linestyle=":", label=label)
    left = min([edges[found[0]], 0.9, *(1 - mark.epsilon for mark in marks)])
    axes.set_xlim(max(-1.0, left - 0.02), 1.01)
    # Room for the legend.
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
    _legend(axes)
    return _png(figure)


def removed_by_cluster_size(sizes: np.ndarray, removed: np.ndarray, *, marks: Sequence[Mark], note: str) -> bytes:
    """Draw the share that clusters lose against their size (SemDeDup, Fig. A7): median and 10 to 90 %.

    Args:
        sizes: (k,) items of each cluster.
        removed: (e, k) items removed at each marked epsilon.
        marks: the pipeline's own e epsilons; of many, some are drawn.
        note: a line below the title.

    Returns:
        PNG.
    """
    figure, axes = _picture(TITLES["removed_by_cluster_size"], note)
    axes.set_xlabel("items in the cluster", fontsize=_TEXT, color=_INK)
    _share_axis(axes, "items removed")
    there = sizes > 0
    if not there.any() or not marks:
        _say_nothing(axes)
        return _png(figure)
    _log_counts(axes, "x", sizes[there])
    points = int(there.sum()) * min(len(marks), _MOST_BANDS) <= _MOST_POINTS
    for mark, colour in _coloured(marks, most=_MOST_BANDS):
        share = removed[list(marks).index(mark), there] / sizes[there]
        if points:
            axes.scatter(sizes[there], share, color=colour, s=8, alpha=0.35, linewidths=0)
        _draw_band(axes, sizes[there], share, colour=colour, label=_named(mark))
    _legend(axes, title="epsilon")
    return _png(figure)


def cluster_sizes(sizes: np.ndarray, *, note: str) -> bytes:
    """Draw the sizes of all clusters, largest first (SemDeDup, Fig. A8).

    Args:
        sizes: (k,) items of each cluster.
        note: a line below the title.

    Returns:
        PNG.
    """
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    figure, axes = _picture(TITLES["cluster_sizes"], note)
    axes.set_xlabel("clusters, largest first", fontsize=_TEXT, color=_INK)
    axes.set_ylabel("items", fontsize=_TEXT, color=_INK)
    ordered = np.sort(sizes[sizes > 0])[::-1]
    if len(ordered) == 0:
        _say_nothing(axes)
        return _png(figure)
    # A step for each cluster, but no more of them than there are pixels.
    shown = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), 2 * _WIDTH)).round().astype(np.int64))
    axes.stairs(ordered[shown], np.append(shown, len(ordered)), color=_BLUE, linewidth=1.6)
    axes.stairs(ordered[shown], np.append(shown, len(ordered)), color=_BLUE, fill=True, alpha=0.15)
    _log_counts(axes, "y", ordered)
    axes.set_xlim(0, len(ordered))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    average = float(sizes.mean())
    axes.axhline(average, color=_ORANGE, linewidth=1, linestyle="--")
    _annotate(axes, f"average {average:,.1f}", average, colour=_ORANGE, right=True)
    said = f"largest {int(ordered[0]):,}, {ordered[0] / average:,.1f} × the average"
    _annotate(axes, said, float(ordered[0]), colour=_INK)
    return _png(figure)


def convergence(objective: Sequence[float], *, title: str) -> bytes:
    """Draw the objective of k-means by iteration.

    Args:
        objective: mean similarity of the sampled items to their centroids, after each iteration.
        title: what was fitted.

    Returns:
        PNG.
    """
    from matplotlib.ticker import MaxNLocator

    values = np.asarray(objective, dtype=np.float64)
    note = f"after {len(values):,} iterations {values[-1]:.4f}" if len(values) else "no iterations"
    figure, axes = _picture(title, note)
    axes.set_xlabel("iteration", fontsize=_TEXT, color=_INK)
    axes.set_ylabel("mean similarity to the centroid", fontsize=_TEXT, color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.set_xlim(0.5, max(len(values), 1) + 0.5)
    if len(values) == 0:
        _say_nothing(axes, "no iterations")
        return _png(figure)
    axes.ticklabel_format(axis="y", useOffset=False)
    marker = "o" if len(values) <= 24 else None
    axes.plot(np.arange(1, len(values) + 1), values, color=_BLUE, linewidth=1.8, marker=marker, markersize=4)
    return _png(figure)


def _picture(title: str, note: str) -> tuple["Figure", "Axes"]:
    """A picture with one set of axes; what is drawn never touches matplotlib's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH / _DPI, _HEIGHT / _DPI), dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.012, ha="left", fontsize=_TEXT + 2, color=_INK, fontweight="bold", parse_math=False)
    axes = figure.add_subplot()
    # A dollar sign in the name of a dataset is no formula.
    below = textwrap.fill(note, _LINE)
    axes.set_title(below, loc="left", fontsize=_TEXT - 0.5, color=_GREY, parse_math=False)
    axes.grid(visible=True, color=_LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_TEXT, colors=_INK)
    return figure, axes


def _png(figure: "Figure") -> bytes:
    """The picture in 256 colours: half of the bytes, no difference to the eye."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    picture = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _epsilon_axis(axes: "Axes", marks: Sequence[Mark]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    positive = [mark.epsilon for mark in marks if mark.epsilon > 0]
    axes.set_xscale("log")
    axes.set_xlim(min([_LEAST_EPSILON, *(each / 2 for each in positive)]), max([_MOST_EPSILON, *positive]))
    axes.xaxis.set_major_locator(LogLocator(base=10))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("epsilon: more similar than 1 − epsilon is a duplicate", fontsize=_TEXT, color=_INK)


def _share_axis(axes: "Axes", said: str, *, whole: bool = True) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_ylabel(said, fontsize=_TEXT, color=_INK)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    if whole:
        axes.set_ylim(0, 1.02)


def _log_counts(axes: "Axes", axis: Literal["x", "y"], counts: np.ndarray) -> None:
    """A logarithmic axis for counts, whose ticks are round numbers, one of them at least."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    least, most = int(counts.min()), int(counts.max())
    of = axes.xaxis if axis == "x" else axes.yaxis
    axes.set(**{f"{axis}scale": "log", f"{axis}lim": (0.8 * least, 1.25 * most * (most / least) ** 0.08)})
    close = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0) if most < 8 * least else (1.0, 2.0, 5.0)
    of.set_major_locator(LogLocator(base=10, subs=close if most < 1000 * least else (1.0,)))
    of.set_minor_locator(NullLocator())
    of.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if float(value).is_integer() else ""))


def _draw_marks(axes: "Axes", marks: Sequence[Mark], *, said: str) -> None:
    """A line and a point on the curve for each epsilon; their values are told in the legend."""
    least, _ = axes.get_xlim()
    for mark, colour in _coloured(marks, most=_MOST_MARKS):
        # A logarithmic axis has no place for 0.
        place = max(mark.epsilon, least)
        label = f"{_named(mark)}: {_percent(mark.share)} {said}"
        axes.axvline(place, color=colour, linewidth=0.9, linestyle=":")
        axes.plot([place], [mark.share], "o", color=colour, markersize=5.5, clip_on=False, zorder=4, label=label)


def _coloured(marks: Sequence[Mark], *, most: int) -> list[tuple[Mark, Colour]]:
    """At most so many of the marks, smallest epsilon first, each with its colour; first and last are among them."""
    from matplotlib import colormaps

    ordered = sorted(marks, key=lambda mark: mark.epsilon)
    shown = np.unique(np.linspace(0, len(ordered) - 1, min(most, len(ordered))).round().astype(np.int64))
    shades = np.linspace(0.75, 0.0, len(shown))
    return [(ordered[index], colormaps["plasma"](shade)) for index, shade in zip(shown, shades, strict=True)]


def _named(mark: Mark) -> str:
    return f"{mark.name} ({mark.epsilon:.3g})" if mark.name.startswith("keep=") else mark.name


def _percent(share: float) -> str:
    """A percentage that says 100 or 0 only where it is."""
    text = f"{100 * share:.1f} %"
    if text == "100.0 %" and share < 1:
        return "> 99.9 %"
    return "< 0.1 %" if text == "0.0 %" and share > 0 else text


def _draw_band(axes: "Axes", sizes: np.ndarray, share: np.ndarray, *, colour: Colour, label: str) -> None:
    """Median and 10 to 90 % by size, in as many bins as the clusters bear."""
    bins = int(np.clip(np.sqrt(len(sizes)) / 1.5, 1, 12))
    edges = np.unique(np.geomspace(sizes.min(), sizes.max() + 1, bins + 1).round())
    bin_of = np.searchsorted(edges, sizes, side="right")
    members = [bin_of == index for index in np.unique(bin_of)]
    middle = [float(np.exp(np.log(sizes[each]).mean())) for each in members]
    low, median, high = np.array([np.quantile(share[each], (0.1, 0.5, 0.9)) for each in members]).T
    axes.fill_between(middle, low, high, color=colour, alpha=0.13, linewidth=0)
    if len(members) == 1:
        axes.vlines(middle, low, high, color=colour, alpha=0.4, linewidth=3)
    axes.plot(middle, median, color=colour, linewidth=1.6, marker="o", markersize=3.5, label=label)


def _annotate(axes: "Axes", text: str, height: float, *, colour: str, right: bool = False) -> None:
    """A text above a height of the axes, at their left or right end."""
    axes.annotate(
        text,
        (1.0 if right else 0.0, height),
        xytext=(-4 if right else 4, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right" if right else "left",
        fontsize=_TEXT,
        color=colour,
    )


def _legend(axes: "Axes", *, title: str | None = None) -> None:
    handles, _ = axes.get_legend_handles_labels()
    if not handles:
        return
    size = _TEXT - 0.5
    legend = axes.legend(loc="best", title=title, fontsize=size, title_fontsize=size, framealpha=0.85)
    legend.get_frame().set_edgecolor("none")


def _say_nothing(axes: "Axes", what: str = "no items") -> None:
    axes.text(0.5, 0.5, what, transform=axes.transAxes, ha="center", va="center", color=_GREY, fontsize=_TEXT + 2)
