"""Intersections of kept sets, held against Python's sets."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.kept_set_overlap import kept_together, sets_kept_in
from semdedup_assets.algorithm.selection import keep_mask
from semdedup_assets_tests.algorithm.vectors import repeatable


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 300), sets=st.integers(1, 6))
@repeatable
def test_intersections_are_those_of_the_masks_at_each_epsilon(seed: int, n: int, sets: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-1, 1, (2, n)).round(1).astype(np.float32)
    scores[:, rng.random(n) < 0.1] = -np.inf
    epsilons = np.sort(rng.choice(np.arange(0, 2.05, 0.1), (2, sets)))
    counted = [sets_kept_in(each, own) for each, own in zip(scores, epsilons, strict=True)]
    kept = [
        [set(np.flatnonzero(keep_mask(s, e))) for e in own] for s, own in zip(scores, epsilons.tolist(), strict=True)
    ]
    assert kept_together(*counted, sets=sets).tolist() == [len(a & b) for a, b in zip(*kept, strict=True)]
    for own, found in zip(counted, kept, strict=True):
        assert kept_together(own, own, sets=sets).tolist() == [len(each) for each in found]
