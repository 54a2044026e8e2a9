"""The uniform sample: seeded, bounded, the same whatever the order of arrival."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.sampling import (
    CHECKSUM_MODULUS,
    UniformSample,
    candidate_limit,
    id_checksum,
    id_hash,
    smallest,
    with_spare,
)
from semdedup_assets.records import item_ids
from semdedup_assets_tests.algorithm.vectors import repeatable


def sampled(batches: list[np.ndarray], *, size: int | None, seed: int) -> np.ndarray:
    sample = UniformSample(size=size, seed=seed)
    for batch in batches:
        sample.add(batch)
    return sample.ids


@given(
    n=st.integers(0, 500), size=st.integers(1, 600), seed=st.integers(0, 2**64), parts=st.integers(1, 20),
    shuffle=st.integers(0, 1000),
)  # fmt: skip
@repeatable
def test_the_same_items_are_chosen_whatever_the_order_of_arrival(
    n: int, size: int, seed: int, parts: int, shuffle: int
) -> None:
    rng = np.random.default_rng(shuffle)
    ids = rng.choice(10**9, n, replace=False).astype(np.uint64)
    chosen = sampled([ids], size=size, seed=seed)
    np.testing.assert_array_equal(sampled(np.array_split(rng.permutation(ids), parts), size=size, seed=seed), chosen)
    assert len(chosen) == min(n, size)
    assert np.isin(chosen, ids).all()
    assert (np.diff(chosen.astype(np.int64)) > 0).all()


def test_a_smaller_sample_is_part_of_a_larger_one_with_the_same_seed() -> None:
    ids = np.arange(1000, dtype=np.uint64)
    assert np.isin(sampled([ids], size=50, seed=1), sampled([ids], size=200, seed=1)).all()


def test_without_a_size_all_are_chosen_and_all_are_counted() -> None:
    sample = UniformSample(size=None, seed=0)
    sample.add(np.arange(7, 10, dtype=np.uint64))
    sample.add(np.arange(3, dtype=np.uint64))
    assert sample.ids.tolist() == [0, 1, 2, 7, 8, 9]
    assert sample.seen == 6


def test_each_item_of_each_shard_is_chosen_about_as_often() -> None:
    ids = np.concatenate([item_ids(shard, np.arange(50)) for shard in range(10)])
    counts = np.zeros(500)
    for seed in range(400):
        counts[np.searchsorted(ids, sampled([ids], size=50, seed=seed))] += 1
    # Each is chosen 400 times with probability 0.1; the sum has about 499 degrees of freedom, deviation 32.
    chi_square = ((counts - 40) ** 2 / (40 * 0.9)).sum()
    assert 499 - 5 * 32 < chi_square < 499 + 5 * 32


def test_hashes_are_distinct_and_unrelated_between_seeds() -> None:
    ids = np.arange(100_000, dtype=np.uint64)
    one, two = id_hash(ids, seed=1), id_hash(ids, seed=2)
    assert len(np.unique(one)) == len(ids)
    correlation = np.corrcoef(one.astype(np.float64), two.astype(np.float64))[0, 1]
    assert abs(correlation) < 5 / np.sqrt(len(ids))


@given(n=st.integers(0, 300), parts=st.integers(1, 20), shuffle=st.integers(0, 1000))
@repeatable
def test_checksums_of_parts_add_up_in_any_order(n: int, parts: int, shuffle: int) -> None:
    rng = np.random.default_rng(shuffle)
    ids = item_ids(7, rng.choice(10**9, n, replace=False))
    split = np.array_split(rng.permutation(ids), parts)
    assert sum(id_checksum(part) for part in split) % CHECKSUM_MODULUS == id_checksum(ids)
    exact = sum(int(number) for number in id_hash(ids, seed=0x5EED)) % CHECKSUM_MODULUS
    assert id_checksum(ids) == exact
    assert 0 <= id_checksum(ids) < 2**63


def test_a_checksum_tells_a_lost_a_doubled_and_a_swapped_id() -> None:
    ids = item_ids(0, np.arange(1000))
    sums = {
        id_checksum(ids),
        id_checksum(ids[1:]),
        id_checksum(np.concatenate([ids[1:], ids[1:2]])),
        id_checksum(item_ids(1, np.arange(1000))),
        id_checksum(ids[:0]),
    }
    assert len(sums) == 5
    assert id_checksum(ids[:0]) == 0


@given(n=st.integers(1, 3000), size=st.integers(1, 3000) | st.none(), seed=st.integers(0, 2**64))
@repeatable
def test_the_candidates_hold_the_sample_wherever_they_are_enough(n: int, size: int | None, seed: int) -> None:
    ids = item_ids(3, np.arange(n))
    hashes = id_hash(ids, seed=seed)
    candidate = hashes <= np.uint64(candidate_limit(size, n))
    chosen = sampled([ids], size=size, seed=seed)
    if candidate.sum() >= len(chosen):
        assert ids[candidate][smallest(hashes[candidate], size)].tolist() == chosen.tolist()
    if size is None or with_spare(size) >= n:
        assert candidate.all()
    else:
        assert candidate.sum() < with_spare(with_spare(size)) + 100
