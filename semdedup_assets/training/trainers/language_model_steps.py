"""Steps of a causal language model: which tokens each sees, at which learning rate, and what it does to the weights."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from semdedup_assets.encoders.precision import autocast, resolve_dtype
from semdedup_assets.training.trainers.packed_tokens import PackedTokens
from semdedup_assets.training_settings import CausalLmTraining

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_BETAS, _MAX_NORM = (0.9, 0.95), 1.0
# Bytes of the float32 logits that are held at once.
_LOGITS = {"cpu": 64 << 20}
_LOGITS_OF_A_GPU = 2 << 30


@dataclass(frozen=True)
class TrainingPlan:
    """What each step sees, and how large it is.

    Attributes:
        tokens: the stream that is read.
        settings: context, batch and learning rate.
        steps: of the whole training.
    """

    tokens: PackedTokens
    settings: CausalLmTraining
    steps: int

    @classmethod
    def of(cls, tokens: PackedTokens, settings: CausalLmTraining, steps: int | None) -> "TrainingPlan":
        """The plan of as many steps as are given, or else as the passes take.

        Raises:
            ValueError: the texts have fewer tokens than one sequence.
        """
        available, context = len(tokens.ids), settings.context_tokens
        if available < context:
            message = (
                f"training.causal_lm.context_tokens: the {tokens.texts:,} kept texts have {available:,} tokens, fewer than "
                f"a sequence of {context:,}; lower it"
            )
            raise ValueError(message)
        passes = settings.epochs * available / (settings.batch_size * context)
        return cls(tokens, settings, max(round(passes), 1) if steps is None else steps)

    @property
    def step_tokens(self) -> int:
        """Tokens that a step predicts."""
        return self.settings.batch_size * self.settings.context_tokens

    def totals(self) -> dict[str, int]:
        """Steps, texts that are read (each as often as it is) and predicted tokens of the whole training."""
        tokens = self.steps * self.step_tokens
        return {"steps": self.steps, "items": self.tokens.texts_within(tokens), "tokens": tokens}

    def batch(self, step: int) -> np.ndarray:
        """(batch, context + 1) int64: the sequences of a step, each with the token that follows it.

        Each sequence begins with the last token of the one before, so that every token of the stream is predicted once.
        """
        size, context = self.settings.batch_size, self.settings.context_tokens
        read = self.tokens.read(step * self.step_tokens, self.step_tokens + 1)
        rows: np.ndarray = read[np.arange(size)[:, None] * context + np.arange(context + 1)]
        return rows

    def learning_rate(self, step: int) -> float:
        """Of a step: it rises linearly to the greatest, then falls linearly, and would be 0 after the last step."""
        greatest, rising = self.settings.learning_rate, math.ceil(self.settings.warmup * self.steps)
        if step < rising:
            return greatest * (step + 1) / rising
        return greatest * (self.steps - step) / (self.steps - rising)


@dataclass
class Learner:
    """A model that is trained, on its device.

    Attributes:
        model: with float32 weights.
        optimiser: AdamW; weights decay, biases and the scales of norms do not.
        device: of both.
        dtype: of activations.
        sequences_at_once: whose gradients are added up to those of a step.
    """

    model: "PreTrainedModel"
    optimiser: "torch.optim.Optimizer"
    device: "torch.device"
    dtype: "torch.dtype"
    sequences_at_once: int

    @classmethod
    def of(cls, model: "PreTrainedModel", settings: CausalLmTraining, device: "torch.device") -> "Learner":
        """Move a model to a device, to be trained there as the settings say."""
        import torch

        module: torch.nn.Module = model
        module.to(device).train()
        weights = [each for each in model.parameters() if each.ndim > 1]
        others = [each for each in model.parameters() if each.ndim <= 1]
        groups = [
            {"params": weights, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=_BETAS, fused=True)
        # Small processors have no bfloat16, and emulate it ten times slower.
        in_float32 = settings.precision == "auto" and device.type == "cpu"
        sequence = 4 * model.config.vocab_size * settings.context_tokens  # bytes of its logits
        return cls(
            model,
            optimiser,
            device,
            torch.float32 if in_float32 else resolve_dtype(settings.precision, device),
            max(_LOGITS.get(device.type, _LOGITS_OF_A_GPU) // sequence, 1),
        )

    def step(self, batch: np.ndarray, *, learning_rate: float) -> float:
        """Train on some sequences; sequences that do not fit into the device's memory together are taken in parts.

        Args:
            batch: (b, c + 1) int64 token ids.
            learning_rate: of this step.

        Returns:
            Mean cross-entropy of the predicted tokens in nats, before the step; not finite where the training diverged, and
            then the weights are as they were.
        """
        import torch

        tokens = torch.from_numpy(batch).to(self.device)
        loss = self._gradients(tokens)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), _MAX_NORM)
        found = float(loss) if bool(torch.isfinite(norm)) else math.nan
        if math.isfinite(found):
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return found

    def _gradients(self, tokens: "torch.Tensor") -> "torch.Tensor":
        """Add up the gradients of some sequences, in smaller parts where the memory runs out; returns the mean loss."""
        import torch

        while True:
            try:
                return torch.stack(
                    [self._part(part, tokens) for part in torch.split(tokens, self.sequences_at_once)]
                ).sum()
            except torch.OutOfMemoryError as error:
                if self.sequences_at_once == 1:
                    message = (
                        f"one sequence of {tokens.shape[1] - 1:,} tokens does not fit into the memory of {self.device}; "
                        "lower `training.causal_lm.context_tokens`, or name a smaller `model`"
                    )
                    raise ValueError(message) from error
            self.sequences_at_once = (min(self.sequences_at_once, len(tokens)) + 1) // 2
            self.optimiser.zero_grad(set_to_none=True)

    def _part(self, part: "torch.Tensor", whole: "torch.Tensor") -> "torch.Tensor":
        """Add the gradients of some of a step's sequences; returns their share of the mean loss."""
        import torch

        with autocast(self.dtype, self.device):
            logits = self.model(input_ids=part[:, :-1], use_cache=False).logits  # (p, c, vocabulary)
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), part[:, 1:].flatten(), reduction="sum"
            ) / (whole.shape[0] * (whole.shape[1] - 1))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Weights and moments, to be written."""
        return {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
