"""The prefilter by 8-bit integers leaves what comparing all pairs finds, held against float64."""

import numpy as np
import pytest
import torch

from semdedup_assets.algorithm import prefilter
from semdedup_assets.algorithm.assignment import assign
from semdedup_assets.algorithm.prefilter import QUERY_BLOCK, Prefilter, centre_of, encode, integers_are_exact
from semdedup_assets.algorithm.similarity import greatest_similarity, max_earlier_similarity
from semdedup_assets_tests import oracle
from semdedup_assets_tests.algorithm.vectors import near_duplicates, random_vectors, repeated, tensor

ROOMY, TINY = 1 << 30, 1 << 17

pytestmark = pytest.mark.skipif(not integers_are_exact(), reason="products of 8-bit integers are not exact here")


@pytest.fixture(autouse=True)
def prefiltered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where this processor is no faster for it."""
    monkeypatch.setattr(prefilter, "integers_are_fast", lambda: True)


def spread(n: int, d: int = 96) -> np.ndarray:
    """(n, d) float32: clustered, off the origin, with one number far larger than the others, as CLIP's are."""
    rng = np.random.default_rng(n)
    rows = rng.normal(size=(n // 20 + 1, d))[rng.integers(n // 20 + 1, size=n)] + 0.7 * rng.normal(size=(n, d)) + 0.5
    rows[:, 7] += 12
    return oracle.unit(rows).astype(np.float32)


VECTORS = {
    "random": random_vectors(3000, 96),
    "near duplicates": near_duplicates(3000, 96, epsilon=0.01),
    "clustered, with a dominant number": spread(3000),
    "half precision": spread(2500).astype(np.float16),
}


def similarities(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    return oracle.unit(queries) @ oracle.unit(candidates).T


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("prefix", [False, True])
def test_the_most_similar_candidate_is_always_among_the_few_that_are_left(name: str, prefix: bool) -> None:
    rows = torch.nn.functional.normalize(tensor(VECTORS[name]).float())
    queries, candidates = rows[-700:], rows[:-700]
    centre = centre_of(candidates)
    seen = np.sort(np.random.default_rng(0).integers(1, len(candidates), size=700)) if prefix else None
    pairs = Prefilter(encode(candidates, centre)).pairs(
        encode(queries, centre), None if seen is None else torch.from_numpy(seen)
    )
    assert pairs is not None
    exact = similarities(queries.numpy(), candidates.numpy())
    if seen is not None:
        exact[np.arange(len(candidates)) >= seen[:, None]] = -np.inf
    found = np.zeros(exact.shape, dtype=bool)
    found[pairs[0].numpy(), pairs[1].numpy()] = True
    assert found[np.arange(700), exact.argmax(axis=1)].all()
    assert np.isfinite(exact[found]).all()
    assert found.sum() < exact.size / 50


def test_a_query_that_sees_nothing_is_in_no_pair() -> None:
    rows = tensor(random_vectors(200, 64))
    codes = encode(rows, centre_of(rows))
    pairs = Prefilter(codes).pairs(codes, torch.arange(200))
    assert pairs is not None
    assert sorted(set(pairs[0].tolist())) == list(range(1, 200))
    assert bool((pairs[1] < pairs[0]).all())


@pytest.mark.parametrize("name", VECTORS)
def test_scores_are_those_of_the_definition_and_of_float32(name: str) -> None:
    rows = tensor(VECTORS[name])
    found = max_earlier_similarity(rows, budget=ROOMY)
    expected = oracle.chain_scores(VECTORS[name])
    assert np.abs(found.similarity[1:] - expected[1:]).max() <= 1e-5
    in_float32 = max_earlier_similarity(rows, budget=TINY)
    same = found.position == in_float32.position
    # Elsewhere two candidates are so close that the last bit of a product decides.
    assert same.mean() > 0.99
    np.testing.assert_allclose(found.similarity[1:], in_float32.similarity[1:], atol=1.1e-6)
    np.testing.assert_array_equal(found.similarity[same], in_float32.similarity[same])


def test_of_many_copies_the_earliest_is_found_though_the_prefilter_excludes_nothing() -> None:
    rows, group = repeated(4000, 64, groups=3)
    found = max_earlier_similarity(tensor(rows), budget=ROOMY)
    first = np.array([np.flatnonzero(group == one)[0] for one in range(3)])
    later = np.setdiff1d(np.arange(4000), first)
    np.testing.assert_array_equal(found.position[later], first[group[later]])


def test_queries_that_are_no_candidates_find_what_they_see() -> None:
    rows, others = spread(2600), spread(2000)
    visible = np.sort(np.random.default_rng(1).integers(0, len(rows), size=len(others)))
    found = greatest_similarity(tensor(others), tensor(rows), visible=visible, budget=ROOMY)
    exact = similarities(others, rows)
    exact[np.arange(len(rows)) >= visible[:, None]] = -np.inf
    assert (found.position[visible == 0] == -1).all()
    some = visible > 0
    np.testing.assert_allclose(found.similarity[some], exact.max(axis=1)[some], atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_each_vector_goes_to_its_nearest_centroid(dtype: type) -> None:
    rows, centroids = spread(QUERY_BLOCK + 500).astype(dtype), spread(900)
    found = assign(tensor(rows), tensor(centroids), budget=ROOMY)
    exact = similarities(rows, centroids)
    clear = np.diff(np.sort(exact, axis=1)[:, -2:])[:, 0] > 1e-7
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found.cluster[clear], exact.argmax(axis=1)[clear])
    in_float32 = assign(tensor(rows), tensor(centroids), budget=TINY)
    np.testing.assert_array_equal(found.cluster[clear], in_float32.cluster[clear])
    np.testing.assert_array_equal(found.similarity[clear], in_float32.similarity[clear])


def test_of_equal_centroids_the_lower_is_taken() -> None:
    distinct = random_vectors(150, 64, seed=1)
    rows = random_vectors(600, 64)
    found = assign(tensor(rows), tensor(np.tile(distinct, (5, 1))), budget=ROOMY)
    np.testing.assert_array_equal(found.cluster, similarities(rows, distinct).argmax(axis=1))


def test_the_prefilter_is_used_where_it_pays_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tensor(random_vectors(3000, 64))
    assert prefilter.can_prefilter(rows, budget=ROOMY)
    assert not prefilter.can_prefilter(rows, budget=TINY)
    assert not prefilter.can_prefilter(rows[:, :32], budget=ROOMY)
    monkeypatch.setattr(prefilter, "integers_are_fast", lambda: False)
    assert not prefilter.can_prefilter(rows, budget=ROOMY)
