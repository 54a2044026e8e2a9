"""The picture of held-out items: how similar they are to what is trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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

_BINS = 40


@dataclass(frozen=True, slots=True)
class SplitSimilarity:
    """Held-out items of one split.

    Attributes:
        label: in the legend.
        similarity: (n,) of each to its nearest training item, in [-1, 1].
    """

    label: str
    similarity: np.ndarray


def similarity_to_training(splits: Sequence[SplitSimilarity], *, epsilon: float, title: str, note: str) -> bytes:
    """Draw the similarities of held-out items to their nearest training items.

    Args:
        splits: at most two, each with at least one item.
        epsilon: within which an item counts as a near duplicate.
        title: of the picture.
        note: a line below the title.

    Returns:
        PNG.
    """
    figure, axes = _new_figure(title, note)
    _share_axis(axes, "items of the split", whole=False)
    axes.set_xlabel("cosine similarity to the nearest training item", fontsize=_FONT_SIZE, color=_INK)
    if not splits:
        _draw_empty(axes)
        return _png(figure)
    least = min(float(split.similarity.min()) for split in splits)
    edges = np.linspace(min(least, 1 - epsilon, 0.99), 1.0 + 1e-6, _BINS + 1)
    for split, colour in zip(splits, (_BLUE, _ORANGE), strict=False):
        counts, _ = np.histogram(np.minimum(split.similarity, 1.0), edges)
        axes.stairs(counts / len(split.similarity), edges, color=colour, linewidth=1.6, label=split.label)
    axes.axvline(1 - epsilon, color=_GREY, linewidth=0.9, linestyle=":", label=f"1 - {epsilon:g}: novel up to here")
    axes.set_ylim(bottom=0)
    _legend(axes)
    return _png(figure)
