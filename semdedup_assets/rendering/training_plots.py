"""The pictures of training: what kept items cover and teach, against as many random ones and against everything."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from semdedup_assets.rendering.plots import (
    _BLUE,
    _FONT_SIZE,
    _GREY,
    _INK,
    _LIGHT,
    _ORANGE,
    _draw_empty,
    _legend,
    _new_figure,
    _png,
    _share_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAR = 0.36
# More names would overlap.
_MOST_SUBJECTS, _LONGEST = 6, 18


@dataclass(frozen=True, slots=True)
class CoverageBars:
    """Values that are covered, by subject: (s,) each.

    Attributes:
        subjects: what the values are of: `clusters`, or a column.
        values: of everything.
        kept: covered by the kept items.
        random: expected of as many random ones.
        random_sd: its standard deviation.
    """

    subjects: Sequence[str]
    values: np.ndarray
    kept: np.ndarray
    random: np.ndarray
    random_sd: np.ndarray


@dataclass(frozen=True, slots=True)
class BitsBars:
    """Bits per byte of held-out texts, by validation set: (s,) each.

    Attributes:
        sets: their names.
        everything: by a model of everything.
        kept: by a model of the kept items.
        random: the mean of models of as many random bytes.
        random_sd: standard deviation of these.
    """

    sets: Sequence[str]
    everything: np.ndarray
    kept: np.ndarray
    random: np.ndarray
    random_sd: np.ndarray


def coverage(bars: CoverageBars, *, title: str, note: str) -> bytes:
    """Draw the share of values that kept items cover, beside as many random ones; everything covers all.

    Args:
        bars: of at most six subjects.
        title: of the figure.
        note: a line below the title.

    Returns:
        PNG.
    """
    figure, axes = _new_figure(title, note)
    _share_axis(axes, "values with a kept item", whole=False)
    if not len(bars.subjects):
        _draw_empty(axes)
        return _png(figure)
    positions = np.arange(min(len(bars.subjects), _MOST_SUBJECTS))
    values = bars.values[positions]
    axes.axhline(1, color=_GREY, linewidth=1, linestyle="--", label="everything")
    for shift, counts, colour, name in ((-0.5, bars.kept, _BLUE, "kept"), (0.5, bars.random, _LIGHT, "random")):
        at, shares = positions + shift * _BAR, counts[positions] / values
        deviation = bars.random_sd[positions] / values if name == "random" else None
        axes.bar(at, shares, _BAR, yerr=deviation, color=colour, ecolor=_INK, capsize=3, label=name)
        above = shares if deviation is None else shares + deviation
        _write_above(axes, at, above, [f"{count:,.0f}" for count in counts[positions]])
    names = [f"{_brief(name)}\n({count:,})" for name, count in zip(bars.subjects, values, strict=False)]
    axes.set_xticks(positions, names)
    _set_up_bars(axes, len(positions), top=1.25)
    axes.set_yticks(np.linspace(0, 1, 6))
    return _png(figure)


def bits_per_byte(bars: BitsBars, *, title: str, note: str) -> bytes:
    """Draw the bits per byte of held-out texts by models of everything, of random texts and of the kept ones.

    Args:
        bars: of the validation sets.
        title: of the figure.
        note: a line below the title.

    Returns:
        PNG.
    """
    figure, axes = _new_figure(title, note)
    axes.set_ylabel("bits per byte (lower is better)", fontsize=_FONT_SIZE, color=_INK)
    if not len(bars.sets):
        _draw_empty(axes, "too few held-out texts")
        return _png(figure)
    positions, width = np.arange(len(bars.sets)), 0.24
    parts = (
        (-1, bars.everything, None, _ORANGE, "everything"),
        (0, bars.kept, None, _BLUE, "kept"),
        (1, bars.random, bars.random_sd, _LIGHT, "random, as many bytes"),
    )
    for shift, bits, deviation, colour, name in parts:
        at = positions + shift * width
        axes.bar(at, bits, width, yerr=deviation, color=colour, ecolor=_INK, capsize=3, label=name)
        _write_above(axes, at, bits if deviation is None else bits + deviation, [f"{each:.3f}" for each in bits])
    changes = bars.kept / bars.random - 1
    names = [f"{name}\nkept against random {change:+.1%}" for name, change in zip(bars.sets, changes, strict=True)]
    axes.set_xticks(positions, names)
    greatest = max(float(np.max(each)) for each in (bars.everything, bars.random, bars.kept))
    _set_up_bars(axes, len(positions), top=1.25 * greatest)
    return _png(figure)


def _set_up_bars(axes: "Axes", groups: int, *, top: float) -> None:
    """Room for a legend in one line above all bars, and no bar wider than a fifth of the figure."""
    axes.set_ylim(0, top)
    margin = max(0.0, (2 - groups) / 2)
    axes.set_xlim(-0.6 - margin, groups - 0.4 + margin)
    axes.grid(visible=False, axis="x")
    _legend(axes, above=True)


def _write_above(axes: "Axes", positions: np.ndarray, heights: np.ndarray, texts: Sequence[str]) -> None:
    # A line behind a number would cross it out.
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    for position, height, text in zip(positions.tolist(), heights.tolist(), texts, strict=True):
        axes.annotate(
            text,
            (position, height),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=_FONT_SIZE - 1.5,
            color=_INK,
            bbox=ground,
        )


def _brief(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
