"""Pictures of more than 8 bits a value to 8 bits."""

from collections.abc import Iterator

import numpy as np

_INTEGER_SCALES = tuple((0, 2**bits - 1) for bits in (8, 10, 12, 14, 16))
_FLOAT_SCALES = ((0, 1), (-1, 1), *_INTEGER_SCALES)
# A picture that spans less than this share of its scale is stretched: as it is, 32 or fewer levels would be left.
_LEAST_SHARE = 8
_CHUNK_VALUES = 4 << 20
_MOST = 1e30


def eight_bit(values: np.ndarray, *, stretch: bool = True) -> np.ndarray:
    """Brightness in 8 bits, on the scale that the values themselves speak for.

    Files say how many bits a value has, not how many are used: 12 bits in a 16-bit file, floats of any range. So the
    scale is the first that holds all values of the picture: of integers 0 to 2**b - 1 for b = 8, 10, 12, 14 and 16; of
    floats 0 to 1, -1 to 1, then as for integers. A picture that fits none (other negative numbers, more than 16 bits),
    or that spans less than an eighth of its scale, is stretched from its own least to its own greatest value. A 16-bit
    picture that reaches above 16,383 and spans 8,192 or more therefore keeps its brightness, value // 257. An 8-bit
    picture that was widened (all values multiples of 257) is what it was before. NaN counts as the least value, and so
    do numbers beyond 1e30, which stand for none in maps.

    Args:
        values: (height, width, …) integers or floats.
        stretch: whether a picture that spans little of its scale is stretched.

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: no value is finite.
    """
    low, high = _finite_range(values)
    whole = values.dtype.kind in "iu"
    if whole and low >= 0 and 255 < high <= 65535 and not any((part % 257).any() for part in _parts(values)):
        start, end = 0.0, 65535.0
    else:
        start, end = _scale(low, high, _INTEGER_SCALES if whole else _FLOAT_SCALES, stretch=stretch)
    scaled = np.empty(values.shape, np.uint8)
    for part, out in zip(_parts(values), _parts(scaled), strict=True):
        finite = part if whole else _finite(part, low, high)
        level = (finite - start) * (255 / (end - start))
        # Integers are cut, as Pillow cuts 16 bits to 8; the small share undoes the product's rounding.
        out[...] = np.clip(level + 1e-6 if whole else np.rint(level), 0, 255)
    return scaled


def varies(values: np.ndarray) -> bool:
    """Whether an array holds more than one value."""
    first = values.reshape(-1)[0]
    return any((part != first).any() for part in _parts(values))


def _parts(values: np.ndarray) -> Iterator[np.ndarray]:
    """Views of consecutive rows, so that what is computed from them stays small."""
    rows = max(1, _CHUNK_VALUES // max(1, values[0].size))
    for start in range(0, len(values), rows):
        yield values[start : start + rows]


def _finite_range(values: np.ndarray) -> tuple[float, float]:
    if values.dtype.kind in "iu":
        return float(values.min()), float(values.max())
    low, high = np.inf, -np.inf
    for part in _parts(values):
        finite = part[np.abs(part) < _MOST]
        low, high = min(low, finite.min(initial=np.inf)), max(high, finite.max(initial=-np.inf))
    if low > high:
        message = "no pixel has a finite value"
        raise ValueError(message)
    return float(low), float(high)


def _finite(part: np.ndarray, low: float, high: float) -> np.ndarray:
    numbers = np.nan_to_num(part.astype(np.float64), nan=low, posinf=high, neginf=low)
    numbers[(np.abs(numbers) >= _MOST) & np.isfinite(part)] = low
    return numbers


def _scale(low: float, high: float, scales: tuple[tuple[int, int], ...], *, stretch: bool) -> tuple[float, float]:
    start, end = next(((start, end) for start, end in scales if start <= low and high <= end), (low, high))
    if stretch and low < high and (high - low) * _LEAST_SHARE < end - start:
        start, end = low, high
    return (start, end) if start < end else (low, low + 1)
