from dataclasses import replace

import numpy as np
import pytest

from semdedup_assets.algorithm.buckets import predicted_pairs
from semdedup_assets.algorithm.cost import (
    STAGES,
    ItemBytes,
    Rates,
    Scale,
    assign_flops,
    choice_steps,
    expected_pairs,
    fit_flops,
    stage_bytes,
    stage_memory,
    stage_reads,
    stage_results,
    stage_seconds,
)

SCALE = Scale(
    items=1000,
    largest_shard=600,
    shards=2,
    dimension=8,
    number_bytes=2,
    sample=500,
    k=10,
    fit_sample=400,
    fit_streams=False,
    iterations=5,
    pairs=80_000,
    largest_cluster=300,
    buckets=4,
    epsilons=3,
)
ITEM = ItemBytes(embedding=50, score=20, mask=6, manifest=40)
NOTHING = Rates(*[0.0] * 12)


def test_operations_are_counted_as_by_hand() -> None:
    assert assign_flops(SCALE) == 2 * 1000 * 10 * 8
    assert fit_flops(SCALE) == 2 * 400 * 10 * 8 * 6


def test_clusters_of_equal_size_have_fewer_pairs_than_are_expected_and_very_uneven_ones_more() -> None:
    equal = predicted_pairs(np.full(10, 100), items=1000)
    uneven = predicted_pairs(np.array([550] + [50] * 9), items=1000)
    assert equal == 10 * 100 * 99 // 2
    assert equal < expected_pairs(1000, k=10) < uneven


def test_one_cluster_holds_every_pair_and_no_more() -> None:
    assert expected_pairs(1000, k=1) == 1000 * 999 // 2


def test_as_many_clusters_as_items_leave_few_pairs() -> None:
    assert 0 <= expected_pairs(1000, k=1000) < 1000


def test_bytes_are_those_of_the_files_formats() -> None:
    stored = stage_bytes(SCALE, ITEM)
    assert stored == {
        "embeddings": 1000 * 50,
        "training_sample": 500 * (8 + 16),
        "centroids": 10 * (32 + 4),
        "assignments": 1000 * (16 + 16) + 2 * 16 * 11,
        "duplicate_scores": 1000 * 20,
        "keep_masks": 1000 * 6 * 3,
        "manifests": 1000 * 40 * 3,
    }


def test_results_are_counted_by_partition() -> None:
    assert list(stage_results(SCALE).values()) == [2, 1, 1, 2, 4, 3, 3]


@pytest.mark.parametrize(
    ("rate", "stage", "units"),
    [
        ("embed", "embeddings", 1000),
        ("pass_id", "training_sample", 1000),
        ("draw", "training_sample", 500),
        ("fit", "centroids", 2 * 400 * 10 * 8 * 6),
        ("assign", "assignments", 1000),
        ("product", "assignments", 2 * 1000 * 10 * 8),
        ("compare", "duplicate_scores", 81_000),
        ("mask", "keep_masks", 81_000 * 3),
        ("manifest", "manifests", 1000 * 3),
    ],
)
def test_each_rate_counts_in_its_own_stage_alone(rate: str, stage: str, units: int) -> None:
    seconds = stage_seconds(SCALE, replace(NOTHING, **{rate: 0.5}), ITEM)
    assert seconds == {name: pytest.approx(0.5 * units if name == stage else 0.0) for name in STAGES}


def test_every_result_costs_its_overhead() -> None:
    seconds = stage_seconds(SCALE, replace(NOTHING, result=0.1), ITEM)
    assert list(seconds.values()) == pytest.approx([0.2, 0.1, 0.1, 0.2, 0.4, 0.3, 0.3])


def test_a_store_elsewhere_costs_what_is_read_and_written() -> None:
    seconds = stage_seconds(SCALE, replace(NOTHING, transfer=1e-6), ITEM)
    assert seconds["assignments"] == pytest.approx((50_000 + 32_352) * 1e-6)
    assert stage_reads(SCALE, ITEM)["embeddings"] == 0


def test_the_sample_is_chosen_anew_whenever_the_items_have_doubled() -> None:
    assert choice_steps(SCALE) == 1000
    large = replace(SCALE, items=800_000, sample=100_000)
    assert choice_steps(large) == 3 * 200_000
    assert choice_steps(replace(large, sample=large.items)) == 0


@pytest.mark.parametrize(
    ("streams", "budget", "bytes_more"), [(False, 0, 64), (True, 1 << 30, 32 + 8 + 12), (True, 0, 0)]
)
def test_memory_of_a_fit_holds_the_sample_as_float32_unless_it_streams(
    streams: bool, budget: int, bytes_more: int
) -> None:
    small, large = (
        stage_memory(replace(SCALE, sample=m, fit_sample=m, fit_streams=streams), ITEM, budget=budget)["centroids"]
        for m in (1_000_000, 2_000_000)
    )
    assert large - small == 1_000_000 * (16 + bytes_more)


def test_more_buckets_need_less_memory() -> None:
    large = replace(SCALE, items=10_000_000, dimension=512)
    few, many = (stage_memory(replace(large, buckets=b), ITEM, budget=1 << 30) for b in (4, 40))
    assert many["duplicate_scores"] < few["duplicate_scores"]
    assert many["keep_masks"] < few["keep_masks"]
    assert many["centroids"] == few["centroids"]


def test_a_smaller_budget_needs_less_memory() -> None:
    large = replace(SCALE, items=10_000_000, dimension=512)
    little, much = (stage_memory(large, ITEM, budget=b)["duplicate_scores"] for b in (1 << 24, 1 << 30))
    assert little < much
