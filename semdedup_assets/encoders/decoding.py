"""Encoded images to RGB."""

import io
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

# What Pillow's decoders raise on bytes that contradict their header.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, EOFError, RuntimeError, MemoryError,
    AttributeError, struct.error, zlib.error,
)  # fmt: skip


class UndecodableImageError(Exception):
    """An image that cannot be embedded; its message is the reason."""


def rgb_image(encoded: bytes, *, shortest_side: int | None) -> "Image.Image":
    """Decode an image as OpenCLIP does (first frame, stored orientation), transparency on white.

    Args:
        encoded: a file's content in a format that Pillow reads.
        shortest_side: pixels to which the shortest side will be resized; None where the whole picture is
            squeezed or padded, so that its proportions do not matter.

    Raises:
        UndecodableImageError: not an image, damaged, or too large to be decoded or resized.
    """
    from PIL import Image, UnidentifiedImageError

    if not encoded:
        message = "empty image file"
        raise UndecodableImageError(message)
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if shortest_side is not None:
                _check_elongation(image, shortest_side=shortest_side)
            return _to_rgb(image)
    except UnidentifiedImageError as error:
        # Pillow's own message holds an address, different in each run.
        message = "not an image in a known format"
        raise UndecodableImageError(message) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        message = f"decompression bomb: {error}"
        raise UndecodableImageError(message) from error
    except _DECODER_ERRORS as error:
        message = f"image cannot be decoded: {error or type(error).__name__}"
        raise UndecodableImageError(message) from error


def _check_elongation(image: "Image.Image", *, shortest_side: int) -> None:
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    width, height = image.size
    resized = shortest_side**2 * max(width, height) / max(min(width, height), 1)
    if limit is not None and resized > limit:
        message = f"{width} x {height} pixels is too elongated: resized, it would have {resized:.0f} pixels"
        raise UndecodableImageError(message)


def _to_rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        # Pillow would cut 16-bit greys off at 255, which leaves a white picture.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")
