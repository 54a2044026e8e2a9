"""Image files that Pillow cannot write."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encoded(image: Image.Image, format_: str = "PNG") -> bytes:
    """The image as a file that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, format_)
    return buffer.getvalue()


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises a picture that is not there."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png_of([(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")])


def blank_png(side: int) -> bytes:
    """A true RGB PNG of one colour, in which a thousand pixels take a byte."""
    rows, packer = b"\0" * (3 * side + 1), zlib.compressobj(9)
    pixels = b"".join([packer.compress(rows) for _ in range(side)] + [packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return png_of([(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")])


def png16(values: np.ndarray) -> bytes:
    """(height, width, 1 to 4) uint16 as a PNG: grey, grey and alpha, RGB, RGBA."""
    height, width, bands = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    return png_of([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def tiff(values: np.ndarray, *, alpha: int = 2, deflate: bool = False, order: str = "<") -> bytes:
    """(height, width, bands) numbers as a TIFF in strips of seven rows.

    Args:
        values: integers or floats of any width.
        alpha: what a fourth band is: 1 alpha that colours were multiplied by, 2 plain alpha.
        deflate: compressed.
        order: of the bytes, `<` or `>`.
    """
    height, width, bands = values.shape
    stored = values.astype(values.dtype.newbyteorder(order))
    strips = [stored[top : top + 7].tobytes() for top in range(0, height, 7)]
    strips = [zlib.compress(strip) if deflate else strip for strip in strips]
    starts = np.cumsum([8, *(len(strip) for strip in strips)]).tolist()
    tags = [
        (256, 4, [width]), (257, 4, [height]), (258, 3, [values.dtype.itemsize * 8] * bands),
        (259, 3, [8 if deflate else 1]), (262, 3, [1 if bands == 1 else 2]), (273, 4, starts[:-1]), (277, 3, [bands]),
        (278, 4, [7]), (279, 4, [len(strip) for strip in strips]),
        *([(338, 3, [alpha])] if bands == 4 else []),
        (339, 3, [{"u": 1, "i": 2, "f": 3}[values.dtype.kind]] * bands),
    ]  # fmt: skip
    directory, beyond = struct.pack(f"{order}H", len(tags)), b""
    beyond_start = starts[-1] + 2 + 12 * len(tags) + 4
    for tag, kind, numbers in tags:
        data = b"".join(struct.pack(order + ("H" if kind == 3 else "I"), number) for number in numbers)
        if len(data) > 4:
            beyond, data = beyond + data, struct.pack(f"{order}I", beyond_start + len(beyond))
        directory += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + data.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, starts[-1])
    return head + b"".join(strips) + directory + struct.pack(f"{order}I", 0) + beyond
