"""Whether training on a kept set can be expected to beat training on as many random items: by stated rules, in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from semdedup_assets.algorithm.coverage import Coverage
from semdedup_assets.analyses.screened_texts import NOVEL, RANDOM, Bits

CLUSTERS, GROUPS = "clusters", "groups"
"""What the encoder itself says the values of items are."""

Verdict = Literal["room for a gain", "no gain to expect", "cannot tell"]

ROOM: Verdict = "room for a gain"
NO_GAIN: Verdict = "no gain to expect"
UNKNOWN: Verdict = "cannot tell"

FEW_REMOVED = 0.05
"""Where less is removed, random misses too little for a model to notice."""

WEAK = 0.5
"""Where fewer removed items show the value of the item that stands for them, what is removed is mostly no duplicate."""

RARE = 0.05
"""Of two items at random, at most so many share the value of a column by which an encoder can be judged."""

DEVIATIONS = 2.0
"""Of a random choice, within which a difference says nothing."""

_MOST_CUT = 0.5


@dataclass(frozen=True, slots=True)
class Covered:
    """What a kept set covers of one subject's values.

    Attributes:
        subject: `clusters`, `groups` or a column's name.
        counts: of values.
        pairs: removed items that have a value, with a kept item that has one; 0 where the encoder made the values.
        same: of these, the share with equal values; NaN without any.
        chance: the share of all pairs of items with equal values.
        by_encoder: whether the encoder itself made the values, so that to cover them proves nothing.
    """

    subject: str
    counts: Coverage
    pairs: int = 0
    same: float = math.nan
    chance: float = math.nan
    by_encoder: bool = False

    @property
    def can_tell(self) -> bool:
        """Whether random misses more than it may by chance, and more than one value: others are covered by any choice."""
        found = self.counts
        return found.values - found.random.values > max(1.0, DEVIATIONS * found.random.values_sd)

    @property
    def covers_more(self) -> bool:
        """Whether kept items cover more values than random ones, beyond two standard deviations."""
        found = self.counts
        return found.covered - found.random.values > DEVIATIONS * found.random.values_sd

    @property
    def is_weak(self) -> bool:
        """Whether most removed items have another value than the kept item that stands for them."""
        return not self.same >= WEAK


@dataclass(frozen=True, slots=True)
class Outlook:
    """What can be expected of training.

    Attributes:
        verdict: in a few words.
        reasons: sentences, the one that decides first.
        remedy: what to do where no gain is to be expected; else empty.
    """

    verdict: Verdict
    reasons: list[str]
    remedy: str = ""


def outlook(covered: Sequence[Covered], bits: Sequence[Bits], *, cut: float) -> Outlook:
    """Judge a kept set; the first rule that applies decides.

    1. Less than 5 % is removed: no gain.
    2. Texts: the language model needs clearly fewer bits (beyond two standard deviations) for novel texts than after random
       choices: room; otherwise no gain. Where novel texts are too few, fewer bits for random ones mean room too; more bits
       mean nothing, for such texts repeat what was removed.
    3. Columns that can tell, and whose value most removed items share with their kept one: one is covered more than by
       random items, beyond two standard deviations: room; otherwise no gain.
    4. Columns that can tell, but that most removed items do not share with their kept one, and no other column that rarely
       agrees by chance is shared either: no gain, the encoder is too weak.
    5. Otherwise it cannot be told.

    Args:
        covered: by subject; the first is of all items.
        bits: by validation set; none for images.
        cut: share of the sampled removed texts whose kept one is not in the sample.
    """
    columns = [each for each in covered if not each.by_encoder]
    facts = [_values(each) for each in columns if each.can_tell] + [_bits(each) for each in bits]
    if cut > _MOST_CUT:
        facts.append(
            f"{cut:.0%} of the sampled removed texts lack their kept one: all texts repeat more than this sample"
        )
    counts = covered[0].counts
    removed = 1 - counts.kept / counts.items if counts.items else 0.0
    if removed < FEW_REMOVED:
        reason = f"duplicates are few: {1 - removed:.1%} of the items are kept, and a gain needs redundancy"
        return Outlook(NO_GAIN, [reason, *facts], "train on everything; a larger epsilon may remove distinct items")
    found = _of_texts({each.validation: each for each in bits}) if bits else _of_columns(columns)
    if found is None:
        return Outlook(UNKNOWN, [_unknown(covered), *facts])
    decisive = found.reasons[0]
    return replace(found, reasons=[decisive, *(fact for fact in facts if fact not in decisive)])


def _of_texts(bits: dict[str, Bits]) -> Outlook:
    decisive = bits.get(NOVEL) or bits[RANDOM]
    if decisive.clear and decisive.change < 0:
        return Outlook(ROOM, [_bits(decisive)])
    if NOVEL not in bits:
        return Outlook(UNKNOWN, ["too few held-out texts are without a duplicate to tell by"])
    reason = f"kept texts teach no more than random ones: {_bits(decisive)}"
    return Outlook(NO_GAIN, [reason], "a smaller epsilon, if distinct texts were removed; or train on everything")


def _of_columns(columns: Sequence[Covered]) -> Outlook | None:
    telling = [each for each in columns if each.can_tell]
    sound = [each for each in telling if not each.is_weak]
    if sound:
        better = max(sound, key=lambda each: each.counts.covered / each.counts.random.values)
        if better.covers_more:
            return Outlook(ROOM, [_values(better)])
        reason = f"kept items cover no more values than random ones: {_values(better)}"
        return Outlook(NO_GAIN, [reason], "another epsilon; or train on everything")
    if not telling:
        return None
    shared = [each for each in columns if not each.is_weak and each.chance <= RARE]
    if shared:
        finest = min(shared, key=lambda each: each.chance)
        reason = f"random items miss too few values of {finest.subject!r}, which {finest.same:.0%} of the removed items share with their kept one"
        return Outlook(UNKNOWN, [reason])
    nearest = max(telling, key=lambda each: each.same)
    reason = (
        f"the encoder is too weak at this epsilon: most removed items ({1 - nearest.same:.0%}) do not show their kept item's "
        f"{nearest.subject!r}"
    )
    return Outlook(NO_GAIN, [reason], "a smaller epsilon, or an encoder that tells these values apart")


def _unknown(covered: Sequence[Covered]) -> str:
    groups = next(each.counts for each in covered if each.by_encoder and each.subject == GROUPS)
    return (
        "nothing independent of the encoder can tell; by its own account random items keep something of "
        f"{groups.random.values:,.0f} ± {groups.random.values_sd:,.1f} of {groups.values:,} groups"
    )


def _values(found: Covered) -> str:
    counts = found.counts
    shown = "" if found.pairs == 0 else f"; {found.same:.0%} of the removed items show their kept item's"
    return (
        f"covers {counts.covered:,} of {counts.values:,} values of {found.subject!r} where random covers "
        f"{counts.random.values:,.0f} ± {counts.random.values_sd:,.1f}{shown}"
    )


def _bits(found: Bits) -> str:
    spread = "" if found.clear else ", within the spread"
    return (
        f"bits per byte of {_SETS[found.validation]}: {found.kept:.3f} where random has {found.random:.3f} ± "
        f"{found.random_sd:.3f} ({found.change:+.1%}{spread})"
    )


_SETS = {
    RANDOM: "a random tenth, some with duplicates among the training texts",
    NOVEL: "held-out texts without a duplicate",
}
