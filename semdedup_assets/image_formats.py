"""Which formats of images are read: everything that opens an encoded image does it here."""

import io
import re
import struct
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import ImageFile

IMAGE_FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI", "ICO", "TGA",
)  # fmt: skip
"""Pillow's names of the formats that are read: those of the suffixes that sources know, and ICO, which web pages have under
any name. Pictures of phones with several frames (MPO) are JPEG. TGA, which has no magic number, comes last.

Each is decoded in this process, from the given bytes alone. Of Pillow's other formats EPS starts Ghostscript, IPTC holds an
image of any format, WMF, BUFR, GRIB and HDF5 call whatever was registered for them, FITS may be packed without a bound;
the rest are rare enough in training sets to be converted."""

_FOREIGN = {
    "HEIC": re.compile(rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL),
    "JPEG XL": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "),
    "PDF": re.compile(rb"%PDF-"),
    "SVG": re.compile(rb"\s*<svg\b"),
}
"""How images begin that Pillow has no name for."""
_HEAD = 16  # bytes by which Pillow's plugins know their format


def open_image(encoded: bytes) -> "ImageFile.ImageFile":
    """Open an encoded image of a format that is read; nothing is decoded yet.

    Raises:
        PIL.UnidentifiedImageError: it is of no such format.
        Exception: whatever Pillow's plugins raise on bytes that contradict their header.
    """
    from PIL import Image

    return Image.open(io.BytesIO(encoded), formats=_built_formats())  # noqa: TID251  # the one place


def excluded_format(encoded: bytes) -> str | None:
    """The format of an image that is not read, by its first bytes; None where they are of no known one."""
    from PIL import Image

    _built_formats()
    names = [name for name, head in _FOREIGN.items() if head.match(encoded)]
    names += [
        name for name, (_, accept) in Image.OPEN.items() if accept and _is_excluded(name, accept, encoded[:_HEAD])
    ]
    return names[0] if names else None


def _is_excluded(name: str, accept: "Callable[[bytes], bool | str]", head: bytes) -> bool:
    try:
        accepted = accept(head)
    except (LookupError, TypeError, SyntaxError, struct.error):
        return False  # fewer bytes than a plugin looks at
    # In words the plugin says that this Pillow was built without its library.
    return isinstance(accepted, str) or (accepted and name not in IMAGE_FORMATS)


@cache
def _built_formats() -> tuple[str, ...]:
    """The formats that this Pillow knows: earlier ones have neither AVIF nor QOI."""
    from PIL import Image

    Image.init()
    return tuple(name for name in IMAGE_FORMATS if name in Image.OPEN)
