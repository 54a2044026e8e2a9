"""Keep items at random, as many or of as much size as a kept set has."""

from semdedup_assets.baselines.random_choices import RANDOM, random_masks_stage, random_masks_worker
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import Worker


def _worker(context: StageContext) -> Worker:
    return random_masks_worker(context, RANDOM)


STAGE = random_masks_stage(
    RANDOM,
    _worker,
    description="A baseline: items are kept at random, as many as the kept set has (SemDeDup, section 5), or as many "
    "words or bytes (`analyses.random_pruning`). What a method must be better than.",
)
