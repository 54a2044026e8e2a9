"""Pictures of more than 8 bits a value to 8 bits."""

from collections.abc import Iterator

import numpy as np

_INTEGER_SCALES = tuple((0, 2**bits - 1) for bits in (8, 10, 12, 14, 16))
_FLOAT_SCALES = ((0, 1), (-1, 1), *_INTEGER_SCALES)
# A picture that spans less than this share of its scale is stretched: as it is, 32 or fewer levels would be left.
_LEAST_SHARE = 8
_CHUNK_VALUES = 4 << 20
_MOST = 1e30
# Outliers: at most this share of the values and this many further values, when all others lie within so many of the 256
# equal bins from the least to the greatest value.
_RARE, _EXACT_VALUES, _BINS, _CROWDED_BINS = 0.01, 3, 256, 16
_FULLEST_BINS = 8  # those looked at for holding one value only
# Outliers get the first or the last 16 levels, and 16 are left free, so that they are seen on what lies beside them.
_OUTLIER_LEVELS, _RESERVED_LEVELS = 15, 32


def eight_bit(values: np.ndarray, *, stretch: bool = True) -> np.ndarray:
    """Brightness in 8 bits, on the scale that the values themselves speak for.

    Files say how many bits a value has, not how many are used: 12 bits in a 16-bit file, floats of any range. So the
    scale is the first that holds all values of the picture: of integers 0 to 2**b - 1 for b = 8, 10, 12, 14 and 16; of
    floats 0 to 1, -1 to 1, then as for integers. A picture that fits none (other negative numbers, more than 16 bits),
    or that spans less than an eighth of its scale, is stretched from its own least to its own greatest value. A 16-bit
    picture that reaches above 16,383 and spans 8,192 or more therefore keeps its brightness, value // 257. An 8-bit
    picture that was widened (all values multiples of 257) is what it was before. NaN counts as the least value, and so
    do numbers beyond 1e30, which stand for none in maps.

    Outliers (hot pixels, dead columns, values that stand for none) do not set the scale; see `outlier_limits`. The
    other values are scaled as a picture without outliers is, and then leave 32 levels free at each end that has
    outliers; these lie in its outer 16 levels, by their own value. So the order of the values is kept, and small bright
    objects on a dark ground that varies stay visible.

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
        start, end, bulk = 0.0, 65535.0, (low, high)
    else:
        bulk = outlier_limits(values) if stretch else (low, high)
        start, end = _scale(*bulk, _INTEGER_SCALES if whole else _FLOAT_SCALES, stretch=stretch)
    scaled = np.empty(values.shape, np.uint8)
    for part, out in zip(_parts(values), _parts(scaled), strict=True):
        finite = part if whole else _finite(part, low, high)
        level = (finite - start) * (255 / (end - start))
        if bulk != (low, high):
            level = _beside_outliers(level, finite, bulk, (low, high))
        # Integers are cut, as Pillow cuts 16 bits to 8; the small share undoes the product's rounding.
        out[...] = np.clip(level + 1e-6 if whole else np.rint(level), 0, 255)
    return scaled


def outlier_limits(values: np.ndarray) -> tuple[float, float]:
    """Least and greatest value that is no outlier.

    From the least to the greatest value of a picture lie 256 equal bins. Where 16 neighbouring ones hold all values but
    less than 1%, not counting three exact values (a dead column, an area without data), the values outside of them are
    outliers. Then the same is asked of those inside. There are none where fewer than 1% of the values differ from the
    inside's most frequent one (stars on a sky that is all black: they are the picture), where the inside is of no more
    values than lie outside of it (a map of few labels), nor among integers that differ by 255 at most, for each has a
    level of its own. Values that are not finite do not count.

    Args:
        values: of any shape, integers or floats.

    Returns:
        The limits; those of all finite values where there is no outlier.

    Raises:
        ValueError: no value is finite.
    """
    low, high = _finite_range(values)
    rare = None
    while high - low > (255 if values.dtype.kind in "iu" else 0):
        counts = _histogram(values, low, high)
        rare = counts.sum() * _RARE if rare is None else rare
        # Of most pictures, the counts alone say that there is no such window.
        if crowded_window(counts, np.ones(_BINS, bool), rare) is None:
            break
        first = crowded_window(counts, _of_one_value(values, counts, low, high), rare)
        inner = None if first is None else _range_within(values, low, high, first)
        if first is None or inner is None or inner[0] == inner[1]:
            break
        outside = int(np.count_nonzero(np.delete(counts, slice(first, first + _CROWDED_BINS)) >= rare))
        if not _is_drawn(values, inner, rare, outside):
            break
        low, high = inner
    return low, high


def crowded_window(counts: np.ndarray, of_one_value: np.ndarray, rare: float) -> int | None:
    """First of 16 neighbouring bins that hold almost all values, None where there are none such.

    Args:
        counts: (256,) values in each bin.
        of_one_value: (256,) whether all values of a bin are the same; three such bins are not counted.
        rare: values that may be outside.
    """
    starts = np.arange(_BINS - _CROWDED_BINS + 1)[:, None]
    bins = np.arange(_BINS)
    outside = np.where((bins < starts) | (bins >= starts + _CROWDED_BINS), counts, 0)
    exact = np.sort(np.where(of_one_value, outside, 0), axis=1)[:, -_EXACT_VALUES:]
    rest = outside.sum(1) - exact.sum(1)
    best = int(rest.argmin())
    return best if rest[best] < rare else None


def _bins(values: np.ndarray, low: float, high: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Values within the limits, (n,), and their bins, (n,) int64."""
    for part in _parts(values):
        inside = part[(part >= low) & (part <= high)]  # without NaN
        share = np.subtract(inside, low, dtype=np.float64) / (high - low)
        yield inside, np.minimum(share * _BINS, _BINS - 1).astype(np.int64)


def _histogram(values: np.ndarray, low: float, high: float) -> np.ndarray:
    counts = np.zeros(_BINS, np.int64)
    for _, bins in _bins(values, low, high):
        counts += np.bincount(bins, minlength=_BINS)
    return counts


def _of_one_value(values: np.ndarray, counts: np.ndarray, low: float, high: float) -> np.ndarray:
    """(256,) whether a bin is one of the fullest and holds one value only."""
    fullest = np.argsort(-counts, kind="stable")[:_FULLEST_BINS]
    least, greatest = np.full(_BINS, np.inf), np.full(_BINS, -np.inf)
    for inside, bins in _bins(values, low, high):
        for bin_ in fullest:
            found = inside[bins == bin_]
            least[bin_] = min(least[bin_], found.min() if found.size else np.inf)
            greatest[bin_] = max(greatest[bin_], found.max() if found.size else -np.inf)
    same: np.ndarray = least == greatest
    return same


def _range_within(values: np.ndarray, low: float, high: float, first: int) -> tuple[float, float]:
    """Least and greatest value of a window of bins."""
    least, greatest = np.inf, -np.inf
    for inside, bins in _bins(values, low, high):
        found = inside[(bins >= first) & (bins < first + _CROWDED_BINS)]
        if found.size:
            least, greatest = min(least, float(found.min())), max(greatest, float(found.max()))
    return least, greatest


def _is_drawn(values: np.ndarray, limits: tuple[float, float], rare: float, outside: int) -> bool:
    """Whether the values within the limits are more than one ground, and more than those outside."""
    counts = _histogram(values, *limits)
    exact = np.where(_of_one_value(values, counts, *limits), counts, 0)
    return bool(counts.sum() - exact.max() >= rare and np.count_nonzero(counts) > outside)


def _beside_outliers(
    level: np.ndarray, finite: np.ndarray, bulk: tuple[float, float], limits: tuple[float, float]
) -> np.ndarray:
    """Levels of all values, where outliers take the outer ones.

    Args:
        level: of the values within the bulk, 0 to 255.
        finite: the values themselves.
        bulk: limits of those that are no outliers.
        limits: of all.
    """
    bottom = _RESERVED_LEVELS if limits[0] < bulk[0] else 0
    top = 255 - (_RESERVED_LEVELS if bulk[1] < limits[1] else 0)
    level = bottom + np.clip(level, 0, 255) * ((top - bottom) / 255)
    if bottom:
        below = (finite - limits[0]) * (_OUTLIER_LEVELS / (bulk[0] - limits[0]))
        level = np.where(finite < bulk[0], below, level)
    if top < 255:
        above = 255 - (limits[1] - finite) * (_OUTLIER_LEVELS / (limits[1] - bulk[1]))
        level = np.where(finite > bulk[1], above, level)
    return level


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
