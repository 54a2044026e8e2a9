import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.pair_bands import KINDS, KindCounts, PairBands, among_files, sample_by_band

EDGES = (0.001, 0.01, 0.03, 0.05, 0.1, 0.2)


@given(
    st.sampled_from([0.0, 0.001, 0.02, 0.05, 0.3]),
    st.lists(st.sampled_from([*(np.float32(1 - edge) for edge in EDGES), np.float32(1), np.float32(0.5)]), max_size=20),
)
def test_a_pair_is_in_the_first_band_whose_epsilon_removes_it(epsilon: float, similarity: list[np.float32]) -> None:
    bands = PairBands.within(epsilon, EDGES)
    assert bands.edges[-1] == epsilon
    assert len(bands.names) == len(set(bands.names)) == len(bands.limits)
    found = bands.of(np.array(similarity, np.float32)).tolist()
    for value, band in zip(similarity, found, strict=True):
        removed = [float(value) > 1.0 - edge for edge in bands.edges]
        assert band == (removed.index(True) if any(removed) else len(bands.edges))


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 8), st.integers(0, 5))
def test_a_sample_is_of_each_band_and_does_not_depend_on_the_order(band: list[int], most: int, seed: int) -> None:
    ids, bands = np.arange(len(band), dtype=np.uint64) * 7919, np.array(band, np.uint8)
    chosen = sample_by_band(ids, bands, most=most, seed=seed)
    assert bands[chosen].tolist() == [each for each in range(4) for _ in range(min(most, band.count(each)))]
    assert len(set(chosen.tolist())) == len(chosen)
    turned = sample_by_band(ids[::-1], bands[::-1], most=most, seed=seed)
    assert ids[::-1][turned].tolist() == ids[chosen].tolist()
    fewer = sample_by_band(ids, bands, most=1, seed=seed)
    firsts = [int(chosen[bands[chosen] == each][0]) for each in np.unique(bands)]
    assert fewer.tolist() == firsts


def test_each_pair_of_many_files_is_chosen_with_the_same_probability() -> None:
    files, most, trials = 12, 4, 3000
    one, other = (np.array(index, np.uint64) + 1 for index in np.divmod(np.arange(files**2), files))
    ids = np.arange(files**2, dtype=np.uint64)
    chosen = np.zeros(files**2)
    for seed in range(trials):
        found = among_files(one, other, ids=ids, most=most, seed=7 * seed)
        assert len(set(one[found]) | set(other[found])) <= most
        chosen += found
    expected = most * (most - 1) / (files * (files - 1))
    same = one == other
    for group in (same, ~same):
        assert abs(chosen[group].mean() / trials - expected) < 0.006
    assert np.abs(chosen / trials - expected).max() < 6 * np.sqrt(expected / trials)


def test_of_few_files_every_pair_is_chosen_but_those_of_missing_files() -> None:
    one, other = np.array([1, 2, 0], np.uint64), np.array([2, 2, 1], np.uint64)
    ids = np.arange(3, dtype=np.uint64)
    assert among_files(one, other, ids=ids, most=2, seed=0).tolist() == [True, True, False]


@given(st.lists(st.tuples(*[st.integers(0, 40)] * 5), min_size=1, max_size=6))
def test_scaled_counts_are_whole_and_add_up(rows: list[tuple[int, ...]]) -> None:
    extra, same, *kinds = (np.array(column) for column in zip(*rows, strict=True))
    sampled = np.stack(kinds, axis=1)
    compared = sampled.sum(axis=1)
    total = same + compared + extra
    counts = KindCounts.scaled(total, same, sampled)
    assert counts.pairs.shape == (len(rows), len(KINDS))
    assert (counts.pairs.sum(axis=1) == total).all()
    assert (counts.pairs >= 0).all()
    for row in range(len(rows)):
        if compared[row]:
            exact = sampled[row] * (total[row] - same[row]) / compared[row]
            assert np.abs(counts.pairs[row, 1:4] - exact).max() <= 1
            assert counts.pairs[row, 4] == 0
        assert counts.estimated[row] == (compared[row] > 0 and extra[row] > 0)
