"""Texts by a transformers model: last token, mean or first token of the last layer."""

import pickle
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from semdedup_assets.compute import Compute
from semdedup_assets.encoders.batching import Window, embedded_window, prefetch, split_window
from semdedup_assets.encoders.checkpoints import content_hash, local_model, local_path, short_name
from semdedup_assets.encoders.own_code import EMBED_YOURSELF, refusing_own_code, why_not_loaded
from semdedup_assets.encoders.precision import PRECISION_DESCRIPTION, Precision, autocast, resolve_dtype
from semdedup_assets.encoders.sentence_modules import (
    HubOutOfReachError,
    Pooling,
    SentenceModules,
    model_files,
    read_in_folder,
    read_on_hub,
    read_sentence_modules,
)
from semdedup_assets.encoders.text_windows import (
    DEFAULT_MAX_TOKENS,
    MAX_TOKENS_DESCRIPTION,
    PROMPT_DESCRIPTION,
    batches_by_length,
    cut_for,
    text_windows,
)
from semdedup_assets.records import Content, Embedded, Invalid, Record

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DEFAULT_POOLING: Pooling = "last_token"
_OTHER_KIND = "use `kind: sentence_transformers`"
_TOKENIZED_TOGETHER = 512

TRANSFORMERS_ERRORS = (OSError, ValueError, RuntimeError, LookupError, ImportError, TypeError, pickle.UnpicklingError)
"""What transformers raises on a hub out of reach, a damaged file, or one that is no model of its own."""


class Transformers(BaseModel, frozen=True, extra="forbid"):
    """Texts by a transformers model (paper: the last layer's last token of OPT-125m)."""

    kind: Literal["transformers"] = "transformers"
    model: str = Field(
        "facebook/opt-125m",
        min_length=1,
        description="Hub id, or a local folder (`path` or `package:<import name>/<path>`) with config.json, weights "
        "and tokenizer.",
    )
    pooling: Pooling | None = Field(
        None,
        description="What stands for a text: `last_token` for decoders such as OPT, `mean` over all or `cls` (the "
        "first) for encoders, as it was trained. Empty: what the model's own modules.json says (a folder or hub id of "
        "sentence-transformers), `last_token` where there is none.",
    )
    max_tokens: int | None = Field(None, ge=1, description=MAX_TOKENS_DESCRIPTION)
    prompt: str | None = Field(None, description=PROMPT_DESCRIPTION)
    precision: Precision = Field("auto", description=PRECISION_DESCRIPTION)

    @property
    def accepts(self) -> Content:
        """What its records carry."""
        return "text"

    @property
    def name(self) -> str:
        """Short, path-safe name of model and pooling; of a hub's model without one, where `pooling` is empty.

        So no name depends on whether the hub can be reached.
        """
        pooling = self._local_pooling()
        return f"{short_name(self.model)}-{pooling}" if pooling else short_name(self.model)

    def _local_pooling(self) -> Pooling | None:
        """The pooling, as far as it is known without the hub."""
        if self.pooling:
            return self.pooling
        try:
            folder = local_path(self.model)
            modules = read_sentence_modules(read_in_folder(folder)) if folder else None
        except ValueError:
            return None  # `problems` reports it
        if folder is None:
            return None
        return modules.pooling if modules else _DEFAULT_POOLING

    def identity(self) -> dict[str, Any]:
        """What can change the vectors; a local folder by its content, wherever it is stored.

        `precision: auto` is one identity, though bfloat16 and float32 differ by about 1e-4 in cosine. An empty pooling
        of a hub's model is its own: it comes with the model's name.

        Raises:
            ValueError: a local folder is not there.
        """
        folder = local_path(self.model)
        model = {"content": content_hash(folder)} if folder else self.model
        return self.model_dump() | {"model": model, "pooling": self._local_pooling()}

    def problems(self) -> list[str]:
        """What is wrong with the model, seen without loading it or asking a hub; begins with the setting's name."""
        try:
            folder = local_model(self.model)
        except ValueError as error:
            return [f"model: {error}"]
        if folder is None:
            return []
        try:
            modules = read_sentence_modules(read_in_folder(folder))
            self._check_modules(modules)
        except ValueError as error:
            return [str(error) if str(error).startswith("model: ") else f"model: {error}"]
        config = read_in_folder(folder / (modules.subfolder if modules else ""))("config.json")
        if config is None:
            return [f"model: {folder.absolute()} holds no config.json; name a folder with a whole model"]
        if not isinstance(config, dict) or "model_type" not in config:
            return [
                f"model: {folder.absolute()} has a config.json without `model_type`; name a folder with a whole model"
            ]
        static = config.get("model_type") == "model2vec"
        return [f"model: {folder.absolute()} is a static model of model2vec; {_OTHER_KIND}"] if static else []

    def _check_modules(self, modules: SentenceModules | None) -> None:
        """Refuse what would give other vectors than the model was trained to give."""
        if modules is None:
            return
        unsupported = list(modules.unsupported)
        if self.pooling is None and modules.pooling is None:
            unsupported.append("pooling")
        prompt = modules.prompt if self.prompt is None else self.prompt
        if prompt and not modules.pools_prompt:
            unsupported.append("a prompt that does not count in the mean")
        if unsupported:
            message = (
                f"model: `kind: transformers` has not all that {self.model} consists of ({', '.join(unsupported)}); "
            )
            raise ValueError(message + _OTHER_KIND)

    def configuration_problems(self) -> list[str]:
        """What the model's own files, in its folder or the hub's cache, have against the settings.

        Returns:
            Sentences that begin with the setting's name.

        Raises:
            ValueError: one of the files is damaged.
        """
        read, found = model_files(self.model)
        modules = read_sentence_modules(read)
        config = read(f"{modules.subfolder}/config.json" if modules and modules.subfolder else "config.json") or {}
        if self.pooling is None and modules is None and _reads_both_ways(config):
            found.append(
                f"pooling: {self.model} is an encoder ({config.get('model_type')}) that does not say how it pools, and "
                "`last_token`, the default, is for decoders; set `mean` or `cls`, as it was trained"
            )
        most = config.get("max_position_embeddings")
        if self.max_tokens is not None and isinstance(most, int) and self.max_tokens > most:
            found.append(f"max_tokens: {self.max_tokens} is more than {self.model} can take; at most {most}")
        return found

    def load(self, compute: Compute) -> "TextModel":
        """Load model and tokenizer.

        Raises:
            ValueError: model or device does not exist or cannot be reached, it has modules beyond transformer and
                pooling, or `max_tokens` is more than it can take; names the remedy.
        """
        device = compute.torch_device
        folder = local_path(self.model)
        try:
            modules = read_sentence_modules(read_in_folder(folder) if folder else read_on_hub(self.model))
            is_known = True
        except HubOutOfReachError:
            modules, is_known = None, False
        self._check_modules(modules)
        model, tokenizer = _from_pretrained(self.model, modules.subfolder if modules else "")
        if not is_known and self.pooling is None:
            message = (
                f"pooling: whether {self.model} says how it pools cannot be seen, for the hub is out of reach and its "
                "modules.json is not in the cache; set `pooling`, as the model was trained"
            )
            raise ValueError(message)
        limit = token_limit(model, tokenizer)
        if self.max_tokens is not None and limit is not None and self.max_tokens > limit:
            message = f"max_tokens: {self.max_tokens} is more than {self.model} can take; at most {limit}"
            raise ValueError(message)
        own = [known for known in (limit, modules.max_tokens if modules else None) if known]
        return TextModel(
            model=model.train(mode=False).requires_grad_(requires_grad=False).to(device),
            tokenizer=tokenizer,
            max_tokens=self.max_tokens or min([*own, DEFAULT_MAX_TOKENS]),
            pooling=self.pooling or (modules.pooling if modules else None) or _DEFAULT_POOLING,
            prompt=(modules.prompt if modules else "") if self.prompt is None else self.prompt,
            dtype=resolve_dtype(self.precision, device),
            compute=compute,
        )


def _reads_both_ways(config: dict[str, Any]) -> bool:
    """Whether a model was trained on texts with gaps, so that its last token stands for nothing."""
    architectures, kind = config.get("architectures") or [], str(config.get("model_type", ""))
    masked = any(str(name).endswith("ForMaskedLM") for name in architectures)
    return not config.get("is_decoder") and (masked or "bert" in kind or kind in ("mpnet", "electra", "ernie"))


# The hub has no list to ask offline: the paper's models, and those most used for texts.
_USUAL = (
    "facebook/opt-125m",
    "facebook/opt-350m",
    "facebook/opt-1.3b",
    "sentence-transformers/all-MiniLM-L6-v2",
    "sentence-transformers/all-mpnet-base-v2",
    "BAAI/bge-small-en-v1.5",
    "BAAI/bge-base-en-v1.5",
    "intfloat/e5-base-v2",
    "FacebookAI/roberta-base",
    "google-bert/bert-base-uncased",
)


def _from_pretrained(name: str, subfolder: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer

    source = str(local_path(name) or name)
    try:
        with quiet_transformers():
            model, loading = AutoModel.from_pretrained(
                source, subfolder=subfolder, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(source, subfolder=subfolder, trust_remote_code=False)
    except (*TRANSFORMERS_ERRORS, SafetensorError) as error:
        near = ", ".join(get_close_matches(name, _USUAL, n=3, cutoff=0.3)) or ", ".join(_USUAL[:3])
        remedy = (
            f"name a model of the hub that can be reached (near: {near}), or a local folder with config.json, weights "
            "and tokenizer"
        )
        message = f"model: {name} {why_not_loaded(error, remedy, instead=EMBED_YOURSELF)}"
        raise ValueError(message) from error
    # Of an encoder and a decoder, the first reads the text; some folders hold nothing else, as those of sentence-t5, and then
    # the configuration may not say that the architecture has both.
    has_both = hasattr(model, "encoder") and hasattr(model, "decoder")
    unused = ("pooler.", "decoder.") if has_both else ("pooler.",)
    _require_weights(name, [key for key in loading["missing_keys"] if not key.startswith(unused)])
    model = model.get_encoder() if has_both else model
    model.config.use_cache = False
    return model, tokenizer


def _require_weights(name: str, missing: Iterable[str]) -> None:
    """Raise where transformers would leave parts of a model that are used at random.

    So it does with weights that belong to code of the model's own under the name of an architecture that it has.
    """
    lacking = sorted(missing)
    if lacking:
        message = (
            f"model: {name} holds no weights for {len(lacking)} of its parts ({lacking[0]}, …), which would be random; name "
            "a whole model, of the architecture that its config.json names"
        )
        raise ValueError(message)


@contextmanager
def quiet_transformers() -> Generator[None, None, None]:
    """Without warnings and bars, and without running a model's own code, while it is loaded."""
    from transformers.utils import logging as untyped_logging

    logging: Any = untyped_logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with refusing_own_code():
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def token_limit(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Tokens that a model can take, special ones included; None where it does not say."""
    import torch

    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding) and module.padding_idx:
            # RoBERTa counts positions from after the padding index.
            limits.append(module.num_embeddings - module.padding_idx - 1)
    # Tokenizers without a limit of their own report 1e30.
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < 1 << 30]
    return min(known, default=None)


@dataclass(frozen=True, slots=True)
class _Tokenized:
    """A window ready for the model: the token ids of its n items."""

    window: Window
    token_ids: list[list[int]]


@dataclass(frozen=True)
class TextModel:
    """A loaded text model.

    Attributes:
        model: token ids to hidden states of the last layer.
        tokenizer: text to token ids.
        max_tokens: tokens of a text that are read; the rest is cut.
        pooling: what stands for a text.
        prompt: put before each text.
        dtype: number format of the matrix products.
        compute: device and batch size.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    max_tokens: int
    pooling: Pooling
    prompt: str
    dtype: "torch.dtype"
    compute: Compute

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        config = self.model.config
        # OPT-350m projects its last layer to the width of its token embeddings.
        return int(getattr(config, "word_embed_proj_dim", config.hidden_size))

    def embed(self, records: Iterable[Record | Invalid]) -> Iterator[Embedded]:
        """Embed texts in the source's order; within a few thousand, texts of similar length share a batch.

        Args:
            records: texts, and invalid items.

        Yields:
            A batch per window of the stream; empty texts are in its `skipped`.
        """
        for tokenized in prefetch(self._tokenized(records), depth=1):
            yield embedded_window(tokenized.window, self._outputs(tokenized.token_ids))

    def _tokenized(self, records: Iterable[Record | Invalid]) -> Generator[_Tokenized, None, None]:
        for window, texts in text_windows(records):
            token_ids = self._token_ids([self.prompt + text for text in texts])
            reasons = [None if ids else "the tokenizer finds no token in this text" for ids in token_ids]
            yield _Tokenized(split_window(window, reasons), [ids for ids in token_ids if ids])

    def _token_ids(self, texts: list[str]) -> list[list[int]]:
        token_ids: list[list[int]] = []
        for start in range(0, len(texts), _TOKENIZED_TOGETHER):
            heads = cut_for(self.tokenizer, texts[start : start + _TOKENIZED_TOGETHER], self.max_tokens)
            encoded = self.tokenizer(heads, truncation=True, max_length=self.max_tokens, padding=False)
            token_ids += encoded["input_ids"]
        return token_ids

    def _outputs(self, token_ids: list[list[int]]) -> np.ndarray:
        outputs = np.empty((len(token_ids), self.dimension), np.float32)
        on_cpu = self.compute.torch_device.type == "cpu"
        size = self.compute.batch_size or (256 if on_cpu else 1024)
        for batch in batches_by_length([len(ids) for ids in token_ids], tokens=4096 if on_cpu else 32_768, size=size):
            outputs[batch] = self._pooled([token_ids[at] for at in batch]).numpy()
        return outputs

    def _pooled(self, token_ids: list[list[int]]) -> "torch.Tensor":
        import torch

        device = self.compute.torch_device
        ids, mask = (part.to(device) for part in self._padded(token_ids))
        with torch.inference_mode(), autocast(self.dtype, device):
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # (b, t, d)
        return pool(hidden.float(), mask, self.pooling).cpu()

    def _padded(self, token_ids: list[list[int]]) -> "tuple[torch.Tensor, torch.Tensor]":
        """Token ids and attention mask, (b, t) int64 each.

        Padded on the right whatever the tokenizer's habit: then no position of a real token depends on the
        batch, in decoders neither, and the vectors are those of each text alone.
        """
        import torch

        padding = next(
            (id_ for id_ in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if id_ is not None), 0
        )
        ids = torch.full((len(token_ids), max(map(len, token_ids))), padding)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(token_ids):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return ids, mask


def pool(hidden: "torch.Tensor", mask: "torch.Tensor", pooling: Pooling) -> "torch.Tensor":
    """One vector a text.

    Args:
        hidden: (b, t, d) hidden states of the last layer.
        mask: (b, t), 1 for real tokens and 0 for padding, on either side.
        pooling: `last_token`, `mean` or `cls`.

    Returns:
        (b, d)
    """
    import torch

    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(hidden.dtype)  # (b, t, 1)
        return (hidden * weights).sum(1) / weights.sum(1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (positions * mask).argmax(1)
    chosen = last if pooling == "last_token" else mask.argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), chosen]
