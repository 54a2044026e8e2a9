from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.outliers import ExtremeItems, greatest_similarity_to_another
from semdedup_assets_tests.oracle import unit


@given(
    st.lists(st.sampled_from([-np.inf, -0.5, 0.0, 0.25, 1.0]), max_size=40),
    st.integers(1, 9),
    st.booleans(),
    st.randoms(),
)
def test_the_first_of_a_stream_are_those_of_the_whole_whatever_its_order(
    similarity: list[float], most: int, greatest: bool, random: object
) -> None:
    rows = [(index * 31 + 5, index % 3, value) for index, value in enumerate(similarity)]
    expected = sorted(rows, key=lambda row: (-row[2] if greatest else row[2], row[0]))[:most]
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    found = ExtremeItems(most, greatest=greatest)
    for start in range(0, len(rows), 7):
        ids, cluster, values = zip(*shuffled[start : start + 7], strict=True)
        found.add(np.array(ids, np.uint64), np.array(cluster, np.int32), np.array(values))
    ranked = found.found
    assert list(zip(ranked.ids.tolist(), ranked.cluster.tolist(), ranked.similarity.tolist(), strict=True)) == expected
    assert found.seen == len(rows)


def test_the_greatest_similarity_to_another_is_that_of_all_pairs() -> None:
    rng, sizes = np.random.default_rng(0), [1, 40, 0, 2, 300]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    vectors = unit(rng.normal(size=(offsets[-1], 8))).astype(np.float32)
    vectors[10] = vectors[20]
    found = greatest_similarity_to_another(torch.from_numpy(vectors), offsets, budget=1 << 16)
    for start, stop in pairwise(offsets):
        exact = vectors[start:stop].astype(np.float64)
        similarity = exact @ exact.T
        np.fill_diagonal(similarity, -np.inf)
        if stop > start:
            np.testing.assert_allclose(found[start:stop], similarity.max(axis=1), atol=1e-5)
