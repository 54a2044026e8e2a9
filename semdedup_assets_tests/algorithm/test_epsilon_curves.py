"""Counts by epsilon, cluster and similarity, against loops over all pairs."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm import epsilon_curves
from semdedup_assets.algorithm.cluster_ranges import plan_ranges
from semdedup_assets.algorithm.epsilon_curves import (
    EPSILON_GRID,
    SIMILARITY_EDGES,
    ClusterCounts,
    ClusterSample,
    EpsilonCounts,
    choose_clusters,
    random_parts,
    similarity_histogram,
)
from semdedup_assets.algorithm.similarity import score_clusters
from semdedup_assets_tests import oracle
from semdedup_assets_tests.algorithm.vectors import near_duplicates, repeatable, tensor

ROOMY = 1 << 30
SIMILARITIES = st.one_of(st.floats(-1, 1, width=32), st.just(-np.inf), st.sampled_from([0.5, 0.75, 1.0]))


@given(
    parts=st.lists(st.lists(SIMILARITIES, max_size=20), max_size=4),
    epsilons=st.lists(st.one_of(st.floats(0, 2), st.sampled_from([0.25, 0.5, 0.0, 2.0])), min_size=1, unique=True),
)
@repeatable
def test_counts_are_those_of_each_epsilon_alone(parts: list[list[float]], epsilons: list[float]) -> None:
    ascending = np.array(sorted(epsilons))
    counts = EpsilonCounts(ascending)
    for part in parts:
        counts.add(np.array(part, dtype=np.float32))
    every = [float(np.float32(value)) for part in parts for value in part]
    assert counts.within.tolist() == [sum(value <= 1 - epsilon for value in every) for epsilon in ascending.tolist()]


def test_the_histogram_counts_finite_similarities_also_those_rounded_beyond_one() -> None:
    counts = similarity_histogram(np.array([-np.inf, 1.0000002, 0.999, -1, 0.004], dtype=np.float32))
    assert counts.sum() == 4
    assert counts[-1] == 2
    assert counts[0] == 1
    assert counts[np.searchsorted(SIMILARITY_EDGES, 0.004) - 1] == 1


def test_the_grid_rises_over_all_epsilons() -> None:
    assert EPSILON_GRID[0] == 0
    assert EPSILON_GRID[-1] == 2
    assert (np.diff(EPSILON_GRID) > 0).all()


class Scored:
    """Clusters of near duplicates, some of them empty, and their scores."""

    def __init__(self) -> None:
        self.sizes = np.array([30, 0, 1, 60, 2, 0, 25])
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)])
        self.rows = np.concatenate([near_duplicates(n, epsilon=0.05, seed=n) for n in self.sizes.tolist() if n])
        self.cluster = np.repeat(np.arange(len(self.sizes)), self.sizes)
        self.similarity = score_clusters(tensor(self.rows), self.offsets, budget=ROOMY).similarity

    def counts(self, epsilons: list[float], *, parts: int = 3) -> ClusterCounts:
        counts = ClusterCounts.empty(epsilons, k=len(self.sizes))
        for cluster, similarity in zip(
            np.array_split(self.cluster, parts), np.array_split(self.similarity, parts), strict=True
        ):
            counts.add(cluster, similarity)
        return counts


@pytest.mark.parametrize("parts", [1, 5, 200])
def test_scores_are_counted_by_cluster_and_epsilon_whatever_the_parts(parts: int) -> None:
    scored = Scored()
    epsilons = [oracle.epsilon_in_gap(scored.rows, 0.06), oracle.epsilon_in_gap(scored.rows, 0.01), 0.0]
    counts = scored.counts(epsilons, parts=parts)
    assert counts.sizes.tolist() == scored.sizes.tolist()
    assert counts.items == len(scored.rows)
    assert counts.empty_clusters == 2
    for row, epsilon in enumerate(epsilons):
        lost = [
            int((~oracle.chain_keep(scored.rows[scored.cluster == cluster], epsilon)).sum())
            for cluster in range(len(scored.sizes))
        ]
        assert counts.removed[row].tolist() == lost
        assert counts.at_epsilons(counts.kept.within)[row] == len(scored.rows) - sum(lost)
        assert counts.at_epsilons(counts.kept_fraction)[row] == pytest.approx(1 - sum(lost) / len(scored.rows))
    assert counts.removed[0].sum() > counts.removed[1].sum() > 0
    assert counts.similarity.sum() == np.isfinite(scored.similarity).sum()
    assert set(epsilons) <= set(counts.grid.tolist())


def test_of_no_items_no_share_is_known() -> None:
    counts = ClusterCounts.empty([0.1], k=3)
    counts.add(np.empty(0, np.int32), np.empty(0, np.float32))
    sample = ClusterSample.choose(counts, [range(3)])
    assert counts.items == sample.items == 0
    assert sample.clusters == {}
    assert np.isnan(counts.kept_fraction).all()
    assert np.isnan(sample.with_duplicate_fraction).all()


@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=60),
    ranges=st.integers(1, 40),
    most=st.sampled_from([1, 30, 200, 10**6]),
)
@repeatable
def test_whole_clusters_are_chosen_by_range_up_to_the_limit(sizes: list[int], ranges: int, most: int) -> None:
    bounds = plan_ranges(np.array(sizes), ranges=ranges).tolist()
    each = [range(start, stop) for start, stop in pairwise(bounds)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epsilon_curves, "_SAMPLE_ITEMS", most)
        chosen = choose_clusters(np.array(sizes), each)
        assert choose_clusters(np.array(sizes), each) == chosen
    assert all(clusters and clusters <= set(each[index]) for index, clusters in chosen.items())
    assert list(chosen) == sorted(chosen)
    picked = [cluster for clusters in chosen.values() for cluster in clusters]
    assert all(sizes[cluster] for cluster in picked)
    total = sum(sizes[cluster] for cluster in picked)
    assert total <= most or len(picked) == 1
    if sum(sizes) <= most:
        assert total == sum(sizes)
    elif len(picked) > 1:
        # Nearly as many as wanted: what is missing is less than a cluster.
        assert total > most - max(sizes)


def test_few_ranges_are_opened_of_a_large_data_set() -> None:
    sizes = np.full(500, 100_000)
    chosen = choose_clusters(sizes, [range(start, start + 5) for start in range(0, 500, 5)])
    assert len(chosen) <= 4
    assert sum(map(len, chosen.values())) == 2


def duplicates_by_definition(rows: np.ndarray, epsilon: float) -> int:
    return int((oracle.nearest_kept(rows, np.ones(len(rows), dtype=bool)) > 1 - epsilon).sum())


@pytest.mark.parametrize("batches", [[(0, 7)], [(0, 3), (3, 4), (4, 7)]])
def test_an_item_has_a_duplicate_earlier_or_later_and_all_pairs_are_counted(batches: list[tuple[int, int]]) -> None:
    scored = Scored()
    epsilon = oracle.epsilon_in_gap(scored.rows, 0.05)
    counts = scored.counts([epsilon])
    sample = ClusterSample.choose(counts, [range(3), range(3, 7)])
    assert sample.clusters == {0: {0, 2}, 1: {3, 4, 6}}
    assert sample.cluster_indices == [0, 2, 3, 4, 6]
    for first, stop in batches:
        part = slice(scored.offsets[first], scored.offsets[stop])
        sample.add(
            first,
            scored.offsets[first : stop + 1] - scored.offsets[first],
            earlier=scored.similarity[part],
            vectors=tensor(scored.rows[part]),
            budget=ROOMY,
        )
    members = [scored.rows[scored.cluster == cluster] for cluster in sample.cluster_indices]
    expected = sum(duplicates_by_definition(rows, epsilon) for rows in members)
    assert counts.at_epsilons(sample.with_duplicate).tolist() == [expected]
    assert 0 < expected < sample.items == len(scored.rows)
    # A group of m items keeps one under the chain rule at best: more items have a duplicate than are removed.
    assert expected > counts.removed[0].sum()
    similarities = [(oracle.unit(r) @ oracle.unit(r).T)[np.triu_indices(len(r), k=1)] for r in members]
    histogram, _ = np.histogram(np.concatenate(similarities).clip(-1, 1), bins=SIMILARITY_EDGES)
    assert sample.pairs.sum() == sample.pairs_within == histogram.sum()
    # float32 moves a pair by less than 1e-6, so at most into the next bin.
    assert np.abs(np.cumsum(sample.pairs) - np.cumsum(histogram)).max() <= 1


@pytest.mark.parametrize("small", [0, 40, 640])
def test_of_many_items_some_of_each_cluster_are_compared_with_all_others_there(small: int) -> None:
    scored = Scored()
    epsilon = oracle.epsilon_in_gap(scored.rows, 0.05)
    counts = scored.counts([epsilon])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epsilon_curves, "_SMALL", small)
        patch.setattr(epsilon_curves, "_COMPARED_PAIRS", 800)
        patch.setattr(epsilon_curves, "_COMPARED_SHARE", 0.1)
        sample = ClusterSample.choose(counts, [range(7)])
        sample.add(0, scored.offsets, earlier=scored.similarity, vectors=tensor(scored.rows), budget=ROOMY)
    # 30, 60, 2 and 25 items have 2,506 pairs.
    assert sample.one_in == 4
    drawn = epsilon_curves._item_hash(scored.offsets, 0) % np.uint64(4) == 0
    assert sample.items == drawn.sum() == pytest.approx(len(scored.rows) / 4, rel=0.4)
    expected = 0
    for cluster in range(7):
        members = scored.cluster == cluster
        if members.any():
            others = oracle.nearest_kept(scored.rows[members], np.ones(members.sum(), dtype=bool))
            expected += int((others[drawn[members]] > 1 - epsilon).sum())
    assert counts.at_epsilons(sample.with_duplicate).tolist() == [expected]
    assert 0 < expected < sample.items


def histogram_of(rows: list[np.ndarray]) -> np.ndarray:
    products = [(oracle.unit(each) @ oracle.unit(each).T)[np.triu_indices(len(each), k=1)] for each in rows]
    return np.histogram(np.concatenate(products).clip(-1, 1), bins=SIMILARITY_EDGES)[0]


def sampled(clusters: list[np.ndarray], *, batches: int = 1) -> ClusterSample:
    """The pairs of clusters, given in several batches."""
    sizes = np.array([len(rows) for rows in clusters])
    sample = ClusterSample(
        {0: set(range(len(sizes)))}, EpsilonCounts(EPSILON_GRID), int((sizes * (sizes - 1) // 2).sum())
    )
    for part in np.array_split(np.arange(len(sizes)), batches):
        offsets = np.concatenate([[0], np.cumsum(sizes[part])])
        rows = np.concatenate([clusters[index] for index in part])
        earlier = np.full(len(rows), -np.inf, np.float32)
        sample.add(int(part[0]), offsets, earlier=earlier, vectors=tensor(rows), budget=ROOMY)
    return sample


@pytest.mark.parametrize("together", [7, 1 << 13, 1 << 20])
@pytest.mark.parametrize("batches", [1, 3])
def test_all_pairs_are_counted_once_whatever_is_multiplied_together(together: int, batches: int) -> None:
    # Single items, small clusters that are multiplied together, and larger ones.
    clusters = [near_duplicates(n, epsilon=0.05, seed=n) for n in (1, 2, 2, 30, 60, 100, 1, 3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epsilon_curves, "_TOGETHER", together)
        np.testing.assert_array_equal(sampled(clusters, batches=batches).pairs, histogram_of(clusters))


def test_of_many_pairs_those_within_random_parts_stand_for_all() -> None:
    clusters = [near_duplicates(n, epsilon=0.05, seed=n) for n in (2, 400, 3, 900)]
    expected = histogram_of(clusters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epsilon_curves, "_SAMPLE_PAIRS", 100_000)
        found = sampled(clusters).pairs
        np.testing.assert_array_equal(sampled(clusters, batches=2).pairs, found)
    assert found.sum() == pytest.approx(100_000, rel=0.2)
    assert distance(found, expected) < 0.02


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Kolmogorov and Smirnov's, of two histograms."""
    shares = [np.cumsum(each) / each.sum() for each in (found, expected)]
    return float(np.abs(shares[0] - shares[1]).max())


def test_of_few_large_clusters_every_item_is_among_the_pairs() -> None:
    """Groups of very different tightness: few items would not show how many pairs are close."""
    rng = np.random.default_rng(0)
    clusters = []
    for _ in range(2):
        group, spread = rng.integers(0, 20, 1500), rng.choice([0.05, 0.3, 1.0, 2.0], 20)
        centres = rng.normal(size=32) + 0.8 * rng.normal(size=(20, 32))
        clusters.append(oracle.unit(centres[group] + spread[group, None] * rng.normal(size=(1500, 32))))
    expected = histogram_of(clusters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epsilon_curves, "_SAMPLE_PAIRS", 100_000)
        found = sampled(clusters).pairs
    assert found.sum() == pytest.approx(100_000, rel=0.05)
    # Of 100,000 independent pairs, the distance exceeds 0.0062 once in a thousand times.
    assert distance(found, expected) < 0.01


def test_parts_depend_on_the_cluster_and_the_rank_alone_and_hold_each_row_once() -> None:
    offsets = np.array([0, 20_000, 20_000, 20_001, 50_000])
    order, bounds = random_parts(offsets, first=10, parts=10)
    assert sorted(order.tolist()) == list(range(50_000))
    assert len(bounds) == 10 + 1 + 10 + 1
    sizes = np.diff(bounds)
    # Binomial: standard deviation 42 and 52.
    assert np.abs(sizes[:10] - 2000).max() < 220
    assert np.abs(sizes[11:] - 3000).max() < 270
    alone, _ = random_parts(np.array([0, 29_999]), first=13, parts=10)
    np.testing.assert_array_equal(alone + 20_001, order[20_001:])
