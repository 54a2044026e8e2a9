import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import hypergeom

from semdedup_assets.algorithm.label_precision import (
    BandLabels,
    band_precision,
    cumulative_precision,
    epsilon_for_precision,
)

Z = 1.959963984540054


def labels_of(*rows: tuple[int, int, int, int]) -> BandLabels:
    """Bands of (pairs, certain, labelled, duplicates)."""
    return BandLabels(*(np.array(column, dtype=np.int64) for column in zip(*rows, strict=True)))


@pytest.mark.parametrize(("duplicates", "labelled"), [(0, 7), (3, 20), (19, 20), (20, 20)])
def test_the_interval_holds_the_shares_that_the_labels_do_not_contradict(duplicates: int, labelled: int) -> None:
    found = band_precision(labels_of((10**9, 0, labelled, duplicates)))
    p = duplicates / labelled

    def contradiction(share: float) -> float:
        """How far the labels are from a share, over what chance allows."""
        return abs(p - share) - Z * np.sqrt(share * (1 - share) / labelled)

    low = brentq(contradiction, 1e-12, p - 1e-9) if p > 0 else 0.0
    high = brentq(contradiction, p + 1e-9, 1 - 1e-12) if p < 1 else 1.0
    assert (found.value[0], found.low[0], found.high[0]) == pytest.approx((p, low, high), abs=1e-5)


def test_where_every_pair_is_labelled_the_share_is_certain_and_equal_bytes_count_without_labels() -> None:
    found = band_precision(labels_of((50, 30, 20, 15), (8, 8, 0, 0), (10, 4, 0, 0), (0, 0, 0, 0)))
    assert found.value[:2].tolist() == found.low[:2].tolist() == found.high[:2].tolist() == [45 / 50, 1.0]
    assert np.isnan(found.value[2:]).all()


def test_the_interval_of_a_small_band_covers_the_truth_as_often_as_it_says() -> None:
    pairs, labelled = 60, 20
    said = np.arange(labelled + 1)
    found = band_precision(labels_of(*((pairs, 0, labelled, each) for each in said.tolist())))
    covered = []
    for truth in range(6, pairs - 5):
        inside = (found.low <= truth / pairs) & (truth / pairs <= found.high)
        covered.append(float(hypergeom.pmf(said, pairs, truth, labelled)[inside].sum()))
    assert 0.94 < np.mean(covered) < 0.97
    assert min(covered) > 0.88


BAND = st.integers(0, 50).flatmap(
    lambda rest: st.integers(0, rest).flatmap(
        lambda labelled: st.tuples(st.just(rest), st.integers(0, 20), st.just(labelled), st.integers(0, labelled))
    )
)


@given(st.lists(BAND, min_size=1, max_size=5))
def test_shares_up_to_a_band_are_weighted_by_pairs(bands: list[tuple[int, int, int, int]]) -> None:
    labels = labels_of(*((rest + certain, certain, labelled, said) for rest, certain, labelled, said in bands))
    each = band_precision(labels)
    together = cumulative_precision(labels, each)
    pairs, duplicates = 0, 0.0
    for row, (rest, certain, labelled, said) in enumerate(bands):
        pairs += rest + certain
        duplicates += certain + (rest * said / labelled if labelled else np.nan if rest else 0)
        if pairs and not np.isnan(duplicates):
            assert together.value[row] == pytest.approx(duplicates / pairs)
            assert together.low[row] <= together.value[row] + 1e-12
            assert together.high[row] >= together.value[row] - 1e-12
        else:
            assert np.isnan(together.value[row])


@given(st.lists(BAND, min_size=1, max_size=5), st.sampled_from([0.5, 0.8, 0.9, 1.0]))
def test_epsilon_is_where_the_share_of_all_that_is_removed_first_falls_below(
    bands: list[tuple[int, int, int, int]], wanted: float
) -> None:
    labels = labels_of(*((rest + certain, certain, labelled, said) for rest, certain, labelled, said in bands))
    edges, share = 0.01 * np.arange(1, len(bands) + 1), band_precision(labels).value
    found = epsilon_for_precision(edges, labels, share, wanted=wanted)
    pairs = duplicates = 0.0
    ends, steps = "bands", 1000
    last = 0.0
    for high, weight, p in zip(edges, labels.pairs, share, strict=True):
        if weight and np.isnan(p):
            ends = "labels"
            break
        parts = np.arange(1, steps + 1) / steps
        with np.errstate(invalid="ignore"):
            precise = (duplicates + parts * weight * (p if weight else 0)) >= wanted * (pairs + parts * weight) - 1e-9
        if not precise.all():
            last, ends = high - 0.01 * (1 - (precise.argmin()) / steps), "precision"
            break
        pairs, duplicates, last = pairs + weight, duplicates + (weight * p if weight else 0), high
    assert found.ends == ends
    assert found.epsilon == pytest.approx(last, abs=0.01 / steps + 1e-9)
