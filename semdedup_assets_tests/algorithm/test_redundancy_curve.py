"""Random subsamples by their priorities, against exact integers; and the law, against numbers that follow it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.redundancy_curve import (
    SizeLaw,
    SubsampleCounts,
    extrapolation_error,
    fit_size_law,
    halvings_of,
)
from semdedup_assets.algorithm.sampling import id_hash
from semdedup_assets.algorithm.selection import keep_mask
from semdedup_assets_tests.algorithm.vectors import repeatable


@given(seed=st.integers(0, 2**63), most=st.integers(1, 40), n=st.integers(0, 200))
@repeatable
def test_an_item_survives_a_halving_if_its_priority_is_in_the_lower_half(seed: int, most: int, n: int) -> None:
    ids = np.random.default_rng(seed).integers(0, 2**63, n).astype(np.uint64)
    found = halvings_of(ids, seed=seed, most=most)
    for priority, halvings in zip(id_hash(ids, seed=seed).tolist(), found.tolist(), strict=True):
        assert halvings == max(m for m in range(most + 1) if priority < 1 << (64 - m))


@given(seed=st.integers(0, 2**32 - 1), parts=st.integers(1, 5))
@repeatable
def test_counts_are_those_of_the_masks_of_each_subsample(seed: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    ids, similarity = rng.permutation(500).astype(np.uint64), rng.uniform(-1, 1, 500).astype(np.float32)
    epsilons = np.sort(rng.uniform(0, 2, 6))
    counts = SubsampleCounts(epsilons, halvings=4, seed=seed)
    for rows in np.array_split(np.arange(500), parts):
        counts.add(ids[rows], similarity[rows])
    for index, halvings in enumerate(range(4, -1, -1)):
        inside = np.array([priority < 1 << (64 - halvings) for priority in id_hash(ids, seed=seed).tolist()])
        assert counts.items[index] == inside.sum()
        assert counts.removed[index].tolist() == [
            int((~keep_mask(similarity[inside], each)).sum()) for each in epsilons
        ]


@pytest.mark.parametrize("slope", [0.3, 0.7, 1.0])
def test_a_law_is_found_from_what_follows_it(slope: float) -> None:
    law = SizeLaw(slope, np.log(3e6))
    items = (10_000_000 / 2.0 ** np.arange(8, -1, -1)).astype(np.int64)
    removed = (law.removed(items) * items).round().astype(np.int64)
    found = fit_size_law(items, removed)
    assert found is not None
    assert found.slope == pytest.approx(slope, rel=1e-3)
    assert found.removed(np.array([1e8])) == pytest.approx(law.removed(np.array([1e8])), rel=1e-3)
    assert extrapolation_error(items, removed, halvings=2) == pytest.approx(0, abs=1e-3)


@given(seed=st.integers(0, 2**32 - 1))
@repeatable
def test_the_law_goes_through_the_whole_dataset(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items = np.array([500, 1000, 2000, 4000])
    removed = (items * np.sort(rng.uniform(0.05, 0.9, 4))).astype(np.int64)
    found = fit_size_law(items, removed)
    assert found is not None
    assert found.removed(items[-1:])[0] == pytest.approx(removed[-1] / 4000)


def test_too_little_that_is_removed_or_kept_gives_no_law() -> None:
    items = np.array([0, 500, 1000, 2000, 4000])
    for removed in ([0, 0, 0, 0, 0], [0, 0, 3, 8, 20], [0, 499, 999, 1999, 3999], [0, 250, 400, 600, 900]):
        assert fit_size_law(items, np.array(removed)) is None
    assert np.isnan(extrapolation_error(items, np.array([0, 1, 8, 30, 90]), halvings=1))
