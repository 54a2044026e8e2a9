"""Models of the baseline `random`."""

from semdedup_assets.baselines import random_manifests
from semdedup_assets.baselines.random_choices import RANDOM
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import Worker
from semdedup_assets.training.trained_models import training_stage, training_worker
from semdedup_assets.training.training_runs import TrainingStage

TRAINED_MODELS = TrainingStage("random_trained_models", RANDOM.manifests, "random")


def _worker(context: StageContext) -> Worker:
    return training_worker(context, TRAINED_MODELS)


STAGE = training_stage(TRAINED_MODELS, _worker, random_manifests.STAGE)
