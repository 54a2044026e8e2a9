"""A causal language model with random weights, and its tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from semdedup_assets.encoders.checkpoints import content_hash, local_model
from semdedup_assets.encoders.own_code import why_not_loaded
from semdedup_assets.encoders.text import TRANSFORMERS_ERRORS, quiet_transformers
from semdedup_assets.training_settings import CausalLmTraining

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MODEL, _CONTEXT = "training.causal_lm.model", "training.causal_lm.context_tokens"
_REMEDY = "name a folder with a configuration and a tokenizer, or a hub id that can be reached"
_INSTEAD = "name a model whose architecture transformers has, or train by `training.command`"


def model_content(name: str) -> str | None:
    """What identifies a folder's configuration and tokenizer; None for a hub's model.

    Raises:
        ValueError: the name can only be a folder, and is not there; names the setting.
    """
    folder = _folder(name)
    return None if folder is None else content_hash(folder)


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model.

    Args:
        name: hub id or folder, as in the settings.

    Raises:
        ValueError: it cannot be loaded, or has no end-of-text token; names the setting and the remedy.
    """
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = _loaded(AutoTokenizer, name)
    if tokenizer.eos_token_id is None:
        message = f"{_MODEL}: the tokenizer of {name} has no end-of-text token (`eos_token`), which separates texts"
        raise ValueError(message)
    # Each text follows an end-of-text token: whoever scores or continues texts with this model begins as they did here.
    tokenizer.bos_token = tokenizer.eos_token
    return tokenizer


def new_language_model(settings: CausalLmTraining, *, tokenizer_size: int, seed: int) -> "PreTrainedModel":
    """A model of the settings' configuration, with random weights of a seed, in float32 on the CPU.

    It has as many positions as its sequences have tokens: of further ones none would be trained.

    Args:
        settings: model and context.
        tokenizer_size: token ids that its tokenizer has.
        seed: of the weights.

    Raises:
        ValueError: it cannot be made, is not causal, or has too few positions or token ids; names the setting.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config, kind = _loaded(AutoConfig, settings.model), cast("Any", AutoModelForCausalLM)
    _fit(config, settings, tokenizer_size)
    torch.manual_seed(seed)
    try:
        model: PreTrainedModel = kind.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except ValueError as error:
        message = (
            f"{_MODEL}: {settings.model} is no causal language model ({_first_line(error)}); name one, such as an OPT"
        )
        raise ValueError(message) from error
    _require_causal(model, settings.model)
    return model


def _fit(config: Any, settings: CausalLmTraining, tokenizer_size: int) -> None:
    """Give a configuration the positions of the context; raises where it has too few of them, or of token ids."""
    if tokenizer_size > config.vocab_size:
        message = (
            f"{_MODEL}: the tokenizer of {settings.model} has {tokenizer_size:,} tokens, its configuration `vocab_size` "
            f"{config.vocab_size:,}; make that as large"
        )
        raise ValueError(message)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return
    if settings.context_tokens > positions:
        message = (
            f"{_CONTEXT}: {settings.context_tokens:,} are more than {settings.model} has positions ({positions:,})"
        )
        raise ValueError(message)
    config.max_position_embeddings = settings.context_tokens


def _require_causal(model: "PreTrainedModel", name: str) -> None:
    """Raise where a later token changes what is predicted before it: such a model learns to copy what it is to predict."""
    import torch

    model.train(mode=False)
    with torch.no_grad():
        logits = model(torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]]), use_cache=False).logits
    if not torch.allclose(logits[0, :3], logits[1, :3], atol=1e-4):
        message = (
            f"{_MODEL}: {name} sees the tokens that it is to predict; name a causal language model, such as an OPT"
        )
        raise ValueError(message)


def _folder(name: str) -> Path | None:
    try:
        return local_model(name)
    except ValueError as error:
        message = f"{_MODEL}: {error}"
        raise ValueError(message) from error


def _loaded(kind: Any, name: str) -> Any:
    folder = _folder(name)
    try:
        with quiet_transformers():
            return kind.from_pretrained(str(folder or name), trust_remote_code=False)
    except TRANSFORMERS_ERRORS as error:
        message = f"{_MODEL}: {name} {why_not_loaded(error, _REMEDY, instead=_INSTEAD)}"
        raise ValueError(message) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
