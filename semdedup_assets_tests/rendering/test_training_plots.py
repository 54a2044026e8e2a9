"""The plots of training by their pixels."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from semdedup_assets.rendering.training_plots import BitsBars, CoverageBars, bits_per_byte, coverage

BLUE, GREY = (43, 108, 176), (227, 227, 227)
NAMES = ["base", "clusters", "a_column_with_a_very_long_name", "$5", "year", "source", "beyond the sixth"]


def coverage_picture(kept: list[int], random: list[float], names: list[str]) -> bytes:
    values, deviation = np.full(len(kept), 1000), np.full(len(kept), 12.5)
    bars = CoverageBars(names, values, np.array(kept), np.array(random), deviation)
    return coverage(bars, title="Covered", note="a note")


def bits_picture(kept: list[float], random: list[float]) -> bytes:
    everything, deviation = np.ones(len(kept)), np.full(len(kept), 0.02)
    bars = BitsBars(["random", "novel"][: len(kept)], everything, np.array(kept), np.array(random), deviation)
    return bits_per_byte(bars, title="Bits", note="a note")


def pixels(png: bytes, colour: tuple[int, int, int]) -> np.ndarray:
    """(h, w) bool: where the axes of a picture, below its legend, have a colour."""
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    found: np.ndarray = (abs(image - colour).max(axis=2) <= 6)[85:]
    return found


@pytest.mark.parametrize(
    "draw", [lambda a, b: coverage_picture([a], [b], ["base"]), lambda a, b: bits_picture([a / 500], [b / 500])]
)
def test_bars_are_as_high_as_their_numbers(draw: Callable[[int, int], bytes]) -> None:
    png = draw(900, 450)
    high, low = (int(pixels(png, colour).sum(axis=0).max()) for colour in (BLUE, GREY))
    assert high == pytest.approx(2 * low, abs=14)


@pytest.mark.parametrize(
    "png",
    [
        coverage_picture([], [], []),
        coverage_picture([1000] * 7, [990.0] * 7, NAMES),
        coverage_picture([0], [0.0], ["base"]),
        bits_picture([], []),
        bits_picture([1.25, 2.5], [1.5, 2.25]),
    ],
)
def test_pictures_fit_dagsters_dialog_and_nothing_is_cut_off(png: bytes) -> None:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    assert image.size == (600, 380)
    frame = np.asarray(image).copy()
    frame[2:-2, 2:-2] = 255
    assert (frame == 255).all()
