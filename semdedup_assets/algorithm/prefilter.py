"""Which pairs can be the most similar, by products of 8-bit integers: several times as fast as float32.

Rows are centred and rounded to 8 bits. Products of integers are exact, so the error of a similarity is at most that
of rounding, which is bounded by Cauchy and Schwarz: whatever lies within two bounds of the greatest is a candidate,
everything else cannot be the greatest. Few candidates are left to compare in full, and the answer is the
one that comparing all pairs in full gives.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from semdedup_assets.algorithm.budget import COLUMN_GROUP
from semdedup_assets.algorithm.parallel import PerThread
from semdedup_assets.algorithm.unit_rows import IN_CACHE

QUERY_BLOCK = 1024
"""Queries that are prefiltered together: with as many columns as a tile has, the tile stays in the cache."""

NARROWEST = 64
"""Of rows of fewer numbers, products are not what takes the time."""

_TILE_COLUMNS = 2048
_LEVELS = 127
# Below every product, and far enough above the smallest int32 that margins can be subtracted.
_NOTHING, _OUT_OF_REACH = -(1 << 30), 1 << 30
# Rounding steps are never finer than this: biases, which are at most 1, then fit an int32.
_FINEST_STEP = 1 / 128 / _LEVELS
# What float32 arithmetic may add to a bound: norms and products of unit rows are right to a few 1e-7.
_FLOAT32_ERROR = 4e-6
# Of x86 processors, as PyTorch names them.
_UNITS = ("amx_int8", "avx512_vnni", "avx_vnni")
# A product in 8 bits must be so much faster than one in float32 that finding and comparing candidates pays.
_WORTHWHILE = 1.5
# Rows of the products that are measured, and how often.
_MEASURED_ROWS, _MEASUREMENTS = 256, 6
# Pairs a query may leave for each column it was compared with: with more, float32 is as fast. A few are always allowed;
# very many would take more memory than the rest.
_PAIRS_PER_COLUMN, _FEWEST_PAIRS, _MOST_PAIRS = 1 / 48, 32, 1024
# What a pair takes while it is found, sorted and compared: its query, candidate and product, three times.
_BYTES_PER_PAIR = 60

FALLBACKS = 2
"""Consecutive blocks of queries that may fall back to float32 before the prefilter is no longer tried."""


class Rows(Protocol):
    """Unit rows that are read a slice at a time."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> Tensor:
        """(m, d) float32 unit rows on the CPU."""
        ...


@dataclass(frozen=True, slots=True)
class Codes:
    """Rows less a centre, as multiples of a step.

    Attributes:
        codes: (n or more, d) int8; as `encode` gives them, zero rows follow up to a whole group of columns.
        step: what a code of 1 stands for.
        norm: (n,) float32, L2 norm of each centred row.
        error: (n,) float32, L2 norm of its rounding error.
        bias: (n,) float32, product of each row with the centre.
    """

    codes: Tensor
    step: float
    norm: Tensor
    error: Tensor
    bias: Tensor

    def part(self, start: int, stop: int) -> "Codes":
        """The codes of the rows from `start` to `stop`."""
        one = slice(start, stop)
        return Codes(self.codes[one], self.step, self.norm[one], self.error[one], self.bias[one])


def centre_of(rows: Rows) -> Tensor:
    """(d,) float32: the mean row, without which codes would spend their range on what all rows share."""
    total = rows[:1].sum(0, dtype=torch.float64).zero_()
    for start in range(0, len(rows), IN_CACHE):
        total += rows[start : start + IN_CACHE].sum(0)
    return (total / max(1, len(rows))).float()


def encode(rows: Rows, centre: Tensor) -> Codes:
    """Round rows to 8 bits.

    Args:
        rows: n unit rows of d numbers.
        centre: (d,) float32, subtracted from each row; the same for queries and candidates.
    """
    count = len(rows)
    parts = [slice(start, min(start + IN_CACHE, count)) for start in range(0, count, IN_CACHE)]
    greatest = max((float((rows[part] - centre).abs().amax()) for part in parts), default=0.0)
    step = max(greatest / _LEVELS, _FINEST_STEP)
    codes = torch.zeros((-(-count // COLUMN_GROUP) * COLUMN_GROUP, len(centre)), dtype=torch.int8)
    norm, error, bias = torch.empty(3, count)
    for part in parts:
        unit = rows[part]
        centred = unit - centre
        rounded = (centred / step).round_()
        codes[part] = rounded
        torch.linalg.vector_norm(centred, dim=1, out=norm[part])
        torch.linalg.vector_norm(centred.sub_(rounded, alpha=step), dim=1, out=error[part])
        torch.mv(unit, centre, out=bias[part])
    return Codes(codes, step, norm, error, bias)


class Prefilter:
    """Candidates that many queries are compared with."""

    def __init__(self, candidates: Codes, *, tie: float = 0.0) -> None:
        """Keep what bounds all candidates.

        Args:
            candidates: at least one row, as `encode` gives them.
            tie: how far below the greatest similarity one is still wanted.
        """
        self._candidates, self._tie = candidates, tie
        self._count = len(candidates.norm)
        self._norm = float(candidates.norm.max())
        self._error = float(candidates.error.max())
        numbers = QUERY_BLOCK * min(_TILE_COLUMNS, len(candidates.codes))
        self._tile = PerThread(lambda: torch.empty(numbers, dtype=torch.int32))
        # Mostly, the queries are the candidates themselves.
        self._own_unit = candidates.step**2
        self._own_bias = self._bias(self._own_unit)

    def pairs(self, queries: Codes, seen: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """The pairs that can be the greatest of their query: for each query that sees a candidate, at least one.

        Args:
            queries: at most `QUERY_BLOCK` rows.
            seen: (q,) int64, ascending: query i sees the first `seen[i]` candidates; None: all of them.

        Returns:
            (p,) int64 queries, ascending, and (p,) int64 candidates; None where they are too many to be useful: fall back to float32.
        """
        unit = queries.step * self._candidates.step
        margin, bias = self._margin(queries, unit), self._own_bias if unit == self._own_unit else self._bias(unit)
        count = self._count if seen is None else int(seen[-1])
        most = _pairs_of(count) * len(queries.norm)
        greatest = torch.full((len(queries.norm),), _NOTHING, dtype=torch.int32)
        found: list[_Hits] = []
        for left in range(0, count, _TILE_COLUMNS):
            tile = self._product(queries.codes[: len(queries.norm)], left, min(left + _TILE_COLUMNS, count), bias)
            if seen is not None and left + tile.shape[1] > int(seen[0]):
                hide(tile, seen - left, _NOTHING)
            groups = tile.view(len(tile), -1, COLUMN_GROUP)
            in_group = groups.amax(2)
            torch.maximum(greatest, in_group.amax(1), out=greatest)
            threshold = _threshold(greatest, margin)
            # Few groups hold a number that is large enough, and only these are searched.
            query, group = (in_group >= threshold[:, None]).nonzero(as_tuple=True)
            if len(query) + sum(len(hits.query) for hits in found) > most:
                return None
            found.append(_hits(groups, query, group, threshold))
            found[-1].candidate.add_(left)
        return (found[0].query, found[0].candidate) if len(found) == 1 else _kept(found, _threshold(greatest, margin))

    def nearest(self, queries: Codes) -> Tensor:
        """(q,) int64: the candidate of the greatest product in 8 bits, the first of equals.

        Args:
            queries: at most `QUERY_BLOCK` rows.
        """
        bias = self._bias(queries.step * self._candidates.step)
        codes, every = queries.codes[: len(queries.norm)], torch.arange(len(queries.norm))
        greatest = torch.full((len(codes),), _NOTHING, dtype=torch.int32)
        nearest = torch.zeros(len(codes), dtype=torch.int64)
        for left in range(0, self._count, _TILE_COLUMNS):
            tile = self._product(codes, left, min(left + _TILE_COLUMNS, self._count), bias)
            groups = tile.view(len(tile), -1, COLUMN_GROUP)
            in_tile, group = groups.amax(2).max(1)
            column = left + group * COLUMN_GROUP + groups[every, group].argmax(1)
            nearest = torch.where(in_tile > greatest, column, nearest)
            torch.maximum(greatest, in_tile, out=greatest)
        return nearest

    def _margin(self, queries: Codes, unit: float) -> Tensor:
        """(q,) int32: how far below the greatest product, as integers, the greatest similarity can be."""
        bound = queries.error * self._norm + (queries.norm + queries.error) * self._error
        return ((2.002 * bound + _FLOAT32_ERROR + self._tie) / unit).ceil().int() + 2

    def _bias(self, unit: float) -> Tensor:
        """(c',) int32: what the centre adds to each candidate's product; filled up to whole groups."""
        bias = torch.full((len(self._candidates.codes),), _NOTHING, dtype=torch.int32)
        bias[: self._count] = (self._candidates.bias / unit).round()
        return bias

    def _product(self, queries: Tensor, left: int, right: int, bias: Tensor) -> Tensor:
        """(q, m) int32: similarities in units of both steps, but for what is the same for all candidates of a query."""
        columns = slice(left, -(-right // COLUMN_GROUP) * COLUMN_GROUP)
        shape = (len(queries), columns.stop - left)
        tile = self._tile.get()[: shape[0] * shape[1]].view(shape)
        torch._int_mm(queries, self._candidates.codes[columns].T, out=tile)
        return tile.add_(bias[columns])


def _pairs_of(candidates: int) -> int:
    """How many pairs a query may leave, on average."""
    return min(max(_FEWEST_PAIRS, int(candidates * _PAIRS_PER_COLUMN)), _MOST_PAIRS)


def bytes_at_work(candidates: int) -> int:
    """What a thread needs while it prefilters a block of queries, beside their codes: a tile, and the pairs it leaves."""
    return QUERY_BLOCK * (4 * min(_TILE_COLUMNS, candidates) + _BYTES_PER_PAIR * _pairs_of(candidates))


def can_prefilter(candidates: Rows, *, budget: int) -> bool:
    """Whether the prefilter is possible and pays.

    Args:
        candidates: c rows of d numbers.
        budget: bytes that codes, tile and pairs may take.
    """
    device, dimension = candidates[:1].device.type, candidates[:1].shape[1]
    needed = bytes_at_work(len(candidates)) + (len(candidates) + QUERY_BLOCK) * (dimension + 12)
    return device == "cpu" and dimension >= NARROWEST and needed <= budget and integers_are_fast()


@dataclass(frozen=True, slots=True)
class _Hits:
    """Pairs that reached the threshold of their tile: (h,) each."""

    query: Tensor
    candidate: Tensor
    product: Tensor


def hide(tile: Tensor, seen: Tensor, nothing: float) -> None:
    """Overwrite with a number what the queries of a tile do not see.

    Args:
        tile: (q, m) int32 or float32.
        seen: (q,) int64, ascending: query i sees the first `seen[i]` columns, none where that is negative.
        nothing: below all other numbers.
    """
    first = max(0, int(seen[0]))
    part, limit = tile[:, first:], seen - first
    if len(seen) > 1 and int(seen[-1] - seen[0]) == len(seen) - 1 and bool((seen.diff() == 1).all()):
        # A triangle, in a tenth of the time that it takes to compare where each number stands.
        diagonal = int(limit[0])
        part.tril_(diagonal - 1)
        part.add_(torch.full(part.shape, nothing, dtype=tile.dtype, device=tile.device).triu_(diagonal))
    else:
        part.masked_fill_(torch.arange(part.shape[1], device=tile.device) >= limit[:, None], nothing)


def _threshold(greatest: Tensor, margin: Tensor) -> Tensor:
    return torch.where(greatest > _NOTHING, greatest - margin, _OUT_OF_REACH)


def _hits(groups: Tensor, query: Tensor, group: Tensor, threshold: Tensor) -> _Hits:
    """What reaches the threshold in some groups of a tile; candidates are counted from its first column."""
    numbers = groups[query, group]
    hit, column = (numbers >= threshold[query][:, None]).nonzero(as_tuple=True)
    return _Hits(query[hit], group[hit] * COLUMN_GROUP + column, numbers[hit, column])


def _kept(found: list[_Hits], threshold: Tensor) -> tuple[Tensor, Tensor]:
    if not found:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    query = torch.cat([hits.query for hits in found])
    large = torch.cat([hits.product for hits in found]) >= threshold[query]
    query, candidate = query[large], torch.cat([hits.candidate for hits in found])[large]
    query, order = torch.sort(query, stable=True)
    return query, candidate[order]


def first_of_greatest(query: Tensor, candidate: Tensor, similarity: Tensor, *, queries: int, tie: float) -> Tensor:
    """The candidate of each query that is most similar, the first of equals.

    Args:
        query: (p,) int64, the query of each pair.
        candidate: (p,) int64.
        similarity: (p,) float, of each pair.
        queries: q.
        tie: how far below the greatest a similarity still counts as equal.

    Returns:
        (q,) int64, -1 for a query of no pair.
    """
    lowest = torch.full((queries,), -torch.inf, dtype=similarity.dtype)
    greatest = lowest.scatter_reduce_(0, query, similarity, "amax")
    equal = similarity >= greatest[query] - tie
    none = torch.iinfo(torch.int64).max
    first = torch.full((queries,), none).scatter_reduce_(0, query[equal], candidate[equal], "amin")
    return torch.where(first == none, -1, first)


@cache
def integers_are_exact() -> bool:
    """Whether PyTorch multiplies 8-bit integers, and exactly: some libraries add in 16 bits and saturate."""
    queries, candidates = _extremes()
    try:
        product = torch._int_mm(queries, candidates.T)
    except (RuntimeError, AttributeError):
        # A build of PyTorch without it.
        return False
    return bool((product == -queries.shape[1] * _LEVELS**2).all())


@cache
def integers_are_fast() -> bool:
    """Whether products of 8-bit integers are exact, and so much faster than float32 that the prefilter pays.

    Processors that name units for it are known. Others are measured once, which takes some hundredths of a second and
    can go wrong under other load.
    """
    if not integers_are_exact():
        return False
    named = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(named.get(unit, False) for unit in _UNITS) or _are_measured_fast()


def _are_measured_fast() -> bool:
    queries, candidates = _extremes()
    left, right = queries.float(), candidates.float()
    # The least of several times, measured in turn: other load only adds.
    in_float32, in_integers = [], []
    for _ in range(_MEASUREMENTS):
        in_float32.append(_seconds(lambda: left @ right.T))
        in_integers.append(_seconds(lambda: torch._int_mm(queries, candidates.T)))
    return min(in_float32) > _WORTHWHILE * min(in_integers)


def _extremes() -> tuple[Tensor, Tensor]:
    # Without units for it a product of 8-bit integers takes 30 times as long as one in float32: these are small.
    return torch.full((_MEASURED_ROWS, 512), _LEVELS).char(), torch.full((_MEASURED_ROWS, 512), -_LEVELS).char()


def _seconds(call: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
