"""Vectors that items of different content share, against sets and dictionaries."""

from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.shared_vectors import row_hashes, shared_vectors, united

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), max_size=40)


def contents_by_vector(pairs: list[tuple[int, int]]) -> dict[int, list[int]]:
    found = defaultdict(list)
    for vector, content in pairs:
        found[vector].append(content)
    return {vector: contents for vector, contents in found.items() if len(set(contents)) > 1}


@given(PAIRS)
def test_exactly_the_vectors_of_several_contents_are_found_with_their_counts(pairs: list[tuple[int, int]]) -> None:
    vectors, contents = (np.array([pair[side] for pair in pairs], np.uint64) for side in range(2))
    expected = contents_by_vector(pairs)
    found = shared_vectors(vectors, contents, most=10)
    assert {each.vector: each.items for each in found} == {vector: len(all_) for vector, all_ in expected.items()}
    for each in found:
        assert each.contents == len(set(expected[each.vector]))
        assert list(each.sketch) == sorted(set(expected[each.vector]))
        assert pairs[each.example][0] == each.vector
    assert [each.contents for each in found] == sorted((each.contents for each in found), reverse=True)


@given(PAIRS, PAIRS)
def test_shards_are_united_without_counting_a_content_twice(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    parts = [
        {
            each.vector: each
            for each in shared_vectors(
                *(np.array([pair[side] for pair in pairs], np.uint64) for side in range(2)), most=10
            )
        }
        for pairs in (first, second)
    ]
    for vector in parts[0].keys() & parts[1].keys():
        items, contents = united([parts[0][vector], parts[1][vector]])
        together = contents_by_vector(first)[vector] + contents_by_vector(second)[vector]
        assert (items, contents) == (len(together), len(set(together)))


def test_equal_rows_have_equal_hashes_and_near_ones_have_not() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, 48)).astype(np.float32)
    near = np.nextafter(rows, np.float32(9))
    swapped = rows[:, ::-1].copy()
    hashes = row_hashes(np.concatenate([rows, near, swapped]))
    assert len(np.unique(hashes)) == 6000
    np.testing.assert_array_equal(row_hashes(rows[::-1].copy()), hashes[:2000][::-1])
    zeros = np.zeros((2, 3), np.float32)
    zeros[1] = -0.0
    assert len(np.unique(row_hashes(zeros))) == 1
