"""Keep items at random, of as many words or bytes as a kept set has."""

from dataclasses import replace

from semdedup_assets.baselines.random_choices import (
    SIZED_RANDOM,
    random_masks_stage,
    random_masks_worker,
    sized_random_applies,
)
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import Worker


def _worker(context: StageContext) -> Worker:
    return random_masks_worker(context, SIZED_RANDOM)


STAGE = replace(
    random_masks_stage(
        SIZED_RANDOM,
        _worker,
        description="A baseline: items are kept at random, of as many words of texts, or bytes of images, as the kept set "
        "has. Where kept items are shorter or longer than others, equal counts are not equal sizes.",
    ),
    applies=sized_random_applies,
)
