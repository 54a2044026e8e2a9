"""Overlaps of two choices, against Python sets."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from semdedup_assets.algorithm.choice_overlap import Choice, choice_overlap, found_alone

GROUPS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=40)


def choice(labels: list[int]) -> Choice:
    """The first item of each label is kept, for whose sake the others are removed."""
    group = np.array([labels.index(label) for label in labels], np.int64)
    return Choice(group == np.arange(len(labels)), group)


@given(GROUPS)
def test_counts_are_those_of_sets(pairs: list[tuple[int, int]]) -> None:
    mine, theirs = [one for one, _ in pairs], [other for _, other in pairs]
    found = choice_overlap(choice(mine), choice(theirs))
    everything = set(range(len(pairs)))
    kept, others = ({labels.index(label) for label in labels} for labels in (mine, theirs))
    assert (found.items, found.kept, found.kept_by_other) == (len(everything), len(kept), len(others))
    assert found.kept_by_both == len(kept & others)
    assert found.removed_by_both == len(everything - kept - others)
    assert (found.removed_only, found.removed_only_by_other) == (len(others - kept), len(kept - others))
    assert found.pairs_of_other == sum(theirs[at] == theirs[mine.index(mine[at])] for at in everything - kept)
    assert found.other_pairs == sum(mine[at] == mine[theirs.index(theirs[at])] for at in everything - others)
    # All of them add up, and the other way round is the same.
    assert found.kept_by_both + found.removed_by_both + found.removed_only + found.removed_only_by_other == found.items
    reverse = choice_overlap(choice(theirs), choice(mine))
    assert (reverse.removed_jaccard == found.removed_jaccard) or np.isnan(found.removed_jaccard)
    assert (reverse.pairs_of_other, reverse.other_pairs) == (found.other_pairs, found.pairs_of_other)
    alone = found_alone(choice(mine), [choice(theirs)])
    assert set(alone.tolist()) == {
        at for at in everything - kept if theirs[at] != theirs[mine.index(mine[at])]
    }  # fmt: skip


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_a_choice_is_all_that_it_has_in_common_with_itself(labels: list[int]) -> None:
    mine = choice(labels)
    found = choice_overlap(mine, mine)
    assert found.kept_jaccard == 1
    assert found.removed_jaccard == 1 or found.kept == found.items
    assert found.pairs_of_other == found.other_pairs == found.items - found.kept
    assert len(found_alone(mine, [mine])) == 0


@given(GROUPS)
def test_what_is_removed_for_no_other_item_has_no_pair(pairs: list[tuple[int, int]]) -> None:
    grouped = choice([one for one, _ in pairs])
    at_random = Choice(np.array([other > 2 for _, other in pairs], bool), np.arange(len(pairs)))
    found = choice_overlap(grouped, at_random)
    assert found.pairs_of_other == found.other_pairs == 0
    assert len(found_alone(at_random, [grouped])) == 0
