import io

import numpy as np
from PIL import Image

from semdedup_assets.rendering.contact_sheet import Pair, contact_sheet


def square(colour: tuple[int, int, int]) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(content, "PNG")
    return content.getvalue()


def test_pairs_fill_lines_and_only_wrong_ones_have_a_red_frame() -> None:
    orange, purple = (250, 120, 0), (120, 0, 250)
    pairs = [
        Pair(square(orange), square(purple), 0.9, caption="a caption that is much too long for one line", wrong=wrong)
        for wrong in (None, False, True)
    ]
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(pairs, title="pairs", columns=2))).convert("RGB"))
    assert sheet.shape[1] == 2 * 160
    middle = 26 + (sheet.shape[0] - 26) // 2

    def columns_with(colour: tuple[int, int, int], part: np.ndarray) -> np.ndarray:
        return np.flatnonzero((part == colour).all(axis=2).any(axis=0))

    upper, lower = sheet[:middle], sheet[middle:]
    # The removed image lies left of the kept image, pair by pair.
    assert columns_with(orange, upper).min() < columns_with(purple, upper).min() < 160
    assert columns_with(orange, upper).max() > 160
    assert columns_with(purple, lower).max() < 160
    green, red = (58, 125, 68), (192, 57, 43)
    assert columns_with(green, upper).min() > 160
    assert len(columns_with(red, upper)) == 0
    assert len(columns_with(red, lower)) > 100
    assert len(columns_with(green, lower)) == 0
