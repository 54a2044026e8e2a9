"""Groups of near items, against comparing all pairs."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semdedup_assets.algorithm.near_duplicates import (
    band_hashes,
    band_rows,
    differing_bits,
    first_of_equal,
    near_hashes,
    near_texts,
)


def first_of_components(items: int, near: Callable[[int, int], bool]) -> list[int]:
    """Of each item the first that a chain of near pairs leads to, by walking the graph of all pairs."""
    first = [-1] * items
    for start in range(items):
        if first[start] == -1:
            waiting = [start]
            while waiting:
                item = waiting.pop()
                if first[item] == -1:
                    first[item] = start
                    waiting += [other for other in range(items) if other != item and near(item, other)]
    return first


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=30))
def test_the_first_of_equal_rows_stands_for_all(rows: list[tuple[int, int]]) -> None:
    found = first_of_equal(np.array(rows, np.uint64).reshape(-1, 2))
    assert found.tolist() == [rows.index(row) for row in rows]


BITS = st.lists(st.integers(0, (1 << 64) - 1), max_size=6)


@settings(max_examples=150, deadline=None)
@given(BITS, st.lists(st.tuples(st.integers(0, 99), st.sets(st.integers(0, 63), max_size=9)), max_size=25), st.data())
def test_no_pair_of_near_hashes_is_missed(
    centres: list[int], changes: list[tuple[int, set[int]]], data: st.DataObject
) -> None:
    """Hashes some bits away from a few, so that there are chains of near pairs."""
    hashes = [
        *centres,
        *(centres[at % len(centres)] ^ sum(1 << bit for bit in bits) for at, bits in changes if centres),
    ]
    distance = data.draw(st.integers(0, 64))
    expected = first_of_components(len(hashes), lambda a, b: (hashes[a] ^ hashes[b]).bit_count() <= distance)
    found = near_hashes(
        np.array(hashes, np.uint64), distance=distance, budget=data.draw(st.sampled_from([64, 1 << 20]))
    )
    assert found.tolist() == expected


def test_bits_are_counted_as_python_counts_them() -> None:
    pairs = np.random.default_rng(0).integers(0, 1 << 64, (500, 2), np.uint64)
    pairs[0], pairs[1] = [0, (1 << 64) - 1], [5, 5]
    expected = [(int(a) ^ int(b)).bit_count() for a, b in pairs]
    assert differing_bits(pairs[:, 0], pairs[:, 1]).tolist() == expected


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("permutations", [16, 128, 256])
def test_a_pair_at_the_threshold_is_hardly_ever_missed(threshold: float, permutations: int) -> None:
    """Signatures whose entries are equal with the threshold's probability, many pairs of them."""
    rows = band_rows(permutations, threshold=threshold)
    pairs = np.random.default_rng(0).random((4000, permutations)) < threshold
    bands = pairs[:, : permutations // rows * rows].reshape(4000, -1, rows)
    missed = (~bands.all(axis=2).any(axis=1)).mean()
    # With 16 entries, even bands of one may miss a pair at 0.3.
    assert missed <= max(1e-3, 2 * (1 - threshold) ** permutations)


def signatures(seed: int, *, groups: int, permutations: int = 64) -> np.ndarray:
    """Chains of signatures, each like the one before it in most entries."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(groups):
        row = rng.integers(0, 1 << 32, permutations, np.uint32)
        for _ in range(rng.integers(1, 7)):
            row = np.where(rng.random(permutations) < rng.choice([0.02, 0.15, 0.3]), rng.integers(0, 1 << 32), row)
            rows.append(row.astype(np.uint32))
    return rng.permutation(np.array(rows, np.uint32))


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_texts_are_grouped_as_all_pairs_of_signatures_group_them(seed: int, threshold: float) -> None:
    made = signatures(seed, groups=40)
    shares = (made[:, None] == made[None]).mean(axis=2)
    expected = first_of_components(len(made), lambda a, b: bool(shares[a, b] >= threshold))
    bands = band_hashes(made, rows=band_rows(64, threshold=threshold))
    for budget in (1, 1 << 20):
        assert near_texts(made, bands, threshold=threshold, budget=budget).tolist() == expected
    assert len(set(expected)) < len(made)


def test_many_equal_signatures_take_no_time_for_all_pairs() -> None:
    made = np.repeat(signatures(0, groups=1)[:1], 30_000, axis=0)
    found = near_texts(made, band_hashes(made, rows=8), threshold=0.8, budget=1 << 20)
    assert not found.any()


def test_nothing_and_one_item_have_no_groups() -> None:
    for count in (0, 1):
        made = np.zeros((count, 32), np.uint32)
        assert near_texts(made, band_hashes(made, rows=4), threshold=0.8, budget=1).tolist() == [0] * count
        assert near_hashes(np.zeros(count, np.uint64), distance=3, budget=1).tolist() == [0] * count
        assert first_of_equal(np.zeros((count, 2), np.uint64)).tolist() == [0] * count
