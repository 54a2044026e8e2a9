"""The paper's figures, each small enough for a run's log."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from semdedup_assets.kept_sets import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.figure import Figure

TITLES = {
    "kept_by_epsilon": "Items kept, by epsilon",
    "duplicates_by_epsilon": "Items with at least one duplicate, by epsilon",
    "similarities": "Similarities within clusters",
    "removed_by_cluster_size": "Share removed, by cluster size",
    "cluster_sizes": "Cluster sizes",
}
"""Name and title of each figure of one k."""

EFFICIENCY_TITLES = {
    "efficiency": "Duplicates found within clusters, by epsilon",
    "next_clusters": "Duplicates found if next-nearest clusters are searched too",
}
"""Name and title of each figure of the detection efficiency."""

# Dagster's dialog shows 600 pixels without scaling.
_WIDTH, _HEIGHT, _DPI = 600, 380, 100
_INK, _GREY, _LIGHT, _BLUE, _ORANGE = "#222222", "#6b6b6b", "#e3e3e3", "#2b6cb0", "#c05621"
# Pixels around what is drawn; and left, bottom, width and height of the axes before what is around them is measured.
_PAD, _FIRST_GUESS = 4.2, (0.1, 0.13, 0.87, 0.7)
_TICK_DOWN = 3  # matplotlib's name of the marker
# Font size in points, and number of characters that fit in a line.
_FONT_SIZE, _LINE_LENGTH = 9, 78
_Colour = tuple[float, float, float, float]
# The paper's epsilons begin at 0.00095; above 1 even unrelated items would be duplicates.
_MIN_EPSILON, _MAX_EPSILON = 1e-4, 1.0
# More epsilons would hide each other.
_MAX_LABELS, _MAX_BANDS = 10, 6
# More clusters are drawn only as a median with quantiles.
_MAX_POINTS = 1500
_NEARLY_WHITE = 250


@dataclass(frozen=True, slots=True)
class EpsilonLabel:
    """One of the pipeline's own epsilons, labelled in a plot.

    Attributes:
        name: as in the pipeline's settings: `0.05` or `keep=50%`.
        epsilon: its numeric value.
        share: the curve's value at this epsilon, in [0, 1].
    """

    name: str
    epsilon: float
    share: float


@dataclass(frozen=True, slots=True)
class ShareCurve:
    """A share by epsilon with its interval.

    Attributes:
        name: in the legend.
        epsilon: (m,) ascending.
        share: (m,) in [0, 1], NaN where there is none.
        low: (m,) lower end of the interval.
        high: (m,) upper end.
    """

    name: str
    epsilon: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray


def kept_by_epsilon(epsilon: np.ndarray, kept: np.ndarray, *, labels: Sequence[EpsilonLabel], note: str) -> bytes:
    """Draw the share of items that are kept against epsilon (SemDeDup, Fig. 3a).

    Args:
        epsilon: (m,) ascending.
        kept: (m,) share of items kept at each, in [0, 1]; NaN where there are no items.
        labels: the pipeline's own epsilons.
        note: a line below the title.

    Returns:
        PNG.
    """
    figure, axes = _new_figure(TITLES["kept_by_epsilon"], note)
    _epsilon_axis(axes, labels)
    _share_axis(axes, "items kept")
    if np.isfinite(kept).any():
        axes.plot(epsilon, kept, color=_BLUE, linewidth=1.8)
        _draw_labels(axes, labels, quantity="kept")
        _legend(axes)
    else:
        _draw_empty(axes)
    return _png(figure)


def duplicates_by_epsilon(
    epsilon: np.ndarray, with_duplicate: np.ndarray, *, removed: np.ndarray, labels: Sequence[EpsilonLabel], note: str
) -> bytes:
    """Draw the share of items that have a duplicate within epsilon (SemDeDup, Fig. 3b).

    Args:
        epsilon: (m,) ascending.
        with_duplicate: (m,) share of items with another of their cluster within each; NaN where there are no items.
        removed: (m,) share of items removed at each, for comparison.
        labels: the pipeline's own epsilons.
        note: a line below the title.

    Returns:
        PNG.
    """
    figure, axes = _new_figure(TITLES["duplicates_by_epsilon"], note)
    _epsilon_axis(axes, labels)
    _share_axis(axes, "items")
    if np.isfinite(with_duplicate).any():
        axes.plot(epsilon, with_duplicate, color=_BLUE, linewidth=1.8, label="with a duplicate")
        axes.plot(epsilon, removed, color=_GREY, linewidth=1.2, linestyle="--", label="removed, of all items")
        _draw_labels(axes, labels, quantity="with a duplicate")
        _legend(axes)
    else:
        _draw_empty(axes)
    return _png(figure)


def similarities(
    edges: np.ndarray, *, pairs: np.ndarray, items: np.ndarray, labels: Sequence[EpsilonLabel], note: str
) -> bytes:
    """Draw the similarities of pairs within clusters (SemDeDup, Fig. 3c), and of items to their nearest earlier one.

    Args:
        edges: (b + 1,) of the bins, in [-1, 1].
        pairs: (b,) pairs by similarity.
        items: (b,) items by greatest similarity to an earlier one.
        labels: the pipeline's own epsilons.
        note: a line below the title.

    Returns:
        PNG.
    """
    figure, axes = _new_figure(TITLES["similarities"], note)
    axes.set_xlabel("cosine similarity", fontsize=_FONT_SIZE, color=_INK)
    _share_axis(axes, f"share in each {edges[1] - edges[0]:.2g}", whole=False)
    filled = np.flatnonzero(pairs + items)
    if len(filled) == 0:
        _draw_empty(axes)
        return _png(figure)
    histograms = (("pairs within clusters", pairs, _GREY), ("items and their nearest earlier ones", items, _BLUE))
    for name, counts, colour in histograms:
        share = counts / max(1, int(counts.sum()))
        axes.stairs(share, edges, color=colour, fill=True, alpha=0.25)
        axes.stairs(share, edges, color=colour, linewidth=1.2, label=f"{name} ({int(counts.sum()):,})")
    for index, label in enumerate(labels):
        # The legend has one entry for all thresholds; it skips names that begin with "_".
        name = "thresholds 1 − epsilon" if index == 0 else "_"
        axes.axvline(1 - label.epsilon, color=_ORANGE, linewidth=1, linestyle=":", label=name)
    left = min([edges[filled[0]], 0.9, *(1 - label.epsilon for label in labels)])
    axes.set_xlim(max(-1.0, left - 0.02), 1.01)
    # Room for the legend.
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
    _legend(axes)
    return _png(figure)


def removed_by_cluster_size(
    sizes: np.ndarray, removed: np.ndarray, *, labels: Sequence[EpsilonLabel], note: str
) -> bytes:
    """Draw the share that clusters lose against their size (SemDeDup, Fig. A7): median and 10 to 90 %.

    Args:
        sizes: (k,) items of each cluster.
        removed: (e, k) items removed at each labelled epsilon.
        labels: the pipeline's own e epsilons; at most six of them are drawn.
        note: a line below the title.

    Returns:
        PNG.
    """
    figure, axes = _new_figure(TITLES["removed_by_cluster_size"], note)
    axes.set_xlabel("items in the cluster", fontsize=_FONT_SIZE, color=_INK)
    _share_axis(axes, "items removed")
    filled = sizes > 0
    if not filled.any() or not labels:
        _draw_empty(axes)
        return _png(figure)
    _log_counts(axes, "x", sizes[filled])
    has_points = int(filled.sum()) * min(len(labels), _MAX_BANDS) <= _MAX_POINTS
    for index, colour in _coloured(labels, limit=_MAX_BANDS):
        share = removed[index, filled] / sizes[filled]
        if has_points:
            axes.scatter(sizes[filled], share, color=colour, s=8, alpha=0.35, linewidths=0)
        _draw_band(axes, sizes[filled], share, colour=colour, label=_legend_name(labels[index]))
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

    figure, axes = _new_figure(TITLES["cluster_sizes"], note)
    axes.set_xlabel("clusters, largest first", fontsize=_FONT_SIZE, color=_INK)
    axes.set_ylabel("items", fontsize=_FONT_SIZE, color=_INK)
    ordered = np.sort(sizes[sizes > 0])[::-1]
    if len(ordered) == 0:
        _draw_empty(axes)
        return _png(figure)
    # One step for each cluster, but no more than two for each pixel.
    steps = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), 2 * _WIDTH)).round().astype(np.int64))
    axes.stairs(ordered[steps], np.append(steps, len(ordered)), color=_BLUE, linewidth=1.6)
    axes.stairs(ordered[steps], np.append(steps, len(ordered)), color=_BLUE, fill=True, alpha=0.15)
    _log_counts(axes, "y", ordered)
    axes.set_xlim(0, len(ordered))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    average = float(sizes.mean())
    axes.axhline(average, color=_ORANGE, linewidth=1, linestyle="--")
    _annotate(axes, f"average {average:,.1f}", average, colour=_ORANGE, right=True)
    largest = f"largest {int(ordered[0]):,}, {ordered[0] / average:,.1f} × the average"
    _annotate(axes, largest, float(ordered[0]), colour=_INK)
    return _png(figure)


@dataclass(frozen=True, slots=True)
class BandBars:
    """Bars of bands of epsilon, each made of parts.

    Attributes:
        bands: name of each of the b bands.
        parts: (b,) counts by the part's name, from the bottom up; parts of nothing are not drawn.
        estimated: (b,) whether a band's parts are scaled from a sample.
    """

    bands: Sequence[str]
    parts: dict[str, np.ndarray]
    estimated: np.ndarray


_PART_COLOURS = ("#1f4e79", "#4f8fc4", "#9ecae1", "#e6a15c", "#d9d9d9")


def removed_by_band(bars: BandBars, *, title: str, note: str) -> bytes:
    """Draw how many pairs lie in each band of epsilon, and of which kind they are (SemDeDup, sections 4.3 and 5.3).

    Args:
        bars: of the bands.
        title: of the figure.
        note: a line below the title.

    Returns:
        PNG.
    """
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    figure, axes = _new_figure(title, note)
    axes.set_xlabel("1 − similarity of the removed item to its kept one", fontsize=_FONT_SIZE, color=_INK)
    axes.set_ylabel("removed items", fontsize=_FONT_SIZE, color=_INK)
    totals = np.sum(list(bars.parts.values()), axis=0)
    if not totals.any():
        _draw_empty(axes, "nothing is removed")
        return _png(figure)
    positions, base = np.arange(len(bars.bands)), np.zeros(len(bars.bands), dtype=np.int64)
    for (name, counts), colour in zip(bars.parts.items(), _PART_COLOURS, strict=False):
        if counts.any():
            axes.bar(positions, counts, 0.72, bottom=base, color=colour, label=name)
        base = base + counts
    for position, total, scaled in zip(positions, totals.tolist(), bars.estimated, strict=True):
        text = f"{total:,}{' *' if scaled else ''}"
        axes.annotate(text, (position, total), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xticks(positions, [name.replace("beyond ", "beyond\n") for name in bars.bands])
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0, 1.12 * int(totals.max()))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _legend(axes)
    return _png(figure)


@dataclass(frozen=True, slots=True)
class RemovalBars:
    """Bars of other choices, each made of parts.

    Attributes:
        names: of the b choices.
        parts: (b,) counts of items by the part's name, from the bottom up.
    """

    names: Sequence[str]
    parts: dict[str, np.ndarray]


def removal_bars(bars: RemovalBars, *, title: str, note: str) -> bytes:
    """Draw how many items the method and each of several other choices remove, together and alone.

    Args:
        bars: of the other choices.
        title: of the figure.
        note: a line below the title.

    Returns:
        PNG.
    """
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    figure, axes = _new_figure(title, note)
    axes.set_ylabel("removed items", fontsize=_FONT_SIZE, color=_INK)
    if not np.sum(list(bars.parts.values())):
        _draw_empty(axes, "nothing is removed")
        return _png(figure)
    positions, base = np.arange(len(bars.names)), np.zeros(len(bars.names), dtype=np.int64)
    for (name, counts), colour in zip(bars.parts.items(), (_BLUE, _LIGHT, _ORANGE), strict=False):
        axes.bar(positions, counts, 0.72, bottom=base, color=colour, label=name)
        base = base + counts
    axes.set_xticks(positions, [name.replace(" ", "\n", 1) for name in bars.names])
    axes.grid(visible=False, axis="x")
    # Room for the legend, in one line above all bars.
    axes.set_ylim(0, 1.15 * int(base.max()))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _legend(axes, above=True)
    return _png(figure)


@dataclass(frozen=True, slots=True)
class BandShares:
    """A share in each band of epsilon, and up to each, with 95 % intervals; NaN where nothing is known.

    Attributes:
        bands: name of each of the b bands.
        share: (3, b) value, low and high in each band.
        cumulative: (3, b) the same in it and all before it.
        wanted: the share that is wanted.
    """

    bands: Sequence[str]
    share: np.ndarray
    cumulative: np.ndarray
    wanted: float


def precision_by_band(shares: BandShares, *, title: str, note: str) -> bytes:
    """Draw the share of duplicates among removed items by band of epsilon, and up to each.

    Args:
        shares: of the bands.
        title: of the figure.
        note: a line below the title.

    Returns:
        PNG.
    """
    figure, axes = _new_figure(title, note)
    axes.set_xlabel("1 − similarity of the removed item to its kept one", fontsize=_FONT_SIZE, color=_INK)
    _share_axis(axes, "duplicates among removed items")
    axes.set_ylim(0, 1.05)
    positions = np.arange(len(shares.bands))
    axes.set_xlim(-0.6, len(positions) - 0.4)
    axes.set_xticks(positions, [name.replace("beyond ", "beyond\n") for name in shares.bands])
    if np.isfinite(shares.share[0]).any():
        drawn = ((shares.share, -0.1, _BLUE, "in the band"), (shares.cumulative, 0.1, _ORANGE, "up to its end"))
        for (value, low, high), shift, colour, name in drawn:
            bars = np.stack([value - low, high - value]).clip(0)
            axes.errorbar(positions + shift, value, bars, fmt="o", color=colour, markersize=4, capsize=3, label=name)
        axes.axhline(shares.wanted, color=_GREY, linewidth=1, linestyle="--", label=f"wanted, {shares.wanted:.0%}")
        _legend(axes)
    else:
        _draw_empty(axes, "no labels")
    return _png(figure)


def convergence(objective: Sequence[float], *, title: str) -> bytes:
    """Draw the objective of k-means by iteration.

    Args:
        objective: mean similarity of the sampled items to their centroids, after each iteration.
        title: names the clustering.

    Returns:
        PNG.
    """
    from matplotlib.ticker import MaxNLocator

    values = np.asarray(objective, dtype=np.float64)
    note = f"after {len(values):,} iterations {values[-1]:.4f}" if len(values) else "no iterations"
    figure, axes = _new_figure(title, note)
    axes.set_xlabel("iteration", fontsize=_FONT_SIZE, color=_INK)
    axes.set_ylabel("mean similarity to the centroid", fontsize=_FONT_SIZE, color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.set_xlim(0.5, max(len(values), 1) + 0.5)
    if len(values) == 0:
        _draw_empty(axes, "no iterations")
        return _png(figure)
    axes.ticklabel_format(axis="y", useOffset=False)
    marker = "o" if len(values) <= 24 else None
    axes.plot(np.arange(1, len(values) + 1), values, color=_BLUE, linewidth=1.8, marker=marker, markersize=4)
    return _png(figure)


def detection_efficiency(curves: Sequence[ShareCurve], *, note: str) -> bytes:
    """Draw which share of the duplicates is found within clusters against epsilon (SemDeDup, Table A1).

    Args:
        curves: at most four.
        note: a line below the title.

    Returns:
        PNG.
    """
    figure, axes = _new_figure(EFFICIENCY_TITLES["efficiency"], note)
    _epsilon_axis(axes, [])
    _share_axis(axes, "found within clusters")
    known = [curve for curve in curves if np.isfinite(curve.share).any()]
    if not known:
        _draw_empty(axes, "nothing to find")
        return _png(figure)
    styles = ((_BLUE, "-"), (_ORANGE, "-"), (_BLUE, "--"), (_ORANGE, "--"))
    for curve, (colour, style) in zip(known, styles, strict=False):
        # A logarithmic axis cannot show 0.
        x = np.maximum(curve.epsilon, _MIN_EPSILON)
        axes.plot(x, curve.share, style, color=colour, linewidth=1.6, marker="o", markersize=3.5, label=curve.name)
        axes.fill_between(x, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
    _zoom_to_one(axes, min(float(np.nanmin([curve.share, curve.low])) for curve in known))
    _legend(axes)
    return _png(figure)


def found_by_next_clusters(clusters: Sequence[int], shares: Mapping[float, np.ndarray], *, note: str) -> bytes:
    """Draw which share of the duplicates is found if next-nearest clusters are searched too.

    Args:
        clusters: (p,) how many, ascending.
        shares: (p,) shares in [0, 1] by epsilon; at most six are drawn.
        note: a line below the title.

    Returns:
        PNG.
    """
    figure, axes = _new_figure(EFFICIENCY_TITLES["next_clusters"], note)
    axes.set_xlabel("next-nearest clusters searched for each item", fontsize=_FONT_SIZE, color=_INK)
    _share_axis(axes, "pairs found")
    known = {epsilon: share for epsilon, share in shares.items() if np.isfinite(share).all()}
    if not known:
        _draw_empty(axes, "nothing to find")
        return _png(figure)
    labels = [EpsilonLabel(f"{epsilon:g}", epsilon, 0.0) for epsilon in known]
    for index, colour in _coloured(labels, limit=_MAX_BANDS):
        share = known[labels[index].epsilon]
        axes.plot(range(len(clusters)), share, color=colour, marker="o", markersize=3.5, label=labels[index].name)
    axes.set_xticks(range(len(clusters)), [f"{count:,}" for count in clusters])
    _zoom_to_one(axes, min(float(share.min()) for share in known.values()))
    _legend(axes, title="epsilon")
    return _png(figure)


def _zoom_to_one(axes: "Axes", least: float) -> None:
    """Show shares from a little below the least to 1."""
    room = max(0.01, 1 - least)
    axes.set_ylim(max(0.0, least - 0.1 * room), 1 + 0.05 * room)


def caption_agreement(
    pairs: np.ndarray, *, image: np.ndarray, caption: np.ndarray, agree_from: float, note: str
) -> bytes:
    """Draw pairs of images by the similarity of the images and of their captions.

    Args:
        pairs: (b, c) their number in each cell.
        image: (b + 1,) edges of the images' similarity.
        caption: (c + 1,) edges of the captions' similarity.
        agree_from: similarity of captions below which they disagree.
        note: a line below the title.

    Returns:
        PNG.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

    figure, axes = _new_figure("Images that agree, and their captions", note)
    axes.set_xlabel("cosine similarity of the images", fontsize=_FONT_SIZE, color=_INK)
    axes.set_ylabel("cosine similarity of the captions", fontsize=_FONT_SIZE, color=_INK)
    if not pairs.any():
        _draw_empty(axes, "no pairs with captions")
        return _png(figure)
    shown = np.ma.masked_equal(pairs.T, 0)
    mesh = axes.pcolormesh(image, caption, shown, cmap="viridis_r", norm=LogNorm(1, max(2, int(pairs.max()))))
    bar = figure.colorbar(mesh, ax=axes, format=StrMethodFormatter("{x:,.0f}"))
    bar.locator = MaxNLocator(integer=True, nbins=6)
    bar.update_ticks()
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.set_label("pairs in a cell", fontsize=_FONT_SIZE, color=_INK)
    bar.ax.tick_params(labelsize=_FONT_SIZE, colors=_INK)
    filled = caption[:-1][pairs.any(axis=0)]
    axes.set_ylim(min(float(filled.min()), agree_from) - 0.05, 1.02)
    axes.axhline(agree_from, color=_ORANGE, linewidth=1, linestyle="--")
    axes.annotate(
        f"below {agree_from:g} they disagree",
        (0.0, agree_from),
        xytext=(4, -11),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=_FONT_SIZE,
        color=_ORANGE,
    )
    return _png(figure)


def _new_figure(title: str, note: str) -> tuple["Figure", "Axes"]:
    """A figure with one set of axes, without pyplot and its global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH / _DPI, _HEIGHT / _DPI), dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.012, ha="left", fontsize=_FONT_SIZE + 2, color=_INK, fontweight="bold", parse_math=False)
    axes = figure.add_subplot()
    # A dollar sign in a dataset's name does not begin a formula.
    wrapped = textwrap.fill(note, _LINE_LENGTH)
    axes.set_title(wrapped, loc="left", fontsize=_FONT_SIZE - 0.5, color=_GREY, parse_math=False)
    axes.grid(visible=True, color=_LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_FONT_SIZE, colors=_INK)
    return figure, axes


def _png(figure: "Figure") -> bytes:
    """The figure in 256 colours: half the bytes, and it looks the same."""
    from PIL import Image

    canvas: Any = figure.canvas
    if len(figure.axes) == 1:
        _fit(figure, canvas.get_renderer())
    # `savefig` draws twice, and packs what would be unpacked here.
    canvas.draw()
    size, pixels = canvas.get_width_height(), canvas.buffer_rgba()
    image = Image.frombuffer("RGBA", size, pixels).convert("RGB")
    # The default method takes eight times as long, for larger files.
    image = image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    # It takes means of neighbouring colours: white stays white.
    palette = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
    palette[palette.min(axis=1) >= _NEARLY_WHITE] = 255
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _fit(figure: "Figure", renderer: "RendererBase") -> None:
    """Let the axes of a figure, with what is written around them, fill it below its title.

    This is what matplotlib's constrained layout does of more axes, for which it measures everything twice.
    """
    from matplotlib.transforms import Bbox

    figure.set_layout_engine("none")
    (axes,), whole = figure.axes, figure.bbox
    axes.set_position(_FIRST_GUESS)
    for title in figure.texts:
        title.set_y(1 - _PAD / whole.height)
    inner, outer = axes.get_window_extent(renderer), axes.get_tightbbox(renderer, for_layout_only=True)
    if outer is None:
        return
    top = min((title.get_window_extent(renderer).y0 for title in figure.texts), default=whole.y1)
    low = (_PAD + inner.x0 - outer.x0, _PAD + inner.y0 - outer.y0)
    high = (whole.x1 - _PAD - (outer.x1 - inner.x1), top - _PAD - (outer.y1 - inner.y1))
    axes.set_position(Bbox([low, high]).transformed(figure.transFigure.inverted()))


def _epsilon_axis(axes: "Axes", labels: Sequence[EpsilonLabel]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    positive = [label.epsilon for label in labels if label.epsilon > 0]
    low, high = min([_MIN_EPSILON, *(each / 2 for each in positive)]), max([_MAX_EPSILON, *positive])
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(base=10))
    # Each of matplotlib's ticks is drawn for about a millisecond; these are one line.
    axes.xaxis.set_minor_locator(NullLocator())
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    ticks = np.outer(powers, np.arange(2, 10)).ravel()
    ticks = ticks[(ticks >= low) & (ticks <= high)]
    style: dict[str, Any] = {"marker": _TICK_DOWN, "markersize": 2, "markeredgewidth": 0.6, "color": "black"}
    transform = axes.get_xaxis_transform()
    axes.plot(ticks, np.zeros(len(ticks)), linestyle="", transform=transform, clip_on=False, label="_", **style)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("epsilon: more similar than 1 − epsilon is a duplicate", fontsize=_FONT_SIZE, color=_INK)


def _share_axis(axes: "Axes", quantity: str, *, whole: bool = True) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_ylabel(quantity, fontsize=_FONT_SIZE, color=_INK)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    if whole:
        axes.set_ylim(0, 1.02)


def _log_counts(axes: "Axes", axis: Literal["x", "y"], counts: np.ndarray) -> None:
    """Make an axis logarithmic, with at least one tick; all ticks are round numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = int(counts.min()), int(counts.max())
    target = axes.xaxis if axis == "x" else axes.yaxis
    axes.set(**{f"{axis}scale": "log", f"{axis}lim": (0.8 * low, 1.25 * high * (high / low) ** 0.08)})
    steps = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0) if high < 8 * low else (1.0, 2.0, 5.0)
    target.set_major_locator(LogLocator(base=10, subs=steps if high < 1000 * low else (1.0,)))
    target.set_minor_locator(NullLocator())
    target.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if float(value).is_integer() else ""))


def _draw_labels(axes: "Axes", labels: Sequence[EpsilonLabel], *, quantity: str) -> None:
    """Draw a line and a point on the curve for each epsilon; the legend gives the curve's value there."""
    left, _ = axes.get_xlim()
    for index, colour in _coloured(labels, limit=_MAX_LABELS):
        label = labels[index]
        # A logarithmic axis cannot show 0.
        x = max(label.epsilon, left)
        # Only an exact share reads 0 % or 100 %.
        percent = f"{100 * label.share:.1f} %"
        if percent == "100.0 %" and label.share < 1:
            percent = "> 99.9 %"
        elif percent == "0.0 %" and label.share > 0:
            percent = "< 0.1 %"
        name = f"{_legend_name(label)}: {percent} {quantity}"
        axes.axvline(x, color=colour, linewidth=0.9, linestyle=":")
        axes.plot([x], [label.share], "o", color=colour, markersize=5.5, clip_on=False, zorder=4, label=name)


def _coloured(labels: Sequence[EpsilonLabel], *, limit: int) -> list[tuple[int, _Colour]]:
    """Indices of at most `limit` labels, smallest epsilon first and always with both ends, each with a colour."""
    from matplotlib import colormaps

    ascending = sorted(range(len(labels)), key=lambda index: labels[index].epsilon)
    ranks = np.unique(np.linspace(0, len(labels) - 1, min(limit, len(labels))).round().astype(np.int64))
    shades = np.linspace(0.75, 0.0, len(ranks))
    return [(ascending[rank], colormaps["plasma"](shade)) for rank, shade in zip(ranks, shades, strict=True)]


def _legend_name(label: EpsilonLabel) -> str:
    is_share = Target.parse(label.name).share is not None
    return f"{label.name} ({label.epsilon:.3g})" if is_share else label.name


def _draw_band(axes: "Axes", sizes: np.ndarray, share: np.ndarray, *, colour: _Colour, label: str) -> None:
    """Draw the median and 10 to 90 % of the shares by size; more clusters get more bins."""
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
    """Write a text above a height of the axes, at the left or right end."""
    axes.annotate(
        text,
        (1.0 if right else 0.0, height),
        xytext=(-4 if right else 4, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right" if right else "left",
        fontsize=_FONT_SIZE,
        color=colour,
    )


def _legend(axes: "Axes", *, title: str | None = None, above: bool = False) -> None:
    handles, _ = axes.get_legend_handles_labels()
    if not handles:
        return
    size = _FONT_SIZE - 0.5
    place = {"loc": "upper left", "ncols": len(handles)} if above else {"loc": "best"}
    legend = axes.legend(title=title, fontsize=size, title_fontsize=size, framealpha=0.85, **place)
    legend.get_frame().set_edgecolor("none")


def _draw_empty(axes: "Axes", reason: str = "no items") -> None:
    axes.text(
        0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=_GREY, fontsize=_FONT_SIZE + 2
    )
