import io
import re
import struct
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, TiffImagePlugin

from semdedup_assets.encoders.brightness import eight_bit
from semdedup_assets.encoders.decoding import UndecodableImageError, rgb_image
from semdedup_assets_tests.encoders.picture_files import blank_png, encoded, png16, png_of_size, tiff

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (30, 40)).astype(np.uint8)
GREY[0, :2] = 0, 255
COLOURS = np.dstack([GREY, GREY.T.reshape(30, 40), np.flipud(GREY)])
OPAQUE = np.full_like(GREY, 255)


def decoded(payload: bytes) -> np.ndarray:
    return np.asarray(rgb_image(payload, shortest_side=None))


def wide(values: np.ndarray, bits: int) -> np.ndarray:
    """8-bit values as those of more bits, in 16."""
    return (values.astype(np.int64) * (2**bits - 1) // 255).astype(np.uint16)


def assert_shows(payload: bytes, expected: np.ndarray) -> None:
    """The file decodes to this picture, to the last of 8 bits."""
    expected = np.dstack([expected] * 3) if expected.ndim == 2 else expected
    assert np.abs(decoded(payload).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_files_of_16_bits_show_the_bits_that_are_used(bits: int) -> None:
    grey, colours = wide(GREY, bits), wide(COLOURS, bits)
    greys = {
        "PNG": encoded(Image.fromarray(grey)),
        "PNG with alpha": png16(np.dstack([grey, wide(OPAQUE, bits)])),
        "PGM": b"P5 40 30 65535\n" + grey.astype(">u2").tobytes(),
        "PGM that says its depth": b"P5 40 30 %d\n" % (2**bits - 1)
        + grey.astype(">u2" if bits > 8 else "u1").tobytes(),
        "TIFF": tiff(grey[..., None]),
        "TIFF, big-endian": tiff(grey[..., None], order=">"),
        "TIFF, signed": tiff((grey[..., None] // 2).astype(np.int16) * 2)
        if bits < 16
        else encoded(Image.fromarray(grey)),
        "TIFF, 32 bits": tiff(grey[..., None].astype(np.int32), deflate=True),
        "TIFF, floats": tiff(grey[..., None].astype(np.float32)),
    }
    for payload in greys.values():
        assert_shows(payload, GREY)
    for payload in [
        png16(colours),
        png16(np.dstack([colours, wide(OPAQUE, bits)])),
        b"P6 40 30 65535\n" + colours.astype(">u2").tobytes(),
        tiff(colours),
        tiff(colours, deflate=True),
        tiff(colours, order=">"),
        tiff(colours, order=">", deflate=True),
        tiff(np.dstack([colours, wide(OPAQUE, bits)]), deflate=True),
    ]:
        assert_shows(payload, COLOURS)


def test_a_layout_of_16_bits_that_cannot_be_read_whole_is_used_or_listed_never_darkened() -> None:
    bright, dark = (np.dstack([wide(COLOURS, bits), wide(OPAQUE, bits)]) for bits in (16, 10))
    assert_shows(tiff(bright, alpha=1), COLOURS)
    with pytest.raises(UndecodableImageError, match="high bytes only, and these hold too little"):
        decoded(tiff(dark, alpha=1))


@pytest.mark.parametrize(
    "values",
    [GREY / 255, GREY / 127.5 - 1, GREY * 1.0, GREY * 257.0, GREY * 1e6, GREY * 1e-9, GREY / 12, GREY / 245 - 0.02],
    ids=["0..1", "-1..1", "0..255", "0..65535", "millions", "billionths", "0..21", "just beyond 0..1"],
)
def test_floats_are_scaled_by_their_own_range(values: np.ndarray) -> None:
    for order in ("<", ">"):
        assert_shows(tiff(values[..., None].astype(np.float32), order=order), GREY)


def test_integers_of_any_range_are_seen() -> None:
    assert_shows(tiff((GREY[..., None].astype(np.int64) * 16_843_009).astype(np.uint32)), GREY)
    assert_shows(tiff((GREY[..., None].astype(np.int64) * 16_843_009 - 2**31).astype(np.int32)), GREY)
    assert_shows(tiff(GREY[..., None].astype(np.int16) * 15 - 1000), GREY)  # Hounsfield units
    assert_shows(encoded(Image.fromarray(GREY.astype(np.uint16) * 12 + 28_000)), GREY)  # a thermal camera
    labels = (GREY // 64).astype(np.uint16)
    assert_shows(encoded(Image.fromarray(labels)), labels * 85)


def test_a_sixteen_bit_picture_that_uses_its_range_keeps_its_brightness() -> None:
    values = RNG.integers(8000, 60_000, (30, 40)).astype(np.uint16)
    assert_shows(encoded(Image.fromarray(values)), values // 257)
    night = (GREY // 8).astype(np.uint16)  # widened from 8 bits, so dark on purpose
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(night * 257)))[..., 0], night)
    assert eight_bit(np.full((2, 2), 65_535, np.uint16)).max() == 255


def test_pixels_that_are_not_finite_do_not_hide_the_others() -> None:
    values = GREY / 255
    values[0, 2:5] = np.nan, np.inf, -np.inf
    expected = GREY.copy()
    expected[0, 2:5] = 0, 255, 0
    assert_shows(tiff(values[..., None].astype(np.float32)), expected)
    with pytest.raises(UndecodableImageError, match="no pixel has a finite value"):
        decoded(tiff(np.full((9, 9, 1), np.nan, np.float32)))


def test_values_that_mean_none_in_maps_do_not_hide_the_others() -> None:
    heights = GREY * 3.5 - 10
    expected = GREY.copy()
    heights[5:9], expected[5:9] = -3.4028235e38, 0
    assert_shows(tiff(heights[..., None].astype(np.float32)), expected)
    heights[5:9] = -9999
    for values in (heights.astype(np.float32), (heights * 2).astype(np.int16)):
        image, tags = Image.open(io.BytesIO(tiff(values[..., None]))), TiffImagePlugin.ImageFileDirectory_v2()
        tags[42113], buffer = str(int(values[5, 0])), io.BytesIO()
        image.save(buffer, "TIFF", tiffinfo=tags)
        assert_shows(buffer.getvalue(), expected)


def squares(seed: int, bands: int = 1) -> np.ndarray:
    """(32, 32) or (32, 32, bands) floats from 0 to 1: squares of 4 pixels."""
    values = np.kron(np.random.default_rng(seed).random((8, 8, bands)), np.ones((4, 4, 1)))
    return values[..., 0] if bands == 1 else values


def spoiled(values: np.ndarray, where: str, outlier: float) -> np.ndarray:
    """The same with an outlier at some pixels."""
    rows, columns = np.mgrid[:32, :32]
    pixels = {
        "pixel": (rows == 0) & (columns == 0),
        "column": columns == 11,
        "third": rows < 12,
        "border": (rows % 29 < 3) | (columns % 29 < 3),
    }[where]
    return np.where(pixels[..., None] if values.ndim == 3 else pixels, outlier, values)


def grey_png(values: np.ndarray) -> bytes:
    return encoded(Image.fromarray(values.astype(np.uint16)))


def grey_tiff(values: np.ndarray, dtype: type = np.float32) -> bytes:
    return tiff(values.astype(dtype)[..., None])


WITH_OUTLIERS = {
    "hot pixel": lambda seed: grey_png(spoiled(squares(seed) * 200, "pixel", 65_535)),
    "hot pixel, 10 bits": lambda seed: grey_png(spoiled(squares(seed) * 1023, "pixel", 65_535)),
    "hot pixel, 12 bits": lambda seed: grey_png(spoiled(squares(seed) * 4095, "pixel", 65_535)),
    "hot pixel, floats": lambda seed: grey_tiff(spoiled(squares(seed), "pixel", 1e10)),
    "cold pixel": lambda seed: grey_png(spoiled(squares(seed) * 200 + 30_000, "pixel", 0)),
    "cold pixel, floats": lambda seed: grey_tiff(spoiled(squares(seed), "pixel", -9999)),
    "cold pixel, 32 bits": lambda seed: grey_tiff(spoiled(squares(seed) * 1000, "pixel", -(2**31)), np.int32),
    "dead column": lambda seed: grey_png(spoiled(squares(seed) * 200 + 30_000, "column", 0)),
    "a third without data": lambda seed: grey_tiff(spoiled(squares(seed), "third", -9999)),
    "border of zeros": lambda seed: grey_png(spoiled(squares(seed) * 200 + 30_000, "border", 0)),
    "border of 255": lambda seed: grey_tiff(spoiled(squares(seed), "border", 255)),
    "border of -32768": lambda seed: grey_tiff(spoiled(squares(seed) * 1000, "border", -32_768), np.int16),
    "several": lambda seed: grey_tiff(
        spoiled(spoiled(spoiled(squares(seed), "column", -9999), "border", -32_768), "pixel", 1e10)
    ),
    "RGB PNG": lambda seed: png16(spoiled(squares(seed, 3) * 200, "pixel", 65_535).astype(np.uint16)),
    "RGBA PNG": lambda seed: png16(
        np.dstack([spoiled(squares(seed, 3) * 200, "column", 65_535), np.full((32, 32), 65_535)]).astype(np.uint16)
    ),
    "RGB PPM": lambda seed: (
        b"P6 32 32 65535\n" + spoiled(squares(seed, 3) * 200, "pixel", 65_535).astype(">u2").tobytes()
    ),
    "RGB TIFF": lambda seed: tiff(spoiled(squares(seed, 3) * 200 + 30_000, "border", 0).astype(np.uint16)),
}


@pytest.mark.parametrize("name", WITH_OUTLIERS)
def test_outliers_do_not_hide_the_picture(name: str) -> None:
    for seed in range(3):
        picture, shown = squares(seed, 3 if "RGB" in name else 1), decoded(WITH_OUTLIERS[name](seed))
        inside = np.s_[12:29, 12:29]  # without any outlier
        shown = shown if picture.ndim == 3 else shown[..., 0]
        levels, values = shown[inside].reshape(-1).astype(float), picture[inside].reshape(-1)
        assert np.corrcoef(levels, values)[0, 1] > 0.999
        assert np.ptp(levels) / np.ptp(values) > 120


def test_outliers_keep_their_order_and_levels_of_their_own() -> None:
    values = squares(0) * 200 + 30_000
    values[0, :4] = 0, 500, 60_000, 65_535
    shown = decoded(grey_png(values))[..., 0].astype(int)
    assert (shown[0, 0], shown[0, 3]) == (0, 255)
    assert shown[0, 0] <= shown[0, 1] <= 15
    assert 240 <= shown[0, 2] < shown[0, 3]
    assert shown[1:].min() == 32
    assert shown[1:].max() == 223


def small_objects(ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A 16-bit picture with 16 stars, 0.4% of its pixels, and where these are."""
    at = np.zeros((128, 128), bool)
    for y, x in np.random.default_rng(1).integers(2, 126, (16, 2)).tolist():
        at[y : y + 2, x : x + 2] = True
    return np.where(at, 20_000 + np.arange(128) * 350, ground).astype(np.uint16), at


def test_stars_on_a_black_sky_keep_their_brightness() -> None:
    values, _ = small_objects(np.zeros((128, 128)))
    expected = values // 257
    assert_shows(encoded(Image.fromarray(values)), expected)
    np.testing.assert_array_equal(decoded(png16(np.dstack([values] * 3))), np.dstack([values >> 8] * 3))
    assert_shows(grey_tiff(values / 65_535), expected)


@pytest.mark.parametrize("noise", [4, 40, 300])
def test_stars_on_a_sky_that_varies_are_seen_on_it(noise: int) -> None:
    values, at = small_objects(RNG.integers(0, noise, (128, 128)) + 900)
    for payload in (encoded(Image.fromarray(values)), png16(np.dstack([values] * 3)), grey_tiff(values / 65_535)):
        shown = decoded(payload)[..., 0].astype(int)
        assert shown[at].min() - shown[~at].max() >= 16


def test_a_picture_that_uses_its_range_is_as_before_though_most_of_it_is_dark() -> None:
    dark = (RNG.random((60, 60)) ** 4 * 65_535).astype(np.uint16)
    assert_shows(encoded(Image.fromarray(dark)), dark // 257)
    colours = (RNG.random((60, 60, 3)) ** 4 * 65_535).astype(np.uint16)
    np.testing.assert_array_equal(decoded(png16(colours)), colours >> 8)
    labels = np.array([0, 1000, 30_000, 45_000, 65_535], np.uint16)[RNG.integers(0, 5, (30, 30))]
    assert_shows(encoded(Image.fromarray(labels)), labels // 257)
    sparse = np.full((50, 50), np.nan)
    sparse[20, :40] = np.linspace(0, 1, 40)  # 1.6% of the picture are all of it
    assert np.abs(decoded(grey_tiff(sparse))[20, :40, 0] - np.linspace(0, 255, 40)).max() <= 1


def test_pictures_of_eight_bits_are_those_that_pillow_reads() -> None:
    shards = sorted((Path(__file__).parents[2] / "examples/emoji/shards").glob("*.tar"))
    count = 0
    for shard in shards:
        with tarfile.open(shard) as archive:
            for member in archive:
                if not member.name.endswith(".png"):
                    continue
                payload, count = archive.extractfile(member).read(), count + 1  # type: ignore[union-attr]
                image = Image.open(io.BytesIO(payload)).convert("RGBA")
                white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
                black = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")
                shown = rgb_image(payload, shortest_side=None).tobytes()
                assert shown in (white.tobytes(), black.tobytes())
    assert count == 1364


def test_a_colour_that_means_transparent_works_in_16_bits() -> None:
    values = wide(GREY, 12)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", transparency=int(values[3, 3]))
    assert_shows(buffer.getvalue(), np.where(values == values[3, 3], 255, GREY))


def drawing(colour: tuple[int, ...], seed: int = 0) -> Image.Image:
    """A few discs on transparent ground."""
    image = Image.new("RGBA", (60, 60), (*colour[:3], 0))
    for x, y in np.random.default_rng(seed).integers(0, 45, (4, 2)).tolist():
        ImageDraw.Draw(image).ellipse((x, y, x + 14, y + 14), fill=colour)
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "WEBP", "GIF"])
@pytest.mark.parametrize("level", [255, 250])
def test_a_white_drawing_on_transparent_ground_stays_visible(mode: str, level: int) -> None:
    image = drawing((level, level, level, 255))
    expected = np.asarray(image.getchannel("A"))[..., None] // 255 * np.full(3, level)
    payload = {
        "P": lambda: encoded(image.quantize(8)),
        "GIF": lambda: encoded(image, "GIF"),
        "WEBP": lambda: webp(image),
    }.get(mode, lambda: encoded(image.convert(mode)))()
    assert np.abs(decoded(payload).astype(int) - expected).max() <= 5


def webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 0, 0), (255, 255, 0), (255, 224, 189), (128, 128, 128)])
def test_other_drawings_stay_on_white(colour: tuple[int, int, int]) -> None:
    for alpha in (255, 120):
        image = drawing((*colour, alpha))
        white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        np.testing.assert_array_equal(decoded(encoded(image)), np.asarray(white))


def test_a_white_drawing_with_an_outline_stays_on_white() -> None:
    image = drawing((255, 255, 255, 255))
    ImageDraw.Draw(image).ellipse((5, 5, 40, 40), outline=(90, 90, 90, 255))
    white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    np.testing.assert_array_equal(decoded(encoded(image)), np.asarray(white))


def test_different_white_drawings_stay_different() -> None:
    assert len({decoded(encoded(drawing((255, 255, 255, 255), seed))).tobytes() for seed in range(12)}) == 12


def test_what_decodes_to_one_colour_from_different_values_is_listed() -> None:
    hidden = Image.fromarray(np.dstack([COLOURS, np.zeros_like(GREY)]))
    palette = Image.frombytes("P", (40, 30), (GREY // 128).tobytes())
    palette.putpalette([7, 7, 7] * 256)
    for image in (hidden, palette):
        with pytest.raises(UndecodableImageError, match="decodes to one colour, though the file's values differ"):
            decoded(encoded(image))


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "I", "F", "RGB", "RGBA", "LA", "P", "CMYK"])
def test_a_picture_that_is_of_one_colour_stays_valid(mode: str) -> None:
    image = (
        Image.new(mode, (20, 10), 1 if mode in ("1", "P") else None) if mode != "F" else Image.new("F", (20, 10), 0.5)
    )
    assert len(np.unique(decoded(encoded(image, "TIFF")).reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB"])
def test_every_colour_mode_is_read_as_pillow_converts_it(mode: str) -> None:
    image = Image.fromarray(COLOURS)
    if mode == "LAB":
        from PIL import ImageCms

        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.applyTransform(image, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    else:
        image = image.convert(mode)
    np.testing.assert_array_equal(decoded(encoded(image, "TIFF")), np.asarray(image.convert("RGB")))


def test_the_first_frame_in_stored_orientation_is_taken() -> None:
    frames, buffer = [Image.fromarray(COLOURS), Image.new("RGB", (40, 30))], io.BytesIO()
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decoded(buffer.getvalue()), COLOURS)
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    frames[0].save(buffer, "PNG", exif=exif)
    np.testing.assert_array_equal(decoded(buffer.getvalue()), COLOURS)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "empty image file"),
        (b"<html>404</html>", "not an image in a known format"),
        (tiff(np.zeros((9, 9, 1))), "a kind of TIFF that Pillow does not read"),
        (encoded(Image.fromarray(COLOURS), "JPEG")[:700], "image cannot be decoded: .*truncated"),
        (png_of_size(13_300, 13_300), "more pixels than `max_pixels`, 100000000 .*176890000"),
        (png_of_size(20_000, 20_000), "more pixels than `max_pixels`, 100000000 .*400000000"),
    ],
)
def test_what_is_no_picture_is_listed_with_its_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(UndecodableImageError) as raised:
        decoded(payload)
    assert re.search(reason, str(raised.value))
    assert "0x" not in str(raised.value)  # an address would differ in each run


def test_the_limit_of_pixels_can_be_set() -> None:
    payload = encoded(Image.fromarray(COLOURS))
    assert rgb_image(payload, shortest_side=None, max_pixels=1200).size == (40, 30)
    with pytest.raises(UndecodableImageError, match=r"more pixels than `max_pixels`, 1199 \(40 x 30\)"):
        rgb_image(payload, shortest_side=None, max_pixels=1199)


def test_a_huge_picture_costs_no_memory_and_a_large_one_no_copies() -> None:
    program = """
import resource, sys
from PIL import Image
from semdedup_assets.encoders.decoding import UndecodableImageError, rgb_image
from semdedup_assets_tests.encoders.picture_files import blank_png, encoded
huge, large, clear = blank_png(13_300), blank_png(4000), encoded(Image.new("RGBA", (4000, 4000), (9, 9, 9, 9)))
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
rgb_image(blank_png(100), shortest_side=None)
before = peak()
try:
    rgb_image(huge, shortest_side=None)
except UndecodableImageError:
    print(peak() - before)
rgb_image(large, shortest_side=None)
print(peak() - before)
rgb_image(clear, shortest_side=None)
print(peak() - before)
"""
    assert len(blank_png(1000)) < 10_000
    # In a process of its own, for a peak never falls.
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    refused, plain, clear = map(int, done.stdout.split())
    assert refused < 8
    assert plain < 1.3 * 61  # 4 bytes for each of 16 million pixels are 61 MiB
    assert clear < 3 * 61


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which a program of Ghostscript's name leaves its arguments when anything starts it."""
    called, program = tmp_path / "called", tmp_path / "gs"
    program.write_text(f'#!/bin/sh\necho "$@" >> {called}\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # else an earlier look for it counts
    return called


def eps() -> bytes:
    return encoded(Image.fromarray(COLOURS), "EPS")


def eps_in_iptc() -> bytes:
    """A picture of 40 x 30 pixels by the standard of news agencies, whose data are themselves an encoded image."""
    size = [(3, 20, b"\0\x28"), (3, 30, b"\0\x1e")]
    fields = [(3, 60, b"\1\0"), (3, 65, b"\1"), *size, (3, 120, b"\0\5"), (8, 10, eps())]
    return b"".join(struct.pack(">BBBH", 0x1C, record, field, len(data)) + data for record, field, data in fields)


@pytest.mark.parametrize(
    "payload",
    [eps(), b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, 1 << 16) + bytes(18) + eps(), eps_in_iptc()],
    ids=["text", "DOS", "IPTC"],
)
def test_no_picture_starts_a_program(ghostscript: Path, payload: bytes) -> None:
    with pytest.raises(UndecodableImageError, match=r"EPS, a format that is not read|not an image in a known format"):
        decoded(payload)
    assert not ghostscript.exists()
    with pytest.raises(subprocess.CalledProcessError), Image.open(io.BytesIO(payload)) as opened:
        opened.load()  # what Pillow does by itself
    assert ghostscript.exists()


@pytest.mark.parametrize(
    "format_", ["JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "QOI", "ICO", "TGA"]
)
def test_formats_of_training_sets_are_read(format_: str) -> None:
    image = Image.fromarray(COLOURS).resize((32, 32))
    assert rgb_image(encoded(image, format_), shortest_side=None).size == (32, 32)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"), (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"), (b"%PDF-1.7\n", "PDF"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"), (b'\n<svg xmlns="x"/>', "SVG"), (b"8BPS\0\1", "PSD"), (b"%!PS-Adobe-3.0", "EPS"),
        (b"\xd7\xcd\xc6\x9a\0\0", "WMF"), (b"icns", "ICNS"), (b"\x89HDF\r\n\x1a\n", "HDF5"), (b"SIMPLE  =", "FITS"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_listed_with_its_format(head: bytes, name: str) -> None:
    with pytest.raises(UndecodableImageError, match=f"^{name}, a format that is not read"):
        decoded(head + bytes(64))


@given(st.binary(min_size=1, max_size=64))
def test_any_bytes_are_an_image_or_a_reason(payload: bytes) -> None:
    with suppress(UndecodableImageError):
        decoded(payload)
