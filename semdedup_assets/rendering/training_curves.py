"""The pictures of trainings and of what the trained models are worth."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.rendering.plots import (
    _BLUE,
    _FONT_SIZE,
    _GREY,
    _INK,
    _LIGHT,
    _LINE_LENGTH,
    _ORANGE,
    _draw_empty,
    _legend,
    _new_figure,
    _png,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"epochs": _BLUE, "steps": _ORANGE}
# A curve of more points is drawn as averages of so many parts.
_MOST_POINTS = 200


@dataclass(frozen=True, slots=True)
class TrainingCurve:
    """What one training reported.

    Attributes:
        budget: `epochs` or `steps`.
        seed: of the training.
        steps: (n,) int64, ascending.
        loss: (n,) float64.
        learning_rate: (n,) float64, NaN where it is not known.
    """

    budget: str
    seed: int
    steps: np.ndarray
    loss: np.ndarray
    learning_rate: np.ndarray

    @classmethod
    def of(cls, budget: str, seed: int, points: Sequence[Mapping[str, Any]]) -> "TrainingCurve":
        """A curve of points with step, loss and learning_rate."""

        def column(name: str) -> np.ndarray:
            return np.array([np.nan if point[name] is None else point[name] for point in points], np.float64)

        return cls(budget, seed, column("step").astype(np.int64), column("loss"), column("learning_rate"))

    def thinned(self) -> "TrainingCurve":
        """The same with fewer points, each the mean of consecutive ones."""
        if len(self.steps) <= _MOST_POINTS:
            return self
        parts = np.array_split(np.arange(len(self.steps)), _MOST_POINTS)
        means = [np.array([values[part].mean() for part in parts]) for values in (self.loss, self.learning_rate)]
        return TrainingCurve(self.budget, self.seed, self.steps[[part[-1] for part in parts]], *means)


def training_curves(curves: Sequence[TrainingCurve], *, title: str, note: str) -> bytes:
    """Draw loss and learning rate of some trainings against steps.

    Args:
        curves: each with its budget, which gives the colour.
        title: of the picture.
        note: a line below it.

    Returns:
        PNG.
    """
    figure, axes = _new_figure(title, note)
    drawn = [curve.thinned() for curve in curves if len(curve.steps)]
    if not drawn:
        _draw_empty(axes, "no loss was reported")
        return _png(figure)
    named = set[str]()
    for curve in drawn:
        label = None if curve.budget in named else f"loss, equal {curve.budget}"
        named.add(curve.budget)
        axes.plot(curve.steps, curve.loss, color=_COLOURS[curve.budget], linewidth=1.0, alpha=0.75, label=label)
    axes.set_xlabel("step", fontsize=_FONT_SIZE, color=_INK)
    axes.set_ylabel("loss", fontsize=_FONT_SIZE, color=_INK)
    _draw_rates(axes, drawn)
    _legend(axes)
    return _png(figure)


def _draw_rates(axes: "Axes", curves: Sequence[TrainingCurve]) -> None:
    """The learning rates on an axis of their own, in grey."""
    known = [curve for curve in curves if np.isfinite(curve.learning_rate).any()]
    if not known:
        return
    right = axes.twinx()
    for curve in known:
        right.plot(curve.steps, curve.learning_rate, color=_GREY, linewidth=0.8, linestyle=":")
    right.set_ylabel("learning rate (dotted)", fontsize=_FONT_SIZE, color=_GREY)
    right.set_ylim(bottom=0)
    right.yaxis.set_major_formatter("{x:.3g}")
    right.tick_params(labelsize=_FONT_SIZE, colors=_GREY)
    right.spines[["top", "left", "right"]].set_visible(False)


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """A metric of the models of one kept set.

    Attributes:
        x: where it is drawn: share kept, or steps.
        mean: over seeds.
        deviation: standard deviation over seeds; NaN of one seed.
    """

    x: float
    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class MetricPanel:
    """One metric of several kept sets.

    Attributes:
        title: names the metric and the set it is of.
        higher_is_better: of the metric.
        lines: by role (`SemDeDup`, `random`), points in the order of x.
        levels: by name, what a line across the panel marks: `everything`, `exact`.
    """

    title: str
    higher_is_better: bool
    lines: Mapping[str, Sequence[MetricPoint]]
    levels: Mapping[str, MetricPoint]


_ROLE_COLOURS = {"SemDeDup": _BLUE, "random": _ORANGE, "random, equal size": "#9c6b30", "everything": _INK}
MOST_PANELS = 6
"""Of a picture; what more there is stands in the tables."""
# Of a panel in two columns.
_MOST_TICKS = 5


def metric_panels(panels: Sequence[MetricPanel], *, x_label: str, title: str, note: str) -> bytes:
    """Draw metrics of kept sets, with bands of one standard deviation (SemDeDup, Figs 4, 5b, 7, A18).

    Args:
        panels: one for each metric, six at most are drawn.
        x_label: of all.
        title: of the picture.
        note: a line below it.

    Returns:
        PNG.
    """
    figure, axes = _new_figure(title, note)
    shown = list(panels)[:MOST_PANELS]
    if not shown:
        _draw_empty(axes, "nothing was evaluated")
        return _png(figure)
    for index, (panel, own) in enumerate(zip(shown, _panel_axes(figure, axes, len(shown)), strict=True)):
        _draw_panel(own, panel, x_label=x_label)
        if index == 0:
            _legend(own)
    return _png(figure)


# Characters of a line above one of two panels that stand beside each other, long names of rows at their left.
_HEADING_LENGTH = 24
# Inches of a panel, the bars that fit into it, and inches of each further bar.
_PANEL_HEIGHT, _MOST_BARS, _BAR_HEIGHT = 2.1, 7, 0.22


def _panel_axes(figure: "Figure", axes: "Axes", count: int, *, bars: int = 0) -> "list[Axes]":
    """Axes for several panels below the title and the note of a figure, in two columns; higher where bars need it."""
    more = max(0, bars - _MOST_BARS) * _BAR_HEIGHT
    if count == 1:
        figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() + more)
        return [axes]
    heading, columns = axes.get_title(loc="left"), 2
    figure.delaxes(axes)
    rows = -(-count // columns)
    figure.set_size_inches(figure.get_figwidth(), 1.0 + (_PANEL_HEIGHT + more) * rows)
    height = figure.get_figheight()
    figure.text(0.012, 1 - 0.36 / height, heading, fontsize=_FONT_SIZE - 0.5, color=_GREY, va="top", parse_math=False)
    # Room for the note, which stands in no axes.
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - 0.3 / height))
    return [figure.add_subplot(rows, columns, index + 1) for index in range(count)]


def _prepare_panel(axes: "Axes", title: str, *, higher_is_better: bool) -> None:
    axes.grid(visible=True, color=_LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_FONT_SIZE - 1, colors=_INK)
    axes.locator_params(axis="x", nbins=_MOST_TICKS)
    axes.xaxis.set_major_formatter("{x:g}")
    better = "higher" if higher_is_better else "lower"
    # A single panel stands in the axes of the picture's note, and has its whole width.
    note = axes.get_title(loc="left")
    heading = textwrap.fill(f"{title} ({better} is better)", _LINE_LENGTH if note else _HEADING_LENGTH)
    heading = f"{note}\n{heading}" if note else heading
    axes.set_title(heading, fontsize=_FONT_SIZE - 0.5, color=_INK, loc="left", parse_math=False)


def _draw_panel(axes: "Axes", panel: MetricPanel, *, x_label: str) -> None:
    _prepare_panel(axes, panel.title, higher_is_better=panel.higher_is_better)
    axes.set_xlabel(x_label, fontsize=_FONT_SIZE - 1, color=_INK)
    for name, level in panel.levels.items():
        colour = _ROLE_COLOURS.get(name, _GREY)
        axes.axhline(level.mean, color=colour, linewidth=1.0, linestyle="--", label=name)
        if np.isfinite(level.deviation):
            axes.axhspan(level.mean - level.deviation, level.mean + level.deviation, color=colour, alpha=0.08)
    for name, points in panel.lines.items():
        colour = _ROLE_COLOURS.get(name, _GREY)
        x, mean, deviation = (np.array([getattr(p, field) for p in points]) for field in ("x", "mean", "deviation"))
        axes.plot(x, mean, color=colour, linewidth=1.5, marker="o", markersize=3.5, label=name)
        band = np.nan_to_num(deviation)
        axes.fill_between(x, mean - band, mean + band, color=colour, alpha=0.18, linewidth=0)


@dataclass(frozen=True, slots=True)
class SeedPanel:
    """One metric of several kinds of kept sets.

    Attributes:
        title: names the metric and the set it is of.
        higher_is_better: of the metric.
        values: one for each seed, by kind.
    """

    title: str
    higher_is_better: bool
    values: dict[str, list[float]]


def seed_panels(panels: Sequence[SeedPanel], *, title: str, note: str) -> bytes:
    """Draw a metric of each seed, with means and standard deviations.

    Args:
        panels: one for each metric, six at most are drawn.
        title: of the picture.
        note: a line below it.

    Returns:
        PNG.
    """
    figure, axes = _new_figure(title, note)
    shown = list(panels)[:MOST_PANELS]
    if not shown:
        _draw_empty(axes, "nothing was evaluated")
        return _png(figure)
    bars = max(len(panel.values) for panel in shown)
    for panel, own in zip(shown, _panel_axes(figure, axes, len(shown), bars=bars), strict=True):
        _prepare_panel(own, panel.title, higher_is_better=panel.higher_is_better)
        names = list(panel.values)
        for place, name in enumerate(names):
            values = np.array(panel.values[name], np.float64)
            colour = _ROLE_COLOURS.get(name.partition("\n")[0], _GREY)
            spread = values.std(ddof=1) if len(values) > 1 else 0.0
            # Dots, for a bar would have to begin at 0.
            own.errorbar(
                values.mean(), place, xerr=spread, color=colour, fmt="o", markersize=6, capsize=4, linewidth=1.6
            )
            own.plot(values, np.full(len(values), place) + 0.25, ".", color=colour, markersize=5, alpha=0.6)
        own.set_ylim(-0.5, len(names) - 0.4)
        own.set_yticks(range(len(names)), [name.replace("\n", ", ") for name in names])
        own.invert_yaxis()
        _zoom(own, [value for values in panel.values.values() for value in values])
    return _png(figure)


def _zoom(axes: "Axes", values: Sequence[float]) -> None:
    """Let differences be seen: the axis need not begin at 0."""
    low, high = min(values), max(values)
    room = 0.25 * max(high - low, 1e-9 + abs(high) * 0.02)
    axes.set_xlim(low - room, high + room)
