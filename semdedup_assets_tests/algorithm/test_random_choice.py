"""Random choices of a wanted size."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.random_choice import random_choice

ITEMS = st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60)


@given(ITEMS, st.integers(0, 5))
def test_as_many_items_are_kept(items: list[tuple[bool, int]], seed: int) -> None:
    kept = np.array([keep for keep, _ in items], bool)
    chosen = random_choice(
        np.arange(len(items), dtype=np.uint64), kept=kept, sizes=np.ones(len(items), np.int64), seed=seed
    )
    assert chosen.sum() == kept.sum()


@given(ITEMS, st.integers(0, 5))
def test_no_other_border_is_nearer_to_the_wanted_size(items: list[tuple[bool, int]], seed: int) -> None:
    kept, sizes = np.array([keep for keep, _ in items], bool), np.array([size for _, size in items], np.int64)
    ids = np.arange(len(items), dtype=np.uint64)
    chosen = random_choice(ids, kept=kept, sizes=sizes, seed=seed)
    gap = abs(int(sizes[chosen].sum()) - int(sizes[kept].sum()))
    for others, each in ((~chosen, 1), (chosen, -1)):
        # Adding or leaving out whichever one item is next brings no choice nearer than the best of them.
        nearest = [abs(int(sizes[chosen].sum()) + each * int(size) - int(sizes[kept].sum())) for size in sizes[others]]
        assert not nearest or gap <= max(nearest)
    assert gap <= sizes.max(initial=0) / 2


def test_seeds_choose_unrelated_items_and_a_smaller_choice_lies_within_a_larger_one() -> None:
    ids, sizes = np.arange(20_000, dtype=np.uint64), np.ones(20_000, np.int64)
    half, fifth = (np.arange(20_000) % part == 0 for part in (2, 5))
    first, second = (random_choice(ids, kept=half, sizes=sizes, seed=seed) for seed in (0, 1))
    assert 4700 < (first & second).sum() < 5300
    smaller = random_choice(ids, kept=fifth, sizes=sizes, seed=0)
    assert not (smaller & ~first).any()
    order = np.random.default_rng(0).permutation(20_000)
    shuffled = random_choice(ids[order], kept=half[order], sizes=sizes, seed=0)
    np.testing.assert_array_equal(shuffled, first[order])
