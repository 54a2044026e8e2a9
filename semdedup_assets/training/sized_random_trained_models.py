"""Models of the baseline `sized_random`."""

from semdedup_assets.baselines import sized_random_manifests
from semdedup_assets.baselines.random_choices import SIZED_RANDOM
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import Worker
from semdedup_assets.training.trained_models import training_stage, training_worker
from semdedup_assets.training.training_runs import TrainingStage

TRAINED_MODELS = TrainingStage("sized_random_trained_models", SIZED_RANDOM.manifests, "sized_random")


def _worker(context: StageContext) -> Worker:
    return training_worker(context, TRAINED_MODELS)


STAGE = training_stage(TRAINED_MODELS, _worker, sized_random_manifests.STAGE)
