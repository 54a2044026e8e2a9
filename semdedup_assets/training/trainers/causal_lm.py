"""Train a causal language model on the kept texts (SemDeDup, section 5).

Run as `python -m semdedup_assets.training.trainers.causal_lm`, under Dagster Pipes. The loop is our own: a step depends on
nothing but the seed, its number and the weights before it, so that a training that was killed ends with the weights of one
that was not.
"""

import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from dagster_pipes import open_dagster_pipes

from semdedup_assets.compute import Compute
from semdedup_assets.encoders.text import quiet_transformers
from semdedup_assets.training.trainers.language_model_steps import Learner, TrainingPlan
from semdedup_assets.training.trainers.manifest_texts import kept_texts
from semdedup_assets.training.trainers.new_language_model import load_tokenizer, model_content, new_language_model
from semdedup_assets.training.trainers.packed_tokens import packed_tokens
from semdedup_assets.training.trainers.resumable_state import ResumableState
from semdedup_assets.training.trainers.spec import MODEL, STATE, DivergedError, Report, TrainerSpec
from semdedup_assets.training_settings import CausalLmTraining

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_REPORT_SECONDS = 0.5


def main() -> None:
    """Train what the process was started for."""
    with open_dagster_pipes() as pipes:
        train(TrainerSpec.model_validate(pipes.extras), pipes.report_custom_message)


def train(spec: TrainerSpec, report: Report) -> None:
    """Train one model, from where an earlier attempt ended, and leave it in `<out>/model`.

    Args:
        spec: what is trained, on what, and where it is written.
        report: takes the totals once they are known, then step, loss and learning rate, twice a second at most and at the
            end.

    Raises:
        ValueError: model, tokenizer, device, manifest or context do not fit; names the setting and the remedy.
        DivergedError: the loss is no finite number.
    """
    settings = CausalLmTraining.model_validate(spec.settings)
    device = Compute(device=spec.device).torch_device
    state = ResumableState.of(Path(spec.out, STATE), _identity(spec, settings))
    tokenizer = load_tokenizer(settings.model)
    model = new_language_model(settings, tokenizer_size=len(tokenizer), seed=spec.seed)
    texts = kept_texts(spec.manifest, kept=spec.kept)
    tokens = packed_tokens(texts, tokenizer, state.folder, seed=spec.seed)
    plan = TrainingPlan.of(tokens, settings, spec.steps)
    report(plan.totals())
    _run(plan, Learner.of(model, settings, device), state, report)
    _save(model, tokenizer, Path(spec.out), context=settings.context_tokens)


def _identity(spec: TrainerSpec, settings: CausalLmTraining) -> dict[str, Any]:
    """What determines a training, as JSON values."""
    # Texts come from the manifest, whatever the source is now.
    determining = spec.model_dump(mode="json", include={"manifest", "kept", "steps", "seed", "settings"})
    return {**determining, "model": model_content(settings.model)}


def _run(plan: TrainingPlan, learner: Learner, state: ResumableState, report: Report) -> None:
    """Take the steps that are left, and keep the state of the last."""
    found = state.read(learner.device)
    first, loss = 0, math.nan
    if found is not None:
        first, loss = found["step"], found["loss"]
        learner.resume(found["learner"])
    reported = time.monotonic()
    for step in range(first, plan.steps):
        loss = _step(plan, learner, step)
        now, is_last = time.monotonic(), step + 1 == plan.steps
        if now >= reported + _REPORT_SECONDS and not is_last:
            report({"step": step + 1, "loss": loss, "learning_rate": plan.learning_rate(step)})
            reported = now
        if now >= state.due or is_last:
            state.write({"step": step + 1, "loss": loss, "learner": learner.state()})
    report({"step": plan.steps, "loss": loss, "learning_rate": plan.learning_rate(plan.steps - 1)})


def _step(plan: TrainingPlan, learner: Learner, step: int) -> float:
    """Take one step; its dropout is drawn by seed and number, so that a resumed training draws the same."""
    import torch

    torch.manual_seed(int(np.random.SeedSequence([plan.tokens.seed, step]).generate_state(1)[0]))
    rate = plan.learning_rate(step)
    loss = learner.step(plan.batch(step), learning_rate=rate)
    if not math.isfinite(loss):
        message = (
            f"the training diverged: loss or gradient of step {step + 1:,} of {plan.steps:,} is no finite number, with a "
            f"learning rate of {rate:.2g}; lower `training.causal_lm.learning_rate`"
        )
        raise DivergedError(message)
    return loss


def _save(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", out: Path, *, context: int) -> None:
    """Write the trained model under another name, then give it its own."""
    # Whoever scores long texts cuts them to what was trained.
    tokenizer.model_max_length = context
    temporary = out / f"{MODEL}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    with quiet_transformers():
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    shutil.rmtree(out / MODEL, ignore_errors=True)
    temporary.rename(out / MODEL)


if __name__ == "__main__":
    main()
