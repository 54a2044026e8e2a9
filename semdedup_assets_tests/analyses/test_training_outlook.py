"""The rules by which a screen says whether training can gain."""

import numpy as np
import pytest

from semdedup_assets.algorithm.coverage import coverage
from semdedup_assets.analyses.screened_texts import Bits
from semdedup_assets.analyses.training_outlook import Covered, outlook

CONCEPTS, COPIES = 100, 20
VALUES = np.repeat(np.arange(CONCEPTS), COPIES)
ONE_OF_TEN = np.arange(len(VALUES)) % 10 == 0
FIRST_ONES = np.arange(len(VALUES)) < len(VALUES) // 10


def by_encoder(kept: np.ndarray) -> list[Covered]:
    """Clusters of which any choice covers all, and groups of a kept item each."""
    clusters, groups = np.arange(len(kept)) % 2, np.cumsum(kept)
    return [
        Covered("clusters", coverage(clusters, kept), by_encoder=True),
        Covered("groups", coverage(groups, kept), by_encoder=True),
    ]


def column(kept: np.ndarray, *, same: float = 0.9, chance: float = 0.01, values: np.ndarray = VALUES) -> Covered:
    return Covered("concept", coverage(values, kept), pairs=100, same=same, chance=chance)


def test_a_column_that_is_covered_better_leaves_room() -> None:
    found = outlook([*by_encoder(ONE_OF_TEN), column(ONE_OF_TEN)], [], cut=0)
    assert found.verdict == "room for a gain"
    (reason,) = found.reasons
    # 100 times 1 - 0.9**20, nearly.
    assert reason.startswith("covers 100 of 100 values of 'concept' where random covers 88 ± ")
    assert reason.endswith("; 90% of the removed items show their kept item's")


def test_a_column_that_random_covers_better_promises_nothing() -> None:
    found = outlook([*by_encoder(FIRST_ONES), column(FIRST_ONES)], [], cut=0)
    assert found.verdict == "no gain to expect"
    assert found.reasons[0].startswith("kept items cover no more values than random ones: covers 10 of 100 values")
    assert found.remedy


def test_removed_items_of_other_values_show_a_weak_encoder() -> None:
    found = outlook([*by_encoder(ONE_OF_TEN), column(ONE_OF_TEN, same=0.46)], [], cut=0)
    assert found.verdict == "no gain to expect"
    assert "most removed items (54%) do not show their kept item's 'concept'" in found.reasons[0]


@pytest.mark.parametrize(("chance", "verdict"), [(0.01, "cannot tell"), (0.5, "no gain to expect")])
def test_another_column_that_rarely_agrees_by_chance_clears_the_encoder(chance: float, verdict: str) -> None:
    coarse = column(ONE_OF_TEN, same=0.95, chance=chance, values=VALUES % 2)
    found = outlook([*by_encoder(ONE_OF_TEN), column(ONE_OF_TEN, same=0.2), coarse], [], cut=0)
    assert found.verdict == verdict


def test_a_column_of_which_random_misses_nothing_cannot_tell() -> None:
    found = outlook([*by_encoder(ONE_OF_TEN), column(ONE_OF_TEN, values=VALUES % 2)], [], cut=0)
    assert found.verdict == "cannot tell"
    assert found.reasons[0].endswith("of 200 groups")


def test_few_removed_items_promise_nothing() -> None:
    nearly_all = np.arange(len(VALUES)) % 25 != 0
    found = outlook([*by_encoder(nearly_all), column(nearly_all)], [], cut=0)
    assert found.verdict == "no gain to expect"
    assert found.reasons[0] == "duplicates are few: 96.0% of the items are kept, and a gain needs redundancy"


@pytest.mark.parametrize(
    ("novel", "random", "verdict"),
    [
        (Bits("novel", 2.0, 1.9, 2.1, 0.02), Bits("random", 1.0, 1.3, 1.2, 0.02), "room for a gain"),
        (Bits("novel", 2.0, 2.09, 2.1, 0.02), Bits("random", 1.0, 1.1, 1.2, 0.02), "no gain to expect"),
        (Bits("novel", 2.0, 2.3, 2.1, 0.02), Bits("random", 1.0, 1.1, 1.2, 0.02), "no gain to expect"),
        (None, Bits("random", 1.0, 1.1, 1.2, 0.02), "room for a gain"),
        (None, Bits("random", 1.0, 1.3, 1.2, 0.02), "cannot tell"),
    ],
)
def test_novel_texts_decide_and_random_ones_only_for_the_better(novel: Bits | None, random: Bits, verdict: str) -> None:
    bits = [each for each in (random, novel) if each]
    found = outlook(by_encoder(ONE_OF_TEN), bits, cut=0)
    assert found.verdict == verdict
    assert all(any(f"{each.change:+.1%}" in reason for reason in found.reasons) for each in bits)


def test_a_sample_that_cuts_groups_is_said_to() -> None:
    found = outlook(by_encoder(ONE_OF_TEN), [Bits("novel", 2.0, 1.9, 2.1, 0.02)], cut=0.8)
    assert any(reason.startswith("80% of the sampled removed texts lack their kept one") for reason in found.reasons)
