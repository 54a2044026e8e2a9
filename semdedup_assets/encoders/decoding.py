"""Encoded images to RGB."""

import re
import struct
import sys
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.encoders.brightness import crowded_window, eight_bit, outlier_limits, varies
from semdedup_assets.image_formats import excluded_format, open_image

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 100_000_000
MAX_PIXELS_DESCRIPTION = (
    "Pixels of a picture at most; larger ones are listed as invalid. Decoding takes 4 bytes a pixel in each of "
    "`compute.decoding_threads` threads, about 9 with transparency or 16 bits a value."
)
# What Pillow's decoders raise on bytes that contradict their header.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, EOFError, RuntimeError, MemoryError,
    AttributeError, struct.error, zlib.error,
)  # fmt: skip
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Levels by which a pixel must differ from the ground to be seen on it, and the percentage of a drawing that must.
_CONTRAST, _SEEN_PERCENT = 16, 1
# The high bytes of 16-bit colours suffice if they reach the first and span the second.
_BRIGHT, _SPAN = 64, 32
_STRIP_PIXELS = 4 << 20
_SAMPLE_FORMAT, _GDAL_NODATA = 339, 42113  # tags of TIFF


class UndecodableImageError(Exception):
    """An image that cannot be embedded; its message is the reason."""


def rgb_image(encoded: bytes, *, shortest_side: int | None, max_pixels: int = MAX_PIXELS) -> "Image.Image":
    """Decode an image as OpenCLIP does: first frame, stored orientation, 8 bits a value.

    Two things differ, for pictures that would otherwise decode to one colour. Values of more than 8 bits are scaled by
    `eight_bit`; colours of 16 bits only where their high bytes stay below 64 or span less than 32, or where they have
    outliers. Transparency is put
    on white, or on black where less than 1% of the visible pixels would differ from white by 16 levels or more.

    Args:
        encoded: a file's content in one of the formats that are read.
        shortest_side: pixels to which the shortest side will be resized; None where the whole picture is
            squeezed or padded, so that its proportions do not matter.
        max_pixels: of the picture.

    Raises:
        UndecodableImageError: not an image, damaged, too large to be decoded or resized, or of one colour though the
            file's values are not.
    """
    from PIL import Image, UnidentifiedImageError

    if not encoded:
        message = "empty image file"
        raise UndecodableImageError(message)
    try:
        with _opened(encoded, max_pixels) as image:
            if shortest_side is not None:
                _check_elongation(image, shortest_side=shortest_side, max_pixels=max_pixels)
            return _to_rgb(image, encoded, max_pixels)
    except UnidentifiedImageError as error:
        # Pillow's own message holds an address, different in each run.
        raise UndecodableImageError(_unread(encoded)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        message = f"more pixels than `max_pixels`, {max_pixels} ({error})"
        raise UndecodableImageError(message) from error
    except _DECODER_ERRORS as error:
        message = f"image cannot be decoded: {error or type(error).__name__}"
        raise UndecodableImageError(message) from error


def _opened(encoded: bytes, max_pixels: int) -> "Image.Image":
    from PIL import Image

    # Pillow has one limit for the whole process, and only warns below twice of it. It stays as a second guard.
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels
    image = open_image(encoded)
    width, height = image.size
    if width * height > max_pixels:
        message = f"more pixels than `max_pixels`, {max_pixels} ({width} x {height})"
        raise UndecodableImageError(message)
    return image


def _unread(encoded: bytes) -> str:
    """Why an image cannot be identified."""
    if encoded.startswith(_TIFF_HEADS):
        return "a kind of TIFF that Pillow does not read"
    excluded = excluded_format(encoded)
    return f"{excluded}, a format that is not read; convert it to PNG" if excluded else "not an image in a known format"


def _check_elongation(image: "Image.Image", *, shortest_side: int, max_pixels: int) -> None:
    width, height = image.size
    resized = shortest_side**2 * max(width, height) / max(min(width, height), 1)
    if resized > max_pixels:
        message = f"{width} x {height} pixels is too elongated: resized, it would have {resized:.0f} pixels"
        raise UndecodableImageError(message)


def _to_rgb(image: "Image.Image", encoded: bytes, max_pixels: int) -> "Image.Image":
    low_bytes = _low_byte_tiles(image)
    image.load()
    values = _deep_values(image) if low_bytes is None else _sixteen_bit_values(image, encoded, low_bytes, max_pixels)
    picture = image if values is None else _from_values(image, values)
    if picture.has_transparency_data:
        rgb = _on_a_ground(picture)
    else:
        rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
    if _has_one_colour(rgb) and (varies(values) if values is not None else not _is_flat(image.getextrema())):
        message = "decodes to one colour, though the file's values differ"
        raise UndecodableImageError(message)
    return rgb


def _deep_values(image: "Image.Image") -> np.ndarray | None:
    """(height, width), where the picture's values have more than 8 bits; else None."""
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return None
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    if tags and values.dtype == np.int32 and tags.get(_SAMPLE_FORMAT, (1,)) == (1,):
        values = values.view(np.uint32)  # Pillow has no unsigned type
    absent = re.match(r"\s*[-+.\deE]+", str(tags.get(_GDAL_NODATA, "")))
    if absent:
        # Of maps: the value of pixels that have none, often far from all others.
        number = values.dtype.type(float(absent[0]))
        values = np.where(values == number, np.float32("nan"), values.astype(np.float32))
    return values


def _low_byte_tiles(image: "Image.Image") -> list[Any] | None:
    """How to decode the low bytes of 16-bit colours, of which Pillow reads the high ones.

    Returns:
        Tiles for Pillow, empty where it cannot read the low bytes; None for pictures without such.
    """
    tiles: Any = getattr(image, "tile", None)
    if not tiles or image.mode.startswith("I"):
        return None
    if image.format == "PPM" and tiles[0].args == ("RGB", 65535):
        # Pillow would scale by a decoder in Python.
        high, low = (tiles[0]._replace(codec_name="raw", args=(mode, 0, 1)) for mode in ("RGB;16B", "RGB;16L"))
        image.tile = [high]  # type: ignore[attr-defined]  # of files, not of other images
        return [low]
    rawmodes = [tile.args if isinstance(tile.args, str) else str((tile.args or ("",))[0]) for tile in tiles]
    if not re.search(r";16[LBN]$", rawmodes[0]):
        return None
    found = []
    for tile, rawmode in zip(tiles, rawmodes, strict=True):
        low_mode = _low_byte_mode(rawmode)
        if low_mode is None:
            return []
        found.append(tile._replace(args=low_mode if isinstance(tile.args, str) else (low_mode, *tile.args[1:])))
    return found


def _low_byte_mode(rawmode: str) -> str | None:
    if rawmode == "LA;16B":
        return "RGBA"  # all four bytes, for there is no mode for the low ones
    order = re.fullmatch(r"(RGB|RGBA|RGBX|CMYK|[RGBACMYK]);16([LBN])", rawmode)
    if order is None:
        return None
    native = "L" if sys.byteorder == "little" else "B"
    swapped = {"L": "B", "B": "L"}[native if order[2] == "N" else order[2]]
    return f"{order[1]};16{swapped}"


def _sixteen_bit_values(
    image: "Image.Image", encoded: bytes, low_bytes: list[Any], max_pixels: int
) -> np.ndarray | None:
    """(height, width, bands) uint16, where the high bytes alone may lose the picture; else None."""
    image.info.pop("transparency", None)  # a 16-bit colour, of no meaning for 8 bits
    uses_its_range = _high_bytes_suffice(image)
    if uses_its_range and not _high_bytes_are_crowded(image):
        return None
    if not low_bytes:
        message = "16 bits a value in a layout of which Pillow reads the high bytes only, and these hold too little"
        raise UndecodableImageError(message)
    with _opened(encoded, max_pixels) as other:
        other.tile = low_bytes  # type: ignore[attr-defined]
        other.load()
        low = np.asarray(other)
    if low_bytes[0].args == "RGBA":  # grey and alpha, two bytes each
        grey, alpha = (low[..., band].astype(np.uint16) << 8 | low[..., band + 1] for band in (0, 2))
        values = np.dstack([grey, grey, grey, alpha])
    else:
        values = np.asarray(image).astype(np.uint16)
        values <<= 8
        values |= low
    colours = values[..., :3] if image.mode == "RGBA" else values
    if uses_its_range and outlier_limits(colours) == (colours.min(), colours.max()):
        return None
    return values


def _high_bytes_suffice(image: "Image.Image") -> bool:
    ranges = np.array(image.getextrema()).reshape(-1, 2)
    colours, alpha = (ranges[:3], ranges[3:]) if image.mode == "RGBA" else (ranges, ranges[:0])
    is_bright = colours.max() >= _BRIGHT and colours.max() - colours.min() >= _SPAN
    return bool(is_bright and (not len(alpha) or alpha.max() >= _BRIGHT))


def _high_bytes_are_crowded(image: "Image.Image") -> bool:
    """Whether few high bytes stand for almost all of the colours, so that these may have outliers."""
    bands = np.array(image.histogram()).reshape(-1, 256)
    counts = (bands[:3] if image.mode == "RGBA" else bands).sum(0)
    return crowded_window(counts, np.ones(256, bool), counts.sum() / 100) is not None


def _from_values(image: "Image.Image", values: np.ndarray) -> "Image.Image":
    from PIL import Image

    if values.ndim == 2:
        picture = Image.fromarray(eight_bit(values))
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            picture.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
        return picture
    colours = eight_bit(values[..., :3] if image.mode == "RGBA" else values)
    if image.mode == "RGBA":
        colours = np.dstack([colours, eight_bit(values[..., 3], stretch=False)])
    return Image.frombytes(image.mode, image.size, colours.tobytes())


def _on_a_ground(image: "Image.Image") -> "Image.Image":
    """RGB, on white; on black, where the drawing would be hard to see on white."""
    layer = image if image.mode == "RGBA" else (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    alpha = layer.getchannel("A").histogram()
    if alpha[255] == layer.width * layer.height:
        return layer.convert("RGB")
    on_white = _composed(layer, "white")
    levels = on_white.histogram()
    seen = max(sum(levels[band : band + 256 - _CONTRAST]) for band in (0, 256, 512))
    if seen * 100 >= sum(alpha[1:]) * _SEEN_PERCENT:
        return on_white
    del on_white
    return _composed(layer, "black")


def _composed(layer: "Image.Image", ground: str) -> "Image.Image":
    from PIL import Image

    composed = Image.new("RGB", layer.size)
    rows = max(1, _STRIP_PIXELS // layer.width)
    for top in range(0, layer.height, rows):
        box = (0, top, layer.width, min(top + rows, layer.height))
        strip = layer.crop(box)
        composed.paste(Image.alpha_composite(Image.new("RGBA", strip.size, ground), strip).convert("RGB"), box)
    return composed


def _has_one_colour(image: "Image.Image") -> bool:
    width, height = image.size
    first = image.getpixel((0, 0))
    # Most pictures differ at one of a few pixels, which is far faster than looking at all.
    spots = ((width * a // 7, height * b // 7) for a, b in ((1, 2), (2, 5), (3, 3), (4, 1), (5, 4), (6, 6)))
    return all(image.getpixel(spot) == first for spot in spots) and _is_flat(image.getextrema())


def _is_flat(extrema: Any) -> bool:
    """Whether least and greatest value are the same, in each band."""
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return all(low == high for low, high in bands)
