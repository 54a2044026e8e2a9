"""Whether the models of one kept set are better than those of another, or only luckier."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

CLEAR_DEVIATIONS = 2.0
"""Pooled standard deviations beyond which a difference counts as clear."""

Verdict = Literal["better", "worse", "within the spread", "no spread", "too few seeds"]

FEWEST_SEEDS = 3
"""Of fewer models a spread says nothing."""

_OF_A_DEVIATION = 2


@dataclass(frozen=True, slots=True)
class SeedSpread:
    """A metric of some models that differ in their seed alone.

    Attributes:
        mean: over seeds; NaN without any.
        deviation: sample standard deviation over seeds; NaN of fewer than two.
        seeds: how many.
    """

    mean: float
    deviation: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "SeedSpread":
        """The spread of some values.

        Args:
            values: one for each seed.
        """
        found = np.asarray(values, np.float64)
        mean = float(found.mean()) if len(found) else math.nan
        deviation = float(found.std(ddof=1)) if len(found) >= _OF_A_DEVIATION else math.nan
        if len(found) >= _OF_A_DEVIATION and np.ptp(found) == 0:
            # The mean of equal numbers is rounded, and they would seem to differ from it.
            mean, deviation = float(found[0]), 0.0
        return cls(mean, deviation, len(found))

    def __str__(self) -> str:
        return f"{self.mean:.4g}" + ("" if math.isnan(self.deviation) else f" ± {self.deviation:.2g}")


@dataclass(frozen=True, slots=True)
class SeedComparison:
    """The difference of two spreads.

    Attributes:
        difference: of the means, first minus second.
        pooled_deviation: standard deviation of a single model, from both; NaN where neither has two seeds.
        verdict: on the first: a difference within two pooled standard deviations is none; of equal values of all seeds no
            spread is known.
    """

    difference: float
    pooled_deviation: float
    verdict: Verdict


def compare_spreads(first: SeedSpread, second: SeedSpread, *, higher_is_better: bool) -> SeedComparison:
    """Hold the models of one kept set against those of another.

    Args:
        first: of the one.
        second: of the other.
        higher_is_better: of the metric.

    Returns:
        The difference, and whether it is beyond two pooled standard deviations, each spread counting by its degrees of
        freedom.
    """
    spreads = [each for each in (first, second) if each.seeds >= _OF_A_DEVIATION]
    freedom = sum(each.seeds - 1 for each in spreads)
    pooled = math.sqrt(sum((each.seeds - 1) * each.deviation**2 for each in spreads) / freedom) if freedom else math.nan
    difference = first.mean - second.mean
    seeds = min(first.seeds, second.seeds)
    return SeedComparison(difference, pooled, _verdict(difference, pooled, seeds=seeds, higher=higher_is_better))


def _verdict(difference: float, pooled: float, *, seeds: int, higher: bool) -> Verdict:
    if seeds < FEWEST_SEEDS:
        return "too few seeds"
    if pooled == 0 and difference != 0:
        return "no spread"
    if abs(difference) <= CLEAR_DEVIATIONS * pooled:
        return "within the spread"
    return "better" if (difference > 0) == higher else "worse"
