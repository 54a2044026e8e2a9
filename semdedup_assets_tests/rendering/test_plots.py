"""The plots by their pixels: what they show, that nothing is cut off, and their size in bytes."""

import io
import subprocess
import sys
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from PIL import Image

from semdedup_assets.rendering import plots
from semdedup_assets.rendering.held_out_plots import SplitSimilarity, similarity_to_training
from semdedup_assets.rendering.plots import EpsilonLabel

GRID = np.concatenate([[0.0], np.geomspace(1e-6, 2, 500)])
EDGES = np.linspace(-1, 1, 201)
NOTE = "a-dataset-with-a-long-name/ViT-B-16-laion2b-s34b-b88k, k=50000: all 438,000,000 items of all clusters"
MANY = [EpsilonLabel(f"{epsilon:.4g}", float(epsilon), float(1 - epsilon)) for epsilon in np.linspace(0.005, 0.3, 20)]
ODD = [EpsilonLabel("0", 0.0, 1.0), EpsilonLabel("keep=50%", 1e-9, 0.5), EpsilonLabel("2", 2.0, 0.0)]
NO_ITEMS = np.full(len(GRID), np.nan)
LARGE = np.concatenate([np.random.default_rng(0).lognormal(9, 1, 20_000).astype(np.int64) + 1, [3_070_000], [0, 0]])
BELL = (1e8 * np.exp(-(((EDGES[1:] - 0.5) / 0.2) ** 2))).astype(np.int64)
HELD_OUT = [
    SplitSimilarity(f"{name}: 2,000 texts", np.random.default_rng(0).beta(b, 2, 2000))
    for name, b in (("random split", 9), ("unseen groups", 4))
]
NO_PAIRS = np.zeros(200, dtype=np.int64)

PLOTS: dict[str, Callable[[], bytes]] = {
    "kept, many epsilons": lambda: plots.kept_by_epsilon(GRID, 1 - GRID.clip(0, 1), labels=MANY, note=NOTE),
    "kept, epsilons 0 and 2": lambda: plots.kept_by_epsilon(GRID, 1 - GRID.clip(0, 1), labels=ODD, note=NOTE),
    "kept, all": lambda: plots.kept_by_epsilon(GRID, np.ones(len(GRID)), labels=ODD[:1], note=NOTE),
    "kept, no items": lambda: plots.kept_by_epsilon(GRID, NO_ITEMS, labels=[], note=NOTE),
    "duplicates": lambda: plots.duplicates_by_epsilon(GRID, GRID / 2, removed=GRID / 4, labels=MANY, note=NOTE),
    "duplicates, none": lambda: plots.duplicates_by_epsilon(GRID, NO_ITEMS, removed=NO_ITEMS, labels=[], note="$5"),
    "similarities": lambda: plots.similarities(EDGES, pairs=BELL, items=BELL[::-1], labels=MANY, note=NOTE),
    "similarities, none": lambda: plots.similarities(EDGES, pairs=NO_PAIRS, items=NO_PAIRS, labels=ODD, note=NOTE),
    "similarities, all 1": lambda: plots.similarities(
        EDGES, pairs=np.eye(1, 200, 199)[0], items=np.eye(1, 200, 199)[0], labels=ODD[:1], note=NOTE
    ),
    "removed": lambda: plots.removed_by_cluster_size(
        LARGE, (LARGE * np.linspace(0, 1, 20)[:, None]).astype(np.int64), labels=MANY, note=NOTE
    ),
    "removed, one cluster": lambda: plots.removed_by_cluster_size(
        np.array([31]), np.array([[7]]), labels=MANY[:1], note=NOTE
    ),
    "removed, no items": lambda: plots.removed_by_cluster_size(
        np.zeros(3, dtype=np.int64), np.zeros((1, 3), dtype=np.int64), labels=MANY[:1], note=NOTE
    ),
    "held out": lambda: similarity_to_training(HELD_OUT, epsilon=0.1, title="Held-out items", note=NOTE),
    "held out, equal": lambda: similarity_to_training(
        [SplitSimilarity("all equal", np.ones(9))], epsilon=0, title="Held-out items", note=NOTE
    ),
    "held out, none": lambda: similarity_to_training([], epsilon=2, title="Held-out items", note=NOTE),
    "sizes": lambda: plots.cluster_sizes(LARGE, note=NOTE),
    "sizes, one cluster": lambda: plots.cluster_sizes(np.array([31]), note=NOTE),
    "sizes, no items": lambda: plots.cluster_sizes(np.zeros(3, dtype=np.int64), note=NOTE),
    "convergence": lambda: plots.convergence((1 - 1 / np.arange(2, 102)).tolist(), title="k-means, k=50,000"),
    "convergence, constant": lambda: plots.convergence([1.0] * 3, title="k-means of $k"),
    "convergence, one iteration": lambda: plots.convergence([0.5], title="k-means"),
    "convergence, none": lambda: plots.convergence([], title="k-means"),
}


@cache
def plot(name: str) -> bytes:
    return PLOTS[name]()


def pixels(png: bytes) -> np.ndarray:
    """(height, width, 3) int."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def blue_rows(png: bytes) -> np.ndarray:
    """Pixel rows with the curve's blue right of the middle, where there is no legend."""
    picture = pixels(png)[:, 480:]
    return np.unique(np.flatnonzero((np.abs(picture - (0x2B, 0x6C, 0xB0)).sum(axis=2) < 40).any(axis=1)))


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_fits_the_dialog_and_the_event_log(name: str) -> None:
    png = plot(name)
    height, width, _ = pixels(png).shape
    assert png.startswith(b"\x89PNG")
    assert width == 600
    assert height <= 450
    assert len(png) < 100_000


@pytest.mark.parametrize("name", PLOTS)
def test_nothing_is_cut_off_at_the_edges_of_a_plot(name: str) -> None:
    picture = pixels(plot(name))
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (border == 255).all()
    assert (picture != 255).any()


@pytest.mark.parametrize("name", ["kept, many epsilons", "removed", "similarities"])
def test_the_same_numbers_give_the_same_bytes(name: str) -> None:
    assert PLOTS[name]() == plot(name)


def test_the_curve_lies_at_the_height_of_its_share() -> None:
    heights = {
        share: blue_rows(plots.kept_by_epsilon(GRID, np.full(len(GRID), share), labels=[], note="x")).mean()
        for share in (0.25, 0.5, 0.75)
    }
    assert heights[0.75] < heights[0.5] < heights[0.25]
    assert heights[0.25] - heights[0.5] == pytest.approx(heights[0.5] - heights[0.75], abs=1.5)
    # A quarter of the axes' height; the axes fill most of the plot.
    assert 50 < heights[0.25] - heights[0.5] < 95


def test_each_label_changes_the_plot() -> None:
    kept = 1 - GRID.clip(0, 1)
    one, two, none = (plots.kept_by_epsilon(GRID, kept, labels=labels, note="x") for labels in (MANY[:1], MANY[:2], []))
    assert len({one, two, none}) == 3


def test_a_share_just_below_all_does_not_read_as_100_percent() -> None:
    kept = np.full(len(GRID), 0.99999)
    almost = plots.kept_by_epsilon(GRID, kept, labels=[EpsilonLabel("0.1", 0.1, 0.99999)], note="x")
    whole = plots.kept_by_epsilon(GRID, kept, labels=[EpsilonLabel("0.1", 0.1, 1.0)], note="x")
    assert almost != whole


def test_drawing_leaves_matplotlib_s_global_state_alone() -> None:
    code = (
        "import sys, numpy as np\n"
        "from semdedup_assets.rendering import plots\n"
        "assert 'matplotlib' not in sys.modules, 'loaded on import'\n"
        "import matplotlib\n"
        "before = matplotlib.rcParams.copy()\n"
        "plots.cluster_sizes(np.array([1, 2]), note='x')\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot'\n"
        "assert matplotlib.rcParams.copy() == before, 'settings'\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
