"""Models of the baseline `exact`."""

from semdedup_assets.baselines import exact_manifests
from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.stage import Worker
from semdedup_assets.training.trained_models import training_stage, training_worker
from semdedup_assets.training.training_runs import TrainingStage

TRAINED_MODELS = TrainingStage("exact_trained_models", exact_manifests.MANIFESTS, "exact")


def _worker(context: StageContext) -> Worker:
    return training_worker(context, TRAINED_MODELS)


STAGE = training_stage(TRAINED_MODELS, _worker, exact_manifests.STAGE)
