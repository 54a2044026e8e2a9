"""What a gallery shows, against sorting and counting in Python."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.gallery_choice import (
    ClusterLoss,
    GalleryRow,
    GroupSize,
    SelectedItems,
    before_and_after,
    choose_seeds,
    divide_evenly,
    gallery_thresholds,
    group_rows,
    joined_group,
    largest_groups,
    merge_groups,
    merge_seeds,
    most_removed,
    neighbour_search,
)
from semdedup_assets.algorithm.selection import keep_mask, orphans, select
from semdedup_assets.algorithm.similarity import score_clusters
from semdedup_assets_tests import oracle
from semdedup_assets_tests.algorithm.vectors import near_duplicates, repeatable, tensor

ROOMY, EPSILON = 1 << 30, 0.05


def selected(sizes: list[int], *, seed: int = 0) -> tuple[SelectedItems, np.ndarray]:
    """Clusters of near duplicates under the chain rule, and their vectors."""
    rng = np.random.default_rng(seed)
    rows = np.concatenate([near_duplicates(size, epsilon=EPSILON, seed=size) for size in sizes])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    ids = rng.permutation(10 * len(rows))[: len(rows)].astype(np.uint64)
    earlier = score_clusters(tensor(rows), offsets, budget=ROOMY)
    keep = keep_mask(earlier.similarity, EPSILON)
    neighbour, similarity, orphan = np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.float32), ~keep
    for start, stop in pairwise(offsets):
        found = select(tensor(rows[start:stop]), keep[start:stop], budget=ROOMY)
        neighbour[start:stop] = ids[start:stop][np.maximum(found.kept_neighbour, 0)]
        similarity[start:stop] = found.kept_similarity
        orphan[start:stop] = orphans(found, EPSILON)
    cluster = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    items = SelectedItems(
        ids=ids,
        cluster=cluster,
        centroid_similarity=rng.random(len(rows)).round(2),
        similarity=earlier.similarity,
        kept=keep,
        kept_neighbour=neighbour,
        kept_similarity=similarity,
        orphan=orphan,
    )
    return items, rows


@pytest.mark.parametrize(
    ("epsilon", "thresholds"),
    [
        (0, (0,)),
        (0.08, (0.02, 0.04, 0.08, 0.16)),
        (1, (0.25, 0.5, 1, 2)),
        (1.5, (0.375, 0.75, 1.5, 2)),
        (2, (0.5, 1, 2)),
    ],
)
def test_thresholds_are_fractions_and_the_double_of_epsilon_within_its_range(
    epsilon: float, thresholds: tuple[float, ...]
) -> None:
    assert gallery_thresholds(epsilon) == thresholds


def test_an_epsilon_outside_its_range_has_no_thresholds() -> None:
    with pytest.raises(ValueError, match=r"epsilon: 2.5 is outside \[0, 2\]"):
        gallery_thresholds(2.5)


@given(neighbours=st.lists(st.integers(2**64 - 6, 2**64 - 1), max_size=40), most=st.integers(0, 8))
@repeatable
def test_the_largest_groups_are_those_counted_most_often(neighbours: list[int], most: int) -> None:
    found = largest_groups(np.array(neighbours, dtype=np.uint64), most=most)
    expected = sorted(Counter(neighbours).items(), key=lambda pair: (-pair[1], pair[0]))[:most]
    assert [(group.kept, group.removed) for group in found] == expected


def test_the_largest_groups_of_parts_are_those_of_the_whole() -> None:
    neighbours = np.random.default_rng(0).integers(0, 40, 300).astype(np.uint64)
    parts = [largest_groups(part, most=7) for part in (neighbours[neighbours < 20], neighbours[neighbours >= 20])]
    assert merge_groups([*parts[1], *parts[0]], most=7) == largest_groups(neighbours, most=7)
    assert merge_groups([GroupSize(1, 5), GroupSize(0, 5), GroupSize(2, 9)], most=2) == [
        GroupSize(2, 9),
        GroupSize(0, 5),
    ]


def test_a_group_shows_removed_items_evenly_from_the_most_to_the_least_similar() -> None:
    items, _ = selected([80, 120])
    removed = ~items.kept
    query = largest_groups(items.kept_neighbour[removed], most=1)[0]
    members = np.flatnonzero(removed & (items.kept_neighbour == np.uint64(query.kept)))
    ranked = sorted(members.tolist(), key=lambda row: (-items.kept_similarity[row], items.ids[row]))
    every = group_rows(items, [query.kept], most=1000)[query.kept]
    assert every.ids.tolist() == items.ids[ranked].tolist()
    np.testing.assert_array_equal(every.similarity, items.kept_similarity[ranked])
    np.testing.assert_array_equal(every.orphan, items.orphan[ranked])
    assert not every.kept.any()
    few = group_rows(items, [query.kept], most=3)[query.kept]
    assert few.total == every.total == query.removed > 3
    assert few.ids.tolist() == [int(every.ids[i]) for i in (0, round((query.removed - 1) / 2), query.removed - 1)]


def test_a_query_without_removed_items_has_no_group() -> None:
    items, _ = selected([50])
    absent = int(items.ids.max()) + 1
    assert group_rows(items, [absent], most=5) == {}


@pytest.mark.parametrize("most", [1, 3, 10, 1000])
def test_seeds_have_a_duplicate_and_every_cluster_has_its_turn(most: int) -> None:
    items, _ = selected([30, 5, 60, 1, 40])
    seeds = choose_seeds(items, epsilon=EPSILON, most=most, seed=3)
    rows = [int(np.flatnonzero(items.ids == np.uint64(seed.item))[0]) for seed in seeds]
    candidates = np.flatnonzero(items.similarity > 1 - EPSILON)
    assert len(set(rows)) == min(most, len(candidates))
    assert set(rows) <= set(candidates.tolist())
    assert [seed.cluster for seed in seeds] == items.cluster[rows].tolist()
    counts, held = Counter(seed.cluster for seed in seeds), Counter(items.cluster[candidates].tolist())
    # A cluster has fewer than another only where it has no more.
    for cluster, total in held.items():
        assert counts[cluster] == total or counts[cluster] >= max(counts.values()) - 1


def test_seeds_depend_on_ids_not_on_the_order_of_rows_or_on_parts() -> None:
    items, _ = selected([30, 20, 60])
    together = choose_seeds(items, epsilon=EPSILON, most=9, seed=1)
    parts = [choose_seeds(items.in_cluster(cluster), epsilon=EPSILON, most=9, seed=1) for cluster in (2, 0, 1)]
    assert merge_seeds([seed for part in parts for seed in part], most=9) == together
    assert choose_seeds(items, epsilon=EPSILON, most=9, seed=2) != together


def test_the_cluster_that_lost_most_is_found_and_without_losses_the_largest() -> None:
    items, _ = selected([30, 70, 20])
    losses = [int((~items.kept[items.cluster == cluster]).sum()) for cluster in range(3)]
    assert most_removed(items) == ClusterLoss(losses[1], 70, 1)
    found = [loss for cluster in range(3) if (loss := most_removed(items.in_cluster(cluster)))]
    assert max(found) == most_removed(items)
    assert most_removed(items.in_cluster(9)) is None
    nothing_lost = SelectedItems(
        items.ids, items.cluster, items.centroid_similarity, items.similarity, np.ones(120, dtype=bool),
        items.kept_neighbour, items.kept_similarity, items.orphan,
    )  # fmt: skip
    assert most_removed(nothing_lost) == ClusterLoss(0, 70, 1)


def test_before_and_after_are_sorted_by_similarity_to_the_centroid() -> None:
    items, _ = selected([60])
    ranked = sorted(range(60), key=lambda row: (-items.centroid_similarity[row], items.ids[row]))
    kept = [row for row in ranked if items.kept[row]]
    before, after = before_and_after(items, most=10)
    assert before.ids.tolist() == items.ids[ranked[:10]].tolist()
    assert after.ids.tolist() == items.ids[kept[:10]].tolist()
    assert (before.total, after.total) == (60, len(kept))
    assert after.kept.all()
    np.testing.assert_array_equal(before.similarity, items.centroid_similarity[ranked[:10]])


@pytest.mark.parametrize("most", [4, 9, 1000])
def test_neighbours_are_divided_by_thresholds_the_most_similar_first(most: int) -> None:
    items, rows = selected([90])
    thresholds = tuple(oracle.epsilon_in_gap(rows, epsilon) for epsilon in gallery_thresholds(EPSILON))
    search = neighbour_search(items, tensor(rows), thresholds=thresholds, most=most, budget=ROOMY)
    row = int(np.flatnonzero(items.similarity > 1 - EPSILON)[0])
    found = search.around(int(items.ids[row]))
    exact = oracle.unit(rows) @ oracle.unit(rows)[row]
    assert found.query.ids.tolist() == [int(items.ids[row])]
    assert sum(len(part.ids) for part in found.rows) == min(most, 89)
    bounds = [0.0, *thresholds, 3.0]
    for part, low, high in zip(found.rows, bounds, bounds[1:], strict=False):
        inside = [i for i in range(90) if i != row and 1 - high < exact[i] and (low == 0 or exact[i] <= 1 - low)]
        assert part.total == len(inside)
        at = [int(np.flatnonzero(items.ids == i)[0]) for i in part.ids]
        np.testing.assert_allclose(part.similarity, np.sort(exact[inside])[::-1][: len(at)], atol=1e-6)
        np.testing.assert_allclose(exact[at], part.similarity, atol=1e-6)
        np.testing.assert_array_equal(part.kept, items.kept[at])
    assert list(found.within) == [int((np.delete(exact, row) > 1 - epsilon).sum()) for epsilon in thresholds]


def test_at_epsilon_zero_no_neighbour_is_within() -> None:
    items, rows = selected([20])
    search = neighbour_search(items, tensor(rows), thresholds=gallery_thresholds(0), most=5, budget=ROOMY)
    found = search.around(int(items.ids[4]))
    assert found.within == (0,)
    assert [part.total for part in found.rows] == [0, 19]


def test_an_item_of_another_cluster_is_an_error_that_names_it() -> None:
    items, rows = selected([20])
    absent = int(items.ids.max()) + 1
    search = neighbour_search(items, tensor(rows), thresholds=(0.1,), most=5, budget=ROOMY)
    with pytest.raises(ValueError, match=f"item {absent} is not among the 20 items of the cluster"):
        search.around(absent)


@given(counts=st.lists(st.integers(0, 9), max_size=6), most=st.integers(0, 30))
@repeatable
def test_lists_are_shown_as_evenly_as_they_allow(counts: list[int], most: int) -> None:
    shown = divide_evenly(counts, most=most)
    assert sum(shown) == min(most, sum(counts))
    assert all(0 <= some <= count for some, count in zip(shown, counts, strict=True))
    # A list has fewer than another only where all of it is shown.
    assert all(some == count or some >= max(shown) - 1 for some, count in zip(shown, counts, strict=True))


def test_a_group_of_two_parts_is_one_group() -> None:
    def row(ids: list[int], similarity: list[float]) -> GalleryRow:
        return GalleryRow(
            np.array(ids, np.uint64), np.array(similarity), np.zeros(len(ids), bool), np.zeros(len(ids), bool), 9
        )

    joined = joined_group(row([3, 1], [0.9, 0.7]), row([2, 4], [0.9, np.nan]), most=3)
    assert joined.total == 18
    assert joined.ids.tolist()[::2] == [2, 4]
    assert joined_group(row([3, 1], [0.9, 0.7]), row([2, 4], [0.9, np.nan]), most=9).ids.tolist() == [2, 3, 1, 4]
