"""The pictures of the analyses that choose epsilon and k, in the style of the paper's figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from semdedup_assets.algorithm.epsilon_estimate import SampleCurve
from semdedup_assets.rendering.plots import (
    _BLUE,
    _FONT_SIZE,
    _GREY,
    _INK,
    _ORANGE,
    _draw_empty,
    _legend,
    _new_figure,
    _png,
    _share_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What is read off a curve lies between these shares; epsilons beyond are not drawn.
_DRAWN = (0.995, 0.02)
# More panels would be too small to read.
_MOST_PANELS, _PANELS_IN_ROW = 6, 3
# More numbers would not fit into the cells of a heat map.
_MOST_NAMED = 6


@dataclass(frozen=True, slots=True)
class EstimatedPoint:
    """What is estimated for one target: its name and share, and two epsilons, NaN where there is none."""

    target: str
    share: float
    interpolated: float
    solved: float


@dataclass(frozen=True, slots=True)
class MeasuredPoint:
    """A target's share, and of each of its two estimates the epsilon and the share that it keeps; NaN without one."""

    share: float
    interpolated: float
    interpolated_keeps: float
    solved: float
    solved_keeps: float


@dataclass(frozen=True, slots=True)
class KeptCurve:
    """What one clustering keeps, by epsilon: (m,) shares.

    Attributes:
        label: names the clustering.
        group: of clusterings that are drawn in one colour.
        kept: (m,) shares.
    """

    label: str
    group: int
    kept: np.ndarray


@dataclass(frozen=True, slots=True)
class IntersectionMatrix:
    """How much of each kept set the others keep too.

    Attributes:
        title: of the panel.
        shares: (c, c) of the row's set, the part that lies in the column's.
    """

    title: str
    shares: np.ndarray


@dataclass(frozen=True, slots=True)
class SizeCurve:
    """The share removed by number of items, at one epsilon.

    Attributes:
        label: names the epsilon.
        items: (m,) of the subsamples, ascending.
        removed: (m,) shares.
        fitted_items: (p,) ascending, beyond the items that there are.
        fitted: (p,) shares; NaN where nothing could be fitted.
    """

    label: str
    items: np.ndarray
    removed: np.ndarray
    fitted_items: np.ndarray
    fitted: np.ndarray


def epsilon_estimates(
    curve: SampleCurve, points: Sequence[EstimatedPoint], *, start: tuple[float, float], note: str
) -> bytes:
    """Draw what the sampled clusters keep by epsilon, with the estimates (SemDeDup, section 6.5).

    Args:
        curve: of the sampled clusters.
        points: the estimates.
        start: the epsilons between which the paper's method interpolates.
        note: a line below the title.

    Returns:
        PNG.
    """
    figure, axes = _new_figure("Epsilon estimated from some clusters", note)
    _share_axis(axes, "items of the sampled clusters kept")
    _plain_epsilon_axis(axes, curve.epsilon, curve.kept)
    if len(curve.epsilon) == 0:
        _draw_empty(axes, "no item in the sampled clusters")
        return _png(figure)
    axes.fill_between(curve.epsilon, curve.low, curve.high, color=_BLUE, alpha=0.18, linewidth=0)
    axes.plot(curve.epsilon, curve.kept, color=_BLUE, linewidth=1.8, label="sampled clusters, 95 % interval")
    at_start = np.interp(start, curve.epsilon, curve.kept)
    axes.axline((start[0], at_start[0]), (start[1], at_start[1]), color=_ORANGE, linewidth=1, linestyle="--")
    _dots(axes, np.array(start), at_start, colour=_ORANGE, label="start values")
    shares = np.array([each.share for each in points])
    interpolated, solved = np.array([(each.interpolated, each.solved) for each in points]).T
    axes.plot(interpolated, shares, "x", color=_ORANGE, markersize=7, label="interpolated (paper)")
    _dots(axes, solved, shares, colour=_BLUE, label="solved on the sample")
    _legend(axes)
    return _png(figure)


def epsilon_estimate_errors(
    epsilon: np.ndarray, kept: np.ndarray, *, points: Sequence[MeasuredPoint], note: str
) -> bytes:
    """Draw what all items keep by epsilon, and what the estimates keep of them (SemDeDup, section 6.5).

    Args:
        epsilon: (m,) ascending.
        kept: (m,) share of the items; NaN without items.
        points: the estimates, and what they keep.
        note: a line below the title.

    Returns:
        PNG.
    """
    figure, axes = _new_figure("Estimated epsilons, and what they keep of all items", note)
    _share_axis(axes, "items kept")
    _plain_epsilon_axis(axes, epsilon, kept)
    if not np.isfinite(kept).any():
        _draw_empty(axes)
        return _png(figure)
    axes.plot(epsilon, kept, color=_BLUE, linewidth=1.8, label="all items")
    for point in points:
        axes.axhline(point.share, color=_GREY, linewidth=0.8, linestyle=":")
    found = np.array([(p.interpolated, p.interpolated_keeps, p.solved, p.solved_keeps) for p in points]).T
    axes.plot(found[0], found[1], "x", color=_ORANGE, markersize=7, label="interpolated (paper)")
    _dots(axes, found[2], found[3], colour=_BLUE, label="solved on the sample")
    axes.plot([], [], color=_GREY, linewidth=0.8, linestyle=":", label="wanted shares")
    _legend(axes)
    return _png(figure)


def kept_by_clustering(epsilon: np.ndarray, curves: Sequence[KeptCurve], *, note: str) -> bytes:
    """Draw the share kept by epsilon of several clusterings (SemDeDup, Fig. A1).

    Args:
        epsilon: (m,) ascending.
        curves: one for each clustering; those of one group have one colour and other dashes.
        note: a line below the title.

    Returns:
        PNG.
    """
    from matplotlib import colormaps

    figure, axes = _new_figure("Items kept by epsilon, for every k and seed", note)
    _share_axis(axes, "items kept")
    if curves:
        _plain_epsilon_axis(axes, epsilon, np.mean([curve.kept for curve in curves], axis=0))
    if not any(np.isfinite(curve.kept).any() for curve in curves):
        _draw_empty(axes)
        return _png(figure)
    groups = sorted({curve.group for curve in curves})
    shades = dict(zip(groups, np.linspace(0.8, 0.0, len(groups)), strict=True))
    dashes = ("-", "--", ":", "-.")
    for index, curve in enumerate(curves):
        within = sum(other.group == curve.group for other in curves[:index])
        colour = colormaps["plasma"](shades[curve.group])
        style = dashes[within % len(dashes)]
        axes.plot(epsilon, curve.kept, color=colour, linewidth=1.6, linestyle=style, label=curve.label)
    _legend(axes)
    return _png(figure)


def kept_set_intersections(
    labels: Sequence[str],
    matrices: Sequence[IntersectionMatrix],
    *,
    note: str,
    title: str = "Intersections of the kept sets of every k and seed",
) -> bytes:
    """Draw how much of each kept set the others keep too, as heat maps (SemDeDup, Fig. A2).

    Args:
        labels: of the c sets.
        matrices: one for each size, at most six of which are drawn.
        note: a line below the title.
        title: says whose sets these are.

    Returns:
        PNG.
    """
    figure, axes = _new_figure(title, note)
    axes.set_axis_off()
    count = min(len(matrices), _MOST_PANELS)
    drawn = [matrices[i] for i in np.linspace(0, len(matrices) - 1, count).round().astype(int)] if count else []
    if not any(np.isfinite(matrix.shares).any() for matrix in drawn):
        _draw_empty(axes)
        return _png(figure)
    rows = -(-count // _PANELS_IN_ROW)
    columns = min(count, _PANELS_IN_ROW)
    least = min(float(np.nanmin(matrix.shares)) for matrix in drawn)
    for index, matrix in enumerate(drawn):
        row, column = divmod(index, _PANELS_IN_ROW)
        height, width = 1 / rows, 1 / columns
        left, bottom = column * width + 0.1 * width, 1 - (row + 1) * height + 0.14 * height
        panel = axes.inset_axes((left, bottom, 0.86 * width, 0.72 * height))
        _heat_map(panel, labels, matrix, least=min(least, 0.98))
        if column:
            # The panels of a row have the same rows.
            panel.set_yticks([])
    return _png(figure)


def _heat_map(axes: "Axes", labels: Sequence[str], matrix: IntersectionMatrix, *, least: float) -> None:
    axes.imshow(matrix.shares, vmin=least, vmax=1, cmap="Blues", aspect="auto")
    axes.set_title(matrix.title, fontsize=_FONT_SIZE - 1, color=_INK, parse_math=False)
    size = _FONT_SIZE - 2.5
    if len(labels) > _MOST_NAMED:
        axes.set_xticks([])
        axes.set_yticks([])
        return
    axes.set_xticks(range(len(labels)), labels, fontsize=size)
    axes.set_yticks(range(len(labels)), labels, fontsize=size)
    for row, values in enumerate(matrix.shares):
        for column, value in enumerate(values):
            colour = "white" if value > (least + 1) / 2 else _INK
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=size, color=colour)


def redundancy_by_size(curves: Sequence[SizeCurve], *, items: int, note: str) -> bytes:
    """Draw the share removed against the number of items, measured and fitted.

    Args:
        curves: one for each epsilon.
        items: that there are; what lies beyond is extrapolated.
        note: a line below the title.

    Returns:
        PNG.
    """
    from matplotlib import colormaps
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure, axes = _new_figure("Share removed, by number of items", note)
    _share_axis(axes, "items removed", whole=False)
    axes.set_xlabel("items (random subsamples; dashed: extrapolated)", fontsize=_FONT_SIZE, color=_INK)
    if items == 0 or not curves:
        _draw_empty(axes)
        return _png(figure)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 3.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.axvline(items, color=_GREY, linewidth=0.9, linestyle=":")
    for curve, shade in zip(curves, np.linspace(0.75, 0.0, len(curves)), strict=True):
        colour = colormaps["plasma"](shade)
        inside, beyond = curve.fitted_items <= items, curve.fitted_items >= items
        axes.plot(curve.fitted_items[inside], curve.fitted[inside], color=colour, linewidth=1.2)
        axes.plot(curve.fitted_items[beyond], curve.fitted[beyond], color=colour, linewidth=1.2, linestyle="--")
        _dots(axes, curve.items, curve.removed, colour=colour, label=curve.label)
    axes.set_ylim(bottom=0)
    _legend(axes, title="epsilon")
    return _png(figure)


def _dots(axes: "Axes", x: np.ndarray, y: np.ndarray, *, colour: object, label: str) -> None:
    axes.plot(x, y, "o", color=colour, markersize=4.5, label=label, zorder=4)


def _plain_epsilon_axis(axes: "Axes", epsilon: np.ndarray, kept: np.ndarray) -> None:
    """A linear axis, on which the paper finds what is kept to fall in about a straight line."""
    axes.set_xlabel("epsilon: more similar than 1 − epsilon is a duplicate", fontsize=_FONT_SIZE, color=_INK)
    # The first item of each cluster stays at any epsilon below 1: where little else is left the curve is flat.
    inside = np.flatnonzero((kept <= _DRAWN[0]) & (kept >= _DRAWN[1] + np.min(kept, initial=1)))
    if len(inside):
        axes.set_xlim(0, min(2.0, 1.05 * max(float(epsilon[inside[-1]]), 1e-6)))
